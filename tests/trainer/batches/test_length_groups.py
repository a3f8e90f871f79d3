"""Batches of captions of like length."""

import pytest
import torch

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches.length_groups import CaptionLengthSampler
from fastgoal.trainer.batches.pair_data import PairData


def batches_of(sampler, size):
    return torch.tensor(list(sampler)).split(size)


def test_every_row_comes_once_and_batches_are_alike():
    lengths = torch.randint(10, 200, (103,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = CaptionLengthSampler(lengths, 10, seed=1)
    batches = batches_of(sampler, 10)
    assert sorted(torch.cat(batches).tolist()) == list(range(103))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    # One pool: the full batches are the sorted rows, cut, in a random order.
    ranges = [(max(lengths[i] for i in batch), min(lengths[i] for i in batch)) for batch in batches[:-1]]
    ordered = sorted(ranges, reverse=True)
    assert ranges != ordered
    assert all(ordered[i][1] >= ordered[i + 1][0] for i in range(9))


def test_epochs_differ_and_come_again():
    sampler = CaptionLengthSampler(list(range(100)), 4, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(sampler) == list(CaptionLengthSampler(list(range(100)), 4, seed=2))


def test_a_batch_has_rows():
    with pytest.raises(ValueError, match="batch_size"):
        CaptionLengthSampler([1, 2], 0)


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_the_trainer_groups_and_resumes(tiny_clip, rows, pairs_folder, tmp_path, kind):
    data = rows if kind == "list" else PairData(str(pairs_folder))
    seen = []

    def trainer(**changes):
        processor = FastGoalProcessor.from_clip(str(tiny_clip))
        args = FastGoalTrainingArguments(
            output_dir=str(tmp_path / "run"),
            group_by_caption_length=True,
            per_device_train_batch_size=4,
            num_train_epochs=2,
            dataloader_num_workers=0,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=4,
            **changes,
        )
        made = FastGoalTrainer(
            model=FastGoalCLIPModel.from_clip(str(tiny_clip)), args=args, processing_class=processor, train_dataset=data
        )
        collate = made.data_collator

        def collator(batch):
            seen[-1].append([row["caption"] for row in batch])
            return collate(batch)

        made.data_collator = collator
        seen.append([])
        return made

    trainer().train()
    whole = seen[-1]
    assert len(whole) == 6
    for epoch in (whole[:3], whole[3:]):
        assert sorted(caption for batch in epoch for caption in batch) == sorted(row["caption"] for row in rows)
        spreads = [max(map(len, batch)) - min(map(len, batch)) for batch in epoch]
        assert sum(spreads) <= max(len(row["caption"]) for row in rows) - min(len(row["caption"]) for row in rows)
    trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert seen[-1][-2:] == whole[4:]


def test_lengths_do_not_touch_images(pairs_folder, rows, tmp_path):
    assert PairData(str(pairs_folder)).caption_lengths() == [len(row["caption"]) for row in rows]
    assert PairData(str(pairs_folder), limit=3).caption_lengths() == [len(row["caption"]) for row in rows[:3]]
    lines = '{"file_name": "no.png", "captions": ["ab", "cde."]}\n{"file_name": "no.png", "captions": ["x"]}\n'
    (tmp_path / "metadata.jsonl").write_text(lines)
    data = PairData(str(tmp_path))
    assert data.caption_lengths() == [len(data.source[i].caption) for i in range(2)]
