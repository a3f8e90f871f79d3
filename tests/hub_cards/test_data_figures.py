"""`fastgoal push-data`: figures that were counted by hand, a card that says them, and what arrives at the Hub."""

import json
import re
import shutil
from statistics import fmean, median

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from fastgoal.cli import main
from fastgoal.hub_cards.cards import CaptionerFacts
from fastgoal.hub_cards.data_figures import find_captioner, load_counter, measure, prepare_data_card, sample_rows
from fastgoal.processing.builders.captioner import PROMPT

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


def test_figures_are_those_counted_by_hand(made, tiny_clip, tmp_path_factory):
    figures = measure(made / "told", load_counter(str(tiny_clip)), "openai/clip-vit-base-patch16")
    # The tiny tokenizer has a token for every character but spaces, and one at either end.
    tokens = [len(caption.replace(" ", "")) + 2 for caption in CAPTIONS]
    assert (figures.tokens.mean, figures.tokens.median, figures.tokens.highest) == (
        pytest.approx(fmean(tokens)),
        median(tokens),
        max(tokens),
    )
    assert tokens[3] > 248
    assert figures.longer == {77: pytest.approx(0.2), 248: pytest.approx(0.2)}
    assert figures.tokenizer == "openai/clip-vit-base-patch16"
    assert (figures.words.mean, figures.words.median, figures.words.highest) == (pytest.approx(18.8), 10, 65)
    assert (figures.sentences.mean, figures.sentences.median, figures.sentences.highest) == (2.0, 2, 3)
    cache = str(tmp_path_factory.mktemp("cache"))
    pairs = [pair for row in load_dataset(str(made / "told"), split="train", cache_dir=cache) for pair in row["pairs"]]
    assert figures.score == pytest.approx(fmean(pair["score"] for pair in pairs))
    assert figures.best_score == pytest.approx(fmean(pair["score"] for pair in pairs if pair["best"]))

    without = measure(made / "told")
    assert without.tokens is without.tokenizer is None
    assert without.words == figures.words


def test_the_card_has_the_figures_and_the_licences(folder, made, tiny_clip):
    words = {"image_license": "CC BY 2.0, by their photographers", "caption_license": "MIT"}
    assert prepare_data_card(folder, "me/pairs", "cc-by-4.0", **words, tokenizer=str(tiny_clip))
    text = (folder / "README.md").read_text()
    figures = measure(folder, load_counter(str(tiny_clip)))
    for line in (
        f"| words | {figures.words.mean:.1f} | {figures.words.median:g} | {figures.words.highest} |",
        f"| sentences | {figures.sentences.mean:.1f} | {figures.sentences.median:g} | {figures.sentences.highest} |",
        f"| CLIP tokens (`{tiny_clip.name}`) | {figures.tokens.mean:.1f} | {figures.tokens.median:g} | "
        f"{figures.tokens.highest} |",
        f"{100 * figures.longer[77]:.1f} % of the captions are longer than 77 tokens, "
        f"{100 * figures.longer[248]:.1f} % are longer than 248 tokens: CLIP reads 77",
        f"{figures.score:.3f} over all pairs,\n{figures.best_score:.3f} over those for training.",
        "# pairs",
        'name = "me/pairs"',
        "5 images with long captions",
        "from `photographs` with `fastgoal caption` and `fastgoal pairs`",
        "| detector | none |",
        f"| model | {tiny_clip.name} |",
        "](examples/pairs.jpg)",
        "`tiny_vlm0` wrote the captions (decoding greedy, most tokens 3, number format float32)",
        f"> {PROMPT}",
        "The captions are a model's",
        "The data set: cc-by-4.0. Images: CC BY 2.0, by their photographers. Captions:\nMIT. Whoever uses it",
    ):
        assert line in text, line
    assert str(made) not in text
    assert "\n\n\n" not in text
    cut = CaptionerFacts.of_folder(made / "captions").cut
    assert cut > 0
    assert f"{cut} of 5 reached the token limit and were cut back to their last whole sentence." in text
    # A table of Markdown has no empty line in it, and one before and after.
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert f"\n\n{table}\n" in text, table
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "cc-by-4.0"
    assert data["size_categories"] == ["n<1K"]
    with Image.open(folder / "examples" / "pairs.jpg") as picture:
        assert picture.width > 1000


def test_captions_that_are_not_of_a_model(made, tmp_path, tiny_clip):
    told = shutil.copytree(made / "told", tmp_path / "told")
    assert prepare_data_card(told, "me/told", "cc0-1.0", tokenizer=None)
    text = (told / "README.md").read_text()
    assert "wrote the captions" not in text
    assert "CLIP tokens" not in text
    assert "\n\n\n" not in text
    assert "cc0-1.0. The terms of the source apply as well." in text


def test_what_wrote_the_captions_is_looked_for_and_checked(folder, made, tmp_path):
    assert find_captioner(folder).prompt == PROMPT
    assert find_captioner(folder, made / "captions") == find_captioner(folder)
    with pytest.raises(ValueError, match="is not a finished folder of `fastgoal caption`"):
        find_captioner(folder, made / "known")
    others = shutil.copytree(made / "captions", tmp_path / "others")
    lines = (others / "metadata.jsonl").read_text().splitlines()
    (others / "metadata.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match="holds other captions or images"):
        find_captioner(folder, others)
    manifest = json.loads((folder / "fastgoal_pairs.json").read_text())
    for source in (others, tmp_path / "absent"):
        (folder / "fastgoal_pairs.json").write_text(json.dumps({**manifest, "source": str(source)}))
        assert find_captioner(folder) is None


def test_a_card_changed_by_hand_is_kept(folder, tiny_clip):
    def prepare(license="cc-by-4.0", repo="me/pairs"):
        return prepare_data_card(folder, repo, license, tokenizer=None)

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


def test_samples_are_spread_over_the_data(made):
    assert [row["file_name"] for row in sample_rows(made / "told", 3)] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [row["file_name"] for row in sample_rows(made / "told", 2)] == ["0.jpg", "2.jpg"]
    assert [row["file_name"] for row in sample_rows(made / "told", 99)] == [f"{number}.jpg" for number in range(5)]
    assert all(row["image"]["bytes"] for row in sample_rows(made / "told", 2))


def test_what_is_wrong_is_said_before_anything_is_written(folder, tmp_path):
    with pytest.raises(ValueError, match=r"license='CC BY 4\.0'; expected an identifier of the Hub"):
        prepare_data_card(folder, "me/pairs", "CC BY 4.0")
    with pytest.raises(ValueError, match="not a finished data set"):
        prepare_data_card(tmp_path, "me/pairs", "cc0-1.0")
    with pytest.raises(OSError, match=r"could not be loaded: .* --tokenizer none"):
        prepare_data_card(folder, "me/pairs", "cc0-1.0", tokenizer=str(tmp_path / "absent"))
    next((folder / "data").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"has . rows in .* its summary speaks of 5"):
        prepare_data_card(folder, "me/pairs", "cc0-1.0")
    assert not (folder / "README.md").exists()


def test_dry_run_lists_the_files_and_sends_nothing(folder, tiny_clip, capsys):
    (folder / "notes.txt").write_text("not to be sent")
    arguments = ["push-data", str(folder), "me/pairs", "--license", "cc-by-4.0", "--tokenizer", str(tiny_clip)]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{folder / 'README.md'}: written" in printed
    assert "would be sent to me/pairs as a data set, 5 files, " in printed
    listed = re.findall(r"^  (\S+)  [\d.]+ k?B$", printed, re.MULTILINE)
    shards = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    assert listed == ["README.md", *shards, "examples/pairs.jpg"]
    # Without the dry run it stops before the work: there is nobody logged in.
    assert main(arguments) == 2
    assert "There is no access token for the Hub" in capsys.readouterr().err


def test_the_licence_has_to_be_stated(folder, capsys):
    assert main(["push-data", str(folder), "me/pairs"]) == 2
    assert "required: --license" in capsys.readouterr().err


LOAD = """
import sys, datasets
data = datasets.load_dataset(sys.argv[1], split="train")
print(len(data), data.features["image"], data[4]["image"].size, data[4]["caption"] == sys.argv[2])
"""


def test_what_arrives_is_a_data_set(hub, outside, folder, made, tiny_clip):
    arguments = ("--license", "cc-by-4.0", "--tokenizer", tiny_clip, "--private")
    done = outside("-m", "fastgoal", "push-data", folder, "pairs", *arguments)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "/somebody/pairs: 5 files" in done.stdout
    repo = hub.repos["datasets/somebody/pairs"]
    assert repo.private
    assert len(repo.commits) == 1
    assert b'name = "somebody/pairs"' in repo.files["README.md"]
    for content in repo.files.values():
        assert TOKEN.encode() not in content
        assert str(made).encode() not in content
    # What a reader of the card's settings gets, a picture beside the data or not.
    rows = [json.loads(line) for line in (made / "captions" / "metadata.jsonl").read_text().splitlines()]
    loaded = outside("-c", LOAD, folder, rows[4]["caption"])
    assert loaded.stdout.strip() == "5 Image(mode=None, decode=True) (52, 40) True", loaded.stderr

    # The full name that pushing put into the card does not make it a card changed by hand.
    assert prepare_data_card(folder, "pairs", "cc0-1.0", tokenizer=None)
