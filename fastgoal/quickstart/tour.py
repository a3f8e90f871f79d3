"""The whole path on a drawn world, in minutes and without a network: scenes, pairs, two trainings, one table."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastgoal.quickstart.drawing import Split
from fastgoal.quickstart.scenes import draw_scenes, write_folder

logger = logging.getLogger(__name__)

# Few shapes and colours, so that it takes the details to tell scenes apart.
SHAPES = ("arrow", "circle", "flower", "heart", "square", "star")
COLOURS = ("blue", "green", "red", "yellow")
BASE = Path(str(files("fastgoal.quickstart"))) / "base_clip"
CARD_NOTE = "A toy of the quickstart: trained on drawn scenes only, of no use for photographs."
DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class TourSettings:
    """Sizes of the quickstart; chosen on validation scenes, never on those it reports.

    Attributes:
        train_scenes: Scenes to fine-tune on.
        test_scenes: Scenes to report on, of other seeds and never trained on.
        epochs: Times the training scenes are gone through, the same for both trainings.
        batch_size: Scenes in a step.
        learning_rate: Peak learning rate of AdamW, the same for both.
        seed: Draws the scenes and orders the batches.
    """

    train_scenes: int = 800
    test_scenes: int = 500
    epochs: int = 10
    batch_size: int = 50
    learning_rate: float = 5e-4
    seed: int = 0


def take_tour(
    output: Path, settings: TourSettings | None = None, say: Callable[[str], None] = logger.info
) -> dict[str, Any]:
    """Run the quickstart and leave everything it made in `output`.

    Args:
        output: Folder for scenes, pairs, checkpoints, `pairs.png` and `report.json`.
        settings: Sizes.
        say: Takes a line of text at every step.

    Returns:
        The report: `settings`, `pairs` (summary), `steps`, `results` (retrieval of the base, of fine-tuning with the
        global loss alone and of FAST-GOAL, by name), `seconds` by stage, and a `note`.

    Raises:
        OSError: A file cannot be written.
    """
    from fastgoal.hub_cards.pictures import pairs_sheet
    from fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.processing.builders.pairs import PairSettings, build_pairs
    from fastgoal.processing.data.sources import open_source
    from fastgoal.processing.detectors.spec import DetectorSpec
    from fastgoal.processing.processing_fastgoal import FastGoalProcessor
    from fastgoal.quickstart.training import quiet_trainer
    from fastgoal.trainer.batches.pair_data import PairData
    from fastgoal.trainer.card import CardOptions
    from fastgoal.trainer.evaluation.embeddings import encode_source

    settings = settings or TourSettings()
    seconds: dict[str, float] = {}
    results: dict[str, dict[str, float]] = {}

    say(f"1. Drawing {settings.train_scenes} scenes to train on and {settings.test_scenes} others to test on.")
    with _timed(seconds, "scenes"):
        counts: dict[Split, int] = {"train": settings.train_scenes, "test": settings.test_scenes}
        for split, count in counts.items():
            scenes = draw_scenes(count, settings.seed, split, shapes=SHAPES, colours=COLOURS)
            shutil.rmtree(output / "scenes" / split, ignore_errors=True)
            write_folder(scenes, output / "scenes" / split)
        train_source, test_source = (open_source(output / "scenes" / split) for split in counts)

    say("2. Finding local pairs with FLISM: five default regions and the objects' boxes, the small CLIP matches.")
    with _timed(seconds, "pairs"):
        model = FastGoalCLIPModel.from_clip(str(BASE))
        processor = FastGoalProcessor.from_clip(str(BASE))
        shutil.rmtree(output / "pairs", ignore_errors=True)
        summary = build_pairs(
            train_source,
            output / "pairs",
            PairSettings(model="quickstart base", detector=DetectorSpec("column", "boxes")),
            lambda: (model, processor),
            progress=False,
        )
        pairs = PairData(str(output / "pairs"))
        sheet = pairs_sheet([pairs[i] for i in range(min(6, len(pairs)))])
        sheet.save(output / "pairs.png")
    found = ", ".join(f"{count} {source}" for source, count in summary["regions"].items())
    say(f"   {summary['pairs']} pairs, from {found} regions; see {output / 'pairs.png'}")

    def measure(name: str, tuned: Any) -> None:
        with _timed(seconds, "evaluation"):
            encoded = encode_source(tuned, processor, test_source, batch_size=50)
            results[name] = encoded.ranks(tuned.device).summary()

    measure("base", model)
    for number, (objective, title) in enumerate((("global", "the global loss alone"), ("fast_goal", "FAST-GOAL")), 3):
        say(f"{number}. Fine-tuning with {title}, {settings.epochs} epochs.")
        folder = output / objective.replace("_", "-")
        with _timed(seconds, objective):
            # A fresh copy of the base: the two trainings differ in the objective alone.
            trainer = quiet_trainer(
                FastGoalCLIPModel.from_clip(str(BASE)),
                processor,
                pairs,
                output_dir=str(folder),
                objective=objective,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                logging_steps=20,
            )
            trainer.card = CardOptions(note=CARD_NOTE)
            trainer.train()
            trainer.save_model()
        measure(objective, trainer.model)
        steps = trainer.state.global_step
        say(f"   {steps} steps in {trainer.state.log_history[-1]['train_runtime']:.0f} s; the checkpoint is {folder}")

    report = {
        "settings": asdict(settings),
        "pairs": {key: value for key, value in summary.items() if key != "stage_seconds"},
        "steps": steps,
        "results": results,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "note": "A small CLIP on drawn scenes: it shows that the path works, not what a real CLIP reaches.",
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def result_table(report: dict[str, Any]) -> str:
    """The results as a table of percentages."""
    names = {"base": "before", "global": "global loss alone", "fast_goal": "FAST-GOAL"}
    lines = [
        f"{'':<20}{'text to image':^20}{'image to text':^20}".rstrip(),
        (f"{'':<20}" + f"{'R@1':>9}{'R@5':>9}  " * 2).rstrip(),
    ]
    for name, title in names.items():
        metrics = report["results"][name]
        cells = "".join(
            f"{100 * metrics[f'{direction}_R@1']:>9.1f}{100 * metrics[f'{direction}_R@5']:>9.1f}  "
            for direction in DIRECTIONS
        )
        lines.append(f"{title:<20}{cells}".rstrip())
    return "\n".join(lines)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that its block takes to those of the stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
