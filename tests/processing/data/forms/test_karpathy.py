import json

import pytest

from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import write, write_karpathy


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_splits_and_image_folders(tmp_path, name):
    write_karpathy(tmp_path, name, 3)
    file = tmp_path / f"dataset_{name}.json"
    content = json.loads(file.read_text())
    content["images"][1]["split"] = "restval"
    write(file, content)
    for path in (tmp_path, file):
        assert recognize(path).name == "karpathy"
        row = load_source(path, split="restval")[0]
        assert row.image == str(tmp_path / {"coco": "val2014", "flickr30k": "flickr30k-images"}[name] / "000001.jpg")
        assert len(row.captions) == 6
        assert len(load_source(path, split="test+restval")) == 3
    with pytest.raises(ValueError, match=r"`split` must be one of 'test', 'restval'"):
        load_source(tmp_path)


def test_a_missing_key_names_the_entry(tmp_path):
    write(tmp_path / "dataset_coco.json", {"images": [{"sentids": [1], "filename": "a.jpg", "split": "test"}]})
    with pytest.raises(ValueError, match=r"dataset_coco\.json 'images' entry 0 'sentences' must be a JSON list"):
        load_source(tmp_path)
    write(tmp_path / "dataset_coco.json", {"pictures": []})
    with pytest.raises(ValueError, match=r"dataset_coco\.json 'images' must be a JSON list, got a NoneType"):
        load_source(tmp_path)


def test_the_table_of_flickr30k_on_the_hub(tmp_path):
    table = 'raw,sentids,split,filename,img_id\n"[""A boat."", ""A ship.""]","[0, 1]",train,1007.jpg,0\n'
    write(tmp_path / "flickr_annotations_30k.csv", table)
    write(tmp_path / "flickr30k-images" / "1007.jpg", "")
    for path in (tmp_path, tmp_path / "flickr_annotations_30k.csv"):
        row = load_source(path, split="train")[0]
        assert row.captions == ["A boat.", "A ship."]
        assert row.image == str(tmp_path / "flickr30k-images" / "1007.jpg")
