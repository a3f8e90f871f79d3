"""Windows around the objects of a drawn scene."""

import random

from fastgoal.quickstart.drawing import enlarge
from fastgoal.quickstart.scenes import draw_scenes


def test_enlarged_windows_contain_the_thing():
    rng = random.Random(0)
    for scene in draw_scenes(20):
        for number, (x1, y1, x2, y2) in enumerate(scene.boxes):
            window = enlarge(scene, number, rng)
            side = max(x2 - x1, y2 - y1)
            assert window.width == window.height
            assert 0.9 * side - 1 <= window.width <= 2 * side
