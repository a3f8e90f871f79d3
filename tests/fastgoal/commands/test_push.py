"""`fastgoal push --dry-run` lists the files, without a token."""

from argparse import Namespace

from fastgoal import FastGoalModel, FastGoalProcessor
from fastgoal.commands.push import run


def test_a_dry_run_lists_the_files(tiny_clip, tmp_path, capsys):
    FastGoalModel.from_base(str(tiny_clip)).save_pretrained(tmp_path)
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(tmp_path)
    for name in ("run.log", "old/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1500)
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n{'x' * 1476}")
    options = {"private": None, "message": "", "dry_run": True, "recode": False, "progress": True}
    assert run(Namespace(folder=str(tmp_path), repo="me/clip", **options)) == 0
    first, *files, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"would be sent to me/clip as a model, {len(files)} files, ")
    assert "  README.md  1.5 kB" in files
    assert {"config.json", "handler.py", "model.safetensors"} < {line.split()[0] for line in files}
    assert last == "not sent: old/, run.log"
