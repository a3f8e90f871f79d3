"""Render a template with values to one HTML page that needs no other file and loads nothing from the network.

Templates and the style sheet are in `templates/`. Templates escape all values, whatever they contain.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from fastgoal.hub_cards.card_images import STRIPE, Frame
from fastgoal.hub_cards.wording import count, number, percent


def render(template: str, **values: Any) -> str:
    """Return the page that the template of this name makes of the values."""
    return _ENVIRONMENT.get_template(f"{template}.html.jinja").render(values)


def data_url(image: Image.Image) -> str:
    """Return an image, as JPEG, as the `src` of an `img` element."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: Image.Image, side: int = 720) -> Image.Image:
    """Return a copy of the image with its longer side of at most `side` pixels."""
    shown = image.copy()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shown


def frame_positions(frames: Sequence[Frame], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the positions of frames on an image of this (width, height), in percent, large frames first.

    The numbers of frames whose corners nearly coincide are shown below each other; `below` is the position among them.
    """
    (width, height), positions = size, []
    corners: dict[tuple[int, int], int] = {}
    for frame in sorted(frames, key=lambda frame: -frame.area):
        x1, y1, x2, y2 = frame.box
        corner = (round(12 * x1 / width), round(16 * y1 / height))
        below = corners.get(corner, 0)
        corners[corner] = below + 1
        positions.append(
            {
                "frame": frame,
                "left": 100 * x1 / width,
                "top": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "below": below,
            }
        )
    return positions


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    count=count,
    number=number,
    percent=percent,
    data_url=data_url,
    thumbnail=thumbnail,
    frame_positions=frame_positions,
)
# A stripe is narrower across than along a side.
_ENVIRONMENT.globals["stripe"] = STRIPE / 2**0.5


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the file's suffix.

    Raises:
        ValueError: The suffix is not one of an image format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except ValueError as error:
        raise ValueError(f"`output={path}`: {error}. Use a name that ends in .png, .jpg, or .webp.") from error
