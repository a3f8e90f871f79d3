"""The figure of gain against loss: axes from 0, points where their values are, and names that stay legible."""

import numpy as np
import pytest
from PIL import ImageColor

from fastgoal.hub_cards.card_images import GRAY, color_at
from fastgoal.pages.tradeoff import Axis, tradeoff_figure


@pytest.mark.parametrize(("value", "ticks"), [(50, 60), (84.2, 100), (9.6, 12), (95.3, 120), (0.4, 0.5)])
def test_axes_start_at_zero_and_end_after_the_largest_value(value, ticks):
    axis = Axis.up_to(value, 400, 100)
    assert axis.ticks[0] == 0
    assert axis.ticks[-1] == pytest.approx(ticks, abs=1e-6)
    assert 4 <= len(axis.ticks) <= 9
    assert (axis(0), axis(axis.high)) == (400, 100)


def test_points_have_the_color_of_their_name_where_their_values_are():
    # Axes to 60 and to 12: 626 and 360 units of the layout, each two pixels.
    image = np.asarray(tradeoff_figure({"before": (50, 1), "one": (0, 6), "other": (30, 10)}, "x", "y"))
    places = {(50, 1): GRAY, (0, 6): color_at(0), (30, 10): color_at(1)}
    for (x, y), color in places.items():
        column, row = 2 * (64 + 626 * x / 60), 2 * (412 - 360 * y / 12)
        assert tuple(image[round(row), round(column)]) == ImageColor.getrgb(color)
    # A line in the middle between the first point and each other one, and none between those.
    for (x, y), color in {(25, 3.5): color_at(0), (41, 5.05): color_at(1), (17, 7.2): None}.items():
        column, row = round(2 * (64 + 626 * x / 60)), round(2 * (412 - 360 * y / 12))
        found = {tuple(pixel) for pixel in image[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)}
        assert (ImageColor.getrgb(color) in found) if color else found == {(255, 255, 255)}


def test_names_of_points_at_the_same_place_do_not_overlap():
    image = np.asarray(tradeoff_figure({"before": (50, 1), "one": (30, 10), "other": (30, 10)}, "x", "y"))
    rows = [set(np.argwhere((image == ImageColor.getrgb(color_at(i))).all(2))[:, 0]) for i in (0, 1)]
    above, below = ({row for row in found if abs(row - 2 * 112) > 24 and row < 300} for found in rows)
    assert above
    assert below
    assert not above & below
