import json

import pytest

from fastgoal.processing.files import prepare_output, write_json, write_text


def test_files_are_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.json"
    prepare_output(path)
    write_json(path, {"name": "größer"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "größer"}
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "no text: \ud800")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"`html=.*` is a folder"):
        prepare_output(tmp_path, "html")
