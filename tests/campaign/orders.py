"""Files of settings and command lines that are mistyped or out of range, and checkpoints to go on from."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .harness import Case, Kit
from .images import train_on

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq"))
FILES: dict[str, bytes] = {
    "no YAML": b"model: [a\n",
    "a colon more": b"model: a: b\n",
    "a tab": b"model:\n\t- a\n",
    "code": b"model: !!python/object/apply:os.system ['touch it-ran']\n",
    "another tag": b"model: !thing a\n",
    "two documents": b"model: a\n---\nmodel: b\n",
    "a number for a key": b"1: a\n",
    "true for a key": b"yes: a\n",
    "a list for a key": b"? [a]\n: b\n",
    "a key twice": b"model: a\nmodel: b\n",
    "two names of one": b"model: a\nmodel_name_or_path: a\n",
    "names for parts": LAUGHS.encode(),
    "a list": b"- model\n",
    "a text": b"model\n",
    "nothing": b"",
    "latin-1": "model: é\n".encode("latin-1"),
    "nul": b"model: a\0b\n",
    "deep": b"model: " + b"[" * 20_000,
    "large": b"#" * 2**21,
    "mistyped": b"modle: a\n",
    "a list for a number": b"model: a\ntrain_data: b\nlearning_rate: [1, 2]\n",
    "a mapping for a number": b"model: a\ntrain_data: b\nlearning_rate: {a: 1}\n",
    "a text for a number": b"model: a\ntrain_data: b\nlearning_rate: fast\n",
    "no model": b"train_data: b\n",
    "no data": b"model: a\n",
}
TRAINING: dict[str, tuple[str, str]] = {
    "gradient_accumulation_steps": ("0", "at least 1"),
    "max_train_rows": ("0", "at least 1"),
    "max_eval_rows": ("-3", "at least 1"),
    "per_device_train_batch_size": ("0", "at least 1"),
    "learning_rate": ("nan", "finite"),
    "weight_decay": ("-1", "negative"),
    "num_train_epochs": ("inf", "finite"),
    "logging_steps": ("0", "above 0"),
    "save_steps": ("-1", "above 0"),
    "warmup_steps": ("-5", "negative"),
    "tsl_weight": ("nan", "finite"),
    "local_weight": ("-1", "negative"),
    "max_logit_scale": ("0.5", "at least 1"),
    "max_text_length": ("4", "max_text_length"),
    "mini_batch_size": ("0", "at least 1|positive"),
    "objective": ("gaol", "must be one of"),
    "recipe": ("bst", "must be one of|one of"),
    "crop_size": ("50", "multiple of"),
    "pair_sampling": ("worst", "must be one of"),
    "report_to": ("wandb", "not installed|needs no account"),
    "lr_scheduler_type": ("zigzag", "zigzag"),
    "optim": ("sgdx", "sgdx"),
    "resume_from_checkpoint": ("nowhere", "nowhere.*folder"),
    "seed": ("-1", "[Ss]eed"),
    "dataloader_num_workers": ("-1", "negative"),
}


def with_file(folder: Path, data: bytes) -> list[str]:
    (folder / "c.yaml").write_bytes(data)
    return ["train", "c.yaml"]


def no_file(make: Callable[[Path], Any]) -> Callable[[Path, Kit], list[str]]:
    def prepare(folder: Path, kit: Kit) -> list[str]:
        make(folder / "c.yaml")
        return ["train", "c.yaml"]

    return prepare


def lines(kit: Kit) -> dict[str, tuple[list[str], str]]:
    model, data, picture = str(kit.clip), str(kit.pairs), str(kit.picture)
    explain = ["explain", "--model", model, "--image", picture, "--caption", "A cup."]
    pairs = ["pairs", data, "--model", model, "--detector", "none"]
    evaluate = ["evaluate", "--model", model, "--data", data]
    return {
        "no command": (["trian"], "did you mean train"),
        "a mistyped option": ([*evaluate, "--modle", "x"], "did you mean --model"),
        "nothing given": (["evaluate"], "--model|required"),
        "a number too small": ([*pairs, "--output", "o", "--batch-size", "0"], "at least 1"),
        "no number": ([*pairs, "--output", "o", "--limit", "many"], "must be an integer"),
        "a share too large": ([*pairs, "--output", "o", "--min-area", "7"], "from 0 to 1"),
        "output is a file": ([*pairs, "--output", picture], "--output .*file"),
        "output holds other things": ([*pairs, "--output", str(kit.folder)], "--output .*did not"),
        "no such device": ([*evaluate, "--device", "gpu9"], "device|gpu9"),
        "no such detector": ([*pairs[:4], "--output", "o", "--detector", "nothing.pt"], "nothing.pt"),
        "a detector without a column": ([*pairs[:4], "--output", "o", "--detector", "column:boxes"], "no column"),
        "nothing to write": (["gallery", "--model", model, "--data", data], "--output.*--html"),
        "a picture into a folder": ([*explain, "--output", "."], "is a folder"),
        "a kind of picture that is none": ([*explain, "--output", "o.xyz"], "xyz"),
        "two captions": ([*explain, "--caption-file", picture], "not allowed with|caption"),
        "a caption file that is none": (
            [*explain[:-2], "--caption-file", "absent.txt", "--html", "o.html"],
            "absent.txt",
        ),
        "a caption file in another encoding": ([*explain[:-2], "--caption-file", picture, "--html", "o.html"], "UTF-8"),
        "joint without pairs": (
            ["evaluate", "--model", model, "--data", "plain", "--joint"],
            "--joint .*columns pairs",
        ),
        "localization without boxes": (["evaluate", "--model", model, "--data", "plain", "--localization"], "boxes"),
        "a report in Markdown": ([*evaluate, "--output", "r.md"], "JSON file"),
        "a report nowhere": ([*evaluate, "--output", "/proc/r.json"], "/proc"),
        "no such protocol": ([*evaluate, "--protocol", "coco"], "must be one of"),
        "no such split": ([*evaluate, "--split", "best"], "best"),
        "no such column": ([*evaluate, "--image-column", "photo"], "photo"),
        "two queries": (["search", "plain", "a", "--query-image", picture, "--model", model], "two queries"),
        "an empty query": (["search", "plain", " ", "--model", model], "empty"),
        "an index of nothing": (["search", "nowhere", "a", "--model", model], "nowhere"),
        "an empty folder": (["search", "empty", "a", "--model", model], "no image"),
        "a query image that is none": (["search", "plain", "--query-image", "/dev/zero", "--model", model], "regular"),
        "a quickstart elsewhere": (["quickstart", "--output", str(kit.pairs)], "quickstart"),
        "export to a file": (
            ["export", model, "--to", "onnx", "--output", picture],
            r"picture\.png.* folder",
        ),
        "convert nothing": (["convert", "absent.pt", "--base", model, "--output", "o"], "absent.pt"),
        "convert into a full folder": (
            ["convert", picture, "--base", model, "--output", str(kit.pairs)],
            "--output .*empty",
        ),
        "convert a picture": (["convert", picture, "--base", model, "--output", "o"], "picture.png"),
        "train into the model": (train_on(kit, kit.pairs, "--output_dir", model), "is the folder of --model"),
        "train into the data": (train_on(kit, kit.pairs, "--output_dir", data), "is the folder of --train_data"),
        "train into a file": (train_on(kit, kit.pairs, "--output_dir", picture), "is a file"),
        "train into another model": (train_on(kit, kit.pairs, "--output_dir", "another"), "holds a model"),
        "train on nothing": (train_on(kit, Path("nowhere")), "nowhere"),
        "train without pairs": (train_on(kit, Path("plain")), "no local pairs"),
        "stream without streams": (train_on(kit, Path("plain"), "--streaming"), "cannot be streamed"),
        "a dataset that is one of code": (train_on(kit, Path("pickle")), "does not exist"),
    }


def prepare(folder: Path, kit: Kit) -> None:
    (folder / "plain").mkdir()
    (folder / "empty").mkdir()
    (folder / "plain" / "a.png").write_bytes(kit.picture.read_bytes())
    (folder / "plain" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "A cup."}\n')
    kit.copy(kit.clip, folder / "another")


def command_line(name: str, folder: Path, kit: Kit) -> list[str]:
    prepare(folder, kit)
    return lines(kit)[name][0]


def trained(folder: Path, kit: Kit) -> list[str]:
    """The arguments of a training that has left a checkpoint."""
    from fastgoal.trainer.run import main

    arguments = [*train_on(kit, kit.pairs)[1:], "--save_strategy", "steps", "--save_steps", "1", "--max_steps", "2"]
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(main(arguments))
    os.waitpid(child, 0)
    assert (folder / "trained/checkpoint-1").is_dir()
    shutil.rmtree(folder / "trained/checkpoint-2")
    return ["train", *arguments, "--resume_from_checkpoint", "true"]


def going_on(spoil: Callable[[Path], Any], *more: str) -> Callable[[Path, Kit], list[str]]:
    def make(folder: Path, kit: Kit) -> list[str]:
        arguments = trained(folder, kit)
        spoil(folder / "trained/checkpoint-1")
        return [*arguments, *more]

    return make


def truncated(name: str) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, (path / name).stat().st_size // 2)


def at_step_2(folder: Path, _: str) -> None:
    state = json.loads((folder / "trained/trainer_state.json").read_text())
    assert state["global_step"] == 2


def cases() -> Iterator[Case]:
    for name, data in FILES.items():
        yield Case(
            "settings",
            name,
            lambda folder, kit, data=data: with_file(folder, data),
            "c.yaml|--model|--train_data|learning_rate|required",
            check=lambda folder, _: None,
            sample=name in ("code", "names for parts", "two documents"),
        )
    for name, make in (("a pipe", os.mkfifo), ("a folder", os.mkdir), ("nowhere", lambda path: None)):
        yield Case("settings", name, no_file(make), "c.yaml")
    for name, (value, words) in TRAINING.items():
        yield Case(
            "settings",
            f"{name} {value}",
            lambda folder, kit, name=name, value=value: train_on(kit, kit.pairs, f"--{name}={value}"),
            words,
            sample=name in ("gradient_accumulation_steps", "report_to"),
        )
    names = list(lines(Kit(Path("/kit"), Path("/kit/clip"), Path("/kit/pairs"), Path("/kit/picture.png"))))
    for name in names:
        words = lines(Kit(Path("/kit"), Path("/kit/clip"), Path("/kit/pairs"), Path("/kit/picture.png")))[name][1]
        yield Case(
            "command lines",
            name,
            lambda folder, kit, name=name: command_line(name, folder, kit),
            words,
            sample=name in ("joint without pairs", "train into another model", "a quickstart elsewhere"),
        )
    spoiled: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], str | None]] = {
        "whole": (lambda path: None, (), None),
        "weights cut": (truncated("model.safetensors"), (), "checkpoint-1 is skipped"),
        "optimizer cut": (truncated("optimizer.pt"), (), "checkpoint-1 is skipped"),
        "no state": (lambda path: (path / "trainer_state.json").unlink(), (), "checkpoint-1 is skipped"),
        "a pickle for the optimizer": (
            lambda path: (path / "optimizer.pt").write_bytes(b"\x80\x04."),
            (),
            "checkpoint-1 is skipped",
        ),
        "emptied": (lambda path: [file.unlink() for file in path.iterdir()], (), "checkpoint-1 is skipped"),
        "a file": (lambda path: (shutil.rmtree(path), path.write_text("x")), (), "holds a model|no checkpoint"),
        "another objective": (lambda path: None, ("--objective", "global"), "objective was 'fast_goal'"),
        "another batch size": (lambda path: None, ("--per_device_train_batch_size", "2"), "batch size`? was 64"),
        "other data": (lambda path: None, ("--max_train_rows", "5"), "rows`? was 12"),
        "settings that are no JSON": (
            lambda path: (path / "fastgoal_training.json").write_text("{"),
            (),
            "cannot be read",
        ),
    }
    for name, (spoil, more, words) in spoiled.items():
        yield Case(
            "checkpoints", name, going_on(spoil, *more), words, check=at_step_2, sample=name in ("whole", "no state")
        )
