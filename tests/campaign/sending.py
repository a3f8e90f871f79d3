"""What is pushed, what cards say of hostile names, and requests to the endpoint's handler."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.hub_cards.test_access_keys import KEYS
from tests.squares import rows_of_squares, write_pairs

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


def named(name: str) -> Callable[[Path, Kit], Callable[[], Any]]:
    """Plan a push of a model in a folder of this name, and write the card that it would send."""

    def make(folder: Path, kit: Kit) -> Callable[[], Any]:
        model = model_folder(folder, kit, name)
        (model / "README.md").unlink(missing_ok=True)

        def ask() -> None:
            from fastgoal.cli import main
            from fastgoal.hub_cards.model_card import ModelFacts, write_model_card

            assert main(["push", "--dry-run", "--", str(model), "me/clip"]) == 0
            assert not (model / "README.md").exists(), "a dry run wrote the card"
            write_model_card(model, ModelFacts.of_folder(model))

        return ask

    return make


def linked(name: str) -> Callable[[Path], None]:
    """Move a file of a model or dataset out of the folder, and link to it; without the file, link to a private one."""

    def link(folder: Path) -> None:
        path, outside = folder / name, folder.parent / "outside"
        if path.exists():
            path.rename(outside)
        path.symlink_to(outside if outside.exists() else "../../private.txt")

    return link


def sharded(spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    def split(model: Path) -> None:
        from fastgoal import FastGoalCLIPModel

        loaded = FastGoalCLIPModel.from_pretrained(model)
        (model / "model.safetensors").unlink()
        loaded.save_pretrained(model, max_shard_size="500KB")
        assert len([*model.glob("model-*.safetensors")]) > 1
        spoil(model)

    return split


def push_rows(spoil: Callable[[Path], Any], *more: str) -> Callable[[Path, Kit], list[str]]:
    """Plan a push of a dataset of several shards."""

    def make(folder: Path, kit: Kit) -> list[str]:
        rows = rows_of_squares()
        write_pairs(rows, folder / "pairs" / "data", 3)
        settings = {"model": "clip#00", "detector": {"kind": "none"}}
        manifest = {"source": "squares", "settings": settings, "summary": {"images": len(rows)}}
        (folder / "pairs" / "fastgoal_pairs.json").write_text(json.dumps(manifest))
        (folder / "pairs" / "README.md").write_text("# Squares")
        spoil(folder / "pairs")
        return [*(more or ("push",)), str(folder / "pairs"), "me/pairs", "--dry-run"]

    return make


def cached(folder: Path, kit: Kit) -> list[str]:
    """Plan a push of a snapshot in the cache of the Hub, in which every file is a link."""
    snapshot, blobs = folder / "models--me--clip" / "snapshots" / "abc", folder / "models--me--clip" / "blobs"
    snapshot.mkdir(parents=True)
    kit.copy(kit.clip, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return ["push", str(snapshot), "me/clip", "--dry-run"]


def sends_all(folder: Path, output: str) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "handler.py"):
        assert f"  {name}  " in output, f"{name} would not be sent"


def licensed(license: str) -> Callable[[Path, Kit], list[str]]:
    def make(folder: Path, kit: Kit) -> list[str]:
        arguments = push_rows(lambda pairs: (pairs / "README.md").unlink(), "push-data")(folder, kit)
        return [*arguments, "--tokenizer", "none", f"--license={license}"]

    return make


def free_text(text: str) -> Callable[[Path, Kit], Callable[[], Any]]:
    """Put a text into every free field of both cards; the metadata must stay as they are without it."""

    def make(folder: Path, kit: Kit) -> Callable[[], Any]:
        def ask() -> None:
            import yaml

            from fastgoal.hub_cards.cards import rename_card
            from fastgoal.hub_cards.model_card import ModelFacts, render_model_card

            for value in ("plain", text):
                facts = ModelFacts.of_folder(kit.clip, base_model=value, note=value, converted_from=value)
                example = {"src": "examples/1.jpg", "candidate_labels": value, "example_title": value}
                card = rename_card(render_model_card(replace(facts, examples=[example])), "me/clip")
                data = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
                assert data["widget"][0]["candidate_labels"] == value
                assert {*data} <= {"library_name", "model_name", "pipeline_tag", "tags", "widget", "base_model"}, data

        return ask

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


LINKED = (
    *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"),
    *("README.md", "handler.py", "LICENSE", "vocab.json", "merges.txt", "examples", "onnx"),
)
INDEX = "model.safetensors.index.json"
LICENSES = {
    "two lines": "mit\nfoo: bar",
    "the end of the metadata": "mit\n---\n<script>alert(1)</script>",
    "capitals": "MIT",
    "a sentence": "free for all",
    "a list": "[mit, gpl]",
    "empty": "",
    "a comment": "mit # not",
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cases() -> Iterator[Case]:
    for name in SECRETS:
        yield Case(
            "push",
            f"beside a model: {name}",
            lambda folder, kit, name=name: push(folder, kit, beside(name)),
            check=is_left_out(name),
            sample=name == "credentials.json",
        )
    for name in LINKED:
        yield Case(
            "push",
            f"a link out: {name}",
            lambda folder, kit, name=name: push(folder, kit, linked(name)),
            f"{name}: the link leads out|links to folders",
            sample=name == "model.safetensors",
        )
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    ):
        yield Case(
            "push",
            f"without {name}",
            lambda folder, kit, name=name: push(folder, kit, lambda model: (model / name).unlink()),
            f"incomplete without .*{name}|no weights|neither a saved model",
        )
        yield Case(
            "push",
            f"half of {name}",
            lambda folder, kit, name=name: push(folder, kit, lambda model: cut(model / name)),
            "damaged|cannot be loaded",
        )
    shards: dict[str, tuple[Callable[[Path], Any], str | None]] = {
        "all shards": (lambda model: None, None),
        "a shard is gone": (
            lambda model: min(model.glob("model-*.safetensors")).unlink(),
            "incomplete without model-0",
        ),
        "the index is gone": (lambda model: (model / INDEX).unlink(), f"incomplete without {INDEX}"),
        "the index is a list": (lambda model: (model / INDEX).write_text("[]"), f"{INDEX}: the file is damaged"),
        "the index is cut": (lambda model: cut(model / INDEX), f"{INDEX}: the file is damaged"),
        "a shard is a link": (
            lambda model: linked(min(model.glob("model-*.safetensors")).name)(model),
            "link leads out",
        ),
    }
    for name, (spoil, expected) in shards.items():
        yield Case("push", name, lambda folder, kit, spoil=spoil: push(folder, kit, sharded(spoil)), expected)
    shard = "data/train-00001-of-00003.parquet"
    of_rows: dict[str, tuple[Callable[[Path], Any], str | None]] = {
        "all rows": (lambda pairs: None, None),
        "a shard of rows is gone": (lambda pairs: (pairs / shard).unlink(), f"incomplete without {shard}"),
        "a shard of rows is a link": (linked(shard), f"{shard}: the link leads out"),
        "the folder of rows is a link": (linked("data"), "links to folders"),
        "a shard of rows is cut": (lambda pairs: cut(pairs / shard), "truncated or not a parquet file"),
        "the manifest counts more": (
            lambda pairs: (pairs / "fastgoal_pairs.json").write_text('{"summary": {"images": 99}}'),
            "12 rows.* 99",
        ),
        "the manifest is unfinished": (lambda pairs: (pairs / "fastgoal_pairs.json").write_text("{}"), "finished"),
        "the card of rows is a link": (lambda pairs: linked("README.md")(pairs), "README.md: the link leads out"),
    }
    for name, (spoil, expected) in of_rows.items():
        yield Case("push", name, push_rows(spoil), expected, sample=name == "a shard of rows is a link")
    yield Case("push", "a snapshot in the cache", cached, check=sends_all, sample=True)
    for form, keys in KEYS.items():
        for number, key in enumerate(keys):
            yield Case(
                "push",
                f"a key of {form}, {number}",
                lambda folder, kit, key=key: push(folder, kit, lambda model: (model / "README.md").write_text(key)),
                r"README\.md, line 1: the file holds an access key",
            )
    for name, text in LICENSES.items():
        yield Case("push", f"license: {name}", licensed(text), "--license must be an identifier")
    yield Case("push", "license: mit", licensed("mit"))
    for name, text in NAMES.items():
        yield Case("cards", f"texts: {name}", free_text(text))
    spoiled: dict[str, tuple[Callable[[Path], Any], str]] = {
        "NaN": (lambda model: SPOILED["NaN"](model), "NaN or infinite"),
        "cut": (SPOILED["cut"], "damaged"),
        "a token in the card": (lambda model: (model / "README.md").write_text("hf_" + "a" * 34), "access key"),
        "a token in the settings": (settings(lambda config: config.update(x="hf_" + "b" * 34)), "access key"),
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
