"""End trainings at random moments, resume them, and compare with one that was left alone: `make campaign-kills`.

Each training runs in a process forked from one that has imported everything. It is ended by SIGKILL, SIGINT, SIGTERM or
a full disk, at a moment drawn from its whole time or, as often, from the time in which it saves. It is resumed until it
ends by itself, sometimes into another folder. Its weights must equal those of an uninterrupted training to the last
bit. After SIGINT and SIGTERM within a step, the newest checkpoint must be that of the last step in the log.
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
    """Return the settings of a training of a few seconds that saves a checkpoint every three steps."""
    return [
        *("--model", str(clip), "--train_data", str(pairs), "--output_dir", str(output), "--max_steps", str(STEPS)),
        *("--save_steps", "3", "--save_total_limit", "2", "--per_device_train_batch_size", "2", "--use_cpu"),
        *("--logging_steps", "1", "--learning_rate", "1e-3", "--dataloader_num_workers", "0"),
        *("--max_text_length", "77"),
        *("--card_images", "false", "--pair_sampling", "any", "--disable_tqdm", "true", "--report_to", "none"),
        *(["--streaming"] if stream else []),
    ]


SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}


def run(argv: list[str], log: Path, end: tuple[str, float] | None, output: Path) -> str:
    """Run a training in a child process, end it with a signal after some seconds, and describe how it ended.

    Args:
        argv: Arguments of the training.
        log: File that the output is appended to.
        end: A name of `SIGNALS`, with ", saving" to wait for a checkpoint first, or "disk"; and the seconds, or for
            "disk" the size of the largest file. None to leave the training alone.
        output: The output folder.
    """
    sys.stdout.flush()  # or the child would write it again
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            if end is not None and end[0] == "disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(end[1]), int(end[1])))
            from fastgoal.trainer.cli.terminal import run_cleanly
            from fastgoal.trainer.run import main, run_parser

            code = run_cleanly(run_parser, lambda: main(argv))
        finally:
            os._exit(code)
    ended, status = 0, 0
    if end is not None and end[0] != "disk":
        name, after = end
        if name.endswith("saving"):
            _wait_for_saving(output, child)
        deadline = time.monotonic() + after
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        if not ended:
            os.kill(child, SIGNALS[name.partition(",")[0]])
    if not ended:
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return "ended by itself" if code == 0 else f"stopped ({code})"


def _wait_for_saving(output: Path, child: int) -> None:
    """Wait until a checkpoint is being written, or the child has ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if output.is_dir() and any(path.name.endswith(".tmp") for path in output.iterdir()):
            return
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.0005)


def newest_step(output: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 without one."""
    from fastgoal.trainer.checkpoints import newest_checkpoint, step_of

    newest = newest_checkpoint(output)
    return 0 if newest is None else step_of(newest)


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
    trainings = wrong = moved = saved = 0
    with tempfile.TemporaryDirectory() as folder:
        kit = Kit.make(Path(folder))
        whole, seconds = {}, {}
        for stream in (False, True):
            output, started = Path(folder) / f"whole-{stream}", time.monotonic()
            ended = run(arguments(kit.clip, kit.pairs, output, stream), Path(folder) / "log", None, output)
            assert ended == "ended by itself", (Path(folder) / "log").read_text()[-2000:]
            whole[stream] = (output / "model.safetensors").read_bytes()
            seconds[stream] = time.monotonic() - started
        while sum(stops.values()) < args.kills:
            stream = trainings % 2 == 1
            output, log = Path(folder) / f"stopped-{trainings}", Path(folder) / f"log-{trainings}"
            log.touch()
            problems, resume, start = [], "true", 0
            for attempt in range(200):
                name = draw.choice([*SIGNALS, *(f"{signal}, saving" for signal in SIGNALS), "disk"])
                after = draw.uniform(0, 0.03) if name.endswith("saving") else draw.uniform(0, 0.8 * seconds[stream])
                if name == "disk":
                    after = draw.uniform(1e3, 2 * len(whole[stream]))
                is_left_alone = sum(stops.values()) >= args.kills
                before = log.stat().st_size
                argv = [*arguments(kit.clip, kit.pairs, output, stream), "--resume_from_checkpoint", resume]
                ended = run(argv, log, None if is_left_alone else (name, after), output)
                if ended == "ended by itself":
                    break
                if is_left_alone:
                    break
                stops[name] = stops.get(name, 0) + 1
                step = newest_step(output)
                printed = log.read_bytes()[before:]
                logged = start + printed.count(b"{'loss'")
                if name.startswith(("interrupt", "terminate")):
                    if b"Traceback" in printed:
                        problems.append(f"{name}: a traceback")
                    if logged > start:
                        saved += 1
                        if step != logged:
                            problems.append(f"{name}: {logged} steps were logged, but the newest checkpoint is {step}")
                if step:
                    start, resume = step, "true"
                if step and draw.random() < 0.2:
                    resume = str(output / f"checkpoint-{step}")
                    output, moved = output.with_name(f"stopped-{trainings}-{attempt}"), moved + 1
            if ended != "ended by itself":
                problems.append(ended)
            elif (output / "model.safetensors").read_bytes() != whole[stream]:
                problems.append("other weights")
            left = [path.name for path in output.iterdir() if path.name.endswith(".tmp")] if output.is_dir() else []
            trainings, wrong = trainings + 1, wrong + bool(problems or left)
            if problems or left:
                sys.stdout.write(f"WRONG  training {trainings}: {problems}, left {left}\n{log.read_text()[-3000:]}\n")
            for path in Path(folder).glob(f"stopped-{trainings - 1}*"):
                shutil.rmtree(path, ignore_errors=True)
    listed = ", ".join(f"{number} {name}" for name, number in sorted(stops.items()))
    sys.stdout.write(
        f"{trainings} trainings were stopped {sum(stops.values())} times ({listed}) and resumed, {moved} times into "
        f"another folder. {saved} interrupts were within a step. {wrong} trainings ended differently.\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
