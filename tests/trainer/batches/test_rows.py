"""Datasets as the trainer reads them: rows, captions, and what is checked before a training begins."""

import copy

import datasets
import pytest
import torch

from fastgoal import FastGoalCollator, FastGoalProcessor
from fastgoal.trainer.batches.rows import PairData, captions_of, check_rows
from tests.squares import write_pairs
from tests.trainer.kinds import KINDS, of_kind


@pytest.fixture
def broken(rows):
    """Rows of which the sixth and the last have no pairs."""
    broken = copy.deepcopy(rows)
    broken[5]["pairs"] = []
    broken[-1]["pairs"] = []
    return broken


def test_rows_of_a_folder_are_the_collators(pairs_folder, rows, tiny_clip):
    data = PairData(str(pairs_folder))
    assert len(data) == 12
    assert len(PairData(str(pairs_folder), limit=5)) == 5
    with pytest.raises(IndexError):
        data[12]
    collate = FastGoalCollator(FastGoalProcessor.from_base(str(tiny_clip)))
    expected, got = collate(rows), collate([data[i] for i in range(12)])
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_captions_do_not_touch_images(rows, tmp_path, monkeypatch, kind):
    data = of_kind(kind, rows, tmp_path / "data")
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded"))
    assert captions_of(data) == [row["caption"] for row in rows]


def test_captions_of_a_folder_of_files(tmp_path):
    lines = '{"file_name": "no.png", "captions": ["ab", "cde."]}\n{"file_name": "no.png", "captions": ["x"]}\n'
    (tmp_path / "metadata.jsonl").write_text(lines)
    assert captions_of(PairData(str(tmp_path))) == ["ab. cde.", "x"]
    assert captions_of(PairData(str(tmp_path), limit=1)) == ["ab. cde."]


@pytest.mark.parametrize("kind", KINDS)
def test_any_row_without_pairs_is_named(rows, broken, tmp_path, kind):
    check_rows(of_kind(kind, rows, tmp_path / "whole"), "train_dataset", True)
    data = of_kind(kind, broken, tmp_path / "broken")
    check_rows(data, "train_dataset", False)
    with pytest.raises(
        ValueError, match=r"`train_dataset`: 2 of 12 rows have no local pairs; the first is .*"
    ) as error:
        check_rows(data, "train_dataset", True)
    assert f"row 5 ({broken[5]['file_name']})" in str(error.value)
    assert "pair_rows" in str(error.value)


@pytest.mark.parametrize("pairs", [[None, None], [[], None], [{"score": 1.0}] * 2])
def test_pairs_that_are_no_list_of_pairs(rows, pairs):
    data = datasets.Dataset.from_list([{**row, "pairs": pair} for row, pair in zip(rows, pairs)])
    with pytest.raises(ValueError, match="2 of 2 rows have no local pairs"):
        check_rows(data, "train_dataset", True)


def test_rows_past_the_limit_are_not_asked(broken, tmp_path):
    write_pairs(broken, tmp_path)
    check_rows(PairData(str(tmp_path), limit=5), "train_dataset", True)


def test_pairs_in_a_folder_of_files(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "x", "pairs": [{}]}\n' * 2)
    check_rows(PairData(str(tmp_path)), "train_dataset", True)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "b.png", "caption": "x", "pairs": []}\n')
    with pytest.raises(ValueError, match=r"1 of 3 rows have no local pairs; the first is .*line 3 \(b\.png\)"):
        check_rows(PairData(str(tmp_path)), "train_dataset", True)


@pytest.mark.parametrize(("key", "kind"), [("image", "from Python"), ("caption", "from Python"), ("caption", "table")])
def test_a_row_without_image_or_caption_is_named(rows, key, kind):
    data = [*rows[:2], {name: value for name, value in rows[2].items() if name != key}]
    if kind == "table":
        data = datasets.Dataset.from_list(rows[:3]).remove_columns(key)
    message = "1 of 3 rows have no" if kind == "from Python" else "3 of 3 rows have no"
    with pytest.raises(ValueError, match=rf"`eval_dataset`: {message} `{key}`; the first is row \d"):
        check_rows(data, "eval_dataset", False)


def test_what_are_no_rows(rows):
    with pytest.raises(TypeError, match=r"`train_dataset` must be rows.*a single row: pass `\[row\]`"):
        check_rows(rows[0], "train_dataset", False)
    with pytest.raises(TypeError, match="must be a dict with `image` and `caption`, got a str"):
        check_rows(["a.png"], "train_dataset", False)
    with pytest.raises(ValueError, match=r"`eval_dataset\['second'\]`: 1 of 1 rows have no local pairs"):
        check_rows({"first": rows, "second": [{**rows[0], "pairs": None}]}, "eval_dataset", True)
    check_rows(None, "eval_dataset", True)


def test_what_makes_its_rows_itself_is_left_alone(rows):
    made = datasets.Dataset.from_dict({"number": [0, 1]})
    made.set_transform(lambda batch: {key: [rows[i][key] for i in batch["number"]] for key in rows[0]})
    check_rows(made, "train_dataset", True)
    check_rows(torch.utils.data.Subset(rows, [0]), "train_dataset", True)
    check_rows(iter(rows), "train_dataset", True)
    assert captions_of(made) == [row["caption"] for row in rows[:2]]
