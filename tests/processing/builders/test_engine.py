"""The engines that make shards: this process with its threads, and two workers of Ray, killed or not."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from fastgoal.processing.builders import engine as engine_module
from fastgoal.processing.builders.captioner import Caption
from fastgoal.processing.builders.captions import CaptionSettings, write_captions
from fastgoal.processing.builders.engine import Engine, Shard, Threads, check_cluster, open_engine, share_of_cores
from fastgoal.processing.data.image_folder import open_images

from .color_world import Halves, make_folder, matcher, rows_of, run, without_times

ROOT = Path(__file__).resolve().parents[3]
COUNT = 13  # images: shards of 3, 3, 3, 3 and 1


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


def test_models_are_loaded_only_for_work():
    assert not list(Engine().run_shards([], lambda cores: pytest.fail("loaded"), 9, "rows", False))


def test_the_bar_counts_finished_rows(capsys):
    list(Engine().run_shards(SHARDS, lambda cores: Maker(True), 9, "rows", True))
    assert "rows: 100%" in capsys.readouterr().err


def test_an_error_in_a_thread_ends_the_run():
    maker = Maker(True)
    maker.load = lambda row: 1 // (row - 7)
    with pytest.raises(ZeroDivisionError):
        list(Engine().run_shards(SHARDS, lambda cores: maker, 9, "rows", False))
    assert threading.active_count() == 1 or not any(t.name.startswith("rows") for t in threading.enumerate())


@pytest.mark.parametrize("overlap", [True, False])
def test_the_number_of_waiting_results_is_limited(overlap):
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


class Named:
    """Says in which process and beside which GPU it made a shard."""

    ahead = 2

    def __init__(self, fail_at=None):
        self.threads, self.fail_at = Threads(1, True), fail_at

    def load(self, row):
        return row

    def make(self, shard, rows, advance):
        if shard.number == self.fail_at:
            raise ValueError("line 7 (a.png): broken")
        made = list(rows)
        advance(len(made))
        time.sleep(0.3)
        return {"rows": made, "pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(Halves):
    """Kills its process at every image of 67 pixels."""

    def detect(self, prepared):
        if any(width == 67 for width, _ in prepared):
            kill_oneself()
        return super().detect(prepared)


def colors(images, seed=0):
    return [Caption(f"Red {image.getpixel((0, 0))[0]}.", "stop") for image in images]


@pytest.fixture(scope="module")
def engine():
    with open_engine(2) as engine:
        yield engine


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images, and the output and summary of one process."""
    folder = make_folder(tmp_path_factory.mktemp("data") / "data", COUNT)
    whole = tmp_path_factory.mktemp("whole") / "pairs"
    return folder, whole, run(folder, whole)


def test_ray_is_imported_only_for_workers():
    code = "import sys; from fastgoal.processing.builders.engine import open_engine; open_engine(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ray" not in done.stdout.split()
    assert type(open_engine()) is Engine


@pytest.mark.slow
def test_two_workers_one_of_them_killed_write_the_same_rows(made, engine, tmp_path, capfd):
    folder, whole, summary = made
    found = run(folder, tmp_path / "pairs", matcher(Halves(5, kill_oneself)), engine=engine, progress=True)
    assert rows_of(tmp_path / "pairs") == rows_of(whole)
    assert without_times(found) == without_times(summary)
    assert not list((tmp_path / "pairs").rglob("*.tmp"))
    counts = [int(count) for count in re.findall(r"\| (\d+)/13 \[", capfd.readouterr().err)]
    assert counts
    assert counts[-1] == 13


@pytest.mark.slow
def test_a_ray_that_ended_on_this_machine_is_a_clear_error(made, engine, tmp_path, monkeypatch):
    """As after a kill of Ray's agent: workers die, and the node of this process is gone."""
    folder, whole, _ = made
    monkeypatch.setattr(engine._ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "gone"))
    with pytest.raises(ChildProcessError, match=r"^Ray ended on this machine: .*the same call continues"):
        run(folder, tmp_path / "pairs", matcher(Halves(5, kill_oneself)), engine=engine)
    run(folder, tmp_path / "pairs")
    assert rows_of(tmp_path / "pairs") == rows_of(whole)


@pytest.mark.slow
def test_workers_that_always_die_end_the_run_and_lose_nothing(made, engine, tmp_path, monkeypatch):
    folder, whole, _ = made
    monkeypatch.setattr(engine_module, "RETRIES", 1)
    with pytest.raises(ChildProcessError, match=r"shard 2 \(rows 6 to 8 of the source\): 2 workers died"):
        run(folder, tmp_path / "pairs", matcher(Deadly()), engine=engine)
    kept = rows_of(tmp_path / "pairs")
    assert kept.items() < rows_of(whole).items()
    assert len(kept) >= 2
    run(folder, tmp_path / "pairs")
    assert rows_of(tmp_path / "pairs") == rows_of(whole)


@pytest.mark.slow
def test_shards_go_to_several_processes_and_errors_come_back(made, engine):
    shards, records = [Shard(number, [10 * number, 10 * number + 1]) for number in range(12)], {}
    with pytest.raises(ValueError, match=r"^line 7 \(a.png\): broken$"):
        records.update(engine.run_shards(shards, lambda cores: Named(fail_at=11), 24, "rows", False))
    assert {number: record["rows"] for number, record in records.items()} == {n: shards[n].rows for n in records}
    assert records.keys() >= set(range(9))
    assert len({record["pid"] for record in records.values()} - {os.getpid()}) == 2


@pytest.mark.slow
def test_captions_of_two_workers(made, engine, tmp_path):
    folder, _, _ = made
    settings = CaptionSettings("a model", "What color?")
    for name, options in (("one", {}), ("two", {"engine": engine})):
        shown = []
        write_captions(
            open_images(folder),
            tmp_path / name,
            settings,
            lambda: colors,
            batch_size=2,
            show=lambda *text: shown.append(text),  # noqa: B023
            progress=False,
            **options,
        )
        assert len(shown) == 1
    assert (tmp_path / "one/metadata.jsonl").read_bytes() == (tmp_path / "two/metadata.jsonl").read_bytes()
    assert len((tmp_path / "two/metadata.jsonl").read_text().splitlines()) == COUNT


DRIVER = """
import os, signal, sys
from pathlib import Path
from tests.processing.builders.color_world import Halves, matcher, run
from tests.processing.builders.test_engine import kill_oneself
from fastgoal.processing.builders.engine import open_engine
folder, output, deadly = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "deadly"
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is off in what was started in the background
try:
    with open_engine(2) as engine:
        run(folder, output, matcher(Halves(5 if deadly else None, kill_oneself, pause=0.3)), engine=engine)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def driver(made, tmp_path):
    """Starts the pairs of `made` in a process with Ray of its own, and waits for the first shard."""
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(made[0]), str(tmp_path / "pairs"), how], cwd=ROOT, start_new_session=True
        )
        started.append(process)
        while not list((tmp_path / "pairs").glob("data/*.parquet")):
            assert process.poll() is None
            time.sleep(0.05)
        return process, psutil.Process(process.pid).children(recursive=True)

    yield start
    for process in started:
        process.kill()
        process.wait()


def left_of(processes, seconds=20):
    """Which of them do not end in time. One that has ended and waits for its parent to notice counts as gone; Ray's two
    small agents try to reach their cluster for a minute before they end."""
    end = time.monotonic() + seconds
    while alive := [name for process in processes if (name := name_of(process)) and not name.endswith("Agent")]:
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return alive


def name_of(process):
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return None


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_process_and_the_next_run_makes_the_rest(made, driver, tmp_path):
    folder, whole, summary = made
    process, children = driver("deadly")
    process.kill()
    assert len(children) >= 4
    assert not left_of(children)
    kept = rows_of(tmp_path / "pairs")
    assert kept.items() < rows_of(whole).items()
    found = run(folder, tmp_path / "pairs")
    assert found["shards_made"] == 5 - len(kept)
    assert rows_of(tmp_path / "pairs") == rows_of(whole)
    assert without_times(found) == without_times(summary)


@pytest.mark.slow
def test_an_interruption_ends_everything_in_seconds(made, driver, tmp_path):
    process, children = driver("driver")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    assert not left_of(children)
    run(made[0], tmp_path / "pairs")
    assert rows_of(tmp_path / "pairs") == rows_of(made[1])


CLUSTER = """
import sys
import ray
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

CLIENT = """
import json, sys
from tests.processing.builders.test_engine import Named
from fastgoal.processing.builders.engine import open_engine
from fastgoal.processing.builders.engine import Shard
with open_engine(ray=sys.argv[1]) as engine:
    device = engine.choose_device("auto")
    shards = [Shard(number, [number]) for number in range(6)]
    records = dict(engine.run_shards(shards, lambda cores: Named(), 6, "rows", False))
print(json.dumps([device, records]))
"""


@pytest.mark.slow
def test_a_running_cluster_is_used_with_a_gpu_for_each_worker(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # For both: the cluster listens on 127.0.0.1, and nobody takes this address for the one of the network.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # the default of new versions, for clusters alone
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    host = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in host.stdout if line.startswith("address"))
        command = [sys.executable, "-c", CLIENT, line.split()[1]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        device, records = json.loads(done.stdout)
        assert device == "cuda"
        assert {record["gpu"] for record in records.values()} == {"0", "1"}
        assert {number: record["rows"] for number, record in records.items()} == {str(n): [n] for n in range(6)}
        assert host.poll() is None  # the cluster goes on
        refused = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"}
        )
        assert "asks for a token. Set RAY_AUTH_MODE=token" in refused.stderr
    finally:
        host.stdin.close()
        host.wait(30)


def test_clusters_that_do_not_answer(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"`ray={closed}`: no Ray cluster answers there .*`workers`"):
            check_cluster(closed)
        silent.listen()
        monkeypatch.setattr(engine_module, "SECONDS_TO_ANSWER", 3)
        with pytest.raises(ValueError, match=f"`ray={closed}`: no Ray cluster answers"):
            check_cluster(closed)
    for wrong in ("cluster", "host:", ":6379", "host:port"):
        with pytest.raises(ValueError, match=f"`ray` must be HOST:PORT.*'{wrong}'"):
            check_cluster(wrong)
    with pytest.raises(ValueError, match="`workers` must be a positive integer, got 0"):
        open_engine(0)


def test_devices(engine, monkeypatch):
    with pytest.raises(ValueError, match=r"`device`.*workers.*'cuda:1'"):
        engine.choose_device("cuda:1")
    assert engine.choose_device("cpu") == "cpu"
    monkeypatch.setattr(engine, "_on_gpus", True)
    monkeypatch.setattr(engine, "_nodes", lambda: [(8, 1)])
    with pytest.raises(ValueError, match=r"`workers`.* 1, got 2"):
        engine._count()


@pytest.mark.parametrize(
    ("nodes", "count", "on_gpus", "cores"),
    [
        ([(8, 0)], 2, False, 4),
        ([(2, 0)], 3, False, 1),
        ([(3, 0), (3, 0)], 3, False, 1),
        ([(3, 0), (5, 0)], 2, False, 3),
        ([(16, 4), (64, 0)], 4, True, 4),
        ([(16, 2), (8, 2)], 4, True, 4),
        ([], 2, False, 1),
    ],
)
def test_workers_get_the_most_cores_that_all_of_them_can_have(nodes, count, on_gpus, cores):
    assert share_of_cores(nodes, count, on_gpus) == cores
