"""What a recipe sets, what overrules it, and that arguments survive being copied and saved."""

import dataclasses
import json

import pytest
import torch

from fastgoal import FastGoalTrainingArguments
from fastgoal.modeling_fastgoal import LossWeights
from fastgoal.trainer import training_arguments
from fastgoal.trainer.run import parse


def chosen(args):
    return args.recipe, args.pair_sampling, args.hard_negatives


@pytest.fixture
def make(tmp_path):
    return lambda **changes: FastGoalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **changes)


def test_what_the_recipes_set(make):
    assert chosen(make()) == chosen(make(recipe="paper")) == ("paper", "best", False)
    assert chosen(make(recipe="experimental")) == ("experimental", "any", True)
    assert (make().warmup_steps, make(recipe="experimental").warmup_steps) == (0, 0.2)
    assert make(recipe="experimental").get_warmup_steps(1000) == 200
    assert make().resolved_objective().weights == LossWeights(1.0, 0.5, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"`recipe` must be one of paper, goal, experimental, got 'worst'"):
        make(recipe="worst")


def test_goals_own_settings(make, tmp_path):
    """Values of GOAL's public code, which no default takes over, and which give way to what is set."""

    def settings(args):
        return args.per_device_train_batch_size, args.dataloader_drop_last, args.max_grad_norm, args.decay_all

    assert settings(make()) == settings(make(recipe="experimental")) == (64, False, 1.0, False)
    assert settings(make(recipe="goal")) == (16, True, 0.0, True)
    assert chosen(make(recipe="goal")) == ("goal", "best", False)
    given = {"per_device_train_batch_size": 64, "dataloader_drop_last": False, "max_grad_norm": 1.0, "decay_all": False}
    assert settings(make(recipe="goal", **given)) == (64, False, 1.0, False)
    assert settings(make(max_grad_norm=0.0, decay_all=True)) == (64, False, 0.0, True)
    flags = [
        "--model",
        "m",
        "--train_data",
        "d",
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "true",
        "--recipe",
        "goal",
    ]
    assert settings(parse(flags)[1]) == (16, True, 0.0, True)
    assert settings(parse([*flags, "--dataloader_drop_last", "false", "--max_grad_norm", "2"])[1]) == (
        16,
        False,
        2.0,
        True,
    )
    assert settings(parse([*flags[:-2], "--decay_all", "--dataloader_drop_last"])[1]) == (64, True, 1.0, True)


def test_what_is_given_overrules_the_recipe(make):
    assert chosen(make(recipe="experimental", pair_sampling="top3")) == ("experimental", "top3", True)
    assert chosen(make(recipe="experimental", hard_negatives=False)) == ("experimental", "any", False)
    assert chosen(make(hard_negatives=True)) == ("paper", "best", True)
    assert make(recipe="experimental", warmup_steps=0).warmup_steps == 0
    assert make(warmup_steps=30).get_warmup_steps(1000) == 30


def test_flags_and_files(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: m\ntrain_data: d\noutput_dir: {tmp_path}\nuse_cpu: true\nrecipe: experimental\npair_sampling: top3\n"
    )
    assert chosen(parse([str(path)])[1]) == ("experimental", "top3", True)
    assert parse([str(path), "--warmup_steps", "0.1"])[1].warmup_steps == 0.1
    assert chosen(parse([str(path), "--hard_negatives", "false"])[1]) == ("experimental", "top3", False)
    assert chosen(parse([str(path), "--recipe", "paper"])[1]) == ("paper", "top3", False)
    assert chosen(parse([str(path), "--recipe", "paper", "--hard_negatives"])[1]) == ("paper", "top3", True)
    path.write_text(f"model: m\ntrain_data: d\noutput_dir: {tmp_path}\nrecipe: experimental\nhard_negatives: false\n")
    assert chosen(parse([str(path)])[1]) == ("experimental", "any", False)
    with pytest.raises(SystemExit):
        parse([str(path), "--recipe", "worst"])


def test_a_recipes_weight_goes_to_the_objectives_that_have_the_loss(make, monkeypatch):
    recipe = {**training_arguments.RECIPES["experimental"], "local_weight": 2.0}
    monkeypatch.setitem(training_arguments.RECIPES, "experimental", recipe)
    assert make(recipe="experimental").resolved_objective().weights.local_weight == 2.0
    assert make(recipe="experimental", local_weight=0.25).resolved_objective().weights.local_weight == 0.25
    assert make(recipe="experimental", local_weight=0.0).resolved_objective().weights.local_weight == 0.0
    for name in ("global", "sparc"):
        assert not make(recipe="experimental", objective=name).resolved_objective().needs_pairs


def test_the_recipe_best_takes_short_captions_where_there_are_some(make):
    assert dataclasses.astuple(make(recipe="experimental").resolved_objective().weights) == (
        1.0,
        0.5,
        0.0,
        0.0,
        0.1,
        0.3,
    )
    # What the objective has no use for is left out.
    assert dataclasses.astuple(make(recipe="experimental", objective="global").resolved_objective().weights)[4:] == (
        0.0,
        0.3,
    )
    assert make(recipe="experimental", objective="local").resolved_objective().weights.short_weight == 0.0
    args = make(recipe="experimental")
    assert args.without_short_captions(args.resolved_objective()).weights.short_weight == 0.0
    assert args.short_weight == 0.3
    args = make(short_weight=0.5)
    with pytest.raises(ValueError, match=r"`short_weight` is 0.5.*short_captions"):
        args.without_short_captions(args.resolved_objective())


@pytest.mark.parametrize(
    "changes",
    [{}, {"recipe": "experimental"}, {"recipe": "experimental", "hard_negatives": False}, {"pair_sampling": "any"}],
)
def test_copies_are_equal(make, tmp_path, changes):
    args = make(**changes)
    again = FastGoalTrainingArguments(**json.loads(args.to_json_string()))
    replaced = dataclasses.replace(args, learning_rate=1.0)
    assert replaced.learning_rate == 1.0
    torch.save(args, tmp_path / "training_args.bin")
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    for copy in (again, replaced, saved):
        assert chosen(copy) == chosen(args)
        assert copy.resolved_objective() == args.resolved_objective()
        assert copy.warmup_steps == args.warmup_steps


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gradient_accumulation_steps", 0, "must be at least 1, got 0"),
        ("per_device_train_batch_size", 0, "must be at least 1"),
        ("per_device_eval_batch_size", -1, "must be at least 1"),
        ("learning_rate", float("nan"), "must be a finite number, got nan"),
        ("learning_rate", -1e-5, "must not be negative, got -1e-05"),
        ("num_train_epochs", 0, "must be above 0, got 0"),
        ("num_train_epochs", float("inf"), "must be a finite number"),
        ("logging_steps", 0, "must be above 0"),
        ("save_steps", -3, "must be above 0"),
        ("warmup_steps", -1, "must not be negative"),
        ("max_grad_norm", float("nan"), "must be a finite number"),
        ("tsl_weight", float("nan"), "must be a finite number"),
        ("local_weight", float("inf"), "must be a finite number"),
        ("dataloader_num_workers", -1, "must not be negative"),
    ],
)
def test_numbers_that_would_be_stumbled_over_later(tmp_path, name, value, words):
    with pytest.raises(ValueError, match=rf"`{name}` {words}"):
        FastGoalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_a_number_of_epochs_is_no_share_of_them(make):
    with pytest.raises(ValueError, match=r"`hard_negative_refresh` must be .* got 2"):
        make(hard_negative_refresh=2)


def test_scaled_gradients_are_not_pulled_to_the_base(make):
    with pytest.raises(ValueError, match="`l2sp_weight` with `fp16`"):
        make(l2sp_weight=0.1, fp16=True, max_grad_norm=0.0)


def test_a_logger_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(training_arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"`report_to` names wandb, which is not installed.*pip install wandb"):
        FastGoalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="wandb")
