"""Files of settings that are none are refused with their name, and none of them takes the machine."""

import os
import threading

import pytest

from fastgoal.trainer.cli.settings_file import flags_of

KNOWN = {"model", "learning_rate", "seed", "lr_scheduler_kwargs", "report_to"}
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm"))


def test_values_of_all_kinds(tmp_path):
    path = tmp_path / "c.yaml"
    lines = ("model: ä 红", "learning-rate: 1e-5", "seed: -1", "report_to: [a, b]", "lr_scheduler_kwargs: {x: 2}")
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert flags_of(path, KNOWN, {}) == [
        *("--model=ä 红", "--learning-rate=1e-5", "--seed=-1", "--report_to", "a", "b"),
        '--lr_scheduler_kwargs={"x": 2}',
    ]
    path.write_text("model: null\n")
    assert flags_of(path, KNOWN, {}) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: [a\nseed: 1\n", "c.yaml is not YAML: .*line 2"),
        (b"model: !!python/object/apply:os.system ['touch ran']\n", "is not YAML: could not determine a constructor"),
        (b"model: a\n---\nmodel: b\n", "is not YAML: expected a single document"),
        (b"1: a\n", "the key 1 is no text"),
        (b"true: a\n", "the key True is no text"),
        (b"? [a]\n: b\n", "is not YAML"),
        (b"model: a\nseed: 1\nmodel: b\n", "gives model twice"),
        (LAUGHS.encode(), "uses names for parts of itself"),
        (b"- model\n", "must hold `key: value` lines, got list"),
        (b"model\n", "got str"),
        (b"", "got NoneType"),
        ("model: é\n".encode("latin-1"), "is not text in UTF-8"),
        (b"model: a\0b\n", "is not YAML"),
        (b"model: " + b"[" * 5000 + b"]" * 5000, "too many lists inside|not YAML"),
        (b"#" * (2**20 + 1), "1,048,577 bytes, which is too much"),
        (b"modle: a\n", "has unknown settings .*modle: did you mean model"),
    ],
)
def test_what_is_no_file_of_settings(tmp_path, content, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        flags_of(tmp_path / "c.yaml", KNOWN, {})
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("absent.yaml", "folder.yaml", "pipe.yaml"):
        caught = []

        def read(name=name, caught=caught):
            try:
                flags_of(tmp_path / name, KNOWN, {})
            except OSError as error:
                caught.append(str(error))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(10)
        assert f"{name} cannot be read: " in caught[0]
