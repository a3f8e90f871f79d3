"""What the study trains: the sizes that all trainings share, the arms, and the questions that arms answer.

An arm says what differs from FAST-GOAL as published: the objective, the regions, which pairs are trained on, the
schedule. Everything else is the same for all arms of a seed: scenes, base, order of the batches, optimizer.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

LATER = {"max_text_length": None, "crop_sizes": None, "min_things": 2, "relations": 0}


@dataclass(frozen=True)
class Sizes:
    """What all arms of a study have in common.

    Attributes:
        train_scenes: Scenes to fine-tune on.
        test_scenes: Scenes to measure on.
        gallery: Scenes that a query is searched in: the test scenes are cut into galleries of so many.
        min_things, max_things: Fewest and most things of a scene.
        relations: Relations to others that captions tell after each thing, see `words.Plan`.
        epochs: Times the training scenes are gone through.
        batch_size: Scenes in a step.
        learning_rate: Peak rate of AdamW, where an arm has none of its own.
        warmup: Share of the steps over which it rises, likewise.
    """

    train_scenes: int = 2000
    test_scenes: int = 2000
    gallery: int = 250
    min_things: int = 2
    max_things: int = 5
    relations: int = 0
    epochs: int = 5
    batch_size: int = 50
    learning_rate: float = 2e-3
    warmup: float = 0.2


@dataclass(frozen=True)
class Arm:
    """One way to train; the defaults are FAST-GOAL as published.

    Attributes:
        name: In the tables.
        objective: As `--objective` takes it; `none` does not train.
        regions: Sources of the candidate regions: `default`, `detected`, `true`.
        pairs: `best` trains on each image's single best pair; drawn anew in every epoch are `top3`, one of the three
            best, `random`, any pair that the model can see, and `true`, a sentence about one thing with its true box.
        sentence_shift: Tokens by which sentence masks are moved, as a defect would.
        squashed_boxes: Map boxes as if the image had been squashed to a square, as a defect would.
        settings: Further arguments of `FastGoalTrainingArguments`.
        scale: The factor of the logits, fixed; `None` learns it.
        near: Whether a batch has images that look alike in twos (`--hard_negatives`).
        epochs: As a multiple of the others'.
        average: Share of the tuned weights in an average with the base's, after training.
        learning_rate, warmup: If not the sizes'.
        max_text_length: Tokens that the model reads, if not 248 (SigLIP: 256).
        crop_sizes: Sides in pixels of the region crops, one of which is drawn for each batch.
    """

    name: str
    objective: str = "fast_goal"
    regions: tuple[str, ...] = ("default", "detected")
    pairs: str = "best"
    sentence_shift: int = 0
    squashed_boxes: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    scale: float | None = None
    near: bool = False
    epochs: float = 1.0
    average: float = 1.0
    learning_rate: float | None = None
    warmup: float | None = None
    max_text_length: int | None = None
    crop_sizes: tuple[int, ...] | None = None

    def in_force(self, sizes: Sizes) -> tuple[float, float]:
        """Learning rate and share of the steps over which it rises."""
        rate, warmup = self.learning_rate, self.warmup
        return sizes.learning_rate if rate is None else rate, sizes.warmup if warmup is None else warmup

    def key(self, sizes: Sizes, seed: int, split: str, base: str) -> str:
        """Names the run: the same for the same work on the same base, which is named by its `fingerprint`."""
        rate, warmup = self.in_force(sizes)
        arm = asdict(replace(self, name="", learning_rate=rate, warmup=warmup))
        common = asdict(replace(sizes, learning_rate=rate, warmup=warmup))
        # Finished trainings keep their names when a setting is added: it does not count at its default.
        for name, default in LATER.items():
            for values in (arm, common):
                if name in values and values[name] == default:
                    del values[name]
        what = {"arm": arm, "sizes": common, "seed": seed, "split": split, "base": base}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


FAST_GOAL = Arm("FAST-GOAL")
GLOBAL, LOCAL, BOTH = Arm("global", "global"), Arm("local", "local"), Arm("global + local", "global_local")
SPARC, SPARC_TOO = Arm("SPARC", "sparc"), Arm("SPARC + FAST-GOAL", settings=(("sparc_weight", 1.0),))
ANY_PAIR = Arm("any pair, anew each epoch", pairs="random")
ANY_PAIR_NEAR = replace(ANY_PAIR, name="any pair, hard-negative batches", near=True)
# The settings of the recipe `experimental` as measured.
_BEST: dict[str, Any] = {
    **{"tsl_weight": 0.0, "token_weight": 0.1, "short_weight": 0.3},
    **{"l2sp_weight": 0.001, "hard_negative_refresh": 0.4},
}


def _recipe(name: str, **changes: Any) -> Arm:
    """The recipe `experimental`, or one that differs from it in some settings."""
    return replace(ANY_PAIR_NEAR, name=name, settings=tuple({**_BEST, **changes}.items()))


def _small_crops(arm: Arm, share: str, pixels: int) -> Arm:
    """An arm with region crops of a share of the side, which is `pixels`."""
    return replace(arm, name=f"{arm.name}, crops of {share}", settings=(*arm.settings, ("crop_size", pixels)))


def _mixed_crops(arm: Arm) -> Arm:
    """An arm with region crops of the whole side in half of the batches, and of three quarters in the others."""
    return replace(arm, name=f"{arm.name}, crops of 1 and 3/4", crop_sizes=(112, 84))


@dataclass(frozen=True)
class Question:
    """What is asked, the arms that answer it, and the arm that the others are compared with."""

    title: str
    arms: tuple[Arm, ...]
    against: str


QUESTIONS = {
    1: Question(
        "Which losses help?", (Arm("before", "none"), GLOBAL, LOCAL, BOTH, FAST_GOAL, SPARC, SPARC_TOO), "global"
    ),
    2: Question(
        "Which regions?",
        (
            FAST_GOAL,
            Arm("five default ones only", regions=("default",)),
            Arm("detector only", regions=("detected",)),
            Arm("true boxes", regions=("true",)),
        ),
        "FAST-GOAL",
    ),
    3: Question(
        "Which pairs?",
        (
            FAST_GOAL,
            Arm("one of the three best", pairs="top3"),
            ANY_PAIR,
            Arm("any true pair, anew each epoch", pairs="true"),
        ),
        "FAST-GOAL",
    ),
    4: Question(
        "What do the defects of the public code cost?",
        (
            FAST_GOAL,
            Arm("sentence masks off by one", sentence_shift=1),
            Arm("boxes mapped without the crop", squashed_boxes=True),
        ),
        "FAST-GOAL",
    ),
    5: Question(
        "What does it cost, and what does the schedule change?",
        (
            GLOBAL,
            replace(GLOBAL, name="global, 2 times the epochs", epochs=2.0),
            *(LOCAL, FAST_GOAL, ANY_PAIR_NEAR),
            replace(GLOBAL, name="global, no warm-up", warmup=0.0),
            replace(GLOBAL, name="global, no warm-up, rate 1e-3", warmup=0.0, learning_rate=1e-3),
            replace(FAST_GOAL, name="FAST-GOAL, no warm-up", warmup=0.0),
        ),
        "global",
    ),
    6: Question(
        "What else helps?",
        (
            *(FAST_GOAL, ANY_PAIR, replace(FAST_GOAL, name="hard-negative batches", near=True), ANY_PAIR_NEAR),
            replace(ANY_PAIR_NEAR, name="the same, 0.85 of the way from the base", average=0.85),
            replace(ANY_PAIR_NEAR, name="the same, 0.7 of the way from the base", average=0.7),
            replace(GLOBAL, name="global, hard-negative batches", near=True),
        ),
        "FAST-GOAL",
    ),
    7: Question(
        "Is there a recipe that is clearly better?",
        (
            *(GLOBAL, BOTH, FAST_GOAL, _recipe("experimental")),
            _recipe("experimental, without the token term", token_weight=0.0),
            _recipe("experimental, TSL for the token term", token_weight=0.0, tsl_weight=1.0),
        ),
        "FAST-GOAL",
    ),
    8: Question(
        "Does it hold for a SigLIP?",
        (
            *(Arm("before", "none"), GLOBAL, BOTH, FAST_GOAL),
            replace(FAST_GOAL, name="FAST-GOAL, softmax losses", settings=(("contrastive", "softmax"),)),
            _recipe("experimental"),
        ),
        "global",
    ),
    9: Question(
        "Do smaller crops do as well?",
        (
            *(FAST_GOAL, _small_crops(FAST_GOAL, "3/4", 84), _small_crops(FAST_GOAL, "1/2", 56)),
            *(_recipe("experimental"), _small_crops(_recipe("experimental"), "3/4", 84)),
            _small_crops(_recipe("experimental"), "1/2", 56),
            _mixed_crops(FAST_GOAL),
        ),
        "FAST-GOAL",
    ),
    10: Question(
        "Does a longer text length help with longer captions?",
        tuple(
            replace(arm, name=f"{arm.name}, {length} tokens", max_text_length=length)
            for arm in (Arm("before", "none"), GLOBAL, FAST_GOAL)
            for length in (248, 512)
        ),
        "FAST-GOAL, 248 tokens",
    ),
}
TRIALS = (
    replace(ANY_PAIR, name="any pair, local weight 1", settings=(("local_weight", 1.0),)),
    replace(ANY_PAIR_NEAR, name="any pair, hard-negative batches, local weight 1", settings=(("local_weight", 1.0),)),
    replace(ANY_PAIR_NEAR, name="any pair, hard-negative batches, without TSL", settings=(("tsl_weight", 0.0),)),
    replace(ANY_PAIR_NEAR, name="any pair, hard-negative batches, logits times 20", scale=20.0),
    replace(ANY_PAIR, name="any pair, logits times 20", scale=20.0),
    replace(ANY_PAIR, name="any pair, TSL weight 2", settings=(("tsl_weight", 2.0),)),
)
"""Ideas that no table has, for `--trials`; STUDY.md says what came out."""
