"""The pipeline of `fastgoal caption`: images in, a folder with `metadata.jsonl` out, resumable at any moment.

    DIR/metadata.jsonl               `file_name`, `caption` and `finish` of every image; appears when all are done
    DIR/...                          the images: hard links to the originals where the disk allows it, else copies
    DIR/fastgoal_captions.json       settings and versions, at the end the summary
    DIR/.fastgoal/captions-*.jsonl   on the way: a line for every finished batch, a file for every process
    DIR/.fastgoal/lock               who is writing

A batch is one line, so a run that is killed leaves a batch whole or not at all. The rows of the finished folder are in
the order of the source, however often the run was interrupted and however many processes shared it.
"""

import contextlib
import io
import json
import math
import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from fastgoal.processing.data.image_folder import SUFFIXES
from fastgoal.processing.data.sources import CAPTIONS_MANIFEST, METADATA, DatasetSource, Source
from fastgoal.processing.images import load_image
from fastgoal.processing.sentences import split_sentences

from .captioner import Caption
from .shards import WORK_FOLDER, folder_lock, write_json

logger = logging.get_logger(__name__)

PARTS = "captions-*.jsonl"
DECODERS = 4
REMEDY = "Choose another --output, or delete this folder to start again."


@dataclass(frozen=True)
class CaptionSettings:
    """What the captions depend on. A run is only continued with the same settings.

    Args:
        model: name of the model, with a mark that changes when its weights change.
        prompt: what is asked of every image.
        max_new_tokens: longest caption in tokens.
        temperature: 0 for the likeliest tokens, more to sample.
        top_p: share of the probability that is sampled from.
        seed: of the sampling.
        dtype: number format of the model.
        split: split of the source.
        limit: the first so many rows only.
        sampled_batch: images in a batch when sampling, which draws for a whole batch at once; else None.
    """

    model: str
    prompt: str
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "float32"
    split: str | None = None
    limit: int | None = None
    sampled_batch: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("prompt is empty; expected a text that asks for a description of the image.")
        for name in ("limit", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; expected a number from 1.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}; expected 0 (the likeliest tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}; expected a number above 0 and at most 1.")


@dataclass(frozen=True)
class Share:
    """The part of one process, number `index` of `count`. `wait` returns when all processes have come to it."""

    index: int = 0
    count: int = 1
    wait: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class _Picture:
    """A decoded image on its way to a caption. `stored` is its file, or the bytes of one."""

    row: int
    file_name: str
    image: Image.Image
    stored: Path | bytes


def build_captions(
    source: Source,
    output: str | os.PathLike[str],
    settings: CaptionSettings,
    load_captioner: Callable[[], Callable[..., list[Caption]]],
    on_error: str = "stop",
    batch_size: int = 8,
    share: Share | None = None,
    show: Callable[[str, str], Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a caption for every image of `source`, or continue such a folder.

    Args:
        source: rows to work on, opened without captions. A file that it names more than once gets one caption.
        output: folder for `metadata.jsonl`, the images and `fastgoal_captions.json`.
        settings: what the captions depend on.
        load_captioner: gives a `Captioner`, or another `captioner(images, seed=)`; called only if there is work.
        on_error: `stop` at an image that cannot be read or about which the model writes nothing, or `skip` and list it.
        batch_size: images that the model describes at once.
        share: this process's part where several write one folder; all of it by default.
        show: called with name and text of the first caption that is written.
        progress: show a bar with images per second.

    Returns:
        The summary: `images`, `skipped` (row and reason), mean `words` and `sentences` of a caption, `cut` (captions
        that reached the token limit), `seconds` and `images_per_second` (over all runs that made the folder), and
        `made`, the images that were still to do when this call began.

    Raises:
        ValueError: an image cannot be used, the folder holds something else, or another run writes it.
        OSError: the folder cannot be written, for example on a full disk.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error='{on_error}'; expected 'stop' or 'skip'.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected a number from 1.")
    if len(source) == 0:
        raise ValueError(f"source='{source.name}' has no rows.")
    output, share = Path(output), share or Share()
    work, leads = output / WORK_FOLDER, share.index == 0
    _check_output(output)
    with folder_lock(work / "lock") if leads else contextlib.nullcontext():
        if leads:
            _start_or_continue(output, _manifest(source, settings))
        share.wait()
        records = _read_parts(work)
        # Nobody may write a part while another still reads them.
        share.wait()
        summary = _summary(output)
        left_out = (
            [entry for record in records for entry in record["skipped"]] if summary is None else summary["skipped"]
        )
        if left_out and on_error == "stop":
            raise ValueError(
                f"an earlier run with on_error='skip' left out {len(left_out)} images of this folder, the first: "
                f"{left_out[0]['reason']} Go on with --on-error skip, or write another --output."
            )
        pending: list[int] = []
        if summary is None:
            done = {entry["row"] for record in records for entry in [*record["rows"], *record["skipped"]]}
            rows = _unique_rows(source, settings.limit)
            pending = [row for row in rows if row not in done]
            batches = [pending[start : start + batch_size] for start in range(0, len(pending), batch_size)]
            own = batches[share.index :: share.count]
            if own:
                writer = _Writer(source, output, load_captioner(), settings.seed, on_error == "skip", share)
                bar = tqdm(
                    total=math.ceil(len(rows) / share.count),
                    initial=(len(rows) - len(pending)) // share.count,
                    unit="image",
                    desc="captions",
                    disable=not (progress and leads),
                )
                with bar:
                    writer.write(own, bar.update, show if leads else None)
            share.wait()
            if leads:
                _finish(output)
            share.wait()
            summary = _summary(output) or {}
    return {**summary, "made": len(pending)}


class _Writer:
    """Captions batches of images and writes each down, with its images, before it begins the next."""

    def __init__(
        self,
        source: Source,
        output: Path,
        captioner: Callable[..., list[Caption]],
        seed: int,
        skip: bool,
        share: Share,
    ) -> None:
        self.source = source
        self.output = output
        self.captioner = captioner
        self.seed = seed
        self.skip = skip
        self.share = share

    def write(
        self,
        batches: Sequence[Sequence[int]],
        advance: Callable[[int], Any],
        show: Callable[[str, str], Any] | None,
    ) -> None:
        part = self.output / WORK_FOLDER / PARTS.replace("*", f"{self.share.index:05d}")
        pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        try:
            clock = time.perf_counter()
            for rows, loaded in self._loaded(pool, batches):
                entries, skipped = self._captions(loaded)
                now = time.perf_counter()
                record = {"rows": entries, "skipped": skipped, "seconds": (now - clock) / self.share.count}
                clock = now
                with _write_errors(part):
                    _append(part, record)
                advance(len(rows))
                if show and entries:
                    show(entries[0]["file_name"], entries[0]["caption"])
                    show = None
        finally:
            pool.shutdown(cancel_futures=True)

    def _loaded(
        self, pool: ThreadPoolExecutor, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], list[_Picture | dict[str, Any]]]]:
        """The batches decoded, always one ahead of the model."""
        upcoming: list[Future[Any]] = [pool.submit(self._load, row) for row in batches[0]]
        for number, rows in enumerate(batches):
            current, upcoming = upcoming, []
            if number + 1 < len(batches):
                upcoming = [pool.submit(self._load, row) for row in batches[number + 1]]
            yield rows, [future.result() for future in current]

    def _captions(
        self, loaded: Iterable[_Picture | dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the metadata with their number in the source, and the rows to leave out."""
        entries: list[dict[str, Any]] = []
        skipped: list[dict[str, Any]] = []
        pictures = []
        for item in loaded:
            if isinstance(item, _Picture):
                pictures.append(item)
            else:
                self._refuse(item, skipped)
        if not pictures:
            return entries, skipped
        captions = self.captioner([picture.image for picture in pictures], seed=self.seed + pictures[0].row)
        for picture, caption in zip(pictures, captions, strict=True):
            if not caption.text:
                reason = f"{self.source.where(picture.row)}: the model wrote nothing about this image."
                self._refuse({"row": picture.row, "reason": reason}, skipped)
                continue
            with _write_errors(self.output / picture.file_name):
                self._store(picture)
            entries.append(
                {
                    "row": picture.row,
                    "file_name": picture.file_name,
                    "caption": caption.text,
                    "finish": caption.finish,
                }
            )
        return entries, skipped

    def _refuse(self, entry: dict[str, Any], skipped: list[dict[str, Any]]) -> None:
        if not self.skip:
            hint = " (--on-error skip leaves such images out and lists them.)"
            raise ValueError(entry["reason"] + ("" if "--on-error skip" in entry["reason"] else hint))
        skipped.append(entry)

    def _load(self, row: int) -> _Picture | dict[str, Any]:
        """Read and decode one image. Runs in a thread; what is wrong with it is returned, not raised."""
        try:
            found = self.source[row]
            stored = found.image
            if isinstance(stored, dict):
                stored = stored.get("bytes") or stored["path"]
            if not isinstance(stored, bytes):
                stored = Path(stored)
            image = load_image(stored, name=found.name if isinstance(stored, bytes) else None)
            return _Picture(row, self._file_name(row, found.name, stored), image, stored)
        except (ValueError, OSError) as error:
            where, reason = self.source.where(row), str(error)
            return {"row": row, "reason": reason if reason.startswith(where) else f"{where}: {reason}"}

    def _file_name(self, row: int, name: str, stored: Path | bytes) -> str:
        """The image's path inside the folder: the same as in the source, where that has paths."""
        if not isinstance(self.source, DatasetSource):
            path = posixpath.normpath(name)
            if path in (METADATA, CAPTIONS_MANIFEST) or path.partition("/")[0] == WORK_FOLDER:
                raise ValueError(
                    f"{self.source.where(row)}: the name '{name}' is taken in the output; rename the image."
                )
            return path
        # In a data set several rows may have the same name, and it may be anything.
        stem, suffix = os.path.splitext(re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", name)[-1]))
        if suffix.lower() not in SUFFIXES:
            with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as image:
                stem, suffix = stem + suffix, f".{(image.format or 'png').lower()}"
        return f"{row:08d}{suffix}" if stem == f"row-{row:08d}" else f"{row:08d}-{stem}{suffix}"

    def _store(self, picture: _Picture) -> None:
        """Put the original image file into the folder: as a hard link, which takes no room, or as a copy."""
        target = self.output / picture.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = self.output / WORK_FOLDER / f"image.{self.share.index}.{os.getpid()}.tmp"
        draft.unlink(missing_ok=True)
        try:
            if isinstance(picture.stored, Path):
                # A link to a symbolic link would break when the folder is moved.
                original = picture.stored.resolve()
                try:
                    os.link(original, draft)
                except OSError:
                    shutil.copyfile(original, draft)
            else:
                draft.write_bytes(picture.stored)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)


def _unique_rows(source: Source, limit: int | None) -> list[int]:
    """Numbers of the rows to caption. In a folder, rows that name the same file count once."""
    rows = range(len(source) if limit is None else min(limit, len(source)))
    if isinstance(source, DatasetSource):
        return list(rows)
    first: dict[str, int] = {}
    for row in rows:
        try:
            name = posixpath.normpath(source[row].name)
        except ValueError:  # reported when it is its turn
            name = f"//{row}"
        first.setdefault(name, row)
    return list(first.values())


def _manifest(source: Source, settings: CaptionSettings) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "format": 1,
        "settings": {
            **asdict(settings),
            "image_column": source.image_column,
            "source_rows": len(source),
            "source_fingerprint": source.fingerprint,
        },
        "source": source.name,
        "versions": {name: version(name) for name in ("fastgoal", "torch", "transformers", "pillow")},
    }


def _start_or_continue(output: Path, wanted: dict[str, Any]) -> None:
    """Write the manifest of a new folder, or check that the folder's own asks for the same rows; clear up."""
    path, work = output / CAPTIONS_MANIFEST, output / WORK_FOLDER
    for leftover in work.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    # Without a single caption there is nothing to mix with: an option may be put right after an error at the start.
    if not path.exists() or (not _read_parts(work, repair=True) and not (output / METADATA).exists()):
        write_json(path, wanted, work)
        return
    try:
        found = json.loads(path.read_bytes())
        settings = dict(found["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}). {REMEDY}") from None
    if found.get("format") != wanted["format"]:
        raise ValueError(f"{path} has format {found.get('format')!r}, this program {wanted['format']}. {REMEDY}")
    differences = [
        "the prompt was another one" if name == "prompt" else f"{name} was {settings.get(name)!r} and is now {value!r}"
        for name, value in wanted["settings"].items()
        if settings.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"output='{output}' holds captions of other images or settings: {'; '.join(differences)}. They are not "
            f"mixed. {REMEDY}"
        )
    if found.get("versions") != wanted["versions"]:
        logger.warning(f"{output} was begun with {found.get('versions')}; now {wanted['versions']} continues it.")


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"output='{output}' is a file; expected a folder.")
    if output.is_dir() and not (output / CAPTIONS_MANIFEST).exists():
        others = sorted(path.name for path in output.iterdir() if path.name != WORK_FOLDER)
        if others:
            raise ValueError(
                f"output='{output}' has files in it that `fastgoal caption` did not make ({', '.join(others[:5])}). "
                "Choose a new or an empty folder."
            )


def _summary(output: Path) -> dict[str, Any] | None:
    """The summary of a finished folder; None where captions are missing."""
    if not (output / METADATA).is_file():
        return None
    summary: dict[str, Any] | None = json.loads((output / CAPTIONS_MANIFEST).read_bytes()).get("summary")
    return summary


def _finish(output: Path) -> None:
    """Put the parts of all processes together."""
    work, path = output / WORK_FOLDER, output / CAPTIONS_MANIFEST
    records = _read_parts(work)
    rows = sorted((row for record in records for row in record["rows"]), key=lambda row: row["row"])
    skipped = sorted((entry for record in records for entry in record["skipped"]), key=lambda entry: entry["row"])
    if not rows:
        raise ValueError(f"none of the {len(skipped)} images could be used; the first: {skipped[0]['reason']}")
    draft = work / f"{METADATA}.{os.getpid()}.tmp"
    with _write_errors(output / METADATA):
        with draft.open("w", encoding="utf-8") as file:
            for row in rows:
                entry = {name: value for name, value in row.items() if name != "row"}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, output / METADATA)
    seconds = sum(record["seconds"] for record in records)
    captions = [row["caption"] for row in rows]
    summary = {
        "images": len(rows),
        "skipped": skipped,
        "words": round(sum(len(caption.split()) for caption in captions) / len(rows), 1),
        "sentences": round(sum(len(split_sentences(caption)) for caption in captions) / len(rows), 2),
        "cut": sum(row["finish"] == "length" for row in rows),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(rows) / seconds, 3) if seconds > 0 else 0.0,
    }
    manifest = json.loads(path.read_bytes())
    write_json(path, {**manifest, "summary": summary}, work)
    for part in work.glob(PARTS):
        part.unlink()


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read_parts(work: Path, repair: bool = False) -> list[dict[str, Any]]:
    """The finished batches. A line that was cut off counts as not written; `repair` removes it."""
    records: list[dict[str, Any]] = []
    for path in sorted(work.glob(PARTS)):
        content, whole = path.read_bytes(), 0
        for line in content.splitlines(keepends=True):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None:
                break
            records.append(record)
            whole += len(line)
        if repair and whole < len(content):
            os.truncate(path, whole)
    return records


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"could not write {path}: {error}. The captions that are finished are kept; make room (or write access) "
            "and run the same command again: it continues where it stopped."
        ) from error
