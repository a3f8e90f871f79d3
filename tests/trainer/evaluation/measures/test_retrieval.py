import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics

DIRECTIONS = ("text_to_image", "image_to_text")


def brute_force(images, texts, owner, ks):
    """The definition, one comparison at a time."""
    images = [row / np.linalg.norm(row) for row in np.asarray(images, dtype=np.float64)]
    texts = [row / np.linalg.norm(row) for row in np.asarray(texts, dtype=np.float64)]
    ranks = {"text_to_image": [], "image_to_text": []}
    for text, own in zip(texts, owner, strict=True):
        better = 0
        for i, image in enumerate(images):
            if i != own and float(text @ image) >= float(text @ images[own]) - 1e-9:
                better += 1
        ranks["text_to_image"].append(better + 1)
    for i, image in enumerate(images):
        mine = [float(image @ text) for text, own in zip(texts, owner, strict=True) if own == i]
        others = [float(image @ text) for text, own in zip(texts, owner, strict=True) if own != i]
        if mine:
            ranks["image_to_text"].append(1 + sum(other >= max(mine) - 1e-9 for other in others))
    candidates = {"text_to_image": len(images), "image_to_text": len(texts)}
    metrics = {}
    for direction, values in ranks.items():
        for k in ks:
            if k <= candidates[direction]:
                metrics[f"{direction}_R@{k}"] = sum(rank <= k for rank in values) / len(values)
        metrics[f"{direction}_mean_rank"] = float(np.mean(values))
        metrics[f"{direction}_median_rank"] = float(np.median(values))
    return metrics


def test_identity_is_perfect():
    embeds = torch.eye(60)
    metrics = retrieval_metrics(embeds, embeds)
    assert metrics == {
        **{f"{direction}_R@{k}": 1.0 for direction in DIRECTIONS for k in (1, 5, 10, 25, 50)},
        **{f"{direction}_{name}_rank": 1.0 for direction in DIRECTIONS for name in ("mean", "median")},
    }


def test_known_ranks():
    # Cosines of captions (rows) and images (columns) are the sines and cosines below.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    angles = torch.tensor([10.0, 20.0, 170.0]).deg2rad()
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    metrics = retrieval_metrics(images, texts, ks=(1, 2))
    # Caption 1 lies near image 0, so its own image comes second; images each see their own caption best,
    # except image 1, to which captions at 10, 20 and 170 degrees have the sines 0.17, 0.34, 0.17.
    assert metrics["text_to_image_R@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image_R@2"] == 1.0
    assert metrics["text_to_image_mean_rank"] == pytest.approx(4 / 3)
    assert metrics["text_to_image_median_rank"] == 1.0
    assert metrics["image_to_text_R@1"] == 1.0
    assert metrics["image_to_text_mean_rank"] == 1.0


def test_ties_count_against_us():
    embeds = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)).repeat(37, 1)
    metrics = retrieval_metrics(embeds, embeds, ks=(1, 36, 37), chunk_size=8)
    for direction in DIRECTIONS:
        assert metrics[f"{direction}_R@1"] == 0.0
        assert metrics[f"{direction}_R@36"] == 0.0
        assert metrics[f"{direction}_R@37"] == 1.0
        assert metrics[f"{direction}_mean_rank"] == 37.0


def test_captions_of_the_same_image_are_not_ranked():
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    metrics = retrieval_metrics(images, texts, [0, 0, 0, 1], ks=(1,))
    assert metrics["image_to_text_R@1"] == metrics["text_to_image_R@1"] == 1.0


def test_median_of_an_even_number_of_ranks_lies_between_the_middle_two():
    # Caption 1 is nearest to image 0: text-to-image ranks are 1 and 2.
    metrics = retrieval_metrics(torch.eye(2), torch.tensor([[1.0, 0.0], [0.9, 0.1]]), ks=(1,))
    assert metrics["text_to_image_median_rank"] == 1.5


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 1000),
    chunk_size=st.sampled_from([1, 2, 3, 7, 1024]),
    levels=st.sampled_from([2, 1000]),
)
def test_equals_brute_force(counts, seed, chunk_size, levels):
    """Unequal numbers of captions in shuffled order, any tile size; with two levels there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    owner = owner[torch.randperm(len(owner), generator=generator)]
    images = torch.randint(1, levels + 1, (len(counts), 4), generator=generator).float()
    texts = torch.randint(1, levels + 1, (len(owner), 4), generator=generator).float()
    ks = (1, 2, 5, 30)
    metrics = retrieval_metrics(images, texts, owner, ks=ks, chunk_size=chunk_size)
    expected = brute_force(images.numpy(), texts.numpy(), owner.tolist(), ks)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key


def test_order_scale_and_kind_of_index_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(20, 8, generator=generator), torch.randn(50, 8, generator=generator)
    owner = torch.randint(0, 20, (50,), generator=generator)
    expected = retrieval_metrics(images, texts, owner)
    order = torch.randperm(50, generator=generator)
    scale = torch.rand(50, 1, generator=generator) + 0.1
    assert retrieval_metrics(3 * images, (scale * texts)[order], owner[order]) == expected
    assert retrieval_metrics(images, texts, owner.tolist()) == expected
    assert retrieval_metrics(images, texts, owner.int()) == expected
    images.requires_grad_()
    assert retrieval_metrics(images, texts, owner) == expected


def test_k_greater_than_the_gallery_is_left_out():
    metrics = retrieval_metrics(torch.eye(3), torch.eye(3).repeat(2, 1), [0, 1, 2, 0, 1, 2])
    assert {key for key in metrics if "R@" in key} == {"text_to_image_R@1", "image_to_text_R@1", "image_to_text_R@5"}


def test_image_without_caption_is_a_distractor():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.001]])
    metrics = retrieval_metrics(images, torch.tensor([[1.0, 0.001]]), [0], ks=(1,))
    assert metrics["text_to_image_R@1"] == 0.0
    assert metrics["image_to_text_R@1"] == 1.0


def test_half_precision_embeddings():
    embeds = torch.eye(4, dtype=torch.bfloat16)
    assert retrieval_metrics(embeds, embeds, ks=(1,))["text_to_image_R@1"] == 1.0


def test_chunks_stay_small(monkeypatch):
    """No tile is larger than chunk_size x chunk_size."""
    sizes = []
    matmul = torch.Tensor.__matmul__

    def recorded(self, other):
        result = matmul(self, other)
        sizes.append(result.shape)
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", recorded)
    retrieval_metrics(torch.randn(50, 4), torch.randn(50, 4), chunk_size=16)
    assert len(sizes) == math.ceil(50 / 16) ** 2
    assert max(max(size) for size in sizes) == 16


NAN = torch.eye(3).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_embeds": torch.zeros(3)}, r"`image_embeds` .*\(3,\)"),
        ({"text_embeds": torch.zeros(0, 3)}, r"`text_embeds` .*\(0, 3\)"),
        ({"text_embeds": torch.eye(3, 4)}, "`image_embeds` and `text_embeds` .* 3 and 4"),
        ({"text_embeds": NAN}, "`text_embeds` .* 1 of 3 rows.* row 1"),
        ({"image_embeds": torch.full((3, 3), math.inf)}, "`image_embeds` .* 3 of 3 rows"),
        ({"text_embeds": torch.eye(4, 3)}, "`text_to_image`.* 3 rows of `image_embeds` and 4"),
        ({"text_to_image": [0, 1]}, r"`text_to_image` .*\(3,\).*\(2,\)"),
        ({"text_to_image": [0, 1, 3]}, r"`text_to_image` .* 0 to 2, got 3 in row 2"),
        ({"text_to_image": [0, -1, 3]}, r"`text_to_image` .* got -1 in row 1"),
        ({"text_to_image": [0.0, 1.0, 2.0]}, "`text_to_image` .* torch.float32"),
        ({"ks": ()}, "`ks` must"),
        ({"ks": (1, 0)}, "`ks` must"),
        ({"chunk_size": 0}, "`chunk_size` must be a positive integer, got 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{"image_embeds": torch.eye(3), "text_embeds": torch.eye(3), **arguments})
