"""The demo: where a model sees each sentence of a caption, and which images of a folder a text finds.

By gradio (https://www.gradio.app), which is told to report nothing and to serve no file but what it draws.
"""

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.wording import count, number
from fastgoal.pages.explain import draw_explanations, explain, explanation_page
from fastgoal.processing.images import load_image
from fastgoal.search.index import FOLDER, ImageIndex, model_fingerprint

MOST_CHARACTERS = 20_000
LARGEST_FILE = "32mb"
ANSWERS = 12
THUMBNAIL = 400  # pixels
TITLE = "Long captions and images"
EXPLAIN = (
    "Give an image and a description of several sentences. Each sentence gets one color: of its text, of the frame of "
    "its best region, and of its heat map over the image."
)


@dataclass
class ShownModel:
    """A model that is shown.

    Attributes:
        name: What to call it.
        model: The CLIP.
        processor: Its processor.
        index: Of the folder that is searched; None without one.
    """

    name: str
    model: Any
    processor: Any
    index: ImageIndex | None = None


def require_gradio() -> Any:
    """The package gradio; an `ImportError` that says how to get it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before it is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the demo needs the package gradio; install it with: pip install 'fastgoal[demo]'") from error
    return gradio


def load_models(
    names: Sequence[str], images: str | None = None, device: str | None = None, say: Callable[[str], None] = print
) -> list[ShownModel]:
    """The models by their names, each with an index of the images, which is kept in a hidden folder beside them.

    Raises:
        ValueError: A model or the folder cannot be loaded; says which.
        ImportError: There are images and faiss is missing.
    """
    from fastgoal.processing.checkpoints.load import load_model

    made = []
    for argument, name in zip(("model", "against"), names, strict=False):
        model, processor = load_model(name, device, argument=argument)
        shown_model = ShownModel(public_name(name), model, processor)
        if images is not None:
            mark = model_fingerprint(model, processor)
            place = Path(images) / f"{FOLDER}-{mark[:12]}"
            shown_model.index = ImageIndex(images, model, processor, index=place, model_name=name)
            update = shown_model.index.update()
            say(f"{shown_model.name}: {count(update.images, 'image')} to search, {update.encoded:,} encoded now")
        made.append(shown_model)
    return made


def explanation(models: Sequence[ShownModel], image: Image.Image, caption: str) -> str:
    """A page of where each model sees each sentence, in a frame of its own.

    Raises:
        ValueError: The caption has no sentence, or is too long.
    """
    caption = _text(caption, "a description of the image")
    made = [explain(each.model, each.processor, image, caption, each.name) for each in models]
    page = explanation_page(image, draw_explanations(image, made), caption)
    # Its styles stay inside, and nothing of it is taken for the demo's own.
    content = html.escape(page, quote=True)
    return f'<iframe class="page" title="explanation" sandbox="allow-scripts" srcdoc="{content}"></iframe>'


def found(shown_model: ShownModel, text: str, most: int = ANSWERS) -> list[tuple[Image.Image, str]]:
    """Small copies of the images nearest to a text, each with its cosine and name.

    Raises:
        ValueError: The text is empty or too long, or there is nothing to search.
    """
    text = _text(text, "a text to search for")
    if shown_model.index is None:
        raise ValueError("There is no folder to search.")
    answers = []
    for hit in shown_model.index.search(text, most):
        image = load_image(hit.path)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        answers.append((image, f"{number(hit.score, 3)}  {hit.path.name}"))
    return answers


def build_demo(models: Sequence[ShownModel]) -> Any:
    """The page, a `gradio.Blocks`; `launch_demo` starts it."""
    gradio = require_gradio()

    def shown(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            try:
                return work(*values)
            except (ValueError, OSError) as error:
                raise gradio.Error(str(error), print_exception=False) from error

        return run

    def explain_file(path: str | None, caption: str) -> str:
        if path is None:
            raise ValueError("Choose an image first.")
        return explanation(models, load_image(path, name="The image"), caption)

    def search_all(text: str) -> Any:
        answers = [found(each, text) for each in models]
        return answers if len(answers) > 1 else answers[0]  # as gradio takes them

    names = " and ".join(each.name for each in models)
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {TITLE}\n{html.escape(names)}")
        with gradio.Tab("Explain"):
            gradio.Markdown(EXPLAIN)
            with gradio.Row():
                image = gradio.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=320)
                caption = gradio.Textbox(label="Description", lines=8, max_length=MOST_CHARACTERS)
            show = gradio.Button("Show", variant="primary")
            answer = gradio.HTML()
            show.click(shown(explain_file), [image, caption], answer, api_name="explain", concurrency_limit=1)
        if models[0].index is not None:
            with gradio.Tab("Search"):
                query = gradio.Textbox(
                    label="Description of the image you look for", lines=4, max_length=MOST_CHARACTERS
                )
                search = gradio.Button("Search", variant="primary")
                with gradio.Row():
                    galleries = [gradio.Gallery(label=each.name, columns=3, object_fit="contain") for each in models]
                search.click(shown(search_all), query, galleries, api_name="search", concurrency_limit=1)
    return page


def launch_demo(page: Any, host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> str:
    """Start the page and return its address; with `wait` only when it is stopped."""
    gradio = require_gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=not wait,
        max_file_size=LARGEST_FILE,
        theme=gradio.themes.Default(**fonts),
        css=".page { width: 100%; height: 85vh; border: 0; background: white; }",
        footer_links=[],
    )
    return str(address)


def _text(text: str | None, what: str) -> str:
    text = (text or "").strip()
    if not text:
        raise ValueError(f"Write {what} first.")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"The text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read.")
    return text
