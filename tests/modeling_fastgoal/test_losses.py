"""Losses against known answers and slow loops."""

import math
from dataclasses import astuple, fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastgoal import FastGoalCLIPConfig, FastGoalTrainingArguments
from fastgoal.modeling_fastgoal import (
    LossWeights,
    clip_loss,
    fast_goal_loss,
    losses_fastgoal,
    sigmoid_loss,
    sparc_losses,
    token_similarity_loss,
)
from fastgoal.modeling_fastgoal.losses_fastgoal import TERMS, FastGoalLosses, WholeBatch, loss_rows

SCALE = torch.tensor(10.0)
BIAS = torch.tensor(-3.0)


def test_equal_embeddings_give_log_batch():
    embeds = torch.ones(8, 4)
    assert clip_loss(embeds, embeds, SCALE).item() == pytest.approx(math.log(8), abs=1e-6)


def test_one_hot_embeddings_give_the_closed_form():
    embeds = torch.eye(5)
    expected = -math.log(math.exp(2) / (math.exp(2) + 4))
    assert clip_loss(embeds, 3 * embeds, torch.tensor(2.0)).item() == pytest.approx(expected, rel=1e-5)


def test_clip_loss_is_a_loop_over_rows():
    torch.manual_seed(0)
    images, texts = torch.randn(6, 7).double(), torch.randn(6, 7).double()
    total = 0.0
    for i in range(6):
        cosine = [float(torch.cosine_similarity(images[i], texts[j], dim=0)) for j in range(6)]
        back = [float(torch.cosine_similarity(images[j], texts[i], dim=0)) for j in range(6)]
        for row in (cosine, back):
            total += -math.log(math.exp(10 * row[i]) / sum(math.exp(10 * value) for value in row)) / 12
    assert clip_loss(images, texts, SCALE.double()).item() == pytest.approx(total, abs=1e-6)


def clip_share(images, texts, first, own, scale):
    """The share of some rows among all."""
    return clip_loss(images[own], texts[own], scale, images, texts, first)


def sigmoid_share(images, texts, first, own, scale, bias):
    return sigmoid_loss(images[own], texts[own], scale, bias, texts, first)


@pytest.mark.parametrize("at_once", [1, 2 * 9, 2**22])
@pytest.mark.parametrize(
    ("loss_of", "share_of", "logits"), [(clip_loss, clip_share, [SCALE]), (sigmoid_loss, sigmoid_share, [SCALE, BIAS])]
)
def test_shares_computed_in_parts_are_the_loss(loss_of, share_of, logits, at_once, monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(9, 7).double(), torch.randn(9, 7).double(), *(value.double() for value in logits)]
    whole, (images, texts, *terms) = ([value.clone().requires_grad_() for value in inputs] for _ in range(2))
    loss = loss_of(*whole)
    loss.backward()
    monkeypatch.setattr(losses_fastgoal, "LOGITS_AT_ONCE", at_once)
    parts = [(first, slice(first, first + rows)) for first, rows in ((0, 4), (4, 5), (9, 0))]
    total = sum(share_of(images, texts, first, own, *terms) for first, own in parts)
    total.backward()
    assert total.item() == pytest.approx(loss.item(), abs=1e-6)
    for one, other in zip(whole, (images, texts, *terms)):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=0)


def test_the_sigmoid_loss_is_a_loop_over_pairs():
    torch.manual_seed(0)
    images, texts = torch.randn(6, 7).double(), torch.randn(6, 7).double()
    total = 0.0
    for i in range(6):
        for j in range(6):
            logit = 10 * float(torch.cosine_similarity(images[i], texts[j], dim=0)) - 3
            total -= math.log(1 / (1 + math.exp(-logit if i == j else logit))) / 6
    assert sigmoid_loss(images, texts, SCALE.double(), BIAS.double()).item() == pytest.approx(total, abs=1e-6)


def test_with_a_bias_every_contrastive_term_is_a_sigmoid_loss():
    torch.manual_seed(0)
    names = ("image", "text", "local_image", "local_text", "short_text", "region", "sentence")
    rows = {f"{name}_embeds": torch.randn(4, 8) for name in names}
    weights = LossWeights(token_weight=0.1, short_weight=0.1)
    parts = fast_goal_loss(rows, SCALE, weights, logit_bias=BIAS)
    for term in TERMS:
        if term.contrasts:
            expected = sigmoid_loss(*(rows[name] for name in term.needs), SCALE, BIAS)
            assert torch.equal(parts[term.name], expected), term.name
    assert torch.equal(parts["loss_tsl_image"], fast_goal_loss(rows, SCALE, weights)["loss_tsl_image"])


@pytest.mark.parametrize("bias", [None, BIAS])
def test_matryoshka_is_the_mean_over_widths(bias):
    """Cosines in numpy, for the full embeddings and their first three and two dimensions."""
    torch.manual_seed(0)
    names = ("image", "text", "local_image", "local_text", "region", "sentence")
    rows = {f"{name}_embeds": F.normalize(torch.randn(4, 5, dtype=torch.float64), dim=-1) for name in names}
    weights = LossWeights(token_weight=0.5)
    parts = fast_goal_loss(rows, SCALE.double(), weights, logit_bias=bias, dims=(3, 2))
    plain = fast_goal_loss(rows, SCALE.double(), weights, logit_bias=bias)

    def loss_of(images, texts):
        images = images / np.linalg.norm(images, axis=1, keepdims=True)
        texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
        logits = float(SCALE) * images @ texts.T
        if bias is not None:
            signs = 2 * np.eye(4) - 1
            return np.log1p(np.exp(-signs * (logits + float(bias)))).sum() / 4
        rows, columns = (np.log(np.exp(logits).sum(axis)) - np.diag(logits) for axis in (1, 0))
        return (rows.mean() + columns.mean()) / 2

    for term in TERMS:
        if term.name not in parts:
            continue
        first, second = (rows[name].numpy() for name in term.needs)
        expected = np.mean([loss_of(first[:, :width], second[:, :width]) for width in (5, 3, 2)])
        if not term.contrasts:
            expected = plain[term.name].item()
        assert parts[term.name].item() == pytest.approx(expected, abs=1e-6), term.name
    full = fast_goal_loss(rows, SCALE.double(), weights, logit_bias=bias, dims=(5,))
    assert all(torch.equal(full[name], plain[name]) for name in plain)


def kept_bytes(compute, inputs):
    """What a loss keeps for its backward pass, beside its inputs."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = compute()
    own = {value.untyped_storage().data_ptr() for value in inputs}
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


def test_one_of_eight_processes_keeps_less_than_an_eighth(monkeypatch):
    images, texts = torch.randn(256, 4, requires_grad=True), torch.randn(256, 4, requires_grad=True)
    matrices = kept_bytes(lambda: clip_loss(images, texts, SCALE), (images, texts)) / (4 * 256 * 256)
    assert matrices > 2  # the softmax of both directions
    share = kept_bytes(lambda: clip_share(images, texts, 32, slice(32, 64), SCALE), (images, texts)) / (4 * 256 * 256)
    assert share < matrices / 6.5  # an eighth, and the embeddings
    monkeypatch.setattr(losses_fastgoal, "LOGITS_AT_ONCE", 8 * 256)
    parts = kept_bytes(lambda: clip_share(images, texts, 32, slice(32, 64), SCALE), (images, texts)) / (4 * 256 * 256)
    assert parts < 0.25  # the embeddings, no logits


@pytest.mark.parametrize(("angle", "expected"), [(0.0, 0.0), (math.pi / 2, 1.0), (math.pi, 4.0), (math.pi / 3, 0.25)])
def test_token_similarity_of_known_angles(angle, expected):
    token = torch.tensor([[2.0, 0.0]])
    target = torch.tensor([[math.cos(angle), math.sin(angle)]]) * 5
    assert token_similarity_loss(token, target).item() == pytest.approx(expected, abs=1e-6)


def test_rows_without_tokens_do_not_count():
    tokens = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    valid = torch.tensor([True, False, True])
    loss = token_similarity_loss(tokens, targets, valid)
    assert loss.item() == pytest.approx((1.0 + 0.0) / 2)
    loss.backward()
    assert torch.equal(tokens.grad[1], torch.zeros(2))
    assert torch.isfinite(tokens.grad).all()


def test_no_valid_row_is_zero_with_a_gradient():
    tokens = torch.zeros(2, 3, requires_grad=True)
    loss = token_similarity_loss(tokens, torch.ones(2, 3), torch.tensor([False, False]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(tokens.grad, torch.zeros(2, 3))


def test_gradients_reach_tokens_and_targets():
    tokens = torch.tensor([[1.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 1.0]], requires_grad=True)
    token_similarity_loss(tokens, targets).backward()
    assert tokens.grad.abs().sum() > 0
    assert targets.grad.abs().sum() > 0


def _embeds():
    torch.manual_seed(1)
    names = (
        "image_embeds",
        "text_embeds",
        "local_image_embeds",
        "local_text_embeds",
        "region_embeds",
        "sentence_embeds",
    )
    return {name: torch.randn(4, 8) for name in names}


def test_the_sum_has_the_published_weights():
    parts = fast_goal_loss(_embeds(), SCALE)
    expected = (
        parts["loss_global"] + 0.5 * parts["loss_local"] + 1.0 * (parts["loss_tsl_image"] + parts["loss_tsl_text"])
    )
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_weights_are_used_one_by_one():
    embeds = _embeds()
    parts = fast_goal_loss(embeds, SCALE, LossWeights(global_weight=0.0, local_weight=0.0, tsl_weight=2.0))
    assert parts["loss"].item() == pytest.approx(2 * (parts["loss_tsl_image"] + parts["loss_tsl_text"]).item())


def test_shares_of_a_batch_add_up():
    valid = torch.tensor([True, False, True, True])
    rows = {**_embeds(), "region_valid": valid, "sparc_rows": torch.arange(4.0)}
    weights = LossWeights(sparc_weight=0.5, token_weight=0.3, short_weight=0.2)
    rows["short_text_embeds"] = rows["local_text_embeds"].flip(0)
    parts = fast_goal_loss(rows, SCALE, weights)
    shares = [
        fast_goal_loss(
            {name: value[first:end] for name, value in rows.items()},
            SCALE,
            weights,
            WholeBatch(rows, first),
        )
        for first, end in ((0, 1), (1, 2), (2, 4))
    ]
    assert parts.keys() == shares[0].keys()
    for name, value in parts.items():
        assert sum(share[name] for share in shares).item() == pytest.approx(value.item(), abs=1e-6)


def grouped(*groups):
    return loss_rows({}, SCALE, image_groups=torch.tensor(groups))["image_groups"]


@pytest.mark.parametrize("at_once", [2**22, 4])
def test_rows_of_one_image_are_no_negatives_of_each_other(monkeypatch, at_once):
    monkeypatch.setattr(losses_fastgoal, "LOGITS_AT_ONCE", at_once)
    equal = torch.ones(5, 8)
    # Rows 0, 2 and 4 show one image. 2**20 and 2**41 tell apart numbers that float32 does not hold.
    groups = grouped(2**41 + 1, 2**41 + 2, 2**41 + 1, -1, 2**41 + 1)
    expected = (3 * math.log(3) + 2 * math.log(5)) / 5
    assert clip_loss(equal, equal, SCALE, groups=groups).item() == pytest.approx(expected, abs=1e-6)
    assert clip_loss(equal, equal, SCALE, groups=grouped(-1, -1, 2**20, 0, 1)).item() == pytest.approx(math.log(5))
    # A row has a loss of softplus(-7) for its pair, and of softplus(7) for each negative: 2, 4, 2, 4 and 2 of them.
    positive, negative = math.log1p(math.exp(-7)), math.log1p(math.exp(7))
    loss = sigmoid_loss(equal, equal, SCALE, BIAS, groups=groups).item()
    assert loss == pytest.approx((5 * positive + 14 * negative) / 5, abs=1e-5)


def test_all_contrastive_terms_know_the_groups_and_their_shares_add_up():
    valid = torch.tensor([True, True, False, True])
    rows = {**_embeds(), "region_valid": valid, "sentence_valid": valid}
    rows["short_text_embeds"] = rows["local_text_embeds"].flip(0)
    weights = LossWeights(token_weight=0.3, short_weight=0.2)
    plain, rows["image_groups"] = fast_goal_loss(rows, SCALE, weights), grouped(7, 8, 8, 7)
    for bias in (None, BIAS):
        parts = fast_goal_loss(rows, SCALE, weights, logit_bias=bias)
        for name, images, texts, kept in (
            ("loss_global", "image_embeds", "text_embeds", [0, 1, 2, 3]),
            ("loss_local", "local_image_embeds", "local_text_embeds", [0, 1, 2, 3]),
            ("loss_token_image", "region_embeds", "local_image_embeds", [0, 1, 3]),
            ("loss_short", "image_embeds", "short_text_embeds", [0, 1, 2, 3]),
        ):
            logits = 10 * _unit(rows[images][kept]) @ _unit(rows[texts][kept]).T + (0 if bias is None else bias)
            group = rows["image_groups"][kept, 1]
            total = 0.0
            for i in range(len(kept)):
                others = [j for j in range(len(kept)) if j == i or group[i] != group[j]]
                if bias is None:
                    total += (logits[i, others].logsumexp(0) + logits[others, i].logsumexp(0)).item() / 2 - logits[i, i]
                else:
                    total += sum(torch.nn.functional.softplus(logits[i, j] * (-1 if i == j else 1)) for j in others)
            assert parts[name].item() == pytest.approx(float(total) / len(kept), abs=1e-5), name
            assert bias is not None or plain[name].item() > parts[name].item()
        shares = [
            fast_goal_loss(
                {name: value[a:b] for name, value in rows.items()}, SCALE, weights, WholeBatch(rows, a), bias
            )
            for a, b in ((0, 1), (1, 3), (3, 4))
        ]
        for name, value in parts.items():
            assert sum(share[name] for share in shares).item() == pytest.approx(value.item(), abs=1e-6)


def _unit(embeds):
    return torch.nn.functional.normalize(embeds, dim=-1)


def test_a_weight_of_zero_trains_nothing():
    embeds = _embeds()
    embeds["local_image_embeds"].requires_grad_()
    embeds["image_embeds"].requires_grad_()
    fast_goal_loss(embeds, SCALE, LossWeights(local_weight=0.0, tsl_weight=0.0))["loss"].backward()
    assert embeds["local_image_embeds"].grad is None
    assert embeds["image_embeds"].grad is not None


def test_extra_terms_are_computed_where_they_have_a_weight_alone():
    rows = {**_embeds(), "short_text_embeds": torch.eye(4, 8)}
    assert not {"loss_token_image", "loss_token_text", "loss_short"} & fast_goal_loss(rows, SCALE).keys()
    rows["image_embeds"] = 2 * rows["short_text_embeds"]  # each image is its short caption, and nothing else
    rows["region_embeds"] = rows["local_image_embeds"]
    parts = fast_goal_loss(rows, SCALE, LossWeights(0.0, 0.0, 0.0, token_weight=0.5, short_weight=2.0))
    assert parts["loss_short"].item() == pytest.approx(math.log(math.exp(10) + 3) - 10, abs=1e-6)
    assert parts["loss_token_image"].item() == clip_loss(*[rows["region_embeds"]] * 2, SCALE).item()
    total = 0.5 * (parts["loss_token_image"] + parts["loss_token_text"]) + 2 * parts["loss_short"]
    assert parts["loss"].item() == pytest.approx(total.item())


def test_a_region_without_patches_is_neither_asked_for_nor_in_the_way():
    valid = torch.tensor([True, False, True, True])
    rows = {**_embeds(), "region_valid": valid}
    rows["region_embeds"][1] = float("nan")
    weights = LossWeights(0.0, 0.0, 0.0, token_weight=1.0)
    found = fast_goal_loss(rows, SCALE, weights)["loss_token_image"]
    kept = [rows[name][valid] for name in ("region_embeds", "local_image_embeds")]
    assert found.item() == pytest.approx(clip_loss(*kept, SCALE).item())
    rows["region_valid"] = torch.zeros(4, dtype=torch.bool)
    assert fast_goal_loss(rows, SCALE, weights)["loss_token_image"].item() == 0


def _slow_contrast(queries, targets, scale, bias=None):
    """Compute a contrastive loss of two lists of vectors with loops over floats."""

    def cosine(one, other):
        norms = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
        return sum(x * y for x, y in zip(one, other, strict=True)) / norms

    count = len(queries)
    logits = [[scale * cosine(query, target) + (bias or 0.0) for target in targets] for query in queries]
    if bias is not None:
        signs = [[1 if i == j else -1 for j in range(count)] for i in range(count)]
        return (
            sum(math.log1p(math.exp(-signs[i][j] * logits[i][j])) for i in range(count) for j in range(count)) / count
        )
    forward = sum(math.log(sum(map(math.exp, logits[i]))) - logits[i][i] for i in range(count))
    backward = sum(math.log(sum(math.exp(row[i]) for row in logits)) - logits[i][i] for i in range(count))
    return (forward + backward) / (2 * count)


@pytest.mark.parametrize("bias", [None, -3.0])
def test_the_token_term_is_a_slow_loop_without_rows_of_empty_masks(bias):
    """Patches with crops, tokens with sentences; a row with an empty mask is no negative of the others either."""
    rows = _embeds()
    rows["region_valid"] = torch.tensor([True, True, False, True])
    rows["sentence_valid"] = torch.tensor([False, True, True, True])
    weights = LossWeights(0.0, 0.0, 0.0, token_weight=1.0)
    parts = fast_goal_loss(rows, SCALE, weights, logit_bias=None if bias is None else torch.tensor(bias))
    halves = {
        "loss_token_image": ("region_embeds", "local_image_embeds", [0, 1, 3]),
        "loss_token_text": ("sentence_embeds", "local_text_embeds", [1, 2, 3]),
    }
    expected = {
        name: _slow_contrast(*([rows[side][row].tolist() for row in kept] for side in (one, other)), 10.0, bias)
        for name, (one, other, kept) in halves.items()
    }
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-5)
    assert abs(expected["loss_token_image"] - expected["loss_token_text"]) > 0.1


def test_the_token_term_uses_and_trains_the_models_logit_scale():
    """The same scale as the global and the local loss."""
    rows, scale = _embeds(), torch.tensor(10.0, requires_grad=True)
    weights = LossWeights(0.0, 0.0, 0.0, token_weight=1.0)
    fast_goal_loss(rows, scale, weights)["loss"].backward()
    low, high = (fast_goal_loss(rows, torch.tensor(10.0 + step), weights)["loss"] for step in (-0.1, 0.1))
    assert scale.grad.item() == pytest.approx((high - low).item() / 0.2, rel=1e-2)
    assert abs(scale.grad.item()) > 1e-3


def test_global_alone_needs_no_pairs():
    embeds = _embeds()
    parts = fast_goal_loss({"image_embeds": embeds["image_embeds"], "text_embeds": embeds["text_embeds"]}, SCALE)
    assert set(parts) == {"loss", "loss_global"}
    assert torch.equal(parts["loss"], parts["loss_global"])


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="image_embeds"):
        fast_goal_loss({"image_embeds": torch.ones(2, 2)}, SCALE)


def test_terms_and_weights_belong_together():
    """Configuration, arguments and outputs derive from these two lists: a weight without a term would be ignored."""
    assert {term.weight for term in TERMS} == {weight.name for weight in fields(LossWeights)}
    assert all(weight.metadata["label"] and weight.metadata["help"] for weight in fields(LossWeights))
    assert ["loss", *(term.name for term in TERMS)] == [field.name for field in fields(FastGoalLosses)]
    config, args = FastGoalCLIPConfig(tsl_weight=3), FastGoalTrainingArguments(use_cpu=True)
    for weight in fields(LossWeights):
        assert getattr(config, weight.name) == (3 if weight.name == "tsl_weight" else weight.default)
        assert getattr(args, weight.name) is None
    assert astuple(LossWeights()) == (1.0, 0.5, 1.0, 0.0, 0.0, 0.0)


def test_rows_of_a_batch():
    """One row per sample of what the losses need, and nothing else; SPARC's loss of each row is among it."""
    generator = torch.Generator().manual_seed(0)
    given = {
        **_embeds(),
        "region_embeds": None,
        "patch_embeds": torch.randn(4, 6, 8, generator=generator),
        "token_embeds": torch.randn(4, 5, 8, generator=generator),
        "word_mask": torch.tensor([[0, 1, 1, 0, 0]] * 3 + [[0] * 5]).bool(),
        "logits_per_image": torch.ones(4, 4),
    }
    sentences = torch.zeros(4, 5)
    sentences[2, 3] = 1
    rows = loss_rows(given, SCALE, region_mask=torch.ones(4, 6), sentence_mask=sentences)
    assert rows.keys() == {
        *("image_embeds", "text_embeds", "local_image_embeds", "local_text_embeds", "sentence_embeds"),
        *("sentence_valid", "sparc_rows", "sparc_valid"),
    }
    assert all(len(value) == 4 for value in rows.values())
    assert rows["sentence_valid"].tolist() == [False, False, True, False]
    parts = fast_goal_loss(rows, SCALE, LossWeights(0.0, 0.0, 0.0, 2.0))
    expected = sparc_losses(given["patch_embeds"], given["token_embeds"], given["word_mask"], SCALE)[:3].mean()
    assert parts["loss"].item() == pytest.approx(2 * expected.item())
    assert "loss_tsl_image" not in parts
    one = token_similarity_loss(given["sentence_embeds"][2:3], given["local_text_embeds"][2:3])
    assert parts["loss_tsl_text"].item() == pytest.approx(one.item())
