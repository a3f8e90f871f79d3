from pathlib import Path

import evaluate
import pytest
import torch

import fastgoal
from fastgoal import retrieval_metrics

FOLDER = str(Path(fastgoal.__file__).parent / "retrieval_recall")


def test_same_numbers_as_ours(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 4, (12, 3), generator=generator).float()  # few values: many ties
    texts = torch.randint(1, 4, (30, 3), generator=generator).float()
    owner = torch.randint(0, 12, (30,), generator=generator)
    metric = evaluate.load(FOLDER, cache_dir=str(tmp_path))
    found = metric.compute(
        predictions=texts.tolist(), references=owner.tolist(), image_embeds=images.tolist(), ks=[1, 5, 20]
    )
    expected = retrieval_metrics(images, texts, owner, ks=(1, 5, 20))
    assert found == pytest.approx(expected, abs=1e-12)


def test_errors(tmp_path):
    metric = evaluate.load(FOLDER, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="image_embeds is None"):
        metric.compute(predictions=[[1.0, 0.0]], references=[0])
    with pytest.raises(ValueError, match="width 2 and image_embeds 3"):
        metric.compute(predictions=[[1.0, 0.0]], references=[0], image_embeds=[[1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="indices from 0 to 0"):
        metric.compute(predictions=[[1.0, 0.0]], references=[1], image_embeds=[[1.0, 0.0]])
    with pytest.raises(ValueError, match="NaN"):
        metric.compute(predictions=[[1.0, 0.0]], references=[0], image_embeds=[[float("nan"), 0.0]])
