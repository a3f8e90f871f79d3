"""Run the whole workflow on drawn scenes, without a network: scenes, pairs, two trainings, one table, two figures."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.processing.files import WORK_FOLDER, write_json, write_text
from fastgoal.quickstart.drawing import Split
from fastgoal.quickstart.scenes import draw_scenes, write_folder, write_short_folder

# With few shapes and colors, scenes differ mostly in details.
SHAPES = ("arrow", "circle", "flower", "heart", "square", "star")
COLORS = ("blue", "green", "red", "yellow")
BASE = Path(str(files("fastgoal.quickstart"))) / "base_clip"
NAMES = {"base": "before", "global": "global loss alone", "fast_goal": "FAST-GOAL"}
CARD_NOTE = "A small model of the quickstart, trained on drawn scenes only. It does not work on photographs."


@dataclass(frozen=True)
class TourSettings:
    """Settings of the quickstart. They were chosen on validation scenes, not on the test scenes.

    Attributes:
        train_scenes: Number of scenes to fine-tune on.
        test_scenes: Number of scenes to evaluate on, which are never trained on.
        epochs: Number of epochs of each training.
        batch_size: Scenes per step.
        learning_rate: Peak learning rate of AdamW.
        seed: Random seed of the scenes and the order of the batches.
    """

    train_scenes: int = 600
    test_scenes: int = 500
    epochs: int = 4
    batch_size: int = 30
    learning_rate: float = 1e-3
    seed: int = 0


def take_tour(output: Path, settings: TourSettings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the quickstart, and write scenes, pairs, checkpoints, two figures, and `report.json` to `output`.

    Args:
        output: New folder, or one of an earlier quickstart, which is replaced.
        settings: Settings.
        say: Receives a line of text at every stage and at every epoch.

    Returns:
        The report: `settings`, `pairs` (the summary), `steps`, `results`, `seconds` by stage, and a `note`.
        `results[model][captions]` are metrics of retrieval: of the `base` model, after fine-tuning with only the
        `global` loss, and with `fast_goal`; with `long` captions of whole scenes, as trained on, and with `short` ones
        of enlarged objects, as the base model was trained on.

    Raises:
        ValueError: The folder has files that no quickstart wrote.
    """
    from fastgoal.hub_cards.card_images import pairs_sheet
    from fastgoal.hub_cards.wording import count
    from fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.processing.builders.pairs import build_pairs
    from fastgoal.processing.data.forms.registry import load_source
    from fastgoal.processing.processing_fastgoal import FastGoalProcessor
    from fastgoal.quickstart.training import EpochLines, quiet_trainer
    from fastgoal.trainer.batches.rows import TrainingData
    from fastgoal.trainer.card import CardOptions
    from fastgoal.trainer.evaluation.measures.embeddings import encode_source

    _claim(output)
    seconds: dict[str, float] = {}
    results: dict[str, dict[str, dict[str, float]]] = {}

    say(f"1. Draw {settings.train_scenes} scenes for training and {settings.test_scenes} for testing.")
    with _timed(seconds, "scenes"):
        sources: dict[str, Any] = {}
        numbers: dict[Split, int] = {"train": settings.train_scenes, "test": settings.test_scenes}
        for split, number in numbers.items():
            folder = output / "scenes" / split
            shutil.rmtree(folder, ignore_errors=True)
            scenes = draw_scenes(number, settings.seed, split, shapes=SHAPES, colors=COLORS)
            sources[split] = load_source(write_folder(scenes, folder))
        short = output / "scenes" / "short"
        shutil.rmtree(short, ignore_errors=True)
        sources["short"] = load_source(write_short_folder(scenes, short, settings.seed))  # of the test scenes

    say("2. Find local pairs with FLISM: which region of the scene does each sentence describe?")
    with _timed(seconds, "pairs"):
        model = FastGoalCLIPModel.from_base(str(BASE))
        processor = FastGoalProcessor.from_base(str(BASE))
        shutil.rmtree(output / "pairs", ignore_errors=True)
        summary = build_pairs(
            sources["train"],
            output / "pairs",
            model,
            "column:boxes",
            processor=processor,
            progress=sys.stderr.isatty(),
        )
        pairs = TrainingData(str(output / "pairs"))
        pairs_sheet([pairs[i].as_dict() for i in range(min(6, len(pairs)))]).save(output / "pairs.png")
    objects, fixed = (summary["regions"][source] for source in ("column", "default"))
    say(f"   A small CLIP model matched {count(summary['pairs'], 'sentence')} to {count(objects, 'object')} and")
    say(f"   {fixed:,} default regions (five per scene). See {output / 'pairs.png'}")

    def measure(name: str, tuned: Any) -> None:
        with _timed(seconds, "evaluation"):
            results[name] = {
                captions: encode_source(tuned, processor, sources[split], batch_size=50).ranks(tuned.device).summary()
                for captions, split in (("long", "test"), ("short", "short"))
            }

    measure("base", model)
    for number, (objective, title) in enumerate((("global", "the global loss alone"), ("fast_goal", "FAST-GOAL")), 3):
        say(f"{number}. Fine-tune with {title} for {count(settings.epochs, 'epoch')}.")
        folder = output / objective.replace("_", "-")
        with _timed(seconds, objective):
            # Both trainings start from the base model and differ only in the objective.
            trainer = quiet_trainer(
                FastGoalCLIPModel.from_base(str(BASE)),
                processor,
                pairs,
                output_dir=str(folder),
                objective=objective,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                logging_strategy="epoch",
                card=CardOptions(note=CARD_NOTE),
            )
            trainer.add_callback(EpochLines(say))
            trainer.train()
            trainer.save_model()
        measure(objective, trainer.model)
        steps = trainer.state.global_step
        say(f"   {steps} steps in {trainer.state.log_history[-1]['train_runtime']:.0f} s, saved in {folder}")

    report = {
        "settings": asdict(settings),
        "pairs": {key: value for key, value in summary.items() if key != "stage_seconds"},
        "steps": steps,
        "results": results,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "note": "A small model on drawn scenes shows that the workflow works, not the results of a real model.",
    }
    write_json(output / "report.json", report)
    result_figure(report).save(output / "results.png")
    return report


def _claim(output: Path) -> None:
    """Mark the folder as one of the quickstart, whose contents may be replaced, or raise `ValueError` if it is not."""
    mark = output / WORK_FOLDER / "quickstart"
    others = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if others and not mark.is_file():
        raise ValueError(
            f"`output={output}` has files that no quickstart wrote ({', '.join(others[:5])}). Choose a new folder."
        )
    write_text(mark, "The next quickstart replaces the other folders here.\n")


def result_table(report: dict[str, Any]) -> str:
    """Return the results as a table of percentages, each the mean of both directions of retrieval."""
    lines = [f"{'':<20}{'long captions':>16}{'short captions':>18}", f"{'':<20}" + f"{'R@1':>8}{'R@5':>8}  " * 2]
    for name, title in NAMES.items():
        cells = [f"{_recall(report, name, captions, k):>8.1f}" for captions in ("long", "short") for k in (1, 5)]
        lines.append(f"{title:<20}{cells[0]}{cells[1]}  {cells[2]}{cells[3]}")
    return "\n".join(line.rstrip() for line in lines)


def _recall(report: dict[str, Any], name: str, captions: str, k: int) -> float:
    """Return the mean recall of both directions in percent."""
    metrics = report["results"][name][captions]
    return 50 * (metrics[f"text_to_image_R@{k}"] + metrics[f"image_to_text_R@{k}"])


def result_figure(report: dict[str, Any]) -> Image.Image:
    """Draw R@1 with long captions against R@1 with short ones, with a line for each training."""
    from fastgoal.pages.charts import curve, draw_curve

    short, long = ([_recall(report, name, captions, 1) for name in NAMES] for captions in ("short", "long"))
    labels = ("R@1 with short captions (%)", "R@1 with long captions (%)")
    chart = curve(short, long, [*NAMES.values()], *labels, lines=[(0, 1), (0, 2)], from_zero=True)
    return draw_curve(chart, scale=3)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the duration of the block to the seconds of the stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
