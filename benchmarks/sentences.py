"""Where our sentence splitter, plain sentencex and pysbd disagree about captions, and how fast each of them is.

    python -m benchmarks.sentences captions.jsonl [more.jsonl ...]    # lines with `caption` (or a list `captions`)

Prints each place at which not all of them start a sentence, with the names of those that do, and captions per second.
pysbd takes part where it is installed (`pip install pysbd`). Which of them is right is for the reader to say.
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
    """Index of the first character at or after `start` that is not white space."""
    rest = caption[start:]
    return start + len(rest) - len(rest.lstrip())


def load_splitters() -> dict[str, Splitter]:
    """Name -> function from a caption to the indices at which its sentences start."""
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
    """Name and caption of each row of the files."""
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            row = json.loads(line)
            name = str(row.get("id", row.get("file_name", f"line {number}")))
            for caption in row.get("captions") or [row["caption"]]:
                yield name, caption


def main() -> None:
    """Reads the captions, prints differences and speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", nargs="+", type=Path, help="jsonl files")
    parser.add_argument("--lines", type=int, default=80, help="print at most this many differences; default 80")
    args = parser.parse_args()
    rows, splitters = list(read_captions(args.captions)), load_splitters()
    seconds, differences = dict.fromkeys(splitters, 0.0), []
    for name, caption in rows:
        starts = {}
        for splitter, split in splitters.items():  # one after the other: a busy machine slows all of them down alike
            begin = time.perf_counter()
            starts[splitter] = split(caption)
            seconds[splitter] += time.perf_counter() - begin
        for place in sorted(set.union(*starts.values()) - set.intersection(*starts.values()) - {len(caption)}):
            who = ", ".join(splitter for splitter in splitters if place in starts[splitter])
            context = f"{caption[max(place - 50, 0) : place]}| {caption[place : place + 40]}"
            differences.append(f"{name} [{who}] {context!r}")
    print("\n".join(differences[: args.lines]))
    print(f"{len(rows)} captions, {len(differences)} differences, captions per second:", end=" ")
    print(", ".join(f"{name} {len(rows) / max(spent, 1e-9):,.0f}" for name, spent in seconds.items()))


if __name__ == "__main__":
    main()
