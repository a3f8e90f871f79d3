"""Evaluate a model: the Python function behind `fastgoal evaluate`."""

import importlib.metadata
import importlib.resources
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from fastgoal.processing.checkpoints.load import check_model, load_model

from .measure import Data, Measured, OpenTest, measure_all, open_tests
from .measures.embeddings import EncodedSource
from .options import EvaluationOptions
from .protocols.protocol import AccuracyTest, Protocol
from .protocols.published import published_rows
from .report import EvaluationReport

Checkpoint = str | os.PathLike[str] | torch.nn.Module


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
    """Measure a model with a protocol, retrieval or accuracies, and run the tests that the options select.

        report = fastgoal.evaluate("outputs/", "test/", against="openai/clip-vit-base-patch16")
        print(report.metrics["text_to_image_R@1"], report.differences["text_to_image_R@1"].interval)
        pathlib.Path("report.md").write_text(report.to_markdown())

    In retrieval, every caption of an image is a separate text, truncated to the number of tokens that the model reads.
    Ties count against the model (see `retrieval_metrics`).

    Args:
        model: Folder or Hub id of a checkpoint, or a loaded model with its `processor`.
        data: Data of the protocol: a folder in its published form. For retrieval (see `open_protocol`) also a Hub id, a
            `Source`, a `datasets.Dataset` or a list of rows: `{"image": PIL image or file name, "caption": text}`.
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
    tests = open_tests(data, options)

    loaded, processor, name = _load(model, processor, "model", options)
    ours = measure_all(loaded, processor, tests, name, progress)
    device, dtype = str(loaded.device), str(loaded.dtype).removeprefix("torch.")
    encoded = ours[options.protocol].encoded
    if options.check and encoded:
        check_again(encoded, ours[options.protocol].result.metrics, options.ks)
    theirs: dict[str, Measured] = {}
    if against is not None:
        del loaded
        other, other_processor, name = _load(against, against_processor, "against", options)
        theirs = measure_all(other, other_processor, tests, name, progress)

    def report(label: str, seconds: float, also: dict[str, EvaluationReport] | None = None) -> EvaluationReport:
        measured = {"device": device, "dtype": dtype, "seconds": round(max(seconds, 0.001), 3), "also": also}
        return _report(tests[label], ours[label], theirs.get(label), **measured)

    def seconds_of(label: str) -> float:
        return sum(models[label].seconds for models in (ours, theirs) if label in models)

    others = [label for label in tests if label != options.protocol]
    elapsed = time.perf_counter() - started - sum(map(seconds_of, others))
    return report(options.protocol, elapsed, {label: report(label, seconds_of(label)) for label in others} or None)


def _load(checkpoint: Checkpoint, processor: Any, parameter: str, options: EvaluationOptions) -> tuple[Any, Any, str]:
    """Return a model, its processor and its name; load them if `checkpoint` is a name."""
    if isinstance(checkpoint, str | os.PathLike):
        name = os.fspath(checkpoint)
        return *load_model(name, options.device, options.dtype, parameter), name
    return checkpoint, processor, getattr(checkpoint, "name_or_path", "") or type(checkpoint).__name__


def _report(test: OpenTest, ours: Measured, theirs: Measured | None, **measured: Any) -> EvaluationReport:
    """Return the report on one test; `measured` are further fields of it."""
    options, protocol, data = test.options, test.protocol, test.data
    remark, published = "", None
    if isinstance(protocol, Protocol):
        remark = protocol.remark(ours.images)
        published = None if remark else published_rows(protocol.name) or None
    return EvaluationReport(
        **vars(ours.result),
        protocol=protocol.name,
        protocol_title=protocol.title,
        complete=not remark,
        remark=remark,
        facts=data.facts if isinstance(data, AccuracyTest) else None,
        data=test.data_name,
        split=options.split,
        limit=options.limit,
        images=ours.images,
        captions=len(ours.texts),
        duplicate_captions=len(ours.texts) - len(set(ours.texts)) if ours.encoded else 0,
        truncated_captions=ours.truncated,
        truncated_share=ours.truncated / len(ours.texts),
        items=ours.items,
        ks=list(options.ks) if ours.encoded else [],
        skipped=ours.encoded.skipped if ours.encoded else [],
        resamples=options.resamples or None,
        intervals=ours.intervals(),
        checked=options.check or None,
        published=published,
        against=theirs.result if theirs else None,
        differences=ours.compared_with(theirs) if theirs else None,
        batch_size=options.batch_size,
        seed=options.seed,
        versions={
            "fastgoal": importlib.metadata.version("fastgoal"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **measured,
    )


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
