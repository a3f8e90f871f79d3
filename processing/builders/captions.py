"""The pipeline of `fastgoal caption`: images in, a folder with `metadata.jsonl` out, resumable at any moment.

    DIR/metadata.jsonl                     `file_name`, `caption` and `finish` of every image; appears when all are done
    DIR/...                                copies of the images
    DIR/fastgoal_captions.json             settings and versions, at the end the summary
    DIR/.fastgoal/captions-00000016.json   on the way: a finished batch, by the number of its first row

The rows of the finished folder are in the order of the source, however often the run was interrupted.
"""

import io
import json
import math
import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.image_folder import SUFFIXES
from fastgoal.processing.data.locations import METADATA
from fastgoal.processing.data.sources import CAPTIONS_MANIFEST, DatasetSource, Source
from fastgoal.processing.files import WORK_FOLDER, write_errors, write_json, write_text
from fastgoal.processing.images import load_image
from fastgoal.processing.sentences import split_sentences

from .captioner import Caption, RefusedError
from .engine import BadRow, Engine, Shard, Threads, check_run, good_rows
from .shards import RunFolder, refuse_skipped

logger = logging.get_logger(__name__)

BATCH = "captions-{:08d}.json"
# Those of version 0.1, too: a line for every batch, in files that end in .jsonl.
BATCHES = "captions-*"
DECODERS = 4


@dataclass(frozen=True)
class CaptionSettings:
    """What the captions depend on. A run is only continued with the same settings.

    Args:
        model: name of the model, with a mark that changes when its weights change; its number format is `dtype`.
        prompt: as for `Captioner`, like `max_new_tokens`, `temperature` and `top_p`.
        seed: of the sampling.
        split: split of the source, of which the first `limit` rows are used.
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
        check_positive(limit=self.limit, max_new_tokens=self.max_new_tokens)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}; expected 0 (the likeliest tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}; expected a number above 0 and at most 1.")


@dataclass(frozen=True)
class _Picture:
    """A decoded image on its way to a caption."""

    row: int
    file_name: str  # in the output
    image: Image.Image
    stored: Path | bytes  # its file, or the bytes of one
    answer: Any  # a future of its caption, from a captioner that works on many images beside each other


def build_captions(
    source: Source,
    output: str | os.PathLike[str],
    settings: CaptionSettings,
    load_captioner: Callable[[], Callable[..., list[Caption]]],
    on_error: str = "stop",
    batch_size: int = 8,
    show: Callable[[str, str], Any] | None = None,
    progress: bool = True,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write a caption for every image of `source`, or continue such a folder.

    Args:
        source: rows to work on, opened without captions. A file that it names more than once gets one caption.
        output: folder for `metadata.jsonl`, the images and `fastgoal_captions.json`.
        load_captioner: gives a `Captioner`, or another `captioner(images, seed=)`, or a `ServerCaptioner`, or another
            with a method `submit(image, seed)` that returns a future; called only if there is work.
        on_error: `stop` at an image that cannot be read or about which the model writes nothing, or `skip` and list it.
        batch_size: images that the model describes at once.
        show: called with name and text of the first caption that is written.
        progress: show a bar.
        engine: who makes the captions, see `cluster.open_engine`; by default this process.

    Returns:
        The summary: `images`, `skipped` (row and reason), mean `words` and `sentences` of a caption, `cut` (captions
        that reached the token limit), `seconds` and `images_per_second` (over all runs that made the folder), and
        `made`, the images that were still to do when this call began.

    Raises:
        ValueError: an image cannot be used, the folder holds something else, or another run writes it.
        OSError: the folder cannot be written, for example on a full disk.
    """
    check_run(source, on_error, batch_size=batch_size)
    output = Path(output)
    folder = RunFolder(output, CAPTIONS_MANIFEST, "fastgoal caption", [METADATA, f"{WORK_FOLDER}/{BATCHES}"])
    with folder.open(source, settings) as manifest:
        summary = manifest.get("summary") if (output / METADATA).is_file() else None
        records = list(_read_batches(folder.work)) if summary is None else [summary]
        skipped = _entries(records, "skipped")
        if on_error == "stop":
            refuse_skipped(skipped)
        pending: list[int] = []
        if summary is None:
            done = {entry["row"] for entry in [*_entries(records, "rows"), *skipped]}
            rows = _unique_rows(source, settings.limit)
            pending = [row for row in rows if row not in done]
            starts = range(0, len(pending), batch_size)
            shards = [Shard(pending[start], pending[start : start + batch_size]) for start in starts]
            run = folder.read_run()

            def load_maker(cores: int) -> _CaptionMaker:
                folder.check_shared(run)
                return _CaptionMaker(source, output, load_captioner(), settings.seed, on_error == "skip", batch_size)

            for _, record in (engine or Engine()).run_shards(shards, load_maker, len(rows), "captions", progress):
                records.append(record)
                if show and record["rows"]:
                    show(record["rows"][0]["file_name"], record["rows"][0]["caption"])
                    show = None
            summary = _write_metadata(output, records)
            folder.finish(manifest, summary)
        for path in folder.work.glob(BATCHES):
            path.unlink()
    return {**summary, "made": len(pending)}


@dataclass
class _CaptionMaker:
    """Captions batches of images and writes each down, with its images, before it begins the next."""

    source: Source
    output: Path
    captioner: Any
    seed: int
    skip: bool
    ahead: int

    def __post_init__(self) -> None:
        self.work = self.output / WORK_FOLDER
        self.threads = Threads(DECODERS, overlap=True)
        self.beside = hasattr(self.captioner, "submit")

    def load(self, row: int) -> _Picture | BadRow:
        """Read and decode one image."""
        try:
            found = self.source[row]
            stored = found.image
            if isinstance(stored, dict):
                stored = stored.get("bytes") or stored["path"]
            stored = stored if isinstance(stored, bytes) else Path(stored)
            image = load_image(stored, name=found.name if isinstance(stored, bytes) else None)
            file_name = self._file_name(row, found.name, stored)
        except (ValueError, OSError) as error:
            return BadRow.of(self.source, row, error)
        answer = self.captioner.submit(image, self.seed + row) if self.beside else None
        return _Picture(row, file_name, image, stored, answer)

    def make(self, shard: Shard, rows: Iterator[_Picture | BadRow], advance: Callable[[int], Any]) -> dict[str, Any]:
        """Caption one batch."""
        clock = time.perf_counter()
        skipped: list[BadRow] = []
        left_out = skipped if self.skip else None
        record: dict[str, Any] = {"rows": [], "skipped": []}
        try:
            for picture, caption in self._captioned(rows, left_out):
                if not caption.text:
                    nothing = BadRow.of(self.source, picture.row, "the model wrote nothing about this image.")
                    good_rows([nothing], left_out)
                    continue
                with write_errors(self.output / picture.file_name):
                    self._store(picture)
                row = {"row": picture.row, "file_name": picture.file_name}
                record["rows"].append({**row, "caption": caption.text, "finish": caption.finish})
        finally:
            # What is there is kept, whatever happened then. Named after a row that is done: no later batch is.
            record |= {"skipped": [asdict(row) for row in skipped], "seconds": time.perf_counter() - clock}
            done = [entry["row"] for entry in record["rows"] + record["skipped"]]
            if done:
                write_json(self.work / BATCH.format(min(done)), record, self.work)
        advance(len(shard.rows))
        return record

    def _captioned(
        self, rows: Iterator[_Picture | BadRow], left_out: list[BadRow] | None
    ) -> Iterator[tuple[_Picture, Caption]]:
        """Pictures with their captions: as they come, or all of a batch at once."""
        if not self.beside:
            pictures = good_rows(rows, left_out)
            asked = [picture.image for picture in pictures]
            captions = self.captioner(asked, seed=self.seed + pictures[0].row) if asked else []
            yield from zip(pictures, captions, strict=True)
            return
        for row in rows:
            for picture in good_rows([row], left_out):
                try:
                    yield picture, picture.answer.result()
                except RefusedError as error:
                    good_rows([BadRow.of(self.source, picture.row, error)], left_out)

    def _file_name(self, row: int, name: str, stored: Path | bytes) -> str:
        """The image's path inside the folder: the same as in the source, where that has paths."""
        path = posixpath.normpath(name)
        # One that leads out of the source, where that is allowed, must not lead out of the output.
        if not isinstance(self.source, DatasetSource) and not path.startswith(("/", "../")):
            if path in (METADATA, CAPTIONS_MANIFEST) or path.partition("/")[0] == WORK_FOLDER:
                raise ValueError(
                    f"{self.source.where(row)}: the name '{name}' is taken in the output; rename the image."
                )
            return path
        # In a dataset several rows may have the same name, and it may be anything.
        stem, suffix = os.path.splitext(re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", name)[-1]))
        if suffix.lower() not in SUFFIXES:
            with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as image:
                stem, suffix = stem + suffix, f".{(image.format or 'png').lower()}"
        return f"{row:08d}{suffix}" if stem == f"row-{row:08d}" else f"{row:08d}-{stem}{suffix}"

    def _store(self, picture: _Picture) -> None:
        """Put a copy of the original image file into the folder."""
        target = self.output / picture.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of an interrupted run of an older version it may be a link to the original, which must not be written to.
        target.unlink(missing_ok=True)
        if isinstance(picture.stored, bytes):
            target.write_bytes(picture.stored)
        else:
            shutil.copyfile(picture.stored, target)


def _unique_rows(source: Source, limit: int | None) -> list[int]:
    """Numbers of the rows to caption. In a folder, rows that name the same file count once."""
    rows = range(len(source))[:limit]
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


def _read_batches(work: Path) -> Iterator[dict[str, Any]]:
    """The finished batches; one that cannot be read is captioned again."""
    for path in sorted(work.glob(BATCHES)):
        content = path.read_bytes()
        try:
            for text in content.splitlines() if path.suffix == ".jsonl" else [content]:
                yield json.loads(text)
        except ValueError as error:
            logger.warning(f"{path} is damaged; what cannot be read is captioned again: {error}.")


def _entries(records: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return sorted((entry for record in records for entry in record[name]), key=lambda entry: int(entry["row"]))


def _write_metadata(output: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the batches together, and sum them up."""
    rows, skipped = _entries(records, "rows"), _entries(records, "skipped")
    if not rows:
        raise ValueError(f"none of the {len(skipped)} images could be used; the first: {skipped[0]['reason']}")
    lines = [{name: value for name, value in row.items() if name != "row"} for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(output / METADATA, text, output / WORK_FOLDER)
    seconds = sum(record["seconds"] for record in records)
    captions = [row["caption"] for row in rows]
    return {
        "images": len(rows),
        "skipped": skipped,
        "words": round(sum(len(caption.split()) for caption in captions) / len(rows), 1),
        "sentences": round(sum(len(split_sentences(caption)) for caption in captions) / len(rows), 2),
        "cut": sum(row["finish"] == "length" for row in rows),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(rows) / seconds, 3) if seconds > 0 else 0.0,
    }
