from pathlib import Path

import evaluate
import pytest
import torch

import fastgoal
from fastgoal import retrieval_metrics

FOLDER = str(Path(fastgoal.__file__).parent / "retrieval_recall")


@pytest.fixture(scope="module")
def compute(tmp_path_factory):
    cache = tmp_path_factory.mktemp("metric")
    # A metric is loaded for one computation, in memory: it writes no files.
    return lambda **inputs: evaluate.load(FOLDER, cache_dir=str(cache), keep_in_memory=True).compute(**inputs)


def test_same_numbers_as_ours(compute):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 4, (12, 3), generator=generator).float()  # few values: many ties
    texts = torch.randint(1, 4, (30, 3), generator=generator).float()
    owner = torch.randint(0, 12, (30,), generator=generator)
    metrics = compute(
        predictions=texts.tolist(), references=owner.tolist(), image_embeds=images.tolist(), ks=[1, 5, 20]
    )
    assert metrics == pytest.approx(retrieval_metrics(images, texts, owner, ks=(1, 5, 20)), abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_embeds": None}, "`image_embeds` .* got None"),
        ({"image_embeds": [[1.0, 0.0, 0.0]]}, "`predictions` and `image_embeds` .* 2 and 3"),
        ({"references": [1]}, "`references` .* 0 to 0"),
        ({"image_embeds": [[float("nan"), 0.0]]}, "`image_embeds` .* NaN"),
    ],
)
def test_errors(compute, changes, message):
    with pytest.raises(ValueError, match=message):
        compute(**{"predictions": [[1.0, 0.0]], "references": [0], "image_embeds": [[1.0, 0.0]], **changes})
