"""Positions, owners and serial numbers taken out of image files, their pixels and all else left as they are.

Cameras and phones write into their pictures where they were taken, by whose camera, and a copy in small. Nothing is
encoded anew: of JPEG, PNG and WebP only the segments with such data are written again without them, or left out.
Orientation, color profile, author and copyright stay.
"""

import io
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import ExifTags, Image

from fastgoal.processing.files import WORK_FOLDER

ROWS = 64
_PRIVATE = {
    *(ExifTags.Base.CameraOwnerName, ExifTags.Base.BodySerialNumber, ExifTags.Base.LensSerialNumber),
    *(ExifTags.Base.MakerNote, ExifTags.Base.ImageUniqueID, 0xC62F),  # the last is DNG's serial number
}
_IN_XMP = re.compile(rb"GPS|[Ss]erial|[Oo]wner|Location|City|thumbnail", re.IGNORECASE)
# Of IPTC the places: city, part of it, province, country.
_IN_IPTC = re.compile(rb"\x1c\x02[\x5a\x5c\x5f\x64\x65]")
_XMP = b"http://ns.adobe.com/x"
_EXIF = b"Exif\x00\x00"


@contextmanager
def cleaned_shards(folder: Path, names: list[str]) -> Iterator[tuple[dict[str, Path], int]]:
    """Copies of those parquet files of a folder whose images hold such data, without them; and how many images do.

    The folder's own files stay as they are; the copies are gone when the block ends.

    Raises:
        ValueError: An image holds such data in a format that they cannot be taken out of; names the row.
    """
    found: dict[str, Path] = {}
    count = 0
    with tempfile.TemporaryDirectory(prefix="push-", dir=_work(folder)) as place:
        for name in names:
            copy, images = Path(place) / f"{len(found)}.parquet", _clean(folder / name, None)
            if images:
                _clean(folder / name, copy)
                found[name], count = copy, count + images
        yield found, count


def without_private(data: bytes) -> bytes | None:
    """An encoded image without such data; None where it holds none.

    Raises:
        ValueError: It holds such data, and is neither JPEG, PNG nor WebP.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, exif = image.format, image.getexif()
            clean = _clean_exif(exif)
    except Exception:  # no image, or one whose EXIF data cannot be read: the segments are looked at all the same
        kind, clean = None, b""
    kinds = {b"\xff\xd8": _clean_jpeg, b"\x89P": _clean_png, b"RI": _clean_webp}
    cleaner = kinds.get(data[:2])
    if cleaner is None:
        if clean is not None and kind is not None:
            raise ValueError(
                f"a {kind} file holds positions, owner or serial numbers, which are taken out of JPEG, PNG and WebP "
                "alone: convert it, or take these data out yourself"
            )
        return None
    made = cleaner(data, clean)
    return None if made == data else made


def _work(folder: Path) -> Path:
    place = folder / WORK_FOLDER
    place.mkdir(exist_ok=True)
    return place


def _clean(path: Path, copy: Path | None) -> int:
    """Count the images of a file with such data, and where a copy is named write it without them."""
    count = 0
    with pyarrow.parquet.ParquetFile(path) as source:
        schema = source.schema_arrow
        writer = None if copy is None else pyarrow.parquet.ParquetWriter(copy, schema)
        columns = None if writer is not None else ["image", "file_name"]
        try:
            for batch in source.iter_batches(ROWS, columns=columns):
                rows = batch.to_pylist()
                for row in rows:
                    try:
                        clean = without_private(row["image"]["bytes"])
                    except ValueError as error:
                        raise ValueError(f"{path}, the row of {row['file_name']}: {error}.") from None
                    if clean is not None:
                        row["image"]["bytes"], count = clean, count + 1
                if writer is not None:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
        finally:
            if writer is not None:
                writer.close()
    return count


def _clean_exif(exif: Any) -> bytes | None:
    """EXIF data without what is private; None where there is nothing of it."""
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    private = exif.get_ifd(ExifTags.IFD.GPSInfo) or exif.get_ifd(ExifTags.IFD.IFD1) or _PRIVATE & {*inner, *exif}
    if not private:
        return None
    kept = Image.Exif()
    for tag, value in exif.items():
        if tag not in (*_PRIVATE, ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif, ExifTags.IFD.Interop):
            kept[tag] = value
    details = kept.get_ifd(ExifTags.IFD.Exif)
    details.update({tag: value for tag, value in inner.items() if tag not in (*_PRIVATE, ExifTags.IFD.Interop)})
    try:
        return kept.tobytes()
    except Exception:  # values that nobody can write again: the orientation is what a reader needs
        least = Image.Exif()
        least[ExifTags.Base.Orientation] = exif.get(ExifTags.Base.Orientation, 1)
        return least.tobytes()


def _clean_jpeg(data: bytes, exif: bytes | None) -> bytes:
    parts, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] not in (0xDA, 0xD9):
        length = struct.unpack(">H", data[place + 2 : place + 4])[0]
        segment, body = data[place : place + 2 + length], data[place + 4 : place + 2 + length]
        marker, place = data[place + 1], place + 2 + length
        if marker == 0xE1 and body.startswith(_EXIF):
            if exif is None:
                parts.append(segment)
            elif exif:
                content = exif if exif.startswith(_EXIF) else _EXIF + exif
                if len(content) < 65_534:
                    parts.append(b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content)
        elif not _is_private_segment(marker, body):
            parts.append(segment)
    return b"".join(parts) + data[place : _end_of_jpeg(data, place)]


def _is_private_segment(marker: int, body: bytes) -> bool:
    if marker == 0xE1:
        return body.startswith(_XMP) and _IN_XMP.search(body) is not None
    if marker == 0xED:
        return _IN_IPTC.search(body) is not None
    return marker == 0xE2 and body.startswith(b"MPF\0")  # where other pictures lie behind this one


def _end_of_jpeg(data: bytes, place: int) -> int:
    """Where the picture whose scans begin here ends: phones put others behind it."""
    while (place := data.find(b"\xff", place)) >= 0 and place + 1 < len(data):
        marker = data[place + 1]
        if marker == 0xD9:
            return place + 2
        # Within a scan there are escaped bytes and restarts; before one, segments with a length.
        if marker == 0xFF:
            place += 1
        elif marker == 0x00 or 0xD0 <= marker <= 0xD7:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def _clean_png(data: bytes, exif: bytes | None) -> bytes:
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        chunk, place = data[place : place + 12 + length], place + 12 + length
        text = kind in (b"iTXt", b"tEXt", b"zTXt")
        if kind == b"eXIf" and exif is not None:
            body = exif.removeprefix(_EXIF)
            if body:
                parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        elif not (text and _is_private_text(body)):
            parts.append(chunk)
        if kind == b"IEND":
            break
    return b"".join(parts)


def _is_private_text(body: bytes) -> bool:
    if body.startswith(b"Raw profile type"):  # EXIF data as a text
        return True
    return body.startswith(b"XML:com.adobe.xmp") and _IN_XMP.search(body) is not None


def _clean_webp(data: bytes, exif: bytes | None) -> bytes:
    parts, place, dropped = [], 12, 0
    while place + 8 <= len(data):
        kind, length = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
        body = data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
        if kind == b"EXIF" and exif is not None:
            body = exif.removeprefix(_EXIF)
            dropped |= 0 if body else 0x08
        elif kind == b"XMP " and _IN_XMP.search(body):
            body, dropped = b"", dropped | 0x04
        if body or kind not in (b"EXIF", b"XMP "):
            parts.append((kind, body))
    if parts and parts[0][0] == b"VP8X":
        flags = parts[0][1]
        parts[0] = (b"VP8X", bytes([flags[0] & ~dropped]) + flags[1:])
    chunks = b"".join(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in parts)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
