"""Fine-tune a model for long captions: parse the settings, load, train, save and push. `fastgoal train` runs this.

fastgoal train CONFIG.yaml
fastgoal train --model openai/clip-vit-base-patch16 --train_data pairs/ --output_dir fast-goal
accelerate launch trainer/run.py CONFIG.yaml --learning_rate 1.0e-5
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

# Run as a script, Python puts this folder first on the path, where a file could shadow a library.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]

from tqdm.auto import tqdm
from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from fastgoal.hub_cards.cards import check_license
from fastgoal.processing.checkpoints.adapters import is_adapter
from fastgoal.processing.data.forms.registry import FORMS, load_source, open_stream
from fastgoal.processing.data.sources import CAPTIONS, Source
from fastgoal.processing.data.streams import StreamSource
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.streams import StreamData
from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.checkpoints import hold_output, newest_checkpoint, refuse_output, require_checkpoint, step_of
from fastgoal.trainer.cli.launch import STARTED, launch, starts_processes
from fastgoal.trainer.cli.run_parser import RunParser
from fastgoal.trainer.cli.settings_file import flags_of, refuse_two_names
from fastgoal.trainer.cli.terminal import quiet_libraries, run_cleanly
from fastgoal.trainer.cli.usage import USAGE
from fastgoal.trainer.evaluation.options import parse_also
from fastgoal.trainer.gains import FILE as GAINS
from fastgoal.trainer.gains import measure_gains, open_gains
from fastgoal.trainer.interrupts import Interrupted
from fastgoal.trainer.summary import end_lines, log_text
from fastgoal.trainer.trainer import FastGoalTrainer
from fastgoal.trainer.training_arguments import FastGoalTrainingArguments

logger = logging.get_logger(__name__)


def _option(text: str, default: Any = MISSING, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass
class RunArguments:
    """The model and the data of a training."""

    model: str = _option(
        "Model to start from: folder or Hub id of a CLIP, MetaCLIP 2, SigLIP or SigLIP 2 model, or of an adapter.",
        metavar="MODEL",
        aliases="--model_name_or_path",
    )
    train_data: str = _option(
        "Dataset to train on: a folder that `fastgoal pairs` wrote, or, for an objective without local pairs "
        "(`global`, `sparc`), any images with captions in a form that `form` lists.",
        metavar="DATA",
        aliases="--dataset_name",
    )
    eval_data: str | None = _option(
        "Dataset to evaluate on, before the first step and in each epoch (see `eval_strategy`): images with captions; "
        "local pairs are needed for the loss alone. By default nothing is evaluated.",
        None,
    )
    eval_also: list[str] | None = _option(  # noqa: RUF009
        'Protocols to measure the base and the trained model with at the end, for the section "Gained and lost" of the '
        "model card, such as imagenet=zero-shot:imagenet/val. `fastgoal evaluate --help` lists the protocols.",
        None,
        metavar="LABEL=PROTOCOL:PATH",
    )
    form: str | None = _option(
        f"Form of the datasets: {', '.join(FORMS)}. Recognized by default.", None, choices=[*FORMS]
    )
    train_split: str | None = _option(
        "Split of `train_data`; required if it has several, unless its form has a default.", None
    )
    eval_split: str | None = _option(
        "Split of `eval_data`; required if it has several, unless its form has a default.", None
    )
    image_column: str | None = _option("Column with the images. Defaults to file_name, or the only image column.", None)
    caption_column: str | None = _option(
        "Column with the captions. Defaults to the first of caption, captions, text, txt, prompt and title that "
        "exists.",
        None,
    )
    image_folder: str | None = _option(
        "Folder of the image files, if the datasets are tables that name them. Defaults to the folder of the table.",
        None,
    )
    captions: str = _option(
        "With several captions per image in `train_data`: join them, use the longest and keep the others as short "
        "captions, or use each in a row of its own, which is not contrasted with the others of its image.",
        "join",
        choices=[*CAPTIONS],
    )
    max_text_length: int | None = _option(
        "Maximum text length in tokens, from that of the model to 1024. Defaults to 248 (SigLIP: 256) for published "
        "models; a model that was stretched before keeps its length.",
        None,
    )
    streaming: bool = _option(
        "Whether to stream the training data from parquet or tar (WebDataset) shards instead of loading them. Does not "
        "work with `hard_negatives`, `train_sampling_strategy`, `image_folder`, `captions` and `max_train_rows`.",
        False,
    )
    shuffle_window: int = _option(
        "With `streaming`: number of rows that each worker holds in memory to shuffle them. Shards are shuffled too.",
        1000,
    )
    allow_outside_files: bool = _option(
        "Whether to also read image files that rows or links name outside the data folder.", False
    )
    max_train_rows: int | None = _option("Train on the first N rows only. Defaults to all rows.", None)
    max_eval_rows: int | None = _option("Evaluate on the first N rows only. Defaults to all rows.", None)
    num_processes: int | None = _option(
        "Number of processes to start: one per GPU, or CPU processes with `use_cpu`. Defaults to one process.", None
    )
    accelerate_config: str | None = _option(
        "Configuration of the processes: cpu, one_gpu, many_gpus, fsdp, or a file that `accelerate "
        "config` wrote. Defaults to plain data parallelism over the processes of `num_processes`.",
        None,
        metavar="NAME_OR_FILE",
    )
    license: str | None = _option("License of the model for its card: an identifier of the Hub, such as mit.", None)
    card_images: bool = _option(
        "Whether to show a few training and evaluation images on the model card. A push publishes them.", False
    )

    def __post_init__(self) -> None:
        check_license(self.license)
        parse_also(self.eval_also, argument="eval_also")
        for name in ("max_train_rows", "max_eval_rows", "shuffle_window", "num_processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.streaming:
            for name, default in (("max_train_rows", None), ("image_folder", None), ("captions", "join")):
                if (value := getattr(self, name)) != default:
                    raise ValueError(f"`{name}` cannot be combined with `streaming`, got {value}.")


ARGUMENTS = (RunArguments, FastGoalTrainingArguments)
MAPPINGS = {name for arguments in ARGUMENTS for name, hint in get_type_hints(arguments).items() if "dict" in str(hint)}


def run_parser(prog: str = "run.py") -> RunParser:
    """Return the parser of a training's settings."""
    return RunParser([*ARGUMENTS], prog=prog, usage=USAGE)


def parse(argv: Sequence[str], parser: RunParser | None = None) -> tuple[RunArguments, FastGoalTrainingArguments]:
    """Return the arguments of a training from a YAML file, from flags, or from a file and flags that override it.

    Raises:
        SystemExit: An argument is invalid; as in argparse, two lines are printed on stderr and the exit code is 2.
    """
    parser = parser or run_parser()
    try:
        run, training = parser.parse_args_into_dataclasses(expand_file(argv, parser))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return run, training


def expand_file(argv: Sequence[str], parser: RunParser) -> list[str]:
    """Replace a settings file at the start of `argv` by its flags."""
    given = [flag.partition("=")[0][2:] for flag in argv if flag.startswith("--")]
    refuse_two_names(given, parser, "the command line")
    if argv and argv[0].endswith((".yaml", ".yml")):
        return [*flags_of(Path(argv[0]), parser, MAPPINGS), *argv[1:]]
    return list(argv)


def main(argv: Sequence[str] | None = None, parser: RunParser | None = None) -> int:
    """Run a training and return the exit code.

    Raises:
        KeyboardInterrupt: The training was interrupted. The message has the command that resumes it.
    """
    argv, parser = sys.argv[1:] if argv is None else argv, parser or run_parser()
    try:
        asked = parser.parse_args(expand_file(argv, parser))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if starts_processes(asked.num_processes, asked.accelerate_config):
        # Report invalid settings once, without occupying a GPU.
        parse(argv if asked.use_cpu else [*argv, "--use_cpu", "true"], parser)
        return launch(argv, asked.num_processes, asked.accelerate_config, asked.use_cpu)
    run, args = parse(argv, parser)
    quiet_libraries()
    _refuse_separate_processes(args.world_size)
    output, is_first = Path(args.output_dir), args.process_index == 0
    checkpoint = _checkpoint(args)
    if is_first:
        given = {"model": run.model, "train_data": run.train_data, "eval_data": run.eval_data}
        refuse_output(output, given, args.overwrite_output_dir, checkpoint, args.wants_resume)
    with hold_output(output, is_first):
        try:
            return _train(run, args, checkpoint)
        except KeyboardInterrupt as stop:
            signum = getattr(stop, "signum", signal.SIGINT)
            raise Interrupted(_resume_command(parser.prog, argv, output) if is_first else "", signum) from None


def _resume_command(program: str, argv: Sequence[str], output: Path) -> str:
    """Say which checkpoint an interrupted training left, and which command resumes it."""
    newest, command = newest_checkpoint(output), shlex.join([program, *argv]).replace(f"'{program}'", program, 1)
    if newest is None:
        return f"There is no checkpoint in {output} yet. Start again with:\n{command}"
    resume = "--resume_from_checkpoint true"
    return f"The newest checkpoint is {newest}. Resume with:\n{command.removesuffix(f' {resume}')} {resume}"


def _refuse_separate_processes(world_size: int) -> None:
    """Raise `ValueError` if several processes were launched that do not work together, as without GPUs."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and world_size == 1:
        raise ValueError(
            f"{launched} processes were launched, and each would train by itself, since this machine has no GPUs for "
            f"them. Use `fastgoal train --num_processes {launched} --use_cpu true` for processes on the CPU."
        )


def _train(run: RunArguments, args: FastGoalTrainingArguments, checkpoint: Path | None) -> int:
    set_seed(args.seed)
    train_data: TrainingData | StreamData
    if run.streaming:
        train_data = StreamData(_stream(run), run.shuffle_window)
    else:
        train_data = TrainingData(_source(run.train_data, run.train_split, run, run.captions), run.max_train_rows)
    eval_data = None
    if run.eval_data:
        eval_data = TrainingData(_source(run.eval_data, run.eval_split, run), run.max_eval_rows)
    tests = open_gains(run.eval_also, args)
    if checkpoint is None and args.process_index == 0:
        (Path(args.output_dir) / GAINS).unlink(missing_ok=True)  # of an earlier training, which is overwritten
    if eval_data is not None and args.eval_strategy == "no":
        args.eval_strategy = "epoch"
    if args.eval_on_start is None or eval_data is None or checkpoint:
        args.eval_on_start = eval_data is not None and not checkpoint
    trainer = FastGoalTrainer(
        model=run.model,
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        card=CardOptions(run.model, run.license, run.card_images),
        max_text_length=run.max_text_length,
    )
    start = step_of(checkpoint) if checkpoint else 0
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    is_over = checkpoint is not None and result.global_step == start
    metrics, gains = None, {}
    if checkpoint is not None and is_over:
        logger.warning(f"{checkpoint} is the end of this training. Nothing was left to train.")
        metrics = _saved_metrics(args, checkpoint, eval_data is not None)
    if metrics is None:
        trainer.save_model()
        if not is_over:
            trainer.save_metrics("train", result.metrics)
        metrics = {}
        if eval_data is not None:
            metrics = _last_evaluation(trainer)
            trainer.save_metrics("eval", metrics)
        if tests and args.process_index == 0:
            gains = measure_gains(str(args.output_dir), run.model, tests)
        if tests or eval_data is not None:
            trainer.create_model_card()
        trainer.save_state()  # last, see `_saved_metrics`
    if args.push_to_hub:
        trainer.push_to_hub()
    if args.process_index == 0:
        tqdm.write(end_lines(str(args.output_dir), metrics, run.eval_data, is_adapter(args.output_dir), gains))
    return 0


def _last_evaluation(trainer: FastGoalTrainer) -> dict[str, float]:
    """Return the metrics of the model after the last step, which the training has measured if an epoch ended there."""
    line = next((line for line in trainer.state.log_history[::-1] if "eval_runtime" in line), {})
    if line.get("step") != trainer.state.global_step or trainer.args.load_best_model_at_end:
        metrics: dict[str, float] = trainer.evaluate()
        if trainer.args.process_index == 0 and not trainer.args.disable_tqdm:  # the log shows it only without bars
            tqdm.write(log_text(metrics))
        return metrics
    return {name: value for name, value in line.items() if name != "step"}


def _saved_metrics(args: FastGoalTrainingArguments, checkpoint: Path, evaluates: bool) -> dict[str, float] | None:
    """Return the metrics of the last evaluation if a training has saved everything, else None."""
    folder = Path(args.output_dir)
    try:
        logs = [json.loads((path / TRAINER_STATE_NAME).read_bytes())["log_history"] for path in (checkpoint, folder)]
        metrics = json.loads((folder / "eval_results.json").read_bytes()) if evaluates else {}
    except (OSError, ValueError, KeyError):
        return None
    is_same = len(logs[1]) > len(logs[0]) and logs[1][: len(logs[0])] == logs[0]
    return metrics if is_same else None


def _stream(run: RunArguments) -> StreamSource:
    return open_stream(
        run.train_data,
        form=run.form,
        split=run.train_split,
        image_column=run.image_column,
        caption_column=run.caption_column,
        allow_outside_files=run.allow_outside_files,
    )


def _source(data: str, split: str | None, run: RunArguments, captions: str = "join") -> Source:
    return load_source(
        data,
        form=run.form,
        split=split,
        image_column=run.image_column,
        caption_column=run.caption_column,
        image_folder=run.image_folder,
        captions=captions,
        allow_outside_files=run.allow_outside_files,
    )


def _checkpoint(args: FastGoalTrainingArguments) -> Path | None:
    """Return the checkpoint to resume from: a folder, or with `true` the newest one of the output folder if any."""
    wanted = args.resume_from_checkpoint or ""
    if not args.wants_resume:
        return None
    if wanted.lower() != "true":
        return require_checkpoint(Path(wanted))
    newest = newest_checkpoint(Path(args.output_dir))
    if newest is None:
        logger.warning(f"{args.output_dir} has no complete checkpoint. The training starts from the beginning.")
    return newest


if __name__ == "__main__":
    main_parser = run_parser("fastgoal train" if STARTED in os.environ else "run.py")
    sys.exit(run_cleanly(lambda: main_parser, lambda: main(parser=main_parser)))
