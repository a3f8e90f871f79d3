import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastgoal.cli import main
from fastgoal.hub_cards.pictures import COLOURS, TAG
from fastgoal.pages.explain import (
    ExplainedSentence,
    Explanation,
    principal_components,
    regions_picture,
    sentence_colours,
)
from fastgoal.pages.gallery import Contestant, choose_queries
from fastgoal.trainer.evaluation.retrieval import Ranks

LONG = "A red square lies here. " * 5 + "A last sentence <b> that is not read any more."


def test_principal_components_of_three_axes():
    """Tokens that vary along three axes, the first most: each colour is one axis."""
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
    assert Image.open(output).size[0] == 1800
    text = page.read_text(encoding="utf-8")
    assert text.count('<section class="model linked">') == 2
    assert "&lt;b&gt;" in text
    assert "sentence <b>" not in text
    printed = capsys.readouterr().out
    assert "past 77 tokens: not read" in printed
    assert printed.count("  1. ") == 2


def test_a_region_has_one_frame_in_the_colour_of_its_sentences():
    boxes = [(0.0, 0.0, 60.0, 50.0), (100.0, 40.0, 200.0, 100.0), (0.0, 0.0, 60.0, 50.0)]
    sentences = [
        ExplainedSentence(f"Sentence {place}.", box, "a_label", 0.5, torch.zeros(2, 2), True)
        for place, box in enumerate(boxes)
    ]
    made = Explanation("m", 0.5, sentences, torch.zeros(2, 2, 3), (50.0, 0.0, 150.0, 100.0), 77)
    assert sentence_colours(made) == [COLOURS[0], COLOURS[1], COLOURS[0]]
    picture = regions_picture(Image.new("RGB", (200, 100), "white"), made, 400, 300)
    assert picture.size == (400, 200)
    for box, colour in zip(boxes[:2], COLOURS):
        x2, y2 = 2 * int(box[2]), 2 * int(box[3])
        assert {picture.getpixel((x, y2 - 3)) for x in range(x2 - 30, x2 - 3)} == {ImageColor.getrgb(colour)}
    # The numbers of the first region's two sentences, side by side, and nothing in a third colour.
    assert picture.getpixel((2, 17)) == picture.getpixel((TAG[0] + 2, 17)) == ImageColor.getrgb(COLOURS[0])
    assert ImageColor.getrgb(COLOURS[2]) not in {colour for _, colour in picture.getcolors()}


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


def test_choose_queries():
    def of(ranks):
        return Contestant("m", None, Ranks(torch.tensor(ranks), torch.tensor(ranks), torch.arange(len(ranks))))  # type: ignore[arg-type]

    model, other = of([1, 7, 1, 3, 1]), of([2, 1, 9, 1, 1])
    assert choose_queries([model, other], "text-to-image", "examples", 2) == [2, 0]
    assert choose_queries([model], "text-to-image", "errors", 5) == [1, 3]
    assert choose_queries([model, other], "image-to-text", "both", 4) == [2, 0, 1, 3]
    with pytest.raises(ValueError, match="answers all right"):
        choose_queries([of([1, 1])], "text-to-image", "errors", 1)
    for arguments in (("up", "both", 1), ("text-to-image", "all", 1), ("text-to-image", "both", 0)):
        with pytest.raises(ValueError, match="must be"):
            choose_queries([model], *arguments)


@pytest.mark.parametrize("direction", ["text-to-image", "image-to-text"])
def test_gallery(tiny_clip, tmp_path, direction, capsys):
    for number in range(4):
        Image.new("RGB", (30, 20 + 9 * number), (60 * number, 90, 30)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "caption": f"Picture {number}. {LONG}"} for number in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "gallery.png"
    arguments = ["--model", str(tiny_clip), "--against", str(tiny_clip), "--data", str(tmp_path), "--device", "cpu"]
    assert main(["gallery", *arguments, "--direction", direction, "--count", "2", "--output", str(output)]) == 0
    colours = {tuple(pixel) for pixel in np.asarray(Image.open(output)).reshape(-1, 3)}
    assert (0xC6, 0x28, 0x28) in colours  # a wrong answer's frame
    assert main(["gallery", *arguments, "--count", "0", "--output", str(output)]) == 2
    assert "--count is 0" in capsys.readouterr().err

    page = tmp_path / "gallery.html"
    assert main(["gallery", *arguments, "--direction", direction, "--count", "2", "-k", "1", "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    # Two queries with one answer of each of two equal models; the right answer beside a query that was missed.
    assert (text.count('<section class="query">'), text.count("<li class=")) == (2, 4)
    wrong = text.count(" wrong</b>")
    assert text.count("he right answer is at place") == wrong
    assert text.count('<li class="right">') == text.count(" right</b>") == 4 - wrong
    beside = "The right answer:" if direction == "image-to-text" else "<figcaption>the right answer"
    assert text.count(beside) == wrong / 2 > 0
    assert "sentence &lt;b&gt;" in text
    assert main(["gallery", *arguments]) == 2
    assert "nothing to write" in capsys.readouterr().err
