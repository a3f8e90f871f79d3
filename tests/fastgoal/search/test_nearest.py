"""The nearest vectors: all compared, and through an inverted file with the recall that it says."""

import numpy as np
import pytest
import torch

pytest.importorskip("faiss")

import faiss

from fastgoal.search import nearest
from fastgoal.search.nearest import Nearest
from fastgoal.search.vector_log import VectorLog

COUNT, WIDTH = 3000, 16


def made_up(count, seed=0):
    """Vectors in 30 groups."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(9))
    points = centers[torch.arange(count) % 30] + 0.5 * torch.randn(count, WIDTH, generator=generator)
    return torch.nn.functional.normalize(points, dim=1).half().float()


def add(log, vectors, prefix=""):
    names = [f"{prefix}{number}" for number in range(len(vectors))]
    log.append(vectors, names, {name: [1, 2] for name in names}, {})


@pytest.fixture
def log(tmp_path):
    log = VectorLog(tmp_path, "a model", "one")
    for start in range(0, COUNT, 1000):
        add(log, made_up(COUNT)[start : start + 1000], f"{start}-")
    return log


def slow(log, query, k):
    """The answer by a full comparison in double precision."""
    living = np.array(sorted(log.rows.values()))
    scores = log.take(living).astype(np.float64) @ query.astype(np.float64)
    best = np.argsort(-scores, kind="stable")[:k]
    return living[best].tolist(), scores[best]


def recall(log, searcher, queries):
    shares = []
    for query in queries.numpy():
        found = searcher.search(query, 10)
        wanted, _ = slow(log, query, 10)
        shares.append(len({row for row, _ in found} & {*wanted}) / 10)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    return float(np.mean(shares))


def test_up_to_a_million_all_are_compared(log):
    log.append(None, [], {}, {}, [f"0-{number}" for number in range(500)])
    searcher = Nearest(faiss, log)
    assert searcher.recall is None
    for query in made_up(20, 1).numpy():
        rows, scores = slow(log, query, 7)
        found = searcher.search(query, 7)
        assert [row for row, _ in found] == rows
        np.testing.assert_allclose([score for _, score in found], scores, atol=1e-5)


def test_beyond_the_inverted_file_finds_what_it_says(log, monkeypatch):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 2000)
    searcher = Nearest(faiss, log)
    assert searcher.recall >= nearest.RECALL
    # Of other queries it finds about as much.
    assert recall(log, searcher, made_up(200, 1)) == pytest.approx(searcher.recall, abs=0.04)
    # Not by reading everything.
    assert searcher._parameters.nprobe < 0.5 * searcher._inverted.nlist

    made = {path.name for path in log.place.glob("*inverted*")}
    monkeypatch.setattr(Nearest, "_make_inverted", lambda self: pytest.fail("made again"))
    assert Nearest(faiss, VectorLog(log.place, "a model", "one")).recall == searcher.recall
    assert {path.name for path in log.place.glob("*inverted*")} == made


def test_new_and_dead_vectors_beside_an_inverted_file(log, monkeypatch):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 2000)
    Nearest(faiss, log)
    query = made_up(1, 5)[0]
    dead, _ = slow(log, query.numpy(), 5)
    log.append(None, [], {}, {}, [log.names[row] for row in dead])
    near = torch.nn.functional.normalize(query + 0.01 * torch.randn(3, WIDTH), dim=1)
    add(log, torch.cat([near, made_up(50, 6)]), "new-")
    with monkeypatch.context() as patched:
        patched.setattr(Nearest, "_make_inverted", lambda self: pytest.fail("made again"))
        searcher = Nearest(faiss, log)
    found = [row for row, _ in searcher.search(query.numpy(), 8)]
    assert {log.names[row] for row in found[:3]} == {"new-0", "new-1", "new-2"}
    assert not {*found} & {*dead}
    assert found[:3] == slow(log, query.numpy(), 3)[0]
    assert recall(log, searcher, made_up(100, 1)) > 0.9

    add(log, made_up(500, 7), "more-")  # now many are new
    assert Nearest(faiss, log).recall >= nearest.RECALL
    assert [path.name for path in log.place.glob("*inverted*.faiss")] == [f"0001-inverted-{COUNT + 553}.faiss"]


def test_where_lists_say_nothing_all_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 100)
    log = VectorLog(tmp_path, "a model", "one")
    add(log, torch.nn.functional.normalize(torch.randn(400, 64, generator=torch.Generator().manual_seed(0)), dim=1))
    searcher = Nearest(faiss, log)
    assert searcher.recall >= nearest.RECALL


def test_a_damaged_inverted_file_is_named(log, monkeypatch):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 2000)
    Nearest(faiss, log)
    next(log.place.glob("*.faiss")).write_bytes(b"no index")
    with pytest.raises(ValueError, match=r"cannot be read .*--rebuild"):
        Nearest(faiss, log)
