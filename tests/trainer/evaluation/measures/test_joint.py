import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPProcessor

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.embedding import embed_images, embed_texts
from fastgoal.trainer.evaluation.measures import joint
from fastgoal.trainer.evaluation.measures.embeddings import encode_source
from fastgoal.trainer.evaluation.measures.joint import evaluate_joint, joint_map
from fastgoal.trainer.evaluation.measures.ranks import unit_rows
from fastgoal.trainer.evaluation.protocols.registry import open_protocol


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


@settings(max_examples=50)
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
        ({"text_embeds": torch.eye(2, 3)}, "`image_embeds` and `text_embeds`"),
        ({"image_embeds": torch.full((2, 2), math.nan)}, "NaN"),
        ({"group": [0]}, r"`group` .* got \(1,\)"),
        ({"group": [0, 0]}, "`group` 0 has two global items, 0 and 1"),
        ({"k": 0}, "`k` must"),
        ({"chunk_size": 0}, "`chunk_size` must"),
    ],
)
def test_errors(arguments, message):
    base = {"image_embeds": torch.eye(2), "text_embeds": torch.eye(2), "group": [0, 1], "is_global": [True, True]}
    with pytest.raises(ValueError, match=message):
        joint_map(**{**base, **arguments})


class TestEvaluateJoint:
    """The local items are the pairs that the evaluated model sees, by score."""

    FIRST, LAST = "A red square.", "A blue square."
    CAPTION = f"{FIRST} {'A gray wall. ' * 8}{LAST}"

    def source(self, **changes):
        start = self.CAPTION.index(self.LAST)
        row = {
            "image": Image.new("RGB", (40, 40), "gray"),
            "caption": self.CAPTION,
            "sentences": [{"start": 0, "end": len(self.FIRST)}, {"start": start, "end": len(self.CAPTION)}],
            "regions": [{"box": [0.0, 0.0, 10.0, 20.0]}, {"box": [10.0, 10.0, 40.0, 40.0]}],
            # The flag names the pair that another model saw.
            "pairs": [
                {"sentence": 0, "region": 1, "score": 0.2, "best": False},
                {"sentence": 1, "region": 0, "score": 0.9, "best": True},
                {"sentence": 0, "region": 0, "score": 0.1, "best": False},
            ],
            **changes,
        }
        return open_protocol("folder", [row])

    @pytest.mark.parametrize(("length", "sentence", "crop"), [(77, FIRST, (30, 30)), (248, LAST, (10, 20))])
    def test_a_model_of_77_tokens_and_one_of_248(self, tiny_clip, monkeypatch, length, sentence, crop):
        model = FastGoalCLIPModel.from_base(str(tiny_clip), max_text_length=length)
        processor = FastGoalProcessor.from_base(str(tiny_clip), max_text_length=length)
        source = self.source()
        encoded = encode_source(model, processor, source)
        used = []

        def recorded(embed):
            return lambda *args, **options: used.append(args[2]) or embed(*args, **options)

        monkeypatch.setattr(joint, "embed_images", recorded(embed_images))
        monkeypatch.setattr(joint, "embed_texts", recorded(embed_texts))
        found = evaluate_joint(model, processor, source, encoded)
        crops, sentences = used
        assert (sentences, [image.size for image in crops]) == ([sentence], [crop])
        # The same numbers from the two images and the two texts themselves.
        images = embed_images(model, processor, [Image.new("RGB", size, "gray") for size in ((40, 40), crop)])
        texts = embed_texts(model, processor, [self.CAPTION, sentence])
        assert found == joint_map(images, texts, [0, 0], [True, False])
        # A plain processor stays unchanged and gives the same.
        plain = CLIPProcessor.from_pretrained(tiny_clip)
        plain.tokenizer.model_max_length = 9
        assert evaluate_joint(model, plain, source, encoded) == found
        assert plain.tokenizer.model_max_length == 9

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pairs": []}, r"data row 0 .*no local pairs.*`fastgoal pairs`"),
            ({"sentences": [{"start": 0, "end": 999}] * 2}, "data row 0 .*999"),
        ],
    )
    def test_broken_rows_are_named(self, tiny_clip, changes, message):
        model = FastGoalCLIPModel.from_base(str(tiny_clip), max_text_length=77)
        processor = FastGoalProcessor.from_base(str(tiny_clip), max_text_length=77)
        source = self.source(**changes)
        encoded = encode_source(model, processor, source)
        with pytest.raises(ValueError, match=message):
            evaluate_joint(model, processor, source, encoded)
