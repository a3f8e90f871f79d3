"""The whole path on a drawn world, in minutes and without a network: scenes, pairs, two trainings, one table."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastgoal.processing.files import WORK_FOLDER, write_json, write_text
from fastgoal.quickstart.drawing import Split
from fastgoal.quickstart.scenes import draw_scenes, write_folder

# Few shapes and colors, so that it takes the details to tell scenes apart.
SHAPES = ("arrow", "circle", "flower", "heart", "square", "star")
COLORS = ("blue", "green", "red", "yellow")
BASE = Path(str(files("fastgoal.quickstart"))) / "base_clip"
CARD_NOTE = "A toy of the quickstart: trained on drawn scenes only, of no use for photographs."


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
    epochs: int = 5
    batch_size: int = 50
    learning_rate: float = 1e-3
    seed: int = 0


def take_tour(output: Path, settings: TourSettings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the quickstart and leave scenes, pairs, checkpoints, `pairs.png` and `report.json` in `output`.

    `say` takes a line of text at every step, and at every epoch of a training.

    Returns:
        The report: `settings`, `pairs` (summary), `steps`, `results` (retrieval of the base, of fine-tuning with the
        global loss alone and of FAST-GOAL, by name), `seconds` by stage, and a `note`.
    """
    from fastgoal.hub_cards.card_images import pairs_sheet
    from fastgoal.hub_cards.wording import count
    from fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.processing.builders.pairs import build_pairs
    from fastgoal.processing.data.sources import load_source
    from fastgoal.processing.processing_fastgoal import FastGoalProcessor
    from fastgoal.quickstart.training import EpochLines, quiet_trainer
    from fastgoal.trainer.batches.rows import TrainingData
    from fastgoal.trainer.card import CardOptions
    from fastgoal.trainer.evaluation.measures.embeddings import encode_source

    _claim(output)
    seconds: dict[str, float] = {}
    results: dict[str, dict[str, float]] = {}

    say(f"1. Drawing {settings.train_scenes} scenes to train on and {settings.test_scenes} others to test on.")
    with _timed(seconds, "scenes"):
        sources = {}
        numbers: dict[Split, int] = {"train": settings.train_scenes, "test": settings.test_scenes}
        for split, number in numbers.items():
            folder = output / "scenes" / split
            shutil.rmtree(folder, ignore_errors=True)
            write_folder(draw_scenes(number, settings.seed, split, shapes=SHAPES, colors=COLORS), folder)
            sources[split] = load_source(folder)

    say("2. Finding local pairs with FLISM: which region of its scene does each sentence describe?")
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
    say(f"   The small CLIP chose one for each of {count(summary['pairs'], 'sentence')}, among the boxes of")
    say(f"   {count(objects, 'object')} and {fixed:,} fixed regions, five in every scene. See {output / 'pairs.png'}")

    def measure(name: str, tuned: Any) -> None:
        with _timed(seconds, "evaluation"):
            encoded = encode_source(tuned, processor, sources["test"], batch_size=50)
            results[name] = encoded.ranks(tuned.device).summary()

    measure("base", model)
    for number, (objective, title) in enumerate((("global", "the global loss alone"), ("fast_goal", "FAST-GOAL")), 3):
        say(f"{number}. Fine-tuning with {title}, {count(settings.epochs, 'epoch')}.")
        folder = output / objective.replace("_", "-")
        with _timed(seconds, objective):
            # A fresh copy of the base: the two trainings differ in the objective alone.
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
            )
            trainer.add_callback(EpochLines(say))
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
    write_json(output / "report.json", report)
    return report


def _claim(output: Path) -> None:
    """Make the folder a quickstart's, whose old contents may be taken away; a `ValueError` where it is somebody's."""
    mark = output / WORK_FOLDER / "quickstart"
    others = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if others and not mark.is_file():
        raise ValueError(
            f"--output {output} has files in it that no quickstart made ({', '.join(others[:5])}). Name a new folder."
        )
    write_text(mark, "Folders beside this one are made anew by the next quickstart.\n")


def result_table(report: dict[str, Any]) -> str:
    """The results as a table of percentages."""
    names = {"base": "before", "global": "global loss alone", "fast_goal": "FAST-GOAL"}
    columns = [f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5)]
    lines = [f"{'':<20}{'text to image':^20}{'image to text':^20}", f"{'':<20}" + f"{'R@1':>9}{'R@5':>9}  " * 2]
    for name, title in names.items():
        cells = [f"{100 * report['results'][name][column]:>9.1f}" for column in columns]
        lines.append(f"{title:<20}{cells[0]}{cells[1]}  {cells[2]}{cells[3]}")
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that its block takes to those of the stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
