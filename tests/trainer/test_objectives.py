"""Objectives by name and the weights that replace theirs."""

import pytest

from fastgoal import FastGoalTrainingArguments
from fastgoal.trainer.objectives import resolve_objective


@pytest.mark.parametrize(
    ("name", "weights", "needs_pairs"),
    [
        ("fast_goal", (1.0, 0.5, 1.0), True),
        ("global_local", (1.0, 0.5, 0.0), True),
        ("global", (1.0, 0.0, 0.0), False),
        ("local", (0.0, 1.0, 0.0), True),
    ],
)
def test_weights_of_the_papers(name, weights, needs_pairs):
    objective = resolve_objective(name)
    assert (objective.global_weight, objective.local_weight, objective.tsl_weight) == weights
    assert objective.needs_pairs == needs_pairs


def test_weights_one_by_one():
    objective = resolve_objective("global", tsl_weight=0.3)
    assert (objective.global_weight, objective.local_weight, objective.tsl_weight) == (1.0, 0.0, 0.3)
    assert objective.needs_pairs


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("fastgoal", {}, "one of fast_goal, goal, sparc, global, local, global_local"),
        ("global", {"global_weight": -1.0}, "must not be negative"),
        ("global", {"global_weight": 0.0}, "At least one"),
    ],
)
def test_wrong_objectives(name, weights, message):
    with pytest.raises(ValueError, match=message):
        resolve_objective(name, **weights)


def test_arguments_have_goals_defaults(tmp_path):
    args = FastGoalTrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (5e-6, 0.05, 10)
    assert args.lr_scheduler_type == "cosine"
    assert args.warmup_steps == 0
    assert args.resolved_objective().name == "fast_goal"


@pytest.mark.parametrize(
    ("changes", "message"), [({"objective": "x"}, "objective"), ({"remove_unused_columns": True}, "must be False")]
)
def test_wrong_arguments_are_refused_at_once(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        FastGoalTrainingArguments(output_dir=str(tmp_path), **changes)
