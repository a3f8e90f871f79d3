"""Training arguments: what recipes set, what is refused, and that copies keep the values."""

import dataclasses
import json

import pytest
import torch
from transformers.trainer_utils import SchedulerType

from fastgoal import FastGoalTrainingArguments
from fastgoal.modeling_fastgoal import LossWeights
from fastgoal.trainer import training_arguments
from fastgoal.trainer.run import parse

NEEDED = ["--model", "m", "--train_data", "d", "--use_cpu"]


def recipe_values(args):
    return args.recipe, args.pair_sampling, args.hard_negatives


def goal_values(args):
    return args.per_device_train_batch_size, args.dataloader_drop_last, args.max_grad_norm, args.decay_all


@pytest.fixture
def make(tmp_path):
    return lambda **changes: FastGoalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **changes)


def test_recipes_set_defaults(make):
    assert recipe_values(make()) == recipe_values(make(recipe="paper")) == ("paper", "best", False)
    assert recipe_values(make(recipe="experimental")) == ("experimental", "any", True)
    assert (make().warmup_steps, make(recipe="experimental").warmup_steps) == (0, 0.2)
    assert make(recipe="experimental").get_warmup_steps(1000) == 200
    assert make().resolved_objective().weights == LossWeights(1.0, 0.5, 1.0, 0.0)


def test_recipe_goal_has_the_settings_of_goals_public_code(make):
    assert goal_values(make()) == goal_values(make(recipe="experimental")) == (64, False, 1.0, False)
    assert goal_values(make(recipe="goal")) == (16, True, 0.0, True)
    assert recipe_values(make(recipe="goal")) == ("goal", "best", False)
    given = {"per_device_train_batch_size": 64, "dataloader_drop_last": False, "max_grad_norm": 1.0, "decay_all": False}
    assert goal_values(make(recipe="goal", **given)) == (64, False, 1.0, False)
    assert goal_values(make(max_grad_norm=0.0, decay_all=True)) == (64, False, 0.0, True)
    flags = [*NEEDED, "--recipe", "goal"]
    assert goal_values(parse(flags)[1]) == (16, True, 0.0, True)
    flags += ["--dataloader_drop_last", "false", "--max_grad_norm", "2"]
    assert goal_values(parse(flags)[1]) == (16, False, 2.0, True)
    assert goal_values(parse([*NEEDED, "--decay_all", "--dataloader_drop_last"])[1]) == (64, True, 1.0, True)


def test_given_values_override_the_recipe(make):
    assert recipe_values(make(recipe="experimental", pair_sampling="top3")) == ("experimental", "top3", True)
    assert recipe_values(make(recipe="experimental", hard_negatives=False)) == ("experimental", "any", False)
    assert recipe_values(make(hard_negatives=True)) == ("paper", "best", True)
    assert make(recipe="experimental", warmup_steps=0).warmup_steps == 0
    assert make(warmup_steps=30).get_warmup_steps(1000) == 30


def test_flags_override_the_settings_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: m\ntrain_data: d\nuse_cpu: true\nrecipe: experimental\npair_sampling: top3\n")
    assert recipe_values(parse([str(path)])[1]) == ("experimental", "top3", True)
    assert parse([str(path), "--warmup_steps", "0.1"])[1].warmup_steps == 0.1
    assert recipe_values(parse([str(path), "--hard_negatives", "false"])[1]) == ("experimental", "top3", False)
    assert recipe_values(parse([str(path), "--recipe", "paper"])[1]) == ("paper", "top3", False)
    assert recipe_values(parse([str(path), "--recipe", "paper", "--hard_negatives"])[1]) == ("paper", "top3", True)
    path.write_text("model: m\ntrain_data: d\nuse_cpu: true\nrecipe: experimental\nhard_negatives: false\n")
    assert recipe_values(parse([str(path)])[1]) == ("experimental", "any", False)


def test_a_weight_of_a_recipe_applies_to_objectives_with_the_loss(make, monkeypatch):
    recipe = {**training_arguments.RECIPES["experimental"], "local_weight": 2.0}
    monkeypatch.setitem(training_arguments.RECIPES, "experimental", recipe)

    def local_weight(**changes):
        return make(recipe="experimental", **changes).resolved_objective().weights.local_weight

    assert (local_weight(), local_weight(local_weight=0.25), local_weight(local_weight=0.0)) == (2.0, 0.25, 0.0)
    for name in ("global", "sparc"):
        assert not make(recipe="experimental", objective=name).resolved_objective().needs_pairs


def test_recipe_experimental_uses_short_captions_if_there_are_some(make):
    def weights(**changes):
        return dataclasses.astuple(make(recipe="experimental", **changes).resolved_objective().weights)

    assert weights() == (1.0, 0.5, 0.0, 0.0, 0.1, 0.3)
    assert weights(objective="global")[4:] == (0.0, 0.3)
    assert weights(objective="local")[5] == 0.0
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
        assert recipe_values(copy) == recipe_values(args)
        assert copy.resolved_objective() == args.resolved_objective()
        assert copy.warmup_steps == args.warmup_steps


def test_tokens_are_not_printed(make):
    args = make(hub_token="secret")
    assert "secret" not in repr(args) + str(args)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("recipe", "worst", "one of paper, goal, experimental, got 'worst'"),
        ("objective", "x", "one of fast_goal, .* got 'x'"),
        ("freeze", "both", "one of vision, text, got 'both'"),
        ("train_sampling_strategy", "batch_rebalance", "one of random, sequential, group_by_length"),
        ("length_column_name", "words", "not supported, got 'words'"),
        ("remove_unused_columns", True, "must be False"),
        ("max_logit_scale", 0.5, "0 .*or at least 1, got 0.5"),
        ("hard_negative_refresh", 2, "below 1, got 2"),
        ("gradient_accumulation_steps", 0, "at least 1, got 0"),
        ("per_device_train_batch_size", 0, "at least 1"),
        ("per_device_eval_batch_size", -1, "at least 1"),
        ("mini_batch_size", 0, "at least 1, got 0"),
        ("mini_batch_size", "many", "positive integer or auto, got 'many'"),
        ("lora_r", 0, "at least 1, got 0"),
        ("freeze_layers", -1, "must not be negative"),
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
def test_wrong_values_are_refused(make, name, value, words):
    with pytest.raises(ValueError, match=rf"`{name}` .*{words}"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_alpha": 2.0}, "`lora_alpha` .*`lora_r`"),
        ({"lora_r": 2, "lora_alpha": 0.0}, "`lora_alpha` must be above 0"),
        ({"l2sp_weight": 0.1, "fp16": True, "max_grad_norm": 0.0}, "`l2sp_weight` with `fp16`"),
        ({"hard_negatives": True, "train_sampling_strategy": "sequential"}, "`hard_negatives` .*sequential"),
        ({"crop_size": 16, "objective": "global"}, "`crop_size` .*local pairs, got 16 .*global"),
        ({"crop_size": 0}, "`crop_size` must be at least 1, got 0"),
    ],
)
def test_wrong_combinations_are_refused(make, changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_a_logger_that_is_not_installed_is_refused(make, monkeypatch):
    monkeypatch.setattr(training_arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"`report_to` .*wandb.*pip install wandb"):
        make(report_to="wandb")


@pytest.mark.parametrize(
    ("given", "strategy", "steps"),
    [
        ({}, "epoch", 500),
        ({"save_steps": 20}, "steps", 20),
        ({"save_strategy": "steps"}, "steps", 500),
        ({"save_strategy": "epoch"}, "epoch", None),
        ({"save_strategy": "no"}, "no", None),
    ],
)
def test_a_given_checkpoint_policy_wins(tmp_path, given, strategy, steps):
    args = FastGoalTrainingArguments(str(tmp_path), use_cpu=True, **given)
    assert (args.save_strategy, args.save_steps) == (strategy, steps)
    assert (args.metric_for_best_model, args.greater_is_better) == ("text_to_image_R@1", True)
    assert args.load_best_model_at_end is False


def test_checkpoints_of_timers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`enable_jit_checkpoint`.* timer.*optimizer's step"):
        FastGoalTrainingArguments(str(tmp_path), use_cpu=True, enable_jit_checkpoint=True)


@pytest.mark.parametrize(
    ("schedule", "given", "words"),
    [
        ("cosine", {"a": 1}, r"cosine.*'a': 1.*num_cycles"),
        ("cosine", {"num_cycles": "x"}, r"cosine.*'num_cycles': 'x'.*num_cycles"),
        ("constant", {"num_cycles": 1}, r"constant.*num_cycles"),
        ("cosine_with_min_lr", {}, r"cosine_with_min_lr.*min_lr"),
        ("warmup_stable_decay", {}, r"warmup_stable_decay.*num_decay_steps"),
        ("reduce_lr_on_plateau", {"a": 1}, r"reduce_lr_on_plateau.*'a'"),
        ("polynomial", {"lr_end": 1.0}, r"polynomial.*lr_end.*power"),
    ],
)
def test_arguments_of_the_schedule_are_checked(schedule, given, words):
    with pytest.raises(ValueError, match=rf"`lr_scheduler_kwargs`.*`lr_scheduler_type={words}"):
        FastGoalTrainingArguments(
            lr_scheduler_type=schedule, lr_scheduler_kwargs=given, eval_strategy="epoch", use_cpu=True
        )


@pytest.mark.parametrize("schedule", [schedule.value for schedule in SchedulerType])
def test_every_schedule_is_possible(schedule):
    more = {"cosine_with_min_lr": {"min_lr": 1e-7}, "cosine_warmup_with_min_lr": {"min_lr": 1e-7}}
    more["warmup_stable_decay"] = {"num_decay_steps": 2}
    args = FastGoalTrainingArguments(
        lr_scheduler_type=schedule, lr_scheduler_kwargs=more.get(schedule), eval_strategy="epoch", use_cpu=True
    )
    assert args.lr_scheduler_type == schedule
