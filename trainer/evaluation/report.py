"""The report of an evaluation: its values, and their form as JSON, as Markdown and for a terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .measures.compression import Compressed
from .measures.intervals import Difference, Interval
from .measures.localization import Localization
from .measures.retrieval import DIRECTIONS
from .measures.robustness import Change
from .protocols.published import TEST_LISTS, PublishedRow

Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The results of one model; None for tests that were not run.

    Attributes:
        model: Name of the checkpoint.
        max_text_length: Number of tokens that the model reads.
        metrics: See `retrieval_metrics`; for a protocol with accuracies, those as fractions by their names.
        joint: GOAL's joint test, see `joint_map`.
        robustness: Retrieval with changed captions, by the names of `CHANGES`.
        localization: How often sentences find their boxes.
        compressed: Retrieval with truncated and quantized vectors.
    """

    model: str
    max_text_length: int
    metrics: dict[str, float]
    joint: dict[str, float] | None = None
    robustness: dict[str, Change] | None = None
    localization: Localization | None = None
    compressed: list[Compressed] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ModelResult):
    """Results of `evaluate`, and the settings that they depend on (see `EvaluationOptions`).

    Attributes:
        protocol_title: Display name of the protocol.
        complete: Whether the data has as many images as the protocol requires.
        remark: Note about incomplete data; otherwise empty.
        facts: What the accuracies depend on, by name; None for a retrieval protocol.
        data: Folder or Hub id.
        images: Number of images.
        captions: Number of captions, or of texts of a protocol with accuracies.
        duplicate_captions: Number of captions that repeat an earlier one.
        truncated_captions: Number of captions with more tokens than the model reads.
        truncated_share: Fraction of such captions.
        items: Number of items of each accuracy; None for a retrieval protocol.
        skipped: The message of each skipped row.
        intervals: 95 % intervals of `metrics`; None without resamples.
        checked: Whether a second implementation gave the same `metrics`; None if it did not run.
        published: Published results of the protocol; None if there are none or the data is incomplete.
        against: Results of the other model; None if there is none.
        differences: Differences between the metrics of both models.
        also: Reports of the other protocols of the run, by their labels.
        seconds: Wall-clock time, including loading.
        versions: Versions of the libraries.
    """

    protocol: str
    protocol_title: str
    complete: bool
    remark: str
    facts: dict[str, str] | None = None
    data: str
    split: str | None
    limit: int | None = None
    images: int
    captions: int
    duplicate_captions: int
    truncated_captions: int
    truncated_share: float
    items: dict[str, int] | None = None
    ks: list[int]
    skipped: list[str] = field(default_factory=list)
    resamples: int | None = None
    intervals: dict[str, Interval] | None = None
    checked: bool | None = None
    published: list[PublishedRow] | None = None
    against: ModelResult | None = None
    differences: dict[str, Difference] | None = None
    also: "dict[str, EvaluationReport] | None" = None
    seconds: float
    device: str
    dtype: str
    batch_size: int
    seed: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values by name, without the tests that were not run."""
        values = {**_without_none(self), "split": self.split}
        if self.against is not None:
            values["against"] = _without_none(self.against)
        if self.differences is not None:
            values["differences"] = {
                key: {**asdict(value), "certain": value.certain} for key, value in self.differences.items()
            }
            values["gained_and_lost"] = {name: value.verdict for name, value in self.gains().items()}
        if self.also is not None:
            values["also"] = {
                label: {key: value for key, value in report.to_dict().items() if key not in _OF_THE_RUN}
                for label, report in self.also.items()
            }
        return values

    def gains(self) -> dict[str, Difference]:
        """Return the differences that tell gain from loss, R@1 and accuracies, by protocol and metric in words."""
        reports = {self.protocol: self, **(self.also or {})}
        return select_gains({label: report.differences or {} for label, report in reports.items()})

    def to_json(self) -> str:
        """Return the report as JSON, as `fastgoal evaluate` writes it."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """Return the report for a terminal."""
        lines = []
        for number, (heading, report) in enumerate(self._sections()):
            lines += [f"{name:<10}{value}" for name, value in _facts(report)] if not number else ["", heading]
            for title, head, rows in _tables(report, not number):
                widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
                lines += ["", title]
                for row in [head, *rows]:
                    others = (cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
                    lines.append("  ".join([row[0].ljust(widths[0]), *others]).rstrip())
            if report.skipped:
                lines += ["", f"{_skipped(report.skipped)}:"]
                lines += [f"  {message}" for message in report.skipped]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"# {self.model} on {self.protocol_title}", ""]
        lines += [f"- {name}: {value}" for name, value in _facts(self)]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines += [f"- {self.dtype}, seed {self.seed}; {versions}"]
        for heading, report in self._sections():
            level = "###" if heading else "##"
            lines += ["", f"## {heading}"] if heading else []
            for title, head, rows in _tables(report, not heading):
                lines += ["", f"{level} {title}", "", _line(head), _line(["---", *("--:" for _ in head[1:])])]
                lines += [_line(row) for row in rows]
            if report.skipped:
                lines += ["", f"{level} {_skipped(report.skipped)}", ""]
                lines += [f"- {message}" for message in report.skipped]
        return "\n".join(lines) + "\n"

    def _sections(self) -> "list[tuple[str, EvaluationReport]]":
        """Return this report without a heading, and those of the other protocols with theirs."""
        sections = [("", self)]
        for label, report in (self.also or {}).items():
            facts = "; ".join(f"{name} {value}" for name, value in _facts(report) if name not in ("model", "time"))
            sections.append((f"{label}: {facts.removeprefix('protocol ')}", report))
        return sections


# Fields that the report of another protocol of the same run does not repeat.
_OF_THE_RUN = (
    "gained_and_lost",
    "model",
    "max_text_length",
    "resamples",
    "device",
    "dtype",
    "batch_size",
    "seed",
    "versions",
)


def select_gains(differences: Mapping[str, Mapping[str, Difference]]) -> dict[str, Difference]:
    """Return the differences that tell gain from loss, by label and metric in words: R@1, and all accuracies.

    Args:
        differences: Differences of each test by metric, by the label of the test.
    """
    gains = {}
    for label, metrics in differences.items():
        recalls = [key for key in metrics if "_R@" in key]
        first = [key for key in recalls if key.endswith(f"_{recalls[0].rpartition('_')[2]}")] if recalls else [*metrics]
        gains.update({f"{label}: {_name(key)}": metrics[key] for key in first})
    return gains


def gain_rows(gains: Mapping[str, Difference]) -> list[list[str]]:
    """Return a row for each gain or loss: measure, base, tuned, difference, interval and verdict, in percent."""
    rows = []
    for name, value in gains.items():
        values = (_percent(value.theirs), _percent(value.ours), f"{100 * value.difference:+.2f}")
        rows.append([name, *values, _bounds(value.interval) or "-", value.verdict or "-"])
    return rows


def _without_none(result: ModelResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if value is not None}


def _skipped(messages: Sequence[str]) -> str:
    return "1 row was skipped" if len(messages) == 1 else f"{len(messages):,} rows were skipped"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _facts(report: EvaluationReport) -> list[tuple[str, str]]:
    """Return what the numbers depend on, as (name, value)."""
    data = report.data
    data += f", split {report.split}" if report.split else ""
    data += f", the first {report.limit:,} rows" if report.limit else ""
    truncated = f"{report.truncated_captions:,} ({100 * report.truncated_share:.1f} %)"
    lines = [
        ("model", report.model),
        ("protocol", f"{report.protocol_title} ({report.protocol})"),
        ("data", data),
        ("images", f"{report.images:,}"),
        (
            "captions" if report.items is None else "texts",
            f"{report.captions:,}, {truncated} truncated to {report.max_text_length} tokens",
        ),
        *(report.facts or {}).items(),
    ]
    if report.duplicate_captions:
        repeat = "caption repeats" if report.duplicate_captions == 1 else "captions repeat"
        lines.append(
            ("repeated", f"{report.duplicate_captions:,} {repeat} an earlier one; ties count against the model")
        )
    if report.checked:
        lines.append(("checked", "the metric retrieval_recall gives the same recalls and ranks"))
    if report.complete and report.protocol in TEST_LISTS:
        lines.append(("published", TEST_LISTS[report.protocol]))
    if report.remark:
        lines.append(("note", report.remark))
    speed = report.images / report.seconds
    lines.append(("time", f"{report.seconds:.1f} s on {report.device}, {speed:.1f} images/s"))
    return lines


def _tables(report: EvaluationReport, is_first: bool) -> Iterator[Table]:
    """Yield the numbers of a report as tables of (title, head, rows), first those of all reports of the run."""
    results: list[tuple[str, ModelResult]] = [("this model", report)]
    if report.against is not None:
        results.append(("the other model", report.against))
    if is_first and report.against is not None:
        head = ["", "base", "tuned", "difference", "95 % interval", "verdict"]
        title = f"Gained and lost: {report.model} (tuned) and {report.against.model} (base), in percent and points"
        yield title, head, gain_rows(report.gains())
    yield _recall_table(report) if report.items is None else _accuracy_table(report, report.items)
    if report.published:
        yield _published_table(report, report.published)
    if report.against is not None and report.differences is not None:
        yield _difference_table(report.against.model, report.differences)
    if report.joint is not None:
        yield _joint_table(report.joint, results)
    if report.robustness is not None:
        yield _robustness_table(report.robustness, results)
    if report.localization is not None:
        yield _localization_table(report.localization, results)
    for name, result in results:
        if result.compressed is not None:
            yield _compressed_table(result.compressed, name if len(results) > 1 else "")


def _compressed_table(compressed: list[Compressed], name: str) -> Table:
    rows = []
    for entry in compressed:
        row = [f"{entry.width} x {entry.vectors}", f"{entry.bytes:,}"]
        for direction in DIRECTIONS:
            value = entry.differences[f"{direction}_R@1"]
            bounds = _bounds(value.interval)
            row += [_percent(value.ours), f"{100 * value.difference:+.2f}" + (f"  ({bounds})" if bounds else "")]
        rows.append(row)
    title = "Compressed vectors" + (f" of {name}" if name else "") + ": R@1 in percent, and the change in points"
    return title, ["", "bytes", *(head for direction in DIRECTIONS for head in (_words(direction), "change"))], rows


def _words(name: str) -> str:
    return name.replace("_", " ")


def _name(key: str) -> str:
    """Return the name of a metric in words, those of retrieval with the direction last."""
    for direction in DIRECTIONS:
        if key.startswith(f"{direction}_"):
            return f"{_words(key.removeprefix(f'{direction}_'))}, {_words(direction)}"
    return _words(key)


def metric_text(key: str, value: float) -> str:
    """Return a metric in words with its value and unit: "R@1, text to image 8.33 %"."""
    return f"{_name(key)} {_value(key, value, None)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _scale(name: str) -> tuple[int, int]:
    """Return the factor and the digits of a metric in tables: all but ranks are in percent."""
    return (1, 1) if name.endswith("_rank") else (100, 2)


def _value(name: str, value: float, interval: Interval | None) -> str:
    """Return a metric with its unit and its interval."""
    scale, digits = _scale(name)
    cell = f"{scale * value:.{digits}f}" + (" %" if scale == 100 else "")
    if interval is not None:
        low, high = (scale * bound for bound in interval)
        cell += f"  ({low:.{digits}f} to {high:.{digits}f})"
    return cell


def _bounds(interval: Interval | None, scale: int = 100, digits: int = 2) -> str:
    """Return the interval of a difference, with signs; empty if there is none."""
    return "" if interval is None else " to ".join(f"{scale * bound:+.{digits}f}" for bound in interval)


def _intervals_of(report: EvaluationReport) -> str:
    return f", 95 % intervals of {report.resamples:,} resamples" if report.intervals else ""


def _accuracy_table(report: EvaluationReport, items: dict[str, int]) -> Table:
    intervals = report.intervals or {}
    rows = [
        [_words(name), _value(name, value, intervals.get(name)), f"{items[name]:,}"]
        for name, value in report.metrics.items()
    ]
    return f"Accuracy{_intervals_of(report)}", ["", "accuracy", "items"], rows


def _recall_table(report: EvaluationReport) -> Table:
    intervals = report.intervals or {}
    rows = []
    for name in (*(f"R@{k}" for k in report.ks), "mean_rank", "median_rank"):
        keys = [f"{direction}_{name}" for direction in DIRECTIONS]
        metrics = report.metrics
        cells = [_value(key, metrics[key], intervals.get(key)) if key in metrics else "-" for key in keys]
        if cells != ["-", "-"]:  # for a k above the number of candidates
            rows.append([_words(name), *cells])
    return f"Retrieval{_intervals_of(report)}", ["", *map(_words, DIRECTIONS)], rows


def _published_table(report: EvaluationReport, published: list[PublishedRow]) -> Table:
    own = (_percent(report.metrics[f"{direction}_R@1"]) for direction in DIRECTIONS)
    rows = [[f"{report.model} (measured here)", *own]]
    for row in published:
        name = f"{row.model} (published, {row.source})"
        rows.append([name, f"{row.text_to_image:.2f}", f"{row.image_to_text:.2f}"])
    title = f"R@1 and published results of {report.protocol_title}, in percent"
    return title, ["", *map(_words, DIRECTIONS)], rows


def _difference_table(other: str, differences: dict[str, Difference]) -> Table:
    rows = []
    for key, value in differences.items():
        scale, digits = _scale(key)
        rows.append(
            [
                _name(key),
                f"{scale * value.ours:.{digits}f}",
                f"{scale * value.theirs:.{digits}f}",
                f"{scale * value.difference:+.{digits}f}",
                _bounds(value.interval, scale, digits) or "-",
                {True: "yes", False: "no", None: "-"}[value.certain],
                f"{value.only_ours:,} / {value.only_theirs:,}" if scale == 100 else "",
            ]
        )
    head = ["", "this model", "the other", "difference", "95 % interval", "excludes 0", "only this / only the other"]
    return f"Compared with {other}, on the same queries", head, rows


def _joint_table(joint: dict[str, float], results: list[tuple[str, ModelResult]]) -> Table:
    rows = []
    for key in joint:
        direction = next(direction for direction in DIRECTIONS if direction in key)
        right = "own counterpart only" if "_own_" in key else "all pairs of the image"
        values = [_percent(result.joint[key]) for _, result in results if result.joint]
        rows.append([f"mAP@{key.split('@')[1]}, {_words(direction)}, {right}", *values])
    title = "Joint test: global and local pairs in one gallery, in percent"
    return title, ["", *(name for name, _ in results)], rows


def _robustness_table(changes: dict[str, Change], results: list[tuple[str, ModelResult]]) -> Table:
    rows = []
    for name, change in changes.items():
        drops = [_percent(result.robustness[name].drop) for _, result in results if result.robustness]
        rows.append([change.what, f"{change.changed:,}", *drops])
    title = "Robustness: drop of R@1 with changed captions, mean of both directions, in points"
    return title, ["", "captions changed", *(name for name, _ in results)], rows


def _localization_table(own: Localization, results: list[tuple[str, ModelResult]]) -> Table:
    rates = [(name, result.localization.hit_rate) for name, result in results if result.localization]
    rows = [[name, *map(_percent, rate.values())] for name, rate in [*rates, ("patches in random order", own.chance)]]
    title = (
        f"Localization: sentences with one of the top k of {own.patches} patches in their boxes, in percent;"
        f" {own.sentences:,} sentences, {own.outside:,} others left out because their boxes are outside the crop"
    )
    if any(value < own.chance[k] for _, rate in rates for k, value in rate.items()):
        title += (
            ". A model below random order can still have good retrieval: if it was trained on full images only, its"
            " sentences may be least similar to the patches that they describe"
        )
    return title, ["", *(f"top {k}" for k in own.hit_rate)], rows
