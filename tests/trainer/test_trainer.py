"""Training on a small dataset: the loss and its parts, accumulation, resuming, evaluation, recipes."""

import json

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from fastgoal import FastGoalCLIPModel, FastGoalModel, FastGoalProcessor
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.card import training_facts
from tests.tiny_trainers import make_trainer
from tests.trainer.kinds import KINDS, of_kind


@pytest.fixture
def trainer_for(tiny_clip, rows, tmp_path):
    def make(folder="run", train=None, **changes):
        return make_trainer(tiny_clip, tmp_path / folder, rows if train is None else train, rows, **changes)

    return make


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}


def test_objective_local_skips_whole_images_and_captions(trainer_for, rows):
    trainer = trainer_for(objective="local")
    batch = trainer.data_collator(rows[:5])
    seen = []
    trainer.model.vision_model.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    trainer.model.text_model.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    assert seen == [5, 5]
    assert loss.item() == pytest.approx(trainer.model(**batch, return_loss=True).loss_local.item(), rel=1e-6)
    assert trainer.evaluate()["eval_text_to_image_R@1"] >= 0  # evaluations use them


def test_the_log_and_the_card_have_sparcs_part(trainer_for):
    trainer = trainer_for(objective="sparc", max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(0.5 * line["loss_global"] + line["loss_sparc"], abs=1e-3)
    facts = training_facts(trainer._run(), trainer.state)
    assert facts.weights == {"global": 0.5, "SPARC": 1.0}
    assert facts.losses[0]["loss_sparc"] == line["loss_sparc"]


def test_every_log_line_has_the_loss_parts(trainer_for):
    trainer = trainer_for()
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        total = line["loss_global"] + 0.5 * line["loss_local"] + line["loss_tsl_image"] + line["loss_tsl_text"]
        assert line["loss"] == pytest.approx(total, abs=1e-3)


def test_accumulated_batches_average(trainer_for, rows):
    # Two accumulated batches of the same four rows are one step on these rows.
    changes = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    once = trainer_for("once", train=rows[:4], **changes)
    once.train()
    twice = trainer_for("twice", train=rows[:4] * 2, gradient_accumulation_steps=2, **changes)
    once_log = once.state.log_history[0]
    twice.train()
    assert twice.state.global_step == once.state.global_step == 1
    assert twice.state.log_history[0]["grad_norm"] == pytest.approx(once_log["grad_norm"], rel=1e-3)
    assert twice.state.log_history[0]["loss"] == pytest.approx(once_log["loss"], rel=1e-4)


def test_training_improves_retrieval_and_the_losses(trainer_for):
    trainer = trainer_for(num_train_epochs=50, per_device_train_batch_size=12, learning_rate=3e-3, logging_steps=25)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for direction in ("text_to_image", "image_to_text"):
        assert before[f"eval_{direction}_R@1"] < 40
        assert after[f"eval_{direction}_R@1"] > 70
    assert after["eval_loss_global"] < before["eval_loss_global"] / 3
    assert after["eval_loss_tsl_image"] < before["eval_loss_tsl_image"] / 5


def test_evaluation_loss_is_the_mean_over_batches(trainer_for, rows):
    trainer = trainer_for(per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    parts = [
        trainer.loss_parts(model(**batch), batch)
        for batch in map(trainer.data_collator, (rows[:4], rows[4:8], rows[8:]))
    ]
    for name in ("loss", "loss_global", "loss_local", "loss_tsl_image", "loss_tsl_text"):
        expected = sum(part[name].item() for part in parts) / 3
        assert metrics[f"eval_{name}"] == pytest.approx(expected, rel=1e-4)


def test_evaluations_read_all_rows_when_training_drops_the_last_batch(trainer_for, rows):
    """`Trainer` drops the rest of the evaluation data too: with few rows, nothing would be measured."""
    names = ("eval_loss", "eval_text_to_image_R@1", "eval_image_to_text_mean_rank")
    found = []
    for drops in (False, True):
        trainer = trainer_for(f"{drops}", dataloader_drop_last=drops, per_device_eval_batch_size=len(rows) - 2)
        metrics = trainer.evaluate()
        found.append([metrics[name] for name in names])
        assert trainer.args.dataloader_drop_last is drops
    assert found[0] == found[1]


def test_pairs_are_drawn_for_training_only(trainer_for, rows):
    """`pair_sampling` applies to training batches; evaluations use the best pair, so that their losses compare."""
    two = [
        {**row, "pairs": [{**row["pairs"][0], "region": 1 - row["pairs"][0]["region"]}, *row["pairs"]]} for row in rows
    ]
    best, any_pair = trainer_for("best", train=two), trainer_for("any", train=two, pair_sampling="any")
    assert any_pair.evaluate()["eval_loss"] == best.evaluate()["eval_loss"]
    assert any_pair.data_collator.pair_sampling == "any"
    best_ones, drawn = ({str(batch["region_mask"]) for batch in one.get_train_dataloader()} for one in (best, any_pair))
    assert best_ones != drawn


def test_a_checkpoint_holds_model_and_processor(trainer_for, tmp_path):
    trainer = trainer_for(save_strategy="epoch")
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-3"
    model, processor = FastGoalCLIPModel.from_pretrained(folder), FastGoalProcessor.from_pretrained(folder)
    assert model.config.text_config.max_position_embeddings == processor.tokenizer.model_max_length == 248
    for name, expected in weights(trainer).items():
        assert torch.equal(model.state_dict()[name], expected), name
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"


def test_missing_pairs_are_refused_if_the_objective_needs_them(trainer_for, tmp_path, rows):
    import datasets

    folder = tmp_path / "plain"
    folder.mkdir()
    plain = [{"image": row["image"], "caption": row["caption"]} for row in rows]
    datasets.Dataset.from_list(plain).cast_column("image", datasets.Image()).to_parquet(folder / "a.parquet")
    data = TrainingData(str(folder))
    for changes in ({}, {"objective": "goal"}, {"objective": "local"}, {"objective": "sparc", "tsl_weight": 1.0}):
        with pytest.raises(ValueError, match=r"no local pairs.*objective global"):
            trainer_for(train=data, **changes)
    for objective in ("global", "sparc"):
        trainer_for(train=data, objective=objective).train()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_all_kinds_train_the_same(trainer_for, rows, tmp_path, kind):
    """By length and with hard negatives; rows on disk with workers too."""
    changes = {"max_steps": 2, "hard_negatives": True, "train_sampling_strategy": "group_by_length"}
    whole = trainer_for("whole", **changes)
    whole.train()
    workers = 2 if kind == KINDS[-1] else 0
    data = of_kind(kind, rows, tmp_path / "data")
    trainer = trainer_for(train=data, dataloader_num_workers=workers, **changes)
    trainer.train()
    for got, expected in zip(trainer.state.log_history[:2], whole.state.log_history[:2], strict=True):
        assert got["loss"] == expected["loss"]
        assert got["loss_tsl_image"] == expected["loss_tsl_image"]


@pytest.mark.slow
def test_workers_read_images_that_are_still_open_files(trainer_for, tiny_clip, rows, tmp_path):
    """Workers share the open files that such images hold, and each must still get its own pixels."""
    files = [tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}" for number in range(len(rows))]
    for file in files:  # noise, so that a file is larger than a read buffer
        Image.effect_noise((160, 160), 80).convert("RGB").save(file)
    captions, changes = [row["caption"] for row in rows], {"max_steps": 3}
    model = FastGoalModel.from_base(str(tiny_clip))
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    whole = trainer_for("whole", train=processor.pair_rows(files, captions, model), **changes)
    whole.train()
    unread = processor.pair_rows([Image.open(file) for file in files], captions, model)
    assert all(row["image"].tile for row in unread)
    trainer = trainer_for(train=unread, dataloader_num_workers=2, **changes)
    trainer.train()
    for got, expected in zip(trainer.state.log_history[:3], whole.state.log_history[:3], strict=True):
        assert got["loss"] == expected["loss"]


def test_a_row_without_pairs_is_refused_by_name(trainer_for, rows):
    broken = [*rows[:7], {**rows[7], "pairs": []}, *rows[8:]]
    with pytest.raises(ValueError, match=rf"`train_dataset`: 1 of 12 .*row 7 \({rows[7]['file_name']}\)"):
        trainer_for(train=broken)
    trainer_for(train=broken, objective="global")
    with pytest.raises(TypeError, match="single row"):
        trainer_for(train=rows[0])


class Norms(TrainerCallback):
    """Record the gradient norm that the optimizer sees."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())


def test_recipe_goal_trains_as_goals_code(trainer_for, rows):
    """All parameters decay, gradients are not clipped, and the last 4 of 20 rows are dropped."""
    trainer = trainer_for(train=[*rows, *rows[:8]], recipe="goal", per_device_train_batch_size=None, sparc_weight=100.0)
    norms = Norms()
    trainer.add_callback(norms)
    trainer.train()
    assert trainer.state.global_step == 1
    assert norms.seen[0] > 1.5  # the recipe `paper` would clip it to 1
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norms.seen[0], rel=1e-4)
    decayed = {
        id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] == 0.05 for p in group["params"]
    }
    assert decayed == {id(p) for p in trainer.model.parameters()}
    assert training_facts(trainer._run(), trainer.state).settings["decay_all"] is True

    paper = trainer_for("paper", train=[*rows, *rows[:8]], sparc_weight=100.0, per_device_train_batch_size=16)
    norms = Norms()
    paper.add_callback(norms)
    paper.train()
    assert paper.state.global_step == 2
    assert norms.seen[0] == pytest.approx(1.0, abs=1e-3)
    names = {id(p): name for name, p in paper.model.named_parameters()}
    free = {
        names[id(p)] for group in paper.optimizer.param_groups if not group["weight_decay"] for p in group["params"]
    }
    assert free == {name for name in names.values() if name.endswith("bias") or "norm" in name}
    assert "decay_all" not in training_facts(paper._run(), paper.state).settings
