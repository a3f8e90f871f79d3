"""Rows in memory that name image files, for forms that keep all rows in one file."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastgoal.processing.data.sources import Source
from fastgoal.processing.texts import shortened

from .form import SourceOptions


class RowsSource(Source):
    """Rows in memory that name image files.

    Args:
        path: The file or folder that the rows are from, for messages.
        rows: A label of each row for messages ("captions.json entry 3"), and its values by column. The value of the
            image column is a path, relative to `base`.
        base: Folder of the image files. Rows may not name files outside it.
        options: The options of `load_source`. Without them the columns are `image_column` and the first of
            `CAPTION_COLUMNS` that exists.
        image_column: Default column of the images.

    Raises:
        ValueError: There are no rows, or a column does not exist.
    """

    def __init__(
        self,
        path: Path,
        rows: Iterable[tuple[str, dict[str, Any]]],
        base: Path,
        options: SourceOptions,
        image_column: str = "image",
    ) -> None:
        self.base = base
        self.rows = list(rows)
        if not self.rows:
            raise ValueError(f"{path} has no rows.")
        columns = dict.fromkeys(column for _, values in self.rows for column in values)
        super().__init__(str(path), columns, image_candidates=[image_column], **options.columns)

    @property
    def fingerprint(self) -> str:
        """A hash of the rows and of the sizes of all image files."""
        digest = hashlib.sha256()
        for _, values in self.rows:
            name = values.get(self.image_column)
            digest.update(json.dumps(values, default=str).encode() + b"\n%d\n" % self._size(name))
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.rows)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        name = values.get(self.image_column)
        return self.rows[index][0] + (f" ({shortened(str(name), 200)})" if name else "")

    def _values(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index][1])
