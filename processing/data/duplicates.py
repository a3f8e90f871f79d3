"""Duplicate captions: equal ones, and near-duplicates by MinHash, in time linear in the number of captions.

Captions are compared as words, without case and punctuation. Two captions are near-duplicates if the sets of their runs
of three words have a Jaccard similarity of at least a threshold. MinHash signatures in bands (Broder 1997; Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, 3.4) propose few pairs, which are compared exactly.

Packages for MinHash return all captions of a bucket, and so take quadratic time for captions from one template.
"""

import hashlib
import re
import unicodedata
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

RUN = 3  # words
BANDS, BAND_ROWS = 16, 4  # a pair of Jaccard similarity 0.7 is proposed with probability 0.99, of 0.8 with 0.9998
SIGNATURE = BANDS * BAND_ROWS
# Number of captions of a bucket that each of its captions is paired with, which keeps the work linear.
NEIGHBORS = 8
# Exact comparisons without a match after which a caption is skipped; the most promising ones come first.
TRIES = 4
# Pairs with an estimate this far below the threshold (two standard deviations) are not compared exactly.
SLACK = 0.12
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class NearGroup:
    """Captions that are similar without being equal.

    Attributes:
        rows: All rows of the group, including those with equal captions.
        pair: The least similar of the pairs that link the group.
        similarity: Jaccard similarity of that pair.
    """

    rows: list[int]
    pair: tuple[int, int]
    similarity: float


class CaptionDuplicates:
    """Finds duplicates among captions that are added in batches. It keeps 256 bytes of each different caption.

    Args:
        threshold: Lowest Jaccard similarity of near-duplicates.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._numbers: dict[bytes, int] = {}  # number of each different caption, by its digest
        self._first: list[int] = []  # first row of each different caption
        self._number_of = array("q")  # number of the caption of each row
        self._signatures: list[NDArray[np.uint32]] = []
        random = np.random.default_rng(0)
        self._factors = random.integers(0, 2**63, SIGNATURE, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._shifts = random.integers(0, 2**63, SIGNATURE, dtype=np.uint64)

    def add(self, captions: Sequence[str]) -> None:
        """Add the captions of the next rows."""
        new = []
        for caption in captions:
            words = caption_words(caption)
            digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
            number = self._numbers.setdefault(digest, len(self._first))
            if number == len(self._first):
                self._first.append(len(self._number_of))
                new.append(words)
            self._number_of.append(number)
        if new:
            self._signatures.append(self._sign(new))

    def equal(self) -> list[list[int]]:
        """Return groups of rows with the same words in their captions, the largest first."""
        return equal_groups(self._number_of)

    def near(self, read: Callable[[list[int]], list[str]]) -> list[NearGroup]:
        """Return groups of near-duplicates, the largest first. Each caption is similar to at least one of its group.

        Args:
            read: Returns the captions of rows in their order; it is called once, with the rows that may be similar.
        """
        if not self._first:
            return []
        signatures = np.concatenate(self._signatures)
        pairs = self._proposals(signatures)
        if not len(pairs):
            return []
        numbers = np.unique(pairs).tolist()
        texts = dict(zip(numbers, read([self._first[number] for number in numbers]), strict=True))

        @lru_cache(maxsize=2000)
        def runs(number: int) -> frozenset[tuple[str, ...]]:
            return word_runs(texts[number])

        parents = {number: number for number in numbers}
        tries = dict.fromkeys(numbers, TRIES)
        weakest: dict[int, tuple[float, int, int]] = {}
        for one, other in pairs.tolist():
            first, second = _root(parents, one), _root(parents, other)
            if first == second or not tries[one] or not tries[other]:
                continue
            similarity = jaccard(runs(one), runs(other))
            if similarity >= self.threshold:
                parents[second] = first
                known = [weakest.pop(root) for root in (first, second) if root in weakest]
                weakest[first] = min([(similarity, one, other), *known])
            else:
                tries[one] -= 1
                tries[other] -= 1
        members = defaultdict(list)
        for row, number in enumerate(self._number_of):
            if number in parents:
                members[_root(parents, number)].append(row)
        groups = [
            NearGroup(members[root], (self._first[one], self._first[other]), similarity)
            for root, (similarity, one, other) in weakest.items()
        ]
        return sorted(groups, key=lambda group: (-len(group.rows), group.rows))

    def _sign(self, captions: list[list[str]]) -> NDArray[np.uint32]:
        """Return the smallest value of a caption's word runs for each hash function, `(captions, SIGNATURE)`."""
        # Captions of one or two words are padded with zeros.
        hashed = [[zlib.crc32(word.encode()) for word in caption] + [0] * (RUN - len(caption)) for caption in captions]
        lengths = np.array([len(words) for words in hashed])
        windows = sliding_window_view(np.fromiter(chain.from_iterable(hashed), dtype=np.uint64), RUN)
        left = np.repeat(np.cumsum(lengths), lengths)[: len(windows)] - np.arange(
            len(windows)
        )  # words until the end of the caption
        runs = _mix(windows[left >= RUN])
        counts = lengths - RUN + 1
        starts = np.cumsum(counts) - counts
        signature = np.empty((len(captions), SIGNATURE), dtype=np.uint32)
        for column in range(SIGNATURE):
            values = (runs * self._factors[column] + self._shifts[column]) >> np.uint64(32)
            signature[:, column] = np.minimum.reduceat(values, starts)
        return signature

    def _proposals(self, signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return pairs of captions that share a band and have similar signatures, `(pairs, 2)`, most similar first."""
        count = len(signatures)
        shared = []
        for band in range(BANDS):
            keys = _mix(signatures[:, band * BAND_ROWS : (band + 1) * BAND_ROWS].astype(np.uint64))
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            for step in range(1, min(NEIGHBORS, count - 1) + 1):
                same = np.flatnonzero(keys[step:] == keys[:-step])
                if not len(same):
                    break
                one, other = order[same], order[same + step]
                shared.append(np.minimum(one, other) * count + np.maximum(one, other))
        codes = np.unique(np.concatenate(shared)) if shared else np.empty(0, dtype=np.int64)
        parts = np.array_split(codes, len(codes) // 100_000 + 1)
        estimates = np.concatenate(
            [(signatures[part // count] == signatures[part % count]).mean(axis=1) for part in parts]
        )
        order = np.argsort(-estimates, kind="stable")
        codes = codes[order[estimates[order] >= self.threshold - SLACK]]
        return np.stack([codes // count, codes % count], axis=1)


def equal_groups(keys: Iterable[Any]) -> list[list[int]]:
    """Return groups of indices with equal keys, the largest first. None equals nothing."""
    groups = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            groups[key].append(index)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def _mix(columns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one hash for each row of `(rows, columns)`."""
    keys = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def caption_words(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation."""
    if not caption.isascii():
        caption = unicodedata.normalize("NFKC", caption)
    return _WORD.findall(caption.casefold())


def word_runs(caption: str) -> frozenset[tuple[str, ...]]:
    """Return the runs of three words of a caption; a shorter caption is one run."""
    words = caption_words(caption)
    return frozenset(tuple(words[start : start + RUN]) for start in range(max(1, len(words) - RUN + 1)))


def jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Return the size of the intersection divided by the size of the union."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _root(parents: dict[int, int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number
