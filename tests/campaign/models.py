"""Checkpoints that are damaged, of something else or bring code along, in every command that loads one."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, SiglipConfig

from .harness import Case, Kit
from .images import train_on

WEIGHTS = "model.safetensors"


def content(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def settings(change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        change(config)
        (folder / name).write_text(json.dumps(config))

    return spoil


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


class Runs:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("it-ran").touch, ())


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))


def with_code(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "evil.py").write_text("import pathlib\npathlib.Path('it-ran').touch()\nclass Evil: pass\n")
        kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
        maps = {kind: ["evil.Evil"] * 2 if kind == "AutoTokenizer" else "evil.Evil" for kind in kinds}
        key = {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class"}.get(name, "processor_class")
        settings(lambda config: config.update({"auto_map": maps, key: "evil"}), name)(folder)

    return spoil


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tok*"):
        path.unlink()


SPOILED: dict[str, Callable[[Path], Any]] = {
    "cut": cut,
    "empty weights": content(WEIGHTS, b""),
    "a text": content(WEIGHTS, b"no weights at all " * 20),
    "a pointer": content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
    "too long a header": content(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a weight less": weights(lambda tensors: tensors.pop("text_projection.weight")),
    "another shape": weights(lambda tensors: tensors.update({"visual_projection.weight": torch.zeros(3, 3)})),
    "no JSON": content("config.json", b"{"),
    "deep JSON": content("config.json", b"[" * 100_000),
    "a BERT": lambda folder: BertConfig().save_pretrained(folder),
    "a SigLIP": lambda folder: SiglipConfig().save_pretrained(folder),
    "an unknown activation": settings(lambda config: config["text_config"].update(hidden_act="gulp")),
    "heads that do not divide": settings(lambda config: config["vision_config"].update(num_attention_heads=7)),
    "no tokenizer": no_tokenizer,
    "a broken tokenizer": content("tokenizer.json", b"{}"),
    "pickled weights": pickled,
    "code by the configuration": with_code("config.json"),
    "code by the tokenizer": with_code("tokenizer_config.json"),
    "code by the processor": with_code("processor_config.json"),
}
# What is asked of the configuration alone: these commands do not look at the weights, or not at the tokenizer.
IGNORED = {
    ("convert", name)
    for name in ("cut", "empty weights", "a text", "a pointer", "too long a header", "no weights", "a weight less")
} | {("convert", "another shape"), ("convert", "pickled weights")}


def arguments(command: str, kit: Kit, model: str) -> list[str]:
    data, picture = ["--data", str(kit.pairs)], ["--image", str(kit.picture), "--caption", "A red square."]
    on_cpu = ["--device", "cpu"]
    return {
        "pairs": ["pairs", str(kit.pairs), "--output", "out", "--detector", "none", "--model", model, *on_cpu],
        "detector": [
            "pairs",
            str(kit.pairs),
            "--output",
            "out",
            "--detector",
            model,
            "--model",
            str(kit.clip),
            *on_cpu,
        ],
        "train": train_on(kit, kit.pairs, "--model", model),
        "evaluate": ["evaluate", "--model", model, *data, *on_cpu],
        "against": ["evaluate", "--model", str(kit.clip), "--against", model, *data, *on_cpu],
        "explain": ["explain", "--model", model, *picture, "--html", "o.html", *on_cpu],
        "gallery": ["gallery", "--model", model, *data, "--html", "o.html", *on_cpu],
        "search": ["search", "pictures", "red", "--model", model, *on_cpu],
        "inspect": ["inspect", str(kit.pairs), "--output", "o.html", "--model", model, *on_cpu],
        "convert": ["convert", str(kit.clip / WEIGHTS), "--base", model, "--output", "new"],
        "export": ["export", model, "--to", "onnx", "--output", "onnx"],
        "caption": ["caption", "pictures", "--output", "out", "--model", model, *on_cpu],
    }[command]


def make(command: str, name: str, folder: Path, kit: Kit) -> list[str]:
    model = kit.copy(kit.clip, folder / "spoiled")
    SPOILED[name](model)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(kit.picture.read_bytes())
    return arguments(command, kit, str(model))


def ran_nothing(folder: Path, _: str) -> None:
    assert not (folder / "it-ran").exists(), "code that came with the checkpoint was run"


COMMANDS = (
    *("pairs", "train", "evaluate", "against", "explain"),
    *("gallery", "search", "inspect", "convert", "export"),
)


def cases() -> Iterator[Case]:
    for command in COMMANDS:
        for name in SPOILED:
            yield Case(
                "models",
                f"{command}: {name}",
                lambda folder, kit, command=command, name=name: make(command, name, folder, kit),
                None if (command, name) in IGNORED else "spoiled",
                either="code" in name or (command, name) in IGNORED,
                check=ran_nothing,
                sample=(command, name)
                in (("export", "a weight less"), ("train", "a pointer"), ("evaluate", "deep JSON")),
            )
    for name, change in (("NaN", float("nan")), ("infinite", float("inf"))):
        spoil = weights(lambda tensors, change=change: tensors["visual_projection.weight"][0].fill_(change))
        SPOILED[name] = spoil
        for command in ("export", "evaluate", "search", "pairs", "train"):
            yield Case(
                "models",
                f"{command}: {name}",
                lambda folder, kit, command=command, name=name: make(command, name, folder, kit),
                "finite|infinite|no number|[Nn]a[Nn]|spoiled",
                sample=(command, name) == ("train", "NaN"),
            )
