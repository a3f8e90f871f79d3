import html
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastgoal.cli import main
from fastgoal.hub_cards.card_images import COLORS, TAG, framed
from fastgoal.pages.explain import (
    Explanation,
    draw_explanations,
    explanation_page,
    principal_components,
    sentences_and_regions,
)
from fastgoal.processing.matching import LocalPair
from fastgoal.processing.regions import Region
from fastgoal.processing.sentences import Sentence

LONG = "A red square lies here. " * 5 + "A last sentence <b> that is not read any more."


def test_principal_components_of_three_axes():
    """Tokens that vary along three axes, the first most: each color is one axis."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.rand(60, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    found = principal_components(torch.nn.functional.pad(axes, (0, 5)))
    assert found.amin(0).tolist() == [0, 0, 0]
    assert found.amax(0).tolist() == pytest.approx([1, 1, 1])
    for axis in range(3):
        assert abs(np.corrcoef(found[:, axis], axes[:, axis])[0, 1]) > 0.95
    assert principal_components(torch.ones(9, 4)).unique().tolist() == [0.5]


@pytest.fixture
def image(tmp_path):
    Image.radial_gradient("L").convert("RGB").resize((60, 40)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_explain(tiny_clip, image, tmp_path, capsys):
    base = ["explain", "--model", str(tiny_clip), "--image", str(image), "--caption", LONG, "--device", "cpu"]
    output, page = tmp_path / "o" / "out.png", tmp_path / "out.html"
    assert main([*base, "--against", str(tiny_clip), "--output", str(output), "--html", str(page)]) == 0
    assert Image.open(output).size[0] == 1801
    text = page.read_text(encoding="utf-8")
    assert text.count('<section class="model linked">') == 2
    assert "&lt;b&gt;" in text
    assert "sentence <b>" not in text
    printed = capsys.readouterr().out
    assert "past 77 tokens: not read" in printed
    assert printed.count("  1. ") == 2


def explanation(*boxes, text="Sentence {}."):
    pairs = [
        LocalPair(Sentence(text.format(place), 0, 1), Region(box, 1.0, "a_label"), -0.0001, False, place, 0)
        for place, box in enumerate(boxes)
    ]
    lines, frames = sentences_and_regions(pairs, [True] * len(pairs), 77)
    heats = torch.eye(2).expand(len(pairs), 2, 2)
    return Explanation("m", 0.5, lines, frames, heats, torch.zeros(2, 2, 3), (50.0, 0.0, 150.0, 100.0))


ONE, TWO = (0.0, 0.0, 60.0, 50.0), (100.0, 40.0, 200.0, 100.0)


def test_a_sentence_has_its_color_whatever_the_model_finds():
    """Two models that match the sentences to regions in another order, of which one has two sentences."""
    image = Image.new("RGB", (200, 100), "white")
    panels = draw_explanations(image, [explanation(ONE, TWO, ONE), explanation(TWO, ONE, TWO)])
    for panel in panels:
        assert [line.color for line in panel.made.lines] == list(COLORS[:3])
        assert sorted(tag for frame in panel.made.frames for tag in frame.tags) == list(enumerate(COLORS[:3], 1))
        # The strongest place of a heat map, without the grey image below: the same color.
        for heat, color in zip(panel.maps, COLORS, strict=False):
            red, green, blue = heat.getpixel((heat.width // 4 + 5, 5))
            assert np.abs(np.array([red, green, blue]) - ImageColor.getrgb(color)).max() < 50
    assert [frame.box for frame in panels[1].made.frames] == [TWO, ONE]
    picture = framed(image, panels[0].made.frames, 400, 300)
    assert picture.size == (400, 200)

    def side(box):
        x2, y2 = 2 * int(box[2]), 2 * int(box[3])
        return {picture.getpixel((x, y2 - 3)) for x in range(x2 - 60, x2 - 3)}

    assert side(ONE) == {ImageColor.getrgb(COLORS[0]), ImageColor.getrgb(COLORS[2])}
    assert side(TWO) == {ImageColor.getrgb(COLORS[1])}
    assert picture.getpixel((TAG[0] + 2, 17)) == ImageColor.getrgb(COLORS[2])  # number 3, beside number 1


def test_heat_maps_carry_their_sentence_and_nothing_in_a_text_is_code():
    made = explanation(ONE, TWO, text="A 'dog' \"{}\" <script>alert(1)</script> javascript:x.")
    image = Image.new("RGB", (200, 100), "white")
    page = explanation_page(image, draw_explanations(image, [made]), "<script>alert(1)</script>")
    captions = re.findall(r'<figcaption title="([^"]*)">.*?class="text">(.*?)</span>', page)
    assert [text for _, text in captions] == [
        html.escape(one.text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") for one in made.lines
    ]
    assert page.count("<script>") == 1  # our own
    assert "-0.000" not in page
    assert page.index("A striped frame is") < page.index('<section class="model')


@pytest.mark.parametrize("size", [(40, 300), (300, 40), (60, 60)])
def test_pictures_of_any_shape_keep_to_their_width(tiny_clip, tmp_path, size, capsys):
    Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "i.png")
    output, page = tmp_path / "o.png", tmp_path / "o.html"
    arguments = ["--model", str(tiny_clip), "--image", str(tmp_path / "i.png"), "--caption", LONG, "--device", "cpu"]
    assert main(["explain", *arguments, "--output", str(output), "--html", str(page)]) == 0
    picture = np.asarray(Image.open(output).convert("RGB"))
    assert picture.shape[1] == 1200
    assert (picture[:, -8:] == 255).all()  # nothing is cut off at the right edge
    assert page.read_text(encoding="utf-8").count("<figure>") == 2 + 6


def test_explain_errors(tiny_clip, image, tmp_path, capsys):
    base = ["explain", "--model", str(tiny_clip), "--device", "cpu"]
    out = ["--output", str(tmp_path / "o.png")]
    for arguments, message in [
        (["--image", str(image), "--caption", "A."], "nothing to write"),
        (["--image", str(image), "--caption", "  ", *out], "caption is empty"),
        (["--image", str(tmp_path / "no.png"), "--caption", "A.", *out], "no.png does not exist"),
        (["--image", str(image), "--caption", "A.", "--output", str(tmp_path / "o.xyz")], "name a .png"),
    ]:
        assert main([*base, *arguments]) == 2
        assert message in capsys.readouterr().err
