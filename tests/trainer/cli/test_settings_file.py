"""Invalid settings files are refused by name, quickly and in little memory."""

import os
import threading

import pytest

from fastgoal.trainer.cli.parser import Parser
from fastgoal.trainer.cli.settings_file import flags_of

PARSER = Parser(prog="tool")
PARSER.add_argument("--model", "--model_name_or_path")
for name in ("learning_rate", "seed", "lr_scheduler_kwargs", "run_name"):
    PARSER.add_argument(f"--{name}")
PARSER.add_argument("--targets", nargs="+")
PARSER.add_argument("--dry-run", action="store_true")
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm"))


def flags(path):
    return flags_of(path, PARSER, {"lr_scheduler_kwargs"})


def test_values_of_all_types(tmp_path):
    path = tmp_path / "c.yaml"
    lines = (
        *("model: ä 红", "learning-rate: 1e-5", "seed: -1", "run_name: 2026-01-02", "targets: [a, 1]"),
        "lr_scheduler_kwargs: {x: 2, y: {z: 2026-01-02}}",
    )
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert flags(path) == [
        *("--model=ä 红", "--learning-rate=1e-5", "--seed=-1", "--run_name=2026-01-02", "--targets", "a", "1"),
        '--lr_scheduler_kwargs={"x": 2, "y": {"z": "2026-01-02"}}',
    ]
    path.write_text("model: null\n")
    assert flags(path) == []


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"model: [a\nseed: 1\n", "invalid YAML.*line 2"),
        (b"model: !!python/object/apply:os.system ['touch ran']\n", "invalid YAML.*python/object"),
        (b"model: a\n---\nmodel: b\n", "single document"),
        (b"1: a\n", "names as keys"),
        (b"true: a\n", "names as keys"),
        (b"? [a]\n: b\n", "invalid YAML"),
        (b"model: a\nseed: 1\nmodel: b\n", "model appears twice"),
        (b"lr_scheduler_kwargs: {x: 1, x: 2}\n", "x appears twice"),
        (b"model: a\nmodel_name_or_path: b\n", "model and model_name_or_path"),
        (LAUGHS.encode(), "aliases"),
        (b"- model\n", "key: value"),
        (b"model\n", "key: value"),
        (b"", "key: value"),
        ("model: é\n".encode("latin-1"), "UTF-8"),
        (b"model: a\0b\n", "invalid YAML"),
        (b"model: " + b"[" * 5000 + b"]" * 5000, "nested more than 8"),
        (b"#" * (2**16 + 1), "65,537"),
        (b"modle: a\n", "modle: did you mean model"),
        (b"help: true\n", "unknown settings help"),
        (b"dry-run: true\n", "unknown settings dry-run"),
        (b"".join(b"k%d: 1\n" % n for n in range(5000)), "unknown settings k0, k1,"),
        (b"seed: [1, 2]\n", "seed must be a single value, got a list"),
        (b"seed: {a: 1}\n", "seed must be a single value, got a dict"),
        (b"seed: !!set {a, b}\n", "seed must be a single value, got a set"),
        (b"targets: [a, [b]]\n", "targets must be a single value"),
    ],
)
def test_a_file_that_is_refused(tmp_path, content, fact, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=fact) as error:
        flags(tmp_path / "c.yaml")
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert not (tmp_path / "ran").exists()


def test_a_path_that_is_not_a_file(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("absent.yaml", "folder.yaml", "pipe.yaml"):
        errors = []

        def read(name=name, errors=errors):
            try:
                flags(tmp_path / name)
            except OSError as error:
                errors.append(str(error))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(10)
        assert f"{name} cannot be read: " in errors[0]
