"""Shards that are appended: what is written when, what a kill leaves, and indexes of version 1."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("faiss")

import faiss

from fastgoal.search import vector_log
from fastgoal.search.vector_log import VectorLog


def vectors(*numbers):
    return torch.tensor([[number, -number, 1.0] for number in numbers])


def add(log, *numbers, gone=()):
    names = [f"{number}.png" for number in numbers]
    log.append(vectors(*numbers) if numbers else None, names, {name: [1, 2] for name in names}, {}, gone)


def content(log):
    """The living names and the first number of their vectors."""
    rows = np.array(sorted(log.rows.values()))
    return dict(zip([log.names[row] for row in rows], log.take(rows)[:, 0].tolist(), strict=True))


def files(place):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in place.iterdir()}


def test_what_was_written_is_not_written_again(tmp_path):
    log = VectorLog(tmp_path, "a model", "one")
    add(log, 1, 2, 3)
    before = files(tmp_path)
    add(log, 4, 5, gone=["2.png"])
    add(log, 3.5)
    log.append(None, [], {"torn.png": [3, 4]}, {"torn.png": "torn"}, ["1.png"])
    assert before.items() < files(tmp_path).items()
    again = VectorLog(tmp_path, "a model", "one")
    for found in (log, again):
        assert content(found) == {"3.png": 3, "4.png": 4, "5.png": 5, "3.5.png": 3.5}
        assert found.broken == {"torn.png": "torn"}
        assert found.stamps.keys() == {"3.png", "4.png", "5.png", "3.5.png", "torn.png"}
        assert found.width == 3
    add(again, 3, gone=["torn.png"])  # the same name with another vector
    assert len(again) == 4
    assert content(VectorLog(tmp_path, "a model", "one")) == content(again)


def test_the_living_are_written_anew_when_most_are_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_log, "ROWS_TOGETHER", 2)
    log = VectorLog(tmp_path, "a model", "one")
    add(log, *range(10))
    log.append(None, [], {"torn.png": [3, 4]}, {"torn.png": "torn"}, [f"{n}.png" for n in range(5)])
    log.compact()
    assert len(log.names) == 10
    add(log, gone=["7.png"])
    (tmp_path / "0002-000009.json").write_text("left by a compaction that was killed")
    log.compact()
    for found in (log, VectorLog(tmp_path, "a model", "one")):
        assert content(found) == {"5.png": 5, "6.png": 6, "8.png": 8, "9.png": 9}
        assert (found.names.count(None), found.generation, found.broken) == (0, 2, {"torn.png": "torn"})
        assert found.stamps.keys() == {"5.png", "6.png", "8.png", "9.png", "torn.png"}
    assert not list(tmp_path.glob("0001-*"))
    add(log, 11)
    assert "11.png" in content(VectorLog(tmp_path, "a model", "one"))


def test_many_small_shards_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_log, "SPARE_SHARDS", 3)
    log = VectorLog(tmp_path, "a model", "one")
    for number in range(4):
        add(log, number)
        log.compact()
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert content(log) == {f"{number}.png": number for number in range(4)}


def write_version_1(place, names, numbers):
    index = faiss.IndexScalarQuantizer(3, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors(*numbers).numpy())
    place.mkdir()
    faiss.write_index(index, str(place / "vectors-abc.faiss"))
    state = {
        "version": 1,
        "model": "a model",
        "model_fingerprint": "one",
        "vectors": "vectors-abc.faiss",
        "paths": names,
        "stamps": {name: [1, 2] for name in [*names, "torn.png"]},
        "broken": {"torn.png": "torn"},
    }
    (place / "index.json").write_text(json.dumps(state))


def test_an_index_of_version_1_is_taken_over(tmp_path):
    write_version_1(tmp_path / "index", ["a.png", "b.png"], [0.5, 0.25])
    for _ in range(2):
        log = VectorLog(tmp_path / "index", "a model", "one")
        assert content(log) == {"a.png": 0.5, "b.png": 0.25}
        assert (log.broken, log.width) == ({"torn.png": "torn"}, 3)
        assert not list((tmp_path / "index").glob("*.faiss"))
    with pytest.raises(ValueError, match="built with another model, a model"):
        VectorLog(tmp_path / "index", "another", "two")
    write_version_1(tmp_path / "wrong", ["a.png"], [0.5, 0.25])
    with pytest.raises(ValueError, match="does not fit together; make it anew with --rebuild"):
        VectorLog(tmp_path / "wrong", "a model", "one")


def test_rebuild_leaves_nothing_of_the_old_one(tmp_path):
    log = VectorLog(tmp_path, "a model", "one")
    add(log, 1, 2)
    fresh = VectorLog(tmp_path, "another", "two", fresh=True)
    assert len(fresh) == 0
    add(fresh, 3)
    assert content(VectorLog(tmp_path, "another", "two")) == {"3.png": 3}
    assert not list(tmp_path.glob("0001-*"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("index.json", "{"),
        ("index.json", '{"version": 3, "model": "a", "model_fingerprint": "one"}'),
        ("0001-000000.json", "[]"),
        ("0001-000000.json", '{"names": ["a"], "rows": 2, "gone": [], "stamps": {}, "broken": {}}'),
        ("0001-000000.npy", "text"),
        ("0001-000000.npy", None),
    ],
)
def test_damage_is_named(tmp_path, file, text):
    add(VectorLog(tmp_path, "a model", "one"), 1, 2)
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=r"the index .* (cannot be read|has version 3).*--rebuild"):
        VectorLog(tmp_path, "a model", "one")


def test_one_process_writes_at_a_time(tmp_path):
    log, other = VectorLog(tmp_path, "a model", "one"), VectorLog(tmp_path, "a model", "one")
    with log.held(), pytest.raises(ValueError, match=r"another process brings the index .* up to date; wait for it"):
        other.held().__enter__()
    with other.held():
        pass


def test_what_another_process_has_written_meanwhile_is_read(tmp_path, monkeypatch):
    add(VectorLog(tmp_path, "a model", "one"), 1)
    log, other = VectorLog(tmp_path, "a model", "one"), VectorLog(tmp_path, "a model", "one")
    with other.held():
        add(other, 2)
    with log.held():
        add(log, 3)
    assert content(log) == {"1.png": 1, "2.png": 2, "3.png": 3}
    monkeypatch.setattr(vector_log, "SPARE_SHARDS", 0)
    with other.held():
        other.compact()
    with log.held():
        add(log, 4)
    for found in (log, VectorLog(tmp_path, "a model", "one")):
        assert content(found) == {f"{number}.png": number for number in (1, 2, 3, 4)}


WRITER = """
import sys, torch
from pathlib import Path
from fastgoal.tools import vector_log
from fastgoal.search.vector_log import VectorLog
vector_log.SPARE_SHARDS = 5
log = VectorLog(Path(sys.argv[1]), "a model", "one")
print("ready", flush=True)
with log.held():
    while True:
        number = len(log)
        log.append(torch.full((1, 3), number / 256), [str(number)], {str(number): [1, 2]}, {})
        log.compact()
"""


def test_killed_at_any_moment_every_vector_keeps_its_name(tmp_path):
    chance, before = random.Random(0), 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        log = VectorLog(tmp_path, "a model", "one")
        assert len(log) >= before
        before = len(log)
        assert content(log) == {str(number): number / 256 for number in range(before)}
    assert before > 6
