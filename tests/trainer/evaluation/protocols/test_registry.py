"""Every reader on small files in the published form."""

import json

import pytest

from fastgoal.cli import main
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS, open_protocol


def rows_of(source):
    return [(row.name, row.captions) for row in source]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_the_help_lists_all_protocols(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in PROTOCOLS)


def test_docci(tmp_path):
    lines = [
        {
            "example_id": f"{split}_0000{n}",
            "split": split,
            "image_file": f"{split}_0000{n}.jpg",
            "description": f" {n}.",
        }
        for split, n in [("train", 0), ("test", 1), ("qual_test", 2), ("test", 3)]
    ]
    write(tmp_path / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, lines)) + "\n")
    source = open_protocol("docci", str(tmp_path))
    assert rows_of(source) == [("test_00001.jpg", ["1."]), ("test_00003.jpg", ["3."])]
    assert "5,000 images and this data 2" in PROTOCOLS["docci"].remark(len(source))
    assert source[0].image == str(tmp_path / "images" / "test_00001.jpg")


@pytest.fixture
def dci(tmp_path):
    for name, short, extra in [("b", "A cat.", "It sleeps."), ("a", "A dog.", ""), ("c", "A cow", "Grass is green.")]:
        entry = {"image": f"sa_{name}.jpg", "short_caption": short, "extra_caption": extra, "mask_data": {}}
        write(tmp_path / "densely_captioned_images" / "annotations" / f"{name}.json", entry)
    return tmp_path


def test_dci_has_two_protocols_of_its_annotations(dci):
    whole = open_protocol("dci-7805", str(dci))
    assert rows_of(whole) == [
        ("sa_a.jpg", ["A dog."]),
        ("sa_b.jpg", ["A cat.\nIt sleeps."]),
        ("sa_c.jpg", ["A cow\nGrass is green."]),
    ]
    assert rows_of(open_protocol("dci-7602", str(dci))) == [
        ("sa_b.jpg", ["It sleeps."]),
        ("sa_c.jpg", ["Grass is green."]),
    ]


def test_dci_2k(tmp_path):
    write(tmp_path / "DCI_test.json", [{"filename": "../somewhere/photos/sa_1.jpg", "caption": "A mall."}])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "sa_1.jpg").touch()
    source = open_protocol("dci-2k", str(tmp_path))
    assert rows_of(source) == [("sa_1.jpg", ["A mall."])]
    assert source[0].image == str(tmp_path / "photos" / "sa_1.jpg")


def test_urban1k(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / "Urban1k" / "caption" / f"{number}.txt", f"Street {number}.\nignored")
    assert rows_of(open_protocol("urban1k", str(tmp_path))) == [(f"{n}.jpg", [f"Street {n}."]) for n in (1, 2, 10)]
    write(tmp_path / "Urban1k" / "caption" / "3.txt", "\n")
    with pytest.raises(ValueError, match=r"3\.txt is empty"):
        open_protocol("urban1k", str(tmp_path))


def test_sharegpt4v_takes_the_first_thousand(tmp_path):
    entries = [
        {
            "id": str(n),
            "image": f"sam/images/sa_{n}.jpg",
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": f"Line {n}\nand more."}],
        }
        for n in range(1003)
    ]
    write(tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json", entries)
    source = open_protocol("sharegpt4v-1k", str(tmp_path))
    assert len(source) == 1000
    assert PROTOCOLS["sharegpt4v-1k"].remark(1000) == ""
    assert rows_of(source)[7] == ("sa_7.jpg", ["Line 7 and more."])


def karpathy(folder, name, filepath):
    images = []
    for number, split in enumerate(["train", "test", "val", "test"]):
        sentences = [{"raw": f"Text {number} {n}.", "tokens": []} for n in range(6)]
        images.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences, **filepath})
    write(folder / name, {"images": images, "dataset": "x"})


@pytest.mark.parametrize(
    ("protocol", "file", "filepath"),
    [
        ("coco-5k", "dataset_coco.json", {"filepath": "val2014"}),
        ("flickr30k-1k", "dataset_flickr30k.json", {}),
    ],
)
def test_karpathy_splits_have_five_captions(tmp_path, protocol, file, filepath):
    karpathy(tmp_path, file, filepath)
    assert rows_of(open_protocol(protocol, str(tmp_path))) == [
        (f"{number}.jpg", [f"Text {number} {n}." for n in range(5)]) for number in (1, 3)
    ]


def test_flickr30k_as_a_table(tmp_path):
    raw = json.dumps([f"Text, {n}." for n in range(5)]).replace('"', '""')
    lines = ["raw,sentids,split,filename,img_id", f'"{raw}",[],test,7.jpg,7', f'"{raw}",[],train,8.jpg,8']
    write(tmp_path / "flickr_annotations_30k.csv", "\n".join(lines))
    assert rows_of(open_protocol("flickr30k-1k", str(tmp_path))) == [("7.jpg", [f"Text, {n}." for n in range(5)])]


def test_a_protocol_as_parquet_takes_its_split_column_and_caption_column(tmp_path):
    import datasets

    rows = [{"image": None, "split": split, "description": f"{split}."} for split in ("train", "test")]
    features = datasets.Features(
        {"image": datasets.Image(), "split": datasets.Value("string"), "description": datasets.Value("string")}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    source = open_protocol("docci", str(tmp_path))
    assert len(source) == 1
    assert "row 1" in source.where(0)


def test_folder_is_anybodys_data(tmp_path):
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.jpg", "captions": ["One.", "Two."]}))
    source = open_protocol("folder", str(tmp_path))
    assert PROTOCOLS["folder"].remark(1) == ""
    assert rows_of(source) == [("a.jpg", ["One.", "Two."])]


def test_rows_from_python_and_a_limit():
    rows = [{"image": f"{number}.jpg", "captions": [f"{number}.", "Two.", "Three."]} for number in range(4)]
    source = open_protocol("folder", rows, limit=2)
    assert [row.captions for row in source] == [["0.", "Two.", "Three."], ["1.", "Two.", "Three."]]
    assert source[1].image == "1.jpg"
    assert open_protocol("folder", source) is source
    part = open_protocol("urban1k", source)  # of one caption an image
    assert [row.captions for row in part] == [["0."], ["1."]]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="protocol is 'dci'; it must be one of docci, dci-7805"):
        open_protocol("dci", str(tmp_path))
    for name, message in [
        ("docci", "docci_descriptions.jsonlines"),
        ("dci-7805", "'annotations'"),
        ("urban1k", "'caption'"),
        ("coco-5k", "dataset_coco.json"),
        ("dci-2k", "DCI_test.json"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_protocol(name, str(tmp_path))
    write(tmp_path / "docci_descriptions.jsonlines", "{}\n")
    with pytest.raises(ValueError, match="line 1: 'split' is None"):
        open_protocol("docci", str(tmp_path))
    write(tmp_path / "docci_descriptions.jsonlines", '{"split": "test", "image_file": "../../x", "description": "A."}')
    with pytest.raises(ValueError, match="leads out of"):
        open_protocol("docci", str(tmp_path))
    write(tmp_path / "docci_descriptions.jsonlines", "")
    with pytest.raises(ValueError, match="has no row of the protocol docci"):
        open_protocol("docci", str(tmp_path))
    write(tmp_path / "DCI_test.json", "[")
    with pytest.raises(ValueError, match=r"DCI_test\.json is not JSON"):
        open_protocol("dci-2k", str(tmp_path))


def test_files_outside_are_allowed_for_tables_of_a_protocol_too(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").touch()
    (folder / "metadata.jsonl").write_text('{"file_name": "../outside.png", "caption": "A cup."}\n')
    for name in ("urban1k", "folder"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            open_protocol(name, str(folder))[0]
        assert open_protocol(name, str(folder), allow_outside_files=True)[0].captions == ["A cup."]
