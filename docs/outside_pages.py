"""A hook for mkdocs: pages of the repository that lie outside of docs/ are part of the site, at the same places.

Pages in docs/ link to them as the repository wants it (`../CHANGELOG.md`); on the site docs/ is the root, so the first
`../` of such a link goes.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/study/STUDY.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the pictures beside them."""
    pictures = sorted((ROOT / "benchmarks/study/results").glob("*.png"))
    for path in [*(ROOT / page for page in PAGES), *pictures]:
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ become links within the site."""
    return markdown if page.file.src_uri in PAGES else re.sub(r"\]\(\.\./", "](", markdown)
