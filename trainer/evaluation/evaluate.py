"""Evaluate a model: the Python function behind `fastgoal evaluate`."""

import importlib.metadata
import importlib.resources
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.devices import choose_workers
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.processing.data.sources import Source
from fastgoal.processing.tokens import count_truncated

from .measures.compression import measure_compression
from .measures.embeddings import EncodedSource, encode_source
from .measures.intervals import bootstrap_intervals, compare
from .measures.joint import evaluate_joint
from .measures.localization import localize
from .measures.retrieval import Ranks
from .measures.robustness import measure_robustness
from .options import EvaluationOptions
from .protocols.published import published_rows
from .protocols.registry import PROTOCOLS, open_protocol
from .report import EvaluationReport, ModelResult

Checkpoint = str | os.PathLike[str] | torch.nn.Module
Data = str | os.PathLike[str] | Source | Sequence[Mapping[str, Any]]  # a `datasets.Dataset` has no type


def evaluate(
    model: Checkpoint,
    data: Data,
    options: EvaluationOptions | None = None,
    *,
    processor: Any = None,
    against: Checkpoint | None = None,
    against_processor: Any = None,
    progress: bool = False,
) -> EvaluationReport:
    """Measure retrieval between the images and captions of a dataset, and run the tests that the options select.

        report = fastgoal.evaluate("outputs/", "test/", against="openai/clip-vit-base-patch16")
        print(report.metrics["text_to_image_R@1"], report.differences["text_to_image_R@1"].interval)
        pathlib.Path("report.md").write_text(report.to_markdown())

    Every caption of an image is a separate text, truncated to the number of tokens that the model reads. Ties count
    against the model (see `retrieval_metrics`).

    Args:
        model: Folder or Hub id of a checkpoint, or a loaded model with its `processor`.
        data: Data of the protocol (see `open_protocol`): a folder, a Hub id, a `Source`, a `datasets.Dataset` or a
            list of rows such as `{"image": PIL image or file name, "caption": text}`.
        options: Protocol, tests and settings; the defaults of `EvaluationOptions` if None.
        processor: Processor of a loaded `model`.
        against: Another model to compare with on the same queries, in the same form as `model`.
        against_processor: Processor of a loaded `against`.
        progress: Whether to show progress bars.

    Raises:
        ValueError: An argument is invalid, a model, the data or a row cannot be used, or the check fails.
    """
    started = time.perf_counter()
    options = EvaluationOptions() if options is None else options
    if not isinstance(options, EvaluationOptions):
        raise TypeError(f"`options` must be an EvaluationOptions, got {options!r}.")
    _check_checkpoint(model, processor, "model")
    if against is not None:
        _check_checkpoint(against, against_processor, "against")
    source = open_protocol(
        options.protocol,
        data,
        form=options.form,
        split=options.split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        image_folder=options.image_folder,
        limit=options.limit,
        allow_outside_files=options.allow_outside_files,
    )
    _check_columns(source.columns, options)

    ours = _measure(model, processor, "model", source, options, progress)
    if options.check:
        check_again(ours.encoded, ours.result.metrics, options.ks)
    theirs, differences = None, None
    if against is not None:
        theirs = _measure(against, against_processor, "against", source, options, progress)
        if theirs.encoded.rows != ours.encoded.rows:
            raise ValueError("The two models did not read the same rows. Repair the data, or use on_error='stop'.")
        differences = compare(ours.ranks, theirs.ranks, options.ks, options.resamples, options.seed)
    captions = ours.encoded.captions
    protocol = PROTOCOLS[options.protocol]
    remark = protocol.remark(len(ours.encoded.rows))
    return EvaluationReport(
        **vars(ours.result),
        protocol=protocol.name,
        protocol_title=protocol.title,
        complete=not remark,
        remark=remark,
        data=os.fspath(data) if isinstance(data, str | os.PathLike) else source.name,
        split=options.split,
        limit=options.limit,
        images=len(ours.encoded.rows),
        captions=len(captions),
        duplicate_captions=len(captions) - len(set(captions)),
        truncated_captions=ours.truncated,
        truncated_share=ours.truncated / len(captions),
        ks=list(options.ks),
        skipped=ours.encoded.skipped,
        resamples=options.resamples or None,
        intervals=bootstrap_intervals(ours.ranks, options.ks, options.resamples, options.seed)
        if options.resamples
        else None,
        checked=options.check or None,
        published=None if remark else published_rows(protocol.name) or None,
        against=theirs.result if theirs else None,
        differences=differences,
        seconds=round(time.perf_counter() - started, 3),
        device=ours.device,
        dtype=ours.dtype,
        batch_size=options.batch_size,
        seed=options.seed,
        versions={
            "fastgoal": importlib.metadata.version("fastgoal"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )


@dataclass(frozen=True)
class _Measured:
    """The result of one model, with the values that the comparison and the report need."""

    result: ModelResult
    encoded: EncodedSource
    ranks: Ranks
    truncated: int
    device: str
    dtype: str


def _measure(
    checkpoint: Checkpoint, processor: Any, parameter: str, source: Source, options: EvaluationOptions, progress: bool
) -> _Measured:
    """Load a model if `checkpoint` is a name, and measure it."""
    model: Any = checkpoint
    if isinstance(checkpoint, str | os.PathLike):
        name = os.fspath(checkpoint)
        model, processor = load_model(name, options.device, options.dtype, parameter)
    else:
        name = getattr(checkpoint, "name_or_path", "") or type(checkpoint).__name__
    common: dict[str, Any] = {"batch_size": options.batch_size, "progress": progress}
    reading = {**common, "num_workers": choose_workers(options.num_workers, model)}
    encoded = encode_source(model, processor, source, on_error=options.on_error, **reading)
    ranks = encoded.ranks(model.device)
    joint, robustness, localization = None, None, None
    if options.joint:
        joint = evaluate_joint(model, processor, source, encoded, **reading)
    if options.robustness:
        robustness = measure_robustness(model, processor, encoded, ranks, seed=options.seed, **common)
    if options.localization:
        localization = localize(model, processor, source, encoded.rows, options.boxes_column, **common)
    compressed = measure_compression(
        encoded,
        ranks,
        options.truncate_dim,
        options.vectors,
        options.ks,
        options.resamples,
        options.seed,
        model.device,
    )
    length = text_positions(model)
    result = ModelResult(
        model=name,
        max_text_length=length,
        metrics=ranks.summary(options.ks),
        joint=joint,
        robustness=robustness,
        localization=localization,
        compressed=compressed or None,
    )
    truncated = count_truncated(encoded.captions, processor.tokenizer, length)
    return _Measured(result, encoded, ranks, truncated, str(model.device), str(model.dtype).removeprefix("torch."))


def check_again(encoded: EncodedSource, metrics: dict[str, float], ks: Sequence[int]) -> None:
    """Compute recalls and ranks again with `fastgoal/retrieval_recall`, a metric of Hugging Face's `evaluate`.

    The metric is written in numpy and shares no code with `retrieval_ranks`.

    Raises:
        ValueError: The metric gives other numbers.
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
        raise ValueError(f"`check` failed: the metric {folder} gives other numbers: {'; '.join(wrong)}.")


def _check_checkpoint(checkpoint: Checkpoint, processor: Any, parameter: str) -> None:
    """Raise `ValueError`, before anything is loaded, if a model cannot be used."""
    if isinstance(checkpoint, str | os.PathLike):
        check_model(os.fspath(checkpoint), parameter)
    elif processor is None:
        name = "processor" if parameter == "model" else f"{parameter}_processor"
        raise ValueError(f"`{parameter}` is a loaded model and needs its processor. Pass it as `{name}`.")


def _check_columns(columns: Sequence[str], options: EvaluationOptions) -> None:
    """Raise `ValueError`, before a model is loaded, if the data lack the columns of a test."""
    has_pairs = {"pairs", "sentences", "regions"} <= {*columns}
    if options.joint and not has_pairs:
        raise ValueError(
            "`joint` requires the columns pairs, sentences and regions, which `fastgoal pairs` writes; the data have "
            f"{', '.join(columns)}."
        )
    if options.localization and not has_pairs and options.boxes_column not in columns:
        raise ValueError(
            f"`localization` requires a column '{options.boxes_column}' with boxes, or a dataset written by `fastgoal "
            f"pairs`; the data have {', '.join(columns)}. Name another column with `boxes_column`."
        )
