import html
import re
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from PIL import Image

from fastgoal.pages.search import link, results_page


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("a b.png", "./images/a%20b.png"),
        ("javascript:alert(1).png", "./images/javascript%3Aalert%281%29.png"),
        ("a\"b'<script>#?%20.png", "./images/a%22b%27%3Cscript%3E%23%3F%2520.png"),
    ],
)
def test_links_are_relative_and_quoted(tmp_path, name, address):
    assert link(tmp_path / "images" / name, tmp_path) == address
    assert unquote(address) == f"./images/{name}"
    assert link(tmp_path / name, tmp_path / "pages").startswith("./../")
    assert ":" not in link(tmp_path / name, tmp_path)


def test_page_names_the_model_and_links_the_files(tmp_path):
    path = tmp_path / 'a"><script>alert(1)<\\script>.png'
    Image.new("RGB", (30, 20)).save(path)
    result = SimpleNamespace(
        hits=[SimpleNamespace(path=path, score=-0.0001)],
        update=SimpleNamespace(images=1),
        index=SimpleNamespace(model_name="owner/<model>", images=tmp_path),
        left_out=[],
    )
    page = results_page(result, "</title><script>x", None, tmp_path)
    assert "under owner/&lt;model&gt;" in page
    assert "1 image in" in page
    assert page.count("<script>") == 1  # our own
    assert "<b>1: 0.000</b>" in page
    links = re.findall(r'href="([^"]*)"', page)
    assert len(links) == 2
    assert (tmp_path / unquote(html.unescape(links[0]))).resolve() == path.resolve()
