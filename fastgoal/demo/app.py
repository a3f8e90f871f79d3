"""The demo: see which regions a model connects with each sentence of a caption, and search a folder of images.

It uses gradio (https://www.gradio.app), which here reports nothing and serves no files but the images it shows.
"""

import html
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.wording import number
from fastgoal.pages.explain import explain, explanation_page
from fastgoal.processing.checkpoints.fingerprints import embedder_fingerprint
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.images import load_image
from fastgoal.quickstart.scenes import draw_scenes
from fastgoal.search.index import FOLDER, Hit, ImageIndex, Update, require_search

MAX_CHARACTERS = 20_000
MAX_FILE_SIZE = "32mb"
RESULTS = 12
THUMBNAIL = 400  # pixels
LARGEST_SIDE = 1600  # pixels of an image that is copied from the search to the explanation
EXAMPLES = 3
TITLE = "Long captions and images"
INTRODUCTION = (
    "Upload an image and describe it in several sentences, or click an example. Each sentence gets one color, in the "
    "text, at the frame of its best region, and in its heat map over the image."
)
DESCRIPTION_HINT = "A brown dog lies on a red sofa. A lamp stands to its left. Behind it, a window shows the evening."
SEARCH_HINT = "A brown dog lies on a red sofa. A lamp stands to its left."


@dataclass
class DemoModel:
    """A model of the demo.

    Attributes:
        name: Name to show.
        model: The model.
        processor: Its processor.
        index: Index of the folder to search, if there is one.
        update: Changes of the index when the demo was started.
    """

    name: str
    model: Any
    processor: Any
    index: ImageIndex | None = None
    update: Update | None = None


def require_gradio() -> Any:
    """Return the package gradio, or raise an `ImportError` that says how to install it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The demo needs gradio. Install it with: pip install 'fastgoal[demo]'") from error
    return gradio


def load_models(names: Sequence[str], images: str | None = None, device: str | None = None) -> list[DemoModel]:
    """Load one or two models, each with an index of a folder of images in a hidden folder inside it.

    Raises:
        ValueError: A model or the folder cannot be used.
        ImportError: There is a folder, and LanceDB is not installed.
    """
    if images is not None:
        require_search(images)
    models = []
    for argument, name in zip(("model", "against"), names, strict=False):
        model = DemoModel(public_name(name), *load_model(name, device, argument=argument))
        if images is not None:
            folder = Path(images) / f"{FOLDER}-{embedder_fingerprint(model.model, model.processor)[:12]}"
            model.index = ImageIndex(images, model.model, model.processor, index=folder, model_name=name)
            model.update = model.index.update()
        models.append(model)
    return models


def explain_image(models: Sequence[DemoModel], image: Image.Image, caption: str) -> str:
    """Return the page of `explain` for all models, as an HTML frame.

    Raises:
        ValueError: The caption has no sentence, or is too long.
    """
    caption = _checked(caption, "a description of the image")
    explanations = [explain(one.model, one.processor, image, caption, model_name=one.name) for one in models]
    # The frame keeps the page's styles inside, and nothing in the page can act on the demo.
    content = html.escape(explanation_page(explanations), quote=True)
    return f'<iframe class="page" title="explanation" sandbox="allow-scripts" srcdoc="{content}"></iframe>'


def search_folder(model: DemoModel, query: str | Image.Image, top_k: int = RESULTS) -> list[Hit]:
    """Return the images of the folder that are most similar to a description or an image, best first.

    Raises:
        ValueError: A description is empty or too long, or the demo has no image folder.
    """
    if not isinstance(query, Image.Image):
        query = _checked(query, "a description to search for")
    if model.index is None:
        raise ValueError("This demo has no images to search. Start it with `images`.")
    return model.index.search(query, top_k)


def make_examples() -> list[tuple[Path, str]]:
    """Draw some images in a temporary folder, with descriptions."""
    folder = Path(tempfile.mkdtemp(prefix="fastgoal-demo-"))
    examples = []
    for index, scene in enumerate(draw_scenes(EXAMPLES, split="test", rich=False), start=1):
        path = folder / f"drawing-{index}.png"
        scene.image.save(path)
        examples.append((path, scene.caption))
    return examples


def build_demo(models: Sequence[DemoModel]) -> Any:
    """Return the demo as `gradio.Blocks`; `launch_demo` starts it."""
    gradio = require_gradio()

    def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # gradio names the parameters of its API by the signature
        def run(*values: Any) -> Any:
            try:
                return function(*values)
            except (ValueError, OSError) as error:
                raise gradio.Error(str(error), print_exception=False) from error

        return run

    def explain_upload(image: str | None, description: str) -> str:
        if image is None:
            raise ValueError("Choose an image first.")
        return explain_image(models, load_image(image, name="The image"), description)

    def search_all(description: str = "", image: str | None = None) -> list[Any]:
        if image is not None and (description or "").strip():
            raise ValueError("Search by a description or by an image, not both. Remove one of them.")
        query = description if image is None else load_image(image, name="The image")
        found = [search_folder(model, query) for model in models]
        thumbnails = [[(_small(hit.path, THUMBNAIL), _caption(hit)) for hit in hits] for hits in found]
        return [*thumbnails, [[str(hit.path) for hit in hits] for hits in found]]

    def forget_hit() -> tuple[None, Any]:
        return None, gradio.Button("Click an image to explain it", interactive=False)

    def select_hit(paths: list[list[str]], position: int, event: gradio.SelectData) -> tuple[str, Any]:  # type: ignore[name-defined]
        path = paths[position][event.index]
        return path, gradio.Button(f"Explain {Path(path).name}", interactive=True)

    def open_hit(path: str, description: str) -> tuple[Any, Image.Image, str, str]:
        return gradio.Tabs(selected="explain"), _small(Path(path), LARGEST_SIDE), description, ""

    def explain_hit(path: str, description: str) -> str:
        # After its tab is shown: Chromium may never draw a frame that is filled in a hidden tab.
        described = (description or "").strip()
        return explain_image(models, _small(Path(path), LARGEST_SIDE), description) if described else ""

    names = " and ".join(model.name for model in models)
    index = models[0].index
    examples = [[str(path), text] for path, text in make_examples()]
    hidden = {"api_visibility": "private"}
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {TITLE}\n{html.escape(names)}")
        with gradio.Tabs() as tabs:
            with gradio.Tab("Explain", id="explain"):
                gradio.Markdown(INTRODUCTION)
                with gradio.Row():
                    image = gradio.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=320)
                    caption = gradio.Textbox(
                        label="Description", lines=8, max_length=MAX_CHARACTERS, placeholder=DESCRIPTION_HINT
                    )
                show = gradio.Button("Show", variant="primary")
                frame = gradio.HTML(label="Explanation", show_label=False)
                gradio.Examples(examples, [image, caption], cache_examples=False)
                show.click(
                    show_errors(explain_upload), [image, caption], frame, api_name="explain", concurrency_limit=1
                )
            if index is not None:
                with gradio.Tab("Search", id="search"):
                    with gradio.Row():
                        query = gradio.Textbox(
                            value="",  # or the API would require it
                            label="Description of the image to search for",
                            lines=6,
                            max_length=MAX_CHARACTERS,
                            placeholder=SEARCH_HINT,
                        )
                        query_image = gradio.Image(
                            type="filepath", label="Or an image", sources=["upload", "clipboard"], height=200
                        )
                    search = gradio.Button("Search", variant="primary")
                    with gradio.Row():
                        galleries = [
                            gradio.Gallery(label=model.name, columns=3, object_fit="contain") for model in models
                        ]
                    to_explain = gradio.Button("Click an image to explain it", interactive=False)
                    gradio.Examples([[text] for _, text in examples], [query], cache_examples=False)
                    paths, selected = gradio.State([]), gradio.State(None)
                    search.click(
                        show_errors(search_all),
                        [query, query_image],
                        [*galleries, paths],
                        api_name="search",
                        concurrency_limit=1,
                    ).then(forget_hit, None, [selected, to_explain], **hidden)
                    for position, gallery in enumerate(galleries):
                        gallery.select(select_hit, [paths, gradio.State(position)], [selected, to_explain], **hidden)
                    to_explain.click(
                        show_errors(open_hit), [selected, query], [tabs, image, caption, frame], **hidden
                    ).success(show_errors(explain_hit), [selected, query], frame, concurrency_limit=1, **hidden)
    return page


def launch_demo(page: Any, host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> str:
    """Start the demo and return its address; with `wait`, return when it is stopped."""
    gradio = require_gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=not wait,
        max_file_size=MAX_FILE_SIZE,
        theme=gradio.themes.Default(**fonts),
        css=".page { width: 100%; height: 85vh; border: 0; background: white; }",
        footer_links=[],
    )
    return str(address)


def _small(path: Path, side: int) -> Image.Image:
    """Return an image with a longer side of at most this number of pixels."""
    image = load_image(path)
    image.thumbnail((side, side))
    return image


def _caption(hit: Hit) -> str:
    return f"{number(hit.score, 3)}  {hit.path.name}"


def _checked(text: str | None, description: str) -> str:
    text = (text or "").strip()
    if not text:
        raise ValueError(f"Write {description} first.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters, and the limit is {MAX_CHARACTERS:,}.")
    return text
