"""`fastgoal evaluate`: retrieval of a CLIP checkpoint by a named protocol, as a table and a report."""

import argparse
import json
import os
import platform
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

HELP = "measure retrieval (recall@k both ways) of a CLIP by a named protocol"

KS = (1, 5, 10, 25, 50)
# Named here as well so that --help needs no heavy import; a test keeps both lists equal.
PROTOCOLS = (
    "docci",
    "dci-7805",
    "dci-7602",
    "dci-2k",
    "urban1k",
    "sharegpt4v-1k",
    "coco-5k",
    "flickr30k-1k",
    "folder",
)

EPILOG = """\
protocols: each takes the data set as it is published, or a table (parquet, saved data set, Hub id) of it
  docci          docci_descriptions.jsonlines, images/           5,000 images, test split
  dci-7805       annotations/, photos/ of DCI                    7,805 images, short and long caption joined
  dci-7602       likewise                                        7,602 images, those with a long caption
  dci-2k         DCI_test.json of GOAL, photos/                  GOAL's split
  urban1k        image/N.jpg, caption/N.txt                      1,000 images
  sharegpt4v-1k  share-captioner_coco_lcs_sam_1246k_1107.json    its first 1,000 entries
  coco-5k        dataset_coco.json (Karpathy), val2014/          5,000 images, 5 captions each
  flickr30k-1k   dataset_flickr30k.json (Karpathy) or flickr_annotations_30k.csv, flickr30k-images/
                                                                 1,000 images, 5 captions each
  folder         any images with captions (the default)

Every caption of an image is a text of its own, cut at the number of tokens that the model reads. Ties count against
the model, those between equal captions of two images too. Intervals are the middle 95 % of bootstrap resamples of the
images. Published results are shown beside ours only for the whole protocol, and marked.

examples:
  fastgoal evaluate --model outputs/ --data test/ --output report.json
  fastgoal evaluate --model outputs/ --against openai/clip-vit-base-patch16 --protocol docci --data docci/
  fastgoal evaluate --model outputs/ --data pairs/ --joint --robustness --localisation
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="M", help="folder or Hub id of any CLIP checkpoint")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="the protocol's data; for 'folder' one with metadata.jsonl (file_name and caption or captions), a saved"
        " data set, a folder of parquet files as `fastgoal pairs` writes, or a Hub data set",
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="folder", help="what is tested how (default: folder)")
    parser.add_argument("--against", metavar="OTHER", help="compare with this checkpoint on the same queries")
    parser.add_argument(
        "--joint", action="store_true", help="also GOAL's joint test, mAP@10 (needs data that `fastgoal pairs` wrote)"
    )
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="also with a false sentence in each caption, sentences shuffled or dropped, and text cut at 77 tokens",
    )
    parser.add_argument(
        "--localisation", action="store_true", help="also how often a sentence finds its boxes (top 5, 10, 15 patches)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="report.json", help="write the report here as JSON, and beside it as report.md"
    )
    parser.add_argument("--split", help="split of the data set, where it has several")
    parser.add_argument("--image-column", metavar="NAME", help="column with the image (default: found by itself)")
    parser.add_argument("--caption-column", metavar="NAME", help="column with the caption (default: found by itself)")
    parser.add_argument("--boxes-column", metavar="NAME", default="boxes", help="for --localisation (default: boxes)")
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
        "--resamples", type=int, default=1000, metavar="N", help="for the 95 %% intervals; 0: none (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of resamples and changes (default: 0)")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a broken image or a row without caption: stop, or leave the row out and list it (default: stop)",
    )


def run(args: argparse.Namespace) -> int:
    for name, lowest in (("batch_size", 1), ("num_workers", 0), ("resamples", 0)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}.")
    if args.resamples == 1:
        raise ValueError("--resamples is 1; it must be 0 or at least 2.")
    if args.output is not None:
        prepare_output(args.output)
        if args.output.suffix == ".md":
            raise ValueError(f"--output {args.output}: name the JSON file; the text goes beside it with .md.")

    from fastgoal.trainer.evaluation.protocols import open_protocol
    from fastgoal.trainer.evaluation.report import as_markdown, as_text

    opened = open_protocol(args.protocol, args.data, args.image_column, args.caption_column, args.split)
    report = evaluate(args, opened)
    print()
    print(as_text(report))
    if args.output is not None:
        write_json(args.output, report)
        write_text(args.output.with_suffix(".md"), as_markdown(report))
        print(f"Report: {args.output}, {args.output.with_suffix('.md')}")
    return 0


def evaluate(args: argparse.Namespace, opened: Any) -> dict[str, Any]:
    """Measure all that was asked for; the result is the report that `--output` writes."""
    import torch
    import transformers

    import fastgoal
    from fastgoal.trainer.evaluation.embeddings import count_truncated, encode_source, max_text_length
    from fastgoal.trainer.evaluation.intervals import bootstrap_intervals, compare
    from fastgoal.trainer.evaluation.joint import evaluate_joint
    from fastgoal.trainer.evaluation.localisation import localise
    from fastgoal.trainer.evaluation.published import PUBLISHED_FALSE_SENTENCE, PUBLISHED_LOCALISATION, published_rows
    from fastgoal.trainer.evaluation.robustness import CHANGES, robustness

    source, protocol = opened.source, opened.protocol
    started = time.perf_counter()
    model, processor = load_model(args.model, args.device, args.dtype)
    workers = args.num_workers
    if workers is None:
        workers = 0 if model.device.type == "cpu" else 4
    device = str(model.device)

    def measure(model: Any, processor: Any) -> tuple[Any, Any, dict[str, Any]]:
        encoded = encode_source(model, processor, source, args.batch_size, workers, args.on_error, progress=True)
        ranks = encoded.ranks(model.device)
        extra: dict[str, Any] = {}
        if args.joint:
            extra["joint"] = evaluate_joint(
                model, processor, source, encoded, batch_size=args.batch_size, num_workers=workers, progress=True
            )
        if args.robustness:
            changes = robustness(
                model,
                processor,
                encoded.image_embeds.to(model.device),
                encoded.captions,
                encoded.text_to_image,
                ranks,
                batch_size=4 * args.batch_size,
                seed=args.seed,
                progress=True,
            )
            extra["robustness"] = {how: {"what": CHANGES[how], **asdict(change)} for how, change in changes.items()}
        if args.localisation:
            found = localise(
                model, processor, source, encoded.rows, args.boxes_column, batch_size=args.batch_size, progress=True
            )
            extra["localisation"] = asdict(found)
        return encoded, ranks, extra

    encoded, ranks, extra = measure(model, processor)
    truncated = count_truncated(model, processor, encoded.captions)
    length = max_text_length(model)
    report: dict[str, Any] = {
        "model": args.model,
        "protocol": protocol.name,
        "protocol_title": protocol.title,
        "complete": opened.complete,
        "remark": opened.remark,
        "data": args.data,
        "split": args.split,
        "images": len(encoded.rows),
        "captions": len(encoded.captions),
        "duplicate_captions": sum(times - 1 for times in Counter(encoded.captions).values()),
        "max_text_length": length,
        "truncated_captions": truncated,
        "truncated_share": truncated / len(encoded.captions),
        "ks": list(KS),
        "metrics": ranks.summary(KS),
        "skipped": encoded.skipped,
    }
    if args.resamples:
        intervals = bootstrap_intervals(ranks, KS, args.resamples, args.seed)
        report["intervals"] = {key: [value.low, value.high] for key, value in intervals.items()}
        report["resamples"] = args.resamples
    report.update(extra)
    rows = published_rows(protocol.name) if opened.complete else []
    if rows:
        report["published"] = [asdict(row) for row in rows]
    if args.robustness:
        report["published_false_sentence_drop"] = PUBLISHED_FALSE_SENTENCE
    if args.localisation:
        report["published_localisation"] = PUBLISHED_LOCALISATION
    if args.against is not None:
        del model, processor
        other, other_processor = load_model(args.against, args.device, args.dtype, "--against")
        other_encoded, other_ranks, other_extra = measure(other, other_processor)
        if other_encoded.rows != encoded.rows:
            raise ValueError("the two models could not read the same rows; mend the data, or use --on-error stop.")
        differences = compare(ranks, other_ranks, KS, max(args.resamples, 2), args.seed)
        report["against"] = {
            "model": args.against,
            "max_text_length": max_text_length(other),
            "metrics": other_ranks.summary(KS),
            **other_extra,
        }
        report["differences"] = {
            key: {
                "difference": value.difference,
                "interval": [value.interval.low, value.interval.high] if args.resamples else None,
                "certain": value.certain if args.resamples else None,
                "only_ours": value.only_ours,
                "only_theirs": value.only_theirs,
            }
            for key, value in differences.items()
        }
    report.update(
        seconds=round(time.perf_counter() - started, 3),
        device=device,
        dtype=args.dtype,
        batch_size=args.batch_size,
        seed=args.seed,
        versions={
            "fastgoal": fastgoal.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )
    return report


def load_model(name: str, device: str | None, dtype: str = "float32", option: str = "--model") -> tuple[Any, Any]:
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
        raise ValueError(f"{option} {name} is a checkpoint of type {config.model_type!r}; it must be a CLIP.")
    loaded: Any = FastGoalCLIPModel.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True)
    model, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(
            f"{option} {name} lacks {len(missing)} weights of a CLIP, {missing[0]} among them; it must hold both towers"
            " and their projections."
        )
    return model.to(target).eval(), FastGoalProcessor.from_pretrained(name)


def prepare_output(path: Path) -> None:
    """Find out before the work, not after it, that a report cannot be written."""
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; name a file, such as {path / 'report.json'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output {path}: the folder {path.parent} is not writable.")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a report."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write all of a file or nothing of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
