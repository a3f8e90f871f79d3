"""The page of search results, which links to the image files."""

import os
from pathlib import Path
from urllib.parse import quote

from fastgoal.pages.render import render, thumbnail
from fastgoal.processing.images import load_image
from fastgoal.search.search import SearchResult


def results_page(result: SearchResult, query: str | None, query_image: Path | None, folder: Path) -> str:
    """Return the results as a web page that needs no other file. Only its links lead to the image files.

    Args:
        result: Result of `search_images`.
        query: The description, if there was one.
        query_image: The query image, if there was one.
        folder: Folder in which the page will be saved.
    """
    image = None if query_image is None else load_image(query_image)
    title = query or str(query_image)
    hits = [(hit, link(hit.path, folder), thumbnail(load_image(hit.path), 640)) for hit in result.hits]
    return render("search", title=title[:80], query=title, image=image, result=result, hits=hits)


def link(path: Path, folder: Path) -> str:
    """Return the address of a file for a page in `folder`: relative if possible, and never anything but a path.

    `./` and the quoted colon prevent a name like `javascript:x.png` from becoming a scheme.
    """
    path, folder = path.resolve(), folder.resolve()
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive
        return path.as_uri()
    return "./" + quote(relative.replace(os.sep, "/").encode("utf-8", "surrogateescape"), safe="/")
