"""Send a model or a pairs dataset to the Hub: the files that were written here, one commit, no secrets.

A commit is all or nothing, so a push that fails half-way leaves the repository as it was; repeated, it sends only what
has not arrived.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from fastgoal.processing.files import WORK_FOLDER

from .cards import CARD, rename_card
from .data_card import DataFacts, write_data_card
from .image_metadata import cleaned_shards
from .model_card import ModelFacts, copy_handler, write_model_card
from .wording import count, size_in_words


def _any_of(*names: str, patterns: Sequence[str] = ()) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, names), *patterns]))


# Named one by one: a file that somebody put beside the model is not sent because of how its name ends.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model"),
)
CODE_FILES = (
    *sorted(path.name for path in Path(modeling_fastgoal.__path__[0]).glob("*_fastgoal.py")),
    *("processing_fastgoal.py", "geometry.py", "images.py", "texts.py", "tokens.py"),
)
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MODEL_FILES = _any_of(
    *(CARD, *LICENSES, "config.json", "generation_config.json", "model.safetensors.index.json"),
    *(ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, BASE_FILE),
    *("processor_config.json", "preprocessor_config.json", *TOKENIZER_FILES, "handler.py", *CODE_FILES),
    *("examples/pairs.jpg", "onnx/vision_model.onnx", "onnx/text_model.onnx"),
    *("onnx/vision_model.onnx.data", "onnx/text_model.onnx.data"),
    patterns=(r"model(-\d{5}-of-\d{5})?\.safetensors", r"examples/\d+\.jpg"),
)
DATA_FILES = _any_of(CARD, *LICENSES, "examples/pairs.jpg", patterns=(r"data/train-\d{5}-of-\d{5}\.parquet",))
TEXT_FILES = (".md", ".json", ".py", ".txt", "")
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


@dataclass(frozen=True)
class Pushed:
    """What `push` sent.

    Attributes:
        kind: `model` or `dataset`.
        repo: Full id on the Hub; after a dry run the one that was asked for.
        sent: Files of the commit, paths inside the folder.
        left_out: Files of the folder that are not sent.
        url: Of the repository; None after a dry run.
        commit: Of the Hub; None after a dry run.
        cleaned: Images of a dataset that positions, owner or serial numbers are taken out of in what is sent.
        sizes: Bytes of the files that are no files of a folder.
    """

    kind: str
    repo: str
    sent: list[str]
    left_out: list[str]
    url: str | None = None
    commit: CommitInfo | None = None
    cleaned: int = 0
    sizes: dict[str, int] = field(default_factory=dict)


def push(
    folder: str | os.PathLike[str],
    repo: str,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload with fastgoal",
    revision: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Send a folder to the Hub: a saved model with its processor, card and code, or what `fastgoal pairs` wrote.

    A card that is missing is written first; in the card the folder's name becomes the repository's.

    Args:
        folder: The model's or dataset's folder.
        repo: `OWNER/NAME`, or `NAME` for one's own; made if it does not exist.
        private: Whether a new repository is private; the account's default if None.
        token: Access token with the right to write; the one that is logged in by default.
        message: Of the commit.
        revision: Branch, the main one by default.
        dry_run: Get the folder ready and say what would be sent; send nothing, ask the Hub nothing, need no token.

    Raises:
        ValueError: There is no token, the folder is neither of the two, or a file holds a secret.
        OSError: The Hub could not be reached or refused; nothing was changed, and the push may be repeated.
    """
    folder = Path(folder)
    validate_repo_id(repo)
    kind = kind_of(folder)
    if dry_run:
        files, left_out = _get_ready(folder, kind, repo, token or get_token())
        with cleaned_shards(folder, _shards(files)) as (_, cleaned):
            return Pushed(kind, repo, files, left_out, cleaned=cleaned)
    secret = require_token(token)
    api = HfApi(token=secret, library_name="fastgoal")
    with hub_errors(repo, secret):
        url = api.create_repo(repo, private=private, exist_ok=True, repo_type=kind)
        files, left_out = _get_ready(folder, kind, url.repo_id, secret)
        with cleaned_shards(folder, _shards(files)) as (copies, cleaned):
            paths = [(name, copies.get(name, folder / name)) for name in files]
            operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths]
            commit = api.create_commit(
                url.repo_id, operations, commit_message=message, repo_type=kind, revision=revision
            )
    return Pushed(kind, url.repo_id, files, left_out, str(url), commit, cleaned)


@contextmanager
def hub_errors(repo: str, secret: str) -> Iterator[None]:
    """Say of an error of the Hub, as an `OSError`, which repository is meant and what to do, without the token."""
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(_refusal(error, repo).replace(secret, "***")) from None
    except (HTTPError, RuntimeError, ConnectionError, TimeoutError) as error:
        reason = f"{error} {error.__cause__ or ''}".strip().replace(secret, "***")
        raise OSError(
            f"'{repo}' could not be sent: {reason} Nothing was changed there. Repeat the command: what has arrived is "
            "not sent again."
        ) from None


def require_token(token: str | None = None) -> str:
    """The token given, or the one that is logged in; a `ValueError` if there is none."""
    found = token or get_token()
    if not found:
        raise ValueError(
            "There is no access token for the Hub. Make one with the right to write at "
            "https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN."
        )
    return found


def kind_of(folder: Path) -> str:
    """`model` or `dataset`, by a folder's files; a `ValueError` if it is neither, or the weights are no safetensors."""
    if (folder / MANIFEST).is_file():
        return "dataset"
    if is_adapter(folder):
        base = read_base(folder).base
        if os.path.isabs(base):
            raise ValueError(
                f"folder='{folder}' holds an adapter of a CLIP that is a folder here ({base}), which nobody else has: "
                "send what `fastgoal merge` makes of it."
            )
    elif not (folder / "config.json").is_file():
        raise ValueError(
            f"folder='{folder}' holds neither a saved model (config.json) nor what `fastgoal pairs` wrote."
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"folder='{folder}' has no weights in safetensors; other kinds are not sent.")
    return "model"


def choose_files(folder: Path, kind: str) -> tuple[list[str], list[str]]:
    """Files to send and files left out, as paths inside the folder with forward slashes.

    Only the files that saving a model, or `fastgoal pairs`, writes are sent, by their names. Links that lead out of the
    folder are left out, whatever they are called.
    """
    wanted, place = (MODEL_FILES if kind == "model" else DATA_FILES), folder.resolve()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and WORK_FOLDER not in path.parts)
    names = {path.relative_to(folder).as_posix(): path.resolve().is_relative_to(place) for path in paths}
    sent = [name for name, inside in names.items() if inside and wanted.fullmatch(name)]
    return sent, [name for name in names if name not in sent]


def refuse_secrets(folder: Path, files: Sequence[str], token: str | None) -> None:
    """A `ValueError` that names the file, not the token, if a text file holds an access token, be it one's own."""
    for name in files:
        path = folder / name
        if path.suffix in TEXT_FILES:
            refuse_secret_in(str(path), path.read_bytes(), token)


def refuse_secret_in(name: str, data: bytes, token: str | None) -> None:
    """Likewise for the bytes of one file."""
    text = data.decode("utf-8", errors="replace")
    if (token and token in text) or SECRET.search(text):
        raise ValueError(f"'{name}' holds an access token; it is not sent. Remove it from there first.")


def _get_ready(folder: Path, kind: str, repo: str, token: str | None) -> tuple[list[str], list[str]]:
    """Write what is missing of card and handler, name the repository in the card; see `choose_files`."""
    card = folder / CARD
    if not card.exists() and kind == "model":
        write_model_card(folder, ModelFacts.of_folder(folder))
    elif not card.exists():
        write_data_card(folder, DataFacts.of_folder(folder))
    if kind == "model" and not (folder / "handler.py").exists() and not is_adapter(folder):
        copy_handler(folder)
    text = card.read_text(encoding="utf-8")
    renamed = rename_card(text, repo)
    if renamed != text:
        card.write_text(renamed, encoding="utf-8")
    files, left_out = choose_files(folder, kind)
    refuse_secrets(folder, files, token)
    for name in files:
        if name.endswith(".safetensors"):
            refuse_not_finite(_tensors(folder / name), f"'{folder / name}'")
    return files, left_out


def _shards(files: Sequence[str]) -> list[str]:
    return [name for name in files if name.endswith(".parquet")]


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is cut off or damaged ({error}); it is not sent.") from None


def _refusal(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return (
            f"The Hub refused '{repo}' ({status}): the token is not valid or may not write there. Make one with the "
            "right to write at https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN."
        )
    return (
        f"The Hub answered '{repo}' with an error: {error}. Nothing was changed there; repeat the command later, what "
        "has arrived is not sent again."
    )


def describe_push(pushed: Pushed, folder: str | os.PathLike[str]) -> str:
    """What was sent, or would be, and what was not, in lines to read."""
    files = count(len(pushed.sent), "file")
    lines = [f"{pushed.url}: {files}"]
    if pushed.url is None:
        kind = "dataset" if pushed.kind == "dataset" else pushed.kind
        known = pushed.sizes
        sizes = [known[name] if name in known else (Path(folder) / name).stat().st_size for name in pushed.sent]
        lines = [f"would be sent to {pushed.repo} as a {kind}, {files}, {size_in_words(sum(sizes))}:"]
        lines += [f"  {name}  {size_in_words(size)}" for name, size in zip(pushed.sent, sizes, strict=True)]
    if pushed.cleaned:
        lines.append(
            f"without what cameras write of places, owners, serial numbers, and small copies: "
            f"{count(pushed.cleaned, 'image')}; the files here keep it"
        )
    if pushed.left_out:
        top = dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in pushed.left_out)
        lines.append(f"not sent: {', '.join(top)}")
    return "\n".join(lines)
