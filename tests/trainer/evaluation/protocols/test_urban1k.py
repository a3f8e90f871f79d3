import pytest

from fastgoal.trainer.evaluation.protocols.registry import open_protocol
from tests.published_files import rows_of, write


def test_first_lines_in_the_order_of_numbers(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / "Urban1k" / "caption" / f"{number}.txt", f"Street {number}.\nignored")
    assert rows_of("urban1k", tmp_path) == [(f"{n}.jpg", [f"Street {n}."]) for n in (1, 2, 10)]
    write(tmp_path / "Urban1k" / "caption" / "3.txt", "\n")
    with pytest.raises(ValueError, match=r"3\.txt is empty"):
        open_protocol("urban1k", str(tmp_path))
