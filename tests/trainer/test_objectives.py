"""Objectives by name, and weights in place of theirs."""

from dataclasses import astuple

import pytest

from fastgoal import FastGoalTrainingArguments
from fastgoal.trainer.objectives import OBJECTIVES, resolve_objective


@pytest.mark.parametrize(
    ("name", "weights", "needs"),
    [
        ("fast_goal", (1.0, 0.5, 1.0, 0.0), {"pairs", "global"}),
        ("goal", (1.0, 0.5, 1.0, 0.0), {"pairs", "global"}),
        ("sparc", (0.5, 0.0, 0.0, 1.0), {"global", "tokens"}),
        ("global", (1.0, 0.0, 0.0, 0.0), {"global"}),
        ("local", (0.0, 1.0, 0.0, 0.0), {"pairs"}),
        ("global_local", (1.0, 0.5, 0.0, 0.0), {"pairs", "global"}),
    ],
)
def test_weights_of_the_papers(name, weights, needs):
    objective = resolve_objective(name)
    assert astuple(objective.weights) == (*weights, 0.0, 0.0)  # the papers have no other losses
    assert {need for need in ("pairs", "global", "tokens") if getattr(objective, f"needs_{need}")} == needs


def test_sparc_adds_to_any_objective():
    for name in OBJECTIVES:
        objective = resolve_objective(name, sparc_weight=5.0)
        assert objective.weights.sparc_weight == 5.0
        assert objective.needs_tokens
        assert objective.needs_pairs == OBJECTIVES[name].needs_pairs


def test_single_weights():
    objective = resolve_objective("global", tsl_weight=0.3)
    assert astuple(objective.weights) == (1.0, 0.0, 0.3, 0.0, 0.0, 0.0)
    assert objective.needs_pairs
    assert objective.labeled_weights == {"global": 1.0, "TSL": 0.3}


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("fastgoal", {}, "one of fast_goal, goal, sparc, global, local, global_local, got 'fastgoal'"),
        ("global", {"global_weight": -1.0}, "`global_weight` must not be negative"),
        ("global", {"sparc_weight": -1.0}, "`sparc_weight` must not be negative"),
        ("global", {"global_weight": 0.0}, "`global_weight`.* must be above 0"),
    ],
)
def test_wrong_objectives_are_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        resolve_objective(name, **weights)


def test_arguments_have_goals_defaults(tmp_path):
    args = FastGoalTrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (5e-6, 0.05, 10)
    assert args.lr_scheduler_type == "cosine"
    assert args.warmup_steps == 0
    assert args.resolved_objective().name == "fast_goal"
