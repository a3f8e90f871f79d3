"""Open-vocabulary detection: tiny OWLv2 and Grounding DINO of random weights, and outputs with known boxes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import load_dataset
from PIL import Image

from fastgoal.cli import main
from fastgoal.processing.builders import pairs
from fastgoal.processing.detectors import hf_detection as transformers
from fastgoal.processing.detectors.common import batches_of_one_shape
from fastgoal.processing.detectors.load import describe_detector, load_detector
from fastgoal.processing.detectors.open_vocabulary import OpenVocabularyDetector
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.regions import Detector, Region, find_regions

CAPTION = "A red cat and two dogs."
SIDE = 32


def save_owlv2(folder):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    letters = sorted(ByteLevel.alphabet())
    tokens = ["!", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], pad_token="!", model_max_length=16)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"], "pad_token_id": 0}
    config = Owlv2Config(
        text_config={**size, **ids, "vocab_size": len(vocab), "max_position_embeddings": 16},
        vision_config={**size, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer).save_pretrained(folder)


def save_grounding_dino(folder):
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "red", "cat", "dogs", "small", "house"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    text = {"model_type": "bert", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16}
    backbone = {"model_type": "swin", "image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1]}
    config = GroundingDinoConfig(
        text_config={**text, "num_hidden_layers": 1, "num_attention_heads": 2},
        backbone_config={
            **backbone,
            "num_heads": [1, 1, 2, 2],
            "window_size": 2,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 2 * SIDE, "longest_edge": 4 * SIDE})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "owlv2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_owlv2(folder)
    return folder


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "grounding_dino"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_grounding_dino(folder)
    return folder


def logit(score):
    return torch.logit(torch.tensor(score)).item()


class Answers(torch.nn.Module):
    """In place of a model: gives known scores and boxes, and remembers what it was asked."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, scores, boxes, model_type="owlv2"):
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type)
        self.scores, self.boxes, self.asked = torch.tensor(scores), torch.tensor(boxes), []

    def forward(self, **inputs):
        self.asked.append(inputs)
        count = len(inputs["pixel_values"])
        return SimpleNamespace(
            logits=torch.logit(self.scores).expand(count, *self.scores.shape),
            pred_boxes=self.boxes.expand(count, *self.boxes.shape),
        )


def test_owl_boxes_are_fractions_of_a_padded_square(owlv2):
    detector = load_detector(owlv2, device="cpu")
    assert detector.spec.min_score == 0.1
    # Columns: red cat, dogs. Boxes: center, width and height as shares of the padded square of 100 pixels.
    detector.model = Answers(
        [[0.05, 0.9], [0.3, 0.01], [0.2, 0.01], [0.01, 0.08], [0.01, 0.4], [0.5, 0.01]],
        [
            [0.25, 0.2, 0.5, 0.4],
            [0.75, 0.1, 0.1, 0.2],
            [0.75, 0.11, 0.1, 0.2],  # the same cat as the one before
            [0.5, 0.2, 0.2, 0.2],  # too unlikely
            [0.5, 0.3, 0.2, 0.6],  # out of the picture below
            [0.5, 0.9, 0.1, 0.1],  # in the padding
        ],
    )
    (regions,) = find_regions(detector, [Image.new("RGB", (100, 40))], [CAPTION])
    assert [region.label for region in regions] == ["dogs", "dogs", "red cat"]
    assert [region.box for region in regions] == [
        pytest.approx((0, 0, 50, 40)),
        pytest.approx((40, 0, 60, 40)),
        pytest.approx((70, 0, 80, 20)),
    ]
    assert [region.score for region in regions] == pytest.approx([0.9, 0.4, 0.3])
    assert {region.source for region in regions} == {"open_vocabulary"}
    (tall,) = find_regions(detector, [Image.new("RGB", (40, 100))], [CAPTION])
    assert tall[0].box == pytest.approx((0, 0, 40, 40))
    letters = detector.processor.tokenizer.batch_decode(detector.model.asked[0]["input_ids"], skip_special_tokens=True)
    assert [text.replace(" ", "").strip("!") for text in letters] == ["redcat", "dogs"]


def test_the_lowest_score_can_be_given(owlv2):
    loaded = load_detector(owlv2, device="cpu", min_score=0.35)
    detector = OpenVocabularyDetector(loaded.model, loaded.processor, replace(loaded.spec, max_phrases=1))
    detector.model = Answers([[0.3], [0.4]], [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    assert find_regions(detector, [Image.new("RGB", (60, 60))], [CAPTION]) == [
        [Region((0, 0, 60, 60), pytest.approx(0.4), "red cat", "open_vocabulary")]
    ]


def test_grounding_dino_boxes_are_fractions_of_the_image(grounding_dino):
    detector = load_detector(grounding_dino, device="cpu")
    assert detector.spec.min_score == 0.25
    # Columns: [CLS] red cat . dogs . [SEP], and what the model fills up with.
    detector.model = Answers(
        [
            [0.99, 0.3, 0.6, 0.99, 0.1, 0.99, 0.99, 0.0],
            [0.1, 0.2, 0.1, 0.3, 0.5, 0.6, 0.1, 0.0],
            [0.9, 0.2, 0.2, 0.9, 0.2, 0.9, 0.9, 0.9],  # only tokens of no phrase are likely
        ],
        [[0.25, 0.5, 0.5, 1.0], [0.9, 0.5, 0.4, 0.5], [0.5, 0.5, 1.0, 1.0]],
        "grounding-dino",
    )
    (regions,) = find_regions(detector, [Image.new("RGB", (100, 40))], [CAPTION])
    assert regions == [
        Region((0, 0, 50, 40), pytest.approx(0.6), "red cat", "open_vocabulary"),
        Region(pytest.approx((70, 10, 100, 30)), pytest.approx(0.5), "dogs", "open_vocabulary"),
    ]
    tokenizer = detector.processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(detector.model.asked[0]["input_ids"][0]) == (
        ["[CLS]", "red", "cat", ".", "dogs", ".", "[SEP]"]
    )


@pytest.mark.parametrize("kind", ["owlv2", "grounding_dino"])
def test_an_image_does_not_depend_on_the_others(kind, request, monkeypatch):
    detector = load_detector(request.getfixturevalue(kind), device="cpu", min_score=0.0)
    assert isinstance(detector, Detector)
    assert isinstance(detector, OpenVocabularyDetector)
    wide, tall = (Image.effect_noise(size, 90).convert("RGB") for size in ((48, 24), (30, 60)))
    images = [wide, tall, wide, wide, tall]
    captions = [CAPTION, CAPTION, CAPTION, "It is bright.", "A small red house, a cat."]
    with monkeypatch.context() as patch:
        batches = []

        def as_on_a_gpu(shapes, device):
            batches.extend(batches_of_one_shape(shapes, torch.device("cuda")))
            return batches

        patch.setattr(transformers, "batches_of_one_shape", as_on_a_gpu)
        together = find_regions(detector, images, captions)
    assert max(map(len, batches)) > 1
    assert together[3] == []
    for image, caption, regions in zip(images, captions, together, strict=True):
        (found,) = find_regions(detector, [image], [caption])
        assert [(r.label, r.source) for r in regions] == [(r.label, r.source) for r in found]
        for region, alone in zip(regions, found, strict=True):
            assert region.box == pytest.approx(alone.box, abs=1e-3)
            assert 0 <= region.box[0] < region.box[2] <= image.width
            assert 0 <= region.box[1] < region.box[3] <= image.height
    assert {region.label for region in together[4]} <= {"small red house", "cat"}
    assert all(together[index] for index in (0, 1, 2, 4))


def test_captions_are_needed(owlv2, tiny_clip):
    detector = load_detector(owlv2, device="cpu")
    picture = Image.new("RGB", (60, 30))
    with pytest.raises(ValueError, match=r"`captions`.* 1, got 2"):
        find_regions(detector, [picture], [CAPTION, CAPTION])
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    processor.detector = detector
    with pytest.raises(ValueError, match=r"`captions` must be given for the detector owlv2"):
        processor.propose_regions([picture])


def test_the_processor_passes_captions(owlv2, tiny_clip):
    from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel

    processor = FastGoalProcessor.from_base(str(tiny_clip))
    processor.detector = load_detector(owlv2, device="cpu")
    processor.detector.model = Answers([[0.15, 0.01]], [[0.25, 0.25, 0.5, 0.5]])
    picture = Image.new("RGB", (60, 30))
    (regions,) = processor.propose_regions([picture], captions=[CAPTION])
    # The detector's own least score counts, which is below the 0.25 of the others.
    assert regions[0] == Region((0, 0, 30, 30), pytest.approx(0.15), "red cat", "open_vocabulary")
    assert len(regions) == 6
    (matches,) = processor.match([picture], [CAPTION], FastGoalCLIPModel.from_base(str(tiny_clip)))
    assert len(matches) == 1


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    captions = [CAPTION, "It is very bright.", "A red cat. Dogs.", "A cat on a house.", CAPTION]
    lines = []
    for number, caption in enumerate(captions):
        Image.effect_noise((60 + 8 * number, 40), 80).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "caption": caption})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def answer(model, scores):
    """Make a model give two known boxes, the first for the first phrase and so on."""

    def forward(**inputs):
        count = len(inputs["pixel_values"])
        phrases = len(inputs["input_ids"]) // count
        logits = torch.full((count, 2, phrases), -9.0)
        for box, score in enumerate(scores[:phrases]):
            logits[:, box, box] = logit(score)
        boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.7, 0.2, 0.2, 0.4]])
        return SimpleNamespace(logits=logits, pred_boxes=boxes.expand(count, 2, 4))

    model.forward = forward


def test_the_pairs_command(owlv2, data, tiny_clip, tmp_path, tmp_path_factory, monkeypatch, capsys):
    real = pairs.load_detector
    loads = []

    def load_detector(*arguments, **options):
        detector = real(*arguments, **options)
        answer(detector.model, [0.15, 0.3])
        loads.append(detector)
        return detector

    monkeypatch.setattr(pairs, "load_detector", load_detector)
    options = ["pairs", str(data), "--model", str(tiny_clip), "--device", "cpu", "--detector", str(owlv2)]
    options += ["--shard-size", "2", "--output", str(tmp_path / "out")]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "8 open_vocabulary" in printed
    assert "1 image with default regions only" in printed
    assert loads[0].spec.min_score == 0.1
    manifest = json.loads((tmp_path / "out" / "fastgoal_pairs.json").read_text())
    spec = DetectorSpec.from_settings(manifest["settings"])
    assert spec == describe_detector(owlv2)
    assert (spec.kind, spec.name, spec.min_score, spec.max_phrases) == ("open_vocabulary", "owlv2", 0.1, 16)
    assert manifest["summary"]["without_phrases"] == 1

    def rows():
        cache = tmp_path_factory.mktemp("cache")
        return load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(cache)).to_list()

    first = rows()
    labels = [[r["label"] for r in row["regions"] if r["source"] == "open_vocabulary"] for row in first]
    assert labels == [["dogs", "red cat"], [], ["dogs", "red cat"], ["house", "cat"], ["dogs", "red cat"]]
    assert [len(row["regions"]) for row in first] == [7, 5, 7, 7, 7]
    width = 60 + 8 * 4
    box = first[4]["regions"][1]["box"]
    assert box == pytest.approx([0, 0, width / 2, 40])  # of a square of 92 pixels, cut at the picture's 40

    # It goes on where it stopped, to the same rows, and takes no others in.
    (tmp_path / "out" / "data" / "train-00001-of-00003.parquet").unlink()
    assert main(options) == 0
    assert "3 shards, 1 written now" in capsys.readouterr().out
    assert rows() == first
    assert main([*options, "--min-score", "0.2"]) == 2
    assert "0.1" in (error := capsys.readouterr().err)
    assert "0.2" in error
    assert main([*options[:-1], str(tmp_path / "other"), "--min-score", "0.2"]) == 0
    assert "4 open_vocabulary" in capsys.readouterr().out


def test_a_caption_is_needed(owlv2, data, tiny_clip, tmp_path, capsys):
    (data / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": " "}\n')
    options = ["--model", str(tiny_clip), "--device", "cpu", "--detector", str(owlv2)]
    assert main(["pairs", str(data), *options, "--output", str(tmp_path / "out")]) == 2
    assert "0.png" in capsys.readouterr().err


def test_the_explain_command_takes_it_too(owlv2, data, tiny_clip, tmp_path, capsys):
    options = ["--model", str(tiny_clip), "--device", "cpu", "--image", str(data / "0.png"), "--caption", CAPTION]
    assert main(["explain", *options, "--detector", str(owlv2), "--output", str(tmp_path / "out.png")]) == 0
    assert "1. " in capsys.readouterr().out
    assert (tmp_path / "out.png").is_file()
