"""Images with captions of any form in the columns of a dataset of local pairs, without pairs, for their statistics."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from fastgoal.processing.checks import check_positive
from fastgoal.processing.images import image_bytes, image_size
from fastgoal.processing.matching import pair_row
from fastgoal.processing.regions import Region
from fastgoal.processing.sentences import check_language, split_sentences

from .boxes import check_box_options, column_regions
from .pairs_dataset import features
from .sources import Source

BOX_COLUMNS = ("boxes", "objects")
_BATCH = 1024


class UnmatchedRows:
    """The usable rows of a source, read like a `PairsFolder`, with empty `pairs`.

    All rows are read once, without decoding the images. Their captions stay in memory, as Arrow.

    Args:
        source: The rows. A row that cannot be used is left out.
        boxes_column: Column of boxes. By default the first of `BOX_COLUMNS` that exists, if any.
        box_format: As for `regions_from_boxes`. Default: that of the form of the data.
        box_units: As for `regions_from_boxes`.
        language: Language code of the captions.
        limit: Use the first rows only.
        progress: Show a progress bar.

    Attributes:
        skipped: The rows that cannot be used, as `{"row", "reason"}`.
        problems: Rows with wrong boxes, which are used without boxes, with the reasons.
        boxes_column: The column of boxes; None if there is none.
        The others are those of a `PairsFolder`.

    Raises:
        ValueError: An argument is wrong, the column does not exist, or no row can be used.
    """

    matched = has_tokens = False
    files: Sequence[Any] = ()
    missing: Sequence[str] = ()

    def __init__(
        self,
        source: Source,
        boxes_column: str | None = None,
        box_format: str | None = None,
        box_units: str = "pixels",
        language: str = "en",
        limit: int | None = None,
        progress: bool = False,
    ) -> None:
        check_positive(limit=limit)
        check_language(language)
        self.source, self.language = source, language
        self.box_options = {"box_format": box_format or source.box_format, "box_units": box_units}
        check_box_options(**self.box_options)
        if boxes_column is not None and boxes_column not in source.columns:
            raise ValueError(
                f"`boxes_column` must be a column of {source.name}, got {boxes_column!r}. Its columns are "
                f"{', '.join(source.columns)}."
            )
        self.boxes_column = boxes_column or next((name for name in BOX_COLUMNS if name in source.columns), None)
        self.manifest: dict[str, Any] = {"source": source.name}
        self.skipped: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self._numbers = array("q")  # of the usable rows, in the source
        self._batches: list[Any] = []
        self._read_rows(tqdm(range(len(source))[:limit], "rows", unit="row", disable=not progress))
        if not self._numbers:
            first = f" The first: {self.skipped[0]['reason']}" if self.skipped else ""
            raise ValueError(f"None of the {len(self.skipped)} rows of {source.name} can be used.{first}")

    def __len__(self) -> int:
        return len(self._numbers)

    def batches(self, columns: Sequence[str], size: int = _BATCH) -> Iterator[Any]:
        """Yield all rows in order, as `pyarrow.RecordBatch`es of at most `size` rows with these columns.

        The images, `image.bytes`, are read again and come alone.
        """
        import pyarrow

        if list(columns) != ["image.bytes"]:
            for batch in self._batches:
                for start in range(0, batch.num_rows, size):
                    yield batch.slice(start, size).select(list(columns))
            return
        for start in range(0, len(self), size):
            images = [{"bytes": self._image(number)} for number in self._numbers[start : start + size]]
            yield pyarrow.RecordBatch.from_pydict(
                {"image": pyarrow.array(images, pyarrow.struct([("bytes", pyarrow.large_binary())]))}
            )

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield rows as (index, row), sorted by index. `row` is their number in the source."""
        for index in sorted(indices):
            values = self._batches[index // _BATCH].slice(index % _BATCH, 1).to_pylist()[0]
            image = self._image(self._numbers[index])
            yield index, {**values, "image": {"bytes": image} if image else None, "row": self._numbers[index]}

    def _read_rows(self, numbers: Any) -> None:
        import pyarrow

        fields = features().arrow_schema
        schema = pyarrow.schema([field for field in fields if field.name != "image"])
        rows: list[dict[str, Any]] = []
        for number in numbers:
            try:
                rows.append(self._row(number))
            except (ValueError, OSError) as error:
                self.skipped.append({"row": number, "reason": self.source.describe(number, error)})
                continue
            self._numbers.append(number)
            if len(rows) == _BATCH:
                self._batches.append(pyarrow.RecordBatch.from_pylist(rows, schema))
                rows = []
        if rows:
            self._batches.append(pyarrow.RecordBatch.from_pylist(rows, schema))

    def _row(self, number: int) -> dict[str, Any]:
        row = self.source[number]
        width, height = image_size(row.image, row.name)
        regions: list[Region] = []
        if self.boxes_column is not None:
            try:
                regions = column_regions(row.columns, self.boxes_column, (width, height), **self.box_options)
            except ValueError as error:
                self.problems.append(self.source.describe(number, error))
        sentences = split_sentences(row.caption, self.language)
        return pair_row(None, row.name, row.caption, (width, height), sentences, regions, [])

    def _image(self, number: int) -> bytes | None:
        """Return the bytes of an image; None if it can no longer be read."""
        try:
            image = self.source[number].image
            return image_bytes((image.get("bytes") or image["path"]) if isinstance(image, dict) else image)
        except (ValueError, OSError):
            return None
