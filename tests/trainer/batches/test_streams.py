"""Rows of a stream: each comes once an epoch, in a shuffled order, and a resumed training starts at the next row."""

import json
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches.streams import StreamData
from fastgoal.trainer.batches.workers import end_workers
from fastgoal.trainer.checkpoints import checkpoints
from fastgoal.trainer.run import main
from tests.squares import write_pairs
from tests.tiny_trainers import make_trainer

COUNT, SHARDS = 24, 4


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    """Numbered rows in shards of six."""
    many = [{**rows[number % len(rows)], "file_name": f"{number:02d}"} for number in range(COUNT)]
    return str(write_pairs(many, tmp_path_factory.mktemp("pairs") / "data", SHARDS).parent)


def settings(rank=0, processes=1, workers=0, **more):
    defaults = {
        "order_seed": 0,
        "hard_negatives": False,
        "train_sampling_strategy": "random",
        "dataloader_drop_last": False,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": -1,
    }
    return SimpleNamespace(
        process_index=rank,
        world_size=processes,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=None,
        dataloader_pin_memory=False,
        recipe="paper",
        output_dir=".",
        **{**defaults, **more},
    )


def numbers(rows):
    """Collate the numbers of the rows and their epochs."""
    return {"rows": [int(row.name) for row in rows], "epochs": [row.epoch for row in rows]}


def stream(folder, window=4, rows=COUNT, **options):
    data = StreamData(folder, window)
    data.rows = rows
    data.prepare(settings(**options), needs_pairs=True)
    return data


def batches(data, count, **options):
    """Some batches, each noted as trained on."""
    trained, epochs = [], data.loader(settings(**options), numbers, torch.device("cpu"))
    for batch in islice((batch for _ in range(count) for batch in epochs), count):
        data.note(batch.pop("position"))
        trained.append(batch)
    end_workers([epochs])
    return trained


def order(trained):
    return [number for batch in trained for number in batch["rows"]]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (1, 2), (2, 2), (3, 0)])
def test_every_row_comes_once_an_epoch(folder, processes, workers):
    parts = []
    for rank in range(processes):
        options = {"rank": rank, "processes": processes, "workers": workers}
        parts.append(order(batches(stream(folder, **options), COUNT // processes // 2, **options)))
    assert Counter(number for part in parts for number in part) == Counter(range(COUNT))
    assert [*map(len, parts)] == [COUNT // processes] * processes


def test_the_order_depends_on_epoch_and_seed(folder):
    epochs = batches(stream(folder), 36)
    assert [batch["epochs"] for batch in epochs] == [[epoch] * 2 for epoch in (0, 1, 2) for _ in range(12)]
    first, second, third = (order(epochs[start : start + 12]) for start in (0, 12, 24))
    for one, other in ((first, second), (second, third), (first, third), (first, sorted(first))):
        assert one != other
        assert one[:6] != other[:6]
    assert order(batches(stream(folder), 12)) == first
    assert order(batches(stream(folder, order_seed=1), 12)) != first
    # With a window of one row, only the order of the shards is random.
    plain = order(batches(stream(folder, window=1), 60))
    shards = [plain[start : start + 6] for start in range(0, 120, 6)]
    assert all(shard == [*range(shard[0], shard[0] + 6)] and shard[0] % 6 == 0 for shard in shards)
    assert len({tuple(shard[0] for shard in shards[start : start + 4]) for start in range(0, 20, 4)}) > 2


@pytest.mark.parametrize(("workers", "size"), [(0, 5), (0, 24), (0, 25), (2, 5), (2, 7), (3, 11), (4, 5), (4, 9)])
def test_one_process_sees_every_row_once_in_every_epoch(folder, workers, size):
    """Shards have 6 rows, so workers have rows left that are fewer than a batch takes."""
    options = {"workers": workers, "train_batch_size": size}
    steps = -(-COUNT // size)
    data = stream(folder, window=5, **options)
    assert len(data.loader(settings(**options), numbers, torch.device("cpu"))) == steps
    trained = batches(data, 3 * steps, **options)
    for epoch in range(3):
        own = trained[epoch * steps : (epoch + 1) * steps]
        assert sorted(order(own)) == [*range(COUNT)]
        assert {number for batch in own for number in batch["epochs"]} == {epoch}
        assert [len(batch["rows"]) for batch in own[:-1]] == [min(size, COUNT)] * (steps - 1)
    assert order(trained[:steps]) != order(trained[steps : 2 * steps])


def test_the_last_batch_can_be_dropped(folder):
    for size, steps, rows in ((5, 4, 20), (24, 1, 24), (30, 1, 24)):
        options = {"workers": 2, "train_batch_size": size, "dataloader_drop_last": True}
        data = stream(folder, **options)
        assert len(data.loader(settings(**options), numbers, torch.device("cpu"))) == steps
        for epoch in (0, 1):
            own = batches(data, 2 * steps, **options)[epoch * steps :][:steps]
            data.begin(None)
            assert len({*order(own)}) == rows


def test_several_processes_make_the_same_number_of_full_batches(folder):
    for size in (1, 5, 7):
        for rank in (0, 1, 2):
            options = {"rank": rank, "processes": 3, "train_batch_size": size}
            loader = stream(folder, **options).loader(settings(**options), numbers, torch.device("cpu"))
            assert len(loader) == -(-COUNT // (3 * size))
            for _ in range(2):
                assert [len(batch["rows"]) for batch in loader] == [size] * len(loader)


def test_without_a_number_of_rows_an_epoch_is_the_whole_training(folder):
    options = {"max_steps": 20, "gradient_accumulation_steps": 2}
    data = stream(folder, rows=None, **options)
    loader = data.loader(settings(**options), numbers, torch.device("cpu"))
    trained = [*loader]
    assert len(loader) == len(trained) == 40
    assert [batch["epochs"] for batch in trained] == [[epoch] * 2 for epoch in (0, 1, 2) for _ in range(12)] + [
        [3, 3]
    ] * 4


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 3, 1), (2, 3, 2), (0, 1, 1), (0, 1, 3))]


@pytest.mark.parametrize("known", [COUNT, None])
@pytest.mark.parametrize(("rank", "processes", "workers"), [(0, 1, 0), (2, 3, 0), (0, 1, 2), (1, 2, 2), *SLOW])
def test_a_stream_resumes_at_the_next_row(folder, tmp_path, workers, rank, processes, known):
    more = {"max_steps": 30, "train_batch_size": 5 if (processes, known) == (1, COUNT) else 2}
    options = {"rank": rank, "processes": processes, "workers": workers, **more}
    whole = batches(stream(folder, window=5, rows=known, **options), 20, **options)
    # In an epoch of five batches: after its first, third, fourth and last, and the same in later epochs.
    for trained in (1, 3, 4, 5, 9, 10, 12, 14) if (workers, rank) in ((0, 0), (2, 0)) else (1, 12):
        before = stream(folder, window=5, rows=known, **options)
        assert batches(before, trained, **options) == whole[:trained]
        before.save(tmp_path)
        after = stream(folder, window=5, rows=known, **options)
        after.begin(str(tmp_path))
        assert batches(after, 4, **options) == whole[trained : trained + 4]
        # And from there once more.
        after.save(tmp_path)
        again = stream(folder, window=5, rows=known, **options)
        again.begin(str(tmp_path))
        assert batches(again, 2, **options) == whole[trained + 4 : trained + 6]


def test_no_more_workers_than_shards(folder):
    assert stream(folder, workers=9).workers == 4
    assert stream(folder, workers=9, processes=2).workers == 2
    assert stream(folder, workers=3).workers == 3


def test_shards_that_cannot_be_divided_evenly_are_logged(folder, monkeypatch):
    warnings = []
    monkeypatch.setattr("fastgoal.trainer.batches.streams.logger.warning", warnings.append)
    stream(folder, processes=2)
    assert not warnings
    stream(folder, processes=3)
    assert "4 shards cannot be divided evenly among 3 processes" in warnings[0]


def test_streams_refuse_what_needs_all_rows(folder, tmp_path, rows):
    for wrong, words in (
        (
            {"hard_negatives": True, "recipe": "experimental"},
            r"`hard_negatives=False`.*experimental.*`streaming`",
        ),
        (
            {"train_sampling_strategy": "group_by_length"},
            r"`train_sampling_strategy=group_by_length`.*`streaming`",
        ),
    ):
        arguments = settings()
        arguments.__dict__.update(wrong)
        with pytest.raises(ValueError, match=words):
            StreamData(folder).prepare(arguments, needs_pairs=True)
    bare = [{name: row[name] for name in ("image", "caption")} for row in rows]
    write_pairs(bare, tmp_path / "bare")
    with pytest.raises(ValueError, match="has no column 'pairs'"):
        StreamData(str(tmp_path / "bare")).prepare(settings(), needs_pairs=True)
    data = stream(folder, workers=2)
    with pytest.raises(ValueError, match=r"stream_0.json.*cannot be read.*`ignore_data_skip"):
        data.begin(str(tmp_path))
    stream(folder).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"1 processes and 1 workers, this training has 1 and 2.*`dataloader_num_workers`"
    ):
        data.begin(str(tmp_path))
    with pytest.raises(ValueError, match="`max_steps` instead of `num_train_epochs`"):
        stream(folder, rows=None)


def train(clip, folder, output, resume=None, **more):
    args = FastGoalTrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=4,
        max_steps=8,
        learning_rate=1e-3,
        pair_sampling="any",
        save_strategy="steps",
        save_steps=5,
        use_cpu=True,
        disable_tqdm=True,
        **{"dataloader_num_workers": 2, **more},
    )
    trainer = FastGoalTrainer(
        model=FastGoalCLIPModel.from_base(clip),
        args=args,
        processing_class=FastGoalProcessor.from_base(clip),
        train_dataset=StreamData(folder, window=5),
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]), trainer


def test_a_resumed_training_from_a_stream_is_uninterrupted(tiny_clip, folder, tmp_path):
    whole, trainer = train(tiny_clip, folder, tmp_path)
    checkpoint = str(tmp_path / "checkpoint-5")
    resumed, _ = train(tiny_clip, folder, tmp_path / "resumed", checkpoint)
    assert torch.equal(whole, resumed)
    over, other = train(tiny_clip, folder, tmp_path / "over", checkpoint, ignore_data_skip=True)
    assert not torch.equal(whole, over)
    assert (other.args.ignore_data_skip, trainer.args.ignore_data_skip) == (True, False)
    # A finished training trains nothing.
    finished, again = train(tiny_clip, folder, tmp_path, True)
    assert torch.equal(whole, finished)
    assert again.state.global_step == 8
    assert trainer._even_batches
    card = (tmp_path / "README.md").read_text()
    assert "24 images" in card
    assert "8 (1.33 epochs)" in card


def test_epochs_are_logged_evaluated_and_saved(tiny_clip, folder, rows, tmp_path):
    """24 rows in batches of 5, in three epochs of five steps."""
    settings = {
        "per_device_train_batch_size": 5,
        "num_train_epochs": 3,
        "dataloader_num_workers": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": None,
        "pair_sampling": "any",
    }

    def trainer(output):
        return make_trainer(tiny_clip, output, StreamData(folder, window=5), rows[:4], **settings)

    whole = trainer(tmp_path)
    result = whole.train()
    history = whole.state.log_history
    logged = [line["epoch"] for line in history if "loss" in line]
    assert logged == pytest.approx([step / 5 for step in range(1, 16)], abs=1e-3)
    assert [(line["epoch"], line["step"]) for line in history if "eval_loss" in line] == [(1, 5), (2, 10), (3, 15)]
    assert sorted(step for step, _ in checkpoints(tmp_path)) == [5, 10, 15]
    samples = result.metrics["train_samples_per_second"] * result.metrics["train_runtime"]
    assert samples == pytest.approx(3 * COUNT, rel=0.01)
    resumed = trainer(tmp_path / "resumed")
    resumed.train(str(tmp_path / "checkpoint-5"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_evaluation_on_a_stream_is_refused(tiny_clip, folder, rows, tmp_path):
    for data in (StreamData(folder), {"first": rows, "second": StreamData(folder)}):
        with pytest.raises(ValueError, match=r"`eval_dataset` .*stream of '.*`load_source`"):
            make_trainer(tiny_clip, tmp_path, rows, data)


@pytest.mark.slow
def test_the_command(tiny_clip, folder, tmp_path, capsys):
    common = ["--model", str(tiny_clip), "--train_data", folder, "--use_cpu", "--dataloader_num_workers", "0"]
    options = [*common, "--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "6"]
    assert main([*options, "--streaming", "true", "--num_train_epochs", "2", "--card_images", "false"]) == 0
    assert json.loads((tmp_path / "out/trainer_state.json").read_text())["global_step"] == 2 * COUNT // 6
    assert AutoModel.from_pretrained(tmp_path / "out").config.text_config.max_position_embeddings == 248
    with pytest.raises(SystemExit):
        main([*options, "--streaming", "true", "--max_train_rows", "3"])
    assert "max_train_rows" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"`hard_negatives=False`"):
        main([*options, "--overwrite_output_dir", "--streaming", "true", "--recipe", "experimental"])
