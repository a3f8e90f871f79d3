"""`fastgoal search` on a folder of images: results, the page, and what is refused."""

import pytest
from PIL import Image

pytest.importorskip("lancedb")

from fastgoal.cli import main


def test_search(tiny_clip, tmp_path, capsys):
    folder = tmp_path / "images" / "sub"
    folder.mkdir(parents=True)
    for level in (10, 60, 110, 160):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(folder / f"{level}.png")
    images, page = str(tmp_path / "images"), tmp_path / "results.html"
    arguments = ["--model", str(tiny_clip), "--device", "cpu"]

    assert main(["search", images, "a red square", "-k", "2", "--html", str(page), *arguments]) == 0
    output = capsys.readouterr().out
    assert "4 images, 4 embedded now" in output
    assert output.count(".png\n") == 2
    assert page.read_text().count("<figure>") == 2

    query = str(folder / "110.png")
    assert main(["search", images, "--query-image", query, "-k", "9", *arguments]) == 0
    output = capsys.readouterr().out
    assert "4 images, 0 embedded now" in output
    # An image is not its own result.
    results, _, notes = output.partition("Left out")
    assert "110.png" not in results
    assert "sub/110.png" in notes
    assert "3 images of the 9" in notes

    for wrong, facts in [
        ([images, "a", "--query-image", query], "two queries"),
        ([images, " "], "empty"),
        ([images, "a", "-k", "0"], "--top-k"),
        ([images, "--html", str(page)], "--html"),
        ([str(tmp_path / "nothing"), "a"], "nothing"),
    ]:
        assert main(["search", *wrong, *arguments]) == 2
        assert facts in capsys.readouterr().err
