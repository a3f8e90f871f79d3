"""Adapters that are damaged, of another model or hostile."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .harness import Case, Kit
from .models import Runs, arguments, content, no_tokenizer, ran_nothing, settings

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "fastgoal_base.json"


def make_adapter(kit: Kit) -> Path:
    """Return an adapter of the kit's CLIP, made once."""
    folder = kit.folder / "adapter"
    if not folder.exists():
        from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
        from fastgoal.processing.checkpoints.adapters import add_adapter, describe_base, lora_config, write_base
        from fastgoal.processing.processing_fastgoal import FastGoalProcessor

        model = FastGoalModel.from_base(str(kit.clip), 77)
        adapted = add_adapter(model, lora_config(model, 2))
        adapted.save_pretrained(folder)
        FastGoalProcessor.from_base(str(kit.clip), 77).save_pretrained(folder)
        write_base(folder, describe_base(adapted, str(kit.clip)))
    return folder


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": Runs()}, folder / "adapter_model.bin")


def with_code(folder: Path) -> None:
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('it-ran').touch()\nclass Evil: pass\n")
    settings(lambda config: config.update(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}), CONFIG)(
        folder
    )


def config(**values: Any) -> Callable[[Path], Any]:
    return settings(lambda config: config.update(values), CONFIG)


def base(**values: Any) -> Callable[[Path], Any]:
    return settings(lambda facts: facts.update(values), BASE)


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


SPOILED: dict[str, Callable[[Path], Any]] = {
    "cut": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000]),
    "empty weights": content(WEIGHTS, b""),
    "a text": content(WEIGHTS, b"no weights at all " * 20),
    "a pointer": content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a weight less": weights(lambda tensors: tensors.pop(first(tensors))),
    "another shape": weights(lambda tensors: tensors.update({first(tensors): torch.zeros(3, 3)})),
    "NaN": weights(lambda tensors: tensors[first(tensors)].fill_(float("nan"))),
    "infinite": weights(lambda tensors: tensors[first(tensors)].fill_(float("inf"))),
    "pickled weights": pickled,
    "no JSON": content(CONFIG, b"{"),
    "deep JSON": content(CONFIG, b"[" * 100_000),
    "a list": content(CONFIG, b"[1]"),
    "an unknown type": config(peft_type="EVIL"),
    "another type": config(peft_type="PROMPT_TUNING"),
    "a rank of a text": config(r="two"),
    "a rank of 0": config(r=0),
    "another rank": config(r=4),
    "an endless pattern": config(target_modules="(.*.*)*(.*.*)*x"),
    "no such modules": config(target_modules=["nothing"]),
    "a number for modules": config(target_modules=5),
    "base: no JSON": content(BASE, b"{"),
    "base: deep JSON": content(BASE, b"[" * 100_000),
    "base: a list": content(BASE, b"[1]"),
    "base: a number": base(base=5),
    "base: nothing": base(base=None),
    "base: absent": base(base="./nowhere"),
    "base: a private file": base(base="../private.txt"),
    "base: an adapter": lambda folder: base(base=str(folder))(folder),
    "base: no length": base(max_text_length=-1),
    "base: a long length": base(max_text_length=10**12),
    "base: a text for a length": base(max_text_length="long"),
    "base: other weights": base(fingerprint="0" * 64),
    "base: no losses": base(losses=None),
    "base: losses of a text": base(losses={"local_weight": "much"}),
    "no tokenizer": no_tokenizer,
    "a broken tokenizer": content("tokenizer.json", b"{}"),
}
TOLERANT: dict[str, Callable[[Path], Any]] = {
    "code by the configuration": with_code,
    "base: missing": lambda folder: (folder / BASE).unlink(),
    "base: an unknown field": base(color="red"),
    "base: no fingerprint": settings(lambda facts: facts.pop("fingerprint"), BASE),
    "a weight more": weights(lambda tensors: tensors.update(extra=torch.zeros(3))),
    "an unknown field": config(color="red"),
}


def make(command: str, spoil: Callable[[Path], Any], folder: Path, kit: Kit) -> list[str]:
    adapter = kit.copy(make_adapter(kit), folder / "spoiled")
    spoil(adapter)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(kit.picture.read_bytes())
    if command == "merge":
        return ["merge", str(adapter), "--output", "merged"]
    return arguments(command, kit, str(adapter))


def merged_is_finite(folder: Path, output: str) -> None:
    ran_nothing(folder, output)
    for path in folder.glob("merged/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    for path in folder.glob("merged/config.json"):
        json.loads(path.read_bytes())


def cases() -> Iterator[Case]:
    for command in ("merge", "evaluate", "search", "train"):
        yield Case("adapters", f"{command}: whole", lambda f, k, c=command: make(c, lambda _: None, f, k))
        for name, spoil in {**SPOILED, **TOLERANT}.items():
            yield Case(
                "adapters",
                f"{command}: {name}",
                lambda folder, kit, command=command, spoil=spoil: make(command, spoil, folder, kit),
                "spoiled",
                either=name in TOLERANT,
                check=merged_is_finite,
                sample=(command, name) in (("merge", "a weight less"), ("evaluate", "base: a number")),
            )
