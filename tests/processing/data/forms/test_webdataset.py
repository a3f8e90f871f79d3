"""Tar files: the samples that `webdataset` writes, and files that are damaged or point elsewhere."""

import io
import json
import tarfile

import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source, open_stream, recognize
from fastgoal.processing.images import load_image


def jpeg(level=0):
    file = io.BytesIO()
    Image.new("RGB", (16, 8), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, *members):
    """Write members, each a name with its content, or a `TarInfo`."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            name, content = (member, b"") if isinstance(member, tarfile.TarInfo) else member
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def streamed(path, **options):
    source = open_stream(path, **options)
    return [source.row(0, dict(values)) for values in source.dataset]


@pytest.mark.parametrize("form", ["txt", "json"])
def test_rows_that_webdataset_wrote_are_those_that_it_reads(tmp_path, form):
    webdataset = pytest.importorskip("webdataset", reason="the extra dev has it")
    (tmp_path / "tars").mkdir()
    texts = [f"Image {number} is grey. 灰色 {'long ' * number}" for number in range(7)]
    with webdataset.ShardWriter(str(tmp_path / "tars/%06d.tar"), maxcount=3, verbose=0) as writer:
        for number, text in enumerate(texts):
            caption = {"txt": text} if form == "txt" else {"json": {"caption": text, "other": [number]}}
            # A name of more than 100 characters is in a header of its own.
            key = f"folder.d/{'long' * 30 if number == 4 else ''}sample{number}"
            writer.write({"__key__": key, ("png" if number == 2 else "jpg"): Image.new("RGB", (9, 8)), **caption})
    shards = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    theirs = [
        (sample["__key__"], sample.get("jpg") or sample["png"], sample[form].decode())
        for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    ]
    source = load_source(tmp_path / "tars")
    assert recognize(tmp_path / "tars").name == "webdataset"
    for rows in (list(source), streamed(tmp_path / "tars")):
        assert [(row.name.rpartition(".")[0], row.image["bytes"]) for row in rows] == [row[:2] for row in theirs]
        expected = [(text if form == "txt" else json.loads(text)["caption"]).strip() for *_, text in theirs]
        assert [row.caption for row in rows] == expected == [text.strip() for text in texts]
    assert source.captions(range(7)) == expected
    assert form == "txt" or source[3].columns["other"] == [3]


def test_members_of_a_sample_need_not_follow_each_other(tmp_path):
    write_tar(tmp_path / "a.tar", ("1.jpg", jpeg(40)), ("2.JPG", jpeg(80)), ("2.txt", b"Two."), ("1.txt", b"One."))
    rows = list(load_source(tmp_path / "a.tar"))
    assert [(row.name, row.caption, load_image(row.image).getpixel((4, 4))[0]) for row in rows] == [
        ("1.jpg", "One.", 40),
        ("2.JPG", "Two.", 80),
    ]


def test_columns_name_suffixes_and_keys(tmp_path):
    members = [("1.a.jpg", jpeg(40)), ("1.b.jpg", jpeg(80)), ("1.txt", b"Short."), ("1.long.txt", b"Long.")]
    write_tar(tmp_path / "a.tar", *members, ("1.json", b'{"story": "Tale."}'))
    for suffix, level in (("a.jpg", 40), ("b.jpg", 80)):
        row = load_source(tmp_path, image_column=suffix)[0]
        assert load_image(row.image).getpixel((4, 4))[0] == level
    for column, text in ((None, "Short."), ("long.txt", "Long."), ("story", "Tale.")):
        assert load_source(tmp_path, image_column="a.jpg", caption_column=column)[0].caption == text
        assert streamed(tmp_path, image_column="a.jpg", caption_column=column)[0].caption == text
    with pytest.raises(ValueError, match=r"`caption_column` .*'tale'"):
        load_source(tmp_path, image_column="a.jpg", caption_column="tale")


def link(name, target, type=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.txt", b"One."), link("1.jpg", "/etc/passwd")], "a.tar: 1: 1.jpg is a link .*not followed"),
        ([("1.jpg", jpeg()), link("1.txt", "../secret.txt")], "a.tar: 1: 1.txt is a link .*not followed"),
        ([("1.jpg", jpeg()), link("1.txt", "0.txt", tarfile.LNKTYPE)], "a.tar: 1: 1.txt is a link .*not followed"),
        ([("1.jpg", jpeg()), link("1.txt", "", tarfile.FIFOTYPE)], "a.tar: 1: 1.txt is a link or another special"),
        ([("1.jpg", jpeg()), ("1.txt", b"One."), ("1.jpg", jpeg())], "a.tar: 1: 1.jpg exists twice"),
        ([("1.txt", b"One.")], r"a.tar: 1: the sample has no image \(jpg, "),
        ([("1.jpg", jpeg()), ("1.png", jpeg()), ("1.txt", b"One.")], "two images, 1.jpg and 1.png.*`image_column`"),
    ],
)
def test_samples_that_are_known_to_be_broken(tmp_path, members, words):
    write_tar(tmp_path / "a.tar", ("0.jpg", jpeg()), ("0.txt", b"Nil."), *members)
    source = load_source(tmp_path)
    assert source[0].caption == "Nil."
    assert list(source.problems) == [1]
    for read in (lambda: source[1], lambda: source.captions([1]), lambda: streamed(tmp_path)):
        with pytest.raises(ValueError, match=words) as error:
            read()
        assert str(error.value) == source.problems[1]
    assert str(tmp_path / "a.tar") in source.label(1)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.jpg", jpeg())], r"a.tar: 1.jpg: there is no 'txt'"),
        ([("1.jpg", jpeg()), ("1.txt", b" \n")], r"a.tar: 1.jpg: 'txt' is an empty caption"),
        ([("1.jpg", jpeg()), ("1.txt", b"\xff")], r"a.tar: 1.jpg: its .txt file is not text in UTF-8"),
        ([("1.jpg", jpeg()), ("1.json", b"[5]")], r"a.tar: 1.jpg: its .json file must be a JSON object, got a list"),
        ([("1.jpg", jpeg()), ("1.json", b"{")], r"a.tar: 1.jpg: its .json file is not JSON"),
        ([("1.jpg", jpeg()), ("1.json", b'{"x": 1}')], r"a.tar: 1.jpg: there is no 'txt', only .*'x'"),
    ],
)
def test_samples_whose_texts_are_broken(tmp_path, members, words):
    write_tar(tmp_path / "a.tar", ("0.jpg", jpeg()), ("0.txt", b"Nil."), *members)
    source = load_source(tmp_path)
    for read in (lambda: source[1], lambda: source.captions([1]), lambda: streamed(tmp_path)):
        with pytest.raises(ValueError, match=words):
            read()


def test_a_caption_that_is_a_number(tmp_path):
    write_tar(tmp_path / "a.tar", ("1.jpg", jpeg()), ("1.json", b'{"caption": 5}'))
    with pytest.raises(ValueError, match=r"a.tar: 1.jpg: 'caption' must be a text, got 5"):
        load_source(tmp_path)[0]


def damaged(content):
    half = len(content) // 2
    return {
        "in a member": content[: half - half % 512 + 100],
        # `tarfile` takes this for a whole file: it ends where a member ends.
        "between members": content[: content.index(b"2.txt") - content.index(b"2.txt") % 512],
        "before the end": content[: content.index(b"3.txt") + 1024],
        "a header": content.replace(b"2.jpg", b"2\0jpg", 1),
        "zeros for a header": content.replace(content[content.index(b"2.jpg") :][:512], bytes(512), 1),
    }


CASES = ("in a member", "between members", "before the end", "a header", "zeros for a header")


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_named_and_what_is_before_can_be_used(tmp_path, case):
    members = [
        (f"{number}.{suffix}", content)
        for number in range(4)
        for suffix, content in (("jpg", jpeg()), ("txt", b"Yes."))
    ]
    path = write_tar(tmp_path / "tars/b.tar", *members)
    path.write_bytes(damaged(path.read_bytes())[case])
    write_tar(tmp_path / "tars/a.tar", ("9.jpg", jpeg()), ("9.txt", b"No."))
    source = load_source(tmp_path / "tars")
    ((bad, reason),) = source.problems.items()
    assert bad == len(source) - 1
    assert reason.startswith(str(path))
    assert "are lost" in reason
    good = [row.caption for row in map(source.__getitem__, range(bad))]
    assert good == ["No.", *["Yes."] * (bad - 1)]
    assert 1 < bad < 5
    with pytest.raises(ValueError, match=r"b.tar .*Download"):
        source[bad]
    with pytest.raises(ValueError, match=r"b.tar .*Download"):
        streamed(tmp_path / "tars")


def test_files_that_are_not_tar_files(tmp_path):
    for content in (b"", b"<html>", jpeg() * 9):
        (tmp_path / "a.tar").write_bytes(content)
        assert "a.tar is not a complete tar file" in load_source(tmp_path, with_captions=False).problems[0]
        for load in (load_source, streamed):  # not: a column of captions is missing
            with pytest.raises(ValueError, match=r"a\.tar is not a complete tar file"):
                load(tmp_path)
    write_tar(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="has no samples in its 1 tar files"):
        load_source(tmp_path)


def test_headers_of_headers_are_refused(tmp_path):
    """`tarfile` calls itself for each of them."""
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 2
    path = write_tar(tmp_path / "a.tar", ("1.jpg", jpeg()), ("1.txt", b"Yes."))
    path.write_bytes((head.tobuf() + b"a".ljust(512, b"\0")) * 5000 + path.read_bytes())
    with pytest.raises(ValueError, match=r"a\.tar is not a complete tar file"):
        load_source(path)


def test_the_fingerprint_follows_the_files(tmp_path):
    marks = set()
    for text in (b"A.", b"B.", b"A."):
        marks.add(load_source(write_tar(tmp_path / "a.tar", ("1.jpg", jpeg()), ("1.txt", text))).fingerprint)
    assert len(marks) == 2
