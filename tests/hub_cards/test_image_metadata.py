"""Metadata is removed from images; their pixels, orientation, colors, artist, and copyright notice stay."""

import io
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import ExifTags, Image, ImageCms, ImageSequence, PngImagePlugin, TiffImagePlugin, TiffTags

from fastgoal.hub_cards.image_metadata import clean_shards, count_unclean, remove_metadata
from fastgoal.processing.images import load_image

NOISE = Image.effect_noise((40, 24), 60).convert("RGB")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRET = b"SECRET-4711"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:li>SECRET-4711</rdf:li></x:xmpmeta>'
GPS = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
AUTHOR, COPYRIGHT = "An Author, Zürich", "CC BY 4.0"


def encoded(kind, image=NOISE, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif():
    """EXIF data with everything that cameras write, and a thumbnail in a second directory (IFD1)."""
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = tags[ExifTags.Base.ImageDescription] = tags[0xC62F] = SECRET.decode()
    tags[ExifTags.Base.Orientation] = 6
    tags[ExifTags.Base.Artist] = AUTHOR.encode()
    tags[ExifTags.Base.Copyright] = COPYRIGHT
    inner = tags.get_ifd(ExifTags.IFD.Exif)
    for name in ("CameraOwnerName", "BodySerialNumber", "LensSerialNumber", "ImageUniqueID"):
        inner[ExifTags.Base[name]] = SECRET.decode()
    inner[ExifTags.Base.MakerNote] = inner[ExifTags.Base.UserComment] = SECRET
    tags.get_ifd(ExifTags.IFD.GPSInfo).update(GPS)
    data = tags.tobytes()[6:]
    order = {b"MM": ">", b"II": "<"}[data[:2]]
    (first,) = struct.unpack(order + "I", data[4:8])
    end = first + 2 + 12 * struct.unpack(order + "H", data[first : first + 2])[0]
    small = encoded("JPEG", NOISE.resize((8, 8)), comment=SECRET)
    second = struct.pack(order + "H", 2)
    for tag, value in ((0x201, len(data) + 30), (0x202, len(small))):
        second += struct.pack(order + "HHII", tag, 4, 1, value)
    return data[:end] + struct.pack(order + "I", len(data)) + data[end + 4 :] + second + b"\0" * 4 + small


EXIF = exif()


def segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def riff(name, body):
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def blocks(body):
    parts = [body[start : start + 255] for start in range(0, len(body), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def moving(kind, **options):
    """Three frames, the second of them transparent."""
    frames = [Image.effect_noise((40, 24), 60).convert("RGBA") for _ in range(3)]
    frames[1].putalpha(0)
    more = {"append_images": frames[1:], "duration": [40, 80, 120], "loop": 3, "disposal": 2}
    return encoded(
        kind, frames[0], save_all=True, **(more if kind != "WEBP" else {**more, "lossless": True}), **options
    )


def deep():
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"tIME", b"\x07\xe8\1\2\3\4\5")
    values = np.random.default_rng(0).integers(0, 65536, (24, 40), dtype=np.uint16)
    return encoded("PNG", Image.fromarray(values), pnginfo=info, exif=EXIF, icc_profile=PROFILE)


FULL = {
    "JPEG": lambda: encoded("JPEG", exif=b"Exif\0\0" + EXIF, icc_profile=PROFILE, comment=SECRET, xmp=XMP),
    "progressive JPEG": lambda: encoded("JPEG", exif=b"Exif\0\0" + EXIF, icc_profile=PROFILE, progressive=True),
    "JPEG with restarts": lambda: encoded("JPEG", exif=b"Exif\0\0" + EXIF, icc_profile=PROFILE, restart_marker_rows=1),
    "CMYK JPEG": lambda: encoded("JPEG", NOISE.convert("CMYK"), exif=b"Exif\0\0" + EXIF, icc_profile=PROFILE),
    "16-bit PNG": deep,
    "PNG with a palette": lambda: encoded(
        "PNG", NOISE.quantize(8), transparency=3, exif=EXIF, icc_profile=PROFILE, dpi=(3, 4)
    ),
    "animated PNG": lambda: moving("PNG", exif=EXIF, icc_profile=PROFILE),
    "WebP": lambda: encoded("WEBP", exif=EXIF, icc_profile=PROFILE, xmp=XMP),
    "animated WebP": lambda: moving("WEBP", exif=EXIF, icc_profile=PROFILE, xmp=XMP),
    "animated GIF": lambda: moving("GIF", comment=SECRET),
}


def decoded(data):
    """The pixels of every frame, and all that says how to show them."""
    with Image.open(io.BytesIO(data)) as image:
        # Images behind the first one of a JPEG file are not part of it.
        frames = [image] if image.format in ("JPEG", "MPO") else ImageSequence.Iterator(image)
        pixels = [(frame.mode, frame.tobytes(), frame.info.get("duration")) for frame in frames]
        return pixels, [image.info.get(name) for name in ("icc_profile", "gamma", "loop", "transparency", "adobe")]


@pytest.mark.parametrize("name", FULL)
def test_pixels_colors_orientation_and_authors_stay(name):
    data = FULL[name]()
    assert SECRET in data
    clean = remove_metadata(data)
    assert SECRET not in clean
    assert decoded(clean) == decoded(data)
    assert remove_metadata(clean) == clean
    kept = {ExifTags.Base.Orientation: 6, ExifTags.Base.Copyright: COPYRIGHT}
    with Image.open(io.BytesIO(clean)) as image:
        found = dict(image.getexif())
        assert image.info.get("icc_profile") == (None if "GIF" in name else PROFILE)
    if "GIF" not in name:
        assert found.pop(ExifTags.Base.Artist).encode("latin-1").decode() == AUTHOR
        assert found == kept
        assert np.array_equal(load_image(clean), load_image(data))


JPEG, PNG, GIF = encoded("JPEG"), encoded("PNG"), encoded("GIF", NOISE.quantize(8))
WEBP = encoded("WEBP", icc_profile=PROFILE)
FRAMES = moving("WEBP")
SCANS = encoded("JPEG", progressive=True)
XAP = b"http://ns.adobe.com/xap/1.0/\0"


def after(data, place, *parts):
    return data[:place] + b"".join(parts) + data[place:]


def in_webp(*parts, data=WEBP, place=None, flags=0):
    """A WebP file with more in it, by default at its end."""
    content = bytearray(after(data, place or len(data), *parts))
    content[4:8] = struct.pack("<I", len(content) - 8)
    content[20] |= flags
    return bytes(content)


def in_frame(extra):
    start = FRAMES.index(b"ANMF")
    (size,) = struct.unpack("<I", FRAMES[start + 4 : start + 8])
    longer = FRAMES[: start + 4] + struct.pack("<I", size + len(extra)) + FRAMES[start + 8 :]
    return in_webp(extra, data=longer, place=start + 8 + size)


# A file with something hidden in it, and the file without.
HIDDEN = {
    "fill bytes before APP1": (after(JPEG, 2, b"\xff\xff\xff", segment(0xE1, SECRET)), JPEG),
    "other bytes before APP1": (after(JPEG, 20, b"\0\1\2", segment(0xE1, SECRET)), JPEG),
    "an Exif segment that is broken": (after(JPEG, 2, segment(0xE1, b"Exif\0\0MM" + SECRET)), JPEG),
    "two Exif segments": (after(JPEG, 2, *(segment(0xE1, b"Exif\0\0MM\0*" + SECRET) for _ in range(2))), JPEG),
    "XMP": (after(JPEG, 2, segment(0xE1, XAP + XMP)), JPEG),
    "XMP in UTF-16": (after(JPEG, 2, segment(0xE1, XAP + XMP.decode().encode("utf-16"))), JPEG),
    "extended XMP": (after(JPEG, 2, segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + SECRET)), JPEG),
    "IPTC in APP13": (after(JPEG, 2, segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\x10\x1c\2\x5a")), JPEG),
    "MPF in APP2": (after(JPEG, 2, segment(0xE2, b"MPF\0" + SECRET)), JPEG),
    "a thumbnail in JFIF": (
        after(JPEG[:2] + JPEG[20:], 2, segment(0xE0, JPEG[6:18] + b"\2\2" + (SECRET + b"."))), JPEG
    ),
    "a thumbnail in JFXX": (after(JPEG, 20, segment(0xE0, b"JFXX\0\x10" + SECRET)), JPEG),
    "segments of other programs": (after(JPEG, 20, *(segment(0xE3 + n, b"Ducky" + SECRET) for n in range(13))), JPEG),
    "a comment": (after(JPEG, 20, segment(0xFE, SECRET)), JPEG),
    "a segment between scans": (after(SCANS, SCANS.rindex(b"\xff\xc4"), segment(0xE1, SECRET)), SCANS),
    "an image after the end": (JPEG + FULL["JPEG"](), JPEG),
    "more than Adobe's 12 bytes": (
        after(JPEG, 20, segment(0xEE, b"Adobe\0d\0\0\0\0\1" + SECRET)),
        after(JPEG, 20, segment(0xEE, b"Adobe\0d\0\0\0\0\1")),
    ),
    "EXIF as text": (after(PNG, 33, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n" + SECRET)), PNG),
    "the text Location": (after(PNG, 33, chunk(b"tEXt", b"Location\0" + SECRET)), PNG),
    "XMP in iTXt": (after(PNG, 33, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), PNG),
    "compressed XMP in iTXt": (
        after(PNG, 33, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))), PNG
    ),
    "compressed XMP in zTXt": (after(PNG, 33, chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(XMP))), PNG),
    "a time in PNG": (after(PNG, 33, chunk(b"tIME", b"\x07\xe8\1\2\3\4\5")), PNG),
    "a chunk of other programs": (after(PNG, 33, chunk(b"prVt", SECRET)), PNG),
    "data after the end of PNG": (PNG + SECRET, PNG),
    "EXIF in WebP without its flag": (in_webp(riff(b"EXIF", SECRET)), WEBP),
    "XMP in WebP": (in_webp(riff(b"XMP ", XMP), flags=0x04), WEBP),
    "flags for what is not there": (in_webp(flags=0x0C), WEBP),
    "a chunk of other programs in WebP": (in_webp(riff(b"prVt", SECRET)), WEBP),
    "a chunk in a frame": (in_frame(riff(b"prVt", SECRET)), FRAMES),
    "data after the end of WebP": (WEBP + SECRET, WEBP),
    "a comment in GIF": (after(GIF, len(GIF) - 1, b"\x21\xfe" + blocks(SECRET * 90)), GIF),
    "XMP in GIF": (
        after(GIF, len(GIF) - 1, b"\x21\xff\x0bXMP DataXMP", XMP, b"\1", bytes(range(255, -1, -1)), b"\0"), GIF
    ),
    "text in GIF": (after(GIF, len(GIF) - 1, b"\x21\1\x0c", b"\0" * 12, blocks(SECRET)), GIF),
    "an application in GIF": (after(GIF, len(GIF) - 1, b"\x21\xff\x0bPRIVATE 1.0", blocks(SECRET)), GIF),
    "data after the end of GIF": (GIF + SECRET, GIF),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_everything_else_goes(name):
    data, plain = HIDDEN[name]
    assert data != plain
    assert remove_metadata(data) == remove_metadata(plain) == plain
    assert decoded(data)[0] == decoded(plain)[0]


def test_a_second_exif_segment_goes():
    data = after(JPEG, 2, segment(0xE1, b"Exif\0\0" + EXIF), segment(0xE1, b"Exif\0\0" + SECRET))
    assert SECRET not in remove_metadata(data)


def test_an_orientation_in_xmp_is_kept():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" photoshop:City="SECRET-4711"/></x:xmpmeta>'
    for data in (after(JPEG, 2, segment(0xE1, XAP + xmp)), in_webp(riff(b"XMP ", xmp), flags=0x04)):
        clean = remove_metadata(data)
        assert SECRET not in clean
        assert load_image(clean).size == load_image(data).size == (24, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_files_without_metadata_stay_unchanged(kind):
    data = encoded(kind)
    assert remove_metadata(data) == data


TIFF_EXIF = Image.Exif()
TIFF_EXIF[ExifTags.Base.Make] = SECRET.decode()
TIFF_EXIF[ExifTags.Base.Artist] = AUTHOR.encode()
TIFF_EXIF[ExifTags.Base.Orientation] = 6
OTHERS = {
    "TIFF": lambda: encoded("TIFF", exif=TIFF_EXIF, icc_profile=PROFILE),
    "TIFF of 16 bits": lambda: encoded(
        "TIFF", Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)), exif=TIFF_EXIF
    ),
    "TIFF in CMYK": lambda: encoded("TIFF", NOISE.convert("CMYK"), exif=TIFF_EXIF, icc_profile=PROFILE),
    "TIFF of two pages": lambda: encoded("TIFF", save_all=True, append_images=[NOISE]),
    "JPEG2000": lambda: encoded("JPEG2000", comment=SECRET),
    "PPM": lambda: b"P6\n# SECRET-4711\n1 1 255\nabc",
    "BMP": lambda: encoded("BMP") + SECRET,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_or_stored_as_png(name):
    data = OTHERS[name]()
    with pytest.raises(ValueError, match=rf"{name.split()[0]}.*`recode=True`"):
        remove_metadata(data)
    clean = remove_metadata(data, recode=True)
    assert clean.startswith(b"\x89PNG")
    assert SECRET not in clean
    assert np.array_equal(load_image(clean), load_image(data))
    with Image.open(io.BytesIO(clean)) as image:
        assert image.info.get("icc_profile") == (PROFILE if name == "TIFF" else None)
        tags = {ExifTags.Base.Artist} if ExifTags.Base.Make in Image.open(io.BytesIO(data)).getexif() else set()
        assert set(image.getexif()) == tags


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_finds_nothing_else(tmp_path):
    """A program that knows far more forms of metadata than this project."""
    files = [make() for make in (*FULL.values(), *OTHERS.values())] + [data for data, _ in HIDDEN.values()]
    paths = [tmp_path / str(index) for index in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(remove_metadata(data, recode=True))
    command = ["exiftool", "-json", "-G", "-u", "-ee", *map(str, paths)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(found) == len(files)
    allowed = {
        *("SourceFile", "EXIF:Orientation", "EXIF:Artist", "EXIF:Copyright", "JFIF:JFIFVersion"),
        *("JFIF:ResolutionUnit", "JFIF:XResolution", "JFIF:YResolution"),
        *(f"PNG:{name}" for name in ("ImageWidth", "ImageHeight", "BitDepth", "ColorType", "Compression", "Filter")),
        *(f"PNG:{name}" for name in ("Interlace", "Gamma", "Palette", "Transparency", "ProfileName")),
        *(f"PNG:{name}" for name in ("AnimationFrames", "AnimationPlays")),
        *(f"GIF:{name}" for name in ("GIFVersion", "ImageWidth", "ImageHeight", "HasColorMap", "BitsPerPixel")),
        *(f"GIF:{name}" for name in ("ColorResolutionDepth", "BackgroundColor", "AnimationIterations", "FrameCount")),
        *("GIF:Duration", "GIF:TransparentColor", "GIF:PixelAspectRatio"),
        *(f"RIFF:{name}" for name in ("ImageWidth", "ImageHeight", "WebP_Flags", "VP8Version", "AlphaIsUsed")),
        *(f"RIFF:{name}" for name in ("AlphaPreprocessing", "AlphaFiltering", "AlphaCompression")),
        *(f"RIFF:{name}" for name in ("AnimationLoopCount", "BackgroundColor", "FrameCount", "Duration")),
        *(f"RIFF:{name}" for name in ("HorizontalScale", "VerticalScale")),
    }
    groups = ("File", "ICC_Profile", "Composite", "APP14")
    for tags in found:
        others = {name for name in tags if name.partition(":")[0] not in groups and name not in allowed}
        assert others <= {"ExifTool:ExifToolVersion"}, (tags["SourceFile"], others)


def packet(encoding="utf-8"):
    """XMP with a position, as editors write it."""
    text = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="52,31.2N" exif:GPSLongitude="13,24.3E"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
    return text.encode(encoding)


def iptc():
    """A city and a place in it, as Photoshop stores them in APP13."""
    records = b"".join(b"\x1c\2" + bytes([tag]) + b"\0\x06" + b"Berlin" for tag in (90, 92))
    return b"Photoshop 3.0\x008BIM\4\4\0\0" + struct.pack(">I", len(records)) + records + b"\0" * (len(records) % 2)


def profile(name, data):
    """EXIF data as ImageMagick writes it into PNG: hexadecimal digits in compressed text."""
    digits = f"\n{name}\n{len(data):8d}\n{data.hex()}\n"
    return chunk(b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(digits.encode()))


def in_tiff(tag, value, tag_type):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag] = tag_type
    tags[tag] = value
    return encoded("TIFF", tiffinfo=tags)


def jp2(box):
    """A JPEG 2000 file with a box of a UUID behind its header."""
    return encoded("JPEG2000") + struct.pack(">I", len(box) + 8) + b"uuid" + box


JP2_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
JP2_EXIF = b"JpgTiffExif->JP2"
APP1 = segment(0xE1, b"Exif\0\0" + EXIF)
ORIENTED = Image.Exif()
ORIENTED[ExifTags.Base.Orientation] = 6
GIF_END = bytes((1, *range(255, -1, -1), 0))  # leads readers that expect blocks out of the text
POSITION = r"GPS(Latitude|Position)"
# A file, and a tag that exiftool finds in it.
POSITIONS = {
    "JPEG": (after(JPEG, 2, APP1), POSITION),
    "fill bytes before APP1": (after(JPEG, 2, b"\xff", APP1), POSITION),
    "a second Exif segment": (after(JPEG, 2, segment(0xE1, ORIENTED.tobytes()), APP1), POSITION),
    "XMP in JPEG": (after(JPEG, 2, segment(0xE1, XAP + packet())), POSITION),
    "XMP in UTF-16": (after(JPEG, 2, segment(0xE1, XAP + packet("utf-16-be"))), POSITION),
    "IPTC in JPEG": (after(JPEG, 2, segment(0xED, iptc())), "^IPTC:(City|Sub-location)"),
    "a thumbnail in IFD1": (after(JPEG, 2, APP1), "ThumbnailImage"),
    "MPF": (encoded("MPO", save_all=True, append_images=[NOISE]), "^MPF:"),
    "EXIF in PNG": (encoded("PNG", exif=EXIF), POSITION),
    "a raw profile in PNG": (after(PNG, 33, profile("exif", b"Exif\0\0" + EXIF)), POSITION),
    "XMP in iTXt": (after(PNG, 33, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet())), POSITION),
    "compressed XMP in iTXt": (
        after(PNG, 33, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet()))), POSITION
    ),
    "compressed XMP in zTXt": (
        after(PNG, 33, chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(packet()))), POSITION
    ),
    "the text Location": (after(PNG, 33, chunk(b"tEXt", b"Location\0Berlin")), "^PNG:Location"),
    "EXIF in WebP": (encoded("WEBP", exif=EXIF), POSITION),
    "XMP in WebP": (encoded("WEBP", xmp=packet()), POSITION),
    "flags of WebP": (in_webp(flags=0x0C), "^RIFF:WebP_Flags=.*XMP"),
    "XMP in GIF": (after(GIF, len(GIF) - 1, b"\x21\xff\x0bXMP DataXMP", packet(), GIF_END), POSITION),
    "EXIF in TIFF": (in_tiff(ExifTags.IFD.GPSInfo, GPS, TiffTags.LONG), POSITION),
    "XMP in TIFF": (in_tiff(700, packet(), TiffTags.BYTE), POSITION),
    "XMP in JPEG 2000": (jp2(JP2_XMP + packet()), POSITION),
    "EXIF in JPEG 2000": (jp2(JP2_EXIF + EXIF), POSITION),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_positions_that_exiftool_finds_are_gone(tmp_path):
    for number, (data, _) in enumerate(POSITIONS.values()):
        (tmp_path / f"{number}-before").write_bytes(data)
        (tmp_path / f"{number}-after").write_bytes(remove_metadata(data, recode=True))
    command = ["exiftool", "-json", "-G", "-u", "-ee", "-b", *map(str, sorted(tmp_path.iterdir()))]
    found = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    assert len(found) == 2 * len(POSITIONS)
    tags = {Path(one.pop("SourceFile")).name: [f"{tag}={value}" for tag, value in one.items()] for one in found}
    private = "|".join({tag for _, tag in POSITIONS.values()})
    for number, (name, (_, tag)) in enumerate(POSITIONS.items()):
        assert any(re.search(tag, line) for line in tags[f"{number}-before"]), (name, tags[f"{number}-before"])
        left = [line[:80] for line in tags[f"{number}-after"] if re.search(private, line)]
        assert not left, (name, left)


@pytest.mark.parametrize("name", [name for name in POSITIONS if "TIFF" in name or "2000" in name])
def test_positions_in_other_formats_are_refused(name):
    with pytest.raises(ValueError, match="`recode=True`"):
        remove_metadata(POSITIONS[name][0])


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", PNG[:20], b"<svg/>"])
def test_what_is_not_an_image_is_refused(data):
    for recode in (False, True):
        with pytest.raises(ValueError, match="cannot be read"):
            remove_metadata(data, recode)


def test_shards_are_copied_without_metadata(tmp_path):
    private, tiff = FULL["JPEG"](), OTHERS["TIFF"]()
    features = datasets.Features({"image": datasets.Image(), "file_name": datasets.Value("string")})
    for shard, images in enumerate(([private, JPEG, private], [JPEG], [JPEG, tiff])):
        rows = [{"image": {"bytes": data, "path": "a.tif"}, "file_name": f"{n}.tif"} for n, data in enumerate(images)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{shard}.parquet")
    names = [f"{shard}.parquet" for shard in range(3)]
    before = [(tmp_path / name).read_bytes() for name in names]
    assert count_unclean(tmp_path, names[:2]) == 2
    with clean_shards(tmp_path, names[:2]) as (copies, count):
        assert (count, [*copies]) == (2, ["0.parquet"])
        written = pyarrow.parquet.read_table(copies["0.parquet"])
        assert written.schema.equals(pyarrow.parquet.read_table(tmp_path / "0.parquet").schema, check_metadata=True)
        assert SECRET not in copies["0.parquet"].read_bytes()
        assert written["image"].to_pylist()[1] == {"bytes": JPEG, "path": "a.tif"}
    for work in (count_unclean, lambda *arguments: clean_shards(*arguments).__enter__()):
        with pytest.raises(ValueError, match=r"2\.parquet, row 1 \(1\.tif\): .*TIFF.*`recode=True`"):
            work(tmp_path, names)
    with clean_shards(tmp_path, names, recode=True) as (copies, count):
        assert (count, [*copies]) == (3, ["0.parquet", "2.parquet"])
        image = pyarrow.parquet.read_table(copies["2.parquet"])["image"].to_pylist()[1]
        assert (image["path"], image["bytes"]) == ("a.png", remove_metadata(tiff, recode=True))
    datasets.Dataset.from_list([{"image": None, "file_name": "none.jpg"}], features=features).to_parquet(
        tmp_path / "3.parquet"
    )
    with pytest.raises(ValueError, match=r"row 0 \(none\.jpg\): the image cannot be read"):
        count_unclean(tmp_path, ["3.parquet"], recode=True)
    assert before == [(tmp_path / name).read_bytes() for name in names]
    assert not [*tmp_path.glob(".*")]
