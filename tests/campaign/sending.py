"""What is pushed, what cards say of hostile names, and requests to the endpoint's handler."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .harness import Case, Kit
from .images import NOISE as NOISE_IMAGE
from .images import encoded, header
from .models import SPOILED, settings
from .texts import NAMES

SECRETS = (
    *("credentials.json", "secrets.py", "client_secret.json", "settings.local.json", "LICENSE-private-key", ".env"),
    *("id_rsa", "notes.md", "token.txt", "model.bak.safetensors", "optimizer.safetensors", "examples/me.jpg"),
    *("data/train.parquet", "onnx/other.onnx", ".git/config", "config.json.swp", "README.md~", "kaggle.json"),
)


def model_folder(folder: Path, kit: Kit, name: str = "model") -> Path:
    return kit.copy(kit.clip, folder / name)


def push(folder: Path, kit: Kit, spoil: Callable[[Path], Any], name: str = "model") -> list[str]:
    model = model_folder(folder, kit, name)
    spoil(model)
    return ["push", f"{model}", "me/clip", "--dry-run"]


def beside(name: str) -> Callable[[Path], None]:
    def add(model: Path) -> None:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("private")

    return add


def is_left_out(name: str) -> Callable[[Path, str], None]:
    def check(folder: Path, output: str) -> None:
        sent, _, left = output.partition("not sent: ")
        assert f"  {name}  " not in sent, f"{name} would be sent"
        assert name.partition("/")[0] in left, f"{name} is not listed"

    return check


def card_is_whole(folder: Path, output: str) -> None:
    """Valid metadata, no raw HTML outside of code, and code that compiles."""
    from huggingface_hub import ModelCard

    found = [path for path in folder.rglob("README.md") if (path.parent / "config.json").exists()]
    text = found[0].read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    parts = card.text.split("```")
    prose, blocks = "".join(parts[::2]), parts[1::2]
    code = "".join(block.removeprefix("python") for block in blocks if block.startswith("python"))
    compile(code, "the card's code", "exec")
    assert "<script" not in prose, "raw HTML in the card"
    assert "\x1b" not in text, "escape codes in the card"


def named(name: str) -> Callable[[Path, Kit], list[str]]:
    def make(folder: Path, kit: Kit) -> list[str]:
        model = model_folder(folder, kit, name)
        (model / "README.md").unlink(missing_ok=True)
        return ["push", "--dry-run", "--", str(model), "me/clip"]

    return make


def request(value: Any) -> Callable[[Path, Kit], Callable[[], Any]]:
    def make(folder: Path, kit: Kit) -> Callable[[], Any]:
        def ask() -> None:
            from fastgoal.hub_cards.handler import EndpointHandler

            try:
                answer = EndpointHandler(str(kit.clip))(value)
            except ValueError:
                return
            raise AssertionError(f"no error, but {str(answer)[:200]}")

        return ask

    return make


def answered(value: Any) -> Callable[[Path, Kit], Callable[[], Any]]:
    def make(folder: Path, kit: Kit) -> Callable[[], Any]:
        def ask() -> None:
            from fastgoal.hub_cards.handler import EndpointHandler

            json.dumps(EndpointHandler(str(kit.clip))(value))

        return ask

    return make


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PICTURE = encoded(NOISE_IMAGE)
NESTED: Any = "a"
for _ in range(300):
    NESTED = [NESTED]
WRONG_REQUESTS: dict[str, Any] = {
    "nothing": {},
    "none": None,
    "a list": ["inputs"],
    "a text": "inputs",
    "a number": 3,
    "inputs of a number": {"inputs": 3},
    "inputs of true": {"inputs": True},
    "inputs of none": {"inputs": None},
    "an empty list": {"inputs": []},
    "an empty text": {"inputs": ""},
    "nested": {"inputs": NESTED},
    "nested images": {"inputs": {"image": NESTED}},
    "an object for an image": {"inputs": {"image": {"url": "x"}}},
    "a number for a text": {"inputs": {"text": 3}},
    "numbers for labels": {"inputs": {"image": PICTURE}, "parameters": {"candidate_labels": [1, 2]}},
    "a number for labels": {"inputs": {"image": PICTURE}, "parameters": {"candidate_labels": 7}},
    "no labels": {"inputs": {"image": PICTURE}, "parameters": {"candidate_labels": [], "return": "scores"}},
    "parameters of a list": {"inputs": "a", "parameters": ["return"]},
    "parameters of a text": {"inputs": "a", "parameters": "scores"},
    "an unknown return": {"inputs": "a", "parameters": {"return": "poems"}},
    "a list for a return": {"inputs": "a", "parameters": {"return": ["scores"]}},
    "scores of texts": {"inputs": "a", "parameters": {"return": "scores"}},
    "an address": {"inputs": {"image": "http://127.0.0.1:1/a.png"}},
    "a secure address": {"inputs": {"image": "https://example.com/a.png"}},
    "an address in capitals": {"inputs": {"image": "HTTPS://EXAMPLE.COM/A.PNG"}},
    "metadata of a cloud": {"inputs": {"image": "http://169.254.169.254/latest/meta-data/"}},
    "a file's address": {"inputs": {"image": "file:///etc/passwd"}},
    "a path": {"inputs": {"image": "/etc/passwd"}},
    "no base64": {"inputs": {"image": "no base64!"}},
    "base64 of a text": {"inputs": {"image": in_base64(b"hello")}},
    "base64 cut": {"inputs": {"image": in_base64(PICTURE)[:101]}},
    "an empty data address": {"inputs": {"image": "data:image/png;base64,"}},
    "a data address without a comma": {"inputs": {"image": "data:image/png"}},
    "bytes of nothing": {"inputs": {"image": b""}},
    "a cut picture": {"inputs": {"image": PICTURE[:80]}},
    "a wide picture": {"inputs": {"image": header(20_000, 1)}},
    "a tall picture": {"inputs": {"image": header(1, 65_000)}},
    "a bomb": {"inputs": {"image": header(60_000, 60_000)}},
    "a large picture": {"inputs": {"image": header(9_000, 9_000)}},
    "large pictures": {"inputs": {"image": [header(6_000, 6_000)] * 3}},
    "a picture without pixels": {"inputs": {"image": header(0, 0)}},
    "a long file": {"inputs": {"image": b"\0" * (2**25 + 1)}},
    "long base64": {"inputs": {"image": "A" * 2**26}},
    "65 texts": {"inputs": ["a"] * 65},
    "65 pictures": {"inputs": {"image": [PICTURE] * 65}},
    "long texts": {"inputs": ["x" * 2_000_000] * 64},
    "half a character": {"inputs": {"text": "half \ud800"}},
    "another task": {"inputs": {"question": "What?", "image": PICTURE}},
    "unknown parameters": {"inputs": "a", "parameters": {"max_new_tokens": 20}},
    "a side door": {"inputs": "a", "dimensions": 5},
    "an image for a text": {"inputs": "A red cup.", "parameters": {"candidate_labels": ["a", "b"]}},
    "texts and labels": {"inputs": {"image": PICTURE, "text": "a"}, "parameters": {"candidate_labels": ["a", "b"]}},
    "a template of nothing": {
        "inputs": in_base64(PICTURE),
        "parameters": {"candidate_labels": "a, b", "hypothesis_template": "a photo"},
    },
    "a long template": {
        "inputs": in_base64(PICTURE),
        "parameters": {"candidate_labels": ["a"] * 64, "hypothesis_template": "{}" + "x" * 90_000},
    },
    "a pickle": {"inputs": {"image": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94\x93."}},
    "svg": {"inputs": {"image": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}},
    "eps": {"inputs": {"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF"}},
}
RIGHT_REQUESTS: dict[str, Any] = {
    "a text": {"inputs": "a red cup"},
    "scores": {"inputs": {"image": in_base64(PICTURE)}, "parameters": {"candidate_labels": "a, b"}},
    "scores for the client": {"inputs": in_base64(PICTURE), "parameters": {"candidate_labels": ["a", "b"]}},
    "a data address": {"inputs": {"image": "data:image/png;base64," + in_base64(PICTURE)}},
    "an end token": {"inputs": "a <|endoftext|> b"},
    "nul": {"inputs": "a\0b"},
    "100,000 letters": {"inputs": "x" * 100_000},
    "64 pictures": {"inputs": {"image": [PICTURE] * 64}},
}


def cases() -> Iterator[Case]:
    for name in SECRETS:
        yield Case(
            "push",
            f"beside a model: {name}",
            lambda folder, kit, name=name: push(folder, kit, beside(name)),
            check=is_left_out(name),
            sample=name == "credentials.json",
        )
    for name in ("vocab.json", "LICENSE", "merges.txt"):
        yield Case(
            "push",
            f"a link out: {name}",
            lambda folder, kit, name=name: push(folder, kit, lambda m: (m / name).symlink_to("../../private.txt")),
            check=is_left_out(name),
            sample=name == "LICENSE",
        )
    spoiled: dict[str, tuple[Callable[[Path], Any], str]] = {
        "NaN": (lambda model: SPOILED["NaN"](model), "NaN or infinite"),
        "cut": (SPOILED["cut"], "damaged"),
        "a token in the card": (lambda model: (model / "README.md").write_text("hf_" + "a" * 34), "access token"),
        "a token in the settings": (settings(lambda config: config.update(x="hf_" + "b" * 34)), "access token"),
        "no configuration": (lambda model: (model / "config.json").unlink(), "neither a saved model"),
        "no weights": (SPOILED["no weights"], "no weights"),
        "emptied": (lambda model: [path.unlink() for path in model.iterdir()], "neither a saved model"),
        "gone": (lambda model: shutil.rmtree(model), "neither a saved model|is not a folder"),
        "a pipe": (lambda model: os.mkfifo(model / "LICENSE.md"), ""),
    }
    for name, (spoil, words) in spoiled.items():
        yield Case("push", name, lambda folder, kit, spoil=spoil: push(folder, kit, spoil), words or None)
    for name, text in NAMES.items():
        yield Case("cards", name, named(text), check=card_is_whole, sample=name in ("quotes", "html"))
    for name, value in WRONG_REQUESTS.items():
        yield Case("requests", name, request(value), sample=name in ("a wide picture", "nested"))
    for name, value in RIGHT_REQUESTS.items():
        yield Case("requests", f"right: {name}", answered(value), sample=name == "scores")
