"""Descriptions of detectors: in words, as limits of boxes, and from manifests."""

from dataclasses import asdict

import pytest

from fastgoal.processing.detectors.spec import DetectorSpec


def test_limits_of_masks_do_not_apply_to_boxes():
    limits = {"min_score": 0.3, "min_area": 0.02, "max_area": 0.5}
    assert DetectorSpec("transformers", "yolos", **limits).box_limits == limits
    assert DetectorSpec("sam", "sam", **limits).box_limits == limits | {"max_area": 1.0}


def test_it_can_be_read_from_a_manifest():
    spec = DetectorSpec("open_vocabulary", "owl", "owl#ab", 0.1, max_phrases=16)
    assert DetectorSpec.from_settings({"detector": asdict(spec)}) == spec


@pytest.mark.parametrize(
    "settings", [{}, {"detector": "none"}, {"detector": {"kinds": "none"}}, {"detector": {"min_score": "a"}}]
)
def test_a_manifest_without_a_detector_is_refused(settings):
    with pytest.raises(ValueError, match=r"manifest .*detector.*fastgoal pairs"):
        DetectorSpec.from_settings(settings)


def test_in_words():
    assert str(DetectorSpec()) == "none (the five default regions only)"
    assert (
        str(DetectorSpec("column", "boxes")) == "the column 'boxes', score from 0.25, boxes of 1 to 80 % of the image"
    )
    assert "facebook/sam (sam), score from 0.25, masks of" in str(DetectorSpec("sam", "facebook/sam"))
    assert str(DetectorSpec("open_vocabulary", "owl", max_phrases=16)).endswith(", at most 16 phrases of a caption")
