"""The README and the pages of docs/: every link leads somewhere, every command line parses, every Python block runs.

What the pages call openai/clip-vit-base-patch16, my-model, photograph.jpg and so on is there in small.
"""

import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastgoal
from fastgoal import FastGoalCLIPModel, FastGoalProcessor, build_embeddings
from fastgoal.cli import COMMANDS, build_parser
from fastgoal.search.search import search_images
from fastgoal.trainer import training_arguments
from fastgoal.trainer.run import parse
from tests.browser import needs_browser, open_page
from tests.squares import COLORS, image_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "study" / "STUDY.md"]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
NOTEBOOK = ROOT / "docs" / "start.ipynb"


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def commands(text: str) -> list[list[str]]:
    """The `fastgoal` command lines of a text, without variables set before them."""
    lines = text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r" [>&].*", "", line) for line in lines]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"\s*(\w+=\S+ )*fastgoal ", line)]
    return [words[words.index("fastgoal") + 1 :] for words in found]


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) < 150


def test_the_names_of_the_python_page_come_from_fastgoal():
    page, losses = TEXTS["docs/python.md"].split("## Losses")
    names = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE)) | {"LossWeights"}
    assert names == {*fastgoal.__all__} - {"__version__"}
    assert "LossWeights" in losses


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*TEXTS, "docs/start.ipynb"])
def test_links_lead_somewhere(page):
    text = TEXTS.get(page) or "".join("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", [page for page in TEXTS if commands("\n".join(blocks(TEXTS[page], "sh")))])
def test_command_lines_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Packages that a page says to install need not be here.
    monkeypatch.setattr(training_arguments, "get_available_reporting_integrations", lambda: ["tensorboard", "wandb"])
    (tmp_path / "config.yaml").write_text(blocks(TEXTS["docs/training.md"], "yaml")[0])
    for words in commands("\n".join(blocks(TEXTS[page], "sh"))):
        args = build_parser().parse_args(words)
        if words[0] == "train":
            parse(args.arguments)


def test_examples_of_the_help_parse():
    count = 0
    for name in COMMANDS:
        module = importlib.import_module(f"fastgoal.commands.{name.replace('-', '_')}")
        for words in commands(getattr(module, "EPILOG", "")):
            if "--caption-file" not in words:  # would be read at once
                build_parser().parse_args(words)
                count += 1
    assert count > 15


def test_the_settings_run_without_a_gpu(tmp_path):
    (text,) = blocks(TEXTS["docs/training.md"], "yaml")
    (tmp_path / "config.yaml").write_text(text)
    _, args = parse([str(tmp_path / "config.yaml")])
    assert args.bf16
    assert args.use_cpu is not torch.accelerator.is_available()


@pytest.fixture(scope="module")
def place(tiny_clip, tiny_bases, tmp_path_factory):
    """A folder with all that the pages' Python blocks name."""
    place = tmp_path_factory.mktemp("reader")
    (place / "openai").mkdir()
    (place / "openai" / "clip-vit-base-patch16").symlink_to(tiny_clip)
    (place / "google").mkdir()
    (place / "google" / "siglip2-base-patch16-224").symlink_to(tiny_bases["siglip2"])
    FastGoalCLIPModel.from_base(str(tiny_clip)).save_pretrained(place / "my-model")
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(place / "my-model")
    for name in ("photograph.jpg", "dog.jpg"):
        Image.radial_gradient("L").convert("RGB").resize((60, 40)).save(place / name)
    (place / "test").mkdir()
    with open(place / "test" / "metadata.jsonl", "w", encoding="utf-8") as file:
        for first, second in itertools.permutations(COLORS, 2):
            image_of(first, second).save(place / "test" / f"{first}-{second}.png")
            caption = f"On the left it is {first}. On the right it is {second}."
            file.write(json.dumps({"file_name": f"{first}-{second}.png", "caption": caption}) + "\n")
    return place


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(TEXTS[page], "python")])
def test_python_blocks_run(page, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    shutil.rmtree("fast-goal", ignore_errors=True)  # the output folder of every page that trains
    if '"vectors' in TEXTS[page]:  # anew, because other pages train the model
        shutil.rmtree("vectors", ignore_errors=True)
        build_embeddings("test", "vectors", "my-model", progress=False)
    names: dict = {}
    for block in blocks(TEXTS[page], "python"):
        packages = set(
            re.findall(
                r"^(?:from|import) (mteb|sentence_transformers|duckdb|qdrant_client|pymilvus)", block, re.MULTILINE
            )
        )
        if any(importlib.util.find_spec(name) is None for name in packages) or "http" in block:
            continue  # addresses of servers; the requests of the client are tested in tests/hub_cards/test_handler.py
        exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    if page == "README.md":
        assert "<- used in training" in printed
    if "app" in names:  # the service finds what `fastgoal search` finds
        from fastapi.testclient import TestClient

        answer = TestClient(names["app"]).get("/search", params={"text": "On the left it is red.", "limit": 3}).json()
        hits = search_images("vectors", "my-model", "On the left it is red.", top_k=3).hits
        assert [hit["file_name"] for hit in answer] == [hit.path.name for hit in hits]
        assert [hit["score"] for hit in answer] == pytest.approx([hit.score for hit in hits], abs=1e-3)
    if "recall" in names:  # what mteb found is what `fastgoal evaluate` finds
        from fastgoal import evaluate

        assert names["recall"] == pytest.approx(evaluate("my-model", "test").metrics["text_to_image_R@1"], abs=1e-4)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as `make docs` builds it."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    return site


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    names = {page.removesuffix(".md") for page in TEXTS if page != "README.md"}
    assert {name.removeprefix("docs/") + ".html" for name in names - {"benchmarks/README"}} <= pages
    assert {"start.html", "benchmarks/index.html"} <= pages
    text = (site / "python.html").read_text(encoding="utf-8")
    for name in ("from_base", "pair_rows", "token_similarity_loss", "ImageIndex", "retrieval_metrics"):
        assert name in text, name
    assert not re.search(r"&gt;&gt;&gt;|doctest|require_patch_size", text)
    for returned in re.findall(r"Returns:</span></p>\s*<ul>(.*?)</ul>", text, re.DOTALL):
        assert returned.count("<li") == 1, "a description of several lines is one value"
    assert "Returns:</span></p>" in text
    text = (site / "commands.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f">fastgoal {name}<" in text
    for flag in ("--box-format", "--alpha", "--tsl_weight", "--max_text_length", "--server"):
        assert f'<code><span class="option">{flag}</span>' in text
    for cell in re.findall(r"<td>(.*?)</td>", text, re.DOTALL)[::2]:
        assert len(re.sub(r"<[^>]*>", "", cell)) < 100, "the column of the names must leave room for the meanings"
    text = (site / "training.html").read_text(encoding="utf-8")
    assert not re.search(r"\. - \w|^- ", re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL), re.MULTILINE)
    assert not (site / "404.html").exists()
    for page in pages:
        html = (site / page).read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]+)", html)
        fetched += re.findall(r"<link[^>]*rel=\"stylesheet\"[^>]*href=\"(https?:[^\"]+)", html)
        assert not fetched, page


@pytest.mark.slow
@needs_browser
def test_the_site_is_searched_from_the_disk(site):
    with open_page() as page:
        page.goto((site / "benchmarks/study/STUDY.html").as_uri())
        # Key by key: the search listens to keys alone, and reads a text that is filled in only if it is quick enough.
        page.locator("input.md-search__input").press_sequentially("gradient caching")
        page.wait_for_selector(".md-search-result__item a[href*='training.html']", state="attached")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    printed = "".join(output.get("text", "") for output in outputs)
    for fact in ("300 images, 0 skipped", "in my-model", "Compared with base-clip", "Figure: explained.png"):
        assert fact in printed, fact
    assert re.search(r"R@5, text to image .* yes ", printed), "training changed nothing"
    assert "200 images, 200 embedded now" in printed
