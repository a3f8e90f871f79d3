"""Tar files in the webdataset format, as `webdataset.ShardWriter` and img2dataset write them.

A sample is an image and text files of the same name: `0001.jpg`, `0001.txt`, `0001.json`. Only the headers of the tar
files are read when the data are loaded. The memory that the rows need is that of their keys and positions.
"""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.fingerprints import hash_files
from fastgoal.processing.data.sources import Source
from fastgoal.processing.data.streams import SHARD, StreamSource

from .form import Form, SourceOptions
from .samples import IMAGES, SNIFFED, TABLE, TEXTS, columns_of, split_name, text_columns, warn_of_failures

BLOCK = tarfile.BLOCKSIZE
_FIELDS = ("image", "text", "table")


def tar_files(path: Path) -> list[Path]:
    """Return a tar file, or the tar files of a folder and of its subfolder `data`, in order."""
    if path.is_dir():
        return sorted([*path.glob("*.tar"), *(path / "data").glob("*.tar")])
    return [path] if path.suffix == ".tar" else []


class TarSource(Source):
    """The samples of tar files, which are read by their positions in the files.

    Raises:
        ValueError: There are no samples, or a column does not exist.
    """

    names_are_paths = False

    def __init__(self, path: Path, options: SourceOptions) -> None:
        import pyarrow

        self.files = tar_files(path)
        self._suffixes = suffixes_of(options)
        self.index = pyarrow.concat_tables(
            index_tar(file, number, *self._suffixes) for number, file in enumerate(self.files)
        ).combine_chunks()
        if not len(self.index):
            raise ValueError(f"{path} has no samples in its {len(self.files)} tar files.")
        bad = pyarrow.compute.indices_nonzero(self.index["problem"].is_valid()).to_pylist()
        self._problems = dict(zip(bad, self.index["problem"].take(bad).to_pylist(), strict=True)) if bad else {}
        columns = columns_of(islice(_good_texts(self.files, self._suffixes), SNIFFED))
        # The image column names a suffix: the images of all samples are in the column `image`.
        try:
            super().__init__(str(path), columns, **{**options.columns, "image_column": "image"})
        except ValueError:
            if len(bad) < len(self.index):
                raise
            raise ValueError(self._problems[0]) from None  # no sample has shown what columns there are

    @property
    def problems(self) -> dict[int, str]:
        return self._problems

    @property
    def fingerprint(self) -> str:
        """A hash of the names and sizes of the tar files, and of parts of them."""
        return hash_files(self.files)

    def __len__(self) -> int:
        return len(self.index)

    def captions_of(self, index: int) -> list[str]:
        return self.row(index, {**self._texts(index), "image": {"bytes": b"-"}}).captions

    def label(self, index: int) -> str:
        return self._label(index, {})

    def _entry(self, index: int) -> dict[str, Any]:
        return dict(self.index.slice(index, 1).to_pylist()[0])

    def _texts(self, index: int) -> dict[str, Any]:
        entry = self._entry(index)
        return read_texts(self.files[entry["shard"]], entry)

    def _values(self, index: int) -> dict[str, Any]:
        entry = self._entry(index)
        return read_sample(self.files[entry["shard"]], entry)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        entry = self._entry(index)
        return sample_label(self.files[entry["shard"]], entry)

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        return str(image.get("path", ""))


def suffixes_of(options: SourceOptions) -> tuple[Sequence[str], Sequence[str]]:
    """Return the suffixes of image files and of caption files: those that the columns name, or the usual ones."""
    images = IMAGES if options.image_column is None else [options.image_column]
    return images, TEXTS if options.caption_column is None else [options.caption_column, *TEXTS]


def index_tar(path: Path, number: int, images: Sequence[str], texts: Sequence[str]) -> Any:
    """Return the positions of the samples of a tar file as a `pyarrow.Table`, in the order of their images.

    A sample that cannot be used has a `problem`. So has the last row if the file is damaged.

    Args:
        path: The tar file.
        number: Its number, for the column `shard`.
        images: Suffixes of image files.
        texts: Suffixes of caption files; a sample may have several, and the first of `texts` counts.
    """
    import pyarrow

    samples: dict[str, dict[str, Any]] = {}
    damage = None
    try:
        for member, start in read_members(path):
            key, suffix = split_name(member.name)
            field = "image" if suffix in images else "text" if suffix in texts else "table" if suffix == TABLE else None
            if field is None or member.isdir():
                continue
            sample = samples.setdefault(key, {"key": key})
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                sample["problem"] = f"{member.name} is a link or another special file, which is not followed"
            elif f"{field}_name" not in sample:
                sample |= {f"{field}_name": member.name, f"{field}_at": start, f"{field}_size": member.size}
            elif sample[f"{field}_name"] == member.name:
                sample["problem"] = f"{member.name} exists twice. Give each sample a key of its own"
            elif field == "image":
                sample["problem"] = (
                    f"it has two images, {sample['image_name']} and {member.name}. Name the suffix of one with "
                    "`image_column`"
                )
            elif field == "text" and texts.index(suffix) < texts.index(split_name(sample["text_name"])[1]):
                sample |= {"text_name": member.name, "text_at": start, "text_size": member.size}
    except ValueError as error:
        last = samples.popitem()[0] if samples else ""
        damage = f"{error} The rows from {last or 'its beginning'} on are lost. Download or write the file again."
    rows = []
    for sample in samples.values():
        if "problem" in sample:
            rows.append({**sample, "problem": f"{path}: {sample['key']}: {sample['problem']}."})
        elif "image_name" in sample:
            rows.append(sample)
        else:
            suffixes = ", ".join(images)
            rows.append({**sample, "problem": f"{path}: {sample['key']}: the sample has no image ({suffixes})."})
    if damage:
        rows.append({"key": "", "problem": damage})
    schema = [("shard", pyarrow.int32()), ("key", pyarrow.string()), ("problem", pyarrow.string())]
    for field in _FIELDS:
        schema += [(f"{field}_name", pyarrow.string()), (f"{field}_at", pyarrow.int64())]
        schema += [(f"{field}_size", pyarrow.int64())]
    return pyarrow.Table.from_pylist([{**row, "shard": number} for row in rows], pyarrow.schema(schema))


def read_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield the members of a tar file with the positions of their data.

    Raises:
        ValueError: The file is not a tar file, is truncated, or is damaged; the members before that were yielded.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    vars(tar)["members"] = []  # which would grow with the file
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"{member.name} is truncated")
                    yield member, member.offset_data
                end = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is not a complete tar file ({error}).") from None
        # `tarfile` takes a broken header, and the end of a truncated file, for the end of the members.
        file.seek(end)
        rest = file.read(BLOCK)
        if len(rest) < BLOCK or any(rest) or any(file.read(64 * BLOCK)):
            raise ValueError(f"{path} is truncated or damaged at byte {end:,} of {size:,}.")


def read_sample(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a sample: the `image`, and those of its texts. Raise `ValueError` if there is a problem."""
    texts = read_texts(path, entry)
    return {**texts, "image": {"bytes": _read(path, entry, "image"), "path": entry["image_name"]}}


def read_texts(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of the texts of a sample. Raise `ValueError` if there is a problem with the sample."""
    if entry["problem"] is not None:
        raise ValueError(entry["problem"])
    files = {}
    for field in ("text", "table"):
        if entry[f"{field}_name"] is not None:
            files[split_name(entry[f"{field}_name"])[1]] = _read(path, entry, field)
    return text_columns(files, sample_label(path, entry))


def sample_label(path: Path, entry: dict[str, Any]) -> str:
    """Return the name of a sample for messages."""
    return f"{path}: {entry['image_name'] or entry['key']}"


def _read(path: Path, entry: dict[str, Any], field: str) -> bytes:
    at, size = entry[f"{field}_at"], entry[f"{field}_size"]
    with path.open("rb") as file:
        file.seek(at)
        data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{path}: {entry[f'{field}_name']} is truncated. The file has changed since it was opened.")
    return data


def read_rows(files: Sequence[Path], suffixes: tuple[Sequence[str], Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield the samples of tar files with the name of the file. Raise `ValueError` for one that cannot be used."""
    for path in files:
        index = index_tar(path, 0, *suffixes)
        for start in range(0, len(index), SNIFFED):
            for entry in index.slice(start, SNIFFED).to_pylist():
                yield {**read_sample(path, entry), SHARD: str(path)}


def stream(path: Path, options: SourceOptions) -> StreamSource:
    """Open tar files as a stream, with one tar file as a shard."""
    import datasets

    files = tar_files(path)
    suffixes = suffixes_of(options)
    samples = list(islice(_good_texts(files, suffixes), SNIFFED))
    if not samples:
        next(read_rows(files, suffixes), None)  # raises what is wrong with the first one
    shards = datasets.IterableDataset.from_generator(read_rows, gen_kwargs={"files": files, "suffixes": suffixes})
    columns_options = {**options.columns, "image_column": "image"}
    return StreamSource(shards, str(path), columns_of(samples), fingerprint=hash_files(files), **columns_options)


def _good_texts(files: Sequence[Path], suffixes: tuple[Sequence[str], Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield the columns of the texts of samples that can be used."""
    for path in files:
        for entry in index_tar(path, 0, *suffixes).to_pylist():
            with suppress(ValueError):
                yield read_texts(path, entry)


def load(path: Path, options: SourceOptions) -> Source:
    """Load tar files. Raise `ValueError` if there are none."""
    if not tar_files(path):
        raise ValueError(f"{path} has no .tar files.")
    warn_of_failures(path)
    return TarSource(path, options)


def fits(path: Path) -> bool:
    """Return whether there are tar files."""
    return bool(tar_files(path))


FORM = Form(
    "webdataset",
    "tar files in webdataset format (.jpg, .png or .webp with .txt or .json of the same name), or a folder of them, "
    "such as img2dataset writes",
    fits,
    load,
    stream,
)
