"""The study: its world has known answers, its batches are the trainer's, its runs are kept and told truly."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgoal import FastGoalCollator
from fastgoal.modeling_fastgoal import clip_loss
from fastgoal.quickstart.tour import BASE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import study  # noqa: E402
import study_report  # noqa: E402
import study_runs  # noqa: E402
import study_scenes  # noqa: E402
from study_scenes import DETAIL_WORDS, draw_crowds  # noqa: E402


def words(texts):
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


@pytest.fixture(scope="module")
def data():
    model, processor = study_runs.load_base(BASE)
    return study_runs.StudyData(draw_crowds(30, 5), processor, model), processor


class TestScenes:
    def test_depend_on_split_seed_and_index_alone(self):
        few, many = draw_crowds(5, 1), draw_crowds(12, 1)
        assert [scene.caption for scene in few] == [scene.caption for scene in many[:5]]
        assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(few, many, strict=False))
        others = [*draw_crowds(12, 2), *draw_crowds(12, 1, "validation"), *draw_crowds(12, 1, "test")]
        assert not {scene.image.tobytes() for scene in many} & {scene.image.tobytes() for scene in others}

    def test_captions_are_as_long_as_promised(self):
        scenes = draw_crowds(300, 0, max_things=7)
        assert min(len(scene.sentences) for scene in scenes) == 3
        assert max(len(scene.sentences) for scene in scenes) == 15
        lengths = [len(re.findall(r"\w+|[^\w\s]", scene.caption)) for scene in scenes]
        assert min(lengths) >= 30
        assert max(lengths) <= 238
        assert {len(scene.things) for scene in scenes} == set(range(2, 8))
        assert all(len(scene.sentences) == len(scene.sentence_things) for scene in scenes)

    def test_sentences_name_the_things_they_speak_of(self):
        for scene in draw_crowds(50, 3, "test"):
            for sentence, things in zip(scene.sentences, scene.sentence_things, strict=True):
                for number in things:
                    assert f"{scene.things[number].colour} {scene.things[number].shape}" in sentence

    def test_wordings_of_the_test_are_held_out_but_not_their_words(self):
        train = [scene.caption for scene in draw_crowds(400, 0)]
        test = [scene.caption for scene in draw_crowds(200, 0, "test")]
        base = draw_crowds(600, 0, "base", min_things=1)
        rng = study_scenes.random.Random(0)
        short = [study_scenes.short_caption(scene, [0], rng, 0.5) for scene in base]
        assert words(test) <= words(train) | words(short)
        for phrase in ("bordered in", "painted with", "stamped with", "You can see"):
            assert any(phrase in caption for caption in test)
            assert not any(phrase in caption for caption in train)
        # The base never reads a word for a detail.
        details = {word for choices in DETAIL_WORDS.values() for word in choices}
        assert not words(short) & details
        assert len(words(train) & details) > 40
        few = draw_crowds(200, 0, words=1)
        assert words(scene.caption for scene in few) & details <= {choices[0] for choices in DETAIL_WORDS.values()}

    def test_boxes_hold_exactly_what_is_drawn(self):
        for index, scene in enumerate(draw_crowds(20, 4, twins=0.0)):
            rng = study_scenes.random.Random(f"crowd/train/4/{index}")
            plan = dataclasses.replace(study_scenes._plan(rng, (2, 5), True, 3, f"train/4/{index}"), light="bright")
            empty = np.asarray(study_scenes._background(plan, study_scenes.random.Random(f"{plan.seed}/background")))
            for number, (thing, box) in enumerate(zip(plan.things, scene.boxes, strict=True)):
                canvas = Image.fromarray(empty)
                study_scenes._draw_thing(canvas, thing, study_scenes.random.Random(f"{plan.seed}/{number}"))
                ys, xs = np.nonzero((np.asarray(canvas) != empty).any(-1))
                drawn = (xs.min() / 2, ys.min() / 2, (xs.max() + 1) / 2, (ys.max() + 1) / 2)
                assert drawn == pytest.approx(box, abs=2)

    def test_twins_differ_in_one_thing(self):
        scenes = draw_crowds(60, 0, twins=0.5)
        twins = [(scenes[scene.twin_of], scene) for scene in scenes if scene.twin_of is not None]
        assert len(twins) > 10
        for first, second in twins:
            changed = [i for i, (a, b) in enumerate(zip(first.things, second.things, strict=True)) if a != b]
            assert len(changed) == 1
            ys, xs = np.nonzero((np.asarray(first.image) != np.asarray(second.image)).any(-1))
            x1, y1, x2, y2 = second.boxes[changed[0]]
            assert xs.min() >= x1 - 1
            assert ys.min() >= y1 - 1
            assert xs.max() <= x2
            assert ys.max() <= y2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"split": "dev"}, "split"), ({"twins": 2}, "twins"), ({"max_things": 9}, "1 <= min_things")],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            draw_crowds(1, **arguments)


class TestRuns:
    def test_batches_are_those_of_the_collator(self, data):
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
                    "pairs": [
                        {"sentence": p.sentence_index, "region": p.region_index, "score": p.score} for p in pairs
                    ],
                }
            )
        expected = FastGoalCollator(processor)(rows)
        batch = study_runs.StudyCollator(data, study_runs.Arm("paper"), seed=0)(range(8))
        assert batch.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(batch[name].float(), value.float(), atol=1e-6), name

    def test_true_pairs_show_what_is_said(self, data):
        data, _ = data
        for index in range(10):
            for pair in data.true_pairs(index):
                (thing,) = data.scenes[index].sentence_things[pair.sentence_index]
                assert pair.region.box == pytest.approx(data.scenes[index].boxes[thing])
        quality = study_runs.matching_quality(
            data, lambda index: [dataclasses.replace(pair, best=True) for pair in data.true_pairs(index)]
        )
        assert quality == {"all": 1.0, "best": 1.0, "best_tight": 1.0}

    def test_choices(self, data):
        data, _ = data
        for pairs, most in (("best", 1), ("top3", 3)):
            collator = study_runs.StudyCollator(data, study_runs.Arm("arm", pairs=pairs), seed=0)
            assert max(len(choices) for choices in collator.choices) == most
        best = study_runs.StudyCollator(data, study_runs.Arm("arm"), seed=0).choices
        any_pair = study_runs.StudyCollator(data, study_runs.Arm("arm", pairs="random"), seed=0).choices
        assert all(one[0] == many[0] for one, many in zip(best, any_pair, strict=True))
        assert all(data.visible(index, pair) for index, choices in enumerate(any_pair) for pair in choices[1:])

    def test_captions_of_some_sentences(self, data):
        """Tokens of whole sentences, the local one among them and marked; all of them in order are the caption."""
        data, _ = data
        plain = study_runs.StudyCollator(data, study_runs.Arm("a"), seed=0)
        same = study_runs.StudyCollator(data, study_runs.Arm("b", keep=0.999999), seed=0)
        for row in range(10):
            assert same._caption(row, 0)[0] == plain._caption(row, 0)[0]
            assert torch.equal(same._caption(row, 1)[1], plain._caption(row, 1)[1])
        some = study_runs.StudyCollator(data, study_runs.Arm("c", keep=0.5, shuffle=True), seed=0)
        lengths = []
        for row in range(10):
            ids, mask = some._caption(row, 2)
            marked = [token for token, inside in zip(ids, mask.tolist(), strict=True) if inside]
            words = data.sentence_ids[row][2][1:-1]
            assert marked == words[: len(marked)]
            assert len(marked) == len(words) or len(ids) == data.longest
            lengths.append(len(ids) / len(data.ids[row]))
        assert 0.35 < sum(lengths) / 10 < 0.85

    def test_defects(self, data):
        data, _ = data
        right, off, squashed = (
            study_runs.StudyCollator(data, arm, seed=0)(range(20))
            for arm in (
                study_runs.Arm("a"),
                study_runs.Arm("b", sentence_shift=1),
                study_runs.Arm("c", squashed_boxes=True),
            )
        )
        assert torch.equal(right["sentence_mask"][:, :-1], off["sentence_mask"][:, 1:])
        square = torch.tensor([scene.image.width == scene.image.height for scene in data.scenes[:20]])
        same = (right["region_mask"] == squashed["region_mask"]).all(1)
        assert same[square].all()
        assert not same[~square].all()

    def test_masked_loss(self):
        generator = torch.Generator().manual_seed(0)
        images, texts = torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)
        scale = torch.tensor(5.0)
        assert study_runs.masked_clip_loss(images, texts, scale, 1.1) == pytest.approx(clip_loss(images, texts, scale))
        # Two equal pairs: the plain loss cannot be below log 2, the masked one has no negative left.
        same = torch.ones(2, 8)
        assert clip_loss(same, same, scale).item() == pytest.approx(math.log(2))
        assert study_runs.masked_clip_loss(same, same, scale, 0.99).item() == pytest.approx(0.0, abs=1e-6)


class TestStudy:
    def test_runs_once_and_tells_what_came_out(self, tmp_path, monkeypatch, capsys):
        arms = (study_runs.Arm("before", "none"), study_runs.Arm("global", "global"), study_runs.Arm("FAST-GOAL"))
        halfway = study_runs.Arm("half", average=0.5)
        monkeypatch.setattr(study, "QUESTIONS", {1: study.Question("Which losses help?", (*arms, halfway), "global")})
        monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
        command = [
            "study",
            "--base",
            str(BASE),
            "--work",
            str(tmp_path / "work"),
            "--question",
            "1",
            "--seeds",
            "0",
            "1",
        ]
        command += ["--train-scenes", "16", "--test-scenes", "20", "--batch-size", "8", "--epochs", "1"]
        monkeypatch.setattr(sys, "argv", command)
        study.main()
        result = json.loads((tmp_path / "results" / "q1.json").read_text())
        rows = {row["arm"]: row for row in result["rows"]}
        assert [rows[name]["steps"] for name in ("before", "global", "FAST-GOAL")] == [0, 2, 2]
        assert len(rows["before"]["R@1"]["values"]) == 2
        assert "| FAST-GOAL |" in capsys.readouterr().out

        monkeypatch.setattr(study, "train_arm", None)  # a second run finds everything there
        study.main()
        assert json.loads((tmp_path / "results" / "q1.json").read_text()) == result

        # Tables of what is trained: a seed that an arm lacks is not counted, an arm without any is left out.
        sizes = study_runs.Sizes(**result["sizes"])
        runs = {seed: study.Seed(seed, sizes, "test", None, BASE, tmp_path / "work") for seed in (0, 1)}
        runs[1]._result_path(arms[2]).unlink()
        for run in runs.values():
            run._result_path(halfway).unlink()
        monkeypatch.setattr(sys, "argv", [*command, "--tables"])
        study.main()
        fewer = {row["arm"]: row for row in json.loads((tmp_path / "results" / "q1.json").read_text())["rows"]}
        assert fewer.keys() == {"before", "global", "FAST-GOAL"}
        assert fewer["FAST-GOAL"]["seeds"] == [0]
        assert fewer["FAST-GOAL"]["R@1"]["values"] == rows["FAST-GOAL"]["R@1"]["values"][:1]
        assert fewer["global"] == rows["global"]
        assert "(seeds: 1)" in capsys.readouterr().out

        page = tmp_path / "STUDY.md"
        page.write_text("# Study\n<!-- table q1 -->\nstale\n<!-- end -->\n![R@1](results/q1.png)\n")
        study_report.write_report(tmp_path / "results", page)
        assert "stale" not in page.read_text()
        assert "| before |" in page.read_text()
        assert Image.open(tmp_path / "results" / "q1.png").width > 500

    def test_near_batches_and_warm_up(self, data, monkeypatch):
        """The neighbours are the base's, and the rate rises over the share of the steps that is told."""
        data, processor = data
        made = []

        class Sampler(study_runs.NearPairSampler):
            def __init__(self, neighbours, *args):
                made.append(neighbours)
                super().__init__(neighbours, *args)

        rates = []

        class Trainer(study_runs.StudyTrainer):
            def training_step(self, *args, **kwargs):
                rates.append(self.lr_scheduler.get_last_lr()[0])
                return super().training_step(*args, **kwargs)

        monkeypatch.setattr(study_runs, "NearPairSampler", Sampler)
        monkeypatch.setattr(study_runs, "StudyTrainer", Trainer)
        sizes = study_runs.Sizes(train_scenes=30, batch_size=5, epochs=1, learning_rate=1e-3, warmup=0.5)
        study_runs.train_arm(study_runs.Arm("near", near=True), sizes, 0, data, BASE, processor)
        model, _ = study_runs.load_base(BASE)
        with torch.no_grad():
            images = model.get_image_features(pixel_values=data.normalise(data.pixels)).pooler_output
        images = torch.nn.functional.normalize(images, dim=-1)
        nearest = (images @ images.T - 2 * torch.eye(30)).argmax(dim=1)
        assert (made[0][:, 0] == nearest).float().mean() > 0.9  # bfloat16 may swap two that are equally near
        assert rates[:4] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])

    def test_every_setting_makes_another_run(self):
        """The name of an arm changes nothing; whatever else is set does."""
        sizes = study_runs.Sizes()
        plain = study_runs.Arm("a")
        assert plain.key(sizes, 0, "test", "x") == study_runs.Arm("b").key(sizes, 0, "test", "x")
        same_rate = dataclasses.replace(plain, learning_rate=sizes.learning_rate)
        assert plain.key(sizes, 0, "test", "x") == same_rate.key(sizes, 0, "test", "x")
        others = {
            "objective": "global",
            "regions": ("true",),
            "pairs": "random",
            "matcher": "FAST-GOAL",
            "sentence_shift": 1,
            "squashed_boxes": True,
            "settings": (("sparc_weight", 1.0),),
            "extras": (("sub", 1.0),),
            "keep": 0.5,
            "shuffle": True,
            "epochs": 2.0,
            "average": 0.5,
            "near": True,
            "learning_rate": 3e-3,
            "warmup": 0.0,
        }
        assert others.keys() == {field.name for field in dataclasses.fields(plain)} - {"name"}
        arms = [plain, *(dataclasses.replace(plain, **{name: value}) for name, value in others.items())]
        keys = [arm.key(sizes, 0, "test", "x") for arm in arms]
        keys += [plain.key(dataclasses.replace(sizes, epochs=7), 0, "test", "x"), plain.key(sizes, 1, "test", "x")]
        keys += [plain.key(sizes, 0, "validation", "x"), plain.key(sizes, 0, "test", "y")]
        assert len(set(keys)) == len(keys)

    def test_interval(self):
        mean, half = study.interval([1.0, 2.0, 3.0])
        assert (mean, half) == pytest.approx((2.0, 4.303 / math.sqrt(3)))

    def test_a_page_without_results(self, tmp_path):
        (tmp_path / "STUDY.md").write_text("<!-- table q9 -->\n<!-- end -->\n")
        with pytest.raises(ValueError, match="q9"):
            study_report.write_report(tmp_path, tmp_path / "STUDY.md")
