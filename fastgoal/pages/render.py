"""From a template and values to a page: one HTML file that needs no other and asks the network for nothing.

Templates and the style sheet lie in `templates/`. Whatever a value holds stays text, as templates escape all of them.
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
    """The page that the template of this name makes of the values."""
    return _ENVIRONMENT.get_template(f"{template}.html.jinja").render(values)


def data_url(picture: Image.Image) -> str:
    """A picture as the `src` of an `img`, as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(picture: Image.Image, side: int = 720) -> Image.Image:
    """The picture with its longer side of at most so many pixels."""
    shown = picture.copy()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shown


def placed(frames: Sequence[Frame], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Where frames and their numbers lie on a picture of this size, in percent; large frames come first.

    `below` is the place of a frame's numbers among those of regions whose corners nearly coincide.
    """
    (wide, high), places = size, []
    corners: dict[tuple[int, int], int] = {}
    for frame in sorted(frames, key=lambda frame: -frame.area):
        x1, y1, x2, y2 = frame.box
        corner = (round(12 * x1 / wide), round(16 * y1 / high))
        below = corners.get(corner, 0)
        corners[corner] = below + 1
        places.append(
            {
                "frame": frame,
                "left": 100 * x1 / wide,
                "top": 100 * y1 / high,
                "width": 100 * (x2 - x1) / wide,
                "height": 100 * (y2 - y1) / high,
                "below": below,
            }
        )
    return places


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    count=count, number=number, percent=percent, data_url=data_url, thumbnail=thumbnail, placed=placed
)
# Across a stripe it is shorter than along a side.
_ENVIRONMENT.globals["stripe"] = STRIPE / 2**0.5


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture; its suffix says the format.

    Raises:
        ValueError: PIL knows no such format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError as error:
        raise ValueError(f"--output {path}: {error}; name a .png, .jpg or .webp file.") from error
