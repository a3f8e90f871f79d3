"""DOCCI: photographs with long descriptions by hand (google/docci on the Hub; google.github.io/docci)."""

from typing import Any

from fastgoal.processing.data.forms.docci import FILES

from .protocol import Protocol

_COMMON: dict[str, Any] = {
    "form": "docci",
    "files": FILES,
    "captions_each": 1,
    "columns": ("description", "caption"),
}
PROTOCOLS = (
    Protocol(
        "docci",
        "DOCCI test",
        "docci_descriptions.jsonlines and images/; the test split",
        images=5000,
        split="test",
        **_COMMON,
    ),
    Protocol(
        "docci-5100",
        "DOCCI, GOAL's list of 5,100",
        "docci_descriptions.jsonlines and images/; the splits test and qual_test",
        # The images of datasets/docci_test.json in PerceptualAI-Lab/GOAL.
        images=5100,
        split="test+qual_test",
        **_COMMON,
    ),
)
