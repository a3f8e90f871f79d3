"""`fastgoal push --dry-run` lists the files, without a token."""

from argparse import Namespace

import torch
from safetensors.torch import save_file

from fastgoal.commands.push import run


def test_a_dry_run_lists_the_files(tmp_path, capsys):
    for name in ("README.md", "config.json", "model.safetensors", "handler.py", "run.log", "old/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1500)
    save_file({"x": torch.zeros(357)}, tmp_path / "model.safetensors")
    options = {"private": None, "message": "", "dry_run": True, "recode": False}
    assert run(Namespace(folder=str(tmp_path), repo="me/clip", **options)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "would be sent to me/clip as a model, 4 files, 6.0 kB:",
        "  README.md  1.5 kB",
        "  config.json  1.5 kB",
        "  handler.py  1.5 kB",
        "  model.safetensors  1.5 kB",
        "not sent: old/, run.log",
    ]
