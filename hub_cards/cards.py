"""What model cards and dataset cards share: public names, and how a card is written and renamed.

The facts of a card are gathered into dataclasses first (`ModelFacts`, `DataFacts`), and a template in this folder lays
them out. A card names no folder of the machine that wrote it, and holds no secret.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData
from jinja2 import Environment, FileSystemLoader

from fastgoal.processing.names import is_hub_id

from .card_images import pairs_sheet
from .wording import count, number, percent

HERE = Path(__file__).parent
CARD = "README.md"
EXAMPLES = "examples"
PAIRS_IMAGE = f"{EXAMPLES}/pairs.jpg"
# An identifier of https://huggingface.co/docs/hub/repositories-licenses, such as openrail++ or bsd-3-clause.
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Control characters, line breaks, unpaired surrogates, and characters that change the direction of the text.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def public_name(name: str) -> str:
    """Return the public name of a model or dataset: a Hub id, or only the last name of a folder or file."""
    return name if is_hub_id(name) else card_name(Path(name).name or Path(name).resolve().name)


def check_license(license: str | None, way_out: str = "") -> None:
    """Raise `ValueError` unless a license is None or in the form of the Hub's identifiers.

    Args:
        license: The license.
        way_out: End of the message.
    """
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(
            "`license` must be an identifier of the Hub in lower case, such as cc-by-4.0, cc0-1.0, mit or other, got "
            f"{license!r}.{way_out}"
        )


def card_name(name: str) -> str:
    """Return a name that is safe in code, metadata and titles, with `_` for most punctuation."""
    return re.sub(r"[^\w./@+-]+", "_", name).strip("_") or "unnamed"


def plain(value: Any, key: str = "") -> Any:
    """Return facts with texts that are safe in a card: one line, without HTML and without the ends of cells and spans.

    The text of `prompt` keeps its lines.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: plain(getattr(value, each.name), each.name) for each in fields(value)})
    if isinstance(value, Mapping):
        return {plain(name): plain(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if not isinstance(value, str):
        return value
    lines = value.splitlines() if key == "prompt" else [value]
    text = "\n".join(" ".join(_UNSEEN.sub(" ", line).split()) if line else "" for line in lines)
    return text.replace("<", "&lt;").replace("`", "'").replace("|", "\\|")


def public_weights(mark: str) -> str:
    """Return the public name of weights: `name` for `folder/name#hash` on this machine, `name@revision` for the Hub."""
    name, at, revision = mark.partition("#")[0].partition("@")
    return public_name(name) + at + revision


def spread(lines: Sequence[Any], most: int = 8) -> list[Any]:
    """Return at most `most` lines, evenly spaced, with the first and the last one."""
    shown, last = min(most, len(lines)), len(lines) - 1
    return [lines[round(index * last / max(1, shown - 1))] for index in range(shown)]


def render_card(template: str, data: CardData, facts: Any) -> str:
    """Return the text of a card.

    Args:
        template: Name of a template in the folder of this file, which lays out the facts below the metadata.
        data: The metadata.
        facts: The facts, a dataclass with a `name`.

    Raises:
        ValueError: The license in the metadata is not an identifier of the Hub.
    """
    check_license(data.get("license"))
    environment = Environment(loader=FileSystemLoader(HERE))
    environment.filters.update(public_name=public_name, number=number, percent=percent, things=count, spread=spread)
    title = facts.name.split("/")[-1]
    return environment.get_template(template).render(card_data=data.to_yaml(), facts=plain(facts), title=title)


def rename_card(text: str, repo: str) -> str:
    """Return the text of a card with the Hub id in place of the folder's name, in code, metadata, title and widget."""
    in_yaml = yaml.safe_dump(repo).splitlines()[0]  # with quotes where YAML reads a number or a date
    old = re.search(r'^name = "(.*)"$', text, re.MULTILINE)
    text = re.sub(r'^name = ".*"$', lambda _: f'name = "{repo}"', text, flags=re.MULTILINE)
    address = f"https://huggingface.co/{repo}/resolve/main/{EXAMPLES}/"
    text = re.sub(rf"(src: )(?:https://huggingface\.co/\S+?/)?{EXAMPLES}/", lambda m: m[1] + address, text)
    if old:
        text = re.sub(rf"^(fastgoal merge ){re.escape(old[1])} ", lambda m: f"{m[1]}{repo} ", text, flags=re.MULTILINE)
        text = re.sub(rf"^- name: {re.escape(old[1])}$", lambda _: f"- name: {in_yaml}", text, flags=re.MULTILINE)
        text = re.sub(rf"^# {re.escape(old[1].split('/')[-1])}$", f"# {repo.split('/')[-1]}", text, flags=re.MULTILINE)
    return text


def pairs_image(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw rows with their local pairs; return the content of `examples/pairs.jpg`."""
    buffer = io.BytesIO()
    pairs_sheet(rows).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
