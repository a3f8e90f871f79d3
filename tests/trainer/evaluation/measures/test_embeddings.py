import json
import types

import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot
from transformers import CLIPProcessor

from fastgoal import EvaluationOptions, evaluate
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.trainer.evaluation.measures.embeddings import encode_source

STEP = 20  # image i is gray of level STEP * i
CLASSES = 12


class OneHotClip:
    """A model that reads the number of a gray image, and of a caption ("number 3 ..."), and answers with a one-hot."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, processor, positions=77):
        self.config = types.SimpleNamespace(text_config=types.SimpleNamespace(max_position_embeddings=positions))
        self.processor = processor
        self.training = True
        self.modes = set()

    def train(self, mode):
        self.training = mode

    def eval(self):
        self.training = False

    def get_image_features(self, pixel_values):
        self.modes.add(self.training)
        image_processor = self.processor.image_processor
        mean, std = image_processor.image_mean[0], image_processor.image_std[0]
        level = (pixel_values[:, 0].mean((1, 2)) * std + mean) * 255 / STEP
        return types.SimpleNamespace(pooler_output=5.0 * one_hot(level.round().long(), CLASSES).float())

    def get_text_features(self, input_ids, attention_mask):
        self.modes.add(self.training)
        texts = self.processor.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        # Each byte is a token, and the tokenizer puts no space inside a word.
        digits = [int(text.replace(" ", "")[len("number")]) for text in texts]
        return types.SimpleNamespace(pooler_output=2.0 * one_hot(torch.tensor(digits), CLASSES).float())


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return CLIPProcessor.from_pretrained(tiny_clip)


def gray(number):
    return Image.new("RGB", (40, 36), (STEP * number,) * 3)


def write_folder(folder, rows):
    """`rows`: (image number, caption or list of captions); image i is `i.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for number, captions in rows:
            gray(number).save(folder / f"{number}.png")
            column = "captions" if isinstance(captions, list) else "caption"
            file.write(json.dumps({"file_name": f"{number}.png", column: captions}) + "\n")
    return folder


def measure(model, processor, folder, **settings):
    options = EvaluationOptions(**{"resamples": 0, "num_workers": 0, **settings})
    return evaluate(model, folder, options, processor=processor)


def test_known_ranks(processor, tmp_path):
    """Images 0 to 3; of the six captions one (of image 2) describes image 3 instead."""
    rows = [
        (0, ["number 0"]),
        (1, ["number 1", "number 1 once more"]),
        (2, ["number 3", "number 2"]),
        (3, ["number 3"]),
    ]
    model = OneHotClip(processor)
    result = measure(model, processor, write_folder(tmp_path, rows), batch_size=3, ks=(1, 4))
    assert (result.images, result.captions, result.truncated_captions, result.skipped) == (4, 6, 0, [])
    # "number 3" of image 2 is most like image 3, and ties with images 0 and 1: rank 4. The other captions find theirs.
    assert result.metrics["text_to_image_R@1"] == pytest.approx(5 / 6)
    assert result.metrics["text_to_image_R@4"] == 1.0
    assert result.metrics["text_to_image_mean_rank"] == pytest.approx(9 / 6)
    # Image 3 has its own caption beside an equally good one of image 2: rank 2. The best caption of image 2 is first.
    assert result.metrics["image_to_text_R@1"] == pytest.approx(3 / 4)
    assert result.metrics["image_to_text_mean_rank"] == pytest.approx(5 / 4)
    assert model.training
    assert model.modes == {False}


def test_truncated_captions_are_counted(processor, tmp_path):
    rows = [(0, "number 0" + " x" * 100), (1, "number 1"), (2, "number 2" + " x" * 68), (3, "number 3" + " x" * 69)]
    result = measure(OneHotClip(processor), processor, write_folder(tmp_path, rows))
    # 77 tokens are BOS, six letters, a digit, 68 x's and EOS.
    assert (result.max_text_length, result.truncated_captions, result.truncated_share) == (77, 2, 0.5)
    result = measure(OneHotClip(processor, 248), processor, tmp_path)
    assert (result.max_text_length, result.truncated_captions) == (248, 0)


@pytest.fixture
def broken_folder(tmp_path):
    """Four rows: a good one, a truncated image, a missing one, and a good one."""
    folder = write_folder(tmp_path / "data", [(i, f"number {i}") for i in range(4)])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:30])
    (folder / "2.png").unlink()
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_rows_stop(processor, broken_folder, num_workers):
    with pytest.raises(ValueError, match=r"metadata.jsonl line 2 \(1.png\).*on_error=skip"):
        measure(OneHotClip(processor), processor, broken_folder, num_workers=num_workers)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_broken_rows_are_skipped_and_listed(processor, broken_folder, batch_size):
    result = measure(OneHotClip(processor), processor, broken_folder, batch_size=batch_size, ks=(1,), on_error="skip")
    assert (result.images, result.captions) == (2, 2)
    assert [message.split("metadata.jsonl ")[1].split(":")[0] for message in result.skipped] == [
        "line 2 (1.png)",
        "line 3 (2.png)",
    ]
    assert result.metrics["text_to_image_R@1"] == 1.0


def test_nothing_left_to_evaluate(processor, tmp_path):
    folder = write_folder(tmp_path, [(0, "number 0")])
    (folder / "0.png").unlink()
    source = load_source(str(folder))
    with pytest.raises(ValueError, match=r"no usable rows\. The first of 1 errors: .*0\.png"):
        encode_source(OneHotClip(processor), processor, source, on_error="skip")
    with pytest.raises(ValueError, match=r"`on_error`.*stop.*skip.*'ignore'"):
        encode_source(OneHotClip(processor), processor, source, on_error="ignore")
