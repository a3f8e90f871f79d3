import html
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastgoal import explain
from fastgoal.cli import main
from fastgoal.hub_cards.card_images import COLORS, TAG, framed
from fastgoal.pages.explain import (
    Explanation,
    explanation_figure,
    explanation_page,
    principal_components,
    sentences_and_regions,
)
from fastgoal.processing.checkpoints.load import load_model
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
def image_file(tmp_path):
    Image.radial_gradient("L").convert("RGB").resize((60, 40)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_explain_command(tiny_clip, image_file, tmp_path, capsys):
    base = ["explain", "--model", str(tiny_clip), "--image", str(image_file), "--caption", LONG, "--device", "cpu"]
    output, page = tmp_path / "o" / "out.png", tmp_path / "out.html"
    assert main([*base, "--against", str(tiny_clip), "--output", str(output), "--html", str(page)]) == 0
    assert Image.open(output).size[0] == 1801
    text = page.read_text(encoding="utf-8")
    assert text.count('<section class="model linked">') == 2
    assert "&lt;b&gt;" in text
    assert "sentence <b>" not in text
    printed = capsys.readouterr().out
    assert "past 77 tokens" in printed
    assert printed.count("  1. ") == 2


def test_explain_leaves_the_processor_unchanged_and_scores_as_the_model_does(tiny_clip, image_file):
    model, processor = load_model(str(tiny_clip), "cpu")
    settings = dict(vars(processor))
    explanation = explain(model, processor, image_file, " A red square. Ein Kreis z. B. hier. ", language="de")
    assert vars(processor) == settings
    assert [line.text for line in explanation.lines] == ["A red square.", "Ein Kreis z. B. hier."]
    inputs = processor(images=[explanation.image], text=[explanation.caption])
    with torch.no_grad():
        outputs = model(**inputs)
    cosine = torch.nn.functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
    assert explanation.score == pytest.approx(cosine.item(), abs=1e-5)
    assert explanation.similarities.shape == (2, 4, 4)
    with pytest.raises(ValueError, match="`caption`"):
        explain(model, processor, image_file, "  ")


def explanation(*boxes, text="Sentence {}.", image=None):
    image = image or Image.new("RGB", (200, 100), "white")
    pairs = [
        LocalPair(Sentence(text.format(index), 0, 1), Region(box, 1.0, "a_label"), -0.0001, False, index, 0)
        for index, box in enumerate(boxes)
    ]
    lines, frames = sentences_and_regions(pairs, [True] * len(pairs), 77)
    similarities = torch.eye(2).expand(len(pairs), 2, 2)
    visible = (image.width / 4, 0.0, 0.75 * image.width, float(image.height))
    return Explanation(image, "A caption.", "m", 0.5, lines, frames, similarities, torch.zeros(2, 2, 3), visible)


ONE, TWO = (0.0, 0.0, 60.0, 50.0), (100.0, 40.0, 200.0, 100.0)


def test_a_sentence_has_one_color_for_all_models():
    """Two models that match the sentences to regions in another order."""
    explanations = [explanation(ONE, TWO, ONE), explanation(TWO, ONE, TWO)]
    for one in explanations:
        assert [line.color for line in one.lines] == list(COLORS[:3])
        assert sorted(tag for frame in one.frames for tag in frame.tags) == list(enumerate(COLORS[:3], 1))
        # Where a heat map is strongest, it hides the grey image: it has the sentence's color.
        for heat_map, color in zip(one.heat_maps, COLORS, strict=False):
            pixel = heat_map.getpixel((heat_map.width // 4 + 5, 5))
            assert np.abs(np.array(pixel) - ImageColor.getrgb(color)).max() < 50
    assert [frame.box for frame in explanations[1].frames] == [TWO, ONE]
    drawn = framed(explanations[0].image, explanations[0].frames, 400, 300)
    assert drawn.size == (400, 200)

    def side(box):
        x2, y2 = 2 * int(box[2]), 2 * int(box[3])
        return {drawn.getpixel((x, y2 - 3)) for x in range(x2 - 60, x2 - 3)}

    assert side(ONE) == {ImageColor.getrgb(COLORS[0]), ImageColor.getrgb(COLORS[2])}
    assert side(TWO) == {ImageColor.getrgb(COLORS[1])}
    assert drawn.getpixel((TAG[0] + 2, 17)) == ImageColor.getrgb(COLORS[2])  # number 3, next to number 1


def test_heat_maps_carry_their_sentences_and_no_text_is_code():
    one = explanation(ONE, TWO, text="A 'dog' \"{}\" <script>alert(1)</script> javascript:x.")
    page = explanation_page([one])
    captions = re.findall(r'<figcaption title="([^"]*)">.*?class="text">(.*?)</span>', page)
    assert [text for _, text in captions] == [
        html.escape(line.text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") for line in one.lines
    ]
    assert page.count("<script>") == 1  # our own
    assert "-0.000" not in page
    assert page.index("striped frame is") < page.index('<section class="model')


@pytest.mark.parametrize("size", [(40, 300), (300, 40), (60, 60)])
def test_figures_of_images_of_any_shape_keep_to_their_width(size):
    one = explanation(ONE, *[TWO] * 5, text=LONG + "{}", image=Image.effect_noise(size, 60).convert("RGB"))
    pixels = np.asarray(explanation_figure([one]))
    assert pixels.shape[1] == 1200
    narrow = np.asarray(explanation_figure([one], width=720))
    assert narrow.shape[1] == 720
    assert (pixels[:, -8:] == 255).all()  # nothing is cut off at the right edge
    assert (narrow[:, -8:] == 255).all()
    assert explanation_page([one]).count("<figure>") == 2 + 6


def test_explain_errors(tiny_clip, image_file, tmp_path, capsys):
    base = ["explain", "--model", str(tiny_clip), "--device", "cpu"]
    out = ["--output", str(tmp_path / "o.png")]
    for arguments, facts in [
        (["--image", str(image_file), "--caption", "  ", *out], "caption"),
        (["--image", str(tmp_path / "no.png"), "--caption", "A.", *out], "no.png"),
        (["--image", str(image_file), "--caption", "A.", "--output", str(tmp_path / "o.xyz")], ".png"),
    ]:
        assert main([*base, *arguments]) == 2
        assert facts in capsys.readouterr().err
