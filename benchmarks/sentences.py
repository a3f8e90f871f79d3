"""Compare our sentence splitter with plain sentencex and pysbd: their differences on captions, and their speed.

    python -m benchmarks.sentences captions.jsonl [more.jsonl ...]    # lines with `caption` (or a list `captions`)

Prints each position where only some of them start a sentence, with their names, and captions per second. pysbd is
included if it is installed (`pip install pysbd`).
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.sentences import split_sentences

Splitter = Callable[[str], set[int]]


def first_visible(caption: str, start: int) -> int:
    """Return the index of the first character at or after `start` that is not white space."""
    rest = caption[start:]
    return start + len(rest) - len(rest.lstrip())


def load_splitters() -> dict[str, Splitter]:
    """Return functions by name, from a caption to the indices at which its sentences start."""
    sentencex: Any = importlib.import_module("sentencex")
    splitters: dict[str, Splitter] = {
        "fastgoal": lambda caption: {sentence.start for sentence in split_sentences(caption)},
        "sentencex": lambda caption: {
            first_visible(caption, part["start_index"]) for part in sentencex.get_sentence_boundaries("en", caption)
        },
    }
    try:
        segmenter = importlib.import_module("pysbd").Segmenter(language="en", clean=False, char_span=True)
    except ImportError:
        return splitters
    return {**splitters, "pysbd": lambda text: {first_visible(text, span.start) for span in segmenter.segment(text)}}


def read_captions(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield name and caption of each row of the files."""
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            row = json.loads(line)
            name = str(row.get("id", row.get("file_name", f"line {number}")))
            for caption in row.get("captions") or [row["caption"]]:
                yield name, caption


def main() -> None:
    """Read the captions, and print differences and speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", nargs="+", type=Path, help="jsonl files")
    parser.add_argument("--lines", type=int, default=80, help="largest number of differences to print (default: 80)")
    args = parser.parse_args()
    rows, splitters = list(read_captions(args.captions)), load_splitters()
    seconds, differences = dict.fromkeys(splitters, 0.0), []
    for name, caption in rows:
        starts = {}
        for splitter, split in splitters.items():  # in turn, so that a busy machine slows all of them down
            begin = time.perf_counter()
            starts[splitter] = split(caption)
            seconds[splitter] += time.perf_counter() - begin
        for start in sorted(set.union(*starts.values()) - set.intersection(*starts.values()) - {len(caption)}):
            names = ", ".join(splitter for splitter in splitters if start in starts[splitter])
            context = f"{caption[max(start - 50, 0) : start]}| {caption[start : start + 40]}"
            differences.append(f"{name} [{names}] {context!r}")
    print("\n".join(differences[: args.lines]))
    print(f"{len(rows)} captions, {len(differences)} differences, captions per second:", end=" ")
    print(", ".join(f"{name} {len(rows) / max(spent, 1e-9):,.0f}" for name, spent in seconds.items()))


if __name__ == "__main__":
    main()
