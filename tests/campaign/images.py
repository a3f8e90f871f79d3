"""Images that are broken, hostile or unusual, in every command that reads images."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow.parquet
from PIL import Image

from tests.hub_cards.test_image_metadata import FULL, HIDDEN, OTHERS, POSITIONS, SECRET
from tests.squares import rows_of_squares, write_pairs

from .harness import Case, Kit

Maker = Callable[[Path], None]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def content(data: bytes) -> Maker:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    return None


def link(target: str) -> Maker:
    return lambda path: path.symlink_to(path.parent / target)


def header(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


NOISE = Image.effect_noise((64, 48), 80).convert("RGB")
JPEG = encoded(NOISE, "JPEG")
EXIF = Image.Exif()
EXIF[0x0112] = 6
FRAMES = [NOISE, NOISE.rotate(90)]
BROKEN: dict[str, Maker] = {
    "empty": content(b""),
    "text": content(b"I am a text"),
    "html": content(b"<html><script>alert(1)</script></html>"),
    "svg": content(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
    "cut jpeg": content(JPEG[: len(JPEG) // 2]),
    "jpeg header": content(JPEG[:20]),
    "cut png": content(encoded(NOISE)[:90]),
    "broken png": content(encoded(NOISE)[:60] + b"\0" * 400),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "link out": link("../../private.png"),
    "link to nothing": link("nothing.png"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "20000 x 1": content(encoded(Image.new("1", (20_000, 1)))),
    "1 x 65000": content(encoded(Image.new("1", (1, 65_000)))),
    "bomb": content(header(60_000, 60_000)),
    "no width": content(header(0, 5)),
    "huge header": content(header(2**31 - 1, 2**31 - 1)),
    "pickle": content(b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94\x93."),
    "npy": content(b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
    "eps": content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n%%EOF"),
}
WHOLE: dict[str, Maker] = {
    "1 x 1": content(encoded(Image.new("RGB", (1, 1)))),
    "cmyk": content(encoded(NOISE.convert("CMYK"), "JPEG")),
    "16 bit": content(encoded(Image.new("I;16", (30, 20), 40_000))),
    "grey alpha": content(encoded(NOISE.convert("LA"))),
    "palette": content(encoded(NOISE.convert("P"), transparency=3)),
    "1 bit": content(encoded(NOISE.convert("1"))),
    "gif": content(encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])),
    "webp": content(encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:])),
    "turned": content(encoded(NOISE, "JPEG", exif=EXIF.tobytes())),
    "broken exif": content(JPEG[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + JPEG[2:]),
    "panorama": content(encoded(Image.new("RGB", (4000, 40)), "JPEG")),
    "tail": content(JPEG + b"PK\x03\x04 something behind"),
}


def data_folder(folder: Path, kit: Kit, make: Maker, name: str = "odd.png") -> Path:
    """A folder with a good picture and an odd one."""
    data = folder / "data"
    data.mkdir()
    (data / "good.png").write_bytes(kit.picture.read_bytes())
    make(data / name)
    rows = [{"file_name": each, "caption": f"A red square. A green one, {each}."} for each in ("good.png", name)]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def pairs(folder: Path, kit: Kit, make: Maker) -> list[str]:
    data = data_folder(folder, kit, make)
    return ["pairs", str(data), "--output", "out", "--model", str(kit.clip), "--detector", "none", "--device", "cpu"]


def skipped(folder: Path, kit: Kit, make: Maker) -> list[str]:
    return [*pairs(folder, kit, make), "--on-error", "skip"]


def evaluate(folder: Path, kit: Kit, make: Maker) -> list[str]:
    data = data_folder(folder, kit, make)
    return ["evaluate", "--model", str(kit.clip), "--data", str(data), "--device", "cpu", "--output", "report.json"]


def search(folder: Path, kit: Kit, make: Maker) -> list[str]:
    data = data_folder(folder, kit, make)
    return ["search", str(data), "a red square", "--model", str(kit.clip), "--device", "cpu", "--html", "found.html"]


def explain(folder: Path, kit: Kit, make: Maker) -> list[str]:
    (folder / "data").mkdir()
    make(folder / "data" / "odd.png")
    arguments = ["--image", "data/odd.png", "--caption", "A red square.", "--html", "o.html", "--device", "cpu"]
    return ["explain", "--model", str(kit.clip), *arguments]


def train(folder: Path, kit: Kit, make: Maker) -> list[str]:
    data = data_folder(folder, kit, make)
    return train_on(kit, data, "--objective", "global", "--per_device_train_batch_size", "2")


def train_on(kit: Kit, data: Path, *more: str) -> list[str]:
    """A training of a step on the CPU."""
    common = ["--max_steps", "1", "--use_cpu", "--dataloader_num_workers", "0", "--report_to", "none"]
    quick = ["--card_images", "false", "--save_strategy", "no", "--max_text_length", "77", "--output_dir", "trained"]
    return ["train", "--model", str(kit.clip), "--train_data", str(data), *common, *quick, *more]


def private_rows(data: bytes) -> Callable[[Path, Kit], Callable[[], object]]:
    """Plan the push of a dataset of one image that holds metadata, and look for it in the copies to be sent."""

    def make(folder: Path, kit: Kit) -> Callable[[], object]:
        row = {**rows_of_squares()[0], "image": {"bytes": data, "path": "odd.jpg"}}
        write_pairs([row], folder / "pairs" / "data")
        (folder / "pairs" / "fastgoal_pairs.json").write_text('{"summary": {"images": 1}}')
        (folder / "pairs" / "README.md").write_text("# Squares")

        def ask() -> None:
            from fastgoal.cli import main
            from fastgoal.hub_cards.image_metadata import clean_shards

            shards = [path.relative_to(folder / "pairs").as_posix() for path in folder.rglob("*.parquet")]
            before = sorted(folder.rglob("*"))
            planned = main(["push", str(folder / "pairs"), "me/pairs", "--dry-run"])
            assert planned in (0, 2), planned
            assert main(["push", str(folder / "pairs"), "me/pairs", "--dry-run", "--recode"]) == 0
            assert sorted(folder.rglob("*")) == before, "a dry run wrote a file"
            for recode in (False, True)[planned // 2 :]:
                with clean_shards(folder / "pairs", shards, recode) as (copies, _):
                    for shard in shards:
                        table = pyarrow.parquet.read_table(copies.get(shard, folder / "pairs" / shard))
                        sent = table["image"].to_pylist()[0]["bytes"]
                        assert not any(word in sent for word in PRIVATE_WORDS), "metadata would be sent"

        return ask

    return make


def lists_one(folder: Path, output: str) -> None:
    rows = sum(len(datasets.Dataset.from_parquet(str(path))) for path in (folder / "out").rglob("*.parquet"))
    assert rows == 1, rows
    assert "1 skipped" in output


COMMANDS = {"pairs": pairs, "evaluate": evaluate, "search": search, "explain": explain, "train": train}
SAMPLE = {
    ("pairs", "pipe"),
    ("pairs", "link out"),
    ("search", "device"),
    ("explain", "20000 x 1"),
    ("train", "cut jpeg"),
}


PRIVATE_WORDS = (SECRET, b"GPSLatitude", b"G\0P\0S\0L", b"Berlin", b"8BIM", b"MPF\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x0f")


def cases() -> Iterator[Case]:
    for command, arguments in COMMANDS.items():
        for name, make in {**BROKEN, **WHOLE}.items():
            named = command == "explain" and name == "link out"  # by the user, who may show what they like
            words = None if name in WHOLE or named else "odd.png"
            yield Case(
                "images",
                f"{command}: {name}",
                lambda folder, kit, arguments=arguments, make=make: arguments(folder, kit, make),
                words,
                either=command == "search",  # which lists what it cannot read, and finds the others
                sample=(command, name) in SAMPLE,
            )
    forms = {name: make() for name, make in {**FULL, **OTHERS}.items()}
    forms |= {f"with {name}": data for name, (data, _) in {**HIDDEN, **POSITIONS}.items()}
    for name, data in forms.items():
        yield Case("image metadata", name, private_rows(data), sample=name == "with XMP in GIF")
    for name, make in BROKEN.items():
        yield Case(
            "images",
            f"pairs, skipping: {name}",
            lambda folder, kit, make=make: skipped(folder, kit, make),
            check=lists_one,
            sample=name == "bomb",
        )
