import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastgoal.cli import main
from fastgoal.pages.gallery import (
    Answer,
    Contestant,
    _answer_block,
    choose_queries,
    contestant,
    draw_gallery,
    gallery_page,
)
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource
from fastgoal.trainer.evaluation.measures.retrieval import Ranks

LONG = "A red square lies here. " * 5 + "A last sentence <b> that is not read any more."


def test_choose_queries():
    def of(ranks):
        return Contestant("m", None, Ranks(torch.tensor(ranks), torch.tensor(ranks), torch.arange(len(ranks))))  # type: ignore[arg-type]

    model, other = of([1, 7, 1, 3, 1]), of([2, 1, 9, 1, 1])
    assert choose_queries([model, other], "text-to-image", "examples", 2) == [2, 0]
    assert choose_queries([model], "text-to-image", "errors", 5) == [1, 3]
    assert choose_queries([model, other], "image-to-text", "both", 4) == [2, 0, 1, 3]
    with pytest.raises(ValueError, match="answers all right"):
        choose_queries([of([1, 1])], "text-to-image", "errors", 1)


@pytest.mark.parametrize("direction", ["text-to-image", "image-to-text"])
def test_gallery(tiny_clip, tmp_path, direction, capsys):
    for number in range(4):
        Image.new("RGB", (30, 20 + 9 * number), (60 * number, 90, 30)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "caption": f"Picture {number}. {LONG}"} for number in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "gallery.png"
    arguments = ["--model", str(tiny_clip), "--against", str(tiny_clip), "--data", str(tmp_path), "--device", "cpu"]
    assert main(["gallery", *arguments, "--direction", direction, "--count", "2", "--output", str(output)]) == 0
    colors = {tuple(pixel) for pixel in np.asarray(Image.open(output)).reshape(-1, 3)}
    assert (0xC6, 0x28, 0x28) in colors  # a wrong answer's frame
    assert main(["gallery", *arguments, "--count", "0", "--output", str(output)]) == 2
    assert "--count is 0" in capsys.readouterr().err

    page = tmp_path / "gallery.html"
    assert main(["gallery", *arguments, "--direction", direction, "--count", "2", "-k", "1", "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    # Two queries with one answer of each of two equal models; the right answer beside a query that was missed.
    assert (text.count('<section class="query">'), text.count("<li class=")) == (2, 4)
    wrong = text.count(" wrong</b>")
    assert text.count("<h2>Errors: ") == 1
    assert "Green frame: right" in text
    assert text.count("he right answer is at place") == wrong
    assert text.count('<li class="right">') == text.count(" right</b>") == 4 - wrong
    beside = "The right answer:" if direction == "image-to-text" else "<figcaption>the right answer"
    assert text.count(beside) == wrong / 2 > 0
    assert "sentence &lt;b&gt;" in text
    assert main(["gallery", *arguments]) == 2
    assert "nothing to write" in capsys.readouterr().err


def test_marks_of_a_row_are_in_line():
    """Above pictures of any shape, at the left edge."""
    inks = []
    for size in ((300, 40), (40, 300), (90, 90)):
        block = np.asarray(_answer_block(Answer(Image.new("RGB", size, "white"), "1: 0.123 wrong", False), 5, 1400))
        text = (block[:22] < 128).any(axis=2)
        inks.append((text.any(axis=1).argmax(), text.any(axis=0).argmax()))
        assert (block[21, 0] == 255).all()
        assert (block[22, 0] == (0xC6, 0x28, 0x28)).all()  # the frame begins right below, flush left
    assert len(set(inks)) == 1


def test_an_image_beyond_the_number_of_captions_can_be_a_query():
    embeds = torch.eye(3)
    encoded = EncodedSource(embeds, embeds[2:], ["the third"], [2], [0, 1, 2], [])
    source = [SimpleNamespace(image=Image.new("RGB", (40, 30)), name=str(row)) for row in range(3)]
    gallery = draw_gallery([contestant("m", encoded)], source, [2], "image-to-text")
    assert [answer.mark for answer in gallery.groups[0][1][0].found[0].answers] == ["1: 1.000 right"]


def test_examples_come_before_errors_under_headings_of_their_own():
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1]]), dim=1)
    texts = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.0]]), dim=1)
    encoded = EncodedSource(embeds, texts, ["one", "two", "<i>three</i>"], [0, 1, 2], [0, 1, 2], [])
    source = [SimpleNamespace(image=Image.new("RGB", (40, 30)), name=str(row)) for row in range(3)]
    model = contestant("owner/model", encoded)
    gallery = draw_gallery([model], source, [2, 0], k=1)
    assert [(heading.split(":")[0], [query.asked for query in queries]) for heading, queries in gallery.groups] == [
        ("Examples", ["one"]),
        ("Errors", ["<i>three</i>"]),
    ]
    missed = gallery.groups[1][1][0]
    assert (missed.found[0].note, len(missed.right)) == ("; the right answer is at place 2", 1)
    assert [answer.mark for answer in missed.found[0].answers] == ["1: 1.000 wrong"]
    assert gallery.lead.startswith("The first answer of owner/model among 3 images,")
    page = gallery_page(gallery)
    assert page.index("<h2>Examples: ") < page.index("<p>one</p>") < page.index("<h2>Errors: ")
    assert "&lt;i&gt;three" in page
