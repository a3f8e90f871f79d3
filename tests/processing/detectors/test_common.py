"""What detectors share: batches of inputs, and regions inside an image."""

import torch

from fastgoal.processing.detectors.common import batches_of_one_shape, regions_inside
from fastgoal.processing.regions import Region


def test_only_a_cpu_gets_one_input_at_a_time() -> None:
    shapes = [(3, 32, 64), (3, 48, 32), (3, 32, 64), (3, 32, 64)]
    assert batches_of_one_shape(shapes, torch.device("cpu")) == [[0], [1], [2], [3]]
    assert batches_of_one_shape(shapes, torch.device("cuda:1")) == [[0, 2, 3], [1]]
    assert batches_of_one_shape([], torch.device("cuda")) == []


def test_boxes_are_clipped_and_empty_ones_dropped() -> None:
    boxes = [[-3.0, 2.0, 5.0, 90.0], [20.0, 0.0, 30.0, 9.0], [0.0, 0.0, float("nan"), 5.0], [4.0, 4.0, 4.0, 5.0]]
    found = regions_inside(boxes, [0.5] * 4, ["a", "b", "c", "d"], (20, 10), "mine")
    assert found == [Region((0, 2, 5, 10), 0.5, "a", "mine")]
