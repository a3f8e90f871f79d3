from fastgoal.trainer.evaluation.protocols.registry import open_protocol
from tests.published_files import rows_of, write


def test_two_protocols_of_the_annotations(tmp_path):
    for name, short, extra in [("b", "A cat.", "It sleeps."), ("a", "A dog.", ""), ("c", "A cow", "Grass is green.")]:
        entry = {"image": f"sa_{name}.jpg", "short_caption": short, "extra_caption": extra, "mask_data": {}}
        write(tmp_path / "densely_captioned_images" / "annotations" / f"{name}.json", entry)
    assert rows_of("dci-7805", tmp_path) == [
        ("sa_a.jpg", ["A dog."]),
        ("sa_b.jpg", ["A cat.\nIt sleeps."]),
        ("sa_c.jpg", ["A cow\nGrass is green."]),
    ]
    assert rows_of("dci-7602", tmp_path) == [("sa_b.jpg", ["It sleeps."]), ("sa_c.jpg", ["Grass is green."])]


def test_dci_2k_takes_the_last_part_of_the_authors_paths(tmp_path):
    write(tmp_path / "DCI_test.json", [{"filename": "../somewhere/photos/sa_1.jpg", "caption": "A mall."}])
    write(tmp_path / "photos" / "sa_1.jpg", "")
    assert rows_of("dci-2k", tmp_path) == [("sa_1.jpg", ["A mall."])]
    assert open_protocol("dci-2k", tmp_path)[0].image == str(tmp_path / "photos" / "sa_1.jpg")
