"""Links, pipes and devices in models, data and outputs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .harness import Case, Kit
from .images import train_on
from .models import arguments

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")
TARGETS: dict[str, Callable[[Path], Any]] = {
    "to nothing": lambda path: path.symlink_to("nothing"),
    "to itself": lambda path: path.symlink_to(path.name),
    "to a private text": lambda path: path.symlink_to("../../private.txt"),
    "to a folder": lambda path: path.symlink_to(".."),
    "to a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": lambda path: os.mkfifo(path),
}


def model_of_links(folder: Path, kit: Kit) -> Path:
    """Lay a model as the Hub's cache does: a snapshot of links to files that are named by their hashes."""
    blobs, snapshot = folder / "hub" / "blobs", folder / "hub" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    kit.copy(kit.clip, blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def spoiled_model(command: str, file: str, place: Callable[[Path], Any], folder: Path, kit: Kit) -> list[str]:
    model = kit.copy(kit.clip, folder / "spoiled")
    (model / file).unlink()
    place(model / file)
    return on(command, kit, model, folder)


def on(command: str, kit: Kit, model: Path, folder: Path) -> list[str]:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(kit.picture.read_bytes())
    return arguments(command, kit, str(model))


def pictures(folder: Path, kit: Kit) -> Path:
    data = folder / "pictures"
    (data / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (data / name).write_bytes(kit.picture.read_bytes())
    (data / "sub" / "loop").symlink_to("..")
    (data / "sub" / "self").symlink_to("self")
    (data / "out").symlink_to("../..")
    (data / "root").symlink_to("/")
    return data


def search(folder: Path, kit: Kit) -> list[str]:
    return ["search", str(pictures(folder, kit)), "red", "--model", str(kit.clip), "--device", "cpu"]


def caption(folder: Path, kit: Kit) -> list[str]:
    return ["caption", str(pictures(folder, kit)), "--output", "o", "--model", str(kit.clip), "--device", "cpu"]


def two_found(folder: Path, output: str) -> None:
    assert "2 images" in output, output[:200]


# Outputs that are links out of the folder: what they lead to must stay as it is.
OUTPUTS: dict[str, Callable[[Path, Kit], list[str]]] = {
    "evaluate": lambda f, k: [*arguments("evaluate", k, str(k.clip)), "--output", "odd"],
    "explain": lambda f, k: [*arguments("explain", k, str(k.clip))[:-3], "odd", "--device", "cpu"],
    "gallery": lambda f, k: [*arguments("gallery", k, str(k.clip))[:-3], "odd", "--device", "cpu"],
    "inspect": lambda f, k: ["inspect", str(k.pairs), "--output", "odd"],
    "pairs": lambda f, k: [
        *("pairs", str(k.pairs), "--output", "odd", "--detector", "none", "--model", str(k.clip), "--device", "cpu")
    ],
    "train": lambda f, k: train_on(k, k.pairs, "--output_dir", "odd"),
    "export": lambda f, k: ["export", str(k.clip), "--to", "onnx", "--output", "odd"],
    "convert": lambda f, k: ["convert", str(k.clip / "model.safetensors"), "--base", str(k.clip), "--output", "odd"],
}


def output(command: str, target: str, folder: Path, kit: Kit) -> list[str]:
    (folder / "odd").symlink_to(target)
    return OUTPUTS[command](folder, kit)


def cases() -> Iterator[Case]:
    for command in ("evaluate", "train", "export", "search"):
        yield Case("links", f"{command}: a snapshot", lambda f, k, c=command: on(c, k, model_of_links(f, k), f))
        for file in MODEL_FILES:
            for name, place in TARGETS.items():
                yield Case(
                    "links",
                    f"{command}: {file} {name}",
                    lambda f, k, c=command, file=file, place=place: spoiled_model(c, file, place, f, k),
                    "spoiled",
                    sample=(command, file, name) == ("evaluate", "config.json", "a pipe"),
                )
    yield Case("links", "search: folders", search, check=two_found)
    yield Case("links", "caption: folders", caption, "leads out|link|--allow-outside-files|image-text-to-text")
    for command in OUTPUTS:
        for target in ("../private.txt", "nothing", "odd", "/dev/null"):
            yield Case(
                "links",
                f"{command}: output is a link to {target}",
                lambda f, k, c=command, t=target: output(c, t, f, k),
                "odd",
                either=True,
            )
