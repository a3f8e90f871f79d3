"""Neighbors of the training images: which they are, and that a resumed training keeps them."""

import os
import random
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch.utils.data import IterableDataset

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches import hard_negatives as neighbors
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.card import training_facts
from fastgoal.trainer.checkpoints import newest_checkpoint
from tests.trainer.recording import RecordingCollator

TWINS = 8


def scene(number: int, detail: bool) -> Image.Image:
    """An image of two colors; with the detail there is one more square."""
    color = (number * 37 % 256, number * 91 % 256, number * 151 % 256)
    image = Image.new("RGB", (32, 32), color)
    draw = ImageDraw.Draw(image)
    other = tuple(255 - value for value in color)
    draw.rectangle((0, 0, 15, 15) if number % 2 else (16, 16, 31, 31), fill=other)
    if detail:
        draw.rectangle((20, 3, 25, 8), fill=other)
    return image


@pytest.fixture(scope="module")
def twins():
    """16 rows; rows k and k + 8 are equal but for a detail."""
    return [
        {"image": scene(number, detail), "caption": "It is so." + number * " Very." + detail * " With a square."}
        for detail in (False, True)
        for number in range(TWINS)
    ]


@pytest.fixture(scope="module")
def twins_folder(twins, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    data = datasets.Dataset.from_list(twins).cast_column("image", datasets.Image())
    data.to_parquet(folder / "a.parquet")
    return folder


@pytest.fixture
def make(tiny_clip, twins, tmp_path):
    def trainer(data=twins, folder="run", model=None, **changes):
        settings = {
            "hard_negatives": True,
            "objective": "global",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        processor = FastGoalProcessor.from_base(str(tiny_clip))
        return FastGoalTrainer(
            model=model or FastGoalCLIPModel.from_base(str(tiny_clip)),
            args=FastGoalTrainingArguments(output_dir=str(tmp_path / folder), **{**settings, **changes}),
            processing_class=processor,
            data_collator=RecordingCollator(processor, local_pairs=False),
            train_dataset=data,
        )

    return trainer


def find(trainer, data):
    """The neighbors that the trainer finds."""
    return trainer._find_neighbors(data)


def epochs(sampler, count):
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield list(sampler)


@pytest.mark.parametrize("kind", ["list", "folder", "workers"])
def test_the_nearest_is_the_twin(make, twins, twins_folder, kind):
    data = twins if kind == "list" else TrainingData(str(twins_folder))
    found = find(make(data, dataloader_num_workers=2 if kind == "workers" else 0), data)
    assert found.shape == (16, 15)
    assert found[:, 0].tolist() == [*range(TWINS, 2 * TWINS), *range(TWINS)]


def test_rows_and_order_of_the_models_embeddings(make, twins):
    """Known answers: a model that embeds row i at angle i ** 2.5 / 500, so that all distances differ."""
    trainer = make()
    angles = torch.arange(16.0) ** 2.5 / 500
    pixels = trainer.processing_class(images=[row["image"] for row in twins])["pixel_values"]

    def embed(pixel_values):
        assert not trainer.model.training
        rows = [int((pixels == one).flatten(1).all(dim=1).nonzero()) for one in pixel_values]
        chosen = angles[rows]
        return SimpleNamespace(pooler_output=3 * torch.stack([chosen.cos(), chosen.sin()] * 8, dim=1))

    trainer.model.get_image_features = embed
    trainer.model.train()
    found = find(trainer, twins)
    assert trainer.model.training
    for row in range(16):
        others = sorted((i for i in range(16) if i != row), key=lambda i: (angles[i] - angles[row]).abs())
        # A small angle is the same image.
        others = [i for i in others if torch.cos(angles[i] - angles[row]) <= 0.9999]
        assert found[row, : len(others)].tolist() == others


def test_twins_come_together_in_training(make, twins):
    def met(**changes):
        trainer = make(num_train_epochs=6, max_steps=24, learning_rate=0.0, **changes)
        trainer.train()
        seen = trainer.data_collator.seen
        for epoch in range(6):
            batches = seen[4 * epoch : 4 * epoch + 4]
            assert sorted(caption for batch in batches for caption in batch) == sorted(row["caption"] for row in twins)
        captions = [row["caption"] for row in twins]
        pairs = [{captions[k], captions[k + TWINS]} for k in range(TWINS)]
        return sum(pair <= set(batch) for pair in pairs for batch in seen)

    # By chance 3 of 15 places are in the twin's batch: 10 of 48.
    assert met() >= 28
    assert met(hard_negatives=False) <= 18


def test_lengths_count_too(make, twins):
    lengths = torch.tensor([len(row["caption"]) for row in twins])

    def padding(trainer):
        batches = torch.tensor(list(epochs(trainer.train_sampler(trainer.train_dataset), 20))).view(-1, 4)
        return (4 * lengths[batches].amax(dim=1) - lengths[batches].sum(dim=1)).sum()

    assert padding(make(train_sampling_strategy="group_by_length")) < 0.8 * padding(make())


@pytest.mark.parametrize("folder", ["run", "elsewhere"])
def test_a_resumed_training_keeps_its_neighbors(make, tmp_path, monkeypatch, folder):
    """Neighbors are those of the model that the training started from, whatever model and folder it resumes with."""
    whole = make(save_strategy="steps", save_steps=5)
    whole.train()
    seen, before = whole.data_collator.seen, whole._neighbors
    trained = make(model=whole.model, folder="trained")
    assert not torch.equal(find(trained, trained.train_dataset), before)  # those of the trained model differ
    assert len(seen) == 8

    monkeypatch.setattr(neighbors, "_image_embeds", lambda *args: pytest.fail("embedded again"))
    resumed = make(folder=folder, model=whole.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert torch.equal(resumed._neighbors, before)
    assert resumed.data_collator.seen[-3:] == seen[5:]


@pytest.mark.parametrize("folder", ["run", pytest.param("elsewhere", marks=pytest.mark.slow)])
def test_neighbors_are_renewed_in_the_middle_of_a_training(make, twins, tmp_path, monkeypatch, folder):
    """After half of four epochs, neighbors are those of the current model, and a resumed training keeps them."""
    settings = {"hard_negative_refresh": 0.5, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 2}
    settings["save_total_limit"] = 8
    expected = []

    def recorded(trainer):
        find_neighbors = trainer._find_neighbors

        def found(data):
            inputs = trainer.processing_class([row["image"] for row in twins])
            with torch.no_grad():
                images = trainer.model.get_image_features(**inputs).pooler_output
            images = torch.nn.functional.normalize(images, dim=-1)
            expected.append((round(trainer.state.epoch or 0), neighbors.nearest_rows(images)))
            return find_neighbors(data)

        trainer._find_neighbors = found
        return trainer

    whole = recorded(make(**settings))
    whole.train()
    (start, first), (epoch, nearest) = expected
    assert (start, epoch) == (0, 2)
    assert not torch.equal(first, nearest)
    assert torch.equal(whole._neighbors, nearest)
    checkpoints = {step: tmp_path / "run" / f"checkpoint-{step}" for step in (6, 8, 10)}
    # The checkpoint at the end of the second epoch is from before the search.
    for step, (table, is_renewed) in {6: (first, False), 8: (first, False), 10: (nearest, True)}.items():
        kept, was_renewed = neighbors.load_neighbors(checkpoints[step])
        assert torch.equal(kept, table)
        assert was_renewed == is_renewed
        resumed = recorded(make(**settings, folder=folder if folder == "run" else f"{folder}-{step}"))
        resumed.train(resume_from_checkpoint=str(checkpoints[step]))
        assert resumed.data_collator.seen[-(16 - step) :] == whole.data_collator.seen[step:]
        assert len(expected) == (2 if is_renewed else 3)
        del expected[2:]


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: save_file({"x": torch.ones(1)}, file)])
def test_a_resume_without_its_neighbors_is_refused_unless_allowed(make, tmp_path, damage):
    settings = {"hard_negative_refresh": 0.5, "save_strategy": "steps", "save_steps": 6}
    make(**settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-6"
    damage(checkpoint / neighbors.FILE)
    with pytest.raises(ValueError, match=r"checkpoint-6/hard_negatives/neighbors.*`ignore_resume_mismatch=True`"):
        make(**settings).train(resume_from_checkpoint=str(checkpoint))
    allowed = make(**settings, ignore_resume_mismatch=True)
    assert allowed.train(resume_from_checkpoint=str(checkpoint)).global_step == 8


def test_neighbors_of_other_rows_are_not_used(make, twins, tmp_path):
    make(save_strategy="steps", save_steps=5).train()
    other = make(twins[:12], ignore_resume_mismatch=True)
    other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert other._neighbors.shape == (12, 11)


def test_a_truncated_file_makes_a_checkpoint_incomplete(make, tmp_path):
    make(save_strategy="steps", save_steps=4).train()
    file = tmp_path / "run" / "checkpoint-8" / neighbors.FILE
    os.truncate(file, file.stat().st_size // 2)
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-4"


def test_random_numbers_do_not_change(make, twins):
    def state():
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    for workers in (0, 1):
        trainer = make(folder=f"run{workers}", dataloader_num_workers=workers)
        torch.manual_seed(7)
        before = state()
        find(trainer, twins)
        after = state()
        assert torch.equal(before[0], after[0])
        assert before[1] == after[1]
        assert (before[2] == after[2]).all()


def test_a_broken_image_is_named(make, twins):
    rows = [*twins, {"image": {"bytes": b"not an image", "path": "broken.png"}, "caption": "x"}]
    with pytest.raises(ValueError, match=r"broken\.png"):
        make(rows).train()


def test_data_that_cannot_be_embedded_are_refused(make, twins):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from twins

    with pytest.raises(ValueError, match=r"`hard_negatives`.*rows by number"):
        make(Stream(), max_steps=1).train()
    trainer = make()
    trainer.processing_class = None
    with pytest.raises(ValueError, match="`processing_class`"):
        trainer.train()


def test_few_rows(make, twins):
    make(twins[:1], num_train_epochs=1).train()


def test_the_start_and_the_end_are_logged_and_the_card_says_it(make, twins, caplog, tmp_path):
    trainer = make(num_train_epochs=1)
    trainer.train()
    lines = [record.message for record in caplog.records if "Hard negatives" in record.message]
    assert len(lines) == 2
    assert "16" in lines[0]
    assert re.search(r"found in \d+ s", lines[1])
    settings = training_facts(trainer._run(), trainer.state).settings
    assert (settings["recipe"], settings["hard_negatives"]) == ("paper", True)
    assert "pair_sampling" not in settings  # the objective has no pairs
    trainer.save_model()
    # The neighbors are in the checkpoints only.
    assert [path.name for path in (tmp_path / "run").rglob("*.safetensors")] == ["model.safetensors"]


@pytest.fixture
def points():
    """40 embeddings; 2k and 2k + 1 are close together, all others far apart."""
    centers = torch.eye(20).repeat_interleave(2, dim=0)
    noise = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(centers + 0.05 * noise, dim=-1)


def test_nearest_rows_against_sorting_them_all(points):
    nearest = neighbors.nearest_rows(points, count=7, chunk=9)
    for row in range(40):
        others = sorted((other for other in range(40) if other != row), key=lambda other: -points[row] @ points[other])
        assert nearest[row].tolist() == others[:7]


def test_the_same_image_is_not_a_neighbor():
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.5]]), dim=-1)
    assert neighbors.nearest_rows(embeds, 5).tolist() == [[2, -1], [2, -1], [0, 1]]
