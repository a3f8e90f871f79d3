from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import draw, write


def test_the_last_part_of_the_authors_paths(tmp_path):
    draw(tmp_path / "images" / "train_00000.jpg", 0)
    path = tmp_path / "docci_train_del_org.json"
    write(path, [{"filename": "chage/path/images/train_00000.jpg", "caption": "A cup."}])
    assert recognize(path).name == "goal-list"
    (row,) = load_source(path)
    assert (row.image, row.caption) == (str(tmp_path / "images" / "train_00000.jpg"), "A cup.")
