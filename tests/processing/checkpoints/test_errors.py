"""Errors of libraries as one line that says what is loaded, what is wrong and what to do."""

import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from fastgoal.processing.checkpoints.errors import first_line, lfs_pointer, loading


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n no such thing \n more")) == "no such thing."
    assert first_line(KeyError()) == "KeyError."
    assert first_line(ValueError("word " * 100)) == "word " * 59 + "word ..."
    assert first_line(ValueError("this is wrong:\n a is b\n more")) == "this is wrong: a is b."


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("of two\nlines"), "of two."),
        (KeyError("gulp"), "KeyError: 'gulp'."),
        (RuntimeError("size"), "RuntimeError: size."),
        (OSError(), "OSError: OSError."),
    ],
)
def test_any_error_becomes_one_line(error, reason):
    with (
        pytest.raises(ValueError, match=r"^the thing cannot be loaded") as caught,
        loading("the thing", way_out="Mend it."),
    ):
        raise error
    assert str(caught.value) == f"the thing cannot be loaded: {reason} Mend it."


@pytest.mark.parametrize("form", ["pickle", "archive", "legacy", "tar"])
def test_torchs_advice_to_load_any_pickle_is_not_repeated(tmp_path, form):
    path = tmp_path / "weights.bin"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Path("x")))
    elif form == "tar":
        tarfile.open(path, "w").close()
    else:
        torch.save({"a": Path("x")}, path, _use_new_zipfile_serialization=form == "archive")
    with (
        pytest.raises(ValueError, match=r"^the thing cannot be loaded: it is not a PyTorch file") as caught,
        loading("the thing"),
    ):
        torch.load(path, weights_only=True)
    assert not any(word in str(caught.value) for word in ("weights_only", "trust", "arbitrary", "\x1b", "safe_globals"))
    assert "weights_only" in str(caught.value.__cause__) or "trust" in str(caught.value.__cause__)


def test_out_of_memory_is_not_changed():
    for error in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)), loading("the thing"):
            raise error


def test_pointers_are_named(tmp_path):
    pointer = tmp_path / "model.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for place in (tmp_path, pointer):
        assert lfs_pointer(place) == pointer
        with (
            pytest.raises(ValueError, match=r"model\.safetensors .*git-lfs"),
            loading("it", str(place)),
        ):
            raise RuntimeError("header too large")
    pointer.write_bytes(b"weights")
    assert lfs_pointer(tmp_path) is None
    assert lfs_pointer(tmp_path / "nothing") is None
