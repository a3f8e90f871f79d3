"""`fastgoal inspect` on a folder with known counts, and its page in a real browser."""

import io
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image, ImageColor

from fastgoal.cli import main
from fastgoal.hub_cards.pictures import COLOURS
from fastgoal.processing.data.duplicates import CaptionDuplicates, jaccard, word_runs
from fastgoal.processing.data.pairs_dataset import features
from fastgoal.processing.regions import default_regions
from fastgoal.processing.sentences import split_sentences

SIZE = (80, 60)
LONG = "One long caption with many words that stands here for a photograph of a street. " * 4


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def row(name, caption, image, boxes=(), chosen=(), scores=(), best=0):
    """A row as `fastgoal pairs` writes it; `chosen` are the regions of the sentences, the default ones first."""
    regions = [
        {"box": list(region.box), "score": 1.0, "label": region.label, "source": "default"}
        for region in default_regions(SIZE)
    ]
    regions += [
        {"box": list(map(float, box)), "score": 0.5, "label": "thing", "source": "ultralytics"} for box in boxes
    ]
    sentences = split_sentences(caption)
    return {
        "image": {"bytes": image, "path": name},
        "file_name": name,
        "caption": caption,
        "width": SIZE[0],
        "height": SIZE[1],
        "regions": regions,
        "sentences": [{"start": sentence.start, "end": sentence.end} for sentence in sentences],
        "pairs": [
            {"sentence": place, "region": region, "score": score, "best": place == best}
            for place, (region, score) in enumerate(zip(chosen, scores, strict=True))
        ],
    }


def rows():
    return [
        row("0.jpg", "A red square. A blue square.", jpeg("red"), [(10, 10, 30, 30)], (5, 0), (0.5, 0.1)),
        row("1.jpg", "a red square; A BLUE square!", jpeg("red"), [(0, 0, 70, 50), (5, 5, 25, 25)], (6,), (0.25,)),
        row(
            "2.jpg",
            LONG + "At its end there is a house.",
            jpeg("blue"),
            (),
            (4, 4, 4, 1, 2),
            (0.0, 0.1, 0.2, 0.3, 0.4),
            4,
        ),
        row("3.jpg", LONG + "At its end there is a tree.", jpeg("white"), [(1, 1, 9, 9)], (5, 5, 5, 5, 0), (0.1,) * 5),
        row("4.jpg", "Nothing of the kind <b>here</b>.", jpeg("green"), (), (3,), (-0.2,)),
    ]


def write(folder, rows, shards=2, schema=None):
    """A finished folder of two shards."""
    (folder / "data").mkdir(parents=True)
    size = -(-len(rows) // shards)
    for number in range(shards):
        table = pyarrow.Table.from_pylist(
            rows[number * size : (number + 1) * size], schema=schema or features().arrow_schema
        )
        pyarrow.parquet.write_table(table, folder / f"data/train-{number:05d}-of-{shards:05d}.parquet")
    skipped = [{"row": 7, "reason": "metadata.jsonl line 8 (7.jpg): it is broken."}]
    manifest = {
        "settings": {"model": "owner/clip@abc", "detector": "yolo11n.pt#0123"},
        "source": "/somewhere/photographs",
        "versions": {"fastgoal": "0.1.0"},
        "summary": {"skipped": skipped},
    }
    (folder / "fastgoal_pairs.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "pairs", rows())


def inspect(folder, *arguments):
    output, numbers = folder.parent / "page.html", folder.parent / "numbers.json"
    code = main(["inspect", str(folder), "--output", str(output), "--json", str(numbers), *map(str, arguments)])
    assert code == 0
    return output.read_text(), json.loads(numbers.read_text())


def test_known_counts(folder, tiny_clip, capsys):
    page, facts = inspect(folder, "--tokenizer", tiny_clip)
    assert (facts["rows"], facts["shards"], facts["missing_shards"], facts["finished"]) == (5, 2, [], True)
    assert facts["pairs"]["count"] == 14
    assert facts["pairs"]["best_scores"]["mean"] == pytest.approx((0.5 + 0.25 + 0.4 + 0.1 - 0.2) / 5)
    assert sum(facts["pairs"]["histogram"]["counts"]) == 14
    assert sum(facts["pairs"]["best_histogram"]["counts"]) == 5
    assert facts["regions"]["by_source"] == {
        "default": {"candidates": 25, "chosen": 8, "best": 2},
        "ultralytics": {"candidates": 4, "chosen": 6, "best": 3},
    }
    assert facts["regions"]["chosen_labels"][0] == {"label": "thing", "source": "ultralytics", "chosen": 6}
    assert (facts["no_detection"]["rows"], facts["no_detection"]["files"]) == (2, ["2.jpg", "4.jpg"])
    assert facts["captions"]["sentences"]["max"] == 5
    # The tiny tokenizer has a token for every character that is not a space.
    lengths = [len(re.sub(r"\s", "", one["caption"])) + 2 for one in rows()]
    assert facts["captions"]["tokens"]["mean"] == pytest.approx(np.mean(lengths))
    assert facts["captions"]["tokens"]["truncated"] == {
        "77": {"rows": 2, "share": 0.4},
        "248": {"rows": 2, "share": 0.4},
    }
    assert facts["duplicate_captions"]["rows"] == 2
    assert facts["duplicate_captions"]["worst"][0]["files"] == ["0.jpg", "1.jpg"]
    near = facts["near_duplicate_captions"]
    assert (near["rows"], near["groups"], near["worst"][0]["files"]) == (2, 1, ["2.jpg", "3.jpg"])
    assert near["worst"][0]["jaccard"] == pytest.approx(jaccard(*(word_runs(one["caption"]) for one in rows()[2:4])))
    assert facts["duplicate_images"]["worst"] == [{"times": 2, "files": ["0.jpg", "1.jpg"]}]
    assert facts["problems"]["count"] == 0
    assert facts["shown"] == {"sample": [0, 1, 2, 3, 4], "lowest": [4, 3, 1]}

    assert "7.jpg): it is broken." in page
    assert "/somewhere" not in page  # a page that is shared names no folder of the machine it was made on
    assert "&lt;b&gt;here&lt;/b&gt;" in page
    assert "<b>here</b>" not in page
    # The mark lies where the 75 characters that are read, and the end mark, leave off.
    texts = re.findall(r'class="text">(.*?)(?:<i class="cut"|</span>)', page[page.index("2.jpg <small>") :])
    assert re.sub(r"\s", "", "".join(texts[:2])) == re.sub(r"\s", "", LONG)[:75]
    assert "5 rows in 2 shards, 14 pairs" in capsys.readouterr().out


def test_mean_cosine_is_that_of_the_model(folder, tiny_clip, capsys):
    from fastgoal import FastGoalCLIPModel, FastGoalProcessor

    page, facts = inspect(folder, "--model", tiny_clip, "--rows", 1)
    model, processor = FastGoalCLIPModel.from_pretrained(tiny_clip), FastGoalProcessor.from_pretrained(tiny_clip)
    cosines = []
    for one in rows():
        image = Image.open(io.BytesIO(one["image"]["bytes"]))
        inputs = processor(images=image, text=one["caption"], return_tensors="pt", truncation=True, max_length=77)
        with torch.no_grad():
            result = model(**inputs)
        cosines.append(float(torch.cosine_similarity(result.image_embeds, result.text_embeds)))
    found = facts["cosine"]
    assert (found["rows"], found["tokens"], found["broken"]) == (5, 77, [])
    assert found["mean"] == pytest.approx(np.mean(cosines), abs=1e-5)
    half = 1.96 * np.std(cosines, ddof=1) / 5**0.5
    assert found["interval"] == pytest.approx([found["mean"] - half, found["mean"] + half], abs=1e-5)
    assert f"{found['mean']:.4f}" in page
    assert len(facts["shown"]["sample"]) == 1
    assert facts["tokenizer"] == str(tiny_clip)


def test_without_a_tokenizer_words_are_counted(folder, capsys):
    page, facts = inspect(folder)
    assert facts["captions"]["tokens"] is None
    assert facts["tokenizer"] is None
    assert "words in the caption" in page
    assert "name one with --tokenizer" in capsys.readouterr().out


def test_bad_folders_are_one_line(folder, tmp_path, capsys):
    def error(place, *arguments):
        assert main(["inspect", str(place), "--output", str(tmp_path / "x.html"), *arguments]) == 2
        return capsys.readouterr().err

    assert "is not a folder" in error(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in error(tmp_path / "empty")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/metadata.jsonl").write_text("{}")
    assert "make pairs of them first" in error(tmp_path / "source")
    schema = features().arrow_schema
    without = pyarrow.schema([field for field in schema if field.name not in ("pairs", "width")])
    message = error(write(tmp_path / "columns", rows(), schema=without))
    assert "train-00000-of-00002.parquet lacks width, pairs.sentence" not in message
    assert "train-00000-of-00002.parquet lacks width, pairs;" in message
    assert "not one row" in error(write(tmp_path / "no-rows", [], 1))
    assert "--rows is -1" in error(folder, "--rows", "-1")
    assert "--tokenizer nowhere: its tokenizer cannot be loaded" in error(folder, "--tokenizer", "nowhere")

    shard = folder / "data/train-00001-of-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    message = error(folder)
    assert "train-00001-of-00002.parquet cannot be read" in message
    assert "run the same `fastgoal pairs` command again" in message
    # Broken between a whole beginning and end: found while reading.
    shard.write_bytes(content[:40] + bytes(len(content) // 3) + content[40 + len(content) // 3 :])
    assert "train-00001-of-00002.parquet cannot be read" in error(folder)
    assert not (tmp_path / "x.html").exists()

    shard.unlink()
    page, facts = inspect(folder)
    assert facts["missing_shards"] == ["train-00001-of-00002.parquet"]
    assert "of 2 shards 1 missing (train-00001-of-00002.parquet)" in page


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
        "row 4 (4.jpg) has a sentence that does not lie in its caption",
        "row 4 (4.jpg) has no caption",
    ]
    assert facts["pairs"]["count"] == 13


def test_near_duplicates_are_those_of_all_pairs():
    draw = random.Random(0)
    captions = []
    for number in range(300):
        words = draw.choices([f"w{n}" for n in range(60)], k=40)
        if number % 3 and captions:
            words = draw.choice(captions).split()
            for _ in range(draw.choice((0, 1, 2, 4, 9))):
                words[draw.randrange(len(words))] = f"x{draw.randrange(9)}"
        captions.append(" ".join(words))
    found = CaptionDuplicates(threshold=0.7)
    for start in range(0, len(captions), 64):
        found.add(captions[start : start + 64])
    near = found.near(lambda asked: [captions[number] for number in asked])

    # Every pair, and what hangs together by them.
    runs = [word_runs(caption) for caption in captions]
    group = list(range(len(captions)))
    for one in range(len(captions)):
        for other in range(one):
            if jaccard(runs[one], runs[other]) >= 0.7 and group[one] != group[other]:
                group = [group[other] if value == group[one] else value for value in group]
    expected = {}
    for number, value in enumerate(group):
        expected.setdefault(value, []).append(number)
    several = [members for members in expected.values() if len({captions[number] for number in members}) > 1]
    assert sorted(entry.rows for entry in near) == sorted(several)
    assert len(several) > 20
    for entry in near:
        assert entry.similarity == jaccard(*(runs[number] for number in entry.pair)) >= 0.7
    same = {}
    for number, caption in enumerate(captions):
        same.setdefault(caption, []).append(number)
    assert sorted(found.equal()) == sorted(members for members in same.values() if len(members) > 1)


def test_short_and_empty_captions_are_compared_too():
    found = CaptionDuplicates()
    captions = ["Dog", "dog!", "", "a cat", "A  cat.", "Ｄｏｇ", "", "a cat and"]
    found.add(captions)
    assert sorted(found.equal()) == [[0, 1, 5], [2, 6], [3, 4]]
    assert found.near(lambda asked: [captions[number] for number in asked]) == []


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: install chromium")
def test_page_in_a_browser(folder, tiny_clip, tmp_path, capsys):
    page, _ = inspect(folder, "--tokenizer", tiny_clip)
    # Nothing is loaded from elsewhere: images are in the page, and its policy forbids all else.
    assert set(re.findall(r'(?:src|href)="(\w+):', page)) == {"data"}
    assert "default-src 'none'; img-src data:" in page
    assert "http" not in re.sub(r'http-equiv="', "", page)

    shot = tmp_path / "shot.png"
    browse(tmp_path / "page.html", tmp_path / "profile", f"--screenshot={shot}", "--window-size=1100,2600")
    with Image.open(shot) as picture:
        pixels = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {ImageColor.getrgb(colour) for colour in COLOURS[:3]} <= pixels  # frames and numbers of three regions
    assert any(max(abs(a - b) for a, b in zip(pixel, (0, 0, 254))) <= 2 for pixel in pixels)  # the blue photograph

    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE + "</body>"))
    dom = browse(tmp_path / "probe.html", tmp_path / "profile", "--dump-dom", "--window-size=500,900")
    lit, boxes, after, wide = re.search(r'data-probe="([^"]*)"', dom)[1].split("|")
    assert lit == "box best on5,tags on5,best on5"
    assert (boxes, after, wide) == ("2", "0", "0")  # nothing sticks out on a narrow screen
