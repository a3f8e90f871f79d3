"""`fastgoal evaluate`: retrieval of a CLIP checkpoint on images with captions, as a table and a JSON report."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgoal.trainer.evaluation import Evaluation

HELP = "measure retrieval (recall@k both ways) of a CLIP on images with captions"

KS = (1, 5, 10, 25, 50)

EPILOG = """\
Every caption of an image is a text of its own, cut at the number of tokens that the model reads. Ties count against
the model. The data set's name says nothing about the protocol: name split and number of images next to a result.

examples:
  fastgoal evaluate --model outputs/ --data test/ --output report.json
  fastgoal evaluate --model openai/clip-vit-base-patch16 --data OWNER/NAME --split test
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="M", help="folder or Hub id of any CLIP checkpoint")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="a folder with metadata.jsonl (file_name and caption or captions), a saved data set, a folder of parquet"
        " files as `fastgoal pairs` writes, or a Hub data set",
    )
    parser.add_argument("--output", type=Path, metavar="report.json", help="write the report here, as JSON")
    parser.add_argument("--split", help="split of the data set, where it has several")
    parser.add_argument("--image-column", metavar="NAME", help="column with the image (default: found by itself)")
    parser.add_argument("--caption-column", metavar="NAME", help="column with the caption (default: found by itself)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images in a forward (default: 32)")
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that read images (default: 4, and none beside a model on the CPU)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps... (default: the accelerator, if there is one)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(default: float32)"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a broken image or a row without caption: stop, or leave the row out and list it (default: stop)",
    )


def run(args: argparse.Namespace) -> int:
    for name, lowest in (("batch_size", 1), ("num_workers", 0)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}.")
    if args.output is not None:
        prepare_output(args.output)

    from fastgoal.processing.sources import open_source
    from fastgoal.trainer.evaluation import evaluate_source

    source = open_source(args.data, args.image_column, args.caption_column, args.split)
    model, processor = load_model(args.model, args.device, args.dtype)
    workers = args.num_workers
    if workers is None:
        workers = 0 if model.device.type == "cpu" else 4
    evaluation = evaluate_source(
        model,
        processor,
        source,
        batch_size=args.batch_size,
        num_workers=workers,
        ks=KS,
        on_error=args.on_error,
        progress=True,
    )
    print(table(evaluation, args.model, args.data))
    if args.output is not None:
        write_json(args.output, report(evaluation, args, str(model.device)))
        print(f"Report: {args.output}")
    return 0


def load_model(name: str, device: str | None, dtype: str) -> tuple[Any, Any]:
    """The model of any CLIP checkpoint, on its device, and its processor."""
    import torch
    from transformers import AutoConfig

    from fastgoal import FastGoalCLIPModel, FastGoalProcessor

    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if accelerator is None else accelerator.type
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {device!r}, which is not usable here: {reason}") from error
    config = AutoConfig.from_pretrained(name)
    if config.model_type != "clip":
        raise ValueError(f"--model {name} is a checkpoint of type {config.model_type!r}; it must be a CLIP.")
    loaded: Any = FastGoalCLIPModel.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True)
    model, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(
            f"--model {name} lacks {len(missing)} weights of a CLIP, {missing[0]} among them; it must hold both towers"
            " and their projections."
        )
    return model.to(target).eval(), FastGoalProcessor.from_pretrained(name)


def table(evaluation: "Evaluation", model: str, data: str) -> str:
    """The result as text, for people."""
    metrics = evaluation.metrics
    lines = [
        "",
        f"model     {model}",
        f"data      {data}",
        f"images    {evaluation.images:,}",
        f"captions  {evaluation.captions:,}, of which {evaluation.truncated_captions:,}"
        f" ({evaluation.truncated_share:.1%}) were cut at {evaluation.max_text_length} tokens",
        f"time      {evaluation.seconds:.1f} s, {evaluation.images / evaluation.seconds:.1f} images/s",
        "",
        f"{'':<12}{'text to image':>16}{'image to text':>16}",
    ]
    for k in KS:
        values = [metrics.get(f"{direction}_R@{k}") for direction in ("text_to_image", "image_to_text")]
        cells = "".join(f"{'-':>16}" if value is None else f"{100 * value:>14.2f} %" for value in values)
        lines.append(f"{f'R@{k}':<12}{cells}")
    for name in ("mean", "median"):
        cells = "".join(f"{metrics[f'{d}_{name}_rank']:>14.1f}  " for d in ("text_to_image", "image_to_text"))
        lines.append(f"{f'{name} rank':<12}{cells}".rstrip())
    if evaluation.skipped:
        lines += ["", f"{len(evaluation.skipped):,} rows were left out:"]
        lines += [f"  {message}" for message in evaluation.skipped]
    return "\n".join(lines)


def report(evaluation: "Evaluation", args: argparse.Namespace, device: str) -> dict[str, Any]:
    """The result as JSON, with what it depends on."""
    import torch
    import transformers

    import fastgoal

    return {
        "model": args.model,
        "data": args.data,
        "split": args.split,
        "images": evaluation.images,
        "captions": evaluation.captions,
        "max_text_length": evaluation.max_text_length,
        "truncated_captions": evaluation.truncated_captions,
        "truncated_share": evaluation.truncated_share,
        "metrics": evaluation.metrics,
        "skipped": evaluation.skipped,
        "seconds": round(evaluation.seconds, 3),
        "device": device,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "versions": {
            "fastgoal": fastgoal.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def prepare_output(path: Path) -> None:
    """Find out before the work, not after it, that a report cannot be written."""
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; name a file, such as {path / 'report.json'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output {path}: the folder {path.parent} is not writable.")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write all of the file or nothing of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
