"""Fingerprints of weights and files, and weights that are NaN or infinite."""

import shutil

import pytest
import torch

from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint, fingerprint, refuse_not_finite


def test_a_fingerprint_depends_on_every_value_and_not_on_the_dtype():
    torch.manual_seed(0)
    weights = {"a": torch.randn(5, 3001), "b": torch.randn(()), "c": torch.arange(3), "d": torch.empty(0)}
    first = fingerprint(weights)
    assert fingerprint(dict(reversed(weights.items()))) == first
    assert fingerprint(weights, ["a text"]) != first
    for place in (0, 1, 7777, -1):
        changed = weights["a"].clone()
        changed.view(-1)[place] += 1e-6
        assert fingerprint({**weights, "a": changed}) != first
    assert fingerprint({**weights, "a": weights["a"].T.contiguous()}) != first
    halves = {name: value.half() for name, value in weights.items()}
    assert fingerprint(halves) == fingerprint({name: value.float() for name, value in halves.items()}) != first


def test_the_fingerprint_of_a_checkpoint_changes_with_its_files(tiny_clip, tmp_path):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    mark = checkpoint_fingerprint(str(folder))
    assert mark.startswith("clip#")
    assert checkpoint_fingerprint(str(folder)) == mark
    (folder / "config.json").write_text("{}")
    assert checkpoint_fingerprint(str(folder)) != mark


@pytest.mark.parametrize("argument", ["model", "detector"])
def test_a_missing_repository_is_named(argument):
    with pytest.raises(ValueError, match=rf"`{argument}=owner/nothing` cannot be loaded: .*Hub") as error:
        checkpoint_fingerprint("owner/nothing", argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    whole = [("a", torch.zeros(3)), ("ids", torch.tensor([1, 2]))]
    refuse_not_finite(whole, "it")
    with pytest.raises(ValueError, match=r"it has weights that are NaN or infinite \(in b\)"):
        refuse_not_finite([*whole, ("b", torch.tensor([0.0, value], dtype=torch.bfloat16))], "it")
