"""Send a model or a pairs dataset to the Hub: only the files that this package writes, in one commit, without secrets.

A commit is complete or absent, so a push that fails halfway leaves the repository unchanged. A repeated push uploads
only the files that have not arrived.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from fastgoal.processing.checkpoints.adapters import is_adapter
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite

from .access import TOKEN_HELP, check_repo_name, require_token
from .access_keys import refuse_access_keys
from .cards import CARD, EXAMPLES, HERE, rename_card
from .data_card import DataFacts, open_finished, render_data_card
from .image_metadata import clean_shards, count_unclean
from .model_card import HANDLER, ModelFacts, render_model_card
from .repository import choose_files, find_repo_type, is_export, read_tensors, refuse_incomplete
from .wording import count, size_in_words

TEXT_FILES = (".md", ".json", ".py", ".txt", "")
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
MOST_NAMES = 8
REPEAT = "The repository is unchanged. Repeat the push; files that have arrived are not uploaded again."


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        repo_type: `model`, `dataset` or `space`.
        repo: Full id on the Hub; after a dry run, the id that was asked for.
        files: Sizes in bytes of the files in the commit, by their paths in the repository.
        left_out: Files of the folder that are not sent.
        url: Address of the repository; None after a dry run.
        commit: The commit; None after a dry run.
        cleaned: Number of images of a dataset that are sent without their metadata.
    """

    repo_type: str
    repo: str
    files: dict[str, int]
    left_out: list[str]
    url: str | None = None
    commit: CommitInfo | None = None
    cleaned: int = 0

    @property
    def images(self) -> list[str]:
        """Paths of the image files that anybody who sees the repository sees."""
        return [name for name in self.files if name.endswith(IMAGE_FILES)]


def push(
    folder: str | os.PathLike[str],
    repo: str,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload with fastgoal",
    revision: str | None = None,
    dry_run: bool = False,
    recode: bool = False,
    files: Mapping[str, bytes] | None = None,
) -> Pushed:
    """Send a saved model or a pairs dataset to the Hub. The folder stays unchanged.

    A model goes with its processor, card and code. A missing card is made, and the name in the card that is sent
    becomes the name of the repository. Images of a dataset are sent without their metadata, see `image_metadata`.

    ```python
    from fastgoal import push

    planned = push("outputs/", "OWNER/NAME", dry_run=True)
    print(planned.files, planned.left_out)
    print(push("outputs/", "OWNER/NAME", private=True).url)
    ```

    Args:
        folder: Folder of a saved model, or the output folder of `fastgoal pairs`.
        repo: `OWNER/NAME`, or `NAME` for your own account. A missing repository is created.
        private: Whether a new repository is private. None uses the default of the account.
        token: Access token with write permission. None uses the token of `hf auth login` or `HF_TOKEN`.
        message: Commit message.
        revision: Branch to commit to. None uses the main branch.
        dry_run: Return what would be sent, without a token and without any request to the Hub.
        recode: Send a PNG copy of each image that metadata cannot be removed from, instead of refusing it.
        files: Content of files to send in place of those of the folder, by path, such as those of `prepare_data_card`.

    Raises:
        ValueError: There is no token, the folder is not a complete model or dataset, a file to send is a link that
            leads out of the folder or holds an access key, a weight is NaN or infinite, or the metadata of an image
            cannot be removed.
        OSError: The Hub cannot be reached or refuses the commit. The repository is unchanged; the push can be repeated.
    """
    folder = Path(folder)
    check_repo_name(repo)
    repo_type = find_repo_type(folder)
    secret = token or get_token() or "" if dry_run else require_token(token)
    contents, left_out = _gather(folder, repo_type, repo, secret, files or {})
    shards = [name for name in contents if name.endswith(".parquet")]
    if dry_run:
        sizes = {name: _size(file) for name, file in contents.items()}
        return Pushed(repo_type, repo, sizes, left_out, cleaned=count_unclean(folder, shards, recode))
    api = HfApi(token=secret, library_name="fastgoal")
    # The images are cleaned first, since one that cannot be cleaned must not leave an empty repository.
    with clean_shards(folder, shards, recode) as (copies, cleaned), hub_errors(repo, secret):
        url = api.create_repo(repo, private=private, exist_ok=True, repo_type=repo_type)
        contents |= {**copies, CARD: rename_card(_read(contents[CARD]).decode(), url.repo_id).encode()}
        sizes = {name: _size(file) for name, file in contents.items()}
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in contents.items()]
        commit = api.create_commit(
            url.repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision
        )
    return Pushed(repo_type, url.repo_id, sizes, left_out, str(url), commit, cleaned)


@contextmanager
def hub_errors(repo: str, secret: str) -> Iterator[None]:
    """Raise errors of the Hub as an `OSError` that names the repository and the way out, but not the token."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            reason = f"the Hub refused the access token ({status}). {TOKEN_HELP}"
        else:
            reason = f"the Hub answered with an error: {error}. {REPEAT}"
    except (HTTPError, RuntimeError, ConnectionError, TimeoutError) as error:
        reason = f"{error} {error.__cause__ or ''}".strip() + f" {REPEAT}"
    else:
        return
    raise OSError(f"could not push to '{repo}': {reason}".replace(secret, "***"))


def _gather(
    folder: Path, repo_type: str, repo: str, token: str, made: Mapping[str, bytes]
) -> tuple[dict[str, Path | bytes], list[str]]:
    """Return the files to send, as paths or new content by their names, and the files left out; check them all."""
    names, left_out = choose_files(folder, repo_type)
    files: dict[str, Path | bytes] = {name: folder / name for name in names} | dict(made)
    exported = repo_type == "model" and is_export(folder)
    if CARD not in files and exported:
        raise ValueError(f"{folder}: an exported model has no card and is not sent. Write {CARD} in this folder first.")
    if CARD not in files and repo_type == "model":
        files[CARD] = render_model_card(ModelFacts.of_folder(folder)).encode()
    elif CARD not in files:
        files[CARD] = render_data_card(DataFacts.of_folder(open_finished(folder))).encode()
    if repo_type == "model" and not is_adapter(folder) and not exported:
        files.setdefault(HANDLER, (HERE / HANDLER).read_bytes())
    refuse_incomplete(folder, repo_type, files)
    card = _read(files[CARD]).decode("utf-8", errors="replace")
    files[CARD] = rename_card(card, repo).encode()
    # Images of an earlier training that this card does not show.
    unused = [name for name in files if name.startswith(f"{EXAMPLES}/") and name not in card]
    for name in unused:
        del files[name]
    for name, file in files.items():
        if Path(name).suffix in TEXT_FILES:
            refuse_access_keys(str(folder / name), _read(file), token)
        elif name.endswith(".safetensors"):
            refuse_not_finite(read_tensors(folder / name), f"'{folder / name}'")
    return dict(sorted(files.items())), sorted([*left_out, *unused])


def _read(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _size(file: Path | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def describe_push(pushed: Pushed) -> str:
    """Describe in lines of text what was sent, or would be, and what was not."""
    many, size = count(len(pushed.files), "file"), size_in_words(sum(pushed.files.values()))
    if pushed.url is None:
        lines = [f"would be sent to {pushed.repo} as a {pushed.repo_type}, {many}, {size}:"]
        lines += [f"  {name}  {size_in_words(size)}" for name, size in _listing(pushed.files).items()]
    else:
        lines = [f"{pushed.url}: {many}, {size}"]
    if images := pushed.images:
        more = f" and {len(images) - MOST_NAMES} more" if len(images) > MOST_NAMES else ""
        verb = "would publish" if pushed.url is None else "published"
        lines.append(f"{verb} {count(len(images), 'image file')}: {', '.join(images[:MOST_NAMES])}{more}")
    if pushed.cleaned:
        lines.append(f"metadata removed from {count(pushed.cleaned, 'image')}; your own files keep theirs")
    if pushed.left_out:
        top = dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in pushed.left_out)
        lines.append(f"not sent: {', '.join(top)}")
    return "\n".join(lines)


def _listing(files: Mapping[str, int]) -> dict[str, int]:
    """Return sizes by path, with one entry for each folder inside a copied package."""
    listed: dict[str, int] = {}
    for name, size in files.items():
        if name.startswith("fastgoal/"):
            name = name.rpartition("/")[0] + "/"
        listed[name] = listed.get(name, 0) + size
    return listed
