import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastgoal.cli import main
from fastgoal.pages.gallery import Answer, RankedModel, _answer_block, choose_queries, gallery_page, make_gallery
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource
from fastgoal.trainer.evaluation.measures.retrieval import Ranks

LONG = "A red square lies here. " * 5 + "A last sentence <b> that is not read any more."


def ranked(name, encoded):
    return RankedModel(name, encoded, encoded.ranks())


def source_of(images):
    return [SimpleNamespace(image=Image.new("RGB", (40, 30)), name=str(row)) for row in range(images)]


def test_choose_queries():
    def of(ranks):
        return RankedModel("m", None, Ranks(torch.tensor(ranks), torch.tensor(ranks), torch.arange(len(ranks))))  # type: ignore[arg-type]

    model, other = of([1, 7, 1, 3, 1]), of([2, 1, 9, 1, 1])
    assert choose_queries([model, other], "text-to-image", "examples", 2) == [2, 0]
    assert choose_queries([model], "text-to-image", "errors", 5) == [1, 3]
    assert choose_queries([model, other], "image-to-text", "both", 4) == [2, 0, 1, 3]
    with pytest.raises(ValueError, match=r"`show=errors`.*all queries"):
        choose_queries([of([1, 1])], "text-to-image", "errors", 1)


@pytest.mark.parametrize("direction", ["text-to-image", "image-to-text"])
def test_gallery_command(tiny_clip, tmp_path, direction, capsys):
    for number in range(4):
        Image.new("RGB", (30, 20 + 9 * number), (60 * number, 90, 30)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "caption": f"Picture {number}. {LONG}"} for number in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output, page = tmp_path / "gallery.png", tmp_path / "gallery.html"
    arguments = ["--model", str(tiny_clip), "--against", str(tiny_clip), "--data", str(tmp_path), "--device", "cpu"]
    files = ["--output", str(output), "--html", str(page)]
    assert main(["gallery", *arguments, "--direction", direction, "--count", "2", "-k", "1", *files]) == 0
    assert (np.asarray(Image.open(output)) == (0xC6, 0x28, 0x28)).all(axis=2).any()  # the frame of a wrong answer
    text = page.read_text(encoding="utf-8")
    # Two queries with one answer of each of two equal models, and the correct answer of a query that was missed.
    assert (text.count('<section class="query">'), text.count("<li class=")) == (2, 4)
    wrong = text.count(" wrong</b>")
    assert text.count("<h2>Errors: ") == 1
    assert "Green frame: correct" in text
    assert text.count("the correct answer has rank") == wrong
    assert text.count('<li class="correct">') == text.count(" correct</b>") == 4 - wrong
    shown = "The correct answer:" if direction == "image-to-text" else "<figcaption>the correct answer"
    assert text.count(shown) == wrong / 2 > 0
    assert "sentence &lt;b&gt;" in text
    for wrong_arguments, facts in (["--count", "0", *files], "--count"), ([], "--html"):
        assert main(["gallery", *arguments, *wrong_arguments]) == 2
        assert facts in capsys.readouterr().err


def test_marks_of_a_row_are_aligned():
    """Above images of any shape, at the left edge."""
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
    gallery = make_gallery([ranked("m", encoded)], source_of(3), [2], "image-to-text")
    assert [answer.mark for answer in gallery.groups[0][1][0].models[0].answers] == ["1: 1.000 correct"]


def test_examples_come_before_errors_under_headings_of_their_own():
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1]]), dim=1)
    texts = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.0]]), dim=1)
    encoded = EncodedSource(embeds, texts, ["one", "two", "<i>three</i>"], [0, 1, 2], [0, 1, 2], [])
    gallery = make_gallery([ranked("owner/model", encoded)], source_of(3), [2, 0], k=1)
    assert [(heading.split(":")[0], [query.content for query in queries]) for heading, queries in gallery.groups] == [
        ("Examples", ["one"]),
        ("Errors", ["<i>three</i>"]),
    ]
    missed = gallery.groups[1][1][0]
    assert (missed.models[0].note, len(missed.correct)) == ("; the correct answer has rank 2", 1)
    assert [answer.mark for answer in missed.models[0].answers] == ["1: 1.000 wrong"]
    assert gallery.introduction.startswith("The top 1 answer of owner/model among 3 images,")
    page = gallery_page(gallery)
    assert page.index("<h2>Examples: ") < page.index("<p>one</p>") < page.index("<h2>Errors: ")
    assert "&lt;i&gt;three" in page
