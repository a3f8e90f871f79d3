"""Send a model or a pairs dataset to the Hub: only the files that this package writes, in one commit, without secrets.

A commit is complete or absent, so a push that fails halfway leaves the repository unchanged. A repeated push uploads
only the files that have not arrived.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from fastgoal import modeling_fastgoal
from fastgoal.processing.checkpoints.adapters import BASE_FILE, is_adapter, read_base
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.processing.files import WORK_FOLDER, lies_inside

from .cards import CARD, rename_card
from .data_card import DataFacts, open_finished, write_data_card
from .image_metadata import clean_shards, count_unclean
from .model_card import ModelFacts, copy_handler, write_model_card
from .wording import count, size_in_words


def _any_of(*names: str, patterns: Sequence[str] = ()) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, names), *patterns]))


# Complete names, so that a file that somebody put next to the model is not sent because of its suffix.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model"),
)
CODE_FILES = (
    *sorted(path.name for path in Path(modeling_fastgoal.__path__[0]).glob("*_fastgoal.py")),
    *("processing_fastgoal.py", "geometry.py", "images.py", "texts.py", "tokens.py"),
)
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MODEL_FILES = _any_of(
    *(CARD, *LICENSE_FILES, "config.json", "generation_config.json", "model.safetensors.index.json"),
    *(ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, BASE_FILE),
    *("processor_config.json", "preprocessor_config.json", *TOKENIZER_FILES, "handler.py", *CODE_FILES),
    *("examples/pairs.jpg", "onnx/vision_model.onnx", "onnx/text_model.onnx"),
    *("onnx/vision_model.onnx.data", "onnx/text_model.onnx.data"),
    patterns=(r"model(-\d{5}-of-\d{5})?\.safetensors", r"examples/\d+\.jpg"),
)
DATA_FILES = _any_of(CARD, *LICENSE_FILES, "examples/pairs.jpg", patterns=(r"data/train-\d{5}-of-\d{5}\.parquet",))
TEXT_FILES = (".md", ".json", ".py", ".txt", "")
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
TOKEN_HELP = (
    "Create one with write permission at https://huggingface.co/settings/tokens, then run `hf auth login` or set "
    "HF_TOKEN."
)
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


def push(
    folder: str | os.PathLike[str],
    repo: str,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload with fastgoal",
    revision: str | None = None,
    dry_run: bool = False,
    recode: bool = False,
) -> Pushed:
    """Send a saved model or a pairs dataset to the Hub.

    A model goes with its processor, card and code. A missing card is written first, and the name in the card becomes
    the name of the repository. Images of a dataset are sent without their metadata, see `image_metadata`.

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
        dry_run: Prepare the folder and return what would be sent, without a token and without any request to the Hub.
        recode: Send a PNG copy of each image that metadata cannot be removed from, instead of refusing it.

    Raises:
        ValueError: There is no token, the folder is not a model or a dataset, a file holds an access token, a weight
            is NaN or infinite, or the metadata of an image cannot be removed.
        OSError: The Hub cannot be reached or refuses the commit. The repository is unchanged; the push can be repeated.
    """
    folder = Path(folder)
    validate_repo_id(repo)
    repo_type = find_repo_type(folder)
    secret = token or get_token() or "" if dry_run else require_token(token)
    names, left_out = _prepare(folder, repo_type, repo, secret)
    shards = [name for name in names if name.endswith(".parquet")]
    if dry_run:
        sizes = {name: (folder / name).stat().st_size for name in names}
        return Pushed(repo_type, repo, sizes, left_out, cleaned=count_unclean(folder, shards, recode))
    api = HfApi(token=secret, library_name="fastgoal")
    with hub_errors(repo, secret):
        url = api.create_repo(repo, private=private, exist_ok=True, repo_type=repo_type)
        _name_card(folder / CARD, url.repo_id)
        with clean_shards(folder, shards, recode) as (copies, cleaned):
            paths = {name: copies.get(name, folder / name) for name in names}
            sizes = {name: path.stat().st_size for name, path in paths.items()}
            operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()]
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


def require_token(token: str | None = None) -> str:
    """Return `token`, or the one that is logged in; raise a `ValueError` if there is none."""
    if found := token or get_token():
        return found
    raise ValueError(f"There is no access token for the Hub. {TOKEN_HELP}")


def find_repo_type(folder: Path) -> str:
    """Return whether a folder holds a `model` or a `dataset`.

    Raises:
        ValueError: It holds neither, has no weights in safetensors, or is an adapter of a base on this machine.
    """
    if (folder / MANIFEST).is_file():
        return "dataset"
    if is_adapter(folder):
        base = read_base(folder).base
        if os.path.isabs(base):
            raise ValueError(
                f"{folder}: the base model of this adapter is a folder on this machine ({base}), which others do not "
                "have. Run `fastgoal merge`, and push the merged model."
            )
    elif not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: the folder has neither a saved model (config.json) nor a dataset of `fastgoal pairs` "
            f"({MANIFEST})."
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: the folder has no weights in safetensors, and other formats are not sent.")
    return "model"


def choose_files(folder: Path, repo_type: str) -> tuple[list[str], list[str]]:
    """Return the files to send and the files left out, as paths inside the folder with forward slashes.

    Only files with the names that this package writes are sent. Links that lead out of the folder are left out.
    """
    wanted = MODEL_FILES if repo_type == "model" else DATA_FILES
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and WORK_FOLDER not in path.parts]
    names = [path.relative_to(folder).as_posix() for path in paths]
    sent = [name for name in names if wanted.fullmatch(name) and lies_inside(folder / name, folder)]
    return sent, [name for name in names if name not in sent]


def refuse_secret(name: str, data: bytes, token: str) -> None:
    """Raise a `ValueError` that names the file, not the token, if its bytes hold `token` or any other access token."""
    text = data.decode("utf-8", errors="replace")
    if (token and token in text) or SECRET.search(text):
        raise ValueError(f"{name}: the file holds an access token and is not sent. Remove the token first.")


def _name_card(card: Path, repo: str) -> None:
    text = card.read_text(encoding="utf-8")
    if (renamed := rename_card(text, repo)) != text:
        card.write_text(renamed, encoding="utf-8")


def _prepare(folder: Path, repo_type: str, repo: str, token: str) -> tuple[list[str], list[str]]:
    """Complete the card and the handler, check the files, and return `choose_files`."""
    card = folder / CARD
    if not card.exists() and repo_type == "model":
        write_model_card(folder, ModelFacts.of_folder(folder))
    elif not card.exists():
        write_data_card(folder, DataFacts.of_folder(open_finished(folder)))
    if repo_type == "model" and not (folder / "handler.py").exists() and not is_adapter(folder):
        copy_handler(folder)
    _name_card(card, repo)
    names, left_out = choose_files(folder, repo_type)
    for path in (folder / name for name in names):
        if path.suffix in TEXT_FILES:
            refuse_secret(str(path), path.read_bytes(), token)
        elif path.suffix == ".safetensors":
            refuse_not_finite(_tensors(path), f"'{path}'")
    return names, left_out


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: the file is truncated or damaged ({error}) and is not sent.") from None


def describe_push(pushed: Pushed) -> str:
    """Describe in lines of text what was sent, or would be, and what was not."""
    many, size = count(len(pushed.files), "file"), size_in_words(sum(pushed.files.values()))
    if pushed.url is None:
        lines = [f"would be sent to {pushed.repo} as a {pushed.repo_type}, {many}, {size}:"]
        lines += [f"  {name}  {size_in_words(size)}" for name, size in _listing(pushed.files).items()]
    else:
        lines = [f"{pushed.url}: {many}, {size}"]
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
