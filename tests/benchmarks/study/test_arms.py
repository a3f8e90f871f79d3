"""Names of the study's runs."""

import dataclasses

from benchmarks.study.arms import Arm, Sizes


def test_every_setting_makes_another_run():
    """The name of an arm changes nothing; whatever else is set does."""
    sizes = Sizes()
    plain = Arm("a")
    assert plain.key(sizes, 0, "test", "x") == Arm("b").key(sizes, 0, "test", "x")
    same_rate = dataclasses.replace(plain, learning_rate=sizes.learning_rate)
    assert plain.key(sizes, 0, "test", "x") == same_rate.key(sizes, 0, "test", "x")
    others = {
        "objective": "global",
        "regions": ("true",),
        "pairs": "random",
        "sentence_shift": 1,
        "squashed_boxes": True,
        "settings": (("sparc_weight", 1.0),),
        "scale": 20.0,
        "epochs": 2.0,
        "average": 0.5,
        "near": True,
        "learning_rate": 3e-3,
        "warmup": 0.0,
        "max_text_length": 512,
        "crop_sizes": (112, 84),
    }
    assert others.keys() == {field.name for field in dataclasses.fields(plain)} - {"name"}
    arms = [plain, *(dataclasses.replace(plain, **{name: value}) for name, value in others.items())]
    keys = [arm.key(sizes, 0, "test", "x") for arm in arms]
    keys += [plain.key(dataclasses.replace(sizes, epochs=7), 0, "test", "x"), plain.key(sizes, 1, "test", "x")]
    keys += [plain.key(sizes, 0, "validation", "x"), plain.key(sizes, 0, "test", "y")]
    assert len(set(keys)) == len(keys)
