"""Test protocols by name: which images, which captions, in which form of the data a published number was measured.

Numbers under one dataset's name are often not comparable: three "DCI" protocols and two "Flickr30k" ones are in use.
So every protocol here has a name of its own, says what it takes, and counts the images that it found. To add one,
write its reader below the others, under `@protocol`: the commands and their help take it from there.

Imports nothing heavy, as `fastgoal evaluate --help` lists the protocols.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fastgoal.processing.data.sources import DatasetSource, Source, SourceRow, is_source, load_source

from .files import as_list, as_object, find_file, image_file, objects, parse_json, read_json, read_json_lines, text_of

Rows = Iterator[tuple[Path, list[str]]]
"""What a reader makes of a folder: image files with their captions."""


@dataclass(frozen=True)
class Protocol:
    """A named way to test.

    Attributes:
        name: As on the command line.
        title: For people.
        about: What is taken, and how a folder must look.
        images: Images that the whole protocol has; None where there is no such number.
        captions_each: Captions of an image that it takes; None for all there are.
        columns: For the protocol as a table (parquet files, a saved dataset, a Hub id): caption columns to look for.
        split: The split to take there, where it has several.
        read: Reads a folder as it is published; None for anybody's data.
    """

    name: str
    title: str
    about: str
    images: int | None = None
    captions_each: int | None = None
    columns: tuple[str, ...] = ("caption", "captions")
    split: str | None = None
    read: Callable[[Path], Rows] | None = None

    def remark(self, images: int) -> str:
        """What to say beside a result of so many images; empty where they are as many as the protocol has."""
        if self.images in (None, images):
            return ""
        return (
            f"{self.title} has {self.images:,} images and this data {images:,}: the result must not be compared with"
            " published ones."
        )


class ChosenRows(Source):
    """Some rows of a source, in the given order, with at most so many captions each."""

    def __init__(self, source: Source, rows: Sequence[int], most: int | None = None) -> None:
        super().__init__(source.name, source.columns, source.image_column, source.caption_column)
        self.source, self.rows, self.most = source, rows, most

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> SourceRow:
        row = self.source[self.rows[index]]
        return SourceRow(row.name, row.image, row.captions[: self.most], row.columns)

    def where(self, index: int) -> str:
        return self.source.where(self.rows[index])


def open_protocol(
    name: str,
    data: Any,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> Source:
    """Open the data of a protocol.

    Args:
        name: One of `PROTOCOLS`.
        data: A folder in the form in which the dataset is published (see `PROTOCOLS[name].about`), anything that
            `load_source` takes, an opened `Source`, a `datasets.Dataset`, or a list of rows, each a dict with its
            image and its captions.
        image_column: As for `load_source`; not for the published form or a `Source`, as the next two.
        caption_column: Default: the protocol's.
        split: Default: the protocol's.
        limit: Take the first rows only.
        allow_outside_files: As for `load_source`; not for the published form.

    Raises:
        ValueError: The name is unknown, the folder lacks a file, or a line of a file is not as published.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is {name!r}; it must be one of {', '.join(PROTOCOLS)}.")
    protocol = PROTOCOLS[name]
    source: Source
    if protocol.read is None:
        source = _open(data, image_column, caption_column, split, outside=allow_outside_files)
    elif isinstance(data, str | os.PathLike) and Path(data).is_dir() and not is_source(Path(data)):
        rows = [{"image": str(path), "captions": captions} for path, captions in protocol.read(Path(data))]
        if not rows:
            raise ValueError(f"{data} has no row of the protocol {name}. Expected: {protocol.about}")
        source = _open(rows, None, None, None, name=str(data))
    else:
        source = _open_table(protocol, data, image_column, caption_column, split, allow_outside_files)
    if limit is not None and limit < len(source):
        source = ChosenRows(source, range(limit))
    return source


def _open(
    data: Any,
    image_column: str | None,
    caption_column: str | None,
    split: str | None,
    name: str = "data",
    outside: bool = False,
) -> Source:
    """Any data as a source; the name is for rows that have none."""
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        return load_source(data, image_column, caption_column, split, allow_outside_files=outside)
    import datasets

    if not isinstance(data, datasets.Dataset):
        data = datasets.Dataset.from_list([dict(row) for row in data])
    return DatasetSource(data, name, image_column, caption_column)


def _open_table(
    protocol: Protocol,
    data: Any,
    image_column: str | None,
    caption_column: str | None,
    split: str | None,
    outside: bool,
) -> Source:
    """A protocol's rows from a table: the right split, the right caption column, never more captions than it has."""
    errors: list[ValueError] = []
    columns = [caption_column] if caption_column else protocol.columns
    for asked_split in [split] if split or not protocol.split else [protocol.split, None]:
        for column in columns:
            try:
                source = _open(data, image_column, column, asked_split, outside=outside)
            except ValueError as error:
                errors.append(error)
                continue
            rows: Sequence[int] = range(len(source))
            if "split" in source.columns and not split and protocol.split:
                rows = [row for row in rows if source._values(row).get("split") == protocol.split]
            return ChosenRows(source, rows, protocol.captions_each)
    # The first error is about the protocol's own split and first column: the most telling one.
    raise errors[0]


PROTOCOLS: dict[str, Protocol] = {}


def protocol(name: str, title: str, about: str, **settings: Any) -> Callable[[Callable[[Path], Rows]], Any]:
    """Register a reader of the published form; the arguments are those of `Protocol`."""

    def register(read: Callable[[Path], Rows]) -> Callable[[Path], Rows]:
        PROTOCOLS[name] = Protocol(name, title, about, read=read, **settings)
        return read

    return register


# --- readers, one for each published form -------------------------------------------------------------------------


@protocol(
    "docci",
    "DOCCI test",
    "docci_descriptions.jsonlines and images/; the test split",
    images=5000,
    captions_each=1,
    columns=("description", "caption"),
    split="test",
)
def _docci(folder: Path) -> Rows:
    """`docci_descriptions.jsonlines` has `example_id`, `split`, `image_file`, `description` (docci.py in google/docci
    on the Hub, and the download page of google.github.io/docci). The test split has 5,000 rows."""
    for where, row in read_json_lines(find_file(folder, "docci_descriptions.jsonlines")):
        if text_of(row, "split", where) == "test":
            yield image_file(folder, text_of(row, "image_file", where), "images"), [text_of(row, "description", where)]


def _dci(folder: Path, long_only: bool) -> Rows:
    """dci.tar.gz: `annotations/*.json` with `image`, `short_caption` and `extra_caption`, listed by split in
    `splits.json`; photos in `photos/` (facebookresearch/DCI, dense_image.py). Read in order of file name."""
    if not (folder / "annotations").is_dir() and (folder / "densely_captioned_images").is_dir():
        folder = folder / "densely_captioned_images"
    if not (folder / "annotations").is_dir():
        raise ValueError(f"{folder} has no folder 'annotations'. Expected the contents of dci.tar.gz and 'photos'.")
    for path in sorted((folder / "annotations").glob("*.json")):
        row = as_object(read_json(path), str(path))
        short, extra = (text_of(row, key, str(path), empty=True) for key in ("short_caption", "extra_caption"))
        image = image_file(folder, text_of(row, "image", str(path)), "photos")
        if not long_only:
            yield image, [f"{short}\n{extra}".strip()]
        elif extra:
            yield image, [extra]


@protocol(
    "dci-7805",
    "DCI, all 7,805",
    "dci.tar.gz unpacked (annotations/) and photos/; short and long caption joined",
    images=7805,
    captions_each=1,
)
def _dci_7805(folder: Path) -> Rows:
    """All of DCI, the short caption and the long one joined by a line break, as DCI's `get_extended_caption` and
    LoTLIP's evaluation do."""
    return _dci(folder, long_only=False)


@protocol(
    "dci-7602",
    "DCI, the 7,602 with a long caption",
    "dci.tar.gz unpacked (annotations/) and photos/; the long caption, images without one left out",
    images=7602,
    captions_each=1,
)
def _dci_7602(folder: Path) -> Rows:
    """DCI without the 203 images that have no long caption (FAST-GOAL, section on evaluation); the caption is
    `extra_caption`, which is what the captions of GOAL's published DCI_test.json are."""
    return _dci(folder, long_only=True)


@protocol("dci-2k", "DCI, GOAL's 2k test split", "GOAL's DCI_test.json and photos/", split="test")
def _dci_2k(folder: Path) -> Rows:
    """GOAL's split: `DCI_test.json`, a list of `filename` (a path of the authors; its last part counts) and `caption`
    (datasets/DCI_test.json in PerceptualAI-Lab/GOAL)."""
    path = find_file(folder, "DCI_test.json")
    for where, row in objects(read_json(path), str(path)):
        name = text_of(row, "filename", where).replace("\\", "/").rsplit("/", 1)[-1]
        yield image_file(folder, name, "photos", "densely_captioned_images/photos"), [text_of(row, "caption", where)]


@protocol("urban1k", "Urban1k", "image/N.jpg and caption/N.txt", images=1000, captions_each=1)
def _urban1k(folder: Path) -> Rows:
    """`image/N.jpg` and `caption/N.txt`, the caption being the first line (eval/retrieval/Urban1k.py of Long-CLIP and
    BeichenZhang/Urban1k on the Hub). In order of N."""
    if not (folder / "caption").is_dir() and (folder / "Urban1k").is_dir():
        folder = folder / "Urban1k"
    if not (folder / "caption").is_dir():
        raise ValueError(f"{folder} has no folder 'caption'. Expected 'image/N.jpg' and 'caption/N.txt'.")
    files = (folder / "caption").glob("*.txt")
    for path in sorted(files, key=lambda path: (len(path.stem), path.stem)):
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        if not lines:
            raise ValueError(f"{path} is empty; expected a caption in its first line.")
        yield image_file(folder, f"{path.stem}.jpg", "image"), [lines[0].strip()]


@protocol(
    "sharegpt4v-1k",
    "ShareGPT4V 1k",
    "share-captioner_coco_lcs_sam_1246k_1107.json, its first 1,000 entries, and the images under their paths",
    images=1000,
    captions_each=1,
)
def _sharegpt4v(folder: Path) -> Rows:
    """The first 1,000 entries of share-captioner_coco_lcs_sam_1246k_1107.json: `image`, and the caption in
    `conversations[1]["value"]`, its line breaks replaced by spaces (train/sharegpt4v.py of Long-CLIP)."""
    path = find_file(folder, "share-captioner_coco_lcs_sam_1246k_1107.json", "data")
    for where, row in islice(objects(read_json(path), str(path)), 1000):
        turns = row.get("conversations")
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[1], dict):
            raise ValueError(f"{where}: 'conversations' has no second turn; expected the caption there.")
        caption = text_of(turns[1], "value", where).replace("\n", " ")
        yield image_file(folder, text_of(row, "image", where), "", "data"), [caption]


def _karpathy(path: Path, folder: Path, *places: str) -> Rows:
    """Karpathy's splits (caption_datasets.zip): `images`, each with `filename`, for COCO `filepath`, `split`, and
    `sentences` with their `raw` text. The first five captions of the images of the test split."""
    for where, row in objects(as_object(read_json(path), str(path)).get("images"), f"{path} 'images'"):
        if text_of(row, "split", where) != "test":
            continue
        sentences = as_list(row.get("sentences"), f"{where} 'sentences'")
        captions = [text_of(as_object(sentence, where), "raw", where) for sentence in sentences]
        name = text_of(row, "filename", where)
        under = text_of(row, "filepath", where) if "filepath" in row else ""
        yield image_file(folder, name, under, *places), captions[:5]


@protocol(
    "coco-5k",
    "COCO 2014 5k (Karpathy test)",
    "dataset_coco.json (Karpathy) and val2014/; five captions an image",
    images=5000,
    captions_each=5,
    split="test",
)
def _coco_5k(folder: Path) -> Rows:
    return _karpathy(find_file(folder, "dataset_coco.json", "karpathy", "annotations"), folder, "val2014", "images")


@protocol(
    "flickr30k-1k",
    "Flickr30k 1k (Karpathy test)",
    "dataset_flickr30k.json (Karpathy) or flickr_annotations_30k.csv, and flickr30k-images/; five captions an image",
    images=1000,
    captions_each=5,
    split="test",
)
def _flickr30k_1k(folder: Path) -> Rows:
    """Karpathy's `dataset_flickr30k.json`, or the `flickr_annotations_30k.csv` that nlphuji/flickr30k has on the Hub
    (`raw`: a JSON list of captions, `split`, `filename`). Images in `flickr30k-images/` or `images/`."""
    places = ("flickr30k-images", "images", "flickr30k_images")
    table = folder / "flickr_annotations_30k.csv"
    if not table.is_file():
        yield from _karpathy(find_file(folder, "dataset_flickr30k.json", "annotations"), folder, *places)
        return
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            where = f"{table} line {number}"
            if text_of(row, "split", where) == "test":
                captions = as_list(parse_json(text_of(row, "raw", where), where), f"{where} 'raw'")
                yield image_file(folder, text_of(row, "filename", where), *places), [str(text) for text in captions][:5]


PROTOCOLS["folder"] = Protocol(
    "folder",
    "own data",
    "metadata.jsonl with file_name and caption or captions, a saved dataset, parquet files, or a Hub id",
)
