"""The batch that the collator builds, tensor by tensor."""

import copy

import pytest
import torch

from fastgoal import FastGoalCollator, FastGoalProcessor
from fastgoal.processing.images import load_image


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_base(str(tiny_clip))


@pytest.fixture
def row(rows):
    return copy.deepcopy(rows[0])  # red on the left, green on the right


def test_batch_holds_the_best_pair(processor, row):
    batch = FastGoalCollator(processor)([row])
    picture = load_image(row["image"])
    caption = row["caption"]
    sentence = row["sentences"][1]
    expected = processor(images=picture, text=caption)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    local = processor(images=picture.crop((34, 16, 46, 28)), text=caption[sentence["start"] : sentence["end"]])
    assert torch.equal(batch["local_pixel_values"], local["pixel_values"])
    assert torch.equal(batch["local_input_ids"], local["input_ids"])
    assert torch.equal(batch["local_attention_mask"], local["attention_mask"])
    # The crop keeps columns 16 to 48: the box begins in patch (2, 2) and ends in patch (3, 3).
    assert batch["region_mask"].reshape(4, 4).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    inside = batch["input_ids"][0][batch["sentence_mask"][0]]
    assert processor.tokenizer.decode(inside).replace(" ", "") == "ontherightitisgreen."


def test_a_pair_outside_the_crop_waits_for_a_visible_one(processor, row):
    row["pairs"][1]["region"] = 2  # the edge that the crop cuts off
    batch = FastGoalCollator(processor)([row])
    assert batch["region_mask"].reshape(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    row["pairs"] = row["pairs"][1:]
    assert not FastGoalCollator(processor)([row])["region_mask"].any()


def test_a_sentence_that_was_cut_off_waits_for_a_visible_one(processor, row):
    filler = "x" * 300
    row["caption"] = row["caption"][:22].rstrip() + f" {filler}. It is green."
    end = len(row["caption"])
    row["sentences"] = [{"start": 0, "end": 21}, {"start": end - 12, "end": end}]
    batch = FastGoalCollator(processor)([row])
    assert batch["sentence_mask"].any()
    assert processor.tokenizer.decode(batch["local_input_ids"][0], skip_special_tokens=True) == "on the left it is red"


def test_pairs_are_drawn_anew_among_those_that_can_be_seen(processor, row):
    """A row of five pairs, the fourth of them outside the crop; which one came is told by the region mask."""
    boxes = [(16, 16, 24, 24), (24, 16, 32, 24), (32, 16, 40, 24), (0, 0, 4, 4), (40, 24, 48, 32)]
    row["regions"] = [{"box": list(map(float, box)), "score": 1.0, "label": "", "source": "x"} for box in boxes]
    row["pairs"] = [{"sentence": 0, "region": i, "score": 0.9 - 0.1 * i, "best": i == 0} for i in range(5)]
    masks = {
        tuple(processor.region_mask(box, load_image(row["image"]).size).tolist()): i for i, box in enumerate(boxes)
    }

    def drawn(choice, seed=0, epochs=50):
        collator, found = FastGoalCollator(processor, pair_sampling=choice, seed=seed), []
        for epoch in range(epochs):
            collator.set_epoch(epoch)
            batch = collator([{**row, "file_name": f"{i}.png"} for i in range(4)])
            found += [masks[tuple(mask.tolist())] for mask in batch["region_mask"]]
        return found

    assert set(drawn("best")) == {0}
    assert set(drawn("top3")) == {0, 1, 2}
    counts = torch.bincount(torch.tensor(drawn("any")), minlength=5)
    assert counts[3] == 0
    assert all(30 <= count <= 70 for count in counts[[0, 1, 2, 4]])
    again = drawn("any", epochs=4)
    torch.manual_seed(1)
    assert drawn("any", epochs=4) == again != drawn("any", seed=1, epochs=4)
    with pytest.raises(ValueError, match="best, top3, any, got 'worst'"):
        FastGoalCollator(processor, pair_sampling="worst")


def test_short_captions(processor, row):
    """A row's own ones, drawn anew in every epoch, or the caption's first sentence; with local pairs and without."""

    def read(row, epoch=0, **how):
        collator = FastGoalCollator(processor, short_captions=True, **how)
        collator.set_epoch(epoch)
        batch = collator([row])
        assert batch["short_attention_mask"].all()
        return processor.tokenizer.decode(batch["short_input_ids"][0], skip_special_tokens=True)

    assert read(row) == read(row, local_pairs=False) == "on the left it is red ."
    assert read({**row, "short_captions": ["", " "]}) == "on the left it is red ."
    assert read({**row, "short_captions": "two squares"}) == "two squares"
    several = {**row, "short_captions": ["two squares", "squares", "  red and green "]}
    found = [read(several, epoch) for epoch in range(20)]
    assert found == [read(several, epoch, local_pairs=False) for epoch in range(20)]
    assert set(found) == {"two squares", "squares", "red and green"}
    with pytest.raises(ValueError, match=r"red-green.png: `short_captions` must be a text .*got 3"):
        read({**row, "short_captions": [3]})
    assert "short_input_ids" not in FastGoalCollator(processor)([several])


def test_rows_are_padded_to_their_own_longest(processor, rows):
    batch = FastGoalCollator(processor)(rows)
    lengths = [len(processor.tokenizer(row["caption"])["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (12, max(lengths))
    assert batch["sentence_mask"].shape == batch["input_ids"].shape
    assert batch["local_input_ids"].shape[1] < batch["input_ids"].shape[1]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert not (batch["sentence_mask"] & (batch["attention_mask"] == 0)).any()


def test_without_local_pairs_images_and_captions_do(processor, row):
    plain = {"image": row["image"], "caption": row["caption"]}
    batch = FastGoalCollator(processor, local_pairs=False)([plain, plain])
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert len(batch["pixel_values"]) == 2


@pytest.mark.parametrize("pairs", [None, []])
def test_a_row_without_pairs_is_named(processor, row, pairs):
    row["pairs"] = pairs
    with pytest.raises(ValueError, match=r"red-green\.png: the row has no local pairs.*fastgoal pairs"):
        FastGoalCollator(processor)([row])


@pytest.mark.parametrize("caption", [None, "  ", 3])
def test_a_row_without_caption_is_named(processor, row, caption):
    row["caption"] = caption
    with pytest.raises(ValueError, match=r"red-green\.png: `caption`"):
        FastGoalCollator(processor)([row])


def test_a_broken_image_is_named(processor, row):
    row["image"] = {"bytes": b"no picture", "path": "broken.png"}
    with pytest.raises(ValueError, match=r"red-green\.png"):
        FastGoalCollator(processor)([row])
