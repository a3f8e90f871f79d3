import pytest

from fastgoal.processing.checkpoints.devices import choose_device, choose_dtype


def test_auto_and_none_are_the_accelerator(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert choose_device() == choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"`device` must be auto, cpu or a device.*'abacus'"):
        choose_device("abacus")


def test_dtypes(monkeypatch):
    assert choose_dtype("auto", "cpu") == choose_dtype("float32", "cuda") == "float32"
    assert choose_dtype("auto", "cuda:1") == "float16"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert choose_dtype("auto", "cuda", bfloat16=True) == "bfloat16"
    with pytest.raises(ValueError, match=r"`dtype` must be one of auto, float32.*'half'"):
        choose_dtype("half", "cpu")
