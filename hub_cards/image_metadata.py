"""Remove the metadata of encoded images without encoding them again.

Cameras and editors write positions, names, serial numbers, previews, and histories into image files. A JPEG, PNG, WebP,
or GIF file is rebuilt here from the parts that decoding needs (pixels, tables, color, transparency, animation), the ICC
profile, and new EXIF data with the orientation, the artist, and the copyright notice. Everything else is dropped,
whether this module knows it or not.
"""

import io
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import ExifTags, Image, UnidentifiedImageError

from fastgoal.processing.images import load_image

ROWS = 64  # rows of a file in memory at once
LONGEST_TEXT = 30_000  # characters of an artist or a copyright notice: both fit into one segment of a JPEG file
_PNG = b"\x89PNG"

# Decoders skip everything between a segment and the next marker. In a scan, only these markers are its end.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
_JPEG_SCAN_END = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_JPEG_SCAN, _JPEG_END, _JPEG_JFIF, _JPEG_EXIF, _JPEG_ICC, _JPEG_ADOBE = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE
_JPEG_TABLES = {*range(0xC0, 0xD0), *range(0xDA, 0xE0)} - {0xC8}  # frames, scans, and what they are decoded with
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a body
_PNG_CHUNKS = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"),
    *(b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"cICP", b"sBIT", b"mDCV", b"cLLI"),
}
_WEBP_FRAME = {b"ALPH", b"VP8 ", b"VP8L"}
_WEBP_CHUNKS = {*_WEBP_FRAME, b"VP8X", b"ICCP", b"ANIM", b"ANMF"}
_WEBP_ICC, _WEBP_ALPHA, _WEBP_EXIF, _WEBP_ANIMATION = 0x20, 0x10, 0x08, 0x02
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END, _GIF_CONTROL, _GIF_APPLICATION = 0x2C, 0x21, 0x3B, 0xF9, 0xFF
_GIF_APPLICATIONS = {b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012"}  # number of loops, and the ICC profile
_TIFF_TAGS = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 292, 293, 296, 301),
    *(315, 317, 318, 319, 320, 322, 323, 324, 325, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532, 33432, 34675),
}


@contextmanager
def clean_shards(folder: Path, names: Sequence[str], recode: bool = False) -> Iterator[tuple[dict[str, Path], int]]:
    """Copy the parquet files that hold images with metadata, without that metadata.

    The files of the folder stay unchanged, and the copies are deleted when the block ends.

    Args:
        folder: Folder of the files.
        names: Paths of the files inside the folder.
        recode: See `remove_metadata`.

    Yields:
        The paths of the copies by name, and the number of images that differ in them.

    Raises:
        ValueError: The metadata of an image cannot be removed. The message names the file and the row.
    """
    copies: dict[str, Path] = {}
    total = 0
    with tempfile.TemporaryDirectory(prefix=".push-", dir=folder) as drafts:
        for name in names:
            copy, cleaned = Path(drafts) / f"{len(copies)}.parquet", 0
            with pyarrow.parquet.ParquetWriter(copy, pyarrow.parquet.read_schema(folder / name)) as writer:
                for batch, changed in _clean_batches(folder / name, recode):
                    writer.write_batch(batch)
                    cleaned += changed
            if cleaned:
                copies[name], total = copy, total + cleaned
        yield copies, total


def count_unclean(folder: Path, names: Sequence[str], recode: bool = False) -> int:
    """Return how many images `clean_shards` would change, with the same arguments and errors."""
    return sum(changed for name in names for _, changed in _clean_batches(folder / name, recode))


def remove_metadata(data: bytes, recode: bool = False) -> bytes:
    """Return an encoded image without its metadata, or the same bytes if it has none.

    JPEG, PNG, WebP, and GIF files decode to the same pixels as before. TIFF files of one page and BMP files pass if
    they hold nothing but the image.

    Args:
        data: The encoded image.
        recode: Return an image in any other format as a PNG file of the pixels that `load_image` reads, instead of
            refusing it.

    Raises:
        ValueError: The data is not an image, or is in another format and `recode` is false.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            file_format, mode, profile = image.format or "", image.mode, image.info.get("icc_profile")
            exif = _kept_exif(image)
            if file_format in _REBUILD:
                return _REBUILD[file_format](data, exif.tobytes() if exif else b"")
            if _is_bare(image, data):
                return data
    except Exception as error:  # broken files make PIL raise nearly anything
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"the image cannot be read: {reason}. Make the pairs again without this image") from None
    if not recode:
        raise ValueError(
            f"metadata can be removed from JPEG, PNG, WebP, and GIF files, and this is a file of format {file_format}. "
            "Convert it, or use `recode=True` to send a PNG copy of its pixels"
        )
    exif.pop(ExifTags.Base.Orientation, None)  # `load_image` turns the image
    buffer = io.BytesIO()
    # The profile of another color space does not describe RGB.
    load_image(data).save(buffer, "PNG", exif=exif, icc_profile=profile if mode in ("RGB", "RGBA") else None)
    return buffer.getvalue()


def _clean_batches(path: Path, recode: bool) -> Iterator[tuple[pyarrow.RecordBatch, int]]:
    """Read a file in batches without the metadata of their images; yield each with the number of changed images."""
    first = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            images, names, changed = batch["image"].to_pylist(), batch["file_name"].to_pylist(), 0
            for row, (image, name) in enumerate(zip(images, names, strict=True), first):
                try:
                    clean = remove_metadata((image or {}).get("bytes") or b"", recode)
                except ValueError as error:
                    raise ValueError(f"{path}, row {row} ({name}): {error}.") from None
                if clean != image["bytes"]:
                    changed += 1
                    image["bytes"] = clean
                    if image["path"] and clean.startswith(_PNG):
                        image["path"] = str(Path(image["path"]).with_suffix(".png"))
            first += len(images)
            place = batch.schema.get_field_index("image")
            field = batch.schema.field(place)
            yield batch.set_column(place, field, pyarrow.array(images, field.type)), changed


def _kept_exif(image: Image.Image) -> Image.Exif:
    """Return the orientation that PIL applies to an image, with the artist and the copyright notice."""
    kept = Image.Exif()
    with suppress(Exception):  # EXIF data that cannot be read: PIL does not turn the image either
        found = image.getexif()
        if found.get(ExifTags.Base.Orientation) in range(2, 9):
            kept[ExifTags.Base.Orientation] = found[ExifTags.Base.Orientation]
        for tag in (ExifTags.Base.Artist, ExifTags.Base.Copyright):
            if isinstance(text := found.get(tag), str) and 0 < len(text.strip()) <= LONGEST_TEXT:
                kept[tag] = text.encode("latin-1")  # the bytes that PIL read, in whichever encoding they are
    return kept


def _is_bare(image: Image.Image, data: bytes) -> bool:
    """Return whether a file that cannot be rebuilt holds nothing but one image."""
    if image.format == "TIFF":
        return getattr(image, "n_frames", 1) == 1 and _TIFF_TAGS.issuperset(getattr(image, "tag_v2", ()))
    return image.format == "BMP" and len(data) <= int.from_bytes(data[2:6], "little")


def _jpeg(data: bytes, exif: bytes) -> bytes:
    jfif, parts, place = b"", [], 2
    while marker := _JPEG_MARKER.search(data, place):
        code, place = marker[1][0], marker.end()
        if code in _JPEG_ALONE:
            continue
        if code == _JPEG_END:
            break
        end = place + int.from_bytes(data[place : place + 2], "big")
        body, place = data[place + 2 : end], end
        if code == _JPEG_JFIF and body.startswith(b"JFIF\0") and len(body) >= 14:
            jfif = _jpeg_segment(code, body[:12] + b"\0\0")  # a thumbnail of 0 x 0 pixels
        elif code == _JPEG_ADOBE and body.startswith(b"Adobe"):
            parts.append(_jpeg_segment(code, body[:12]))
        elif code in _JPEG_TABLES or (code == _JPEG_ICC and body.startswith(b"ICC_PROFILE\0")):
            parts.append(_jpeg_segment(code, body))
        if code == _JPEG_SCAN:
            scan_end = _JPEG_SCAN_END.search(data, end)
            place = scan_end.start() if scan_end else len(data)
            parts.append(data[end:place])
    return b"".join([data[:2], jfif, _jpeg_segment(_JPEG_EXIF, exif) if exif else b"", *parts, b"\xff\xd9"])


def _jpeg_segment(code: int, body: bytes) -> bytes:
    return bytes((0xFF, code)) + (len(body) + 2).to_bytes(2, "big") + body


def _png(data: bytes, exif: bytes) -> bytes:
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        name, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4], "big")
        if name in _PNG_CHUNKS:
            parts.append(data[place:end])
        if name == b"IHDR" and exif:
            chunk = b"eXIf" + exif.removeprefix(b"Exif\0\0")
            parts.append((len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big"))
        if name == b"IEND":
            break
        place = end
    return b"".join(parts)


def _webp(data: bytes, exif: bytes) -> bytes:
    chunks = []
    for name, body in _riff_chunks(data[12 : 8 + int.from_bytes(data[4:8], "little")]):
        if name == b"ANMF":
            frame = [chunk for chunk in _riff_chunks(body[16:]) if chunk[0] in _WEBP_FRAME]
            body = body[:16] + b"".join(_riff_chunk(*chunk) for chunk in frame)
        if name in _WEBP_CHUNKS:
            chunks.append((name, body))
    if chunks and chunks[0][0] == b"VP8X":
        header = chunks[0][1]
        flags = header[0] & (_WEBP_ALPHA | _WEBP_ANIMATION)
        flags |= _WEBP_ICC if any(name == b"ICCP" for name, _ in chunks) else 0
        if exif:
            flags |= _WEBP_EXIF
            chunks.append((b"EXIF", exif.removeprefix(b"Exif\0\0")))
        chunks[0] = (b"VP8X", bytes((flags, 0, 0, 0)) + header[4:10])
    content = b"WEBP" + b"".join(_riff_chunk(*chunk) for chunk in chunks)
    return _riff_chunk(b"RIFF", content)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)


def _gif(data: bytes, exif: bytes) -> bytes:
    place = 13 + _gif_colors(data[10])
    parts = [data[:place]]
    while place < len(data) and data[place] != _GIF_END:
        start, block = place, data[place]
        if block == _GIF_IMAGE:
            place += 11 + _gif_colors(data[place + 9])
            is_kept = True
        elif block == _GIF_EXTENSION:
            place += 2
            is_application = data[start + 1] == _GIF_APPLICATION and data[start + 3 : start + 14] in _GIF_APPLICATIONS
            is_kept = is_application or data[start + 1] == _GIF_CONTROL
        else:  # decoders skip what is not a block
            place += 1
            continue
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
        if is_kept:
            parts.append(data[start:place])
    return b"".join(parts) + data[place : place + 1]


def _gif_colors(flags: int) -> int:
    """Return the bytes of the color table that follows a block with these flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


_REBUILD: dict[str, Callable[[bytes, bytes], bytes]] = {
    **{"JPEG": _jpeg, "MPO": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif},
}
