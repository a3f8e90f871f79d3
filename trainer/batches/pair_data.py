"""A pairs data set as the trainer reads it: rows by number, images left undecoded for the workers."""

from typing import Any

from torch.utils.data import Dataset

from fastgoal.processing.data.sources import DatasetSource, Source, open_source


class PairData(Dataset):
    """Rows of a data set for `FastGoalCollator`: `image`, `caption`, `file_name`, and local pairs where it has them.

    Args:
        source: An opened data set, or what `open_source` takes: the folder that `fastgoal pairs` wrote, or any
            folder of images and captions for training without local pairs.
        split: Split of a saved or Hub data set.
        limit: Use the first rows only.

    Raises:
        ValueError: The source cannot be read; the message says what it should be.
    """

    def __init__(self, source: str | Source, split: str | None = None, limit: int | None = None):
        self.source = open_source(source, split=split) if isinstance(source, str) else source
        self.rows = len(self.source) if limit is None else min(limit, len(self.source))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        row = self.source[index]
        return {**row.columns, "image": row.image, "caption": row.caption, "file_name": row.name}

    def captions(self) -> list[str]:
        """Each row's caption, empty where it has none; images are not touched."""
        if not isinstance(self.source, DatasetSource):
            return [self.source[index].caption for index in range(self.rows)]
        column = self.source.caption_column
        captions = self.source.dataset.select_columns([column])[: self.rows][column]
        return [" ".join(caption) if isinstance(caption, list) else caption or "" for caption in captions]

    def caption_lengths(self) -> list[int]:
        """Characters of each row's caption."""
        return [len(caption) for caption in self.captions()]

    def require_pairs(self) -> None:
        """Check that the first row has local pairs.

        Raises:
            ValueError: It has none; the message says how to make them.
        """
        if not self[0].get("pairs"):
            raise ValueError(
                f"{self.source.name} has no local pairs, which this objective trains on. Make them with "
                "`fastgoal pairs SOURCE --output DIR --model CLIP`, or train with the objective global or sparc, which "
                "need none."
            )


def captions_of(data: Any) -> list[str]:
    """The captions of a `PairData` or of a sequence of rows."""
    return data.captions() if isinstance(data, PairData) else [row["caption"] for row in data]
