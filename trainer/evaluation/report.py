"""The report of an evaluation: what was measured, as plain values, as JSON, for a terminal and as Markdown."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .measures.intervals import Difference, Interval
from .measures.localization import Localization
from .measures.retrieval import DIRECTIONS
from .measures.robustness import Change
from .protocols.published import PUBLISHED_FALSE_SENTENCE, PUBLISHED_LOCALIZATION, PublishedRow

Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What was measured of one model; None where it was not asked for.

    Attributes:
        model: Name of the checkpoint.
        max_text_length: Tokens that it reads.
        metrics: Of `retrieval_metrics`.
        joint: GOAL's joint test, of `joint_map`.
        robustness: By the name of the change (`CHANGES`).
        localization: Sentences that find their boxes.
    """

    model: str
    max_text_length: int
    metrics: dict[str, float]
    joint: dict[str, float] | None = None
    robustness: dict[str, Change] | None = None
    localization: Localization | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(ModelResult):
    """What `evaluate` measured, and what the numbers depend on; attributes named as its arguments are these.

    Attributes:
        protocol_title: The protocol's name for people.
        complete: Whether as many images were measured as the protocol has.
        remark: What to say beside a result of incomplete data, else empty.
        data: Folder or Hub id.
        images: Images in the gallery.
        captions: Captions in the gallery.
        duplicate_captions: Captions that occur before.
        truncated_captions: Captions that have more tokens than the model reads.
        truncated_share: Their share, 0 to 1.
        skipped: The message of each row that was left out.
        intervals: 95 % intervals of `metrics`; None without resamples.
        checked: Whether a second implementation has found the same `metrics`.
        published: Published results of this protocol, if there are any and the data are complete.
        against: The other model, if there is one.
        differences: Of the two models' metrics.
        seconds: Wall-clock time, loading included.
        versions: Of the libraries.
    """

    protocol: str
    protocol_title: str
    complete: bool
    remark: str
    data: str
    split: str | None
    limit: int | None = None
    images: int
    captions: int
    duplicate_captions: int
    truncated_captions: int
    truncated_share: float
    ks: list[int]
    skipped: list[str] = field(default_factory=list)
    resamples: int | None = None
    intervals: dict[str, Interval] | None = None
    checked: bool | None = None
    published: list[PublishedRow] | None = None
    against: ModelResult | None = None
    differences: dict[str, Difference] | None = None
    seconds: float
    device: str
    dtype: str
    batch_size: int
    seed: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values by name; what was not asked for is left out."""
        values = {**_given(self), "split": self.split}
        if self.robustness is not None:
            values["published_false_sentence_drop"] = PUBLISHED_FALSE_SENTENCE
        if self.localization is not None:
            values["published_localization"] = PUBLISHED_LOCALIZATION
        if self.against is not None:
            values["against"] = _given(self.against)
        if self.differences is not None:
            values["differences"] = {
                key: {**asdict(value), "certain": value.certain} for key, value in self.differences.items()
            }
        return values

    def to_json(self) -> str:
        """The report as JSON, as `fastgoal evaluate --output` writes it."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """The report for a terminal."""
        lines = [f"{name:<10}{value}" for name, value in _facts(self)]
        for title, head, rows in _tables(self):
            widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
            lines += ["", title]
            for row in [head, *rows]:
                cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
                lines.append("  ".join(cells).rstrip())
        if self.skipped:
            lines += ["", f"{len(self.skipped):,} rows were left out:"]
            lines += [f"  {message}" for message in self.skipped]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# {self.model} on {self.protocol_title}", ""]
        lines += [f"- {name}: {value}" for name, value in _facts(self)]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines += [f"- {self.dtype}, seed {self.seed}; {versions}"]
        for title, head, rows in _tables(self):
            lines += ["", f"## {title}", "", _line(head), _line(["---", *("--:" for _ in head[1:])])]
            lines += [_line(row) for row in rows]
        if self.skipped:
            lines += ["", f"## {len(self.skipped):,} rows were left out", ""]
            lines += [f"- {message}" for message in self.skipped]
        return "\n".join(lines) + "\n"


def _given(result: ModelResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(result).items() if value is not None}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _facts(report: EvaluationReport) -> list[tuple[str, str]]:
    """What the numbers depend on."""
    data = report.data
    data += f", split {report.split}" if report.split else ""
    data += f", the first {report.limit:,} rows" if report.limit else ""
    cut = f"{report.truncated_captions:,} ({report.truncated_share:.1%})"
    lines = [
        ("model", report.model),
        ("protocol", f"{report.protocol_title} ({report.protocol})"),
        ("data", data),
        ("images", f"{report.images:,}"),
        ("captions", f"{report.captions:,}, of which {cut} were cut at {report.max_text_length} tokens"),
    ]
    if report.duplicate_captions:
        lines.append(("repeated", f"{report.duplicate_captions:,} captions occur before; equal ones tie, against us"))
    if report.checked:
        lines.append(("checked", "the metric retrieval_recall finds the same recalls and ranks"))
    if report.remark:
        lines.append(("note", report.remark))
    speed = report.images / report.seconds
    lines.append(("time", f"{report.seconds:.1f} s on {report.device}, {speed:.1f} images/s"))
    return lines


def _tables(report: EvaluationReport) -> Iterator[Table]:
    """The report's numbers as tables of (title, head, rows)."""
    measured: list[tuple[str, ModelResult]] = [("this model", report)]
    if report.against is not None:
        measured.append(("the other model", report.against))
    yield _recall_table(report)
    if report.published:
        yield _published_table(report, report.published)
    if report.against is not None and report.differences is not None:
        yield _difference_table(report.against.model, report.differences)
    if report.joint is not None:
        yield _joint_table(report.joint, measured)
    if report.robustness is not None:
        yield _robustness_table(report.robustness, measured)
    if report.localization is not None:
        yield _localization_table(report.localization, measured)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _scale(name: str) -> tuple[int, int]:
    """What a metric is multiplied with for people, and its digits: recalls are in percent, ranks as they are."""
    return (100, 2) if "R@" in name else (1, 1)


def _recall_table(report: EvaluationReport) -> Table:
    intervals = report.intervals or {}
    rows = []
    for name in (*(f"R@{k}" for k in report.ks), "mean_rank", "median_rank"):
        row = [_words(name)]
        scale, digits = _scale(name)
        for key in (f"{way}_{name}" for way in DIRECTIONS):
            if key not in report.metrics:
                row.append("-")
                continue
            cell = f"{scale * report.metrics[key]:.{digits}f}" + (" %" if scale == 100 else "")
            if key in intervals:
                low, high = (scale * value for value in intervals[key])
                cell += f"  ({low:.{digits}f} to {high:.{digits}f})"
            row.append(cell)
        rows.append(row)
    title = "Retrieval" + (f", 95 % intervals of {report.resamples:,} resamples" if intervals else "")
    return title, ["", *map(_words, DIRECTIONS)], rows


def _published_table(report: EvaluationReport, published: list[PublishedRow]) -> Table:
    rows = [[f"{report.model} (measured here)", *(_percent(report.metrics[f"{way}_R@1"]) for way in DIRECTIONS)]]
    for row in published:
        name = f"{row.model} (published, {row.source})"
        rows.append([name, f"{row.text_to_image:.2f}", f"{row.image_to_text:.2f}"])
    return f"R@1 beside published results of {report.protocol_title}, in percent", ["", *map(_words, DIRECTIONS)], rows


def _difference_table(other: str, differences: dict[str, Difference]) -> Table:
    rows = []
    for key, value in differences.items():
        way = next(way for way in DIRECTIONS if key.startswith(way))
        name = key.removeprefix(f"{way}_")
        scale, digits = _scale(name)
        interval = "-"
        if value.interval is not None:
            low, high = (scale * bound for bound in value.interval)
            interval = f"{low:+.{digits}f} to {high:+.{digits}f}"
        rows.append(
            [
                f"{_words(name)}, {_words(way)}",
                f"{scale * value.ours:.{digits}f}",
                f"{scale * value.theirs:.{digits}f}",
                f"{scale * value.difference:+.{digits}f}",
                interval,
                {True: "yes", False: "no", None: "-"}[value.certain],
                f"{value.only_ours:,} / {value.only_theirs:,}" if scale == 100 else "",
            ]
        )
    head = ["", "this model", "the other", "difference", "95 % interval", "differs", "found by this / other only"]
    return f"Against {other}, on the same queries", head, rows


def _joint_table(joint: dict[str, float], measured: list[tuple[str, ModelResult]]) -> Table:
    rows = []
    for key in joint:
        way = next(way for way in DIRECTIONS if way in key)
        pairs = "own counterpart only" if "_own_" in key else "own picture's pairs"
        values = [_percent(which.joint[key]) for _, which in measured if which.joint]
        rows.append([f"mAP@{key.split('@')[1]}, {_words(way)}, {pairs}", *values])
    title = "Joint test: global and local pairs in one gallery, in percent"
    return title, ["", *(name for name, _ in measured)], rows


def _robustness_table(changes: dict[str, Change], measured: list[tuple[str, ModelResult]]) -> Table:
    rows = []
    for how, change in changes.items():
        drops = [_percent(which.robustness[how].drop) for _, which in measured if which.robustness]
        rows.append([change.what, f"{change.changed:,}", *drops])
    for name, drop in PUBLISHED_FALSE_SENTENCE.items():
        empty = [""] * (len(measured) - 1)
        rows.append([f"{name}, one false sentence (published, on other data)", "", f"{drop:.2f}", *empty])
    title = "Drop of R@1 with changed captions, mean of both directions, in points"
    return title, ["", "captions changed", *(name for name, _ in measured)], rows


def _localization_table(found: Localization, measured: list[tuple[str, ModelResult]]) -> Table:
    rates = [(name, which.localization.hit_rate) for name, which in measured if which.localization]
    rows = [[name, *map(_percent, rate.values())] for name, rate in [*rates, ("patches in random order", found.chance)]]
    for name, values in PUBLISHED_LOCALIZATION.items():
        rows.append([f"{name} (published, on other data)", *(f"{value:.2f}" for value in values)])
    title = (
        f"Sentences that find their boxes among the first k of {found.patches} patches, in percent;"
        f" {found.sentences:,} sentences, {found.outside:,} more outside of the crop"
    )
    order = [*found.chance.values()]
    if any(value < chance for _, rate in rates for value, chance in zip(rate.values(), order, strict=True)):
        title += (
            ". A row below random order: its sentences point away from the patches that they speak of, as may be with"
            " a CLIP that was trained on whole images alone; its retrieval can be good all the same"
        )
    return title, ["", *(f"top {k}" for k in found.hit_rate)], rows
