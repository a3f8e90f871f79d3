"""Compare both towers in ONNX Runtime with PyTorch, for other numbers of rows and tokens than were traced."""

import builtins
from importlib.util import find_spec

import pytest
import torch

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.cli import main
from fastgoal.export.export_onnx import export_onnx

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason="the extra onnx is missing"
)


@needs_onnx
@pytest.mark.slow
def test_both_towers(tiny_clip, tmp_path, capsys):
    import onnxruntime

    FastGoalCLIPModel.from_base(str(tiny_clip)).save_pretrained(tmp_path)
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(tmp_path)
    assert main(["export", "--onnx", "--model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("differs from PyTorch by at most") == 2
    assert sorted(path.suffix for path in (tmp_path / "onnx").iterdir() if "data" not in path.name) == [".onnx"] * 2

    model, processor = FastGoalCLIPModel.from_pretrained(tmp_path), FastGoalProcessor.from_pretrained(tmp_path)
    inputs = processor(text=["a cup", "a long caption. " * 30, "b", "c"])
    inputs["pixel_values"] = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = model(**inputs)
    for tower, names, result in (
        ("vision_model", ["pixel_values"], "image_embeds"),
        ("text_model", ["input_ids", "attention_mask"], "text_embeds"),
    ):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{tower}.onnx")
        (got,) = session.run([result], {name: inputs[name].numpy() for name in names})
        torch.testing.assert_close(torch.from_numpy(got), expected[result], atol=1e-4, rtol=0)


def test_an_import_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("onnx"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["export", "--onnx", "--model", str(tmp_path)]) == 2
    assert "pip install 'fastgoal[onnx]'" in capsys.readouterr().err


def test_a_model_of_the_hub_needs_an_output_folder(capsys):
    assert main(["export", "--onnx", "--model", "owner/name"]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_failed_export_keeps_the_earlier_files(tiny_clip, tmp_path, monkeypatch):
    (tmp_path / "vision_model.onnx").write_bytes(b"earlier")
    (tmp_path / ".onnx.0123456789abcdef.tmp").mkdir()  # left by a killed export

    def fails(export, folder):
        (folder / "vision_model.onnx").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("fastgoal.export.export_onnx._write", fails)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(str(tiny_clip), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"vision_model.onnx": b"earlier"}
