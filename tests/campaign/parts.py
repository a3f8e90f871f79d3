"""Detectors and captioners with damaged weights, and files of weights for `convert` that hold something else."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import make_sam, make_vlm, make_yolos

from .harness import Case, Kit
from .models import SPOILED, WEIGHTS, arguments

MAKERS: dict[str, Callable[[Path], Path]] = {"YOLOS": make_yolos, "SAM": make_sam, "captioner": make_vlm}
KEPT = ("cut", "empty weights", "a text", "a pointer", "too long a header", "no JSON", "deep JSON", "pickled weights")
POSITIONS = "text_model.embeddings.position_embedding.weight"
LOGIT = "logit_scale"


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return spoil


def largest(tensors: dict[str, torch.Tensor]) -> str:
    return max(tensors, key=lambda name: tensors[name].numel())


def without_most(tensors: dict[str, torch.Tensor]) -> None:
    for name in [*tensors][: len(tensors) // 2]:
        del tensors[name]


DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{name: SPOILED[name] for name in KEPT},
    "a weight less": changed(lambda tensors: tensors.pop(largest(tensors))),
    "half the weights": changed(without_most),
    "another shape": changed(lambda tensors: tensors.update({largest(tensors): torch.zeros(3)})),
    "NaN": changed(lambda tensors: tensors[largest(tensors)].fill_(float("nan"))),
    "infinite": changed(lambda tensors: tensors[largest(tensors)].fill_(float("inf"))),
    "no processor": lambda folder: [path.unlink() for path in folder.glob("*processor*.json")],
}
# What stands in a file for `convert`, in place of the weights of the CLIP or beside them.
STATES: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "no positions": lambda state: state.update({POSITIONS: torch.zeros(0, 64)}),
    "one position": lambda state: state.update({POSITIONS: torch.zeros(1, 64)}),
    "flat positions": lambda state: state.update({POSITIONS: torch.tensor(1.0)}),
    "positions of three dimensions": lambda state: state.update({POSITIONS: torch.zeros(77, 2, 2)}),
    "two factors": lambda state: state.update({LOGIT: torch.zeros(2)}),
    "complex": lambda state: state.update({LOGIT: torch.tensor(1j)}),
    "sparse": lambda state: state.update({LOGIT: torch.eye(3).to_sparse()}),
    "without data": lambda state: state.update({LOGIT: torch.zeros((), device="meta")}),
    "whole numbers": lambda state: state.update({"visual_projection.weight": torch.zeros(3, dtype=torch.long)}),
    "NaN": lambda state: state.update({LOGIT: torch.tensor(float("nan"))}),
    "a weight less": lambda state: state.pop(LOGIT),
    "a weight more": lambda state: state.update({"extra": torch.zeros(3)}),
    "nothing": lambda state: state.clear(),
    "a number": lambda state: [state.clear(), state.update({"step": 3})],
    "names of numbers": lambda state: state.update({7: torch.zeros(3)}),
    "fused and flat": lambda state: [
        state.clear(),
        state.update({"transformer.resblocks.0.attn.in_proj_weight": torch.tensor(1.0)}),
    ],
    "flat tables": lambda state: [
        state.clear(),
        state.update({"positional_embedding": torch.tensor(1.0), "positional_embedding_res": torch.tensor(1.0)}),
    ],
}
FILES = {
    "a text": b"hello",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "nothing": b"",
    "a pickle that runs": b"cos\nsystem\n(S'touch it-ran'\ntR.",
    "a cut archive": b"PK\x03\x04" + b"\0" * 60,
}


def spoiled(kind: str, damage: str, folder: Path, kit: Kit) -> list[str]:
    place = folder / "spoiled"
    shutil.copytree(_made(kind, kit), place)
    DAMAGES[damage](place)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(kit.picture.read_bytes())
    return arguments("caption" if kind == "captioner" else "detector", kit, str(place))


def _made(kind: str, kit: Kit) -> Path:
    place = kit.folder / kind
    if not place.exists():
        place.mkdir()
        MAKERS[kind](place)
    return place


def state_file(name: str, folder: Path, kit: Kit) -> list[str]:
    state: dict[Any, Any] = dict(load_file(kit.clip / WEIGHTS))
    STATES[name](state)
    torch.save(state, folder / "spoiled.pt")
    return ["convert", "spoiled.pt", "--base", str(kit.clip), "--output", "new"]


def raw_file(suffix: str, data: bytes, folder: Path, kit: Kit) -> list[str]:
    (folder / f"spoiled{suffix}").write_bytes(data)
    return ["convert", f"spoiled{suffix}", "--base", str(kit.clip), "--output", "new"]


def nothing_new(folder: Path, _: str) -> None:
    assert not (folder / "it-ran").exists(), "code in the file was run"


def cases() -> Iterator[Case]:
    for kind in MAKERS:
        for damage in DAMAGES:
            yield Case(
                "parts",
                f"{kind}: {damage}",
                lambda folder, kit, kind=kind, damage=damage: spoiled(kind, damage, folder, kit),
                "spoiled",
                check=nothing_new,
                sample=(kind, damage)
                in (("YOLOS", "half the weights"), ("SAM", "NaN"), ("captioner", "a weight less")),
            )
    for name in STATES:
        yield Case(
            "parts",
            f"convert: {name}",
            lambda folder, kit, name=name: state_file(name, folder, kit),
            r"spoiled\.pt",
            sample=name == "no positions",
        )
    for suffix in (".pt", ".safetensors"):
        for name, data in FILES.items():
            yield Case(
                "parts",
                f"convert, a file {suffix}: {name}",
                lambda folder, kit, suffix=suffix, data=data: raw_file(suffix, data, folder, kit),
                rf"spoiled\{suffix}",
                check=nothing_new,
            )
