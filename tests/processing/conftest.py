"""The tiny CLIP as our model and processor."""

import pytest

from fastgoal import FastGoalCLIPModel, FastGoalProcessor


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_base(str(tiny_clip))


@pytest.fixture(scope="module")
def model(tiny_clip):
    return FastGoalCLIPModel.from_base(str(tiny_clip))
