"""`build_captions` with a captioner that says what color the image has, so that rows cannot be mixed up unseen."""

import json
import multiprocessing
import os
import random
import time

import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from fastgoal.processing.builders import captions
from fastgoal.processing.builders.captioner import Caption
from fastgoal.processing.builders.captions import CaptionSettings, write_captions
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.image_folder import open_images

SETTINGS = CaptionSettings("a model", "What color is it?", max_new_tokens=20)


class Captioner:
    """Writes the color of an image, notes the images, and can fail after a number of them."""

    def __init__(self, last=None, pause=0.0):
        self.batches = []
        self.last = last
        self.pause = pause

    def __call__(self, images, seed=0):
        time.sleep(self.pause)
        if self.last is not None and len(self.batches) == self.last:
            raise KeyboardInterrupt
        colors = [image.getpixel((0, 0))[:2] for image in images]
        self.batches.append(colors)
        return [
            Caption(
                "" if red == 199 else f"Red {red}. Green {green}. It is a picture.", "length" if red % 2 else "stop"
            )
            for red, green in colors
        ]

    @property
    def seen(self):
        return sorted(color for batch in self.batches for color in batch)


def paint(folder, count, start=0):
    folder.mkdir(exist_ok=True)
    for number in range(start, start + count):
        Image.new("RGB", (8 + number % 3, 8), (number, 2 * number, 0)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def photographs(tmp_path):
    return paint(tmp_path / "photographs", 11)


def build(photographs, output, captioner, settings=SETTINGS, **options):
    return write_captions(
        open_images(photographs), output, settings, lambda: captioner, **{"batch_size": 3, "progress": False, **options}
    )


def rows_of(output):
    return [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]


def expected(numbers):
    return [
        {
            "file_name": f"{number:03d}.png",
            "caption": f"Red {number}. Green {2 * number}. It is a picture.",
            "finish": "length" if number % 2 else "stop",
        }
        for number in numbers
    ]


def test_every_image_gets_its_own_caption(photographs, tmp_path):
    captioner, shown = Captioner(pause=0.05), []
    summary = build(photographs, tmp_path / "out", captioner, show=lambda *text: shown.append(text))
    assert rows_of(tmp_path / "out") == expected(range(11))
    assert [len(batch) for batch in captioner.batches] == [3, 3, 3, 2]
    assert shown == [("000.png", "Red 0. Green 0. It is a picture.")]
    seconds, rate = summary.pop("seconds"), summary.pop("images_per_second")
    assert seconds >= 4 * 0.05
    assert rate == pytest.approx(11 / seconds, rel=0.05)
    assert summary == {"images": 11, "skipped": [], "words": 8.0, "sentences": 3.0, "cut": 5, "markdown": 0, "made": 11}
    assert os.listdir(tmp_path / "out" / ".fastgoal") == ["run.lock"]

    again = Captioner()
    assert build(photographs, tmp_path / "out", again)["made"] == 0
    assert again.seen == []


def test_the_result_is_a_source_and_an_imagefolder(photographs, tmp_path, tmp_path_factory):
    (photographs / "sub").mkdir()
    (photographs / "000.png").rename(photographs / "sub" / "000.png")
    build(photographs, tmp_path / "out", Captioner())
    source = load_source(tmp_path / "out")
    assert [row.name for row in source] == [*(f"{n:03d}.png" for n in range(1, 11)), "sub/000.png"]
    for row in source:
        with Image.open(row.image) as image:
            assert row.caption.startswith(f"Red {image.getpixel((0, 0))[0]}. ")
    cache = str(tmp_path_factory.mktemp("cache"))
    loaded = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=cache)
    assert len(loaded) == 11
    for row in loaded:
        assert row["caption"].startswith(f"Red {row['image'].getpixel((0, 0))[0]}. ")


def test_images_are_copies_of_the_originals(photographs, tmp_path):
    (photographs / "link.png").symlink_to("003.png")
    build(photographs, tmp_path / "copied", Captioner())
    for name in ("003.png", "link.png"):
        copy = tmp_path / "copied" / name
        assert copy.read_bytes() == (photographs / "003.png").read_bytes()
        assert not copy.is_symlink()
        assert copy.stat().st_nlink == 1
    # What is written to a copy does not reach the original.
    assert not copy.samefile(photographs / "003.png")


def test_images_outside_the_folder_are_not_copied(photographs, tmp_path):
    private = (photographs / "003.png").rename(tmp_path / "private.png")
    (photographs / "003.png").symlink_to(private)
    with pytest.raises(ValueError, match=r"'003\.png' is outside the folder"):
        build(photographs, tmp_path / "out", Captioner())
    lines = [{"file_name": "../private.png", "caption": "a"}]
    (photographs / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_images(photographs, allow_outside_files=True)
    write_captions(source, tmp_path / "allowed", SETTINGS, Captioner, progress=False)
    assert [path.name for path in (tmp_path / "allowed").glob("*.png")] == ["00000000-private.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["allowed", "out", "photographs", "private.png"]


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_an_interrupted_run_continues(photographs, tmp_path, last):
    first, second = Captioner(last), Captioner()
    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "out", first)
    assert not (tmp_path / "out" / "metadata.jsonl").exists()
    with pytest.raises(ValueError, match="captions are not finished"):
        load_source(tmp_path / "out")
    assert build(photographs, tmp_path / "out", second)["made"] == 11 - 3 * last
    # Not one image twice, and the batches of a run without a break.
    assert first.batches + second.batches == unbroken(photographs, tmp_path)
    assert rows_of(tmp_path / "out") == expected(range(11))


def unbroken(photographs, tmp_path):
    captioner = Captioner()
    build(photographs, tmp_path / "unbroken", captioner)
    return captioner.batches


def test_a_damaged_batch_is_named_and_written_again(photographs, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(captions.logger, "warning", warnings.append)
    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "out", Captioner(3))
    batches = sorted((tmp_path / "out" / ".fastgoal").glob("captions-*.json"))
    assert [path.name for path in batches] == [f"captions-0000000{row}.json" for row in (0, 3, 6)]
    batches[1].write_bytes(batches[1].read_bytes()[:50])
    captioner = Captioner()
    build(photographs, tmp_path / "out", captioner)
    assert f"{batches[1]} is damaged" in warnings[0]
    assert len(captioner.seen) == 11 - 6
    assert rows_of(tmp_path / "out") == expected(range(11))


def test_a_run_that_ended_before_its_summary_is_finished(photographs, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fastgoal.processing.builders.shards.RunFolder.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build(photographs, tmp_path / "out", Captioner())
    captioner = Captioner()
    summary = build(photographs, tmp_path / "out", captioner)
    assert (summary["images"], summary["made"], captioner.seen) == (11, 0, [])
    assert os.listdir(tmp_path / "out" / ".fastgoal") == ["run.lock"]
    assert rows_of(tmp_path / "out") == expected(range(11))


class Slow(Captioner):
    """Takes its time, and writes down what it was asked about."""

    def __init__(self, log):
        super().__init__(pause=0.01)
        self.log = log

    def __call__(self, images, seed=0):
        with self.log.open("a") as file:
            file.writelines(f"{image.getpixel((0, 0))[0]}\n" for image in images)
        return super().__call__(images, seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that starts at once")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kill_9_at_any_moment_loses_and_repeats_nothing(tmp_path):
    photographs, output, log = paint(tmp_path / "photographs", 90), tmp_path / "out", tmp_path / "log"
    chance, kills = random.Random(1), 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=build, args=(photographs, output, Slow(log)))
        process.start()
        process.join(chance.uniform(0.01, 0.15) if kills < 8 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 2
    assert rows_of(output) == expected(range(90))
    assert len(list(output.glob("*.png"))) == 90
    assert os.listdir(output / ".fastgoal") == ["run.lock"]
    # Only a batch that a kill caught before it was written down was asked about again.
    assert len(log.read_text().split()) <= 90 + 3 * kills


def test_settings_and_images_are_not_mixed(photographs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "out", Captioner(1))
    cases = {
        "the prompt was different": CaptionSettings("a model", "Which?", max_new_tokens=20),
        "model was 'a model' and is now 'b model'": CaptionSettings("b model", SETTINGS.prompt, max_new_tokens=20),
        "max_new_tokens was 20 and is now 21": CaptionSettings("a model", SETTINGS.prompt, max_new_tokens=21),
    }
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            build(photographs, tmp_path / "out", Captioner(), settings)
        assert "Choose another `output`, or delete this folder" in str(caught.value)
    Image.new("RGB", (9, 9), "white").save(photographs / "005.png")
    with pytest.raises(ValueError, match="source_fingerprint was"):
        build(photographs, tmp_path / "out", Captioner())
    paint(photographs, 1, start=5)
    # The size of a batch changes no caption.
    build(photographs, tmp_path / "out", Captioner(), batch_size=2)
    assert rows_of(tmp_path / "out") == expected(range(11))
    with pytest.raises(ValueError, match="model was"):
        build(photographs, tmp_path / "out", Captioner(), cases["model was 'a model' and is now 'b model'"])


def test_before_the_first_caption_settings_may_change(photographs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "out", Captioner(0), CaptionSettings("a modle", "What?"))
    build(photographs, tmp_path / "out", Captioner())
    assert rows_of(tmp_path / "out") == expected(range(11))


def test_a_broken_image_stops_or_is_listed(photographs, tmp_path):
    (photographs / "004.png").write_bytes(b"not an image")
    captioner = Captioner()
    with pytest.raises(ValueError, match=r"^\S+004\.png is not an image"):
        build(photographs, tmp_path / "out", captioner)
    assert captioner.seen == [(0, 0), (1, 2), (2, 4)]
    summary = build(photographs, tmp_path / "out", captioner, on_error="skip")
    assert [entry["row"] for entry in summary["skipped"]] == [4]
    assert str(photographs / "004.png") in summary["skipped"][0]["reason"]
    assert rows_of(tmp_path / "out") == expected([n for n in range(11) if n != 4])
    assert len(captioner.seen) == 10
    assert not (tmp_path / "out" / "004.png").exists()
    assert build(photographs, tmp_path / "out", captioner, on_error="skip")["skipped"] == summary["skipped"]
    with pytest.raises(ValueError, match="skipped 1 row"):
        build(photographs, tmp_path / "out", captioner)


def test_an_image_without_a_caption(photographs, tmp_path):
    Image.new("RGB", (8, 8), (199, 0, 0)).save(photographs / "zz.png")
    with pytest.raises(ValueError, match=r"zz\.png: the model wrote nothing about this image"):
        build(photographs, tmp_path / "out", Captioner())
    summary = build(photographs, tmp_path / "out", Captioner(), on_error="skip")
    assert summary["images"] == 11
    assert "wrote nothing" in summary["skipped"][0]["reason"]


def test_no_usable_image_is_an_error(tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the 1 images .*a\.jpg"):
        build(tmp_path / "photographs", tmp_path / "out", Captioner(), on_error="skip")


def test_sampling_draws_with_the_seed_of_the_first_row(photographs, tmp_path):
    seeds = []

    def captioner(images, seed):
        seeds.append(seed)
        return Captioner()(images)

    settings = CaptionSettings("a model", "What?", temperature=0.7, seed=100, sampled_batch=3)
    build(photographs, tmp_path / "out", captioner, settings)
    assert seeds == [100, 103, 106, 109]


def test_limit(photographs, tmp_path):
    settings = CaptionSettings("a model", "What?", limit=4)
    assert build(photographs, tmp_path / "out", Captioner(), settings)["images"] == 4
    assert rows_of(tmp_path / "out") == expected(range(4))


def test_rows_with_the_same_file_count_once(photographs, tmp_path):
    names = ["003.png", "001.png", "./003.png", "001.png"]
    (photographs / "metadata.jsonl").write_text("".join(json.dumps({"file_name": name}) + "\n" for name in names))
    captioner = Captioner()
    build(photographs, tmp_path / "out", captioner)
    assert rows_of(tmp_path / "out") == expected([3, 1])
    assert captioner.seen == [(1, 2), (3, 6)]


def test_rows_of_a_dataset_get_unique_names(photographs, tmp_path):
    names = ["000.png", "001.png", "002.png"]
    images = [{"bytes": (photographs / name).read_bytes(), "path": "x/same name.png"} for name in names]
    images[2]["path"] = None
    from datasets import Features
    from datasets import Image as ImageFeature

    data = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    data.to_parquet(tmp_path / "parquet" / "train.parquet")
    build(tmp_path / "parquet", tmp_path / "out", Captioner())
    rows = rows_of(tmp_path / "out")
    assert [row["file_name"] for row in rows] == ["00000000-same_name.png", "00000001-same_name.png", "00000002.png"]
    for row, name in zip(rows, names, strict=True):
        assert (tmp_path / "out" / row["file_name"]).read_bytes() == (photographs / name).read_bytes()


def test_two_runs_do_not_write_one_folder(photographs, tmp_path):
    inside = []

    def captioner(images, seed):
        if not inside:
            inside.append(True)
            with pytest.raises(ValueError, match=f"process {os.getpid()} on the machine .* writes this folder"):
                build(photographs, tmp_path / "out", Captioner())
        return Captioner()(images)

    build(photographs, tmp_path / "out", captioner)
    assert rows_of(tmp_path / "out") == expected(range(11))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_reported_and_finished_work_is_kept(photographs, tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    def captioner(images, seed):
        monkeypatch.setattr(os, call, full)
        return Captioner()(images)

    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "out", Captioner(2))
    with pytest.raises(OSError, match=r"captions-00000006.json: .*No space left on device"):
        build(photographs, tmp_path / "out", captioner)
    monkeypatch.undo()
    captioner = Captioner()
    build(photographs, tmp_path / "out", captioner)
    assert len(captioner.seen) == 5
    assert rows_of(tmp_path / "out") == expected(range(11))


def test_folders_with_other_files_are_refused(photographs, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"`fastgoal caption` did not write \(thesis.tex\)"):
        build(photographs, tmp_path / "other", Captioner())
    with pytest.raises(ValueError, match=r"`output`.*thesis.tex"):
        build(photographs, tmp_path / "other" / "thesis.tex", Captioner())


@pytest.mark.parametrize(
    ("name", "value"), [("prompt", " "), ("max_new_tokens", 0), ("limit", 0), ("temperature", -1.0), ("top_p", 0.0)]
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        CaptionSettings(**{"model": "m", "prompt": "p", name: value})
