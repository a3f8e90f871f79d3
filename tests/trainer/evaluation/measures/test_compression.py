"""Truncated and quantized vectors: the recalls of FAISS and of a slow implementation, and known answers."""

import faiss
import numpy as np
import pytest
import torch

from fastgoal.trainer.evaluation.measures import compression
from fastgoal.trainer.evaluation.measures.compression import measure_compression, signs, to_int8
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource

KS = (1, 5, 10)


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.fixture(scope="module")
def encoded():
    """240 images of width 32 with two captions each, which are near their images."""
    generator = torch.Generator().manual_seed(0)
    images = unit(torch.randn(240, 32, generator=generator))
    owner = torch.arange(240).repeat(2)
    texts = unit(images[owner] + 0.8 * unit(torch.randn(480, 32, generator=generator)) + 0.1)
    return EncodedSource(images, texts, ["a"] * 480, owner.tolist(), list(range(240)))


@pytest.fixture(scope="module")
def measured(encoded):
    result = measure_compression(encoded, encoded.ranks(), (8, 16), compression.FORMATS, KS, resamples=0)
    return {(entry.width, entry.vectors): entry for entry in result}


def recall(found, owners, k):
    return np.mean([owner in row[:k] for row, owner in zip(found, owners, strict=True)])


def check(entry, by_text, by_image, encoded, tolerance=1e-9):
    """Compare the recalls with the neighbors that FAISS found, by image and by caption."""
    owner = np.array(encoded.text_to_image)
    for k in KS:
        assert entry.differences[f"text_to_image_R@{k}"].ours == pytest.approx(recall(by_text, owner, k), abs=tolerance)
        assert entry.differences[f"image_to_text_R@{k}"].ours == pytest.approx(
            recall(owner[by_image], range(240), k), abs=tolerance
        )


@pytest.mark.parametrize("width", [8, 16, 32])
def test_int8_has_the_recalls_of_faiss(measured, encoded, width):
    images, texts = (unit(rows[:, :width]).numpy() for rows in (encoded.image_embeds, encoded.text_embeds))
    found = []
    for stored, queries in ((images, texts), (texts, images)):
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index.train(stored)
        index.add(stored)
        found.append(index.search(queries, 10)[1])
    check(measured[width, "int8"], *found, encoded)


@pytest.mark.parametrize("width", [8, 16])
def test_truncated_vectors_have_the_recalls_of_faiss(measured, encoded, width):
    images, texts = (unit(rows[:, :width]).numpy() for rows in (encoded.image_embeds, encoded.text_embeds))
    found = []
    for stored, queries in ((images, texts), (texts, images)):
        index = faiss.IndexFlatIP(width)
        index.add(stored)
        found.append(index.search(queries, 10)[1])
    check(measured[width, "float32"], *found, encoded)


@pytest.mark.parametrize("width", [16, 32])
def test_binary_ranks_are_those_of_a_slow_implementation(encoded, width, monkeypatch):
    monkeypatch.setattr(compression, "CANDIDATES", 20)
    result = measure_compression(encoded, encoded.ranks(), (width,), ("binary",), KS, resamples=0)
    entries = {entry.vectors: entry for entry in result if entry.width == width}
    images, texts = (unit(rows[:, :width].double()).numpy() for rows in (encoded.image_embeds, encoded.text_embeds))
    packed = [np.packbits(rows > 0, axis=1) for rows in (images, texts)]
    owner = np.array(encoded.text_to_image)
    directions = {
        "text_to_image": (texts, images, packed[1], packed[0], owner, np.arange(240)),
        "image_to_text": (images, texts, packed[0], packed[1], np.arange(240), owner),
    }
    for direction, (queries, stored, query_bits, stored_bits, query_owner, stored_owner) in directions.items():
        binary, rescored = [], []
        for query, bits, mine in zip(queries, query_bits, query_owner, strict=True):
            distance = [int.from_bytes(bytes(bits ^ other)).bit_count() for other in stored_bits]
            right = [number for number in range(len(stored)) if stored_owner[number] == mine]
            others = [number for number in range(len(stored)) if stored_owner[number] != mine]
            nearest = min(distance[number] for number in right)
            rank = 1 + sum(distance[number] <= nearest for number in others)
            binary.append(rank)
            if rank <= 20:
                limit = sorted(distance)[19]
                scores = {number: query @ stored[number] for number in range(len(stored)) if distance[number] <= limit}
                best = max(scores[number] for number in right if number in scores)
                rank = 1 + sum(scores[number] >= best for number in others if number in scores)
            rescored.append(rank)
        for name, ranks in (("binary", binary), ("binary, rescored", rescored)):
            for k in KS:
                expected = np.mean(np.array(ranks) <= k)
                assert entries[name].differences[f"{direction}_R@{k}"].ours == pytest.approx(expected, abs=1e-12)
    lost = [entries[name].differences["text_to_image_R@1"].difference for name in ("binary", "binary, rescored")]
    assert lost[0] < lost[1]


def test_rescoring_everything_gives_the_original_recalls(encoded, monkeypatch):
    monkeypatch.setattr(compression, "CANDIDATES", 1000)
    result = measure_compression(encoded, encoded.ranks(), (), ("binary",), KS, resamples=0)
    assert {value.difference for value in result[1].differences.values()} == {0.0}


def test_known_values():
    stored = torch.tensor([[0.0, -1.0], [1.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
    # 0.5 is in step 127 of 256; FAISS adds half a step of 1 / 255.
    expected = torch.tensor([[0.5 / 255, -1 + 1 / 255], [255.5 / 255, 1 + 1 / 255], [127.5 / 255, 0.0]])
    torch.testing.assert_close(to_int8(stored), expected.double())
    torch.testing.assert_close(signs(torch.tensor([[0.0, 2.0, -1.0, 3.0]])), torch.tensor([[-0.5, 0.5, -0.5, 0.5]]))


def test_bytes_of_a_vector(measured):
    found = {key: entry.bytes for key, entry in measured.items()}
    assert [found[key] for key in ((8, "float32"), (32, "int8"), (32, "binary"))] == [32, 32, 4]
    assert (32, "float32") not in found


def test_a_constant_dimension_stays(encoded):
    images = encoded.image_embeds.clone()
    images[:, 0] = 0.25
    constant = EncodedSource(images, encoded.text_embeds, encoded.captions, encoded.text_to_image, encoded.rows)
    (entry,) = measure_compression(constant, constant.ranks(), (), ("int8",), KS, resamples=0)
    assert abs(entry.differences["text_to_image_R@1"].difference) < 0.05


def test_too_many_dimensions_are_refused(encoded):
    with pytest.raises(ValueError, match=r"`truncate_dim`.*32.*33"):
        measure_compression(encoded, encoded.ranks(), (33,))
