"""Typed rows, the datasets that make them, and what is checked before a training begins."""

import copy

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from fastgoal import FastGoalCollator, FastGoalProcessor
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.trainer.batches.rows import IterableTrainingData, TrainingData, TrainingRow, check_rows, source_of
from tests.squares import write_pairs
from tests.trainer.kinds import KINDS, of_kind


@pytest.fixture
def broken(rows):
    """Rows without pairs at numbers 5 and 11."""
    broken = copy.deepcopy(rows)
    broken[5]["pairs"] = []
    broken[-1]["pairs"] = []
    return broken


def values(row):
    return row.caption, row.name, row.regions, row.sentences, row.pairs, row.short_captions


@pytest.mark.parametrize("kind", [*KINDS, "subset", "source"])
def test_rows_of_any_dataset_make_the_same_batch(rows, tmp_path, tiny_clip, kind):
    data = of_kind(kind, rows, tmp_path / "data") if kind in KINDS else TrainingData(write_parts(rows, tmp_path))
    data = {"subset": lambda: Subset(data, range(12)), "source": lambda: data.source}.get(kind, lambda: data)()
    typed = TrainingData.of(data)
    assert len(typed) == 12
    collate = FastGoalCollator(FastGoalProcessor.from_base(str(tiny_clip)))
    expected, (batch,) = collate(rows), DataLoader(typed, batch_size=12, collate_fn=collate)
    batch = collate.reader.normalize(batch)
    assert batch.pop("names") == [row["file_name"] for row in rows]
    for name in expected:
        assert torch.equal(expected[name], batch[name]), name
    assert [values(typed[index]) for index in range(12)] == [values(TrainingRow.of(row)) for row in rows]


def write_parts(rows, folder):
    return str(write_pairs(rows, folder / "data").parent)


def test_a_row_converts_back(rows):
    row = TrainingRow.of({**rows[0], "short_captions": "Squares."}, epoch=3)
    assert (row.epoch, row.short_captions, row.tokens) == (3, "Squares.", None)
    assert row.as_dict() == {name: value for name, value in rows[0].items() if name not in ("width", "height")}
    assert TrainingRow.of(row, epoch=None).epoch is None
    assert TrainingRow.of({"image": {"bytes": b"", "path": "a.png"}, "caption": "x"}).name == "a.png"
    with pytest.raises(TypeError, match=r"dict with `image` and `caption`, got .*a\.png"):
        TrainingRow.of("a.png")


def test_the_first_rows_only(pairs_folder):
    data = TrainingData(str(pairs_folder), limit=5)
    assert len(data) == len(data.captions()) == 5
    with pytest.raises(IndexError):
        data[5]
    assert len(TrainingData(load_source(str(pairs_folder)), limit=50)) == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_to_train_on_have_an_epoch_and_others_have_none(rows, workers):
    """Workers that live longer than an epoch get the new number."""

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows)

    for dataset in (rows, Stream()):
        data = TrainingData.of(dataset)
        assert isinstance(data, IterableTrainingData) == (dataset is not rows)
        training = data.for_training()
        options = {"batch_size": 12, "collate_fn": epochs_of, "num_workers": workers}
        loader = DataLoader(training, persistent_workers=workers > 0, **options)
        for epoch in (0, 1, 5):
            training.begin_epoch(epoch)
            training.set_epoch(9)  # accelerate's number, for a dataset that shuffles itself
            assert list(loader) == [[epoch] * 12]
        assert list(DataLoader(data, **options)) == [[None] * 12]


def epochs_of(rows):
    return [row.epoch for row in rows]


def test_a_dataset_that_shuffles_itself_gets_its_epoch(rows):
    stream = datasets.Dataset.from_list([{"caption": str(number)} for number in range(20)]).to_iterable_dataset()
    data = TrainingData.of(stream.shuffle(seed=0, buffer_size=20)).for_training()
    orders = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        orders.append([row.caption for row in data])
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_do_not_touch_images(rows, tmp_path, monkeypatch, kind):
    data = of_kind(kind, rows, tmp_path / "data")
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded"))
    assert TrainingData.of(data).captions() == [row["caption"] for row in rows]


def test_captions_of_a_folder_of_files(tmp_path):
    lines = '{"file_name": "no.png", "captions": ["ab", "cde."]}\n{"file_name": "no.png", "captions": ["x"]}\n'
    (tmp_path / "metadata.jsonl").write_text(lines)
    assert TrainingData(str(tmp_path)).captions() == ["ab. cde.", "x"]
    assert TrainingData(str(tmp_path), limit=1).captions() == ["ab. cde."]


def test_the_source_of_rows(rows, pairs_folder):
    source = load_source(str(pairs_folder))
    assert source_of(source) is source_of(TrainingData(source)) is source
    assert source_of(rows) is source_of(TrainingData(rows)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_any_row_without_pairs_is_named(rows, broken, tmp_path, kind):
    check_rows(of_kind(kind, rows, tmp_path / "whole"), "train_dataset", True)
    data = of_kind(kind, broken, tmp_path / "broken")
    check_rows(data, "train_dataset", False)
    with pytest.raises(ValueError, match=r"`train_dataset`: 2 of 12 rows .*`processor.pair_rows") as error:
        check_rows(data, "train_dataset", True)
    assert f"row 5 ({broken[5]['file_name']})" in str(error.value)


@pytest.mark.parametrize("pairs", [[None, None], [[], None], [{"score": 1.0}] * 2])
def test_pairs_that_are_not_a_list_of_pairs(rows, pairs):
    data = datasets.Dataset.from_list([{**row, "pairs": pair} for row, pair in zip(rows, pairs)])
    with pytest.raises(ValueError, match=r"2 of 2 rows .* local pairs"):
        check_rows(data, "train_dataset", True)


def test_typed_rows_are_checked(broken):
    with pytest.raises(ValueError, match=r"2 of 12 rows .* row 5 \("):
        check_rows([TrainingRow.of(row) for row in broken], "train_dataset", True)


def test_rows_past_the_limit_are_not_checked(broken, tmp_path):
    write_pairs(broken, tmp_path)
    check_rows(TrainingData(str(tmp_path), limit=5), "train_dataset", True)


def test_pairs_in_a_folder_of_files(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "x", "pairs": [{}]}\n' * 2)
    check_rows(TrainingData(str(tmp_path)), "train_dataset", True)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "b.png", "caption": "x", "pairs": []}\n')
    with pytest.raises(ValueError, match=r"1 of 3 rows .* local pairs.*line 3 \(b\.png\)"):
        check_rows(load_source(str(tmp_path)), "train_dataset", True)


@pytest.mark.parametrize(("key", "kind"), [("image", "from Python"), ("caption", "from Python"), ("caption", "table")])
def test_a_row_without_image_or_caption_is_named(rows, key, kind):
    data = [*rows[:2], {name: value for name, value in rows[2].items() if name != key}]
    if kind == "table":
        data = datasets.Dataset.from_list(rows[:3]).remove_columns(key)
    count = "1 of 3" if kind == "from Python" else "3 of 3"
    with pytest.raises(ValueError, match=rf"`eval_dataset`: {count} rows .* `{key}`; the first is row \d"):
        check_rows(data, "eval_dataset", False)


def test_data_that_are_not_rows_are_refused(rows):
    for data, words in (
        (rows[0], r"`train_dataset` .*a single row\. Pass `\[row\]`"),
        (["a.png"], r"row 0 .*dict with `image` and `caption`, got .*a\.png"),
        ("pairs", "`train_dataset` .*'pairs'.*TrainingData"),
    ):
        with pytest.raises(TypeError, match=words):
            check_rows(data, "train_dataset", False)
    with pytest.raises(ValueError, match=r"`eval_dataset\['second'\]`: 1 of 1 rows .* local pairs"):
        check_rows({"first": rows, "second": [{**rows[0], "pairs": None}]}, "eval_dataset", True)
    check_rows(None, "eval_dataset", True)


def test_datasets_that_make_their_rows_are_not_checked(rows):
    made = datasets.Dataset.from_dict({"number": [0, 1]})
    made.set_transform(lambda batch: {key: [rows[i][key] for i in batch["number"]] for key in rows[0]})
    check_rows(made, "train_dataset", True)
    check_rows(Subset(rows, [0]), "train_dataset", True)
    check_rows(iter(rows), "train_dataset", True)
    assert TrainingData.of(made).captions() == [row["caption"] for row in rows[:2]]
