"""Measure the averages of a base model and a tuned one, and show what each keeps and gains as a curve."""

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from fastgoal.export.average import check_alpha, load_endpoints
from fastgoal.hub_cards.card_images import FONT_SIZE, GRAY, flow, padded, stack, text_block
from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.model_card import versions
from fastgoal.hub_cards.wording import count, number
from fastgoal.processing.checkpoints.devices import choose_device, choose_dtype
from fastgoal.trainer.evaluation.measure import Data, Measured, OpenTest, measure_all, open_tests
from fastgoal.trainer.evaluation.measures.intervals import Difference, Interval
from fastgoal.trainer.evaluation.options import EvaluationOptions

from .charts import curve, draw_curve
from .render import render

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SCALE = 2  # pixels of the figure for one of the page
INTRODUCTION = (
    "Each point is a model with the weights (1 - alpha) base + alpha tuned. 0 is the base, stretched to the text length"
    " of the tuned model, and 1 is the tuned model. Up and to the right is better."
)


@dataclass(frozen=True)
class CurveTest:
    """A test of a curve.

    Attributes:
        protocol: Name of the protocol.
        title: Display name of the protocol.
        data: Folder or Hub id.
        images: Number of images.
        texts: Number of texts.
        metric: The metric that the curve shows, such as `text_to_image_R@1`.
    """

    protocol: str
    title: str
    data: str
    images: int
    texts: int
    metric: str


@dataclass(frozen=True)
class Score:
    """The results of one average on one test.

    Attributes:
        metrics: All metrics of the test.
        intervals: Their 95 % intervals; None without resamples.
        differences: Differences from the base; None if the base (alpha 0) was not measured.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval] | None
    differences: dict[str, Difference] | None


@dataclass(frozen=True)
class AverageCurve:
    """The results of `average_curve`.

    Attributes:
        tuned: Folder or Hub id of the tuned model.
        base: Folder or Hub id of the base.
        alphas: Shares of the tuned weights, in ascending order.
        tests: The tests by label. The first is that of `data`, with the name of its protocol.
        scores: The results on each test, one for each alpha.
        versions: Versions of libraries by name.
    """

    tuned: str
    base: str
    alphas: list[float]
    tests: dict[str, CurveTest]
    scores: dict[str, list[Score]]
    versions: dict[str, str]

    def values(self, label: str) -> list[float]:
        """Return the metric that the curve shows of one test, in percent, one for each alpha."""
        return [100 * score.metrics[self.tests[label].metric] for score in self.scores[label]]

    def to_json(self) -> str:
        """Return all results as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """Return the metrics that the curve shows as a table for a terminal, with a line that explains it."""
        head, rows = ["alpha", *self.tests], self.rows()
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
        return "\n".join([self.caption(), *lines])

    def caption(self) -> str:
        """Return what the numbers of the table are."""
        tests = [
            f"{label}: {test.metric.replace('_', ' ')} in percent, {count(test.images, 'image')} and "
            f"{count(test.texts, 'text')} ({test.title})"
            for label, test in self.tests.items()
        ]
        base = " In parentheses: difference from alpha 0." if self.alphas[0] == 0 else ""
        return f"{'; '.join(tests)}.{base}"

    def rows(self) -> list[list[str]]:
        """Return a row of texts for each alpha: alpha, and each test in percent with its difference from the base."""
        columns = [[f"{alpha:g}" for alpha in self.alphas]]
        for label, test in self.tests.items():
            cells = []
            for value, score in zip(self.values(label), self.scores[label], strict=True):
                is_base = score is self.scores[label][0]
                difference = None if is_base or not score.differences else score.differences[test.metric]
                cells.append(number(value, 1) + (f" ({100 * difference.difference:+.1f})" if difference else ""))
            columns.append(cells)
        return [list(row) for row in zip(*columns, strict=True)]


def average_curve(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str] | None,
    data: Data,
    options: EvaluationOptions | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    progress: bool = False,
) -> AverageCurve:
    """Measure averages of a base model and a tuned one, from what the base can do to what the training gained.

        options = EvaluationOptions(also=["short=coco-5k:coco/"])
        curve = average_curve("fast-goal", "openai/clip-vit-base-patch16", "test/", options)
        print(curve.to_text())
        curve_figure(curve).save("curve.png")

    Args:
        tuned: See `average`.
        base: See `average`.
        data: Data of the kind that the model was tuned for, see `fastgoal.evaluate`.
        options: Options of the evaluation. Its `also` names what should not get worse.
        alphas: Shares of the tuned weights, from 0 to 1.
        progress: Whether to show progress bars.

    Raises:
        ValueError: An argument is invalid, the data cannot be used, or the models do not belong together.
    """
    options = EvaluationOptions() if options is None else options
    for alpha in alphas:
        check_alpha(alpha, "alphas")
    steps = sorted({float(alpha) for alpha in alphas})
    if len(steps) < 2:
        raise ValueError(f"`alphas` must be at least two different numbers from 0 to 1, got {list(alphas)}.")
    tests = open_tests(data, options)
    ends = load_endpoints(tuned, base)
    device = choose_device(options.device)
    model: Any = copy.deepcopy(ends.model).to(device, getattr(torch, choose_dtype(options.dtype, device))).eval()
    measured: dict[str, list[Measured]] = {label: [] for label in tests}
    for alpha in steps:
        model.load_state_dict(ends.weights(alpha))
        for label, results in measure_all(model, ends.processor, tests, f"alpha {alpha:g}", progress).items():
            measured[label].append(results)
    return AverageCurve(
        tuned=os.fspath(tuned),
        base=ends.base,
        alphas=steps,
        tests={label: _facts(test, measured[label][0]) for label, test in tests.items()},
        scores={label: _scores(results, steps[0] == 0) for label, results in measured.items()},
        versions=versions(),
    )


def _facts(test: OpenTest, measured: Measured) -> CurveTest:
    metric = next(name for name in measured.result.metrics if "rank" not in name)
    protocol = test.protocol
    return CurveTest(protocol.name, protocol.title, test.data_name, measured.images, len(measured.texts), metric)


def _scores(results: Sequence[Measured], has_base: bool) -> list[Score]:
    return [
        Score(each.result.metrics, each.intervals(), each.compared_with(results[0]) if has_base else None)
        for each in results
    ]


def curve_figure(result: AverageCurve) -> Image.Image:
    """Draw the curves of averages as one image, on white."""
    charts = [draw_curve(chart, _SCALE) for chart in _charts(result)]
    width = sum(chart.width for chart in charts[:2])
    blocks = [
        text_block([(_title(result), "black")], width, _SCALE * FONT_SIZE),
        text_block([(INTRODUCTION, GRAY)], width, _SCALE * (FONT_SIZE - 4)),
        flow(charts, width, gap=0),
    ]
    return padded(stack(blocks, _SCALE * 8), _SCALE * 12)


def curve_page(result: AverageCurve) -> str:
    """Return a web page with the curves and a table, which needs no other file."""
    return render(
        "average",
        title=_title(result),
        introduction=INTRODUCTION,
        charts=_charts(result),
        head=["alpha", *result.tests],
        rows=result.rows(),
        caption=result.caption(),
        note="fastgoal average ... --alpha A --output DIR writes the model of a point.",
    )


def _title(result: AverageCurve) -> str:
    return f"Between {public_name(result.base)} and {public_name(result.tuned)}"


def _charts(result: AverageCurve) -> list[dict[str, Any]]:
    """Return the data against each other test, or against alpha if there is no other test."""
    first, *others = result.tests
    gained, names = result.values(first), [f"{alpha:g}" for alpha in result.alphas]
    y_label = _axis(result, first)
    if not others:
        return [curve(result.alphas, gained, names, "alpha", y_label)]
    return [curve(result.values(label), gained, names, _axis(result, label), y_label) for label in others]


def _axis(result: AverageCurve, label: str) -> str:
    return f"{label}: {result.tests[label].metric.replace('_', ' ')} (%)"
