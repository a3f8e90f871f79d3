"""Train the small base model: its images, its captions, and its checkpoint."""

import random
from argparse import Namespace

import pytest
import torch

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.quickstart.drawing import enlarge
from fastgoal.quickstart.scenes import draw_scenes
from fastgoal.quickstart.train_base import Pixels, Views, square_images, train


def test_pixels_equal_those_of_the_image_processor():
    images = [scene.image for scene in draw_scenes(3)]
    image_processor = square_images(64)
    pixels = Pixels(iter(images), image_processor)
    expected = image_processor(images, return_tensors="pt")["pixel_values"]
    assert len(pixels) == 3
    torch.testing.assert_close(pixels[[2, 0]], expected[[2, 0]], atol=1e-5, rtol=0)


def test_views_show_scenes_and_enlarged_things():
    scenes = draw_scenes(3)
    views = Views(scenes, square_images(64), random.Random(0))
    assert [views.shown[row] for row in views.whole] == [(s, list(range(len(s.things)))) for s in scenes]
    assert [views.shown[row] for row in views.enlarged] == [(s, [i]) for s in scenes for i in range(len(s.things))]
    assert sorted([*views.whole, *views.enlarged]) == list(range(len(views)))
    first = enlarge(scenes[0], 0, random.Random(0))
    expected = Pixels([first], square_images(64))
    assert views[views.enlarged[:1]].equal(expected[[0]])


@pytest.mark.slow
def test_training_writes_a_checkpoint(tmp_path, caplog):
    caplog.set_level("INFO")
    train(Namespace(output=tmp_path, scenes=40, steps=2, batch_size=6, learning_rate=1e-3, seed=0))
    assert "step 2: loss" in caplog.text
    model, processor = FastGoalCLIPModel.from_base(str(tmp_path)), FastGoalProcessor.from_base(str(tmp_path))
    (scene,) = draw_scenes(1)
    logits = model(**processor(images=[scene.image], text=[scene.caption, "a red star"])).logits_per_image
    assert logits.shape == (1, 2)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=0.01)
