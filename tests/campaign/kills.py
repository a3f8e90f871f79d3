"""Trainings that are killed at random moments and gone on with end as one that never was: `make campaign-kills`.

Each training runs in a process forked from one that has imported everything, and is ended with SIGKILL (one in ten with
SIGINT, and one in ten runs out of disk) at a moment drawn from the whole of its time or, as often, from the time in
which it saves. Then it goes on with `--resume_from_checkpoint true`, until it has ended by itself. Its weights must
equal those of a training that was left alone to the last bit.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(CUDA_VISIBLE_DEVICES="")

STEPS = 12


def arguments(clip: Path, pairs: Path, output: Path, stream: bool) -> list[str]:
    """Of a training of a few seconds that saves itself at every step."""
    return [
        *("--model", str(clip), "--train_data", str(pairs), "--output_dir", str(output), "--max_steps", str(STEPS)),
        *("--save_steps", "1", "--save_total_limit", "2", "--per_device_train_batch_size", "2", "--use_cpu"),
        *("--learning_rate", "1e-3", "--dataloader_num_workers", "0", "--max_text_length", "77"),
        *("--card_images", "false", "--pair_sampling", "any", "--disable_tqdm", "true", "--report_to", "none"),
        *(["--streaming"] if stream else []),
    ]


def run(argv: list[str], log: Path, end: tuple[str, float] | None, output: Path) -> str:
    """Run a training in a child, and end it in the way and after the seconds given; says how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if end is not None and end[0] == "disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(end[1]), int(end[1])))
            from fastgoal.trainer.cli.terminal import run_cleanly
            from fastgoal.trainer.run import main, run_parser

            code = run_cleanly(run_parser, lambda: main(argv))
        finally:
            os._exit(code)
    if end is not None and end[0] != "disk":
        how, after = end
        if how.endswith("saving"):
            _wait_for_saving(output, child)
        deadline = time.monotonic() + after
        while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        try:
            os.kill(child, signal.SIGINT if how.startswith("int") else signal.SIGKILL)
        except ProcessLookupError:
            return "ended by itself"
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:  # it had ended before
        return "ended by itself"
    code = os.waitstatus_to_exitcode(status)
    return "ended by itself" if code == 0 else f"stopped ({code})"


def _wait_for_saving(output: Path, child: int) -> None:
    """Until a checkpoint is in the making, or the child has made some progress without."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if output.is_dir() and any(path.name.endswith(".tmp") for path in output.iterdir()):
            return
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.0005)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from .harness import Kit
    from .run import warm_up

    warm_up()
    draw = random.Random(args.seed)
    stops: dict[str, int] = {}
    trainings = wrong = 0
    with tempfile.TemporaryDirectory() as place:
        kit = Kit.make(Path(place))
        whole, seconds = {}, {}
        for stream in (False, True):
            output, started = Path(place) / f"whole-{stream}", time.monotonic()
            ended = run(arguments(kit.clip, kit.pairs, output, stream), Path(place) / "log", None, output)
            assert ended == "ended by itself", (Path(place) / "log").read_text()[-2000:]
            whole[stream] = (output / "model.safetensors").read_bytes()
            seconds[stream] = time.monotonic() - started
        while sum(stops.values()) < args.kills:
            stream = trainings % 2 == 1
            output, log = Path(place) / f"killed-{trainings}", Path(place) / f"log-{trainings}"
            argv = [*arguments(kit.clip, kit.pairs, output, stream), "--resume_from_checkpoint", "true"]
            for _ in range(200):
                kind = draw.choices(["kill", "kill, saving", "int", "int, saving", "disk"], [4, 4, 0.5, 0.5, 1])[0]
                after = draw.uniform(0, 0.03) if kind.endswith("saving") else draw.uniform(0, 0.8 * seconds[stream])
                if kind == "disk":
                    after = draw.uniform(1e3, 2 * len(whole[stream]))
                if sum(stops.values()) >= args.kills:
                    kind = ""
                ended = run(argv, log, (kind, after) if kind else None, output)
                if ended == "ended by itself":
                    break
                stops[kind] = stops.get(kind, 0) + 1
                if not kind:
                    break
            same = ended == "ended by itself" and (output / "model.safetensors").read_bytes() == whole[stream]
            left = [path.name for path in output.iterdir() if path.name.endswith(".tmp")] if output.is_dir() else []
            trainings, wrong = trainings + 1, wrong + (not same or bool(left))
            if not same or left:
                sys.stdout.write(f"WRONG  training {trainings}: {ended}, left {left}\n{log.read_text()[-3000:]}\n")
            shutil.rmtree(output, ignore_errors=True)
    listed = ", ".join(f"{number} {kind}" for kind, number in sorted(stops.items()))
    sys.stdout.write(
        f"{trainings} trainings stopped {sum(stops.values())} times ({listed}); {wrong} ended otherwise.\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
