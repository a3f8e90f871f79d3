"""The description of a detector in a few plain values, as manifests and cards store it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastgoal.processing.checks import MAX_AREA, MIN_AREA, MIN_SCORE, check_positive


@dataclass(frozen=True)
class DetectorSpec:
    """What proposes regions in addition to the five default ones, and which of its proposals are kept.

    Attributes:
        kind: `none`, `column`, a key of `LOADERS` in `load.py`, or the name of your own detector. It is the
            `Region.source` of the proposed regions.
        name: Name of the file or folder, Hub id, or name of the column.
        weights: `checkpoint_fingerprint` of the detector; empty if it is the same as `name`.
        min_score: Lowest score of a region.
        min_area: Area of the smallest region as a fraction of the image; for `sam` of the smallest mask.
        max_area: Area of the largest region as a fraction of the image; for `sam` of the largest mask.
        max_phrases: Number of phrases of a caption that an `open_vocabulary` detector looks for.

    Raises:
        ValueError: A limit is out of range.
    """

    kind: str = "none"
    name: str = ""
    weights: str = ""
    min_score: float = MIN_SCORE
    min_area: float = MIN_AREA
    max_area: float = MAX_AREA
    max_phrases: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"`min_score` must be from 0 to 1, got {self.min_score}.")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(
                "`min_area` and `max_area` must be fractions of the image with 0 <= min_area < max_area <= 1, got "
                f"{self.min_area} and {self.max_area}."
            )
        check_positive(max_phrases=self.max_phrases)

    def __str__(self) -> str:
        if self.kind == "none":
            return "none (the five default regions only)"
        name = f"the column {self.name!r}" if self.kind == "column" else f"{self.name} ({self.kind.replace('_', '-')})"
        shapes = "masks" if self.kind == "sam" else "boxes"
        area = f"{100 * self.min_area:g} to {100 * self.max_area:g} % of the image"
        phrases = f", at most {self.max_phrases} phrases of a caption" if self.max_phrases is not None else ""
        return f"{name}, score from {self.min_score:g}, {shapes} of {area}{phrases}"

    @property
    def box_limits(self) -> dict[str, float]:
        """Limits of boxes for `filter_regions`. Those of `sam` apply to masks, so boxes may be larger."""
        max_area = 1.0 if self.kind == "sam" else self.max_area
        return {"min_score": self.min_score, "min_area": self.min_area, "max_area": max_area}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "DetectorSpec":
        """Return the detector in the settings of a manifest.

        Raises:
            ValueError: The settings do not describe a detector.
        """
        try:
            return cls(**settings["detector"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "The manifest does not describe the detector of the regions: it is damaged or of another version. Make "
                "the pairs again with `fastgoal pairs`."
            ) from error
