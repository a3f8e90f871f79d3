"""What a training says before its first step and at its end, read from the real program."""

import json

import pytest
import torch

from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.trainer.run import main
from fastgoal.trainer.summary import (
    TrainingRun,
    describe_truncation,
    end_lines,
    log_text,
    pairs_of,
    small_batch_hint,
)
from fastgoal.trainer.training_arguments import FastGoalTrainingArguments
from tests.squares import rows_of_squares, write_pairs


@pytest.fixture
def squares(tmp_path):
    folder = write_pairs(rows_of_squares(), tmp_path / "squares")
    (folder / MANIFEST).write_text(json.dumps({"summary": {"pairs": 24}}))
    return folder


def train(clip, squares, output, *more):
    settings = ["--model", str(clip), "--train_data", str(squares), "--output_dir", str(output), "--max_steps", "3"]
    settings += ["--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--save_strategy", "no"]
    assert main([*settings, *more]) == 0


def test_a_training_says_what_it_does_and_what_comes_next(tiny_clip, squares, tmp_path, capfd):
    output = tmp_path / "a model"
    train(tiny_clip, squares, output, "--eval_data", str(squares), "--bf16", "true")  # which a GPU's settings say
    shown = capfd.readouterr().out
    for line in (
        "objective   fast_goal (recipe paper): 1 x global + 0.5 x local + 1 x TSL",
        "data        squares: 12 images, 24 pairs",
        "evaluation  squares: 12 images, 24 pairs, before the first step and every epoch",
        "all trained; reads 248 tokens",
        "steps       3 (1 epoch of 12 images), learning rate 5e-06",
        "runs on     1 process on cpu, bfloat16, 4 pairs a step",
        f"saved in    {output}\n",
        f"The model is in {output}. ",
        f"Next: fastgoal evaluate --model '{output}' --data {squares}",
    ):
        assert line in shown
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    evaluations = [line for line in history if "eval_text_to_image_R@1" in line]
    assert evaluations[0]["step"] == 0
    last = evaluations[-1]["eval_text_to_image_R@1"]
    assert f"R@1 text to image {last:.1f} %" in shown
    assert {round(line["eval_text_to_image_R@10"] * 12 / 100, 2) % 1 for line in evaluations} == {0.0}  # in percent
    assert shown.count("image to text  ") == len(evaluations) == 2  # each is shown once
    assert "eval_" not in shown
    card = (output / "README.md").read_text()
    assert "| text to image, before training |" in card
    assert "### Evaluations during training" in card
    assert "tokens in the mean" in card


def test_captions_beyond_the_limit_are_counted(tiny_clip, tmp_path, capfd):
    """Two of 12 captions are longer than 77 tokens, one of them by a single token. Another one has exactly 77."""
    rows = rows_of_squares()
    for row, tokens in zip(rows, (77, 78, 407), strict=False):
        row["caption"] += " x" * (tokens - 2 - len(row["caption"].replace(" ", "")))  # each letter is a token
    train(tiny_clip, write_pairs(rows, tmp_path / "long"), tmp_path / "out", "--max_text_length", "77")
    line = "captions    2 of 12 have more than 77 tokens and are truncated; max_text_length 408 holds 99 %\n"
    assert line in capfd.readouterr().out


@pytest.mark.parametrize(
    ("lengths", "rows", "line"),
    [
        ([248] * 5, 0, ""),
        ([], 9, ""),
        ([*range(1, 201)], 200, ""),
        ([*range(51, 251)], 200, "2 of 200 have more than 248 tokens and are truncated"),
        (
            [*range(101, 301)],
            200,
            "52 of 200 have more than 248 tokens and are truncated; max_text_length 304 holds 99 %",
        ),
        (
            [40, 249],
            5000,
            "1 of a sample of 2 has more than 248 tokens and is truncated; max_text_length 256 holds 99 %",
        ),
        ([40, 1024], 2, "1 of 2 has more than 248 tokens and is truncated; max_text_length 1024 holds 99 %"),
        (
            [40] * 3 + [1025],
            4,
            "1 of 4 has more than 248 tokens and is truncated; max_text_length 1024, the maximum, holds 75.0 %",
        ),
    ],
)
def test_the_length_that_holds_almost_all_captions(lengths, rows, line):
    assert describe_truncation(lengths, 248, rows) == line


def test_an_evaluation_is_a_small_table():
    metrics = {
        "eval_loss": 0.16623,
        "eval_text_to_image_R@1": 58.333,
        "eval_text_to_image_mean_rank": 1.75,
        "eval_image_to_text_R@1": 100.0,
        "eval_loss_tsl_image": 0.0927,
        "eval_loss_global": 0.00643,
        "eval_runtime": 0.6,
        "epoch": 2.0,
    }
    assert log_text(metrics).splitlines() == [
        "epoch 2          R@1  mean rank",
        "text to image   58.3        1.8",
        "image to text  100.0          -",
        "loss 0.1662 (tsl image 0.0927, global 0.00643)",
    ]
    named = {name.replace("eval_", "eval_docci_"): value for name, value in metrics.items()}
    assert log_text(named).splitlines() == ["eval_docci", *log_text(metrics).splitlines()]
    assert log_text({"loss": 0.17391, "epoch": 0.5, "note": "x", "total_flos": 1.0}) == (
        "{'loss': '0.1739', 'epoch': '0.5', 'note': 'x'}"
    )


def test_an_adapter_is_said_to_be_one(tiny_clip, squares, tmp_path, capfd):
    train(tiny_clip, squares, tmp_path / "lora", "--lora_r", "2", "--seed", "1", "--save_adapter_only", "true")
    shown = capfd.readouterr().out
    assert "trained as an adapter; reads 248 tokens" in shown
    assert "evaluation  none\n" in shown
    assert f"fastgoal merge {tmp_path / 'lora'} --output MODEL" in shown


@pytest.mark.parametrize(
    ("batch", "more", "epochs"),
    [
        ("64", ["--num_train_epochs", "5", "--max_steps", "-1"], "5 (5 epochs of 12 images)"),
        ("8", ["--max_steps", "2", "--dataloader_drop_last", "true"], "2 (2 epochs of 12 images)"),
        ("8", ["--max_steps", "1", "--gradient_accumulation_steps", "2"], "1 (1 epoch of 12 images)"),
    ],
)
def test_epochs_are_those_of_the_log(tiny_clip, squares, tmp_path, capfd, batch, more, epochs):
    train(tiny_clip, squares, tmp_path / "out", "--per_device_train_batch_size", batch, *more)
    assert f"steps       {epochs}, " in capfd.readouterr().out
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    assert f"({state['epoch']:g} epoch" in epochs


@pytest.mark.parametrize(
    ("settings", "images", "words"),
    [
        ({}, 1000, ["only 63 others", "`per_device_train_batch_size=128`", "`mini_batch_size=64`"]),
        ({"mini_batch_size": "8"}, 1000, ["only 63 others", "`mini_batch_size=8`"]),
        ({"gradient_accumulation_steps": 8, "objective": "local"}, 1000, ["only 63 others"]),
        ({"per_device_train_batch_size": 128, "mini_batch_size": 8}, 1000, []),
        ({"global_weight": 0.0, "local_weight": 0.0}, 1000, []),  # TSL contrasts nothing
        ({}, 100, []),  # there are no more
    ],
)
def test_small_contrastive_batches_are_told_what_helps(settings, images, words, tmp_path):
    args = FastGoalTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    run = TrainingRun(args, args.resolved_objective(), False, 100.0, torch.nn.Linear(1, 1), range(images))
    hint = small_batch_hint(run)
    assert bool(hint) == bool(words)
    assert all(word in hint for word in words)


def test_without_an_evaluation_the_next_command_names_what_is_missing():
    assert end_lines("out", {}, None, False).splitlines()[1:] == [
        "Next: fastgoal evaluate --model out --data TEST-DATA"
    ]


def test_only_pairs_have_a_number_of_pairs(tmp_path, squares):
    assert pairs_of(str(squares)) == 24
    assert pairs_of(str(tmp_path)) is None
    (squares / MANIFEST).write_text("[]")
    assert pairs_of(str(squares)) is None
