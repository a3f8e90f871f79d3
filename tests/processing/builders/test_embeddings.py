"""`build_embeddings`: the vectors are those of plain transformers, and other libraries read them."""

import hashlib
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import AutoModel, AutoProcessor

from fastgoal.processing.builders import embeddings as module
from fastgoal.processing.builders.embeddings import build_embeddings
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.search.search import search_images

TEXTS = ["A red field.", "A green field. It is wide.", "A blue field.", "A white field.", "A grey field."]
COLORS = ["red", "green", "blue", "white", "grey"]


@pytest.fixture(scope="module")
def model(tiny_clip, tmp_path_factory):
    from fastgoal import FastGoalModel

    folder = tmp_path_factory.mktemp("model")
    FastGoalModel.from_base(tiny_clip).save_pretrained(folder)
    FastGoalProcessor.from_base(tiny_clip).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for number, (color, text) in enumerate(zip(COLORS, TEXTS, strict=True)):
        Image.linear_gradient("L").rotate(40 * number).convert("RGB").save(folder / f"{color}.png")
        lines.append(json.dumps({"file_name": f"{color}.png", "captions": [text, f"{text} Again."]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(photos, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "images"
    options = {"caption_column": "captions", "shard_size": 2, "vector_type": "float32", "progress": False}
    summary = build_embeddings(photos, folder, model, **options)
    assert (summary["rows"], summary["shards"], summary["shards_made"]) == (5, 3, 3)
    return folder


def plain(model, **inputs):
    """Embed with transformers alone."""
    network, processor = AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model)
    with torch.no_grad():
        outputs = network(**processor(return_tensors="pt", padding=True, truncation=True, **inputs))
    return outputs.image_embeds.numpy(), outputs.text_embeds.numpy()


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "data").iterdir())}


def read(folder, cache):
    return load_dataset(str(folder), split="train", cache_dir=str(cache)).with_format("numpy")


def test_images_have_the_vectors_of_plain_transformers(made, photos, model, tmp_path):
    rows = read(made, tmp_path)
    assert rows["file_name"][:].tolist() == [f"{color}.png" for color in COLORS]
    assert rows[1]["caption"] == "A green field. It is wide. A green field. It is wide. Again."
    images = [Image.open(photos / f"{color}.png") for color in COLORS]
    np.testing.assert_allclose(rows["vector"][:], plain(model, images=images, text=["a"])[0], atol=2e-6)


def test_every_caption_has_a_row(photos, model, tmp_path):
    summary = build_embeddings(photos, tmp_path / "out", model, texts=True, vector_type="float32", progress=False)
    rows = read(tmp_path / "out", tmp_path)
    texts = [text for first in TEXTS for text in (first, f"{first} Again.")]
    assert summary["rows"] == 10
    assert rows["caption"][:].tolist() == texts
    assert rows["file_name"][:].tolist() == [f"{color}.png" for color in COLORS for _ in range(2)]
    image = Image.open(photos / "red.png")
    np.testing.assert_allclose(rows["vector"][:], plain(model, images=image, text=texts)[1], atol=2e-6)


def test_half_precision_is_the_rounded_vector(made, photos, model, tmp_path):
    build_embeddings(photos, tmp_path / "half", model, shard_size=2, progress=False)
    table = pyarrow.parquet.read_table(tmp_path / "half" / "data")
    assert str(table.schema.field("vector").type.value_type) == "halffloat"
    half, full = read(tmp_path / "half", tmp_path)["vector"][:], read(made, tmp_path / "full")["vector"][:]
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_an_interrupted_run_continues_to_the_same_files(made, photos, model, tmp_path, monkeypatch):
    make = module._VectorMaker.make

    def stop_at_the_second(self, shard, rows, advance):
        if shard.number == 1:
            raise KeyboardInterrupt
        return make(self, shard, rows, advance)

    options = {"caption_column": "captions", "shard_size": 2, "vector_type": "float32", "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(module._VectorMaker, "make", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            build_embeddings(photos, tmp_path / "out", model, **options)
    assert len(hashes(tmp_path / "out")) == 1
    with pytest.raises(ValueError, match="not finished"):
        search_images(tmp_path / "out", str(model), "a")
    with pytest.raises(ValueError, match="vector_type"):
        build_embeddings(photos, tmp_path / "out", model, **{**options, "vector_type": "float16"})
    assert build_embeddings(photos, tmp_path / "out", model, **options)["shards_made"] == 2
    assert hashes(tmp_path / "out") == hashes(made)
    assert build_embeddings(photos, tmp_path / "out", model, **options)["shards_made"] == 0


def test_faiss_and_lancedb_search_the_files(made, model, tmp_path):
    import faiss
    import lancedb
    import pyarrow.dataset

    rows = read(made, tmp_path)
    vectors = rows["vector"][:]
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    table = lancedb.connect(tmp_path / "lance").create_table(
        "images", pyarrow.dataset.dataset(made / "data", format="parquet").to_table()
    )
    query = plain(model, images=Image.new("RGB", (8, 8)), text=TEXTS[:1])[1]
    expected = [rows["file_name"][int(number)] for number in index.search(query, 5)[1][0]]
    found = table.search(query[0]).distance_type("cosine").limit(5).to_list()
    assert [row["file_name"] for row in found] == expected
    result = search_images(made, str(model), TEXTS[0], top_k=5, device="cpu")
    assert [hit.path.name for hit in result.hits] == expected
    scores = np.sort(vectors @ query[0])[::-1]
    np.testing.assert_allclose([hit.score for hit in result.hits], scores, atol=2e-6)


def test_the_query_image_is_left_out(made, photos, model):
    result = search_images(made, str(model), query_image=photos / "red.png", top_k=9, device="cpu")
    assert result.left_out == ["red.png"]
    assert {hit.path for hit in result.hits} == {photos / f"{color}.png" for color in COLORS[1:]}


def test_vectors_of_another_model_are_refused(made, tiny_clip, photos, model, tmp_path):
    with pytest.raises(ValueError, match=r"another model, [^#]+, and .*`fastgoal embed`"):
        search_images(made, str(tiny_clip), "a", device="cpu")
    build_embeddings(photos, tmp_path / "out", model, texts=True, progress=False)
    with pytest.raises(ValueError, match="vectors of texts"):
        search_images(tmp_path / "out", str(model), "a", device="cpu")
    with pytest.raises(ValueError, match="rebuild"):
        search_images(made, str(model), "a", rebuild=True, device="cpu")


def test_a_broken_image_is_named_or_skipped(photos, model, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.png").write_bytes((photos / "red.png").read_bytes())
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png.*on_error=skip"):
        build_embeddings(folder, tmp_path / "stop", model, progress=False)
    summary = build_embeddings(folder, tmp_path / "skip", model, on_error="skip", progress=False)
    assert (summary["rows"], len(summary["skipped"])) == (1, 1)
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 2 rows.*a\.png"):
        build_embeddings(folder, tmp_path / "none", model, on_error="skip", progress=False)


@pytest.mark.slow
def test_workers_write_the_same_files(made, photos, model, tmp_path):
    options = {"caption_column": "captions", "shard_size": 2, "vector_type": "float32", "progress": False}
    build_embeddings(photos, tmp_path / "out", model, workers=2, num_workers=1, device="cpu", **options)
    assert hashes(tmp_path / "out") == hashes(made)
