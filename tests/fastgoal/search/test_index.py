"""The index on disk: what an update embeds and stores, exact results, damage, kills, other processes, no network."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lancedb")

from fastgoal.processing.files import hold_folder
from fastgoal.search import index as index_module
from fastgoal.search.index import ImageIndex, _list_files
from tests.locks import held_by_another

NEW = 'it\'s "new" \\ \n.png'


def save_image(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, 0, 0)).save(path)


def angle(level):
    level = torch.tensor(level / 200)
    return torch.stack([level.cos(), level.sin()])


@pytest.fixture
def embedded(monkeypatch):
    """A model whose embedding is the red level of an image as an angle; gives the names of the files it embedded."""
    seen = []

    def embed(model, processor, images, *args):
        images = [image if isinstance(image, Image.Image) else Image.open(image) for image in images]
        seen.extend(os.path.basename(image.filename) for image in images if hasattr(image, "filename"))
        return torch.stack([angle(image.convert("RGB").getpixel((0, 0))[0]) for image in images])

    monkeypatch.setattr(index_module, "embed_images", embed)
    monkeypatch.setattr(index_module, "embed_texts", lambda m, p, texts: torch.stack([angle(int(t)) for t in texts]))
    monkeypatch.setattr(index_module, "embedder_fingerprint", lambda model, processor: model)
    return seen


@pytest.fixture
def folder(tmp_path):
    for level in (10, 60, 110, 160):
        save_image(tmp_path / "images" / "sub" / f"{level}.png", level)
    return tmp_path / "images"


def open_index(folder, model="one", **kwargs):
    return ImageIndex(folder, model, None, model_name=f"model {model}", **kwargs)


def names(hits):
    return [hit.path.name for hit in hits]


def test_search_returns_the_nearest_and_an_update_embeds_only_what_is_new(folder, embedded):
    index = open_index(folder)
    update = index.update()
    assert (update.encoded, update.images, len(index)) == (4, 4, 4)
    assert names(index.search("100", 3)) == ["110.png", "60.png", "160.png"]
    assert index.search("110", 1)[0].score == pytest.approx(1.0, abs=1e-3)
    assert len(index.search("100", 99)) == 4  # more than the folder has

    embedded.clear()
    assert open_index(folder).update().encoded == 0
    assert embedded == []
    save_image(folder / NEW, 105)
    save_image(folder / "sub" / "60.png", 200)
    os.utime(folder / "sub" / "60.png", ns=(1, 1))
    (folder / "sub" / "160.png").unlink()
    update = open_index(folder).update()
    assert (update.images, update.encoded, update.removed) == (4, 2, 1)
    assert sorted(embedded) == ["60.png", NEW]
    os.utime(folder / NEW, ns=(2, 2))
    assert open_index(folder).update().encoded == 1
    reopened = open_index(folder)
    assert reopened.update().encoded == 0
    assert names(reopened.search("190", 2)) == ["60.png", "110.png"]


def test_an_image_is_not_its_own_result_under_any_of_its_names(folder, tmp_path, embedded):
    os.link(folder / "sub" / "110.png", folder / "link.png")
    (folder / "copy.png").write_bytes((folder / "sub" / "110.png").read_bytes())
    index = open_index(folder)
    index.update()
    path = folder / "sub" / ".." / "link.png"
    assert sorted(index.names_of(path)) == ["link.png", "sub/110.png"]
    results = names(index.search(path, 4))
    assert results[0] == "copy.png"  # a copy is another file
    assert sorted(results) == ["10.png", "160.png", "60.png", "copy.png"]
    save_image(tmp_path / "elsewhere.png", 110)
    assert index.names_of(tmp_path / "elsewhere.png") == []


def test_broken_images_are_skipped_and_tried_again_only_when_changed(folder, embedded):
    (folder / "torn.jpg").write_bytes(b"no image")
    update = open_index(folder).update()
    assert list(update.skipped) == ["torn.jpg"]
    assert update.images == 4
    embedded.clear()
    assert open_index(folder).update().skipped == update.skipped
    assert embedded == []
    (folder / "torn.jpg").write_bytes(b"still no image")
    assert [*open_index(folder).update().skipped] == ["torn.jpg"]
    save_image(folder / "torn.jpg", 1)
    assert open_index(folder).update().skipped == {}


def test_names_that_are_not_text_and_links_that_lead_out_are_skipped_and_listed(folder, tmp_path, embedded):
    save_image(tmp_path / "outside.png", 50)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inside.png").symlink_to(folder / "sub" / "10.png")
    shutil.copy(folder / "sub" / "10.png", os.fsencode(folder) + b"/\xff.png")
    update = open_index(folder).update()
    assert update.images == 5
    assert sorted(update.skipped) == ["\\xff.png", "link.png"]
    assert "UTF-8" in update.skipped["\\xff.png"]
    assert "`allow_outside_files`" in update.skipped["link.png"]
    allowed = open_index(folder, allow_outside_files=True).update()
    assert (allowed.images, allowed.encoded, [*allowed.skipped]) == (6, 1, ["\\xff.png"])
    assert open_index(folder).update().removed == 1


def test_an_index_of_another_model_is_refused_unless_it_is_rebuilt(folder, embedded):
    open_index(folder).update()
    with pytest.raises(ValueError, match=r"another model, model one.*`index`.*`rebuild=True`"):
        open_index(folder, "two")
    assert open_index(folder, "two", rebuild=True).update().encoded == 4
    assert open_index(folder, "two").update().encoded == 0


def test_errors(folder, tmp_path, embedded, monkeypatch):
    with pytest.raises(ValueError, match=r"`images`.*nothing"):
        open_index(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image"):
        open_index(tmp_path / "empty").update()
    (tmp_path / "empty" / "torn.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"None of the 1 images.*torn\.png"):
        open_index(tmp_path / "empty").update()
    index = open_index(folder)
    (folder / index_module.FOLDER).mkdir()
    (folder / index_module.FOLDER / "images.lance").write_text("in the way")
    with pytest.raises(OSError, match=r"\.fastgoal-search.*Not a directory"):
        index.update()
    (folder / index_module.FOLDER / "images.lance").unlink()
    with pytest.raises(ValueError, match="Call `update`"):
        index.search("1")
    index.update()
    with pytest.raises(ValueError, match=r"`top_k`.*0"):
        index.search("1", 0)
    monkeypatch.setattr(index_module, "embed_texts", lambda *args: torch.full((1, 2), float("nan")))
    with pytest.raises(ValueError, match="query has NaN"):
        index.search("1")


def test_vectors_that_are_not_finite_are_not_written(folder, embedded, monkeypatch):
    open_index(folder).update()
    save_image(folder / "new.png", 1)
    with monkeypatch.context() as patched:
        patched.setattr(
            index_module, "embed_images", lambda m, p, images, *args: torch.full((len(images), 2), torch.nan)
        )
        with pytest.raises(ValueError, match=r"new\.png has NaN"):
            open_index(folder).update()
    assert len(open_index(folder)) == 4
    assert open_index(folder).update().encoded == 1


def test_hidden_files_are_not_indexed(folder):
    save_image(folder / ".hidden" / "a.png", 1)
    (folder / "notes.txt").write_text("x")
    assert [*_list_files(folder, False)[0]] == ["sub/10.png", "sub/110.png", "sub/160.png", "sub/60.png"]


@pytest.fixture
def fill(tmp_path, monkeypatch):
    """Store given vectors as the embeddings of files with given names, without files."""
    (tmp_path / "images").mkdir()

    def fill(vectors, file_names, portion=1000):
        table = dict(zip(file_names, vectors, strict=True))
        files = dict.fromkeys(file_names, (1, 2))
        monkeypatch.setattr(index_module, "PORTION", portion)
        monkeypatch.setattr(index_module, "embedder_fingerprint", lambda *args: "one")
        monkeypatch.setattr(index_module, "_list_files", lambda *args: (files, {}))
        monkeypatch.setattr(
            index_module, "embed_images", lambda m, p, images, *args: torch.stack([table[i.name] for i in images])
        )
        index = open_index(tmp_path / "images")
        index.update()
        return index

    return fill


def brute_force(vectors, file_names, query, top_k):
    """The answer in double precision from the stored vectors, equal scores in the order of the names."""
    stored, query = vectors.half().double(), query.double()
    scores = stored @ query / stored.norm(dim=1) / query.norm()
    return sorted(zip((-scores).tolist(), file_names, strict=True))[:top_k]


def test_results_equal_a_comparison_with_all_vectors(fill):
    """Vectors in tight groups, so that many scores are closer than half precision, and groups of equal ones."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(20, 24, generator=generator)
    vectors = centers[torch.arange(2000) % 20] + 1e-3 * torch.randn(2000, 24, generator=generator)
    vectors[1000:1200] = vectors[0]
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    file_names = [f"{number:04d}.png" for number in torch.randperm(2000, generator=generator).tolist()]
    index = fill(vectors, file_names, 300)
    for query in (vectors[0], vectors[7] + 0.01, -centers[3], *torch.randn(5, 24, generator=generator)):
        for top_k in (1, 10, 150):
            expected = brute_force(vectors, file_names, query, top_k)
            hits = index._nearest(query.numpy(), top_k)
            np.testing.assert_allclose([hit.score for hit in hits], [-score for score, _ in expected], atol=1e-12)
            assert names(hits) == [name for _, name in expected]


def test_a_large_index_is_searched_through_an_inverted_file(fill, monkeypatch):
    """Above the threshold most partitions are not read, nearly all of the nearest are found, and new vectors too."""
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 2000)
    monkeypatch.setattr(index_module, "PROBES", 2)
    monkeypatch.setattr(index_module, "MOST_VERSIONS", 2)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(40, 16, generator=generator)
    vectors = centers[torch.arange(12_000) % 40] + 0.3 * torch.randn(12_000, 16, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    file_names = [f"{number:05d}.png" for number in range(12_000)]
    index = fill(vectors[:11_000], file_names[:11_000], 11_000)
    assert index._table.index_stats(index._table.list_indices()[0].name).num_indexed_rows == 11_000
    index = fill(vectors, file_names)
    found = []
    for query in centers + 0.3 * torch.randn(40, 16, generator=generator):
        expected = {name for _, name in brute_force(vectors, file_names, query, 10)}
        found.append(len(expected & {*names(index._nearest(query.numpy(), 10))}) / 10)
    assert np.mean(found) > 0.9
    plan = index._table.search(vectors[0].numpy(), vector_column_name="vector").distance_type("cosine").explain_plan()
    assert "ANN" in plan


def test_many_small_updates_are_merged(fill, monkeypatch):
    monkeypatch.setattr(index_module, "MOST_VERSIONS", 5)
    vectors = torch.nn.functional.normalize(torch.randn(40, 4), dim=1)
    for count in range(1, 14):
        index = fill(vectors[:count], [f"{number}.png" for number in range(count)])
    assert index._table.stats()["fragment_stats"]["num_fragments"] < 8
    assert len(index) == 13


@pytest.mark.parametrize("damage", ["manifest", "data", "no data", "version"])
def test_damage_is_named_with_the_way_out(folder, embedded, damage, monkeypatch):
    open_index(folder).update()
    table = folder / index_module.FOLDER / "images.lance"
    for path in (table / ("_versions" if damage == "manifest" else "data")).iterdir():
        if damage in ("manifest", "data"):
            path.write_bytes(b"damaged")
        elif damage == "no data":
            path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(index_module, "VERSION", 9 if damage == "version" else index_module.VERSION)
        with pytest.raises(ValueError, match=r"\.fastgoal-search.*`rebuild=True`") as error:
            open_index(folder).update()
    assert "\n" not in str(error.value)
    assert open_index(folder, rebuild=True).update().encoded == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
@pytest.mark.parametrize("name", ["110.png", None])
def test_damaged_embeddings_are_not_searched(folder, embedded, name, value):
    """A vector without a direction in the file, or all of them; LanceDB leaves such rows out of its results."""
    open_index(folder).update()
    damaged = 0
    for level in (10, 60, 110, 160):
        for path in (folder / index_module.FOLDER / "images.lance" / "data").iterdir():
            data, vector = path.read_bytes(), angle(level).half().numpy().tobytes()
            if name in (f"{level}.png", None) and vector in data:
                path.write_bytes(data.replace(vector, np.full(2, value, np.float16).tobytes()))
                damaged += 1
    assert damaged == (4 if name is None else 1)
    with pytest.raises(ValueError, match=rf"sub/{name or '10.png'} is NaN, infinite or zero.*`rebuild=True`") as error:
        open_index(folder).search("10")
    assert ("3 more" in str(error.value)) == (name is None)
    index = open_index(folder, rebuild=True)
    index.update()
    assert names(index.search("10", 2)) == ["10.png", "60.png"]


def test_one_process_writes_at_a_time_and_sees_what_others_wrote(folder, embedded):
    index = open_index(folder)
    with held_by_another(index.folder) as process, pytest.raises(ValueError, match=rf"process {process}"):
        index.update()
    other = open_index(folder)
    other.update()
    embedded.clear()
    assert index.update().encoded == 0
    assert embedded == []
    with hold_folder(index.folder):  # nothing to write: nobody has to wait
        assert index.update().images == 4


SCRIPT = """
import sys, torch
from fastgoal.search import index as module

def embed(model, processor, images, *args):
    print("embed", flush=True)
    return torch.stack([torch.tensor([float(getattr(image, "stem", 1)), 1.0]) for image in images])

module.PORTION, module.MOST_VERSIONS = 2, 5
module.embed_images = embed
module.embed_texts = lambda model, processor, texts: torch.tensor([[0.0, 1.0]])
module.embedder_fingerprint = lambda model, processor: "one"
index = module.ImageIndex(sys.argv[1], None, None)
update = index.update()
print(update.encoded, update.images, [hit.path.name for hit in index.search("x", 3)])
"""
UNSHARE = ["unshare", "--net", "--map-root-user"]


@pytest.mark.slow
def test_a_killed_update_loses_a_portion_at_most_and_nothing_needs_a_network(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    first = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE)
    for _ in range(20):  # of 50 portions
        first.stdout.readline()
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    # In a network namespace without interfaces, where the system has those.
    cut = shutil.which("unshare") and not subprocess.run([*UNSHARE, "true"], capture_output=True).returncode
    command = [*(UNSHARE if cut else ()), sys.executable, "-c", SCRIPT, str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    encoded, images, hits = second.stdout.splitlines()[-1].split(maxsplit=2)
    assert int(encoded) <= 62
    assert (images, hits) == ("100", "['0.png', '1.png', '2.png']")
    assert second.stderr == ""
    if not cut:
        pytest.skip("no network namespaces: the update was checked, not the network")
