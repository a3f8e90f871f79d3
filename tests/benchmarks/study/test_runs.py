"""The study's batches are the trainer's, its pairs are right where the truth is known, its arms differ as they say."""

import pytest
import torch

from benchmarks.study import runs
from benchmarks.study.arms import Arm, Sizes
from benchmarks.study.data import StudyData
from benchmarks.study.runs import StudyCollator, train_arm
from benchmarks.study.scenes import draw_crowds
from fastgoal import FastGoalCLIPModel, FastGoalCollator, FastGoalProcessor
from fastgoal.quickstart.tour import BASE


@pytest.fixture(scope="module")
def data():
    model, processor = FastGoalCLIPModel.from_base(str(BASE)), FastGoalProcessor.from_base(str(BASE))
    return StudyData(draw_crowds(30, 5), processor, model), processor


def test_batches_are_those_of_the_collator(data):
    data, processor = data
    rows = []
    for index in range(8):
        scene, pairs = data.scenes[index], data.pairs(index, ("default", "detected"))
        rows.append(
            {
                "image": scene.image,
                "caption": scene.caption,
                "regions": [{"box": region.box} for region in data.regions[index]],
                "sentences": [{"start": s.start, "end": s.end} for s in data.sentences[index]],
                "pairs": [{"sentence": p.sentence_index, "region": p.region_index, "score": p.score} for p in pairs],
            }
        )
    expected = FastGoalCollator(processor)(rows)
    batch = StudyCollator(data, Arm("paper"), seed=0)(range(8))
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(batch[name].float(), value.float(), atol=1e-6), name


def test_a_longer_model_reads_the_same_pairs_and_more(data):
    data, processor = data
    longer = data.read_by(FastGoalProcessor.from_base(str(BASE), 512))
    short = data.read_by(FastGoalProcessor.from_base(str(BASE), 77))
    assert all(torch.equal(a, b) for a, b in zip(longer.ids, data.ids, strict=True))  # they have fewer than 248
    cut = max(range(30), key=lambda index: len(data.ids[index]))
    assert torch.equal(short.ids[cut][:76], data.ids[cut][:76])
    assert len(short.ids[cut]) == 77 < len(data.ids[cut])
    assert torch.equal(short.sentence_masks[cut][:, :76], data.sentence_masks[cut][:, :76])
    assert data.processor is processor
    for index in range(3):
        ours, known = longer.pairs(index, ("detected",)), data.pairs(index, ("detected",))
        assert [pair.score for pair in ours] == [pair.score for pair in known]


def test_the_text_length_of_an_arm_is_the_models(data):
    for length in (None, 512):
        model, _ = train_arm(Arm("before", "none", max_text_length=length), Sizes(), 0, data[0], BASE, data[1])
        assert model.config.text_config.max_position_embeddings == (length or 248)


def test_true_pairs_show_what_is_said(data):
    data, _ = data
    for index in range(10):
        for pair in data.true_pairs(index):
            (thing,) = data.scenes[index].sentence_things[pair.sentence_index]
            assert pair.region.box == pytest.approx(data.scenes[index].boxes[thing])


def test_choices(data):
    data, _ = data
    for pairs, most in (("best", 1), ("top3", 3)):
        collator = StudyCollator(data, Arm("arm", pairs=pairs), seed=0)
        assert max(len(choices) for choices in collator.choices) == most
    best = StudyCollator(data, Arm("arm"), seed=0).choices
    any_pair = StudyCollator(data, Arm("arm", pairs="random"), seed=0).choices
    assert all(one[0] == many[0] for one, many in zip(best, any_pair, strict=True))
    assert all(choices == data.ranked(index, choices) for index, choices in enumerate(any_pair))


def test_defects(data):
    data, _ = data
    right, off, squashed = (
        StudyCollator(data, arm, seed=0)(range(20))
        for arm in (
            Arm("a"),
            Arm("b", sentence_shift=1),
            Arm("c", squashed_boxes=True),
        )
    )
    assert torch.equal(right["sentence_mask"][:, :-1], off["sentence_mask"][:, 1:])
    square = torch.tensor([scene.image.width == scene.image.height for scene in data.scenes[:20]])
    same = (right["region_mask"] == squashed["region_mask"]).all(1)
    assert same[square].all()
    assert not same[~square].all()


def test_crops_of_several_sizes(data):
    data, _ = data
    whole = data.crops[[0]].shape[-1]
    part = whole * 3 // 4
    plain, small, mixed = (
        StudyCollator(data, arm, seed=0)
        for arm in (Arm("a"), Arm("b", settings=(("crop_size", part),)), Arm("c", crop_sizes=(whole, part)))
    )
    seen = set()
    for start in range(0, 24, 2):
        full, less, either = (collator(range(start, start + 2)) for collator in (plain, small, mixed))
        side = either["local_pixel_values"].shape[-1]
        expected = {whole: full, part: less}[side]
        assert all(torch.equal(value, expected[name]) for name, value in either.items())
        seen.add(side)
    assert seen == {whole, part}


def test_short_captions_are_the_scenes(data):
    data, processor = data
    batch = StudyCollator(data, Arm("short", settings=(("short_weight", 0.3),)), seed=0)(range(8))
    for row, (ids, mask) in enumerate(zip(batch["short_input_ids"], batch["short_attention_mask"], strict=True)):
        assert ids[mask.bool()].tolist() in [known.tolist() for known in data.short_ids[row]]
    assert max(map(len, data.short_ids[0])) < len(data.ids[0])
    settings = (("hard_negative_refresh", 0.5), ("short_weight", 0.3), ("token_weight", 0.1), ("l2sp_weight", 1e-3))
    sizes = Sizes(train_scenes=30, batch_size=5, epochs=2, learning_rate=1e-3)
    looked = []

    class Trainer(runs.StudyTrainer):
        def _find_neighbors(self, data, **how):
            looked.append(round(self.state.epoch or 0))
            return super()._find_neighbors(data, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "StudyTrainer", Trainer)
        train_arm(Arm("best", near=True, settings=settings), sizes, 0, data, BASE, processor)
    assert looked == [0, 1]


def test_hard_negatives_and_warm_up(data, monkeypatch):
    """The neighbors are the base's, and the rate rises over the share of the steps that is told."""
    data, processor = data
    made = []

    class Sampler(runs.HardNegativeSampler):
        def __init__(self, neighbors, *args):
            made.append(neighbors)
            super().__init__(neighbors, *args)

    rates = []

    class Trainer(runs.StudyTrainer):
        def training_step(self, *args, **kwargs):
            rates.append(self.lr_scheduler.get_last_lr()[0])
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(runs, "HardNegativeSampler", Sampler)
    monkeypatch.setattr(runs, "StudyTrainer", Trainer)
    sizes = Sizes(train_scenes=30, batch_size=5, epochs=1, learning_rate=1e-3, warmup=0.5)
    train_arm(Arm("near", near=True), sizes, 0, data, BASE, processor)
    with torch.no_grad():
        model = FastGoalCLIPModel.from_base(str(BASE))
        images = model.get_image_features(pixel_values=data.pixels[range(30)]).pooler_output
    images = torch.nn.functional.normalize(images, dim=-1)
    nearest = (images @ images.T - 2 * torch.eye(30)).argmax(dim=1)
    assert (made[0][:, 0] == nearest).float().mean() > 0.9  # bfloat16 may swap two that are equally near
    assert rates[:4] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
