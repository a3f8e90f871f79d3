import os

import pytest
import torch
from PIL import Image

pytest.importorskip("faiss")

from fastgoal.cli import main
from fastgoal.search.index import ImageIndex, _stamps


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number, 0, 0)).save(path)


class Encoder:
    """The red level of an image as an angle, and the files that were encoded."""

    def __init__(self):
        self.seen = []

    def __call__(self, paths):
        self.seen += [path.name for path in paths]
        levels = torch.tensor([Image.open(path).getpixel((0, 0))[0] for path in paths]) / 200
        return torch.stack([levels.cos(), levels.sin()], dim=1)


def query(number):
    level = torch.tensor(number / 200)
    return torch.stack([level.cos(), level.sin()])


@pytest.fixture
def folder(tmp_path):
    for number in (10, 60, 110, 160):
        picture(tmp_path / "images" / "sub" / f"{number}.png", number)
    return tmp_path / "images"


def open_index(folder, fingerprint="one", **kwargs):
    return ImageIndex(folder, folder / ".index", f"model {fingerprint}", fingerprint, **kwargs)


def test_finds_the_nearest_and_encodes_only_what_is_new(folder):
    encoder, index = Encoder(), open_index(folder)
    assert (index.update(encoder).encoded, len(index)) == (4, 4)
    assert [hit.path.name for hit in index.search(query(100), 3)] == ["110.png", "60.png", "160.png"]
    assert index.search(query(110), 1)[0].score == pytest.approx(1.0, abs=1e-3)
    assert len(index.search(query(100), 99)) == 4  # k larger than the folder

    encoder, index = Encoder(), open_index(folder)
    assert index.update(encoder).encoded == 0
    assert encoder.seen == []
    picture(folder / "new.png", 105)
    picture(folder / "sub" / "60.png", 200)
    os.utime(folder / "sub" / "60.png", ns=(1, 1))
    (folder / "sub" / "160.png").unlink()
    encoder, index = Encoder(), open_index(folder)
    update = index.update(encoder)
    assert (update.images, update.encoded, update.removed, sorted(encoder.seen)) == (4, 2, 1, ["60.png", "new.png"])
    reopened = open_index(folder)
    assert reopened.update(Encoder()).encoded == 0
    assert [hit.path.name for hit in reopened.search(query(190), 2)] == ["60.png", "110.png"]


def test_a_file_is_known_by_any_of_its_names(folder, tmp_path):
    os.link(folder / "sub" / "110.png", folder / "link.png")
    (folder / "copy.png").write_bytes((folder / "sub" / "110.png").read_bytes())
    index = open_index(folder)
    index.update(Encoder())
    names = index.names_of(folder / "sub" / ".." / "link.png")
    assert sorted(names) == ["link.png", "sub/110.png"]
    hits = index.search(query(110), 2, names)
    assert [hit.path.name for hit in hits] == ["copy.png", "60.png"]  # two, though two were left out
    picture(tmp_path / "elsewhere.png", 110)
    assert index.names_of(tmp_path / "elsewhere.png") == []


def test_broken_images_are_left_out_and_tried_again_only_when_changed(folder):
    (folder / "torn.jpg").write_bytes(b"no image")
    encoder = Encoder()
    update = open_index(folder).update(encoder)
    assert list(update.broken) == ["torn.jpg"]
    assert update.images == 4
    again = Encoder()
    assert open_index(folder).update(again).broken == update.broken
    assert again.seen == []


def test_index_of_another_model_is_refused(folder):
    open_index(folder).update(Encoder())
    with pytest.raises(ValueError, match=r"built with another model, model one; .*--index DIR.*--rebuild"):
        open_index(folder, "two")
    assert open_index(folder, "two", rebuild=True).update(Encoder()).encoded == 4


def test_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        open_index(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image"):
        open_index(tmp_path / "empty").update(Encoder())
    index = open_index(folder)
    with pytest.raises(ValueError, match=r"vector of .* has NaN"):
        index.update(lambda paths: torch.full((len(paths), 2), float("nan")))
    index.update(Encoder())
    with pytest.raises(ValueError, match=r"shape \(3,\); the index needs \(2,\)"):
        index.search(torch.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        index.search(torch.full((2,), float("nan")))
    with pytest.raises(ValueError, match="k is 0"):
        index.search(query(1), 0)
    (folder / ".index" / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read .* --rebuild"):
        open_index(folder)


def test_hidden_files_are_no_images(folder):
    picture(folder / ".hidden" / "a.png", 1)
    (folder / "notes.txt").write_text("x")
    assert [*_stamps(folder)] == ["sub/10.png", "sub/110.png", "sub/160.png", "sub/60.png"]


def test_command(folder, tiny_clip, tmp_path, capsys):
    arguments = ["--model", str(tiny_clip), "--device", "cpu"]
    assert main(["search", str(folder), "a red square", "-k", "2", "--html", str(tmp_path / "o.html"), *arguments]) == 0
    output = capsys.readouterr().out
    assert "4 images, 4 encoded now" in output
    assert output.count(".png\n") == 2
    assert (tmp_path / "o.html").read_text().count("<figure>") == 2
    image = str(folder / "sub" / "110.png")
    assert main(["search", str(folder), "--query-image", image, "-k", "9", *arguments]) == 0
    output = capsys.readouterr().out
    assert "4 images, 0 encoded now" in output
    # A picture is not its own answer.
    assert "110.png" not in output.partition("Left out")[0]
    assert "Left out, as it is the query: sub/110.png" in output
    assert "There is no more: 3 images, fewer than the 9 asked for" in output
    for wrong, message in [
        ([str(folder), "a", "--query-image", image], "two queries"),
        ([str(folder), " "], "is empty"),
        ([str(folder), "a", "-k", "0"], "--top-k is 0"),
        ([str(tmp_path / "nothing"), "a"], "is not a folder"),
    ]:
        assert main(["search", *wrong, *arguments]) == 2
        assert message in capsys.readouterr().err
