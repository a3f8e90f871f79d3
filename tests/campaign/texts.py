"""Captions and lines of metadata that are hostile, broken or long, and names of files and folders."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .harness import Case, Kit
from .images import train_on

NO_TEXT = "no valid text|is no text|valid Unicode|surrogate"
CAPTIONS: dict[str, tuple[Any, str | None]] = {
    "surrogate": ("half \ud800 of it", NO_TEXT),
    "two surrogates": ("\udc00\ud800 a", NO_TEXT),
    "100,000 letters": ("x" * 100_000, None),
    "20,000 sentences": ("A cat. " * 20_000, None),
    "100,000 full stops": ("a" + "." * 100_000, None),
    "100,000 spaces": ("a" + " " * 100_000 + "b.", None),
    "100,000 line ends": ("a" + "\n" * 100_000 + "b.", None),
    "100,000 brackets": ("(" * 50_000 + "a" + ")" * 50_000, None),
    "end token": ("A cup. <|endoftext|> A spoon.", None),
    "start token": ("<|startoftext|> A cup.", None),
    "nul": ("A\0cup.", None),
    "escape codes": ("A \x1b]0;owned\x07\x1b[2J cup.", None),
    "bidi": ("A cup \u202etxt.exe\u202c here.", None),
    "html": ("<script>alert(1)</script> A cup & <b>spoon</b>.", None),
    "yaml": ("---\nlicense: mit\n---\n# A cup.", None),
    "jinja": ("{{ 7 * 7 }} {% include '/etc/passwd' %}", None),
    "only punctuation": ("!?!.", None),
    "one letter": ("a", None),
    "arabic": ("قطة تجلس على سجادة. الكلب ينام.", None),
    "chinese": ("一只猫坐在垫子上。狗在睡觉。", None),
    "emoji": ("👩‍👩‍👧‍👦🦊 sits.", None),
    "combining marks": ("Z" + "\u0301" * 5000 + " a.", None),
    "empty": ("", "empty|no sentence|not empty"),
    "white space": (" \n\t ", "empty|no sentence|not empty"),
}
WRONG_TYPES: dict[str, Any] = {
    "number": 3,
    "null": None,
    "object": {"a": 1},
    "nested": [["a"]],
    "true": True,
    "none in": ["a", None],
}
DEEP = "[" * 100_000 + "]" * 100_000
LINES: dict[str, str] = {
    "not JSON": "{",
    "an array": "[1]",
    "a number": "3",
    "deep": '{"file_name": "a.png", "caption": ' + DEEP + "}",
    "deep beside": '{"file_name": "a.png", "caption": "a", "x": ' + DEEP + "}",
    "a long number": '{"file_name": "a.png", "caption": "a", "x": ' + "9" * 5000 + "}",
    "no image": '{"caption": "a"}',
    "no caption": '{"file_name": "a.png"}',
    "empty name": '{"file_name": "", "caption": "a"}',
    "null name": '{"file_name": null, "caption": "a"}',
    "number for a name": '{"file_name": 3, "caption": "a"}',
    "list for a name": '{"file_name": ["a.png"], "caption": "a"}',
    "parent": '{"file_name": "../private.png", "caption": "a"}',
    "two parents": '{"file_name": "../../private.png", "caption": "a"}',
    "absolute": '{"file_name": "/etc/hostname", "caption": "a"}',
    "a device": '{"file_name": "/dev/zero", "caption": "a"}',
    "an address": '{"file_name": "http://example.com/a.png", "caption": "a"}',
    "a home": '{"file_name": "~/a.png", "caption": "a"}',
    "nul in a name": '{"file_name": "a\\u0000.png", "caption": "a"}',
    "surrogate in a name": '{"file_name": "a\\ud800.png", "caption": "a"}',
    "a long name": json.dumps({"file_name": "a" * 5000 + ".png", "caption": "a"}),
    "absent": '{"file_name": "absent.png", "caption": "a"}',
    "escape in a name": '{"file_name": "\\u001b]0;x\\u0007.png", "caption": "a"}',
    "utf-16": '{"file_name": "a.png", "caption": "a"}\n'.encode("utf-16").decode("latin-1"),
}
NAMES = {
    "quotes": 'it\'s "here"',
    "line end": "two\nlines",
    "escape": "\x1b]0;owned\x07",
    "html": "<b>&amp;<script>",
    "dash": "-rf",
    "front matter": "---",
    "jinja": "{{ 7*7 }}",
    "backticks": "`touch x`",
    "dollar": "$(touch x)",
    "spaces": "  a  b  ",
    "long": "n" * 200,
    "chinese": "图片",
    "emoji": "🦊",
    "bidi": "a\u202eb",
    "percent": "%s%d%n",
    "brackets": "[a]{b}*?",
    "hash": "a#b@c",
}


def write(folder: Path, kit: Kit, lines: list[str], name: str = "data") -> Path:
    data = folder / name
    data.mkdir()
    (data / "a.png").write_bytes(kit.picture.read_bytes())
    (data / "metadata.jsonl").write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
    return data


def row(caption: Any) -> str:
    return json.dumps({"file_name": "a.png", "caption": caption})


def command(name: str, kit: Kit, data: Path) -> list[str]:
    model, device = ["--model", str(kit.clip)], ["--device", "cpu"]
    if name == "pairs":
        return ["pairs", str(data), "--output", "out", "--detector", "none", *model, *device]
    if name == "evaluate":
        return ["evaluate", "--data", str(data), *model, *device]
    if name == "gallery":
        return ["gallery", "--data", str(data), "--html", "g.html", *model, *device]
    return train_on(kit, data, "--objective", "global")


def no_raw_script(folder: Path, _: str) -> None:
    for page in folder.glob("*.html"):
        assert "<script>alert(1)" not in page.read_text(encoding="utf-8")


def explain(folder: Path, kit: Kit, caption: str) -> list[str]:
    pictures = ["--output", "o.png", "--html", "o.html", "--device", "cpu"]
    return ["explain", "--model", str(kit.clip), "--image", str(kit.picture), "--caption", caption, *pictures]


def search(folder: Path, kit: Kit, query: str) -> list[str]:
    data = write(folder, kit, [row("a")])
    return ["search", str(data), query, "--model", str(kit.clip), "--device", "cpu", "--html", "s.html"]


def cases() -> Iterator[Case]:
    for name, (caption, words) in CAPTIONS.items():
        for what in ("pairs", "evaluate", "gallery", "train"):
            yield Case(
                "captions",
                f"{what}: {name}",
                lambda folder, kit, what=what, caption=caption: command(what, kit, write(folder, kit, [row(caption)])),
                words,
                check=no_raw_script,
                sample=(what, name) in (("pairs", "surrogate"), ("train", "20,000 sentences")),
            )
        for what, make in (("explain", explain), ("search", search)):
            yield Case(
                "captions",
                f"{what}: {name}",
                lambda folder, kit, make=make, caption=caption: make(folder, kit, caption),
                words,
                check=no_raw_script,
                sample=(what, name) in (("explain", "20,000 sentences"), ("search", "surrogate"), ("explain", "html")),
            )
    for name, caption in WRONG_TYPES.items():
        for what in ("pairs", "evaluate", "train"):
            yield Case(
                "captions",
                f"{what}: {name}",
                lambda folder, kit, what=what, caption=caption: command(what, kit, write(folder, kit, [row(caption)])),
                r"metadata\.jsonl line 1.*caption",
            )
    for name, line in LINES.items():
        for what in ("pairs", "evaluate", "train"):
            yield Case(
                "metadata",
                f"{what}: {name}",
                lambda folder, kit, what=what, line=line: command(what, kit, write(folder, kit, [line])),
                r"metadata\.jsonl|does not exist|too long",
                either=name == "utf-16",
                sample=what == "pairs" and name in ("deep", "two parents", "a device"),
            )
    for name, text in NAMES.items():
        for what in ("pairs", "evaluate", "gallery"):
            yield Case(
                "names",
                f"{what}, the data: {name}",
                lambda folder, kit, what=what, text=text: command(what, kit, write(folder, kit, [row("A cup.")], text)),
                words="argument|option|required|expected" if text.startswith("-r") else None,
                either=True,
                sample=what == "gallery" and name == "escape",
            )
        yield Case(
            "names",
            f"evaluate, nothing there: {name}",
            lambda folder, kit, text=text: ["evaluate", "--model", str(kit.clip), f"--data={text}"],
            ".",
        )
        yield Case(
            "names",
            f"a model that is not there: {name}",
            lambda folder, kit, text=text: ["evaluate", f"--model={text}", "--data", str(kit.pairs)],
            "--model|argument",
        )
