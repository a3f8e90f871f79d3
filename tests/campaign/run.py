"""All cases, what is imported before them, and the table of what became of them."""

import importlib
import warnings
from collections import Counter
from collections.abc import Mapping

import torch

from . import adapters, families, images, links, models, orders, parts, sending, servers, tables, tars, texts
from .harness import RESULTS, Case

HEAVY = (
    *("fastgoal.cli", "fastgoal.trainer.run", "fastgoal.trainer.evaluation.evaluate", "fastgoal.pages.explain"),
    *("fastgoal.pages.gallery", "fastgoal.search.index", "fastgoal.processing.builders.pairs"),
    *("fastgoal.hub_cards.data_card", "transformers.models.clip.modeling_clip", "transformers.models.auto"),
    *("fastgoal.export.convert", "fastgoal.export.export_onnx", "fastgoal.processing.builders.captioner", "accelerate"),
    *("peft", "fastgoal.processing.checkpoints.adapters", "fastgoal.processing.builders.caption_server"),
    *("transformers.models.siglip.modeling_siglip", "transformers.models.metaclip_2.modeling_metaclip_2"),
)


PARTS = (images, texts, tables, tars, links, models, families, adapters, parts, servers, orders, sending)


def all_cases() -> list[Case]:
    """The cases of all areas; each has a name of its own."""
    found = [case for part in PARTS for case in part.cases()]
    assert len({(case.area, case.name) for case in found}) == len(found)
    return found


def warm_up() -> None:
    """Import what the cases need, so that each starts at once. Nothing is computed: a fork does not carry threads."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in HEAVY:
            importlib.import_module(name)


def table(tried: Mapping[str, Counter[str]]) -> str:
    """The results by area as Markdown."""
    lines = [f"| area | tried | {' | '.join(RESULTS)} | not as expected |", f"|---|{'---|' * (len(RESULTS) + 2)}"]
    total: Counter[str] = Counter()
    for area, counts in tried.items():
        total += counts
        lines.append(_line(area, counts))
    return "\n".join([*lines, _line("all", total)]) + "\n"


def _line(area: str, counts: Counter[str]) -> str:
    cells = [sum(counts[name] for name in RESULTS), *(counts[name] for name in RESULTS), counts["wrong"]]
    return f"| {area} | {' | '.join(map(str, cells))} |"
