"""Servers of captions that misbehave, and captions that are hostile."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bad_servers import BROKEN, NEVER_DONE, TOO_LARGE, WRONG, Answer, RawServer, completion, redirect, whole

from .harness import Case, Kit

REFUSED: dict[str, Answer] = {
    "redirects to another host": redirect("http://example.com/v1/chat/completions"),
    "redirects to another port": redirect("http://127.0.0.1:1/v1/chat/completions", "308 Permanent Redirect"),
    "redirects to a file": redirect("file:///etc/passwd", "302 Found"),
    "redirects to nothing": redirect("\xff\xfe://"),
    "redirects to itself": redirect("/v1/chat/completions"),
    "escape codes in an error": whole(b"\x1b]0;owned\x07\x1b[2Jno", status="404 Not Found"),
    "another encoding in an error": whole(b"no", "Content-Type: text/plain; charset=zlib", status="404 Not Found"),
    "punycode in an error": whole(b"a" * 100_000, "Content-Type: text/plain; charset=punycode", status="404 No"),
    "deep JSON in an error": whole(b"[" * 200_000, "Content-Type: application/json", status="400 Bad Request"),
    "asks to wait for ever": whole(b"", "Retry-After: 1e300", status="503 Busy"),
    "asks to wait until the year 9999": whole(b"", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", status="429 Busy"),
    "a status of 999": whole(b"", status="999 What"),
    "no content": whole(b"", status="204 No Content"),
    "a proxy's page": whole(b"<html>Sign in</html>", "Content-Type: text/html"),
    "a list": whole(b"[]"),
    "no choices": whole(b'{"choices": []}'),
    "nothing for choices": whole(b'{"choices": null}'),
    "a text of 60,000 characters": whole(completion("x" * 60_000)),
    "no text": whole(completion("")),
    "only thoughts": whole(completion("<think>" * 5000 + "</think>" * 5000)),
    "NaN": whole(b'{"choices": NaN}'),
    "invalid UTF-8": whole(completion().replace(b"red", b"\xff\xfe")),
}
TEXTS: dict[str, Any] = {
    "a caption": "A red square.",
    "half a character": "A \ud800 cup.",
    "nul": "A\0cup.",
    "escape codes": "A \x1b]0;owned\x07\x1b[2J cup.",
    "html": "<script>alert(1)</script>",
    "line ends": "A cup.\r\n\u2028\n{}\n" * 100,
    "40,000 brackets": "(" * 40_000,
    "40,000 full stops": "." * 40_000,
    "thoughts without an end": "<think>" * 5000,
}
CLEAR = r"--server http://127|a\.png"


def caption(answer: Answer, folder: Path, kit: Kit) -> Callable[[], Any]:
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(kit.picture.read_bytes())

    def ask() -> None:
        from fastgoal.cli import main
        from fastgoal.processing.builders import caption_server, captions

        caption_server.FIRST_PAUSE, caption_server.LONGEST_PAUSE = 0.02, 0.1
        captions.ServerCaptioner = partial(caption_server.ServerCaptioner, patience=20)  # type: ignore[assignment, misc]
        with RawServer(answer) as server:
            options = ["--output", "out", "--model", "vlm", "--timeout", "0.5"]
            code = main(["caption", "pictures", "--server", server.url, *options])
        raise SystemExit(code)

    return ask


def is_valid(folder: Path, _: str) -> None:
    """The captions can be read again, one a line."""
    import json

    rows = [json.loads(line) for line in (folder / "out" / "metadata.jsonl").read_bytes().splitlines()]
    assert [row["file_name"] for row in rows] == ["a.png"]


def cases() -> Iterator[Case]:
    for name, answer in {**NEVER_DONE, **TOO_LARGE, **BROKEN, **WRONG, **REFUSED}.items():
        yield Case(
            "servers",
            name,
            lambda folder, kit, answer=answer: caption(answer, folder, kit),
            CLEAR,
            sample=name in ("drips chunks", "a gzip bomb", "redirects to another host"),
        )
    for name, text in TEXTS.items():
        yield Case(
            "servers",
            f"text: {name}",
            lambda folder, kit, text=text: caption(whole(completion(text)), folder, kit),
            CLEAR,
            either=True,
            check=is_valid,
            sample=name == "half a character",
        )
