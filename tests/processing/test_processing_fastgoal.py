"""The processor: CLIP's inputs, sentence and region masks, and FLISM on inputs with known answers."""

import string

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import CLIPProcessor

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, Region, Sentence
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.matching import batches_by_tokens, embed_crop_stream, embed_texts, pair_up

CAPTION = "A red cup stands on a table. Behind it, a dog sleeps.  The wall is white."
SPANS = [(0, 28), (29, 54), (56, 73)]


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def model(tiny_clip):
    return FastGoalCLIPModel.from_clip(str(tiny_clip))


class Finds:
    """A detector that finds the same in every image."""

    def __init__(self, regions, **limits):
        self.regions, self.spec = regions, DetectorSpec("mine", "mine", **limits)

    def prepare(self, image, caption):
        return image

    def detect(self, prepared):
        return [self.regions for _ in prepared]


def image(size=(64, 48), color="black"):
    return Image.new("RGB", size, color)


def test_inputs_are_clips(processor, tiny_clip):
    plain = CLIPProcessor.from_pretrained(tiny_clip)
    expected = plain(images=[image()], text=["a cup"], return_tensors="pt", padding=True)
    got = processor(images=[image()], text=["a cup"])
    assert set(got) == {"input_ids", "attention_mask", "pixel_values"}
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


def test_single_image_and_text(processor):
    got = processor(images=image(), text="a cup")
    assert got["pixel_values"].shape == (1, 3, 32, 32)
    assert got["input_ids"].shape[0] == 1


def test_rotated_and_transparent_images_are_made_right(processor):
    upright = Image.new("RGB", (48, 64), "black")
    ImageDraw.Draw(upright).rectangle((0, 0, 47, 9), fill="white")
    turned = upright.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6  # "turn me by 90 degrees to the right"
    expected = processor(images=upright)["pixel_values"]
    torch.testing.assert_close(processor(images=turned)["pixel_values"], expected)


def test_long_captions_are_cut_with_one_warning(processor, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("fastgoal"), "propagate", True)
    texts = ["x y " * 200, "short", "z" * 600]
    with caplog.at_level("WARNING"):
        got = processor(text=texts)
    assert got["input_ids"].shape == (3, 248)
    messages = [record.getMessage() for record in caplog.records if "captions" in record.getMessage()]
    assert messages == ["2 of 3 captions have more than 248 tokens and were cut there."]


@pytest.mark.parametrize("words", [245, 246, 247])
def test_count_truncated_at_the_limit(processor, words):
    assert processor.count_truncated(["a " * words]) == int(words + 2 > 248)


def test_nothing_to_process_is_an_error(processor):
    with pytest.raises(ValueError, match="images"):
        processor()


@pytest.mark.parametrize("length", [76, 249])
def test_lengths_out_of_range(tiny_clip, length):
    with pytest.raises(ValueError, match="from 77 to 248"):
        FastGoalProcessor.from_clip(str(tiny_clip), length)


def test_saved_folder_loads_as_ours_and_as_clips(processor, tmp_path):
    processor.detector = Finds([])
    try:
        processor.save_pretrained(tmp_path)
    finally:
        processor.detector = None
    ours = FastGoalProcessor.from_pretrained(tmp_path)
    assert (ours.patch_size, ours.tokenizer.model_max_length, ours.detector) == (8, 248, None)
    plain = CLIPProcessor.from_pretrained(tmp_path)
    assert plain.tokenizer.model_max_length == 248
    assert torch.equal(plain(text=CAPTION, return_tensors="pt")["input_ids"], ours(text=CAPTION)["input_ids"])


def test_region_mask_needs_the_patch_size(processor):
    plain = FastGoalProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="from_clip"):
        plain.region_mask((0, 0, 5, 5), (10, 10))


def test_region_mask_goes_through_the_crop(processor):
    # 64 x 32: the crop of the middle 32 columns.
    assert processor.region_mask((16, 0, 24, 8), (64, 32)).nonzero().flatten().tolist() == [0]
    assert not processor.region_mask((0, 0, 16, 32), (64, 32)).any()


def test_sentence_mask_holds_the_sentences_letters(processor):
    ids = processor(text=CAPTION)["input_ids"][0]
    for start, end in SPANS:
        mask = processor.sentence_mask(CAPTION, start, end)
        assert mask.shape == ids.shape
        assert mask.dtype == torch.bool
        got = processor.tokenizer.decode(ids[mask]).replace(" ", "")
        assert got == CAPTION[start:end].lower().replace(" ", "")
    assert not mask[0]
    assert not mask[-1]


def test_sentence_cut_off_by_truncation_has_no_tokens(processor):
    caption = "a" * 250 + ". The end."
    start = caption.index("The")
    assert not processor.sentence_mask(caption, start, len(caption)).any()
    assert processor.sentence_mask(caption, 0, 251).sum() == 246  # all but BOS and EOS


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (3, 3), (5, 2), (0, 100)])
def test_spans_out_of_range(processor, start, end):
    with pytest.raises(ValueError, match="span of the caption's 5 characters"):
        processor.sentence_mask("abcde", start, end)


words = st.text(alphabet=string.ascii_letters + "éßñÅ漢7,'-", min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    sentences=st.lists(st.lists(words, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=12),
    gap=st.sampled_from([" ", "  ", "\n", "\t "]),
)
def test_masks_of_all_sentences_partition_the_caption(processor, sentences, gap):
    caption, spans = "", []
    for sentence in sentences:
        spans.append((len(caption), len(caption) + len(sentence) + 1))
        caption += sentence + "." + gap
    masks = processor.sentence_masks(caption, spans)
    ids = processor.tokenizer(caption, truncation=True)["input_ids"]
    assert masks.shape == (len(spans), len(ids))
    covered = masks.sum(dim=0)
    assert covered[0] == 0
    assert covered[-1] == 0
    assert (covered[1:-1] == 1).all()
    # A sentence's tokens are those it has by itself, as far as the caption was not cut.
    for (start, end), mask in zip(spans, masks, strict=True):
        alone = processor.tokenizer(caption[start:end])["input_ids"][1:-1]
        kept = [token for token, inside in zip(ids, mask.tolist(), strict=True) if inside]
        assert kept == alone[: len(kept)]
        assert len(kept) == len(alone) or len(ids) == 248


class ColourTowers:
    """Stands for a CLIP whose answers are known: an image is its mean colour, a text the colour it names."""

    COLOURS = ("red", "green", "blue")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.device, self.dtype, self.training = torch.device("cpu"), torch.float32, True
        self.forwards = []

    def eval(self):
        self.training = False

    def train(self, mode=True):
        self.training = mode

    def get_image_features(self, pixel_values):
        assert not self.training
        self.forwards.append(len(pixel_values))
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        embeds = (pixel_values * std + mean).mean(dim=(2, 3))
        return type("Output", (), {"pooler_output": embeds + 1e-3})()

    def get_text_features(self, input_ids, attention_mask):
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        embeds = torch.tensor([[float(colour in text) for colour in self.COLOURS] for text in texts])
        return type("Output", (), {"pooler_output": embeds + 1e-3})()


def scene(boxes):
    picture = Image.new("RGB", (64, 64), "black")
    for box, colour in boxes:
        ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return picture


RED, GREEN, BLUE = (4, 4, 20, 20), (40, 6, 60, 26), (10, 40, 26, 60)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_sentence_takes_the_region_it_describes(processor, batch_size):
    towers = ColourTowers(processor.tokenizer)
    first = scene([(RED, (255, 0, 0)), (GREEN, (0, 255, 0))])
    second = scene([(BLUE, (0, 0, 255))])
    boxes = [[Region(RED, 0.9), Region(GREEN, 0.8)], [Region(BLUE, 0.7)]]
    pairs = processor.match(
        [first, second],
        ["There is a green thing. A red one is near.", "It shows blue."],
        towers,
        regions=processor.propose_regions([first, second], boxes),
        batch_size=batch_size,
    )
    assert [[pair.region.box for pair in row] for row in pairs] == [[GREEN, RED], [BLUE]]
    assert [[pair.sentence_index for pair in row] for row in pairs] == [[0, 1], [0]]
    assert [[pair.region_index for pair in row] for row in pairs] == [[1, 0], [0]]
    assert [sum(pair.best for pair in row) for row in pairs] == [1, 1]
    assert all(pair.score > 0.99 for row in pairs for pair in row)
    assert pairs[0][0].sentence == Sentence("There is a green thing.", 0, 23)
    assert max(towers.forwards) <= batch_size
    assert sum(towers.forwards) == 13  # 3 boxes and twice the five default regions
    assert towers.training


def test_batches_take_crops_of_several_images(processor):
    towers = ColourTowers(processor.tokenizer)
    processor.match([image()] * 4, ["red."] * 4, towers, batch_size=64)
    assert towers.forwards == [20]


def test_texts_alone_and_together_are_the_same(processor, model):
    texts = ["red.", "A " + "long " * 60 + "one.", "Blue and green.", "red.", "x" * 400]
    together = embed_texts(texts, model, processor.tokenizer, batch_size=64)
    assert together.shape == (5, model.config.projection_dim)
    for text, embeds in zip(texts, together):
        alone = embed_texts([text], model, processor.tokenizer, batch_size=1)[0]
        torch.testing.assert_close(embeds, alone, atol=1e-6, rtol=0)
        inputs = processor.tokenizer(text, truncation=True, return_tensors="pt")
        wanted = model.get_text_features(**inputs).pooler_output[0]
        torch.testing.assert_close(embeds, wanted / wanted.norm(), atol=1e-5, rtol=0)
    # The batches depend on the set of texts, not on their order.
    backwards = embed_texts(texts[::-1], model, processor.tokenizer, batch_size=64)
    assert torch.equal(backwards, together.flip(0))


def test_batches_of_texts_are_full_but_not_of_padding():
    def sizes(lengths, most):
        texts = [f"{i:02}" for i in range(len(lengths))]
        batches = list(batches_by_tokens(texts, dict(zip(texts, lengths)), most))
        longest_first = sorted(texts, key=lambda text: -lengths[int(text)])
        assert [text for batch in batches for text in batch] == longest_first
        return [len(batch) for batch in batches]

    assert sizes([10] * 25, 100) == [10, 10, 5]
    assert sizes([5, 300, 5], 100) == [1, 2]
    assert sizes([], 100) == []
    assert sizes([10] * 5 + [20] * 3, 400) == [3, 5]  # 60 tokens are an eighth of 400, and the 10s would be padded
    assert sizes([10] * 5 + [20] * 2, 400) == [3, 4]  # 40 are not, so the batch gets one of them
    assert sizes([10] * 40 + [11] * 40, 1000) == [80]  # a tenth of padding at most


def test_crops_of_any_number_come_back_image_by_image(processor, model):
    torch.manual_seed(0)
    pixels = [torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8) for count in (3, 1, 9, 2, 4)]
    taken = []

    def images():
        for crops in pixels:
            taken.append(len(crops))
            yield crops

    found = []
    for embeds in embed_crop_stream(images(), model, processor.image_processor, 4):
        if not found:
            assert taken == [3, 1, 9]  # the second batch was on its way when the first result came, no more
        found.append(embeds)
    assert [len(embeds) for embeds in found] == [3, 1, 9, 2, 4]
    for crops, embeds in zip(pixels, found):
        inputs = processor.image_processor(list(crops), do_resize=False, do_center_crop=False, return_tensors="pt")
        wanted = model.get_image_features(**inputs).pooler_output
        torch.testing.assert_close(embeds, torch.nn.functional.normalize(wanted, dim=-1), atol=1e-5, rtol=0)
    assert list(embed_crop_stream([], model, processor.image_processor, 4)) == []


def test_the_best_pair_is_one_the_model_can_see():
    sentences = [Sentence("a", 0, 1), Sentence("b", 2, 3), Sentence("c", 4, 5)]
    regions = [Region((0, 0, 1, 1)), Region((1, 1, 2, 2))]
    similarity = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.5, 0.6]])
    best = lambda visible: [pair.best for pair in pair_up(sentences, regions, similarity, visible)]  # noqa: E731
    assert best(lambda s, r: True) == [True, False, False]
    assert best(lambda s, r: s.text != "a") == [False, True, False]
    assert best(lambda s, r: r is regions[1]) == [False, True, False]
    assert best(lambda s, r: False) == [True, False, False]


def test_match_prefers_a_region_inside_the_crop(processor):
    towers = ColourTowers(processor.tokenizer)
    wide = Image.new("RGB", (128, 32), "black")  # the crop keeps columns 48 to 80
    ImageDraw.Draw(wide).rectangle((0, 0, 19, 31), fill=(255, 0, 0))
    ImageDraw.Draw(wide).rectangle((56, 0, 71, 31), fill=(40, 255, 0))
    regions = [[Region((0, 0, 20, 32)), Region((56, 0, 72, 32))]]
    pairs = processor.match([wide], ["It is red. It is green."], towers, regions=regions)[0]
    assert pairs[0].score > pairs[1].score
    assert [pair.best for pair in pairs] == [False, True]


def test_regions_without_a_detector_are_the_default_ones(processor):
    regions = processor.propose_regions([image((80, 40))])[0]
    assert [region.label for region in regions] == ["top_left", "top_right", "bottom_left", "bottom_right", "centre"]
    assert regions[4].box == (20, 10, 60, 30)
    assert {region.source for region in regions} == {"default"}


def test_regions_of_a_detector_are_filtered_and_merged(processor):
    box, tiny, all_of_it = (5.0, 5.0, 25.0, 25.0), (0.0, 0.0, 3.0, 3.0), (0.0, 0.0, 80.0, 40.0)
    near = (5.0, 5.0, 25.0, 25.5)
    found = [
        Region(near, 0.5, "cup", "yolo"),
        Region(box, 0.8, "cup", "yolo"),
        Region(tiny, 0.9, "fly", "yolo"),
        Region(all_of_it, 0.9, "room", "yolo"),
        Region((40.0, 5.0, 60.0, 30.0), 0.1, "dog", "yolo"),
    ]
    processor.detector = Finds(found)
    try:
        regions = processor.propose_regions([image((80, 40))])[0]
        assert [region.box for region in regions[:-5]] == [box]
        assert len(regions) == 6
        # Its own limits count, those that are given more.
        processor.detector = Finds(found, min_score=0.05, max_area=0.9, min_area=0.05)
        assert [region.label for region in processor.propose_regions([image((80, 40))])[0][:-5]] == ["cup", "dog"]
        (regions,) = processor.propose_regions([image((80, 40))], max_area=1.0, min_score=0.85)
        assert [region.label for region in regions[:-5]] == ["room"]
    finally:
        processor.detector = None


def test_match_refuses_what_does_not_fit(processor, model):
    with pytest.raises(ValueError, match="'captions': 1"):
        processor.match([image(), image()], ["a."], model)
    with pytest.raises(ValueError, match="image 1 has no sentence"):
        processor.match([image(), image()], ["a.", "  "], model)
    with pytest.raises(ValueError, match="Image 0 has no candidate"):
        processor.match([image()], ["a."], model, regions=[[]])
    assert processor.match([], [], model) == []


def test_match_with_the_real_model_is_a_slow_loop(processor, model):
    torch.manual_seed(0)
    picture = Image.fromarray(torch.randint(0, 255, (60, 90, 3), dtype=torch.uint8).numpy())
    pairs = processor.match([picture], [CAPTION], model, batch_size=2)[0]
    regions = processor.propose_regions([picture])[0]
    for pair in pairs:
        text = processor.tokenizer(pair.sentence.text, return_tensors="pt")
        wanted = model.get_text_features(**text).pooler_output[0]
        cosines = []
        for region in regions:
            crop = picture.crop(tuple(int(value) for value in region.box))
            pixels = processor.image_processor(crop, return_tensors="pt")
            cosines.append(torch.cosine_similarity(model.get_image_features(**pixels).pooler_output[0], wanted, dim=0))
        assert pair.region_index == int(torch.stack(cosines).argmax())
        assert pair.score == pytest.approx(torch.stack(cosines).max().item(), abs=1e-5)
