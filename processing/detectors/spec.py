"""What a detector is, in a few plain values that manifests and cards hold as they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class DetectorSpec:
    """What proposes regions beside the five default ones, and which of its proposals stay.

    Attributes:
        kind: `none`, `column`, one of `LOADERS` in `load.py`, or the name of a detector of your own; `Region.source`
            of what it proposes.
        name: For people: a file's or folder's last name, a Hub id, of `column` the column's name.
        weights: A mark that changes with the weights (`fastgoal.processing.checkpoints.fingerprints.mark_weights`).
        min_score: Lowest score of a region.
        min_area: Smallest region as a share of the image, of `sam` the smallest mask.
        max_area: Largest region (of `sam` the largest mask) as a share of the image.
        max_phrases: Of `open_vocabulary`: how many phrases of a caption are looked for.

    Raises:
        ValueError: A limit is out of range.
    """

    kind: str = "none"
    name: str = ""
    weights: str = ""
    min_score: float = 0.25
    min_area: float = 0.01
    max_area: float = 0.80
    max_phrases: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score={self.min_score}; expected a number from 0 to 1, by default 0.25.")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(
                f"min_area={self.min_area}, max_area={self.max_area}; expected shares of the image with "
                "0 <= min_area < max_area <= 1, by default 0.01 and 0.80."
            )
        if self.max_phrases is not None and self.max_phrases < 1:
            raise ValueError(f"max_phrases={self.max_phrases}; expected a number from 1.")

    def __str__(self) -> str:
        """The kind, the name and what stays, in words."""
        area = f"{100 * self.min_area:g} to {100 * self.max_area:g} % of the image"
        if self.kind == "none":
            return "none (the five default regions only)"
        what = f"the column {self.name!r}" if self.kind == "column" else f"{self.name} ({self.kind.replace('_', '-')})"
        phrases = f", at most {self.max_phrases} phrases of a caption" if self.max_phrases is not None else ""
        return f"{what}, score from {self.min_score:g}, {'masks' if self.kind == 'sam' else 'boxes'} of {area}{phrases}"

    @property
    def box_limits(self) -> dict[str, float]:
        """Limits of boxes for `filter_regions`; the areas of `sam` are those of masks and were applied to them."""
        max_area = 1.0 if self.kind == "sam" else self.max_area
        return {"min_score": self.min_score, "min_area": self.min_area, "max_area": max_area}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "DetectorSpec":
        """The detector of a manifest's settings, those of version 0.1 included, which named it in one text."""
        found = settings.get("detector", "none")
        if isinstance(found, Mapping):
            return cls(**{field.name: found[field.name] for field in fields(cls) if field.name in found})
        limits = {name: settings[name] for name in ("min_score", "min_area", "max_area") if name in settings}
        text = str(found)
        kind = "none" if text == "none" else "ultralytics" if ".pt#" in text or text.endswith(".pt") else "transformers"
        if text.startswith("column:"):
            return cls("column", text.removeprefix("column:"), **limits)
        masks = re.fullmatch(r"sam:(.*) masks ([\d.]+)-([\d.]+)", text)
        if masks:
            kind, text = "sam", masks[1]
            limits |= {"min_area": float(masks[2]), "max_area": float(masks[3])}
        phrases = re.fullmatch(r"(.*), at most (\d+) phrases", text)
        if phrases:
            kind, text = "open_vocabulary", phrases[1]
        name = "" if kind == "none" else re.split(r"[#@]", text)[0]
        most = int(phrases[2]) if phrases else None
        return cls(kind, name, text if name != text and kind != "none" else "", max_phrases=most, **limits)
