"""Orders of rows: batches of captions of similar length, and batches with hard negatives."""

import pytest
import torch

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches.hard_negatives import nearest_rows
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.samplers import CaptionLengthSampler, HardNegativeSampler
from tests.trainer.recording import RecordingCollator


def batches_of(sampler, size):
    return torch.tensor(list(sampler)).split(size)


def test_every_row_comes_once_and_lengths_are_similar():
    lengths = torch.randint(10, 200, (103,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = CaptionLengthSampler(lengths, 10, seed=1)
    batches = batches_of(sampler, 10)
    assert sorted(torch.cat(batches).tolist()) == list(range(103))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    lengths = list(range(1000))
    batches = batches_of(CaptionLengthSampler(lengths, 10, seed=1), 10)
    assert max(int(batch.max() - batch.min()) for batch in batches) <= 90 + 20
    means = torch.stack([batch.float().mean() for batch in batches])
    assert (means.diff() > 0).any()


@pytest.mark.parametrize("size", [64, 256])
def test_batches_seldom_repeat_and_have_little_padding(size):
    """10,000 captions with lengths as in DOCCI: 139 tokens on average with a deviation of 47, truncated at 248."""
    generator = torch.Generator().manual_seed(0)
    lengths = (139 + 47 * torch.randn(10_000, generator=generator)).clamp(20, 248).round()
    sampler = CaptionLengthSampler(lengths.tolist(), size, seed=4)
    full = len(lengths) // size * size
    met = torch.zeros(10_000, dtype=torch.long)
    last, meetings, padding = torch.zeros(10_000), [], []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        order = torch.tensor(list(sampler))
        assert sorted(order.tolist()) == list(range(10_000))
        last[order[full:]] += 1
        batches = order[:full].reshape(-1, size)
        padding.append(1 - lengths[batches].sum() / (lengths[batches].amax(dim=1).sum() * size))
        if epoch:
            same = torch.stack([met[batch].bincount(minlength=full // size + 1)[:-1] for batch in batches])
            meetings.append((same * (same - 1)).sum() / (full * (size - 1)))
        met = torch.full((10_000,), full // size)
        met[batches] = torch.arange(full // size)[:, None]
    assert max(meetings) <= 0.10
    assert max(padding) < 0.15
    assert last.max() <= 4
    assert (last > 0).sum() >= 0.6 * 10 * (10_000 - full)


def test_epochs_differ_and_are_reproducible():
    sampler = CaptionLengthSampler(list(range(100)), 4, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(sampler) == list(CaptionLengthSampler(list(range(100)), 4, seed=2))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size"):
        CaptionLengthSampler([1, 2], 0)


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_the_trainer_groups_and_resumes(tiny_clip, rows, pairs_folder, tmp_path, kind):
    data = rows if kind == "list" else TrainingData(str(pairs_folder))

    def train(checkpoint=None):
        processor = FastGoalProcessor.from_base(str(tiny_clip))
        collator = RecordingCollator(processor)
        args = FastGoalTrainingArguments(
            output_dir=str(tmp_path / "run"),
            train_sampling_strategy="group_by_length",
            per_device_train_batch_size=4,
            num_train_epochs=2,
            dataloader_num_workers=0,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=4,
        )
        model = FastGoalCLIPModel.from_base(str(tiny_clip))
        trainer = FastGoalTrainer(model, args, processing_class=processor, data_collator=collator, train_dataset=data)
        trainer.train(checkpoint)
        return collator.seen

    whole = train()
    assert len(whole) == 6
    for epoch in (whole[:3], whole[3:]):
        assert sorted(caption for batch in epoch for caption in batch) == sorted(row["caption"] for row in rows)
        spreads = [max(map(len, batch)) - min(map(len, batch)) for batch in epoch]
        assert sum(spreads) <= max(len(row["caption"]) for row in rows) - min(len(row["caption"]) for row in rows)
    assert train(str(tmp_path / "run" / "checkpoint-4"))[-2:] == whole[4:]


@pytest.fixture
def twins():
    """40 embeddings; 2k and 2k + 1 are close together, all others far apart."""
    centers = torch.eye(20).repeat_interleave(2, dim=0)
    noise = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(centers + 0.05 * noise, dim=-1)


def test_few_rows():
    assert nearest_rows(torch.ones(0, 4)).shape[0] == 0
    assert nearest_rows(torch.ones(1, 4)).shape == (1, 0)
    assert list(HardNegativeSampler(nearest_rows(torch.ones(1, 4)), 4)) == [0]
    assert list(HardNegativeSampler(nearest_rows(torch.ones(0, 4)), 4)) == []


def test_twins_share_a_batch_and_every_row_comes_once(twins):
    sampler = HardNegativeSampler(nearest_rows(twins, 1), 8, seed=3)
    together = 0
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(40))
        batches = [set(order[i : i + 8]) for i in range(0, 40, 8)]
        together += sum({2 * k, 2 * k + 1} <= batch for k in range(20) for batch in batches)
    # The first of the two skips the other with probability 0.3; at random they would meet in 18 of 100.
    assert together >= 0.6 * 5 * 20


def test_a_neighbor_is_skipped_three_times_in_ten(twins):
    """With one neighbor each and batches of two, 70 % of the twins are a batch, and few of the others by chance."""
    sampler = HardNegativeSampler(nearest_rows(twins, 1), 2, seed=3)
    met = 0
    for epoch in range(200):
        sampler.set_epoch(epoch)
        met += sum({2 * k, 2 * k + 1} == {*batch.tolist()} for batch in batches_of(sampler, 2) for k in range(20))
    assert 0.68 <= met / (200 * 20) <= 0.76


def test_the_nearest_free_neighbor_is_taken():
    """Three rows, and one without neighbors. A row takes its first neighbor with 0.7, its second with 0.21."""
    sampler, epochs = HardNegativeSampler(torch.tensor([[1, 2], [0, 2], [1, 0], [-1, -1]]), 2, seed=3), 1000
    met = {(0, 1): 0, (1, 2): 0, (0, 2): 0}
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches = [{*batch.tolist()} for batch in batches_of(sampler, 2)]
        for pair in met:
            met[pair] += {*pair} in batches
    # If the row that is visited first skips both, the other two pair up with 0.7.
    expected = {(0, 1): (0.7 + 0.7 + 0.063) / 3, (1, 2): (0.7 + 0.21 + 0.063) / 3, (0, 2): (0.21 + 0.21 + 0.063) / 3}
    for pair, share in expected.items():
        assert met[pair] / epochs == pytest.approx(share, abs=0.05)


def test_epochs_of_twins_differ_and_are_reproducible(twins):
    near = nearest_rows(twins)
    sampler = HardNegativeSampler(near, 8, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(sampler) == list(HardNegativeSampler(near, 8, seed=2))


def test_pairs_of_similar_length_share_a_batch(twins):
    lengths = torch.randint(10, 200, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    near = nearest_rows(twins)

    def padding(sampler):
        order = list(sampler)
        batches = [[lengths[row] for row in order[i : i + 8]] for i in range(0, 40, 8)]
        return sum(8 * max(batch) - sum(batch) for batch in batches)

    assert padding(HardNegativeSampler(near, 8, lengths=lengths)) < 0.8 * padding(HardNegativeSampler(near, 8))


def test_a_batch_of_odd_size_and_a_short_last_one(twins):
    order = list(HardNegativeSampler(nearest_rows(twins), 7))
    assert sorted(order) == list(range(40))
