import json

import pytest

from tests.published_files import rows_of, write


@pytest.mark.parametrize(
    ("protocol", "file", "filepath"),
    [
        ("coco-5k", "dataset_coco.json", {"filepath": "val2014"}),
        ("flickr30k-1k", "dataset_flickr30k.json", {}),
    ],
)
def test_five_captions_of_each_image_of_the_test_split(tmp_path, protocol, file, filepath):
    images = []
    for number, split in enumerate(["train", "test", "val", "test"]):
        sentences = [{"raw": f"Text {number} {n}.", "tokens": []} for n in range(6)]
        images.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences, **filepath})
    write(tmp_path / file, {"images": images, "dataset": "x"})
    assert rows_of(protocol, tmp_path) == [
        (f"{number}.jpg", [f"Text {number} {n}." for n in range(5)]) for number in (1, 3)
    ]


def test_flickr30k_as_a_table(tmp_path):
    raw = json.dumps([f"Text, {n}." for n in range(5)]).replace('"', '""')
    lines = ["raw,sentids,split,filename,img_id", f'"{raw}",[],test,7.jpg,7', f'"{raw}",[],train,8.jpg,8']
    write(tmp_path / "flickr_annotations_30k.csv", "\n".join(lines))
    assert rows_of("flickr30k-1k", tmp_path) == [("7.jpg", [f"Text, {n}." for n in range(5)])]
