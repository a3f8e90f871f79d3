import shutil
from pathlib import Path

import pytest

from fastgoal.trainer.reproduce import requirements
from fastgoal.trainer.reproduce.plan import plan
from fastgoal.trainer.reproduce.requirements import check_requirements
from fastgoal.trainer.reproduce.rows import find_row
from tests.published_files import write_docci
from tests.trainer.reproduce.fabricated import make_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def check(row, root, models, **options):
    base, detector = models
    found = find_row(row)
    made = plan(found, root, root / "out", str(base), str(detector) if found.detector else None, **options)
    return {each.name: each for each in check_requirements(made)}


def test_counts_are_compared_with_the_complete_dataset(tmp_path, models, monkeypatch):
    write_docci(tmp_path / "docci", train=3, test=2)
    found = check("docci-fastgoal-b16-docci", tmp_path, models)
    assert not [each for each in found.values() if each.is_missing]
    assert "given in place of openai/clip-vit-base-patch16" in found["base"].found
    assert found["data docci, to train on"].found == "3 images"
    assert "has 9,647 images, but the data have 3" in found["data docci, to train on"].remark
    assert "has 5,000 images, but the data have 2" in found["data docci, DOCCI test"].remark
    monkeypatch.setitem(requirements.TRAIN_IMAGES, ("docci", "train"), 3)
    assert not check("docci-fastgoal-b16-docci", tmp_path, models)["data docci, to train on"].remark


def test_what_is_missing_and_where_its_home_is(tmp_path, models):
    found = check("docci-longclip-b16", tmp_path, models)
    assert found["data longclip"].is_missing
    assert "longclip-B.pt does not exist" in found["data longclip"].found
    assert (
        "https://huggingface.co/BeichenZhang/LongCLIP-B (Apache-2.0; one file of 599 MB)"
        in found["data longclip"].found
    )
    assert found["data docci"].is_missing
    assert "https://google.github.io/docci" in found["data docci"].found
    write_docci(tmp_path / "docci", test=3)
    (tmp_path / "docci" / "images" / "test_00001.jpg").unlink()
    found = check("docci-longclip-b16", tmp_path, models)
    assert "1 of 3 images do not exist. The first is " in found["data docci"].found
    assert "test_00001.jpg" in found["data docci"].found


def test_a_folder_that_is_missing_is_named_once_and_not_looked_for_on_the_hub(tmp_path, models, monkeypatch):
    """`datasets/docci` has the form OWNER/NAME, and the row both trains and tests on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: pytest.fail("the Hub was asked"))
    base, detector = models
    made = plan(find_row("docci-fastgoal-b16-docci"), Path("datasets"), Path("out"), str(base), str(detector))
    missing = [each for each in check_requirements(made) if each.is_missing]
    assert [each.name for each in missing] == ["data docci"]
    assert missing[0].found.startswith("datasets/docci does not exist. Expected: ")


def test_models_that_are_not_on_this_machine(tmp_path, models):
    row = find_row("docci-fastgoal-b16-docci")
    base, detector, *_ = check_requirements(plan(row, tmp_path, tmp_path / "out"))
    assert base.is_missing
    assert detector.is_missing
    assert "https://huggingface.co/openai/clip-vit-base-patch16" in base.found
    assert "`hf download hustvl/yolos-base`" in detector.found
    shutil.copytree(models[0], tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    base, *_ = check_requirements(plan(row, tmp_path, tmp_path / "out", str(tmp_path / "clip")))
    assert base.is_missing
    assert "has no weights" in base.found


def test_the_cache_of_the_hub_counts(tmp_path, models, monkeypatch):
    """A copy in the form that huggingface_hub keeps, of which the base's file is converted."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--openai--clip-vit-base-patch16"
    shutil.copytree(models[0], folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    made = plan(find_row("docci-clip-b16"), tmp_path, tmp_path / "out")
    assert check_requirements(made)[0].found == "openai/clip-vit-base-patch16"
    assert made.command("convert")[2] == str(folder / "snapshots" / "abc" / "model.safetensors")
