"""Names of detectors and their descriptions, and names that are wrong."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint
from fastgoal.processing.detectors.load import describe_detector, load_detector
from fastgoal.processing.detectors.spec import DetectorSpec


@pytest.mark.parametrize("name", [None, "none", "None"])
def test_no_detector(name: str | None) -> None:
    assert load_detector(name) is None


@pytest.mark.parametrize("name", ["yolo11n", "weights.onnx", "a/b/c", "https://example.com/yolo", "./none"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"name of a detector.*Allowed are \"none\".*\.pt.*folder.*Hub id"):
        load_detector(name)
    with pytest.raises(ValueError, match="`detector` must not be empty"):
        load_detector("")


def test_a_column_is_for_the_pairs_command() -> None:
    with pytest.raises(ValueError, match="`fastgoal pairs` reads"):
        load_detector("column:boxes")


def _fail() -> None:
    raise ImportError("pip install 'fastgoal[yolo]', or a detector")


def test_missing_weights_are_not_downloaded_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"yolo11n\.pt` does not exist, .*downloads.*rtdetr_v2_r18vd"):
        load_detector("yolo11n.pt")
    with monkeypatch.context() as patched:
        patched.setattr("fastgoal.processing.detectors.yolo.is_offline_mode", lambda: False)
        patched.setenv("YOLO_OFFLINE", "false")
        patched.setattr("fastgoal.processing.detectors.yolo._import_ultralytics", _fail)
        with pytest.raises(ImportError, match=r"fastgoal"):
            load_detector("yolo11n.pt")
    with pytest.raises(FileNotFoundError, match=r"elsewhere/yolo11n\.pt` does not exist"):
        load_detector("elsewhere/yolo11n.pt")
    assert not list(tmp_path.iterdir())


def test_folders_without_a_detector(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_detector(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"type 'clip'.*Allowed are"):
        load_detector(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "yolos"}')
    with pytest.raises(ValueError, match="has no weights"):
        load_detector(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "none of these"}')
    with pytest.raises(ValueError, match="cannot be loaded: The checkpoint you are trying to load has model type"):
        load_detector(str(tmp_path))


@pytest.mark.parametrize("limits", [{"min_score": 1.5}, {"min_score": -0.1}, {"min_area": 0.9}, {"max_area": 80}])
def test_limits_are_fractions(tmp_path: Path, limits: dict[str, float]) -> None:
    (tmp_path / "a.pt").touch()
    for call in (describe_detector, load_detector):
        with pytest.raises(ValueError, match=rf"`{next(iter(limits))}`.*(from 0 to 1|0 <= min_area)"):
            call(tmp_path / "a.pt", **limits)  # type: ignore[operator]


def test_descriptions_without_weights() -> None:
    assert describe_detector(None) == describe_detector("none") == DetectorSpec("none")
    column = describe_detector("column:boxes", min_score=0.5, max_area=0.5)
    assert column == DetectorSpec("column", "boxes", min_score=0.5, max_area=0.5)


@pytest.mark.parametrize(
    ("model_type", "kind", "min_score"),
    [
        ("yolos", "transformers", 0.25),
        ("detr", "transformers", 0.25),
        ("sam", "sam", 0.25),
        ("owlv2", "open_vocabulary", 0.1),
        ("grounding-dino", "open_vocabulary", 0.25),
    ],
)
def test_the_configuration_determines_the_kind(tmp_path: Path, model_type: str, kind: str, min_score: float) -> None:
    folder = tmp_path / "it"
    AutoConfig.for_model(model_type).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not looked into")
    mark = checkpoint_fingerprint(str(folder))
    phrases = 16 if kind == "open_vocabulary" else None
    assert describe_detector(folder) == DetectorSpec(kind, "it", mark, min_score, max_phrases=phrases)
    assert describe_detector(f"{folder}/", min_score=0.7).min_score == 0.7


def test_ultralytics_files_are_described_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "yolo.pt"
    path.write_bytes(b"one")
    first = describe_detector(path)
    assert (first.kind, first.name) == ("ultralytics", "yolo.pt")
    path.write_bytes(b"two")
    assert describe_detector(path).weights != first.weights
