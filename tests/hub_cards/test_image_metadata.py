"""What cameras write into pictures is taken out of what is sent, and pixels, orientation and colors stay."""

import io

import datasets
import pyarrow.parquet
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from fastgoal.hub_cards.image_metadata import cleaned_shards, without_private

PICTURE = Image.effect_noise((40, 24), 60).convert("RGB")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRETS = (b"OWNER-1", b"BODY-77", b"LENS-88", b"MAKER-99")


def exif(private=True, orientation=6):
    made = Image.Exif()
    made[ExifTags.Base.Orientation] = orientation
    made[ExifTags.Base.Artist] = "An author"
    made[ExifTags.Base.Copyright] = "CC BY 4.0"
    inner = made.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.ExposureTime] = 0.01
    if private:
        inner[ExifTags.Base.CameraOwnerName] = "OWNER-1"
        inner[ExifTags.Base.BodySerialNumber] = "BODY-77"
        inner[ExifTags.Base.LensSerialNumber] = "LENS-88"
        inner[ExifTags.Base.MakerNote] = b"MAKER-99"
        made.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    return made


def encoded(kind, metadata, **options):
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, exif=metadata, icc_profile=PROFILE, **options)
    return buffer.getvalue()


KINDS = {
    "JPEG": {"quality": 90},
    "progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_private_goes_and_all_else_stays(name):
    kind = "JPEG" if name == "progressive" else name
    data = encoded(kind, exif(), **KINDS[name])
    assert all(secret in data for secret in SECRETS)
    clean = without_private(data)
    assert not any(secret in clean for secret in SECRETS)
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(clean))
    assert after.info["icc_profile"] == PROFILE
    found = after.getexif()
    assert not found.get_ifd(ExifTags.IFD.GPSInfo)
    assert (found[ExifTags.Base.Orientation], found[ExifTags.Base.Artist]) == (6, "An author")
    assert found[ExifTags.Base.Copyright] == "CC BY 4.0"
    assert float(found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime]) == 0.01
    assert ImageOps.exif_transpose(before).tobytes() == ImageOps.exif_transpose(after).tobytes()
    assert after.size == (40, 24)
    assert without_private(clean) is None  # nothing is left to take out


@pytest.mark.parametrize("name", KINDS)
def test_pictures_without_it_are_left_as_they_are(name):
    kind = "JPEG" if name == "progressive" else name
    assert without_private(encoded(kind, exif(private=False), **KINDS[name])) is None


def test_what_stands_elsewhere_in_a_file():
    place = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><exif:GPSLatitude>52,31N</exif:GPSLatitude></x:xmpmeta>'
    tagged = without_private(encoded("JPEG", b"", xmp=place))
    assert b"GPSLatitude" not in tagged
    told = PngImagePlugin.PngInfo()
    told.add_itxt("XML:com.adobe.xmp", place.decode())
    told.add_text("Comment", "a red cup")
    clean = without_private(encoded("PNG", b"", pnginfo=told))
    assert b"GPSLatitude" not in clean
    assert Image.open(io.BytesIO(clean)).text["Comment"] == "a red cup"
    assert b"GPSLatitude" not in without_private(encoded("WEBP", b"", xmp=place))
    # A second picture behind the first, as phones put there.
    behind = encoded("JPEG", b"") + encoded("JPEG", exif())
    assert b"OWNER-1" not in without_private(behind)
    assert Image.open(io.BytesIO(without_private(behind))).tobytes() == Image.open(io.BytesIO(behind)).tobytes()


def test_formats_that_cannot_be_cleaned_are_named():
    buffer = io.BytesIO()
    private = exif()
    private[ExifTags.Base.BodySerialNumber] = "BODY-77"
    PICTURE.save(buffer, "TIFF", exif=private)
    with pytest.raises(ValueError, match="a TIFF file holds positions, owner or serial numbers"):
        without_private(buffer.getvalue())
    assert without_private(b"no image") is None
    assert without_private(b"") is None


def test_shards_are_sent_as_clean_copies(tmp_path):
    private, plain = encoded("JPEG", exif()), encoded("JPEG", exif(private=False))
    features = datasets.Features({"image": datasets.Image(), "file_name": datasets.Value("string")})
    for number, images in enumerate(([private, plain, private], [plain])):
        rows = [{"image": {"bytes": data, "path": "a.jpg"}, "file_name": "a.jpg"} for data in images]
        data = datasets.Dataset.from_list(rows, features=features)
        data.to_parquet(tmp_path / f"{number}.parquet")
    before = [(tmp_path / name).read_bytes() for name in ("0.parquet", "1.parquet")]
    with cleaned_shards(tmp_path, ["0.parquet", "1.parquet"]) as (copies, count):
        assert (count, [*copies]) == (2, ["0.parquet"])
        written = pyarrow.parquet.read_table(copies["0.parquet"])
        assert written.schema.equals(pyarrow.parquet.read_table(tmp_path / "0.parquet").schema, check_metadata=True)
        assert b"OWNER-1" not in copies["0.parquet"].read_bytes()
        assert written["image"][1].as_py()["bytes"] == plain
    assert before == [(tmp_path / name).read_bytes() for name in ("0.parquet", "1.parquet")]
    assert not [*(tmp_path / ".fastgoal").iterdir()]
