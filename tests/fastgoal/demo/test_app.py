"""The demo in a real browser: upload an image, click the buttons, and read the results."""

import pytest
from PIL import Image

from fastgoal.demo.app import build_demo, explain_image, launch_demo, load_models, make_examples, search_folder
from tests.browser import needs_browser, open_page
from tests.squares import COLORS, image_of

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

CAPTION = "On the left it is red. On the right it is <b>blue</b>."


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for first in COLORS:
        for second in COLORS:
            image_of(first, second).save(folder / f"{first}-{second}.png")
    return folder


@pytest.fixture(scope="module")
def models(tiny_clip, images):
    loaded = load_models([str(tiny_clip)] * 2, str(images), "cpu")
    assert [(model.update.images, model.update.encoded) for model in loaded] == [(16, 16), (16, 0)]
    return loaded


@pytest.fixture(scope="module")
def address(models):
    page = build_demo(models)
    yield launch_demo(page, wait=False)
    page.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("size", [(1300, 1000), (390, 844)], ids=["desk", "phone"])
def test_in_a_browser(address, images, size):
    with open_page(*size) as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.set_input_files("input[type=file]", str(images / "red-blue.png"))
        page.get_by_label("Description", exact=True).fill(CAPTION)
        page.get_by_role("button", name="Show").click()
        frame = page.frame_locator("iframe.page")
        frame.get_by_text("On the right it is <b>blue</b>.").first.wait_for()
        assert frame.locator("h2").count() == 2  # two models
        # Pointing at a sentence highlights its region: the page's own script runs in the sandboxed frame.
        frame.locator("li[data-region]").first.click()
        frame.locator(".lit").first.wait_for()
        # Nothing is wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        page.evaluate("window.scrollTo(0, 0)")
        page.get_by_role("tab", name="Search").click()
        page.get_by_label("Description of the image to search for").fill("A red square.")
        page.get_by_role("button", name="Search").click()
        page.locator(".grid-container img, .thumbnail-item img").nth(23).wait_for()  # 12 of each model
        # A hit leads to its explanation, with the query as the description.
        page.locator(".thumbnail-item").nth(1).click()
        page.get_by_role("button", name="Explain ").click()
        page.get_by_role("tab", name="Explain", selected=True).wait_for()
        frame.get_by_text("A red square.").first.wait_for()
        assert page.get_by_label("Description", exact=True).input_value() == "A red square."
        page.evaluate("window.scrollTo(0, 0)")
        page.get_by_role("tab", name="Search").click()
        page.get_by_label("Description of the image to search for").fill(" ")
        page.get_by_role("button", name="Search").click()
        page.get_by_text("Write a description to search for first.").wait_for()
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]


def test_search_and_explain(models, images):
    hits = search_folder(models[0], "A red square.", top_k=5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.path for hit in hits} <= {*images.glob("*.png")}
    assert search_folder(models[0], image_of("red", "blue"), top_k=1)[0].path.name == "red-blue.png"
    page = explain_image(models, Image.new("RGB", (64, 32), "red"), CAPTION)
    assert page.startswith("<iframe")
    assert page.count("<") == 2  # nothing in the caption is markup
    assert 'sandbox="allow-scripts"' in page


@pytest.mark.parametrize(
    ("text", "words"), [("", "Write a"), ("  ", "Write a"), (None, "Write a"), ("a" * 20_001, "20,000")]
)
def test_texts_that_are_refused(models, text, words):
    for ask in (lambda: search_folder(models[0], text), lambda: explain_image(models, Image.new("RGB", (9, 9)), text)):
        with pytest.raises(ValueError, match=words):
            ask()


def test_the_api_has_names(address, images):
    """Another program's view: gradio's own client."""
    client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/explain", "/search"} <= endpoints.keys()
    parameters = {name: [one["parameter_name"] for one in endpoints[name]["parameters"]] for name in endpoints}
    assert parameters["/explain"] == ["image", "description"]
    assert parameters["/search"] == ["description", "image"]
    file = gradio_client.handle_file(str(images / "red-blue.png"))
    assert "iframe" in client.predict(image=file, description=CAPTION, api_name="/explain")
    by_image = client.predict(image=file, api_name="/search")
    assert [hits[0]["caption"].split() for hits in by_image] == [["1.000", "red-blue.png"]] * 2
    by_text = client.predict(description="A red square.", api_name="/search")
    assert [len(hits) for hits in by_text] == [12, 12]
    with pytest.raises(gradio_client.exceptions.AppError, match="by a description or by an image, not both"):
        client.predict(description="A red square.", image=file, api_name="/search")


def test_examples_are_drawings_with_descriptions():
    drawn = make_examples()
    assert len(drawn) == 3
    assert all(Image.open(path).size == (192, 192) and text.endswith(".") for path, text in drawn)


def test_without_images_there_is_no_search(tiny_clip):
    (alone,) = load_models([str(tiny_clip)], device="cpu")
    with pytest.raises(ValueError, match=r"no images to search.*`images`"):
        search_folder(alone, "a cup")
    assert "Search" not in str([block.get_config() for block in build_demo([alone]).blocks.values()])
