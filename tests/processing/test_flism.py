"""FLISM: regions and pairs with known answers; rows as `fastgoal pairs` writes them, for collator and trainer."""

import io
import json
import os
from types import SimpleNamespace

import pytest
import torch
from datasets import load_dataset
from PIL import Image, ImageDraw

from fastgoal import (
    FastGoalCLIPModel,
    FastGoalCollator,
    FastGoalTrainer,
    FastGoalTrainingArguments,
    Region,
    Sentence,
)
from fastgoal.cli import main
from fastgoal.processing import flism
from fastgoal.processing.detectors.spec import DetectorSpec
from tests.squares import image_of

CAPTION = "A red cup stands on a table. Behind it, a dog sleeps.  The wall is white."


class Finds:
    """A detector that returns the same regions for every image."""

    def __init__(self, regions, **limits):
        self.regions, self.spec = regions, DetectorSpec("mine", "mine", **limits)

    def prepare(self, image, caption):
        return image

    def detect(self, prepared):
        return [self.regions for _ in prepared]


def image(size=(64, 48), color="black"):
    return Image.new("RGB", size, color)


class ColorTowers:
    """A model with known embeddings: an image gets its mean color, a text the color that it names."""

    COLORS = ("red", "green", "blue")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.device, self.dtype, self.training = torch.device("cpu"), torch.float32, True
        self.config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=248))
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
        embeds = torch.tensor([[float(color in text) for color in self.COLORS] for text in texts])
        return type("Output", (), {"pooler_output": embeds + 1e-3})()


def scene(boxes):
    photo = Image.new("RGB", (64, 64), "black")
    for box, color in boxes:
        ImageDraw.Draw(photo).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=color)
    return photo


RED, GREEN, BLUE = (4, 4, 20, 20), (40, 6, 60, 26), (10, 40, 26, 60)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_sentence_takes_the_region_it_describes(processor, batch_size):
    towers = ColorTowers(processor.tokenizer)
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
    towers = ColorTowers(processor.tokenizer)
    processor.match([image()] * 4, ["red."] * 4, towers, batch_size=64)
    assert towers.forwards == [20]


def test_match_prefers_a_region_inside_the_crop(processor):
    towers = ColorTowers(processor.tokenizer)
    wide = Image.new("RGB", (128, 32), "black")  # the crop keeps columns 48 to 80
    ImageDraw.Draw(wide).rectangle((0, 0, 19, 31), fill=(255, 0, 0))
    ImageDraw.Draw(wide).rectangle((56, 0, 71, 31), fill=(40, 255, 0))
    regions = [[Region((0, 0, 20, 32)), Region((56, 0, 72, 32))]]
    pairs = processor.match([wide], ["It is red. It is green."], towers, regions=regions)[0]
    assert pairs[0].score > pairs[1].score
    assert [pair.best for pair in pairs] == [False, True]


def test_regions_without_a_detector_are_the_default_ones(processor):
    regions = processor.propose_regions([image((80, 40))])[0]
    assert [region.label for region in regions] == ["top_left", "top_right", "bottom_left", "bottom_right", "center"]
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
        processor.detector = Finds(found, min_score=0.05, max_area=0.9, min_area=0.05)
        assert [region.label for region in processor.propose_regions([image((80, 40))])[0][:-5]] == ["cup", "dog"]
        processor.detector = Finds(found, min_score=0.85, max_area=1.0)
        assert [region.label for region in processor.propose_regions([image((80, 40))])[0][:-5]] == ["room"]
    finally:
        processor.detector = None


def test_match_refuses_arguments_that_do_not_fit(processor, model):
    with pytest.raises(ValueError, match=r"one caption .*got 1 and 2 for 2 images"):
        processor.match([image(), image()], ["a."], model)
    with pytest.raises(ValueError, match="image 1 has no sentence"):
        processor.match([image(), image()], ["a.", "  "], model)
    with pytest.raises(ValueError, match="Image 0 has no candidate"):
        processor.match([image()], ["a."], model, regions=[[]])
    assert processor.match([], [], model) == []


def test_match_equals_a_loop_over_single_forward_passes(processor, model):
    torch.manual_seed(0)
    photo = Image.fromarray(torch.randint(0, 255, (60, 90, 3), dtype=torch.uint8).numpy())
    pairs = processor.match([photo], [CAPTION], model, batch_size=2)[0]
    regions = processor.propose_regions([photo])[0]
    for pair in pairs:
        text = processor.tokenizer(pair.sentence.text, return_tensors="pt")
        expected = model.get_text_features(**text).pooler_output[0]
        cosines = []
        for region in regions:
            crop = photo.crop(tuple(int(value) for value in region.box))
            pixels = processor.image_processor(crop, return_tensors="pt")
            cosines.append(
                torch.cosine_similarity(model.get_image_features(**pixels).pooler_output[0], expected, dim=0)
            )
        assert pair.region_index == int(torch.stack(cosines).argmax())
        assert pair.score == pytest.approx(torch.stack(cosines).max().item(), abs=1e-5)


# Rows: images of two squares.
CAPTIONS = [
    "On the left it is red. On the right it is green.",
    "A blue square. A white one lies to the right of it, further down.",
    "Red stands left of blue.",
]
COLORS = [("red", "green"), ("blue", "white"), ("red", "blue")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    lines = []
    for number, (colors, caption) in enumerate(zip(COLORS, CAPTIONS, strict=True)):
        image_of(*colors).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "caption": caption})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def without_scores(rows):
    pairs = [[{**pair, "score": None} for pair in row["pairs"]] for row in rows]
    names = [os.path.basename(row["file_name"]) for row in rows]
    return [
        {**row, "image": None, "file_name": name, "pairs": mine}
        for row, name, mine in zip(rows, names, pairs, strict=True)
    ]


def scores(rows):
    return [pair["score"] for row in rows for pair in row["pairs"]]


def test_rows_equal_those_of_the_command(processor, model, folder, tiny_clip, tmp_path):
    options = ["--model", str(tiny_clip), "--detector", "none", "--device", "cpu", "--dtype", "float32"]
    assert main(["pairs", str(folder), "--output", str(tmp_path / "out"), *options]) == 0
    written = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    paths = [folder / f"{number}.png" for number in range(3)]
    rows = processor.pair_rows(paths, CAPTIONS, model)
    for row in written:  # only statistics read the numbers of tokens
        del row["caption_tokens"], row["sentence_tokens"]
    assert without_scores(rows) == without_scores(written)
    assert scores(rows) == pytest.approx(scores(written), abs=1e-6)
    assert [row["image"] for row in rows] == paths
    for size in (1, 2):
        smaller = processor.pair_rows(paths, CAPTIONS, model, batch_size=size)
        assert without_scores(smaller) == without_scores(rows)
        assert scores(smaller) == pytest.approx(scores(rows), abs=1e-5)


def test_the_trainer_trains_on_the_rows(processor, tiny_clip, folder, tmp_path):
    photo = Image.open(folder / "0.png")
    data = (folder / "1.png").read_bytes()
    images = [
        photo,
        data,
        {"bytes": data, "path": None},
        str(folder / "2.png"),
        {"bytes": None, "path": folder / "2.png"},
    ]
    captions = [CAPTIONS[0], *CAPTIONS[1:2] * 2, *CAPTIONS[2:] * 2]
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    rows = processor.pair_rows(images, captions, model)
    assert [row["image"] for row in rows] == images
    path, last = str(folder / "0.png"), str(folder / "2.png")
    assert [row["file_name"] for row in rows] == [path, "image 1", "image 2", last, last]
    assert without_scores(rows[1:2])[0] == {**without_scores(rows[2:3])[0], "file_name": "image 1"}

    batch = FastGoalCollator(processor)(rows)
    assert batch["local_pixel_values"].shape == batch["pixel_values"].shape == (5, 3, 32, 32)
    assert torch.equal(batch["local_pixel_values"][3], batch["local_pixel_values"][4])
    before = model.visual_projection.weight.detach().clone()
    args = FastGoalTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=5,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-3,
    )
    FastGoalTrainer(model=model, args=args, processing_class=processor, train_dataset=rows).train()
    assert not torch.equal(model.visual_projection.weight, before)


def test_errors_name_the_row(processor, model, folder):
    photo, path = image_of("red", "green"), folder / "0.png"
    with pytest.raises(ValueError, match=r"0\.png: the caption ' ' has no sentence"):
        processor.pair_rows([photo, path], ["It is red.", " "], model)
    with pytest.raises(ValueError, match=r"image 0 is not an image"):
        processor.pair_rows([b"no image"], ["It is red."], model)
    with pytest.raises(ValueError, match=r"`captions`.* 2, got 1"):
        processor.pair_rows([photo, path], ["It is red."], model)
    assert processor.pair_rows([], [], model) == []


def test_one_image_or_caption_is_refused(processor, model, folder):
    photo, buffer = image_of("red", "green"), io.BytesIO()
    photo.save(buffer, "PNG")
    for one in (photo, folder / "0.png", str(folder / "0.png"), buffer.getvalue(), {"bytes": buffer.getvalue()}):
        with pytest.raises(TypeError, match=rf"`images` must be a list .*got one {type(one).__name__}: put it in"):
            processor.pair_rows(one, ["It is red."], model)
    for call in (
        lambda: processor.pair_rows([photo], "It is red.", model),
        lambda: processor.match([photo], "It is red.", model),
        lambda: processor.propose_regions([photo], captions="It is red."),
    ):
        with pytest.raises(TypeError, match="`captions` must be a list with an entry per image, got one str"):
            call()
    for call in (lambda: processor.match(photo, ["It is red."], model), lambda: processor.propose_regions(photo)):
        with pytest.raises(TypeError, match=r"`images` must be a list .*got one Image"):
            call()


def test_the_clock_counts_inner_stages_only(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(flism.time, "perf_counter", lambda: next(now))
    clock = flism.Clock()
    with clock("image"), clock("crop"):
        pass
    assert clock.seconds == {"": 1.0, "image": 2.0 + 4.0, "crop": 3.0}
