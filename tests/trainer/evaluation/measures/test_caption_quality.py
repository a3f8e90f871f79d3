"""The mean cosine of images and captions against one row after the other."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.data.pairs_dataset import PairsFolder
from fastgoal.trainer.evaluation.measures import caption_quality as quality
from fastgoal.trainer.evaluation.measures.caption_quality import mean_cosine
from tests.known_pairs import rows, write


@pytest.fixture(scope="module")
def clip(tiny_clip):
    return FastGoalCLIPModel.from_pretrained(tiny_clip), FastGoalProcessor.from_pretrained(tiny_clip)


def test_mean_cosine_is_that_of_the_model(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "BATCH", 2)
    folder = PairsFolder(write(tmp_path / "pairs", rows()))
    model, processor = clip
    cosines, embeds = [], []
    for one in rows():
        image = Image.open(io.BytesIO(one["image"]["bytes"]))
        inputs = processor(images=image, text=one["caption"], return_tensors="pt", truncation=True, max_length=77)
        with torch.no_grad():
            result = model(**inputs)
        cosines.append(float(torch.cosine_similarity(result.image_embeds, result.text_embeds)))
        embeds.append((result.image_embeds[0], result.text_embeds[0]))
    found = mean_cosine(folder, model, processor, "tiny")
    assert (found["rows"], found["tokens"], found["broken"]) == (5, 77, [])
    assert found["mean"] == pytest.approx(np.mean(cosines), abs=1e-5)
    half = 1.96 * np.std(cosines, ddof=1) / 5**0.5
    assert found["interval"] == pytest.approx([found["mean"] - half, found["mean"] + half], abs=1e-5)
    others = [torch.cosine_similarity(embeds[place][0], embeds[place - 1][1], dim=0).item() for place in range(5)]
    assert found["mismatched"] == pytest.approx(np.mean(others), abs=1e-5)
    assert sum(found["histogram"]["counts"]) == sum(found["mismatched_histogram"]["counts"]) == 5


def test_a_single_row_and_broken_images(clip, tmp_path):
    broken = rows()
    for number in range(4):
        broken[number]["image"]["bytes"] = b"no picture"
    found = mean_cosine(PairsFolder(write(tmp_path / "pairs", broken)), *clip, "tiny")
    assert (found["rows"], found["interval"], found["mismatched"], found["mismatched_histogram"]) == (
        1,
        None,
        None,
        None,
    )
    assert len(found["broken"]) == 4
    assert found["broken"][0].startswith("row 0: 0.jpg is not an image")
    broken[4]["image"]["bytes"] = b"no picture"
    with pytest.raises(ValueError, match=r"None of the 5 images.*row 0: 0\.jpg"):
        mean_cosine(PairsFolder(write(tmp_path / "none", broken)), *clip, "tiny")
    with pytest.raises(ValueError, match="`sample` must"):
        mean_cosine(PairsFolder(tmp_path / "none"), *clip, "tiny", sample=0)
