"""The batch of the collator, tensor by tensor."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, CLIPImageProcessor

from fastgoal import FastGoalCollator, FastGoalModel, FastGoalProcessor
from fastgoal.processing.images import load_image
from fastgoal.processing.matching import best_pair
from fastgoal.trainer.batches.rows import TrainingRow


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_base(str(tiny_clip))


@pytest.fixture
def row(rows):
    return copy.deepcopy(rows[0])  # red on the left, green on the right


def test_the_batch_has_the_best_pair(processor, row):
    batch = FastGoalCollator(processor)([row])
    image = load_image(row["image"])
    caption = row["caption"]
    sentence = row["sentences"][1]
    expected = processor(images=image, text=caption)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    local = processor(images=image.crop((34, 16, 46, 28)), text=caption[sentence["start"] : sentence["end"]])
    assert torch.equal(batch["local_pixel_values"], local["pixel_values"])
    assert torch.equal(batch["local_input_ids"], local["input_ids"])
    assert torch.equal(batch["local_attention_mask"], local["attention_mask"])
    # The crop keeps columns 16 to 48: the box begins in patch (2, 2) and ends in patch (3, 3).
    assert batch["region_mask"].reshape(4, 4).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    inside = batch["input_ids"][0][batch["sentence_mask"][0]]
    assert processor.tokenizer.decode(inside).replace(" ", "") == "ontherightitisgreen."


def best_region(row):
    return tuple(row["regions"][max(row["pairs"], key=lambda pair: pair["score"])["region"]]["box"])


def test_crops_of_a_smaller_size(processor, rows, tiny_clip):
    """Only the crops change. They are those of plain transformers, and PIL's up to rounding."""
    before, after = FastGoalCollator(processor)(rows), FastGoalCollator(processor, crop_size=16)(rows)
    crops = [load_image(row["image"]).crop(best_region(row)) for row in rows]
    plain = CLIPImageProcessor.from_pretrained(
        tiny_clip, size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    assert torch.equal(after.pop("local_pixel_values"), plain(crops, return_tensors="pt")["pixel_values"])
    assert before.pop("local_pixel_values").shape[2:] == (32, 32)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip", "siglip2"])
@torch.no_grad()
def test_smaller_crops_are_embedded_as_by_pil_and_plain_transformers(family, tiny_bases, rows):
    model, processor = FastGoalModel.from_base(tiny_bases[family]), FastGoalProcessor.from_base(tiny_bases[family])
    plain, images = AutoModel.from_pretrained(tiny_bases[family]).eval(), processor.image_processor
    found, other = (model(**FastGoalCollator(processor, crop_size=side)(rows)).local_image_embeds for side in (24, 16))
    pixels = []
    for row in rows:
        crop = load_image(row["image"]).crop(best_region(row))
        scale = 24 / min(crop.size)
        size = (24, 24) if "siglip" in family else [round(edge * scale) for edge in crop.size]
        crop = crop.resize(size, images.resample)
        left, top = (crop.width - 24) // 2, (crop.height - 24) // 2
        values = torch.tensor(np.array(crop.crop((left, top, left + 24, top + 24)))) / 255
        pixels.append((values - torch.tensor(images.image_mean)) / torch.tensor(images.image_std))
    inputs = torch.stack(pixels).permute(0, 3, 1, 2)
    expected = plain.get_image_features(pixel_values=inputs, interpolate_pos_encoding=True).pooler_output
    gap = (found - normalize(expected, dim=-1)).abs().max()
    assert gap < 0.05 * (found - other).abs().max()  # PIL rounds some bytes to another value


def test_a_crop_size_of_the_model_changes_nothing(processor, rows):
    before, after = FastGoalCollator(processor)(rows), FastGoalCollator(processor, crop_size=32)(rows)
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole = FastGoalCollator(processor, crop_size=16).without_pairs()(rows)
    assert torch.equal(whole["pixel_values"], before["pixel_values"])
    assert "local_pixel_values" not in whole


@pytest.mark.parametrize(("size", "way_out"), [(20, "16"), (7, "8"), (0, "8"), (40, "32"), (33, "32")])
def test_wrong_crop_sizes_are_refused(processor, size, way_out):
    with pytest.raises(ValueError, match=rf"`crop_size` .* 8 .* 32 .* got {size}\. .* {way_out}\."):
        FastGoalCollator(processor, crop_size=size)


def test_lengths_are_rounded_up_for_compiled_models(processor, rows):
    plain = FastGoalCollator(processor, short_captions=True)(rows)
    rounded = FastGoalCollator(processor, short_captions=True, pad_to_multiple_of=8)(rows)
    names = [name for name in plain if name.endswith(("input_ids", "attention_mask")) or name == "sentence_mask"]
    assert len(names) == 7
    assert any(plain[name].shape[1] % 8 for name in names)
    for name in names:
        length = plain[name].shape[1]
        assert rounded[name].shape[1] == -(-length // 8) * 8
        assert torch.equal(rounded[name][:, :length], plain[name])
        if not name.endswith("ids"):
            assert not rounded[name][:, length:].any()
    # 77 is not a multiple of 8, but no text may be longer.
    long = [{**rows[0], "caption": f"{rows[0]['caption']} {'x' * 300}"}]
    short_processor = copy.deepcopy(processor)
    short_processor.tokenizer.model_max_length = 77
    assert FastGoalCollator(short_processor, pad_to_multiple_of=8)(long)["input_ids"].shape == (1, 77)


def test_a_pair_outside_the_crop_is_taken_only_if_none_is_visible(processor, row):
    row["pairs"][1]["region"] = 2  # the edge that the crop cuts off
    batch = FastGoalCollator(processor)([row])
    assert batch["region_mask"].reshape(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    row["pairs"] = row["pairs"][1:]
    assert not FastGoalCollator(processor)([row])["region_mask"].any()


def test_a_truncated_sentence_is_not_taken(processor, row):
    filler = "x" * 300
    row["caption"] = row["caption"][:22].rstrip() + f" {filler}. It is green."
    end = len(row["caption"])
    row["sentences"] = [{"start": 0, "end": 21}, {"start": end - 12, "end": end}]
    batch = FastGoalCollator(processor)([row])
    assert batch["sentence_mask"].any()
    assert processor.tokenizer.decode(batch["local_input_ids"][0], skip_special_tokens=True) == "on the left it is red"


def test_the_best_pair_depends_on_the_length_that_the_model_reads(processor, tiny_clip, row):
    """The sentence with the highest score starts at token 90: truncated at 77 tokens, but not at 248."""
    opening = "It shows a green square on the right."
    row["caption"] = opening + " " + "x" * 60 + ". On the left it is red."
    row["sentences"] = [{"start": 0, "end": len(opening)}, {"start": 100, "end": len(row["caption"])}]
    assert row["caption"][100:] == "On the left it is red."
    row["pairs"] = [{"sentence": 1, "region": 0, "score": 0.9}, {"sentence": 0, "region": 1, "score": 0.2}]
    for model_processor, expected in ((FastGoalProcessor.from_base(str(tiny_clip), 77), 1), (processor, 0)):
        pair = row["pairs"][expected]
        batch = FastGoalCollator(model_processor)([row])
        box, sentence = row["regions"][pair["region"]]["box"], row["sentences"][pair["sentence"]]
        text = row["caption"][sentence["start"] : sentence["end"]]
        assert torch.equal(batch["local_input_ids"], model_processor(text=[text])["input_ids"])
        assert torch.equal(batch["region_mask"][0], model_processor.region_mask(box, (64, 32)))
        # The joint test of an evaluation takes the same pair.
        assert best_pair(TrainingRow.of(row), model_processor, (64, 32)) == pair


def test_training_rows_draw_among_the_visible_pairs_and_evaluation_rows_do_not(processor, row):
    """A row of five pairs, the fourth of them outside the crop. The region mask tells which one was drawn."""
    boxes = [(16, 16, 24, 24), (24, 16, 32, 24), (32, 16, 40, 24), (0, 0, 4, 4), (40, 24, 48, 32)]
    row["regions"] = [{"box": list(map(float, box)), "score": 1.0, "label": "", "source": "x"} for box in boxes]
    row["pairs"] = [{"sentence": 0, "region": i, "score": 0.9 - 0.1 * i, "best": i == 0} for i in range(5)]
    masks = {tuple(processor.region_mask(box, (64, 32)).tolist()): i for i, box in enumerate(boxes)}

    def drawn(pair_sampling, epochs, seed=0):
        collator = FastGoalCollator(processor, pair_sampling=pair_sampling, seed=seed)
        rows = [{**row, "file_name": f"{i}.png"} for i in range(4)]
        batches = [collator([TrainingRow.of(row, epoch=epoch) for row in rows]) for epoch in epochs]
        return [masks[tuple(mask.tolist())] for batch in batches for mask in batch["region_mask"]]

    assert set(drawn("best", range(3))) == {0}
    assert set(drawn("top3", range(20))) == {0, 1, 2}
    counts = torch.bincount(torch.tensor(drawn("any", range(50))), minlength=5)
    assert counts[3] == 0
    assert all(30 <= count <= 70 for count in counts[[0, 1, 2, 4]])
    assert set(drawn("any", [None] * 3)) == {0}
    again = drawn("any", range(4))
    torch.manual_seed(1)
    assert drawn("any", range(4)) == again != drawn("any", range(4), seed=1)
    # A dict draws as in epoch 0.
    batch = FastGoalCollator(processor, pair_sampling="any")([{**row, "file_name": f"{i}.png"} for i in range(4)])
    assert [masks[tuple(mask.tolist())] for mask in batch["region_mask"]] == again[:4]
    with pytest.raises(ValueError, match=r"`pair_sampling`.*best, top3, any.*'worst'"):
        FastGoalCollator(processor, pair_sampling="worst")


def test_short_captions(processor, row):
    """A row's short captions, drawn in each epoch, or the caption's first sentence; with and without local pairs."""

    def read(row, epoch=0, **options):
        collator = FastGoalCollator(processor, short_captions=True, **options)
        batch = collator([TrainingRow.of(row, epoch=epoch)])
        assert batch["short_attention_mask"].all()
        return processor.tokenizer.decode(batch["short_input_ids"][0], skip_special_tokens=True)

    assert read(row) == read(row, local_pairs=False) == "on the left it is red ."
    assert read({**row, "short_captions": ["", " "]}) == "on the left it is red ."
    assert read({**row, "short_captions": "two squares"}) == "two squares"
    several = {**row, "short_captions": ["two squares", "squares", "  red and green "]}
    texts = [read(several, epoch) for epoch in range(20)]
    assert texts == [read(several, epoch, local_pairs=False) for epoch in range(20)]
    assert set(texts) == {"two squares", "squares", "red and green"}
    assert read(several, epoch=None) == "two squares"
    with pytest.raises(ValueError, match=r"red-green.png: `short_captions`.*3"):
        read({**row, "short_captions": [3]})
    assert "short_input_ids" not in FastGoalCollator(processor)([several])


def test_draws_of_pairs_and_short_captions_are_independent(processor, row):
    """Known draws: a hash of seed, epoch, name and caption, and for short captions of the word "short"."""
    texts = ["one", "two"]
    collator = FastGoalCollator(processor, pair_sampling="any", seed=5, short_captions=True)
    many = {**row, "short_captions": texts, "pairs": [{**row["pairs"][0], "score": 0.9}, row["pairs"][1]]}
    boxes = [many["regions"][pair["region"]]["box"] for pair in many["pairs"]]
    masks = [processor.region_mask(box, (many["width"], many["height"])).tolist() for box in boxes]
    assert masks[0] != masks[1]
    same = 0
    for epoch in range(60):
        batch = collator([TrainingRow.of(many, epoch=epoch)])
        text = processor.tokenizer.decode(batch["short_input_ids"][0], skip_special_tokens=True)
        key = (5, epoch, many["file_name"], many["caption"])
        pair, short = (
            int.from_bytes(hashlib.blake2b(repr(part).encode(), digest_size=8).digest(), "little") % 2
            for part in (key, (*key, "short"))
        )
        assert text == texts[short]
        assert batch["region_mask"][0].tolist() == masks[pair]
        same += pair == short
    assert 20 <= same <= 40  # the same key would draw the same number 60 times


def test_a_batch_of_typed_rows_is_completed_on_the_device(processor, row):
    collator = FastGoalCollator(processor)
    batch = collator([row])
    assert "names" not in batch  # all of it goes into the model
    typed = collator([TrainingRow.of(row)])
    assert typed["pixel_values"].dtype == typed["local_pixel_values"].dtype == torch.uint8
    typed = collator.reader.normalize(typed)
    assert typed.pop("names") == ["red-green.png"]
    assert typed.keys() == batch.keys()
    assert all(torch.equal(typed[name], value) for name, value in batch.items())


def test_rows_are_padded_to_their_own_longest(processor, rows):
    batch = FastGoalCollator(processor)(rows)
    lengths = [len(processor.tokenizer(row["caption"])["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (12, max(lengths))
    assert batch["sentence_mask"].shape == batch["input_ids"].shape
    assert batch["local_input_ids"].shape[1] < batch["input_ids"].shape[1]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert not (batch["sentence_mask"] & (batch["attention_mask"] == 0)).any()


def test_without_local_pairs_images_and_captions_suffice(processor, row):
    plain = {"image": row["image"], "caption": row["caption"]}
    batch = FastGoalCollator(processor, local_pairs=False)([plain, plain])
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert len(batch["pixel_values"]) == 2


@pytest.mark.parametrize("pairs", [None, []])
def test_a_row_without_pairs_is_named(processor, row, pairs):
    row["pairs"] = pairs
    with pytest.raises(ValueError, match=r"red-green\.png.*no local pairs.*`fastgoal pairs`"):
        FastGoalCollator(processor)([row])


@pytest.mark.parametrize("caption", [None, "  ", 3])
def test_a_row_without_caption_is_named(processor, row, caption):
    row["caption"] = caption
    with pytest.raises(ValueError, match=r"red-green\.png: `caption`"):
        FastGoalCollator(processor)([row])


def test_a_broken_image_is_named(processor, row):
    row["image"] = {"bytes": b"not an image", "path": "broken.png"}
    with pytest.raises(ValueError, match=r"red-green\.png"):
        FastGoalCollator(processor)([row])
