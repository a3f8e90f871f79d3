"""What the readers of published datasets have in common."""

import pytest

from fastgoal.processing.data.forms.registry import load_source
from tests.processing.data.forms.published_forms import write_docci
from tests.squares import image_of


def test_rows_do_not_name_files_outside(tmp_path):
    folder = write_docci(tmp_path / "docci", [("../../secret.png", image_of("red", "green"), "A.")])
    with pytest.raises(ValueError, match=r"line 1 .*secret\.png.* is outside the folder"):
        load_source(folder)[0]
    assert load_source(folder, allow_outside_files=True)[0].caption == "A."
