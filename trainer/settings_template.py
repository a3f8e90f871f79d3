"""Write a settings file to start from: every setting with its help text and its default."""

import textwrap
from dataclasses import MISSING, fields
from typing import Any

import yaml
from transformers import TrainingArguments

from .cli.run_parser import WITHOUT_EFFECT
from .run import RunArguments
from .training_arguments import RECIPES, FastGoalTrainingArguments

# Settings of `TrainingArguments` that most trainings need.
USUAL = (
    *("bf16", "gradient_accumulation_steps", "max_steps", "seed"),
    *("save_strategy", "save_steps", "eval_strategy", "report_to", "push_to_hub", "hub_model_id"),
)
GIVEN = {"model": "openai/clip-vit-base-patch16", "train_data": "pairs/", "output_dir": "fast-goal"}


def commented_settings(recipe: str) -> str:
    """Return a settings file with the settings that must be given, and all others commented out with their defaults.

    Args:
        recipe: The recipe to use, and to show the defaults of.
    """
    given: dict[str, Any] = GIVEN if recipe == "paper" else {**GIVEN, "recipe": recipe}
    theirs = TrainingArguments.__dataclass_fields__
    every = {setting.name: setting for setting in fields(FastGoalTrainingArguments)}
    own = {name: setting for name, setting in every.items() if theirs.get(name) is not setting}
    own |= {name: every[name] for name in USUAL}
    for name in WITHOUT_EFFECT:
        del own[name]
    lines = [
        "# Settings of a training. Run it with `fastgoal train config.yaml`.",
        "# Settings that are commented out show their defaults. Write numbers such as 5e-6 with a dot: 5.0e-6.",
        "",
    ]
    for setting in [*fields(RunArguments), *own.values()]:
        name, default = setting.name, setting.default
        if default is None or default is MISSING:
            default = RECIPES[recipe].get(name)
        value = yaml.safe_dump({name: given.get(name, default)}).rstrip()
        text = str(setting.metadata.get("help", "")).replace("`", "")
        lines += [f"# {line}" for line in textwrap.wrap(text, 100, break_on_hyphens=False)]
        lines += [value if name in given else f"# {value}", ""]
    return "\n".join(lines)
