"""Descriptions of detectors: in words, as limits of boxes, and from manifests old and new."""

from dataclasses import asdict

import pytest

from fastgoal.processing.detectors.spec import DetectorSpec


def test_limits_of_boxes_are_not_those_of_masks():
    limits = {"min_score": 0.3, "min_area": 0.02, "max_area": 0.5}
    assert DetectorSpec("transformers", "yolos", **limits).box_limits == limits
    assert DetectorSpec("sam", "sam", **limits).box_limits == limits | {"max_area": 1.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, DetectorSpec()),
        ({"detector": "none"}, DetectorSpec()),
        ({"detector": "column:boxes", "min_score": 0.4}, DetectorSpec("column", "boxes", min_score=0.4)),
        ({"detector": "yolo11n.pt#ab"}, DetectorSpec("ultralytics", "yolo11n.pt", "yolo11n.pt#ab")),
        ({"detector": "hustvl/yolos-tiny"}, DetectorSpec("transformers", "hustvl/yolos-tiny")),
        ({"detector": "a/b@c"}, DetectorSpec("transformers", "a/b", "a/b@c")),
        (
            {"detector": "sam:a/b@c masks 0.02-0.5", "max_area": 1.0},
            DetectorSpec("sam", "a/b", "a/b@c", 0.25, 0.02, 0.5),
        ),
        (
            {"detector": "owl#ab, at most 16 phrases", "min_score": 0.1},
            DetectorSpec("open_vocabulary", "owl", "owl#ab", 0.1, max_phrases=16),
        ),
    ],
)
def test_from_a_manifest(settings, expected):
    assert DetectorSpec.from_settings(settings) == expected
    assert DetectorSpec.from_settings({"detector": asdict(expected)}) == expected


def test_in_words():
    assert str(DetectorSpec()) == "none (the five default regions only)"
    assert (
        str(DetectorSpec("column", "boxes")) == "the column 'boxes', score from 0.25, boxes of 1 to 80 % of the image"
    )
    assert "facebook/sam (sam), score from 0.25, masks of" in str(DetectorSpec("sam", "facebook/sam"))
    assert str(DetectorSpec("open_vocabulary", "owl", max_phrases=16)).endswith(", at most 16 phrases of a caption")
