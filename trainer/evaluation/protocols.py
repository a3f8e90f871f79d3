"""Test protocols by name: which images, which captions, in which form of the data a published number was measured.

Numbers under one data set's name are often not comparable: three "DCI" protocols and two "Flickr30k" ones are in use.
So every protocol here has a name of its own, says what it takes, and counts the images that it found.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgoal.processing.data.sources import Source, SourceRow, open_source


@dataclass(frozen=True)
class Protocol:
    """A named way to test.

    Attributes:
        name: As on the command line.
        title: For people.
        images: Images that the whole protocol has; None where there is no such number.
        captions: Captions that it has.
        about: What is taken, and how a folder must look.
        read: Reads a folder into `(image file, captions)` rows; None for `folder`.
        columns: For the protocol as a data set of parquet files (here or on the Hub): caption columns to look for.
        split: The split to take there, where it has several.
    """

    name: str
    title: str
    images: int | None
    captions: int | None
    about: str
    read: Callable[[Path], Iterator[tuple[Path, list[str]]]] | None = None
    columns: tuple[str, ...] = ("caption", "captions")
    split: str | None = "test"


@dataclass(frozen=True)
class Opened:
    """A protocol's data: the rows, and whether they are as many as the protocol has."""

    protocol: Protocol
    source: Source
    complete: bool

    @property
    def remark(self) -> str:
        """What to print beside a result of incomplete data; empty for complete data."""
        if self.complete:
            return ""
        return (
            f"{self.protocol.title} has {self.protocol.images:,} images and this data {len(self.source):,}: the result"
            " must not be compared with published ones."
        )


class ListSource(Source):
    """Rows that a reader has made: image files with their captions."""

    def __init__(self, name: str, rows: Sequence[tuple[Path, list[str]]]) -> None:
        super().__init__(name, ["file_name", "captions"], "file_name", "captions")
        self._rows = list(rows)

    @property
    def fingerprint(self) -> str:
        """Hash of file names, sizes and captions."""
        digest = hashlib.sha256()
        for path, captions in self._rows:
            size = path.stat().st_size if path.is_file() else -1
            digest.update(json.dumps([path.name, size, captions]).encode())
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return f"{self.name} row {index} ({self._rows[index][0].name})"

    def _values(self, index: int) -> dict[str, Any]:
        path, captions = self._rows[index]
        return {"file_name": str(path), "captions": list(captions)}

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        return Path(image).name


class _Sorted(Source):
    """Some rows of a source, in the given order; a caption column may hold more captions than the protocol takes."""

    def __init__(self, source: Source, indices: Sequence[int], most: int | None) -> None:
        super().__init__(source.name, source.columns, source.image_column, source.caption_column)
        self.source, self.indices, self.most = source, list(indices), most

    @property
    def fingerprint(self) -> str:
        key = f"{self.source.fingerprint} {self.indices} {self.most}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> SourceRow:
        row = self.source[self.indices[index]]
        return SourceRow(row.name, row.image, row.captions[: self.most], row.columns)

    def where(self, index: int) -> str:
        return self.source.where(self.indices[index])


def open_protocol(
    name: str,
    data: str,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
) -> Opened:
    """Open the data of a protocol.

    Args:
        name: One of `PROTOCOLS`.
        data: A folder in the form in which the data set is published (see `PROTOCOLS[name].about`), or anything that
            `open_source` takes: a folder with metadata.jsonl, a saved data set, a folder of parquet files, a Hub id.
        image_column: As for `open_source`; for those forms only, as the next two.
        caption_column: Default: the protocol's.
        split: Default: the protocol's.

    Raises:
        ValueError: The name is unknown, the folder lacks a file, or a line of a file is not as published.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is {name!r}; it must be one of {', '.join(PROTOCOLS)}.")
    protocol = PROTOCOLS[name]
    source: Source
    if protocol.read is not None and Path(data).is_dir() and not _is_plain(Path(data)):
        rows = list(protocol.read(Path(data)))
        if not rows:
            raise ValueError(f"{data} has no row of the protocol {name}. Expected: {protocol.about}")
        source = ListSource(data, rows)
    elif protocol.read is None:
        source = open_source(data, image_column, caption_column, split)
    else:
        source = _open_table(protocol, data, image_column, caption_column, split)
    return Opened(protocol, source, protocol.images is None or len(source) == protocol.images)


def _is_plain(folder: Path) -> bool:
    """Whether `open_source` reads the folder."""
    names = ("metadata.jsonl", "dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in names) or any(
        next(place.glob("*.parquet"), None) is not None for place in (folder, folder / "data")
    )


def _open_table(
    protocol: Protocol, data: str, image_column: str | None, caption_column: str | None, split: str | None
) -> Source:
    """A protocol's rows from a table: the right split, the right caption column, never more captions than it has."""
    errors: list[ValueError] = []
    wanted = [caption_column] if caption_column else [*protocol.columns]
    for asked_split in [split] if split or not protocol.split else [protocol.split, None]:
        for column in wanted:
            try:
                source = open_source(data, image_column, column, asked_split)
            except ValueError as error:
                errors.append(error)
                continue
            each = None
            if protocol.images and protocol.captions:
                each = protocol.captions // protocol.images
            rows = range(len(source))
            if "split" in source.columns and not split and protocol.split:
                values = [source._values(row).get("split") for row in rows]
                rows = [row for row, value in enumerate(values) if value == protocol.split]  # type: ignore[assignment]
            return _Sorted(source, rows, each)
    # The first error is about the protocol's own split and first column: the most telling one.
    raise errors[0]


# --- readers, one for each published form -------------------------------------------------------------------------


def _docci(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """`docci_descriptions.jsonlines` has `example_id`, `split`, `image_file`, `description` (docci.py in google/docci
    on the Hub, and the download page of google.github.io/docci). The test split has 5,000 rows."""
    for where, row in _json_lines(_find(folder, "docci_descriptions.jsonlines")):
        if _text(row, "split", where) == "test":
            yield _image(folder, _text(row, "image_file", where), "images"), [_text(row, "description", where)]


def _dci(folder: Path, long_only: bool) -> Iterator[tuple[Path, list[str]]]:
    """dci.tar.gz: `annotations/*.json` with `image`, `short_caption` and `extra_caption`, listed by split in
    `splits.json`; photos in `photos/` (facebookresearch/DCI, dense_image.py). Read in order of file name."""
    if not (folder / "annotations").is_dir() and (folder / "densely_captioned_images").is_dir():
        folder = folder / "densely_captioned_images"
    if not (folder / "annotations").is_dir():
        raise ValueError(f"{folder} has no folder 'annotations'. Expected the contents of dci.tar.gz and 'photos'.")
    for path in sorted((folder / "annotations").glob("*.json")):
        row = _object(_json(path), str(path))
        short, extra = (_text(row, key, str(path), empty=True) for key in ("short_caption", "extra_caption"))
        image = _image(folder, _text(row, "image", str(path)), "photos")
        if not long_only:
            yield image, [f"{short}\n{extra}".strip()]
        elif extra:
            yield image, [extra]


def _dci_7805(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """All of DCI, the short caption and the long one joined by a line break, as DCI's `get_extended_caption` and
    LoTLIP's evaluation do."""
    return _dci(folder, long_only=False)


def _dci_7602(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """DCI without the 203 images that have no long caption (FAST-GOAL, section on evaluation); the caption is
    `extra_caption`, which is what the captions of GOAL's published DCI_test.json are."""
    return _dci(folder, long_only=True)


def _dci_2k(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """GOAL's split: `DCI_test.json`, a list of `filename` (a path of the authors; its last part counts) and `caption`
    (datasets/DCI_test.json in PerceptualAI-Lab/GOAL)."""
    path = _find(folder, "DCI_test.json")
    for number, value in enumerate(_list(_json(path), str(path))):
        where = f"{path} entry {number}"
        row = _object(value, where)
        name = _text(row, "filename", where).replace("\\", "/").rsplit("/", 1)[-1]
        yield _image(folder, name, "photos", "densely_captioned_images/photos"), [_text(row, "caption", where)]


def _urban1k(folder: Path) -> Iterator[tuple[Path, list[str]]]:
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
        yield _image(folder, f"{path.stem}.jpg", "image"), [lines[0].strip()]


def _sharegpt4v(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The first 1,000 entries of share-captioner_coco_lcs_sam_1246k_1107.json: `image`, and the caption in
    `conversations[1]["value"]`, its line breaks replaced by spaces (train/sharegpt4v.py of Long-CLIP)."""
    path = _find(folder, "share-captioner_coco_lcs_sam_1246k_1107.json", "data")
    for number, value in enumerate(_list(_json(path), str(path))[:1000]):
        where = f"{path} entry {number}"
        row = _object(value, where)
        turns = row.get("conversations")
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[1], dict):
            raise ValueError(f"{where}: 'conversations' has no second turn; expected the caption there.")
        caption = _text(turns[1], "value", where).replace("\n", " ")
        yield _image(folder, _text(row, "image", where), "", "data"), [caption]


def _karpathy(path: Path, folder: Path, *places: str) -> Iterator[tuple[Path, list[str]]]:
    """Karpathy's splits (caption_datasets.zip): `images`, each with `filename`, for COCO `filepath`, `split`, and
    `sentences` with their `raw` text. The first five captions of the images of the test split."""
    for number, value in enumerate(_list(_object(_json(path), str(path)).get("images"), f"{path} 'images'")):
        where = f"{path} image {number}"
        row = _object(value, where)
        if _text(row, "split", where) != "test":
            continue
        sentences = _list(row.get("sentences"), f"{where} 'sentences'")
        captions = [_text(_object(sentence, where), "raw", where) for sentence in sentences]
        name = _text(row, "filename", where)
        under = _text(row, "filepath", where) if "filepath" in row else ""
        yield _image(folder, name, under, *places), captions[:5]


def _coco_5k(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    return _karpathy(_find(folder, "dataset_coco.json", "karpathy", "annotations"), folder, "val2014", "images")


def _flickr30k_1k(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Karpathy's `dataset_flickr30k.json`, or the `flickr_annotations_30k.csv` that nlphuji/flickr30k has on the Hub
    (`raw`: a JSON list of captions, `split`, `filename`). Images in `flickr30k-images/` or `images/`."""
    places = ("flickr30k-images", "images", "flickr30k_images")
    table = folder / "flickr_annotations_30k.csv"
    if not table.is_file():
        yield from _karpathy(_find(folder, "dataset_flickr30k.json", "annotations"), folder, *places)
        return
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            where = f"{table} line {number}"
            if _text(row, "split", where) == "test":
                captions = _list(_parse(_text(row, "raw", where), where), f"{where} 'raw'")
                yield _image(folder, _text(row, "filename", where), *places), [str(text) for text in captions][:5]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "docci",
            "DOCCI test",
            5000,
            5000,
            "docci_descriptions.jsonlines and images/; the 5,000 images of the test split",
            _docci,
            ("description", "caption"),
        ),
        Protocol(
            "dci-7805",
            "DCI, all 7,805",
            7805,
            7805,
            "dci.tar.gz unpacked (annotations/) and photos/; short and long caption joined",
            _dci_7805,
            split=None,
        ),
        Protocol(
            "dci-7602",
            "DCI, the 7,602 with a long caption",
            7602,
            7602,
            "dci.tar.gz unpacked (annotations/) and photos/; the long caption, images without one left out",
            _dci_7602,
            split=None,
        ),
        Protocol(
            "dci-2k",
            "DCI, GOAL's 2k test split",
            None,
            None,
            "GOAL's DCI_test.json and photos/",
            _dci_2k,
        ),
        Protocol("urban1k", "Urban1k", 1000, 1000, "image/N.jpg and caption/N.txt", _urban1k, split=None),
        Protocol(
            "sharegpt4v-1k",
            "ShareGPT4V 1k",
            1000,
            1000,
            "share-captioner_coco_lcs_sam_1246k_1107.json, its first 1,000 entries, and the images under their paths",
            _sharegpt4v,
            split=None,
        ),
        Protocol(
            "coco-5k",
            "COCO 2014 5k (Karpathy test)",
            5000,
            25000,
            "dataset_coco.json (Karpathy) and val2014/; five captions an image",
            _coco_5k,
        ),
        Protocol(
            "flickr30k-1k",
            "Flickr30k 1k (Karpathy test)",
            1000,
            5000,
            "dataset_flickr30k.json (Karpathy) or flickr_annotations_30k.csv, and flickr30k-images/; five captions",
            _flickr30k_1k,
        ),
        Protocol(
            "folder",
            "own data",
            None,
            None,
            "metadata.jsonl with file_name and caption or captions, a saved data set, parquet files, or a Hub id",
            split=None,
        ),
    )
}


# --- reading files ------------------------------------------------------------------------------------------------


def _find(folder: Path, name: str, *places: str) -> Path:
    for place in ("", *places):
        if (folder / place / name).is_file():
            return folder / place / name
    raise ValueError(f"{folder} has no file {name}. Download it into this folder, or check --data and --protocol.")


def _image(folder: Path, name: str, *places: str) -> Path:
    """The image's file in the first of some sub-folders that has it. Only names inside of the folder are followed."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or any(".." in Path(place).parts for place in places):
        raise ValueError(f"the image {name!r} leads out of {folder}; expected a path inside it.")
    for place in (*places, ""):
        if (folder / place / relative).is_file():
            return folder / place / relative
    return folder / (places[0] if places else "") / relative  # loading it gives an error that names it


def _json(path: Path) -> Any:
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}.") from None


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path} line {number}"
                yield where, _object(_parse(line, where), where)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; expected a JSON object.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is a {type(value).__name__}; expected a JSON list.")
    return value


def _text(row: dict[str, Any], key: str, where: str, empty: bool = False) -> str:
    value = row.get(key)
    if empty and value is None:
        return ""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{where}: {key!r} is {value!r}; expected text. The row has {sorted(map(str, row))}.")
    return value.strip()
