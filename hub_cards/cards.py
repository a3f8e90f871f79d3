"""What the cards of models and of datasets share: names for the public, and how a card is written and renamed.

The facts are gathered into dataclasses first (`ModelFacts`, `DataFacts`); the templates beside this file only lay them
out. A card names no folder of the machine that wrote it, and no secret.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CardData
from jinja2 import Environment, FileSystemLoader

from fastgoal.processing.files import write_text

from .card_images import pairs_sheet
from .wording import count, number, percent

HERE = Path(__file__).parent
CARD = "README.md"
EXAMPLES = "examples"
# Control characters, ends of lines, and what turns the direction of a text.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME on the Hub rather than something on this machine."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """A model's or dataset's name for the public: a Hub id as it is, of a folder or a file only the last name."""
    return name if is_hub_id(name) else card_name(Path(name).name or Path(name).resolve().name)


def card_name(name: str) -> str:
    """A name as it may stand in a line of code, in metadata and in a title: what is no letter or digit is `_`."""
    return re.sub(r"[^\w./@+-]+", "_", name).strip("_") or "unnamed"


def plain(value: Any, key: str = "") -> Any:
    """Facts whose texts are of one line and neither HTML nor Markdown that ends a cell or a span; the names stay.

    A `prompt` keeps its lines.
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
    """The name of weights for the public: of `name#hash` of local ones the name, `name@revision` of the Hub's whole."""
    name, at, revision = mark.partition("#")[0].partition("@")
    return public_name(name) + at + revision


def write_card(folder: str | os.PathLike[str], template: str, data: CardData, facts: Any) -> Path:
    """Write `README.md` into a folder, all of it or nothing; returns its path.

    A template, a file beside this one, lays out the facts, which have a `name`, below the metadata.
    """
    layouts = Environment(loader=FileSystemLoader(HERE))
    layouts.filters.update(public_name=public_name, number=number, percent=percent, things=count)
    layout = layouts.get_template(template)
    text = layout.render(card_data=data.to_yaml(), facts=plain(facts), title=facts.name.split("/")[-1])
    path = Path(folder) / CARD
    write_text(path, text)
    return path


def rename_card(text: str, repo: str) -> str:
    """A card's text with the Hub id in place of the folder's name: in the usage, the title's metadata, the widget."""
    old = re.search(r'^name = "(.*)"$', text, re.MULTILINE)
    text = re.sub(r'^name = ".*"$', lambda _: f'name = "{repo}"', text, flags=re.MULTILINE)
    address = f"https://huggingface.co/{repo}/resolve/main/{EXAMPLES}/"
    text = re.sub(rf"(src: )(?:https://huggingface\.co/\S+?/)?{EXAMPLES}/", lambda m: m[1] + address, text)
    if old:
        text = re.sub(rf"^- name: {re.escape(old[1])}$", lambda _: f"- name: {repo}", text, flags=re.MULTILINE)
        text = re.sub(rf"^# {re.escape(old[1].split('/')[-1])}$", f"# {repo.split('/')[-1]}", text, flags=re.MULTILINE)
    return text


def save_pairs_sheet(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw rows with their local pairs into a folder; returns the picture's path inside it."""
    path = folder / EXAMPLES / "pairs.jpg"
    path.parent.mkdir(exist_ok=True)
    pairs_sheet(rows).save(path, quality=88)
    return f"{EXAMPLES}/{path.name}"
