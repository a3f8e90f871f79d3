"""Hooks for mkdocs: pages that lie outside of docs/, and the package where mkdocstrings looks for it."""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "benchmarks/study/STUDY.md")
_package = tempfile.TemporaryDirectory(prefix="fastgoal-docs-")


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: Any) -> Any:
    """Lay the package out as it is imported (setup.cfg's `package_dir`), so that it is read without being run."""
    package = Path(_package.name, "fastgoal")
    if not package.exists():
        package.mkdir()
        for part in [*(ROOT / "fastgoal").iterdir(), *(ROOT / name for name in _stages())]:
            (package / part.name).symlink_to(part)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_package.name]
    return config


def _stages() -> list[str]:
    return re.findall(r"^    fastgoal\.\w+ = (\w+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the command reference, and the pages outside with their pictures, at the same paths as in the repository."""
    sys.path.insert(0, str(ROOT / "docs"))
    from command_reference import command_page

    files.append(File.generated(config, "commands.md", content=command_page()))
    pictures = sorted((ROOT / "benchmarks/study/results").glob("*.png"))
    for path in [*(ROOT / page for page in OUTSIDE), *pictures]:
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from docs/ to the pages outside (`../CHANGELOG.md`) lose a level: docs/ is the root of the site."""
    return markdown if page.file.src_uri in OUTSIDE else re.sub(r"\]\(\.\./", "](", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark the names of options in running text: browsers would break a line after the dashes of `--model`."""
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    parts[::2] = [
        re.sub(r"(?<=[>\s])--\w[\w-]*(?=[^<>]*</code>)", r'<span class="option">\g<0></span>', p) for p in parts[::2]
    ]
    return "".join(parts)


def on_post_template(output: str, template_name: str, **_: Any) -> str:
    """Leave out 404.html: it finds its style sheets only at the root of a server."""
    return "" if template_name == "404.html" else output
