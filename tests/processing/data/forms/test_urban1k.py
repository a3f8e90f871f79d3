from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import draw, write


def test_rows_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 2):
        draw(tmp_path / "Urban1k" / "image" / f"{number}.jpg", number)
        write(tmp_path / "Urban1k" / "caption" / f"{number}.txt", f"Street {number}.\nSecond line.\n")
    for folder in (tmp_path, tmp_path / "Urban1k"):
        assert recognize(folder).name == "urban1k"
        assert [(row.name, row.caption) for row in load_source(folder)] == [
            (f"image/{number}.jpg", f"Street {number}.") for number in (2, 9, 10)
        ]
