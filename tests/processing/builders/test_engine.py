"""The loop that makes shards, its threads and its clock."""

import threading
import time

import pytest
import torch
from PIL import Image

from fastgoal.processing.builders import engine
from fastgoal.processing.builders.engine import BadRow, Clock, Engine, Shard, Threads, check_run, good_rows


class Maker:
    """Writes down which rows it loaded and made."""

    ahead = 2

    def __init__(self, overlap):
        self.threads, self.loaded, self.made, self.loaded_before = Threads(1, overlap), [], [], []

    def load(self, row):
        self.loaded.append(row)
        return -row

    def make(self, shard, rows, advance):
        time.sleep(0.05)
        self.loaded_before.append(list(self.loaded))
        self.made += [(shard.number, row) for row in rows]
        advance(len(shard.rows))
        return {"rows": len(shard.rows)}


SHARDS = [Shard(0, range(3)), Shard(4, [7, 9])]


@pytest.mark.parametrize("overlap", [True, False])
def test_shards_get_their_rows_in_order(overlap):
    maker = Maker(overlap)
    assert dict(Engine().run_shards(SHARDS, lambda cores: maker, 9, "rows", False)) == {0: {"rows": 3}, 4: {"rows": 2}}
    assert maker.made == [(0, 0), (0, -1), (0, -2), (4, -7), (4, -9)]
    assert maker.loaded == [0, 1, 2, 7, 9]
    # Rows of the next shard are read ahead; beside a GPU while the first one is made, else in portions.
    assert maker.loaded_before == [[], [0, 1, 2, 7, 9] if overlap else [0, 1, 2, 7]]


def test_models_are_not_loaded_for_nothing():
    assert not list(Engine().run_shards([], lambda cores: pytest.fail("loaded"), 9, "rows", False))


def test_the_bar_counts_what_was_there_before(capsys):
    list(Engine().run_shards(SHARDS, lambda cores: Maker(True), 9, "rows", True))
    assert "rows: 100%" in capsys.readouterr().err


def test_an_error_in_a_thread_ends_the_run():
    maker = Maker(True)
    maker.load = lambda row: 1 // (row - 7)
    with pytest.raises(ZeroDivisionError):
        list(Engine().run_shards(SHARDS, lambda cores: maker, 9, "rows", False))
    assert threading.active_count() == 1 or not any(t.name.startswith("rows") for t in threading.enumerate())


@pytest.mark.parametrize("overlap", [True, False])
def test_few_results_wait(overlap):
    taken, most_waiting = 0, 0
    begun = []
    with Threads(3, overlap) as threads:
        for number in threads.map(lambda item: begun.append(item) or item, range(100), 8):
            assert number == taken
            taken += 1
            most_waiting = max(most_waiting, len(begun) - taken)
    assert taken == 100
    assert most_waiting <= 8


def test_operations_in_threads_take_one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with Threads(3, overlap=True) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(6), 6)) == [1] * 6
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_a_stage_inside_another_one_counts_alone(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock("image"), clock("crop"):
        pass
    assert clock.seconds == {"": 1.0, "image": 2.0 + 4.0, "crop": 3.0}


def test_bad_rows_are_listed_or_stop_the_run():
    bad, hinting = BadRow(3, "c is broken."), BadRow(4, "d is broken; leave it out with --on-error skip.")
    skipped = []
    assert good_rows(["a", bad, "b"], skipped) == ["a", "b"]
    assert skipped == [bad]
    with pytest.raises(ValueError, match=r"^c is broken\. \(--on-error skip leaves such rows out and lists them\.\)$"):
        good_rows([bad], None)
    with pytest.raises(ValueError, match=r"^d is broken; leave it out with --on-error skip\.$"):
        good_rows([hinting], None)


def test_several_processes_are_refused(monkeypatch, tmp_path):
    from fastgoal.processing.data.image_folder import ImageFolder

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = ImageFolder(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_run(source, "stop", batch_size=1)
    for options, words in (({"on_error": "go"}, "on_error='go'"), ({"batch_size": 0}, "batch_size=0; expected")):
        with pytest.raises(ValueError, match=words):
            check_run(source, **{"on_error": "skip", **options})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2 .*torchrun and accelerate launch.*--workers N"):
        check_run(source, "stop", batch_size=1)
