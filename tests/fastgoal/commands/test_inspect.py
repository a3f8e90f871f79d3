"""`fastgoal inspect` on a folder with known counts, and its page in a real browser."""

import json
import re
import subprocess
from pathlib import Path

import pyarrow
import pytest
from PIL import Image, ImageColor

from fastgoal.cli import main
from fastgoal.hub_cards.card_images import COLORS
from fastgoal.processing.data.pairs_dataset import features
from tests.browser import CHROMIUM, needs_browser
from tests.known_pairs import LONG, jpeg, row, rows, write
from tests.processing.data.forms.test_coco import write_coco
from tests.processing.data.test_unmatched import write_known


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "pairs", rows())


def inspect(folder, *arguments):
    output, numbers = folder.parent / "page.html", folder.parent / "numbers.json"
    code = main(["inspect", str(folder), "--output", str(output), "--json", str(numbers), *map(str, arguments)])
    assert code == 0
    return output.read_text(), json.loads(numbers.read_text())


def test_the_page_and_the_lines(folder, tiny_clip, capsys):
    page, facts = inspect(folder, "--tokenizer", tiny_clip)
    assert facts["tokenizer"] == str(tiny_clip)
    assert facts["pairs"]["count"] == 14

    # What the star and the thick frame mean is said before the first row.
    assert page.index("The thick frame and ★ mark") < page.index('<article class="row')
    assert 'class="star"' in page
    assert "5 in 2 files" in page
    assert "2 images (40.0 %) have only default regions" in page
    assert "7.jpg): it is broken." in page
    assert "/somewhere" not in page  # a page that is shared names no folder of the machine it was made on
    assert "&lt;b&gt;here&lt;/b&gt;" in page
    assert "<b>here</b>" not in page
    # The mark lies where the 75 characters that are read, and the end mark, leave off.
    texts = re.findall(r'class="text">(.*?)(?:<i class="cut"|</span>)', page[page.index("2.jpg <small>") :])
    assert re.sub(r"\s", "", "".join(texts[:2])) == re.sub(r"\s", "", LONG)[:75]
    assert "A text length of 288 holds 99 % of the captions." in page
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "5 rows in 2 shards, 14 pairs, 2.8 sentences and 30 words per caption",
        "129 tokens per caption; 40.0 % truncated at 77, 40.0 % truncated at 248; a text length of "
        "288 holds 99 %",  # the longest caption has 284
        "regions from default: 25 candidates, 2 best; from ultralytics: 4 candidates, 3 best;"
        " 2 images with default regions only",
        "duplicates: 2 rows with equal captions, 2 with nearly equal captions, 2 with equal image files",
    ]


def test_one_of_a_kind_and_almost_nothing(tmp_path, capsys):
    one = [row("<script>.jpg", 'A red square. "Two" blue squares.', jpeg("red"), (), (0, 1), (-0.0001, 0.0))]
    page, _ = inspect(write(tmp_path / "pairs", one, shards=1), "--rows", 1)
    for text in (
        "1 image with captions",
        "1 row of 1, sampled",
        "in 1 file,",
        "<b>1</b><span>image</span>",
        "2 local pairs",
    ):
        assert text in page
    assert not re.search(r"-0\.0+\b", page)
    assert "&lt;script&gt;.jpg <small>row 0, 80 x 60" in page
    assert page.count("<script>") == 1  # our own
    assert "&#34;Two&#34; blue" in page


def test_the_cosine_of_a_model(folder, tiny_clip, capsys):
    page, facts = inspect(folder, "--model", tiny_clip, "--rows", 1)
    found = facts["cosine"]
    assert f"{found['mean']:.4f}" in page
    assert f"mean cosine similarity of images and captions {found['mean']:.4f} (" in capsys.readouterr().out
    assert len(facts["shown"]["sample"]) == 1
    assert facts["tokenizer"] == str(tiny_clip)


def test_without_a_tokenizer_words_are_counted(folder, capsys):
    page, facts = inspect(folder)
    assert facts["captions"]["tokens"] is None
    assert facts["tokenizer"] is None
    assert "words in the caption" in page
    assert "Words are counted" in (printed := capsys.readouterr().out)
    assert "--tokenizer FOLDER" in printed
    inspect(folder, "--tokenizer", "none")
    assert "--tokenizer" not in capsys.readouterr().out


def test_single_things_are_not_called_many(tmp_path, capsys):
    inspect(write(tmp_path / "pairs", rows()[4:], 1), "--tokenizer", "none")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "1 row in 1 shard, 1 pair, 1.0 sentences and 5 words per caption"
    assert printed[1] == "regions from default: 5 candidates, 1 best; 1 image with default regions only"


def test_bad_folders_are_one_line(folder, tmp_path, capsys):
    def error(place, *arguments):
        assert main(["inspect", str(place), "--output", str(tmp_path / "x.html"), *arguments]) == 2
        return capsys.readouterr().err

    assert "does not exist" in error(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "empty is not in a known form" in error(tmp_path / "empty")
    assert "--limit must be left out for" in error(folder, "--limit", "2")
    schema = features().arrow_schema
    without = pyarrow.schema([field for field in schema if field.name not in ("pairs", "width")])
    message = error(write(tmp_path / "columns", rows(), schema=without))
    assert "train-00000-of-00002.parquet lacks width, pairs.sentence" not in message
    assert "train-00000-of-00002.parquet lacks the columns width, pairs;" in message
    assert "no rows in" in error(write(tmp_path / "no-rows", [], 1))
    assert "--rows" in error(folder, "--rows", "-1")
    assert "./nowhere cannot be loaded" in error(folder, "--tokenizer", "./nowhere")

    shard = folder / "data/train-00001-of-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    message = error(folder)
    assert "train-00001-of-00002.parquet cannot be read" in message
    assert "run that command again" in message
    # Broken between a whole beginning and end: found while reading.
    shard.write_bytes(content[:40] + bytes(len(content) // 3) + content[40 + len(content) // 3 :])
    assert "train-00001-of-00002.parquet cannot be read" in error(folder)
    assert not (tmp_path / "x.html").exists()

    shard.unlink()
    page, facts = inspect(folder)
    assert facts["missing_shards"] == ["train-00001-of-00002.parquet"]
    assert "1 of 2 shards missing (train-00001-of-00002.parquet)" in page


def test_broken_rows_are_shown_and_listed(tmp_path, tiny_clip, capsys):
    broken = rows()
    broken[1]["image"]["bytes"] = b"no picture"
    broken[2]["pairs"][0]["region"] = 99
    broken[3]["pairs"][0]["best"] = False
    broken[4]["caption"] = None
    page, facts = inspect(write(tmp_path / "pairs", broken), "--model", tiny_clip)
    printed = capsys.readouterr().out
    assert page.count('class="broken"') == 2  # among the rows drawn, and among those with the lowest scores
    assert len(facts["broken_images"]) == 1
    assert "row 1: 1.jpg is not an image" in facts["broken_images"][0]
    assert "broken image: row 1: 1.jpg" in printed
    assert facts["cosine"]["rows"] == 4
    assert len(facts["cosine"]["broken"]) == 1
    assert sorted(facts["problems"]["first"]) == [
        "row 2 (2.jpg) has a pair without a region, a sentence or a score",
        "row 3 (3.jpg) does not have exactly one best pair",
        "row 4 (4.jpg) has a sentence outside of its caption",
        "row 4 (4.jpg) has no caption",
    ]
    assert facts["pairs"]["count"] == 13


def test_images_with_captions_and_boxes(tmp_path, capsys):
    data = write_known(tmp_path / "data", **{"4": {"boxes": [[0, 0, 500, 9]], "labels": ["thing"]}})
    (data / "2.jpg").unlink()
    page, _ = inspect(data, "--tokenizer", "none")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "4 rows, 2.2 sentences and 21 words per caption"
    assert printed[1] == "4 boxes in 3 images"
    assert any(re.match(r"rows that cannot be used: 1, the first: .*2\.jpg.*does not exist", line) for line in printed)
    assert any(
        re.match(r"invalid rows: 1, the first: .*line 5 \(4\.jpg\).*`box_format=xywh`", line) for line in printed
    )
    # The box (10, 10, 30, 30) on an image of 80 x 60 pixels.
    assert re.search(
        r'class="box" data-region="0" style="--c:#\w+;left:12.50%;top:16.67%;width:25.00%;height:33.33%', page
    )
    assert page.count('class="box"') == 4
    assert page.count(">thing</b>") == 4
    assert "4 images with captions from data.</p>" in page
    assert str(tmp_path) not in page
    assert "<small>row 4, 80 x 60</small>" in page
    assert "1 row left out" in page
    for words in ("local pair", "Regions", "Scores", "★ mark", "shard", "exactly one best pair"):
        assert words not in page


def test_other_forms_and_captions(tmp_path, tiny_clip, capsys):
    coco = write_coco(tmp_path / "coco")
    _, facts = inspect(coco, "--split", "val2017", "--captions", "each", "--model", tiny_clip, "--limit", 4)
    assert (facts["rows"], facts["regions"]["count"], facts["cosine"]["rows"]) == (4, 8, 4)
    assert facts["duplicate_images"]["rows"] == 4
    assert main(["inspect", str(coco), "--boxes-column", "things", "--output", str(tmp_path / "x.html")]) == 2
    assert "--boxes-column must be a column of" in capsys.readouterr().err
    _, facts = inspect(write(tmp_path / "pairs", rows()), "--form", "parquet", "--tokenizer", "none")
    assert (facts["matched"], facts["rows"]) == (False, 5)


# Points at the first sentence of the first row, then says what is lit.
PROBE = """<script>
const first = document.querySelector('.row li[data-region]');
first.dispatchEvent(new MouseEvent('mouseenter'));
const lit = [...document.querySelectorAll('.on')].map(part => part.className + part.dataset.region).join(',');
const boxes = [...document.querySelectorAll('.row')][0].querySelectorAll('.box').length;
first.dispatchEvent(new MouseEvent('mouseleave'));
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.dataset.probe = [lit, boxes, document.querySelectorAll('.on').length, wide].join('|');
</script>"""


def browse(page, profile, *arguments):
    """Open a page in Chromium, with no name that resolves, and fail on any message of its console."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += " --disable-component-update --disable-dev-shm-usage --enable-logging=stderr --hide-scrollbars"
    flags += " --virtual-time-budget=2000"
    done = subprocess.run(
        [
            *(CHROMIUM, *flags.split(), "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"),
            *(*arguments, Path(page).as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@needs_browser
def test_page_in_a_browser(folder, tiny_clip, tmp_path, capsys):
    page, _ = inspect(folder, "--tokenizer", tiny_clip)
    # Nothing is loaded from elsewhere: images are in the page, and its policy forbids all else.
    assert set(re.findall(r'(?:src|href)="(\w+):', page)) == {"data"}
    assert "default-src 'none'; img-src data:" in page
    assert "http" not in re.sub(r'http-equiv="', "", page)

    shot = tmp_path / "shot.png"
    browse(tmp_path / "page.html", tmp_path / "profile", f"--screenshot={shot}", "--window-size=1100,2600")
    with Image.open(shot) as picture:
        pixels = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert {ImageColor.getrgb(color) for color in COLORS[:3]} <= pixels  # frames and numbers of three regions
    assert any(max(abs(a - b) for a, b in zip(pixel, (0, 0, 254))) <= 2 for pixel in pixels)  # the blue photograph

    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE + "</body>"))
    dom = browse(tmp_path / "probe.html", tmp_path / "profile", "--dump-dom", "--window-size=500,900")
    lit, boxes, after, wide = re.search(r'data-probe="([^"]*)"', dom)[1].split("|")
    assert lit == "box best on5,tags on5,best on5"
    assert (boxes, after, wide) == ("2", "0", "0")  # nothing sticks out on a narrow screen
