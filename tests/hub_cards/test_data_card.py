"""`fastgoal push-data`: the figures in the card, which were counted by hand, and the files on the Hub."""

import json
import re
import shutil
from dataclasses import asdict

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from fastgoal.cli import main
from fastgoal.hub_cards.data_card import (
    CaptionerFacts,
    DataFacts,
    find_captioner,
    open_finished,
    prepare_data_card,
    render_data_card,
    sample_rows,
    save_data_card,
)
from fastgoal.processing.builders.captioner import PROMPT
from fastgoal.processing.data.pairs_dataset import PairsFolder
from fastgoal.processing.data.statistics import inspect_pairs
from fastgoal.processing.data.tokens import TokenCounter
from fastgoal.processing.detectors.spec import DetectorSpec
from tests.known_pairs import rows, write

from .conftest import TOKEN

CAPTIONS = [
    "A red cup.",
    "A red cup stands on a table. Behind it there is a door.",
    "One. Two. Three.",
    "A " + "very " * 60 + "long road. It ends.",
    "Two birds sit on a wire. The sky is white.",
]


@pytest.fixture(scope="module")
def made(tiny_vlm, tiny_clip, tmp_path_factory):
    """`photographs`, what `fastgoal caption` and `fastgoal pairs` made of them, and `told`: pairs of known captions."""
    home = tmp_path_factory.mktemp("home_of_the_user")
    for folder in ("photographs", "known"):
        (home / folder).mkdir()
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 48 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / folder / f"{number}.jpg")
    lines = [json.dumps({"file_name": f"{number}.jpg", "caption": text}) for number, text in enumerate(CAPTIONS)]
    (home / "known" / "metadata.jsonl").write_text("\n".join(lines))

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0

    run("caption", home / "photographs", "--output", home / "captions", "--model", tiny_vlm, "--max-new-tokens", 3)
    for source, output in (("captions", "pairs"), ("known", "told")):
        places = (home / source, "--output", home / output)
        run("pairs", *places, "--model", tiny_clip, "--detector", "none", "--shard-size", 2)
    return home


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "pairs", tmp_path / "pairs")


def test_the_card_of_known_pairs(tmp_path):
    with pytest.raises(ValueError, match=r"`folder` must be a finished output folder of `fastgoal pairs`"):
        open_finished(tmp_path)
    folder = write(tmp_path / "known", rows())
    manifest = json.loads((folder / "fastgoal_pairs.json").read_text())
    detector = DetectorSpec(
        "transformers", "hustvl/yolos-base", "hustvl/yolos-base@f00", min_score=0.3, min_area=0.02, max_area=0.5
    )
    manifest["settings"] = {
        "model": "clip-b16#0123abcd", "detector": asdict(detector), "limit": None, "dtype": "float32",
        "source_rows": 12, "source_fingerprint": "abc",
    }  # fmt: skip
    (folder / "fastgoal_pairs.json").write_text(json.dumps(manifest))
    text = render_data_card(DataFacts.of_folder(PairsFolder(folder), license="cc-by-4.0"))
    assert "somewhere" not in text
    for words in (
        "5 images", "14 sentences, 14 pairs", "`photographs`", "| ultralytics | 4 | 3 |", "| default | 25 | 2 |",
        "0.210 over the best pairs", "could not be read: 1.", "cc-by-4.0. The terms", "| model | clip-b16 |",
        "| detector | hustvl/yolos-base (transformers), score from 0.3, boxes of 2 to 50 % of the image, "
        "revision f00 |",
    ):  # fmt: skip
        assert words in text, words
    settings = re.search(r"\| setting \| \|\n(?:\|.*\n)+", text)[0]
    assert re.findall(r"^\| (\w+) \|", settings, re.MULTILINE) == ["setting", "model", "detector", "dtype"]
    data = yaml.safe_load(text.split("---")[1])
    assert data["size_categories"] == ["n<1K"]
    assert data["license"] == "cc-by-4.0"
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    compile(code, "card", "exec")


def test_a_card_of_one_row(tmp_path, tiny_clip):
    folder = write(tmp_path / "one", rows()[4:])
    facts = DataFacts.of_folder(PairsFolder(folder), TokenCounter(str(tiny_clip)))
    facts.figures["captions"]["tokens"]["truncated"]["248"]["share"] = 0.0001
    text = " ".join(render_data_card(facts).split())
    assert "<0.1 % are longer than 248 tokens" in text
    assert "1 image with long captions" in text
    assert "matches it best: 1 sentence, 1 pair. Made" in text


def test_the_card_has_the_figures_and_the_licenses(folder, made, tiny_clip):
    words = {"image_license": "CC BY 2.0, by their photographers", "caption_license": "MIT"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    files = prepare_data_card(folder, "me/pairs", "cc-by-4.0", **words, tokenizer=str(tiny_clip))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    save_data_card(folder, files)
    text = (folder / "README.md").read_text()
    figures = inspect_pairs(PairsFolder(folder), TokenCounter(str(tiny_clip)))
    scores, captions = figures["pairs"], figures["captions"]

    def table_row(name, spread):
        return f"| {name} | {spread['mean']:.1f} | {spread['median']:g} | {spread['max']:g} |"

    cut = {limit: 100 * share["share"] for limit, share in captions["tokens"]["truncated"].items()}
    for line in (
        table_row("words", captions["words"]),
        table_row("sentences", captions["sentences"]),
        table_row(f"CLIP tokens (`{tiny_clip.name}`)", captions["tokens"]),
        f"{cut['77']:.1f} % of the captions are longer than 77 tokens, "
        f"{cut['248']:.1f} % are longer than 248 tokens. CLIP reads 77",
        f"A text length of {captions['tokens']['fitting']} holds 99 % of the captions.\n",
        f"{scores['scores']['mean']:.3f} over all pairs,\n{scores['best_scores']['mean']:.3f} over the best pairs.",
        "# pairs",
        'name = "me/pairs"',
        "5 images with long captions",
        "from `photographs` with `fastgoal caption` and `fastgoal pairs`",
        "| detector | none (the five default regions only) |",
        f"| model | {tiny_clip.name} |",
        "](examples/pairs.jpg)",
        "`tiny_vlm0` wrote the captions (decoding greedy, max_new_tokens 3, dtype float32)",
        f"> {PROMPT}",
        "The captions were generated.",
        "Dataset: cc-by-4.0. Images: CC BY 2.0, by their photographers. Captions:\nMIT. All of them apply.",
    ):
        assert line in text, line
    assert str(made) not in text
    assert "\n\n\n" not in text
    cut = CaptionerFacts.of_folder(made / "captions").cut
    assert cut > 0
    assert f"{cut} of 5 reached the token limit and were shortened to their last complete sentence." in text
    # A Markdown table has no empty line inside, and one before and after it.
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert f"\n\n{table}\n" in text, table
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    with Image.open(folder / "examples" / "pairs.jpg") as image:
        assert image.width > 1000


def test_captions_of_people(made, tmp_path):
    told = shutil.copytree(made / "told", tmp_path / "told")
    text = prepare_data_card(told, "me/told", "cc0-1.0", tokenizer="none")["README.md"].decode()
    assert "wrote the captions" not in text
    assert "CLIP tokens" not in text
    assert "\n\n\n" not in text
    assert "cc0-1.0. The terms of the source also apply." in text


def test_the_captioner_is_found_and_checked(folder, made, tmp_path):
    assert find_captioner(PairsFolder(folder)).prompt == PROMPT
    assert find_captioner(PairsFolder(folder), made / "captions") == find_captioner(PairsFolder(folder))
    with pytest.raises(
        ValueError, match=r"`captions` must be a finished output folder of `fastgoal caption`, got .*known"
    ):
        find_captioner(PairsFolder(folder), made / "known")
    others = shutil.copytree(made / "captions", tmp_path / "others")
    lines = (others / "metadata.jsonl").read_text().splitlines()
    (others / "metadata.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"`captions` must .*others"):
        find_captioner(PairsFolder(folder), others)
    manifest = json.loads((folder / "fastgoal_pairs.json").read_text())
    for source in (others, tmp_path / "absent"):
        (folder / "fastgoal_pairs.json").write_text(json.dumps({**manifest, "source": str(source)}))
        assert find_captioner(PairsFolder(folder)) is None


def test_an_edited_card_is_kept(folder):
    def prepare(license="cc-by-4.0", repo="me/pairs"):
        files = prepare_data_card(folder, repo, license, tokenizer="none")
        if files:
            save_data_card(folder, files)
        return bool(files)

    card = folder / "README.md"
    assert prepare()
    assert prepare("cc0-1.0")
    assert "license: cc0-1.0" in card.read_text()
    card.write_text(card.read_text() + "\nThanks to everybody.\n")
    assert not prepare()
    assert "license: cc0-1.0" in card.read_text()
    assert card.read_text().endswith("Thanks to everybody.\n")
    card.unlink()
    assert prepare()


def test_sample_rows(made):
    told = PairsFolder(made / "told")
    assert [row["file_name"] for row in sample_rows(told)] == ["0.jpg", "2.jpg", "4.jpg"]
    assert all(row["image"]["bytes"] for row in sample_rows(told))


def test_errors_come_before_anything_is_written(folder, tmp_path):
    with pytest.raises(ValueError, match=r"`license` must be .*'CC BY 4\.0'"):
        prepare_data_card(folder, "me/pairs", "CC BY 4.0")
    with pytest.raises(ValueError, match="`folder` must be a finished"):
        prepare_data_card(tmp_path, "me/pairs", "cc0-1.0")
    with pytest.raises(ValueError, match=r"absent.*cannot be loaded"):
        prepare_data_card(folder, "me/pairs", "cc0-1.0", tokenizer=str(tmp_path / "absent"))
    next((folder / "data").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"has . rows.* 5"):
        prepare_data_card(folder, "me/pairs", "cc0-1.0")
    assert not (folder / "README.md").exists()


def test_dry_run_lists_the_files_and_sends_nothing(folder, tiny_clip, capsys):
    (folder / "notes.txt").write_text("not to be sent")
    arguments = ["push-data", str(folder), "me/pairs", "--license", "cc-by-4.0", "--tokenizer", str(tiny_clip)]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{folder / 'README.md'}: would be written" in printed
    assert "would publish 1 image file: examples/pairs.jpg\n" in printed
    assert not (folder / "README.md").exists()
    assert not (folder / "examples").exists()
    assert "would be sent to me/pairs as a dataset, 5 files, " in printed
    assert printed.endswith("not sent: fastgoal_pairs.json, notes.txt\n")
    listed = re.findall(r"^  (\S+)  [\d.]+ k?B$", printed, re.MULTILINE)
    shards = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    assert listed == ["README.md", *shards, "examples/pairs.jpg"]
    # Without a dry run it stops before the work, since nobody is logged in.
    assert main(arguments) == 2
    assert "no access token" in capsys.readouterr().err


def test_a_license_is_required(folder, capsys):
    assert main(["push-data", str(folder), "me/pairs"]) == 2
    assert "--license" in capsys.readouterr().err


def test_the_dataset_loads_as_its_card_says(online, folder, made, tiny_clip, capsys):
    arguments = ("--license", "cc-by-4.0", "--tokenizer", str(tiny_clip), "--private")
    assert main(["push-data", str(folder), "pairs", *arguments]) == 0
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert "/somebody/pairs: 5 files" in printed.out
    repo = online.repos["datasets/somebody/pairs"]
    assert repo.private
    assert len(repo.commits) == 1
    assert b'name = "somebody/pairs"' in repo.files["README.md"]
    for content in repo.files.values():
        assert TOKEN.encode() not in content
        assert str(made).encode() not in content
    # The card names the data files, so that the image next to them is not loaded.
    rows = [json.loads(line) for line in (made / "captions" / "metadata.jsonl").read_text().splitlines()]
    data = datasets.load_dataset(str(folder), split="train")
    assert (len(data), data[4]["image"].size, data[4]["caption"]) == (5, (52, 40), rows[4]["caption"])

    # The full name that the push wrote into the card does not count as an edit.
    assert prepare_data_card(folder, "pairs", "cc0-1.0", tokenizer="none")
