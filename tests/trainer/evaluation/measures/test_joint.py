import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgoal.trainer.evaluation.measures.joint import joint_map
from fastgoal.trainer.evaluation.measures.ranks import unit_rows


def brute_force(images, texts, group, is_global, k):
    """The definition, one comparison at a time; wrong answers stand before right ones that are as similar."""
    images, texts = unit_rows(images, "images"), unit_rows(texts, "texts")
    metrics = {}
    for direction, queries, gallery in (("text_to_image", texts, images), ("image_to_text", images, texts)):
        scores, own = [], []
        for q in range(len(queries)):
            right = {i for i in range(len(group)) if i == q or (group[i] == group[q] and is_global[i] != is_global[q])}
            similarity = [round(float(queries[q] @ gallery[i]), 9) for i in range(len(gallery))]
            ranking = sorted(range(len(gallery)), key=lambda i: (-similarity[i], i in right))
            found = score = 0
            for place, item in enumerate(ranking[:k], start=1):
                if item in right:
                    found += 1
                    score += found / place
            scores.append(score / len(right))
            rank = 1 + sum(similarity[i] >= similarity[q] for i in range(len(gallery)) if i != q)
            own.append(1 / rank if rank <= k else 0)
        metrics[f"joint_{direction}_mAP@{k}"] = sum(scores) / len(scores)
        metrics[f"joint_{direction}_own_mAP@{k}"] = sum(own) / len(own)
    return metrics


@given(
    locals_of=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    chunk_size=st.sampled_from([1, 3, 1024]),
    levels=st.sampled_from([2, 1000]),
    k=st.sampled_from([1, 3, 50]),
)
def test_equals_brute_force(locals_of, seed, chunk_size, levels, k):
    """Any number of local items a picture, in shuffled order, with many ties for two levels."""
    generator = torch.Generator().manual_seed(seed)
    items = [(number, True) for number in range(len(locals_of))]
    items += [(number, False) for number, count in enumerate(locals_of) for _ in range(count)]
    items = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
    images = torch.randint(1, levels + 1, (len(items), 4), generator=generator).float()
    texts = torch.randint(1, levels + 1, (len(items), 4), generator=generator).float()
    group, is_global = [item[0] for item in items], [item[1] for item in items]
    found = joint_map(images, texts, group, is_global, k, chunk_size)
    assert found == pytest.approx(brute_force(images, texts, group, is_global, k), abs=1e-12)


def test_known_answers():
    """Two pictures with one local item each, all perfectly told apart but for the two texts of picture 1."""
    embeds = torch.eye(4)
    perfect = joint_map(embeds, embeds, [0, 1, 0, 1], [True, True, False, False])
    # Its own counterpart is first; the other right answer ties with two wrong ones and is fourth: (1 + 2/4) / 2.
    assert perfect["joint_text_to_image_mAP@10"] == pytest.approx(0.75)
    assert perfect["joint_text_to_image_own_mAP@10"] == 1.0
    same = joint_map(torch.ones(4, 3), torch.ones(4, 3), [0, 1, 0, 1], [True, True, False, False])
    assert same["joint_text_to_image_mAP@10"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert same["joint_image_to_text_own_mAP@10"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_embeds": torch.eye(2, 3)}, "an item has one image and one text"),
        ({"image_embeds": torch.full((2, 2), math.nan)}, "NaN"),
        ({"group": [0]}, r"group.* shape \(1,\)"),
        ({"group": [0, 0]}, "group 0 has two global items, 0 and 1"),
        ({"k": 0}, "`k` must"),
        ({"chunk_size": 0}, "`chunk_size` must"),
    ],
)
def test_errors(arguments, message):
    base = {"image_embeds": torch.eye(2), "text_embeds": torch.eye(2), "group": [0, 1], "is_global": [True, True]}
    with pytest.raises(ValueError, match=message):
        joint_map(**{**base, **arguments})
