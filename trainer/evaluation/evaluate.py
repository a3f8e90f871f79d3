"""Everything that `fastgoal evaluate` measures, from Python."""

import importlib.metadata
import importlib.resources
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from fastgoal.processing.checkpoints.devices import choose_workers
from fastgoal.processing.checkpoints.load import check_clip, load_clip
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source

from .measures.embeddings import EncodedSource, count_truncated, encode_source, max_text_length
from .measures.intervals import bootstrap_intervals, compare
from .measures.joint import evaluate_joint
from .measures.localization import localize
from .measures.retrieval import KS, Ranks, check_ks
from .measures.robustness import measure_robustness
from .protocols.published import published_rows
from .protocols.registry import PROTOCOLS, open_protocol
from .report import EvaluationReport, ModelResult

Checkpoint = str | os.PathLike[str] | torch.nn.Module
Data = str | os.PathLike[str] | Source | Sequence[Mapping[str, Any]]  # a `datasets.Dataset` has no type


def evaluate(
    model: Checkpoint,
    data: Data,
    protocol: str = "folder",
    against: Checkpoint | None = None,
    *,
    processor: Any = None,
    against_processor: Any = None,
    joint: bool = False,
    robustness: bool = False,
    localization: bool = False,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    boxes_column: str = "boxes",
    limit: int | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    ks: Sequence[int] = KS,
    resamples: int = 1000,
    seed: int = 0,
    on_error: str = "stop",
    check: bool = False,
    progress: bool = False,
    allow_outside_files: bool = False,
) -> EvaluationReport:
    """Measure retrieval between the images and captions of a dataset, and what else is asked for.

        report = fastgoal.evaluate("outputs/", "test/", against="openai/clip-vit-base-patch16")
        print(report.metrics["text_to_image_R@1"], report.differences["text_to_image_R@1"].interval)
        pathlib.Path("report.md").write_text(report.to_markdown())

    Every caption of an image is a text of its own, cut at the number of tokens that the model reads. Ties count
    against the model (`retrieval_metrics`).

    Args:
        model: Folder or Hub id of a CLIP checkpoint, or a loaded CLIP with its `processor`.
        data: The protocol's data, see `open_protocol`: a folder, a Hub id, a `Source`, a `datasets.Dataset` or a list
            of rows such as `{"image": PIL image or file name, "caption": text}`.
        protocol: What is tested how, one of `PROTOCOLS`.
        against: Another checkpoint to compare with on the same queries, in the same forms as `model`.
        processor: Of a loaded `model`.
        against_processor: Of a loaded `against`.
        joint: Also GOAL's joint test, mAP@10, which needs data that `fastgoal pairs` wrote.
        robustness: Also with a false sentence in each caption, sentences shuffled or dropped, and text cut.
        localization: Also how often a sentence finds its boxes.
        split: Split of the data, where there are several.
        image_column: Column with the image; found by itself.
        caption_column: Column with the caption; found by itself.
        boxes_column: Column with boxes, for `localization`.
        limit: Use the first rows only.
        batch_size: Images in a forward.
        num_workers: Processes that read images; by default 4, and none beside a model on the CPU.
        device: For a checkpoint: `cpu`, `cuda`, ... The accelerator by default.
        dtype: For a checkpoint: `float32`, `bfloat16`, `float16` or `auto`.
        ks: The k of recall@k.
        resamples: For the 95 % intervals; 0 for none.
        seed: Of resamples and changed captions.
        on_error: At a broken row `"stop"`, or `"skip"` it and list it.
        check: Compute recalls and ranks again with the second implementation, `fastgoal/retrieval_recall`.
        progress: Show progress bars.

    Raises:
        ValueError: An argument is wrong, a model or the data cannot be used, a row is broken, or the check fails.
    """
    check_positive(batch_size=batch_size, limit=limit)
    if resamples < 0 or resamples == 1:
        raise ValueError(f"resamples is {resamples}; it must be 0, for no intervals, or at least 2.")
    check_ks(ks)
    for checkpoint, own, option in ((model, processor, "--model"), (against, against_processor, "--against")):
        if isinstance(checkpoint, str | os.PathLike):
            check_clip(os.fspath(checkpoint), option)
        elif checkpoint is not None and own is None:
            names = ("model", "processor") if option == "--model" else ("against", "against_processor")
            raise ValueError("`{}` is a loaded model; give its processor, too, as `{}`.".format(*names))
    started = time.perf_counter()
    source = open_protocol(protocol, data, image_column, caption_column, split, limit, allow_outside_files)
    _check_columns(source.columns, joint, localization, boxes_column)

    def measure(
        checkpoint: Checkpoint, processor: Any, option: str
    ) -> tuple[ModelResult, EncodedSource, Ranks, dict[str, Any]]:
        """A model's result, what it is from, and what else the report says of it."""
        model: Any = checkpoint
        if isinstance(checkpoint, str | os.PathLike):
            name = os.fspath(checkpoint)
            model, processor = load_clip(name, device, dtype, option)
        else:
            name = getattr(checkpoint, "name_or_path", "") or type(checkpoint).__name__
        small: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        reading = {**small, "num_workers": choose_workers(num_workers, model)}
        encoded = encode_source(model, processor, source, on_error=on_error, **reading)
        ranks = encoded.ranks(model.device)
        result = ModelResult(
            model=name,
            max_text_length=max_text_length(model),
            metrics=ranks.summary(ks),
            joint=evaluate_joint(model, processor, source, encoded, **reading) if joint else None,
            robustness=measure_robustness(model, processor, encoded, ranks, seed=seed, **small) if robustness else None,
            localization=localize(model, processor, source, encoded.rows, boxes_column, **small)
            if localization
            else None,
        )
        facts = {
            "truncated_captions": count_truncated(model, processor, encoded.captions),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        return result, encoded, ranks, facts

    result, encoded, ranks, facts = measure(model, processor, "--model")
    if check:
        check_again(encoded, result.metrics, ks)
    theirs, differences = None, None
    if against is not None:
        theirs, their_encoded, their_ranks, _ = measure(against, against_processor, "--against")
        if their_encoded.rows != encoded.rows:
            raise ValueError("the two models could not read the same rows; mend the data, or use --on-error stop.")
        differences = compare(ranks, their_ranks, ks, resamples, seed)
    remark = PROTOCOLS[protocol].remark(len(encoded.rows))
    return EvaluationReport(
        **vars(result),
        **facts,
        protocol=protocol,
        protocol_title=PROTOCOLS[protocol].title,
        complete=not remark,
        remark=remark,
        data=os.fspath(data) if isinstance(data, str | os.PathLike) else source.name,
        split=split,
        limit=limit,
        images=len(encoded.rows),
        captions=len(encoded.captions),
        duplicate_captions=len(encoded.captions) - len(set(encoded.captions)),
        truncated_share=facts["truncated_captions"] / len(encoded.captions),
        ks=list(ks),
        skipped=encoded.skipped,
        resamples=resamples or None,
        intervals=bootstrap_intervals(ranks, ks, resamples, seed) if resamples else None,
        checked=check or None,
        published=None if remark else published_rows(protocol) or None,
        against=theirs,
        differences=differences,
        seconds=round(time.perf_counter() - started, 3),
        batch_size=batch_size,
        seed=seed,
        versions={
            "fastgoal": importlib.metadata.version("fastgoal"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )


def check_again(encoded: EncodedSource, metrics: dict[str, float], ks: Sequence[int]) -> None:
    """Compute recalls and ranks again with `fastgoal/retrieval_recall`, the metric for Hugging Face's `evaluate`.

    It is written in numpy and shares no line with `retrieval_ranks`.

    Raises:
        ValueError: It finds something else.
    """
    import evaluate as hugging_face_evaluate

    folder = importlib.resources.files("fastgoal") / "retrieval_recall"
    metric = hugging_face_evaluate.load(str(folder), keep_in_memory=True)
    again = metric.compute(
        predictions=encoded.text_embeds.numpy(),
        references=encoded.text_to_image,
        image_embeds=encoded.image_embeds.numpy(),
        ks=list(ks),
    )
    wrong = [f"{key} {value} and {again[key]}" for key, value in metrics.items() if abs(again[key] - value) > 1e-9]
    if wrong:
        raise ValueError(
            f"the metric {folder} finds other numbers than ours, so one of both has a fault: {'; '.join(wrong)}."
        )


def _check_columns(columns: Sequence[str], joint: bool, localization: bool, boxes_column: str) -> None:
    """Raise `ValueError`, before a model is loaded, where the data have not what a test asks for."""
    has_pairs = {"pairs", "sentences", "regions"} <= {*columns}
    if joint and not has_pairs:
        raise ValueError(
            "joint (--joint) needs the columns pairs, sentences and regions, which `fastgoal pairs` writes; the data "
            f"have {', '.join(columns)}."
        )
    if localization and not has_pairs and boxes_column not in columns:
        raise ValueError(
            f"localization (--localization) needs a column '{boxes_column}' with boxes, or data that `fastgoal pairs` "
            f"wrote; the data have {', '.join(columns)}. Name another with boxes_column (--boxes-column)."
        )
