"""Images with several captions: the longest, or each in a row of its own."""

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from fastgoal.processing.data.pairs_dataset import IMAGE_GROUP, SHORT_CAPTIONS, short_captions
from fastgoal.processing.data.sources import Source, SourceRow


class ChosenCaptions(Source):
    """The rows of a source with one caption each.

    Args:
        source: A source whose rows may have several captions.
        captions: `longest`: the longest caption, with the others as `short_captions`. `each`: a row per caption, with
            the number of the row in `source` as `image_group`.
    """

    def __init__(self, source: Source, captions: str) -> None:
        column = SHORT_CAPTIONS if captions == "longest" else IMAGE_GROUP
        columns = dict.fromkeys([*source.columns, column])
        super().__init__(source.name, columns, source.image_column, source.caption_column)
        self.source, self.mode = source, captions
        self.base, self.allow_outside_files = source.base, source.allow_outside_files
        self.names_are_paths, self.box_format = source.names_are_paths, source.box_format
        self._starts = array("q", [0])  # the first row of each row of the source
        for index in range(len(source)):
            self._starts.append(self._starts[-1] + (self._count(index) if captions == "each" else 1))

    def _count(self, index: int) -> int:
        try:
            return len(self.source.captions_of(index))
        except (ValueError, OSError):
            return 1  # the error is that of the row when it is read

    @property
    def problems(self) -> Mapping[int, str]:
        return {self._starts[row]: reason for row, reason in self.source.problems.items()}

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}-{self.mode}"

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> SourceRow:
        at, number = self._position(index)
        row = self.source[at]
        caption = self._choose_caption(row.captions, number)
        columns: dict[str, Any] = {**row.columns}
        if self.mode == "each":
            columns[IMAGE_GROUP] = at
        else:
            others = [text for text in row.captions if text is not caption]
            columns[SHORT_CAPTIONS] = [*short_captions(columns, self.source.label(at)), *others]
        return SourceRow(row.name, row.image, [caption], columns)

    def captions_of(self, index: int) -> list[str]:
        at, number = self._position(index)
        return [self._choose_caption(self.source.captions_of(at), number)]

    def label(self, index: int) -> str:
        return self.source.label(self._position(index)[0])

    def _position(self, index: int) -> tuple[int, int]:
        """Return the row of the source and the number of its caption."""
        at = bisect_right(self._starts, index) - 1
        return at, index - self._starts[at]

    def _choose_caption(self, captions: list[str], number: int) -> str:
        return captions[number] if self.mode == "each" else max(captions, key=len)
