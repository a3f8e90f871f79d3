"""What a search found as a page that links the files."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from fastgoal.pages.render import render, thumbnail
from fastgoal.processing.images import load_image
from fastgoal.search.index import Hit, ImageIndex


def results_page(
    index: ImageIndex,
    hits: Sequence[Hit],
    query: str,
    place: Path,
    picture: Image.Image | None = None,
    left_out: bool = False,
) -> str:
    """The hits as a web page that needs no other file; only its links lead to the images themselves.

    Args:
        index: What was searched.
        hits: What was found, best first.
        query: The text, or what to call the `picture` that was looked for.
        place: The folder that the page will lie in.
        picture: The image that was looked for.
        left_out: Whether it is one of the index and was left out of the hits.
    """
    shown = [(hit, link(hit.path, place), thumbnail(load_image(hit.path), 640)) for hit in hits]
    return render("search", title=query[:80], index=index, query=query, picture=picture, left_out=left_out, hits=shown)


def link(path: Path, place: Path) -> str:
    """The address of a file from a page in the folder `place`: relative where there is a way, and nothing but a path.

    `./` and the quoted colon keep a name like `javascript:x.png` from being anything else.
    """
    path, place = path.resolve(), place.resolve()
    try:
        way = os.path.relpath(path, place)
    except ValueError:  # another drive
        return path.as_uri()
    return "./" + quote(way.replace(os.sep, "/").encode("utf-8", "surrogateescape"), safe="/")
