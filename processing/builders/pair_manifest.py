"""What a folder of pairs says of itself: the settings that its rows depend on, versions, and a summary of its shards.

A folder is only continued with the same settings and the same data.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from fastgoal.processing.data.sources import Source

from .shards import WORK_FOLDER, write_json

logger = logging.get_logger(__name__)

MANIFEST = "fastgoal_pairs.json"
COLUMN_PREFIX = "column:"
STAGES = ("decode", "detect", "crop", "sentences", "image", "write")


@dataclass(frozen=True)
class PairSettings:
    """What the rows depend on. A run is only continued with the same settings.

    Args:
        model: name of the matcher, with a mark that changes when its weights change.
        detector: the same for the detector; `column:NAME` takes the boxes of a column; `none` has no detector.
        dtype: number format of the matcher.
        split: split of the source.
        limit: use the first so many rows only.
        shard_size: rows of the source in a shard.
        min_score: lowest score of a detection.
        min_area, max_area: area of a region as a share of the image.
    """

    model: str
    detector: str = "none"
    dtype: str = "float32"
    split: str | None = None
    limit: int | None = None
    shard_size: int = 256
    min_score: float = 0.25
    min_area: float = 0.01
    max_area: float = 0.80

    def __post_init__(self) -> None:
        for name in ("limit", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; expected a number from 1.")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(
                f"min_area={self.min_area}, max_area={self.max_area}; expected 0 <= min_area < max_area <= 1."
            )
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score={self.min_score}; expected a number from 0 to 1.")

    @property
    def box_column(self) -> str | None:
        """The column that boxes come from, if they do."""
        return self.detector.removeprefix(COLUMN_PREFIX) if self.detector.startswith(COLUMN_PREFIX) else None


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Add up the shards' records.

    `seconds` is the time during which any process was at work on a shard, over all runs that made the folder;
    `stage_seconds` are added up over the processes.
    """
    records = list(records)
    total: dict[str, Counter[str]] = {name: Counter() for name in ("regions", "best_regions", "stage_seconds")}
    for record in records:
        for name, counter in total.items():
            counter.update(record[name])
    seconds = _covered([tuple(record["span"]) for record in records])
    images = sum(record["images"] for record in records)
    return {
        "images": images,
        "skipped": [entry for record in records for entry in record["skipped"]],
        "sentences": sum(record["sentences"] for record in records),
        "pairs": sum(record["pairs"] for record in records),
        "without_phrases": sum(record.get("without_phrases", 0) for record in records),
        "regions": dict(total["regions"]),
        "best_regions": dict(total["best_regions"]),
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 2) if seconds > 0 else 0.0,
        "stage_seconds": {name: round(total["stage_seconds"][name], 2) for name in STAGES},
        "shards": len(records),
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of time spans."""
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def describe_run(source: Source, settings: PairSettings) -> dict[str, Any]:
    """The manifest of a run before it has a summary."""
    from importlib.metadata import version

    return {
        "format": 1,
        "settings": {
            **asdict(settings),
            "image_column": source.image_column,
            "caption_column": source.caption_column,
            "source_rows": len(source),
            "source_fingerprint": source.fingerprint,
        },
        "source": source.name,
        "versions": {name: version(name) for name in ("fastgoal", "torch", "transformers", "datasets", "pillow")},
    }


def start_or_continue(path: Path, wanted: dict[str, Any], work: Path) -> dict[str, Any]:
    """Write the manifest of a new folder, or check that the folder's own asks for the same rows."""
    # Without a single shard there is nothing to mix with: an option may be put right after an error in the first rows.
    if not path.exists() or not any((path.parent / "data").glob("*.parquet")):
        write_json(path, wanted, work)
        return wanted
    remedy = "Choose another --output, or delete this folder to start again."
    try:
        found = json.loads(path.read_bytes())
        settings = dict(found["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}). {remedy}") from None
    if found.get("format") != wanted["format"]:
        raise ValueError(f"{path} has format {found.get('format')!r}, this program {wanted['format']}. {remedy}")
    differences = describe_differences(settings, wanted["settings"])
    if differences:
        raise ValueError(
            f"output='{path.parent}' holds pairs of other data or settings: {differences}. They are not mixed. {remedy}"
        )
    if found.get("versions") != wanted["versions"]:
        logger.warning(f"{path.parent} was begun with {found.get('versions')}; now {wanted['versions']} continues it.")
    return found


def describe_differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In words, where two runs' settings differ; empty if they do not."""
    differences = [
        f"{name} was {found.get(name)!r} and is now {value!r}"
        + (" (rows or image files of the source have changed since)" if name == "source_fingerprint" else "")
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    return "; ".join(differences)


def check_output(output: Path) -> None:
    """Raise `ValueError` for a file, or a folder of other things."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output='{output}' is a file; expected a folder.")
    if output.is_dir() and not (output / MANIFEST).exists():
        others = sorted(path.name for path in output.iterdir() if path.name != WORK_FOLDER)
        if others:
            raise ValueError(
                f"output='{output}' has files in it that `fastgoal pairs` did not make ({', '.join(others[:5])}). "
                "Choose a new or an empty folder."
            )


def refuse_skipped(records: Iterable[dict[str, Any]]) -> None:
    """Raise `ValueError` if rows of finished shards were skipped."""
    entries = [entry for record in records for entry in record["skipped"]]
    if entries:
        raise ValueError(
            f"an earlier run with on_error='skip' left out {len(entries)} rows of this folder, the first: "
            f"{entries[0]['reason']} Go on with --on-error skip, or write another --output."
        )
