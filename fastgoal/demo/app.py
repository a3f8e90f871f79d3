"""The demo: see which regions a model connects with each sentence of a caption, and search a folder by a text.

It uses gradio (https://www.gradio.app), which here reports nothing and serves no files but the images it shows.
"""

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.wording import number
from fastgoal.pages.explain import explain, explanation_page
from fastgoal.processing.checkpoints.fingerprints import embedder_fingerprint
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.images import load_image
from fastgoal.search.index import FOLDER, ImageIndex, Update, require_search

MAX_CHARACTERS = 20_000
MAX_FILE_SIZE = "32mb"
RESULTS = 12
THUMBNAIL = 400  # pixels
TITLE = "Long captions and images"
INTRODUCTION = (
    "Upload an image and describe it in several sentences. Each sentence gets one color, in the text, at the frame of "
    "its best region, and in its heat map over the image."
)


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


def search_folder(model: DemoModel, text: str, top_k: int = RESULTS) -> list[tuple[Image.Image, str]]:
    """Return thumbnails of the images that are most similar to a text, with their scores and file names.

    Raises:
        ValueError: The text is empty or too long, or there is no folder to search.
    """
    text = _checked(text, "a text to search for")
    if model.index is None:
        raise ValueError("There is no folder to search.")
    results = []
    for hit in model.index.search(text, top_k):
        image = load_image(hit.path)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        results.append((image, f"{number(hit.score, 3)}  {hit.path.name}"))
    return results


def build_demo(models: Sequence[DemoModel]) -> Any:
    """Return the demo as `gradio.Blocks`; `launch_demo` starts it."""
    gradio = require_gradio()

    def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            try:
                return function(*values)
            except (ValueError, OSError) as error:
                raise gradio.Error(str(error), print_exception=False) from error

        return run

    def explain_file(path: str | None, caption: str) -> str:
        if path is None:
            raise ValueError("Choose an image first.")
        return explain_image(models, load_image(path, name="The image"), caption)

    def search_all(text: str) -> Any:
        results = [search_folder(model, text) for model in models]
        return results if len(results) > 1 else results[0]  # gradio takes one output without a list

    names = " and ".join(model.name for model in models)
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {TITLE}\n{html.escape(names)}")
        with gradio.Tab("Explain"):
            gradio.Markdown(INTRODUCTION)
            with gradio.Row():
                image = gradio.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=320)
                caption = gradio.Textbox(label="Description", lines=8, max_length=MAX_CHARACTERS)
            show = gradio.Button("Show", variant="primary")
            frame = gradio.HTML()
            show.click(show_errors(explain_file), [image, caption], frame, api_name="explain", concurrency_limit=1)
        if models[0].index is not None:
            with gradio.Tab("Search"):
                query = gradio.Textbox(
                    label="Description of the image to search for", lines=4, max_length=MAX_CHARACTERS
                )
                search = gradio.Button("Search", variant="primary")
                with gradio.Row():
                    galleries = [gradio.Gallery(label=model.name, columns=3, object_fit="contain") for model in models]
                search.click(show_errors(search_all), query, galleries, api_name="search", concurrency_limit=1)
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


def _checked(text: str | None, description: str) -> str:
    text = (text or "").strip()
    if not text:
        raise ValueError(f"Write {description} first.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters, and the limit is {MAX_CHARACTERS:,}.")
    return text
