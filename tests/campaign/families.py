"""Checkpoints of MetaCLIP 2 and SigLIP 2, damaged or with files of another family."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.tiny_models import make_metaclip2, make_siglip

from .harness import Case, Kit
from .models import SPOILED, arguments, ran_nothing, settings
from .parts import changed, largest

MAKERS: dict[str, Callable[[Path], Path]] = {
    "MetaCLIP 2": make_metaclip2,
    "SigLIP 2": lambda folder: make_siglip(folder, second=True),
}
OTHER = {"MetaCLIP 2": "SigLIP 2", "SigLIP 2": "MetaCLIP 2"}
KEPT = (
    *("cut", "a pointer", "no weights", "no JSON", "deep JSON", "no tokenizer", "a broken tokenizer"),
    *("pickled weights", "code by the configuration", "code by the tokenizer", "code by the processor"),
)


def pixels(**values: Any) -> Callable[[Path], Any]:
    return settings(lambda config: config["image_processor"].update(values), "processor_config.json")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{name: SPOILED[name] for name in KEPT},
    "a weight less": changed(lambda tensors: tensors.pop(largest(tensors))),
    "NaN": changed(lambda tensors: tensors[largest(tensors)].fill_(float("nan"))),
    "a standard deviation of 0": pixels(image_std=[0, 0, 0]),
    "a mean of two": pixels(image_mean=[0.5, 0.5]),
    "an image of 0 pixels": pixels(size={"height": 0, "width": 0}, crop_size={"height": 0, "width": 0}),
}
FOREIGN = {
    "another family's tokenizer": lambda name: name.startswith(("tokenizer", "special", "sentencepiece", "spiece")),
    "another family's processor": lambda name: name.startswith("processor"),
    "another family's configuration": lambda name: name == "config.json",
}


def folder_of(family: str, kit: Kit) -> Path:
    folder = kit.folder / family.replace(" ", "")
    if not folder.exists():
        folder.mkdir()
        MAKERS[family](folder)
    return folder


def make(command: str, family: str, spoil: Callable[[Path, Kit], Any], folder: Path, kit: Kit) -> list[str]:
    model = kit.copy(folder_of(family, kit), folder / "spoiled")
    spoil(model, kit)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(kit.picture.read_bytes())
    return arguments(command, kit, str(model))


def foreign(family: str, is_wanted: Callable[[str], bool]) -> Callable[[Path, Kit], None]:
    def spoil(model: Path, kit: Kit) -> None:
        for path in [*model.iterdir()]:
            if is_wanted(path.name):
                path.unlink()
        for path in folder_of(OTHER[family], kit).iterdir():
            if is_wanted(path.name):
                shutil.copy(path, model)

    return spoil


def cases() -> Iterator[Case]:
    for family in MAKERS:
        for command in ("evaluate", "train", "export", "explain"):
            damages = {
                **{name: lambda model, kit, spoil=spoil: spoil(model) for name, spoil in DAMAGES.items()},
                **{name: foreign(family, is_wanted) for name, is_wanted in FOREIGN.items()},
            }
            yield Case(
                "families",
                f"{family}, {command}: whole",
                lambda f, k, c=command, family=family: make(c, family, lambda model, kit: None, f, k),
            )
            for name, spoil in damages.items():
                yield Case(
                    "families",
                    f"{family}, {command}: {name}",
                    lambda f, k, c=command, family=family, spoil=spoil: make(c, family, spoil, f, k),
                    "spoiled",
                    either="code" in name,
                    check=ran_nothing,
                    sample=(family, command, name) == ("SigLIP 2", "evaluate", "a standard deviation of 0"),
                )
