"""The demo as a Space on the Hub: the app, the modules of this package that it needs, and small copies of images."""

import ast
import importlib.util
import io
import json
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from packaging.requirements import Requirement

from fastgoal.processing.data.image_folder import SUFFIXES
from fastgoal.processing.files import lies_inside
from fastgoal.processing.images import load_image

from .cards import HERE, is_hub_id
from .push import Pushed, hub_errors, refuse_secret_in, require_token
from .wording import count

APP = "fastgoal.demo.app"
MOST_IMAGES = 500
IMAGE_SIZE = 1024  # pixels of the longer side

CARD = """\
---
{metadata}---

# {title}

Where {models} sees each sentence of a description in an image{search}. Made with fastgoal {version}; the same page runs
on your own machine with `fastgoal demo`.
"""


def push_space(
    repo: str,
    models: Sequence[str],
    images: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload with fastgoal",
    dry_run: bool = False,
) -> Pushed:
    """Send the demo to the Hub as a Space, in one commit.

    Args:
        repo: `OWNER/NAME`, or `NAME` for one's own; made if it does not exist.
        models: One or two models on the Hub, which the Space loads.
        images: Folder of images to search; JPEGs of at most 1024 pixels, with nothing but their pixels, are sent.
        private: Whether a new Space is private; the account's default if None.
        token: Access token with the right to write; the one that is logged in by default.
        message: Of the commit.
        dry_run: Say what would be sent; send nothing, ask the Hub nothing, need no token.

    Raises:
        ValueError: There is no token, a model is not on the Hub, or the folder has no images or too many.
        OSError: The Hub could not be reached or refused.
    """
    validate_repo_id(repo)
    for name in models:
        if not is_hub_id(name):
            raise ValueError(
                f"{name} is no OWNER/NAME on the Hub, from where a Space loads its model: `fastgoal push` it."
            )
    files = space_files(repo, models, images)
    if dry_run:
        return Pushed("space", repo, sorted(files), [], sizes={name: len(data) for name, data in files.items()})
    secret = require_token(token)
    for name, data in files.items():
        refuse_secret_in(name, data, secret)
    api = HfApi(token=secret, library_name="fastgoal")
    with hub_errors(repo, secret):
        url = api.create_repo(repo, private=private, exist_ok=True, repo_type="space", space_sdk="gradio")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
        commit = api.create_commit(url.repo_id, operations, commit_message=message, repo_type="space")
    return Pushed("space", url.repo_id, sorted(files), [], str(url), commit)


def space_files(repo: str, models: Sequence[str], images: str | None = None) -> dict[str, bytes]:
    """The files of a Space by their paths in it."""
    title = repo.split("/")[-1]
    metadata = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "models": list(models),
        "tags": ["clip", "long-captions", "fastgoal"],
    }
    text = {
        "README.md": CARD.format(
            metadata=yaml.safe_dump(metadata, sort_keys=False),
            title=title,
            models=" and ".join(f"`{name}`" for name in models),
            search=", and which images a description finds" if images else "",
            version=version("fastgoal"),
        ),
        "app.py": (HERE / "space" / "app.py").read_text(encoding="utf-8"),
        "space.json": json.dumps({"models": list(models)}, indent=2) + "\n",
        "requirements.txt": "\n".join(requirements(["adapters", "demo", *(["search"] if images else [])])) + "\n",
        **{name: path.read_text(encoding="utf-8") for name, path in needed_files(APP).items()},
    }
    pictures = {} if images is None else small_copies(Path(images))
    return {**{name: content.encode() for name, content in text.items()}, **pictures}


def requirements(extras: Sequence[str]) -> list[str]:
    """What the package and some of its extras need, as lines of a file of requirements."""
    found = []
    for line in requires("fastgoal") or []:
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
            found.append(f"{need.name}{need.specifier}")
    return found


def needed_files(module: str) -> dict[str, Path]:
    """The files of this package that a module imports, directly or not, and the templates, by their place in it."""
    files: dict[str, Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        spec = _spec(name)
        if spec is None or spec.origin is None:
            continue
        is_package = spec.submodule_search_locations is not None
        place = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        if place in files:
            continue
        files[place] = Path(spec.origin)
        todo += [name.rpartition(".")[0], *_imports(files[place], name if is_package else name.rpartition(".")[0])]
    templates = files["fastgoal/pages/render.py"].parent / "templates"
    for path in sorted(templates.iterdir()):
        if path.suffix in (".jinja", ".css", ".js"):
            files[f"fastgoal/pages/templates/{path.name}"] = path
    return files


def small_copies(folder: Path) -> dict[str, bytes]:
    """JPEGs of the images of a folder, by their paths in the Space, with nothing but their pixels.

    Raises:
        ValueError: There are none, or too many, or one cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder} is no folder.")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not 0 < len(paths) <= MOST_IMAGES:
        raise ValueError(f"--images {folder} has {count(len(paths), 'image')}; a Space takes 1 to {MOST_IMAGES}.")
    copies = {}
    for number, path in enumerate(paths):
        if not lies_inside(path, folder):
            raise ValueError(f"{path} is a link that leads out of the folder; put the image itself there.")
        image = load_image(path)
        image.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
        image.info = {}  # of which a comment would be written
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        copies[f"images/{number:04d}.jpg"] = buffer.getvalue()
    return copies


def _imports(path: Path, package: str) -> list[str]:
    """The modules of this package that a file names in its imports, wherever in it they stand."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.partition(".")[0] == "fastgoal"]


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if name else None
    except ModuleNotFoundError:  # a name inside of a module
        return None
