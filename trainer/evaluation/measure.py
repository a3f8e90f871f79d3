"""Open the data of an evaluation, and measure loaded models on it.

`evaluate` loads each model and calls these functions. So can other code that has its models in memory:

    tests = open_tests("docci/", EvaluationOptions(protocol="docci", also=["imagenet=zero-shot:imagenet/val"]))
    base, tuned = (measure_all(model, processor, tests) for model in models)
    print(tuned["imagenet"].result.metrics, tuned["imagenet"].compared_with(base["imagenet"]))
"""

import inspect
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.devices import choose_workers
from fastgoal.processing.data.sources import Source
from fastgoal.processing.embedding import embed_texts
from fastgoal.processing.tokens import count_truncated

from .measures.compression import measure_compression
from .measures.embeddings import EncodedSource, encode_images, encode_source
from .measures.intervals import Difference, Interval, Results, accuracies, bootstrap_intervals, compare
from .measures.joint import evaluate_joint
from .measures.localization import localize
from .measures.retrieval import Ranks
from .measures.robustness import measure_robustness
from .options import ACCURACY_ONLY, OF_ALL, SHARED, EvaluationOptions, parse_also
from .protocols.protocol import AccuracyProtocol, AccuracyTest, Protocol
from .protocols.registry import ACCURACY_PROTOCOLS, PROTOCOLS, open_protocol
from .report import ModelResult

Data = str | os.PathLike[str] | Source | Sequence[Mapping[str, Any]]  # a `datasets.Dataset` has no type


@dataclass(frozen=True)
class OpenTest:
    """The data of one protocol, opened and checked, with the options that it is measured with.

    Attributes:
        protocol: The protocol.
        data_name: Folder or Hub id of the data, or the name of data in memory.
        data: Rows of images and captions for a retrieval protocol, otherwise an `AccuracyTest`.
        options: Options of the evaluation.
    """

    protocol: Protocol | AccuracyProtocol
    data_name: str
    data: Source | AccuracyTest
    options: EvaluationOptions


@dataclass(frozen=True)
class Measured:
    """What one model does on one test.

    Attributes:
        result: The metrics, and the results of further tests.
        outcomes: Ranks of a retrieval protocol, or outcomes by metric, for intervals and comparisons.
        encoded: Embeddings and rows of a retrieval protocol; None for a protocol with accuracies.
        images: Number of images.
        texts: All texts.
        truncated: Number of texts with more tokens than the model reads.
        seconds: Wall-clock time without loading.
        options: Options of the evaluation.
    """

    result: ModelResult
    outcomes: Results
    encoded: EncodedSource | None
    images: int
    texts: Sequence[str]
    truncated: int
    seconds: float
    options: EvaluationOptions

    @property
    def items(self) -> dict[str, int] | None:
        """The number of items of each accuracy; None for a retrieval protocol."""
        return None if isinstance(self.outcomes, Ranks) else {k: len(v.correct) for k, v in self.outcomes.items()}

    def intervals(self) -> dict[str, Interval] | None:
        """Return the 95 % intervals of the metrics; None without resamples."""
        options = self.options
        if not options.resamples:
            return None
        return bootstrap_intervals(self.outcomes, options.ks, options.resamples, options.seed)

    def compared_with(self, other: "Measured") -> dict[str, Difference]:
        """Compare with another model on the same test, with `self` as `ours`.

        Raises:
            ValueError: The two models did not read the same rows.
        """
        if self.encoded and other.encoded and self.encoded.rows != other.encoded.rows:
            raise ValueError("The two models did not read the same rows. Repair the data, or use on_error='stop'.")
        options = self.options
        return compare(self.outcomes, other.outcomes, options.ks, options.resamples, options.seed)


def open_tests(data: Data, options: EvaluationOptions) -> dict[str, OpenTest]:
    """Open and check the data of all protocols of an evaluation, without a model.

    Args:
        data: Data of `options.protocol`.
        options: Options of the evaluation. Those of `SHARED` and the settings of the run hold for every protocol, and
            all others for `data` alone.

    Returns:
        The tests by label: first that of `data` by the name of its protocol, then those of `options.also`.

    Raises:
        ValueError: The data are not those of the protocol, or no protocol takes an option that was given.
    """
    also = parse_also(options.also, options.protocol)
    _refuse_options(options, [protocol for protocol, _ in also.values()])
    return {options.protocol: _open(data, options), **open_also(options.also, options)}


def open_also(entries: Sequence[str] | None, options: EvaluationOptions, argument: str = "also") -> dict[str, OpenTest]:
    """Open and check the data of entries `LABEL=PROTOCOL:PATH`, by their labels.

    Args:
        entries: The entries.
        options: Options of the evaluation, as for `open_tests`.
        argument: Name of the argument that the entries were given for, for messages.

    Raises:
        ValueError: An entry is wrong, or its data are not those of the protocol.
    """
    tests = {}
    common = {name: getattr(options, name) for name in (*OF_ALL, *SHARED)}
    for label, (protocol, path) in parse_also(entries, argument=argument).items():
        try:
            tests[label] = _open(path, EvaluationOptions(**{**common, "protocol": protocol}))
        except (ValueError, OSError) as error:
            raise ValueError(f"`{argument}` {label}: {error}") from None
    return tests


def _open(data: Data, options: EvaluationOptions) -> OpenTest:
    """Open and check the data of a protocol."""
    name = os.fspath(data) if isinstance(data, str | os.PathLike) else ""
    if options.protocol in ACCURACY_PROTOCOLS:
        protocol = ACCURACY_PROTOCOLS[options.protocol]
        test = protocol.open(data, **{option: getattr(options, option) for option in _parameters(protocol)})
        return OpenTest(protocol, name or test.images.name, test, options)
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
    return OpenTest(PROTOCOLS[options.protocol], name or source.name, source, options)


def measure_all(
    model: Any, processor: Any, tests: Mapping[str, OpenTest], name: str = "", progress: bool = False
) -> dict[str, Measured]:
    """Measure a loaded model on each test, by label. The arguments and errors are those of `measure`."""
    return {label: measure(model, processor, test, name, progress) for label, test in tests.items()}


def measure(model: Any, processor: Any, test: OpenTest, name: str = "", progress: bool = False) -> Measured:
    """Measure a loaded model on an open test.

    Args:
        model: Any supported model, on its device and in its dtype.
        processor: The model's processor.
        test: A test of `open_tests`.
        name: Name of the model for the report.
        progress: Whether to show progress bars.

    Raises:
        ValueError: A row or the result cannot be used.
    """
    started = time.perf_counter()
    options, data = test.options, test.data
    common: dict[str, Any] = {"batch_size": options.batch_size, "progress": progress}
    reading = {**common, "num_workers": choose_workers(options.num_workers, model)}
    length = text_positions(model)

    def measured(
        result: ModelResult, outcomes: Results, encoded: EncodedSource | None, images: int, texts: Sequence[str]
    ) -> Measured:
        truncated = count_truncated(texts, processor.tokenizer, length)
        seconds = round(time.perf_counter() - started, 3)
        return Measured(result, outcomes, encoded, images, texts, truncated, seconds, options)

    if isinstance(data, AccuracyTest):
        image_embeds = encode_images(model, processor, data.images, **reading)
        text_embeds = embed_texts(model, processor, data.texts, 4 * options.batch_size, progress=progress)
        outcomes = data.score(image_embeds, text_embeds)
        result = ModelResult(model=name, max_text_length=length, metrics=accuracies(outcomes))
        return measured(result, outcomes, None, len(data.images), data.texts)
    encoded = encode_source(model, processor, data, on_error=options.on_error, **reading)
    ranks = encoded.ranks(model.device)
    joint, robustness, localization = None, None, None
    if options.joint:
        joint = evaluate_joint(model, processor, data, encoded, **reading)
    if options.robustness:
        robustness = measure_robustness(model, processor, encoded, ranks, seed=options.seed, **common)
    if options.localization:
        localization = localize(model, processor, data, encoded.rows, options.boxes_column, **common)
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
    result = ModelResult(
        model=name,
        max_text_length=length,
        metrics=ranks.summary(options.ks),
        joint=joint,
        robustness=robustness,
        localization=localization,
        compressed=compressed or None,
    )
    return measured(result, ranks, encoded, len(encoded.rows), encoded.captions)


def _parameters(protocol: AccuracyProtocol) -> list[str]:
    """Return the names of the options that an accuracy protocol takes."""
    return [*inspect.signature(protocol.open).parameters][1:]


def _takes(protocol: str, option: str) -> bool:
    """Return whether an option has a meaning for a protocol."""
    if protocol in ACCURACY_PROTOCOLS:
        return option in _parameters(ACCURACY_PROTOCOLS[protocol])
    return option not in ACCURACY_ONLY


def _refuse_options(options: EvaluationOptions, also: Sequence[str]) -> None:
    """Raise `ValueError` for an option that was given and that neither the protocol nor one of `also` takes."""
    for option in fields(options):
        protocols = [options.protocol, *(also if option.name in SHARED else ())]
        value = getattr(options, option.name)
        is_given = (tuple(value) if isinstance(value, list) else value) != option.default
        is_taken = option.name in (*OF_ALL, "also") or any(_takes(protocol, option.name) for protocol in protocols)
        if is_given and not is_taken:
            taking = [name for name in ACCURACY_PROTOCOLS if _takes(name, option.name)]
            if option.name not in ACCURACY_ONLY:
                taking = ["the retrieval protocols", *taking]
            raise ValueError(
                f"`{option.name}` must be left out for the protocol {options.protocol}, got {value!r}. It belongs to "
                f"{', '.join(taking)}."
            )


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
