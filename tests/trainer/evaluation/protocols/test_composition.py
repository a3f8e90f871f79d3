"""The items that composition benchmarks share: how they are scored, numbered and read."""

import re

import pytest
import torch
from PIL import Image

from fastgoal.trainer.evaluation.measures.intervals import accuracies
from fastgoal.trainer.evaluation.protocols.composition import Item, ItemTable, open_files
from fastgoal.trainer.evaluation.protocols.registry import ACCURACY_PROTOCOLS
from tests.composition_files import write_aro, write_sugarcrepe, write_winoground
from tests.published_files import write

NAMES = ("sugarcrepe", "aro-attribution", "aro-relation", "aro-order", "winoground")


def table_of(images: int, captions: int, items: int, **fields) -> ItemTable:
    """Return a table of items with images and captions of their own."""
    numbers = [[[*range(row * count, (row + 1) * count)] for row in range(items)] for count in (images, captions)]
    return ItemTable(*numbers, **{"subsets": [""] * items, "owners": [*range(items)], **fields})


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Rows are images, columns captions. The first image is right about both, the second too.
        ([[0.9, 0.1], [0.2, 0.8]], (True, True, True)),
        # Each image prefers its own caption, but both captions prefer the first image.
        ([[0.9, 0.8], [0.1, 0.5]], (True, False, False)),
        ([[0.9, 0.1], [0.8, 0.5]], (False, True, False)),
        ([[0.1, 0.9], [0.9, 0.1]], (False, False, False)),
        # Ties are not right.
        ([[0.5, 0.5], [0.1, 0.8]], (False, True, False)),
        ([[0.5, 0.1], [0.5, 0.8]], (True, False, False)),
    ],
)
def test_winogrounds_scores(scores, expected):
    answers = table_of(2, 2, 1).answers(torch.tensor(scores), torch.eye(2))
    assert tuple(bool(answers[name]) for name in ("text", "image", "group")) == expected


def test_one_image_with_several_captions():
    """The first caption is right, and only a caption that is more similar than all others counts."""
    texts = torch.tensor([[0.6], [0.5], [0.4], [0.6], [0.1], [0.6], [0.7], [0.1], [0.9]])
    answers = table_of(1, 3, 3).answers(torch.ones(3, 1), texts)
    assert answers["text"].tolist() == [True, False, False]
    assert answers["image"].tolist() == [True, True, True]  # there is no other image


def test_equal_captions_tie_whatever_the_shape():
    """A matrix product of this shape rounds equal columns differently on some machines."""
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.nn.functional.normalize(torch.randn(1500, 513, generator=generator), dim=1)
    text_embeds = torch.nn.functional.normalize(torch.randn(1500, 513, generator=generator), dim=1)
    table = ItemTable([[row] for row in range(1500)], [[row] * 5 for row in range(1500)], [""] * 1500, [0] * 1500)
    assert not table.answers(image_embeds, text_embeds)["text"].any()


def test_answers_are_those_of_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(2200, 8, generator=generator), torch.randn(3300, 8, generator=generator)
    table = table_of(2, 3, 1100)
    expected = []
    for row in range(1100):
        score = [
            [float(images[2 * row + i].double() @ texts[3 * row + c].double()) for c in range(3)] for i in range(2)
        ]
        text = all(score[i][i] > score[i][c] for i in range(2) for c in range(3) if c != i)
        image = all(score[i][i] > score[1 - i][i] for i in range(2))
        expected.append((text, image, text and image))
    answers = table.answers(images, texts)
    assert [*zip(*(answers[name].tolist() for name in ("text", "image", "group")), strict=True)] == expected


def test_means_over_subsets_and_items_of_one_image():
    table = table_of(1, 2, 4, subsets=["a", "b", "a", "c"], owners=[7, 7, 9, 7])
    correct = torch.tensor([True, False, False, True])
    outcomes = {
        "all": table.outcomes(correct),
        "a": table.outcomes(correct, ["a"]),
        "mean": table.outcomes(correct, ["a", "c"], by_subset=True),
    }
    assert accuracies(outcomes) == {"all": 0.5, "a": 0.5, "mean": 0.75}
    assert outcomes["all"].owner.tolist() == [0, 0, 1, 0]
    assert outcomes["a"].owner.tolist() == [0, 1]


def test_an_image_is_listed_once_for_each_box(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "b.png")
    boxes = (None, None, (1, 2, 11, 22), (1, 2, 11, 22))
    items = [Item(f"entry {n}", ("a.png",), ("x", f"y{n}"), box=box) for n, box in enumerate(boxes)]
    tables = []

    def score(table, *_):
        tables.append(table)
        return {}

    test = open_files(tmp_path, [*items, Item("entry 4", ("b.png",), ("z", "x"))], tmp_path, score, published=[5])
    test.score(torch.empty(0), torch.empty(0))
    assert [row.image if isinstance(row.image, str) else row.image.size for row in test.images] == [
        str(tmp_path / "a.png"),
        (10, 20),
        str(tmp_path / "b.png"),
    ]
    assert test.texts == ["x", "y0", "y1", "y2", "y3", "z"]
    assert tables[0].images == [[0], [0], [1], [1], [2]]
    assert tables[0].captions[-1] == [5, 0]
    assert tables[0].owners == [0, 0, 0, 0, 1]
    assert test.facts == {}
    some = open_files(tmp_path, items, tmp_path, score, published=[5, 7000])
    assert "5 or 7,000 items, but the data have 4: do not compare" in some.facts["note"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder with the files of four benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_sugarcrepe(folder, add_att=2, swap_obj=2)
    write_aro(folder, 2)
    write_winoground(folder, 1)
    write(folder / "coco_order.json", [{"image": "0000.png", "caption_options": ["a", "b", "c", "d", "e"]}])
    return folder


FILES = {
    "sugarcrepe": "add_att.json",
    "aro-attribution": "visual_genome_attribution.json",
    "aro-relation": "visual_genome_relation.json",
    "aro-order": "coco_order.json",
    "winoground": "examples.jsonl",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", FILES)
def test_a_file_of_another_benchmark_is_refused(folder, name, other):
    if FILES[name] == FILES[other]:
        return
    with pytest.raises(ValueError, match=re.escape(str(folder / FILES[other]))) as error:
        ACCURACY_PROTOCOLS[name].open(str(folder / FILES[other]))
    assert "\n" not in str(error.value)
    assert "Check that it is a file of " in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_and_images_are_named(folder, name, tmp_path):
    open_data = ACCURACY_PROTOCOLS[name].open
    (tmp_path / "empty").mkdir()
    for path, fact in ((tmp_path / "empty", FILES[name]), (tmp_path / "absent", "does not exist")):
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            open_data(str(path))
        assert fact in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / FILES[name]).write_bytes((folder / FILES[name]).read_bytes())
    with pytest.raises(ValueError, match=r"\.png does not exist in .*`image_folder`") as error:
        open_data(str(tmp_path))
    assert FILES[name] in str(error.value)
    images = {"sugarcrepe": "val2017"}.get(name, "images")
    assert len(open_data(str(tmp_path), image_folder=str(folder / images)).texts) > 1
    assert len(open_data(str(tmp_path / FILES[name]), image_folder=str(folder), limit=1).texts) > 1


@pytest.mark.parametrize("name", NAMES)
def test_images_outside_the_folder_need_permission(folder, name, tmp_path):
    content = (folder / FILES[name]).read_text().replace('"0', f'"{folder}/images/0', 1)
    write(tmp_path / "data" / FILES[name], re.sub(r'"(\d{4})\.png', rf'"{folder}/images/\1.png', content))
    (tmp_path / "data" / "images").symlink_to(folder / "images")
    with pytest.raises(ValueError, match=r"outside the folder"):
        ACCURACY_PROTOCOLS[name].open(str(tmp_path / "data"))
    ACCURACY_PROTOCOLS[name].open(str(tmp_path / "data"), allow_outside_files=True)
