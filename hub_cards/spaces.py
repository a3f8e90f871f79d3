"""Send the demo to the Hub as a Space: the app, a copy of this package, and small copies of the images to search."""

import importlib
import io
import json
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from packaging.requirements import Requirement

from fastgoal.processing.data.image_folder import ImageFolder
from fastgoal.processing.files import lies_inside
from fastgoal.processing.images import load_image

from .access import check_repo_name, check_space_models, require_token
from .access_keys import refuse_access_keys
from .cards import HERE
from .push import Pushed, hub_errors

# The build of a Space installs requirements.txt only, so the package goes as files: its code and what its code reads.
PACKAGES = ("fastgoal", *(f"fastgoal.{name}" for name in ("modeling_fastgoal", "processing", "hub_cards", "trainer")))
PACKAGE_FILES = (".py", ".jinja", ".css", ".js", ".md", ".yaml")
MOST_IMAGES = 500
IMAGE_SIZE = 1024  # pixels of the longer side

CARD = """\
---
{metadata}---

# {title}

See where {models} finds each sentence of a description in an image{search}. Made with fastgoal {version}; run the same
page on your own machine with `fastgoal demo`.
"""


def push_space(
    repo: str,
    models: Sequence[str],
    images: str | None = None,
    private: bool | None = None,
    message: str = "Upload with fastgoal",
    dry_run: bool = False,
) -> Pushed:
    """Send the demo to the Hub as a Space, in one commit, with the token of `hf auth login` or `HF_TOKEN`.

    Args:
        repo: `OWNER/NAME`, or `NAME` for your own account. A missing Space is created.
        models: Hub ids of one or two models, which the Space loads.
        images: Folder of images to search, with its subfolders. The Space gets JPEG copies of at most 1024 pixels,
            without metadata.
        private: Whether a new Space is private. None uses the default of the account.
        message: Commit message.
        dry_run: Return what would be sent, without a token and without any request to the Hub.

    Raises:
        ValueError: There is no token, a model is not on the Hub, the folder has no images or too many, or a file
            holds an access key.
        OSError: The Hub cannot be reached or refuses the commit.
    """
    check_repo_name(repo)
    check_space_models(models)
    files = space_files(repo, models, images)
    sizes = {name: len(data) for name, data in sorted(files.items())}
    secret = get_token() or "" if dry_run else require_token()
    for name, data in files.items():
        if not name.startswith("images/"):
            refuse_access_keys(name, data, secret)
    if dry_run:
        return Pushed("space", repo, sizes, [])
    api = HfApi(token=secret, library_name="fastgoal")
    with hub_errors(repo, secret):
        url = api.create_repo(repo, private=private, exist_ok=True, repo_type="space", space_sdk="gradio")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
        commit = api.create_commit(url.repo_id, operations, commit_message=message, repo_type="space")
    return Pushed("space", url.repo_id, sizes, [], str(url), commit)


def space_files(repo: str, models: Sequence[str], images: str | None = None) -> dict[str, bytes]:
    """Return the content of the files of a Space by their paths in it; see `push_space`."""
    title = repo.split("/")[-1]
    metadata = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "models": list(models),
        "tags": ["clip", "long-captions", "fastgoal"],
    }
    card = CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        title=title,
        models=" and ".join(f"`{name}`" for name in models),
        search=", and which images a description finds" if images else "",
        version=version("fastgoal"),
    )
    needs = requirements(["adapters", "demo", *(["search"] if images else [])])
    return {
        "README.md": card.encode(),
        "app.py": (HERE / "space" / "app.py").read_bytes(),
        "space.json": json.dumps({"models": list(models)}, indent=2).encode(),
        "requirements.txt": "\n".join(needs).encode(),
        **package_files(),
        **(small_copies(Path(images)) if images else {}),
    }


def requirements(extras: Sequence[str]) -> list[str]:
    """Return the requirements of this package and of some of its extras, as lines of requirements.txt."""
    needs = [Requirement(line) for line in requires("fastgoal") or []]
    return [
        f"{need.name}{need.specifier}"
        for need in needs
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def package_files() -> dict[str, bytes]:
    """Return the files of this package by their paths in an installation; not the weights of the quickstart."""
    files = {}
    for package in PACKAGES:  # a checkout has some of them outside of fastgoal/
        folder = Path(importlib.import_module(package).__path__[0])
        for path in sorted(folder.rglob("*")):
            if path.suffix in PACKAGE_FILES and path.is_file() and lies_inside(path, folder):
                files[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return files


def small_copies(folder: Path) -> dict[str, bytes]:
    """Return JPEG copies of the images of a folder and its subfolders, without metadata, by their paths in the Space.

    Raises:
        ValueError: There are no images, too many, or one that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"`images` must be a folder, got {folder}.")
    names = ImageFolder(folder).files
    if len(names) > MOST_IMAGES:
        raise ValueError(
            f"`images` must be a folder with at most {MOST_IMAGES} images, got {folder} with {len(names):,} of them in "
            "it and its subfolders."
        )
    copies = {}
    for index, path in enumerate(folder / name for name in names):
        if not lies_inside(path, folder):
            raise ValueError(f"{path}: the link leads out of the folder. Put the image itself into the folder.")
        image = load_image(path)  # without metadata, which PIL would partly write again
        image.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        copies[f"images/{index:04d}.jpg"] = buffer.getvalue()
    return copies
