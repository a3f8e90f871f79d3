"""Datasets that are read from their shards row by row, and need not fit on the disk.

`datasets` makes the streams: they have a state (`state_dict`) and divide shards among processes and workers.
`forms.registry.open_stream` opens them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sources import Source, image_candidates, undecoded

if TYPE_CHECKING:
    import datasets

# Columns of samples in webdataset format: the table of other values, the key of the sample, and its file.
TABLE, KEY, SHARD = "json", "__key__", "__url__"


class StreamSource(Source):
    """A `datasets.IterableDataset` with images as undecoded bytes or paths.

    Args:
        dataset: The stream.
        name: Name of the data, for messages.
        columns: All columns of the rows.
        rows: Number of rows; None if it is not known.
        base: Folder of the image files that rows name.
        fingerprint: A text that changes with the data.
        options: Other arguments of `Source`.

    Attributes:
        dataset: The stream.
        rows: Number of rows; None if it is not known.
    """

    names_are_paths = False

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        name: str,
        columns: Iterable[str],
        rows: int | None = None,
        base: Path | None = None,
        fingerprint: str | None = None,
        **options: Any,
    ) -> None:
        self.dataset, self.rows, self.base = dataset, rows, base
        self._fingerprint = fingerprint or name
        super().__init__(name, columns, **options)

    @classmethod
    def of(cls, stream: "datasets.IterableDataset", name: str, **options: Any) -> "StreamSource":
        """Make a source of a stream with known columns; `options` are the other arguments of `StreamSource`.

        Raises:
            ValueError: The columns are not known.
        """
        import datasets

        features = stream.features
        if features is None:
            raise ValueError(f"{name}: the columns of the stream are not known. Train with `streaming=False`.")
        if isinstance(table := features.get(TABLE), Mapping):
            features = datasets.Features(
                {**{name: value for name, value in features.items() if name != TABLE}, **table}
            )
            stream = stream.map(_spread_table, remove_columns=[TABLE], features=features)
        return cls(undecoded(stream), name, features, image_candidates=image_candidates(features), **options)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        raise TypeError("a stream has no length; its `rows` is the number of rows if that is known")

    def _label(self, index: int, values: dict[str, Any]) -> str:
        name = self._row_name(index, values.get(self.image_column), values)
        return f"{values[SHARD]}: {name}" if SHARD in values else f"{self.name} ({name})"

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        path = image.get("path") if isinstance(image, dict) else image
        return str(values.get("file_name") or values.get(KEY) or path or "a row without a name")


def _spread_table(row: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a row's table as columns."""
    return dict(row[TABLE] or {})
