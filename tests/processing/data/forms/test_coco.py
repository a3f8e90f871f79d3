import pytest

from fastgoal.processing.builders.pairs import build_pairs
from fastgoal.processing.data.forms.registry import load_source, recognize
from fastgoal.processing.data.pairs_dataset import PairsFolder
from tests.published_files import draw, write


def write_coco(folder, count=3, with_instances=True):
    """Write captions_val2017.json and instances_val2017.json, annotations in another order than the images."""
    images, captions, instances = [], [], []
    for index in range(count):
        name = f"{index:012d}.jpg"
        images.append({"license": 3, "file_name": name, "coco_url": f"http://x/{name}", "id": 10 + index})
        for sentence, (x1, y1, x2, y2) in draw(folder / "val2017" / name, index):
            captions.insert(0, {"image_id": 10 + index, "id": len(captions), "caption": f"{sentence}."})
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": 1 + index % 2, "id": len(instances)}
            instances.append({"image_id": 10 + index, **box})
    head = {"info": {"year": 2017}, "licenses": [], "images": images}
    write(folder / "annotations" / "captions_val2017.json", {**head, "annotations": captions})
    if with_instances:
        categories = [{"id": 1, "name": "ball"}, {"id": 2, "name": "square"}]
        content = {**head, "annotations": instances, "categories": categories}
        write(folder / "annotations" / "instances_val2017.json", content)
    return folder


def test_pycocotools_reads_the_same_captions_and_boxes(tmp_path):
    COCO = pytest.importorskip("pycocotools.coco").COCO
    folder = write_coco(tmp_path)
    captions, instances = (
        COCO(str(folder / "annotations" / f"{name}_val2017.json")) for name in ("captions", "instances")
    )
    theirs = []
    for number in captions.getImgIds():
        boxes = [each["bbox"] for each in instances.loadAnns(instances.getAnnIds(imgIds=[number]))]
        theirs.append(
            (
                captions.loadImgs([number])[0]["file_name"],
                [each["caption"] for each in captions.loadAnns(captions.getAnnIds(imgIds=[number]))],
                boxes,
                instances.loadCats([instances.loadAnns(instances.getAnnIds(imgIds=[number]))[0]["category_id"]])[0][
                    "name"
                ],
            )
        )
    ours = [
        (row.name.removeprefix("val2017/"), row.captions, row.columns["boxes"], row.columns["labels"][0])
        for row in load_source(folder)
    ]
    assert sorted(ours) == sorted(theirs)


def test_splits_files_and_images_without_captions(tmp_path):
    folder = write_coco(tmp_path, with_instances=False)
    file = folder / "annotations" / "captions_val2017.json"
    for path, split in ((folder, None), (folder, "val2017"), (file, None)):
        assert recognize(path).name == "coco"
        rows = [*load_source(path, split=split)]
        assert [row.image for row in rows] == [str(tmp_path / "val2017" / f"{n:012d}.jpg") for n in range(3)]
        assert "boxes" not in rows[0].columns
        assert len(rows[0].captions) == 2
    with pytest.raises(ValueError, match=r"`split` must be one of 'val2017' for .*'train2017'"):
        load_source(folder, split="train2017")
    with pytest.raises(ValueError, match=r"`split` must be left out for .*captions_val2017\.json.*'val2017'"):
        load_source(file, split="val2017")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [{"id": 1}]}, "no annotation has a 'caption'"),
        ({"images": []}, "'annotations' must be a JSON list, got a NoneType"),
        (
            {"images": [], "annotations": [{"image_id": 4, "caption": "A."}]},
            "1 images with captions are not in 'images'.*4",
        ),
        (
            {"images": [{"id": 4, "file_name": "a.jpg"}] * 2, "annotations": [{"image_id": 4, "caption": "A."}]},
            "'images' entry 1: the id 4 appears twice",
        ),
        (
            {
                "images": [{"id": 4, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 4, "caption": "A.", "bbox": [1, 2, 3]}],
            },
            r"'annotations' entry 0: 'bbox' must be \[x, y, width, height\], got \[1, 2, 3\]",
        ),
    ],
)
def test_broken_files_name_the_entry(tmp_path, content, message):
    write(tmp_path / "captions.json", content)
    with pytest.raises(ValueError, match=message):
        load_source(tmp_path / "captions.json")


def test_pairs_take_the_boxes(tmp_path, tiny_clip):
    folder = write_coco(tmp_path / "coco")
    build_pairs(folder, tmp_path / "pairs", str(tiny_clip), "column:boxes", min_area=0.0, device="cpu", progress=False)
    rows = [row for batch in PairsFolder(tmp_path / "pairs").batches(["regions"]) for row in batch.to_pylist()]
    things = draw(tmp_path / "again.jpg", 1)
    boxes = [region["box"] for region in rows[1]["regions"] if region["source"] == "column"]
    assert boxes == [box for _, box in things]
