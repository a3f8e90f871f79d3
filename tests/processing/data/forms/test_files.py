"""Every form of published datasets goes through pairs, training and evaluation with the same result."""

import pytest

import fastgoal
from fastgoal.processing.data.forms.registry import load_source, recognize
from fastgoal.trainer.evaluation.options import EvaluationOptions
from fastgoal.trainer.run import main
from tests.processing.data.forms.published_forms import PUBLISHED_WRITERS, write_docci
from tests.squares import image_of, row_of

PAIRS = (("red", "green"), ("green", "blue"), ("blue", "red"), ("red", "blue"), ("green", "red"), ("blue", "green"))
ROWS = [(f"{n:04d}.png", image_of(*pair), row_of(*pair)["caption"]) for n, pair in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def expected(tiny_clip, tmp_path_factory):
    """What rows in memory give, which no form has read."""
    from datasets import Dataset, Image

    folder = tmp_path_factory.mktemp("expected")
    rows = {"image": [image for _, image, _ in ROWS], "caption": [caption for *_, caption in ROWS]}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(folder / "data" / "train.parquet")
    fastgoal.build_pairs(folder / "data", folder / "pairs", tiny_clip, None, progress=False)
    scores = [pair["score"] for row in load_source(folder / "pairs") for pair in row.columns["pairs"]]
    return scores, fastgoal.evaluate(tiny_clip, folder / "data", EvaluationOptions(resamples=0)).metrics


@pytest.mark.parametrize("form", PUBLISHED_WRITERS)
def test_pairs_training_and_evaluation(form, expected, tiny_clip, tmp_path):
    data = PUBLISHED_WRITERS[form](tmp_path / "data", ROWS)
    assert recognize(data).name == form
    fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, shard_size=4, progress=False)
    stored = load_source(tmp_path / "pairs")
    assert [row.caption for row in stored] == [caption for *_, caption in ROWS]
    scores, metrics = expected
    assert [pair["score"] for row in stored for pair in row.columns["pairs"]] == pytest.approx(scores, abs=1e-6)
    assert fastgoal.evaluate(tiny_clip, data, EvaluationOptions(resamples=0)).metrics == metrics
    options = ["--model", tiny_clip, "--train_data", data, "--objective", "goal" if form == "goal" else "global"]
    options += ["--max_steps", "1", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--save_strategy", "no"]
    options += ["--report_to", "none", "--dataloader_num_workers", "0", "--output_dir", tmp_path / "out"]
    assert main([*map(str, options)]) == 0


def test_rows_do_not_name_files_outside(tmp_path):
    folder = write_docci(tmp_path / "docci", [("../../secret.png", image_of("red", "green"), "A.")])
    with pytest.raises(ValueError, match=r"line 1 .*secret\.png.* is outside the folder"):
        load_source(folder)[0]
    assert load_source(folder, allow_outside_files=True)[0].caption == "A."
