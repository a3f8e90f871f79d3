"""A file of settings to begin with, each with what it means and its default."""

import textwrap
from dataclasses import MISSING, fields
from typing import Any

import yaml

from .run import RunArguments
from .training_arguments import RECIPES, FastGoalTrainingArguments

# Of transformers' settings those that most trainings touch.
USUAL = (
    *("bf16", "gradient_accumulation_steps", "max_steps", "seed"),
    *("save_strategy", "save_steps", "eval_strategy", "report_to", "push_to_hub", "hub_model_id"),
)


def commented_settings(recipe: str) -> str:
    """A file of settings to begin with: what must be given, and all else of this method with its default as a comment.

    Args:
        recipe: Whose values are shown where a setting has none of its own.
    """
    given: dict[str, Any] = {"model": "openai/clip-vit-base-patch16", "train_data": "pairs/", "output_dir": "fast-goal"}
    if recipe != "paper":
        given["recipe"] = recipe
    own = [
        field
        for field in fields(FastGoalTrainingArguments)
        if field.name in vars(FastGoalTrainingArguments)["__annotations__"]
    ]
    every = {field.name: field for field in [*fields(RunArguments), *own]}
    usual = {field.name: field for field in fields(FastGoalTrainingArguments) if field.name in USUAL}
    lines = [
        "# Settings of a training: `fastgoal train config.yaml`, or `accelerate launch trainer/run.py config.yaml`."
    ]
    lines += ["# What is commented out has the value that is shown. Numbers like 5e-6 need a dot: 5.0e-6.", ""]
    for name, field in {**every, **usual}.items():
        if name == "remove_unused_columns":
            continue
        default = RECIPES[recipe].get(name, field.default) if field.default in (None, MISSING) else field.default
        value = yaml.safe_dump({name: given.get(name, default)}).rstrip()
        text = str(field.metadata.get("help", "")).replace("`", "")
        lines += [
            *(f"# {line}" for line in textwrap.wrap(text, 100, break_on_hyphens=False)),
            value if name in given else f"# {value}",
            "",
        ]
    return "\n".join(lines)
