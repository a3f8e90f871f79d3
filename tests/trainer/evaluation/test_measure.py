"""Measuring loaded models on open tests."""

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from fastgoal import EvaluationOptions
from fastgoal.processing.data.image_folder import ImageFolder
from fastgoal.trainer.evaluation.measure import OpenTest, measure
from fastgoal.trainer.evaluation.measures.outcomes import Outcomes
from fastgoal.trainer.evaluation.protocols.protocol import AccuracyProtocol, AccuracyTest


@pytest.fixture(scope="module")
def loaded(tiny_clip):
    return CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 36), (80 * number, 9, 200 - 60 * number)).save(tmp_path / f"{number}.png")
    return tmp_path


def open_images(folder, score):
    """Return an open test of a protocol as another file would define it."""
    protocol = AccuracyProtocol("example", "Example", "images/", lambda data: None)
    test = AccuracyTest(ImageFolder(folder), ["One.", "Two.", "One."], score, {"captions": "three"})
    return OpenTest(protocol, str(folder), test, EvaluationOptions(resamples=20, batch_size=2))


def test_a_protocol_scores_the_embeddings_of_its_images_and_texts(loaded, images):
    """They are those of the model itself, in the order of the images and texts."""
    model, processor = loaded
    given = []

    def score(image_embeds, text_embeds):
        given.extend((image_embeds, text_embeds))
        return {"first": Outcomes(torch.tensor([True, False, True])), "second": Outcomes(torch.tensor([True]))}

    measured = measure(model, processor, open_images(images, score), "tiny")
    inputs = processor(
        images=[Image.open(images / f"{number}.png") for number in range(3)],
        text=["One.", "Two.", "One."],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        outputs = model(**inputs)
    assert torch.allclose(given[0], outputs.image_embeds, atol=1e-5)
    assert torch.allclose(given[1], outputs.text_embeds, atol=1e-5)
    assert measured.result.metrics == {"first": pytest.approx(2 / 3), "second": 1.0}
    assert measured.items == {"first": 3, "second": 1}
    assert measured.result.model == "tiny"
    low, high = measured.intervals()["first"]
    assert low <= 2 / 3 <= high
    assert measured.compared_with(measured)["first"].difference == 0


def test_a_broken_image_is_named(loaded, images):
    (images / "1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1\.png") as error:
        measure(*loaded, open_images(images, None))
    assert "\n" not in str(error.value)
    assert "on_error" not in str(error.value).split("Repair or remove the row.")[-1]
