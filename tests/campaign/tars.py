"""Tar files in the webdataset format that are damaged or have hostile members."""

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .harness import Case, Kit
from .images import header, train_on
from .models import Runs, ran_nothing
from .tables import arguments

Builder = Callable[[Path, bytes], Any]
BLOCK = 512


def tar(members: dict[str, bytes], image: bytes | None = None) -> bytes:
    """Return a tar file with these members after a good sample."""
    file = io.BytesIO()
    good = {} if image is None else {"good.png": image, "good.txt": b"A red square."}
    with tarfile.open(fileobj=file, mode="w") as opened:
        for name, data in {**good, **members}.items():
            opened.addfile(info(name, len(data)), io.BytesIO(data))
    return file.getvalue()


def info(name: str, size: int = 0, **values: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in values.items():
        setattr(member, key, value)
    return member


def sample(**files: bytes) -> Builder:
    """A second sample with these files next to its image."""
    return lambda path, image: path.write_bytes(
        tar({"odd.png": image, **{f"odd.{s}": d for s, d in files.items()}}, image)
    )


def special(kind: bytes, linkname: str = "", again: bool = False, **values: Any) -> Builder:
    """A second sample with an image that is a link or another special file."""

    def build(path: Path, image: bytes) -> None:
        file = io.BytesIO(tar({}, image))
        with tarfile.open(fileobj=file, mode="a") as opened:
            opened.addfile(info("odd.png", 0, type=kind, linkname=linkname, **values))
            if again:
                opened.addfile(info("odd.png", len(image)), io.BytesIO(image))
            opened.addfile(info("odd.txt", 5), io.BytesIO(b"A cat"))
        path.write_bytes(file.getvalue())

    return build


def named(name: str) -> Builder:
    return lambda path, image: path.write_bytes(tar({f"{name}.png": image, f"{name}.txt": b"A cat sits."}, image))


def raw(change: Callable[[bytes], bytes]) -> Builder:
    two = {"odd.txt": b"A cat sits."}
    return lambda path, image: path.write_bytes(change(tar({"odd.png": image, **two}, image)))


def without_sum(data: bytes) -> bytes:
    """A header whose sum is wrong, in the middle."""
    at = data.index(b"odd.png")
    return data[:at] + b"X" + data[at + 1 :]


def size_of(value: bytes) -> Callable[[bytes], bytes]:
    """The size in the header of the second image."""

    def change(data: bytes) -> bytes:
        at = data.index(b"odd.png")
        head = bytearray(data[at : at + BLOCK])
        head[124:136] = value.ljust(12, b"\0")
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        return data[:at] + bytes(head) + data[at + BLOCK :]

    return change


def long_names(count: int) -> bytes:
    """Headers of long names, one behind the other, each for the next one."""
    head = info("././@LongLink", 2, type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    return (head + b"a\0".ljust(BLOCK, b"\0")) * count


def pax(text: bytes) -> bytes:
    record = b"%d " % len(text) + text
    return info("pax", len(record), type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT) + record.ljust(
        -(-len(record) // BLOCK) * BLOCK, b"\0"
    )


def many(path: Path, image: bytes) -> None:
    path.write_bytes(tar({f"{number}.dat": b"" for number in range(3_000)}, image))


def device(path: Path, image: bytes) -> None:
    path.symlink_to("/dev/zero")


DEEP = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
# None where the work must be done, and otherwise what the error must name.
TARS: dict[str, tuple[Builder, str | None]] = {
    "whole": (sample(txt=b"A cat sits."), None),
    "captions in JSON": (sample(json=b'{"caption": "A cat sits."}', txt=b"A cat sits."), None),
    "an empty npy": (sample(txt=b"A cat sits.", npy=b""), None),
    "an array of objects": (sample(txt=b"A cat.", npy=b"\x93NUMPY\x01\0v\0{'descr': '|O', 'shape': (1,)}"), None),
    "pickles": (sample(txt=b"A cat.", pyd=pickle.dumps(Runs()), pkl=pickle.dumps(Runs()), pth=b"x"), None),
    "an empty msgpack": (sample(txt=b"A cat.", mp=b"", cbor=b"\xff", ten=b""), None),
    "3,000 other members": (many, None),
    "no bytes": (lambda path, image: path.write_bytes(b""), "odd.tar"),
    "a text": (lambda path, image: path.write_bytes(b"hello\n" * 500), "odd.tar"),
    "zeros": (lambda path, image: path.write_bytes(bytes(20 * BLOCK)), "odd.tar|data"),
    "compressed": (raw(gzip.compress), "odd.tar"),
    "a pointer": (lambda path, image: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "odd.tar"),
    "cut in a header": (raw(lambda data: data[: data.index(b"odd.png") + 100]), "odd.tar"),
    "cut in an image": (raw(lambda data: data[: data.index(b"odd.png") + BLOCK + 50]), "odd.tar"),
    "cut at a member": (raw(lambda data: data[: data.index(b"odd.txt")]), "odd.tar"),
    "a wrong sum": (raw(without_sum), "odd.tar"),
    "a size of 8 GB": (raw(size_of(b"77777777777")), "odd.tar"),
    "a size that is none": (raw(size_of(b"zzz")), "odd.tar"),
    "a negative size": (raw(size_of(b"\xff" * 12)), "odd.tar"),
    "an endless size": (raw(size_of(b"\x80" + b"\xff" * 11)), "odd.tar"),
    "20,000 long names": (
        lambda path, image: path.write_bytes(tar({}, image)[:-10240] + long_names(20_000)),
        "odd.tar",
    ),
    "a wrong pax header": (raw(lambda data: pax(b"path=\xff\xfe") + data), "odd.tar|odd"),
    "a pax header of a size": (raw(lambda data: pax(b"size=-5\n") + data), "odd.tar"),
    "a pax header of sparse": (
        raw(lambda data: pax(b"GNU.sparse.major=1\nGNU.sparse.minor=0\n") + data),
        "odd.tar|odd",
    ),
    "a symbolic link": (special(tarfile.SYMTYPE, "../../private.png"), "odd"),
    "a hard link": (special(tarfile.LNKTYPE, "/etc/hostname"), "odd"),
    "a hard link to the good one": (special(tarfile.LNKTYPE, "good.png"), "odd"),
    "a pipe": (special(tarfile.FIFOTYPE), "odd"),
    "a device": (special(tarfile.CHRTYPE, devmajor=1, devminor=5), "odd"),
    "an unknown type": (special(b"Z"), "odd"),
    "a sparse file": (special(tarfile.GNUTYPE_SPARSE), "odd"),
    "the same twice": (
        lambda p, i: p.write_bytes(tar({"odd.png": i}, i)[:-9216] + tar({"odd.png": i, "odd.txt": b"a"})),
        "odd",
    ),
    "two images": (sample(jpg=b"x", txt=b"a"), "odd"),
    "no image": (lambda path, image: path.write_bytes(tar({"odd.txt": b"A cat."}, image)), "odd"),
    "no caption": (sample(), "odd"),
    "an empty caption": (sample(txt=b""), "odd"),
    "a caption of bytes": (sample(txt=b"\xff\xfe\x00"), "odd"),
    "not JSON": (sample(json=b"{"), "odd"),
    "deep JSON": (sample(json=DEEP), "odd"),
    "a list for JSON": (sample(json=b"[1]"), "odd"),
    "a number for a caption": (sample(json=b'{"caption": 5}', txt=b"a"), None),
    "a long number": (sample(json=b'{"caption": "a", "x": ' + b"9" * 5000 + b"}", txt=b"A cat."), "odd"),
    "NaN in JSON": (sample(json=b'{"x": NaN}', txt=b"A cat."), None),
    "an image in JSON": (sample(json=json.dumps({"image": "../../private.png"}).encode(), txt=b"A cat."), None),
    "an empty image": (lambda path, image: path.write_bytes(tar({"odd.png": b"", "odd.txt": b"a"}, image)), "odd"),
    "an image of text": (lambda path, image: path.write_bytes(tar({"odd.png": b"x", "odd.txt": b"a"}, image)), "odd"),
    "a bomb": (lambda p, i: p.write_bytes(tar({"odd.png": header(60_000, 60_000), "odd.txt": b"a"}, i)), "odd"),
    "parents": (named("../../odd"), None),
    "an absolute name": (named("/etc/odd"), None),
    "escape codes in a name": (named("odd\x1b]0;owned\x07\x1b[2J"), None),
    "bytes in a name": (named("odd\udcff\udcfe"), None),
    "line ends in a name": (named("odd\n\r\nodd"), None),
    "a long name": (named("odd/" + "x" * 60_000), None),
    "no name": (named(""), None),
    "dots": (named("a.b.c/odd.d"), None),
    "a folder": (lambda path, image: path.mkdir(), "tar"),
    "a fifo": (lambda path, image: os.mkfifo(path), "odd.tar"),
    "an endless device": (device, "odd.tar"),
    "a link out": (lambda path, image: path.symlink_to("../../private.png"), "odd.tar"),
    "a link to itself": (lambda path, image: path.symlink_to(path.name), "tar"),
}
# The members of these tars name files that do not exist here, and a command may take or refuse such names and numbers.
EITHER = {
    *("parents", "an absolute name", "escape codes in a name", "bytes in a name", "line ends in a name", "a long name"),
    *("no name", "dots", "a number for a caption", "NaN in JSON", "an image in JSON", "a sparse file"),
    *("a wrong pax header", "a pax header of a size", "a pax header of sparse", "a link out", "captions in JSON"),
    *("a long number", "two images", "the same twice", "a hard link to the good one", "an unknown type"),
}


def make(command: str, builder: Builder, folder: Path, kit: Kit) -> list[str]:
    data = folder / "data"
    data.mkdir()
    builder(data / "odd.tar", kit.picture.read_bytes())
    if command == "train":
        return train_on(kit, data, "--objective", "global", "--per_device_train_batch_size", "2")
    if command == "caption":
        return ["caption", str(data), "--output", "out", "--model", str(kit.clip), "--device", "cpu"]
    return arguments(command, kit, data)


def cases() -> Iterator[Case]:
    for name, (builder, words) in TARS.items():
        for command in ("pairs", "evaluate", "train", "stream"):
            yield Case(
                "tars",
                f"{command}: {name}",
                lambda folder, kit, command=command, builder=builder: make(command, builder, folder, kit),
                words or ".",
                either=words is None or name in EITHER,
                check=ran_nothing,
                sample=(command, name) in (("stream", "a wrong sum"), ("pairs", "a symbolic link")),
            )
