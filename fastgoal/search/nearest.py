"""The nearest of many vectors: compared with all of them up to a million, through an inverted file beyond.

The inverted file (faiss, `IndexIVFScalarQuantizer`) sorts the vectors into lists and reads some of the lists. How many
is not guessed: they are doubled until the search finds, for some of the vectors as queries, nearly all of the nearest
that a full comparison finds, and the share is kept with it.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgoal.processing.files import write_json

from .vector_log import VectorLog

EXACT_UP_TO = 1_000_000
# The share of the nearest `NEAREST` that the inverted file shall find, of so many queries.
RECALL, NEAREST, QUERIES = 0.95, 10, 200
TRAINING_ROWS = 40  # for each list; faiss asks for 39
PORTION = 65_536
# An inverted file is made anew when so large a share of the vectors has come since.
SHARE_OF_NEW = 0.1


class Nearest:
    """Searches the living vectors of a log as it is now.

    `recall` is None where a query is compared with all vectors, else the share of the nearest that the search found
    when that was measured.
    """

    def __init__(self, faiss: Any, log: VectorLog) -> None:
        self._faiss, self._log = faiss, log
        self.recall: float | None = None
        self._inverted: Any = None
        start = 0
        if len(log) > EXACT_UP_TO:
            start = self._open_inverted()
        self._rows = np.array(sorted(row for row in log.rows.values() if row >= start), np.int64)
        self._index = self._exact(self._rows)

    def search(self, query: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Rows and inner products of the k nearest to one vector `(width,)`, best first."""
        scores, places = self._index.search(query[None], min(k, len(self._rows))) if len(self._rows) else ([[]], [[]])
        found = [(int(self._rows[place]), float(score)) for place, score in zip(places[0], scores[0], strict=True)]
        if self._inverted is not None:
            scores, rows = self._inverted.search(query[None], k, params=self._parameters)
            found += [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if row >= 0]
        return sorted(found, key=lambda hit: -hit[1])[:k]

    def _exact(self, rows: NDArray[np.int64]) -> Any:
        kind = self._faiss.ScalarQuantizer.QT_fp16
        index = self._faiss.IndexScalarQuantizer(self._log.width, kind, self._faiss.METRIC_INNER_PRODUCT)
        for vectors in self._log.parts(rows):
            index.add_sa_codes(vectors.view(np.uint8))
        return index

    def _open_inverted(self) -> int:
        """Load the inverted file, or make it; gives the number of rows that are in it, dead ones included."""
        log = self._log
        state = self._found_inverted()
        if state is None:
            with log.held():
                state = self._found_inverted() or self._write_inverted()
        try:
            self._inverted = self._faiss.read_index(str(log.place / state["file"]))
        except RuntimeError as error:
            raise log.useless(f"cannot be read ({str(error).strip().splitlines()[0]})") from None
        self.recall = state["recall"]
        alive = np.zeros(state["rows"], bool)
        alive[[row for row in log.rows.values() if row < state["rows"]]] = True
        self._bits = np.packbits(alive, bitorder="little")
        selector = self._faiss.IDSelectorBitmap(self._bits)
        self._parameters = self._faiss.SearchParametersIVF(nprobe=state["lists"], sel=selector)
        return int(state["rows"])

    def _description(self) -> Path:
        return self._log.place / f"{self._log.generation:04d}-inverted.json"

    def _found_inverted(self) -> dict[str, Any] | None:
        """What is known of the inverted file on the disk; None where there is none, or too many vectors have come."""
        path, total = self._description(), len(self._log.names)
        state: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return None if state is None or total - state["rows"] > SHARE_OF_NEW * total else state

    def _write_inverted(self) -> dict[str, Any]:
        index, lists, recall = self._make_inverted()
        path, total = self._description(), len(self._log.names)
        file = f"{path.stem}-{total}.faiss"
        self._faiss.write_index(index, str(path.with_name(file)))
        state = {"rows": total, "lists": lists, "recall": recall, "file": file}
        write_json(path, state)
        for other in path.parent.glob("*-inverted-*.faiss"):
            if other.name != file:
                other.unlink(missing_ok=True)
        return state

    def _make_inverted(self) -> tuple[Any, int, float]:
        """The inverted file of all rows, how many of its lists a search reads, and the share that it then finds."""
        faiss, log, total = self._faiss, self._log, len(self._log.names)
        lists = int(4 * math.sqrt(total))
        generator = np.random.default_rng(0)

        def some(count: int) -> NDArray[np.int64]:
            return np.sort(generator.choice(total, min(count, total), replace=False))

        centers = faiss.IndexFlatIP(log.width)
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(centers, log.width, lists, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(log.take(some(TRAINING_ROWS * lists)).astype(np.float32))
        for _, vectors in log.shards():
            for start in range(0, len(vectors), PORTION):
                index.add(vectors[start : start + PORTION].astype(np.float32))
        asked = some(QUERIES)
        queries = log.take(asked).astype(np.float32)
        # Each finds itself, which is no merit: one more is asked for, and that one is left out.
        wanted, read, recall = self._truth(queries, NEAREST + 1), 1, 0.0
        while True:
            parameters = faiss.SearchParametersIVF(nprobe=read)
            found = index.search(queries, NEAREST + 1, params=parameters)[1]
            hits = [min(NEAREST, len(({*a} & {*b}) - {own})) for a, b, own in zip(found, wanted, asked, strict=True)]
            recall = float(np.mean(hits)) / min(NEAREST, total - 1)
            if recall >= RECALL or read >= lists:
                return index, read, recall
            read = min(2 * read, lists)

    def _truth(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The k nearest rows of each query, compared with all."""
        asked = torch.from_numpy(queries)
        best_scores, best_rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for first, vectors in self._log.shards():
            for start in range(0, len(vectors), PORTION):
                part: Tensor = torch.from_numpy(vectors[start : start + PORTION].astype(np.float32))
                scores, places = (asked @ part.T).topk(min(k, len(part)))
                best_scores = torch.cat([best_scores, scores], dim=1)
                best_rows = torch.cat([best_rows, places + first + start], dim=1)
                best_scores, kept = best_scores.topk(min(k, best_scores.shape[1]))
                best_rows = best_rows.gather(1, kept)
        return best_rows.numpy()
