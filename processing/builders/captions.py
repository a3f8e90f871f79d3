"""Build a folder of images with long captions: the work behind `fastgoal caption`. A run can be killed and continued.

    DIR/metadata.jsonl                     `file_name`, `caption` and `finish` of every image; written when all are done
    DIR/...                                copies of the images
    DIR/fastgoal_captions.json             settings and versions, at the end the summary
    DIR/.fastgoal/captions-00000016.json   during the run: a finished batch, by the number of its first row

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
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from fastgoal.processing.checkpoints.devices import choose_dtype
from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.forms.metadata import CAPTIONS_MANIFEST
from fastgoal.processing.data.image_folder import open_images
from fastgoal.processing.data.locations import METADATA, SUFFIXES
from fastgoal.processing.data.sources import Source
from fastgoal.processing.files import WORK_FOLDER, write_errors, write_json, write_text
from fastgoal.processing.images import load_image
from fastgoal.processing.sentences import split_sentences
from fastgoal.processing.texts import is_unicode

from .caption_server import ServerCaptioner
from .captioner import PROMPT, Caption, Captioner, RefusedError
from .engine import Engine, Shard, Threads, open_engine
from .markdown import without_markdown
from .shards import BadRow, RunFolder, check_run, good_rows, refuse_skipped

logger = logging.get_logger(__name__)

BATCH = "captions-{:08d}.json"
BATCHES = "captions-*.json"
DECODERS = 4


def build_captions(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    model: str,
    *,
    server: str | None = None,
    api_key_env: str | None = None,
    timeout: float = 300.0,
    prompt: str = PROMPT,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
    on_error: str = "stop",
    batch_size: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    show: Callable[[str, str], Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a long caption for every image with an image-text-to-text model, and copy the images next to the captions.

        fastgoal.build_captions("photos/", "captions/", model="HuggingFaceTB/SmolVLM2-2.2B-Instruct")
        fastgoal.build_pairs("captions/", "pairs/", model="openai/clip-vit-base-patch16")

    A run that was interrupted continues where it stopped when it is called again with the same arguments.

    Args:
        images: A folder of images, or what `load_source` reads. An image that it names more than once gets one caption.
        output: Folder for `metadata.jsonl` and the images, new or to be continued.
        model: Folder or Hub id of the model; with `server` the server's name for it.
        server: URL of a server that writes the captions, with OpenAI's chat completions (vLLM, SGLang, llama.cpp,
            Inference Providers). Images are sent without their metadata, at most 2,048 pixels long.
        api_key_env: Environment variable with the server's key. By default no key is sent.
        timeout: Seconds after which a request to the server is repeated.
        prompt: The text that asks for a caption.
        max_new_tokens: Longest caption in tokens.
        temperature: 0 for greedy decoding; above 0 for sampling.
        top_p: Sample from the most likely tokens up to this total probability.
        seed: Seed of the sampling.
        form: As for `load_source`, like the next three arguments and `allow_outside_files`.
        limit: Use the first rows only.
        on_error: At an image that cannot be read, or that gets no caption: `stop`, or `skip` it and list it.
        batch_size: Images that the model describes at once, by default 8; with `server` concurrent requests, by
            default 32.
        workers: Processes that share the work, each with a GPU where there are GPUs; needs the package ray.
        ray: Address of a Ray cluster that shares the work, `HOST:PORT` or `auto`.
        device: Device of the model; by default the accelerator if there is one.
        dtype: Number format of the model: `float32`, `float16`, `bfloat16`, or `auto` for a 16-bit one on CUDA.
        show: Called with the file name and the text of the first caption.
        progress: Show a progress bar.

    Returns:
        The summary: `images`, `skipped` (row and reason), mean `words` and `sentences` of a caption, `cut` (captions
        that reached the token limit), `markdown` (captions that Markdown was removed from), `seconds` and
        `images_per_second` over all runs, and `made`, the images that were still to do when this call began.

    Raises:
        ValueError: An argument is wrong, the model cannot be loaded, an image cannot be used (`on_error="stop"`), the
            folder holds other files, data or settings, or another process writes to it.
        OSError: A file cannot be written, or the server cannot be reached.
        ImportError: A package that an argument needs is missing.
    """
    api_key = _check_server(server, api_key_env, workers, ray, device, dtype)
    if Path(images).is_dir() and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(images)):
        raise ValueError(
            f"`output` must be outside the folder of images {os.fspath(images)}, got {os.fspath(output)}: the next run "
            "would caption its copies."
        )
    source = open_images(
        images,
        form=form,
        split=split,
        image_column=image_column,
        image_folder=image_folder,
        allow_outside_files=allow_outside_files,
    )
    if batch_size is None:
        batch_size = 8 if server is None else 32
    decoding: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(workers, ray))
        if server is None:
            chosen = engine.choose_device(device)
            dtype, mark = choose_dtype(dtype, chosen, bfloat16=True), checkpoint_fingerprint(model)
            sampled_batch = batch_size if temperature > 0 else None

            def load_captioner() -> Any:
                return Captioner.load(model, chosen, dtype, prompt=prompt, **decoding)
        else:
            # Another address of the same model may continue the folder.
            dtype, mark, sampled_batch = "the server's", model, None
            requests: dict[str, Any] = {"at_once": batch_size, "api_key": api_key, "timeout": timeout}

            def load_captioner() -> Any:
                return stack.enter_context(closing(ServerCaptioner(server, model, prompt, **decoding, **requests)))

        settings = CaptionSettings(
            mark, prompt, **decoding, seed=seed, dtype=dtype, split=split, limit=limit, sampled_batch=sampled_batch
        )
        return write_captions(source, output, settings, load_captioner, on_error, batch_size, show, progress, engine)


def _check_server(
    server: str | None, api_key_env: str | None, workers: int | None, ray: str | None, device: str | None, dtype: str
) -> str | None:
    """Refuse arguments that do not go together, and return the server's key."""
    if server is None:
        if api_key_env is not None:
            raise ValueError("`api_key_env` is for a `server`, and none is given.")
        return None
    if (workers, ray) != (None, None):
        raise ValueError("`workers` and `ray` cannot be used with `server`: this process sends the requests.")
    if device not in (None, "auto") or dtype != "auto":
        raise ValueError("`device` and `dtype` cannot be used with `server`: they are for a model that runs here.")
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ValueError(f"`api_key_env={api_key_env}`: this environment variable is not set, or is empty.")
    return key


@dataclass(frozen=True)
class CaptionSettings:
    """The settings that the captions depend on. A folder is only continued with the same settings.

    Attributes:
        model: The model's name, with a mark that changes with its weights.
        sampled_batch: Images in a batch when sampling, which draws for a whole batch at once; otherwise None.
        The others are arguments of `build_captions`.
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
            raise ValueError("`prompt` must ask for a description of the image, got an empty text.")
        check_positive(limit=self.limit, max_new_tokens=self.max_new_tokens)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"`temperature` must be 0 (greedy decoding) or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")


@dataclass(frozen=True)
class _LoadedImage:
    """A decoded image that waits for its caption.

    Attributes:
        file_name: Its path in the output.
        stored: Its file, or the bytes of one.
        answer: The future of its caption, from a captioner that works on many images concurrently.
    """

    row: int
    file_name: str
    image: Image.Image
    stored: Path | bytes
    answer: Any


def write_captions(
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
    """Do the work of `build_captions`, which see for the other arguments, the summary and the errors.

    Args:
        source: Rows of images, opened without captions.
        load_captioner: Returns a `Captioner`, or another `captioner(images, seed=)`; or a `ServerCaptioner`, or another
            object with a method `submit(image, seed)` that returns a future. Called only if there is work.
        engine: Runs the batches, by default in this process.
    """
    check_run(source, on_error, settings.limit, batch_size=batch_size)
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
    """Caption batches of images, and write each batch with its images before the next one begins."""

    source: Source
    output: Path
    captioner: Any
    seed: int
    skip: bool
    ahead: int

    def __post_init__(self) -> None:
        self.work = self.output / WORK_FOLDER
        self.threads = Threads(DECODERS, overlap=True)
        self.is_concurrent = hasattr(self.captioner, "submit")

    def load(self, row: int) -> _LoadedImage | BadRow:
        """Read and decode one image, and submit it to a concurrent captioner."""
        try:
            source_row = self.source[row]
            stored = source_row.image
            if isinstance(stored, dict):
                stored = stored.get("bytes") or stored["path"]
            stored = stored if isinstance(stored, bytes) else Path(stored)
            image = load_image(stored, name=source_row.name if isinstance(stored, bytes) else None)
            file_name = self._file_name(row, source_row.name, stored)
        except (ValueError, OSError) as error:
            return BadRow.of(self.source, row, error)
        answer = self.captioner.submit(image, self.seed + row) if self.is_concurrent else None
        return _LoadedImage(row, file_name, image, stored, answer)

    def make(
        self, shard: Shard, rows: Iterator[_LoadedImage | BadRow], advance: Callable[[int], Any]
    ) -> dict[str, Any]:
        """Caption one batch, and return its record."""
        clock = time.perf_counter()
        skipped: list[BadRow] = []
        bad_rows = skipped if self.skip else None
        record: dict[str, Any] = {"rows": [], "skipped": [], "markdown": 0}
        try:
            for image, caption in self._captioned(rows, bad_rows):
                is_valid = is_unicode(caption.text)
                text = without_markdown(caption.text) if is_valid else ""
                if not text:
                    wrote = "nothing" if is_valid else "an unpaired surrogate, which is not valid Unicode,"
                    bad = BadRow.of(self.source, image.row, f"the model wrote {wrote} about this image.")
                    good_rows([bad], bad_rows)
                    continue
                with write_errors(self.output / image.file_name):
                    self._store(image)
                row = {"row": image.row, "file_name": image.file_name}
                record["rows"].append({**row, "caption": text, "finish": caption.finish})
                record["markdown"] += text != caption.text
        finally:
            # What is finished is kept in any case. The name is that of a finished row, so no later batch has it.
            record |= {"skipped": [asdict(row) for row in skipped], "seconds": time.perf_counter() - clock}
            done = [entry["row"] for entry in record["rows"] + record["skipped"]]
            if done:
                write_json(self.work / BATCH.format(min(done)), record, self.work)
        advance(len(shard.rows))
        return record

    def _captioned(
        self, rows: Iterator[_LoadedImage | BadRow], bad_rows: list[BadRow] | None
    ) -> Iterator[tuple[_LoadedImage, Caption]]:
        """Yield images with their captions: in order as answers arrive, or a whole batch at once."""
        if not self.is_concurrent:
            images = good_rows(rows, bad_rows)
            decoded = [image.image for image in images]
            captions = self.captioner(decoded, seed=self.seed + images[0].row) if images else []
            yield from zip(images, captions, strict=True)
            return
        for row in rows:
            for image in good_rows([row], bad_rows):
                try:
                    yield image, image.answer.result()
                except RefusedError as error:
                    good_rows([BadRow.of(self.source, image.row, error)], bad_rows)

    def _file_name(self, row: int, name: str, stored: Path | bytes) -> str:
        """Return the image's path in the output: the same as in the source, if that has paths."""
        path = posixpath.normpath(name)
        # A path that leads out of the source, where this is allowed, must not lead out of the output.
        if self.source.names_are_paths and not path.startswith(("/", "../")):
            if path in (METADATA, CAPTIONS_MANIFEST) or path.partition("/")[0] == WORK_FOLDER:
                raise ValueError(
                    f"{self.source.label(row)}: the output needs the name '{name}' for its own file. Rename the image."
                )
            return path
        # In a dataset a name can be any text, and several rows can share it.
        stem, suffix = os.path.splitext(re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", name)[-1]))
        if suffix.lower() not in SUFFIXES:
            with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as image:
                stem, suffix = stem + suffix, f".{(image.format or 'png').lower()}"
        return f"{row:08d}{suffix}" if stem == f"row-{row:08d}" else f"{row:08d}-{stem}{suffix}"

    def _store(self, image: _LoadedImage) -> None:
        """Copy the original image file into the folder."""
        target = self.output / image.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # never write through a link
        if isinstance(image.stored, bytes):
            target.write_bytes(image.stored)
        else:
            shutil.copyfile(image.stored, target)


def _unique_rows(source: Source, limit: int | None) -> list[int]:
    """Return the numbers of the rows to caption. In a folder, rows that name the same file count once."""
    rows = range(len(source))[:limit]
    if not source.names_are_paths:
        return list(rows)
    first: dict[str, int] = {}
    for row in rows:
        try:
            name = posixpath.normpath(source[row].name)
        except ValueError:  # reported when the row is loaded
            name = f"//{row}"
        first.setdefault(name, row)
    return list(first.values())


def _read_batches(work: Path) -> Iterator[dict[str, Any]]:
    """Yield the finished batches. The images of a batch that cannot be read are captioned again."""
    for path in sorted(work.glob(BATCHES)):
        try:
            yield json.loads(path.read_bytes())
        except ValueError as error:
            logger.warning(f"{path} is damaged, and its images are captioned again: {error}.")


def _entries(records: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return sorted((entry for record in records for entry in record[name]), key=lambda entry: int(entry["row"]))


def _write_metadata(output: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the batches as one file, and return the summary."""
    rows, skipped = _entries(records, "rows"), _entries(records, "skipped")
    if not rows:
        raise ValueError(f"None of the {len(skipped)} images can be used. The first: {skipped[0]['reason']}")
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
        "markdown": sum(record["markdown"] for record in records),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(rows) / seconds, 3) if seconds > 0 else 0.0,
    }
