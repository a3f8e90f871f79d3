"""The whole path on a drawn world, in minutes and without a network: scenes, pairs, two trainings, one table."""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

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


def take_tour(output: Path, settings: TourSettings | None = None, say: Any = logger.info) -> dict[str, Any]:
    """Run the quickstart and leave everything it made in `output`.

    Args:
        output: Folder for scenes, pairs, checkpoints, `pairs.png` and `report.json`.
        settings: Sizes.
        say: Takes a line of text at every step.

    Returns:
        The report: `settings`, `scenes`, `pairs` (summary), `results` (retrieval of the base, of fine-tuning with the
        global loss alone and of FAST-GOAL, by name), `steps`, `seconds` by stage.

    Raises:
        OSError: A file cannot be written.
    """
    from fastgoal.hub_cards.pictures import pairs_sheet
    from fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.processing.builders.pairs import PairSettings, build_pairs
    from fastgoal.processing.data.sources import open_source
    from fastgoal.processing.detectors.spec import DetectorSpec
    from fastgoal.processing.processing_fastgoal import FastGoalProcessor
    from fastgoal.trainer.batches.pair_data import PairData
    from fastgoal.trainer.evaluation.embeddings import evaluate_source

    settings = settings or TourSettings()
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)

    say(f"1. Drawing {settings.train_scenes} scenes to train on and {settings.test_scenes} others to test on.")
    with clock("scenes"):
        train = draw_scenes(settings.train_scenes, settings.seed, "train", shapes=SHAPES, colours=COLOURS)
        test = draw_scenes(settings.test_scenes, settings.seed, "test", shapes=SHAPES, colours=COLOURS)
        for name, scenes in (("train", train), ("test", test)):
            shutil.rmtree(output / "scenes" / name, ignore_errors=True)
            write_folder(scenes, output / "scenes" / name)
        test_source = open_source(output / "scenes" / "test")

    say("2. Finding local pairs with FLISM: five default regions and the objects' boxes, the small CLIP matches.")
    with clock("pairs"):
        model = FastGoalCLIPModel.from_clip(str(BASE))
        processor = FastGoalProcessor.from_clip(str(BASE))
        shutil.rmtree(output / "pairs", ignore_errors=True)
        summary = build_pairs(
            open_source(output / "scenes" / "train"),
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

    def measure(name: str, tuned: Any) -> dict[str, float]:
        with clock("evaluation"):
            metrics = evaluate_source(tuned, processor, test_source, batch_size=50).metrics
        results[name] = metrics
        return metrics

    results: dict[str, dict[str, float]] = {}
    steps = 0
    measure("base", model)
    for number, (objective, title) in enumerate((("global", "the global loss alone"), ("fast_goal", "FAST-GOAL")), 3):
        say(f"{number}. Fine-tuning with {title}, {settings.epochs} epochs.")
        with clock(objective):
            trainer = _trainer(objective, output, settings, pairs, processor)
            trainer.train()
            steps = trainer.state.global_step
            trainer.save_model()
        measure(objective, trainer.model)
        last = trainer.state.log_history[-1]
        say(f"   {steps} steps in {last['train_runtime']:.0f} s; the checkpoint is {output / _folder(objective)}")

    report = {
        "settings": settings.__dict__,
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


def _folder(objective: str) -> str:
    return objective.replace("_", "-")


def _trainer(objective: str, output: Path, settings: TourSettings, pairs: Any, processor: Any) -> Any:
    """A trainer of a fresh copy of the base; the two trainings differ in the objective alone."""
    from transformers import PrinterCallback, set_seed

    from fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.trainer.card import CardOptions
    from fastgoal.trainer.fastgoal_trainer import FastGoalTrainer
    from fastgoal.trainer.training_arguments import FastGoalTrainingArguments

    set_seed(settings.seed)
    args = FastGoalTrainingArguments(
        output_dir=str(output / _folder(objective)),
        objective=objective,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        dataloader_num_workers=0,
        dataloader_drop_last=True,
        save_strategy="no",
        logging_steps=20,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = FastGoalTrainer(
        model=FastGoalCLIPModel.from_clip(str(BASE)), args=args, processing_class=processor, train_dataset=pairs
    )
    trainer.remove_callback(PrinterCallback)
    trainer.card = CardOptions(note=CARD_NOTE)
    return trainer


class _Clock:
    """Adds up the seconds of named stages."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds

    def __call__(self, name: str) -> "_Clock":
        self.name = name
        return self

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start
