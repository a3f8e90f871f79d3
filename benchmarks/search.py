"""What an index of images costs: bytes written on the way to it, time of a query, recall beyond a million.

    python -m benchmarks.search                        # 100,000 vectors, all compared
    python -m benchmarks.search --images 1200000       # also the inverted file: minutes, and 6 GB of memory

The vectors are made up, in groups: half of a vector's length is its group's. Those of real images lie otherwise, and an
index of theirs measures its recall itself.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.timing import timed
from fastgoal.search.index import _PORTION
from fastgoal.search.nearest import Nearest
from fastgoal.search.vector_log import VectorLog

WIDTH, GROUPS = 512, 5000


def made_up(count: int, seed: int) -> torch.Tensor:
    """Normalized vectors `(count, WIDTH)`."""
    centers = torch.randn(GROUPS, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(GROUPS, (count,), generator=generator)
    return torch.nn.functional.normalize(centers[group] + torch.randn(count, WIDTH, generator=generator), dim=1)


def write_all(log: VectorLog, images: int) -> int:
    """Append so many vectors as `ImageIndex.update` does; gives the bytes on the disk, each of them written once."""
    for start in range(0, images, _PORTION):
        names = [f"photographs/{number:08d}.jpg" for number in range(start, min(start + _PORTION, images))]
        log.append(made_up(len(names), start + 1), names, {name: [123456, 1700000000] for name in names}, {})
    return sum(path.stat().st_size for path in log.place.iterdir())


def write_whole(place: Path, images: int) -> int:
    """The same with one file that is written anew for each portion, as version 0.1 did; gives all bytes written."""
    index = faiss.IndexScalarQuantizer(WIDTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    names: list[str] = []
    written = 0
    for start in range(0, images, _PORTION):
        count = min(_PORTION, images - start)
        index.add(made_up(count, start + 1).numpy())
        names += [f"photographs/{number:08d}.jpg" for number in range(start, start + count)]
        faiss.write_index(index, str(place / "vectors"))
        (place / "state").write_text(json.dumps({"paths": names, "stamps": {n: [123456, 1700000000] for n in names}}))
        written += sum(path.stat().st_size for path in place.iterdir())
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--whole-images", type=int, default=100_000, help="for the way of version 0.1; 0 leaves it out")
    args = parser.parse_args()
    queries = made_up(50, 999).numpy()
    print(f"{args.images:,} vectors of width {WIDTH}, {torch.get_num_threads()} threads, faiss {faiss.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if args.whole_images:
            (place / "whole").mkdir()
            print(f"one file, written {-(-args.whole_images // _PORTION)} times: ", end="", flush=True)
            print(f"{write_whole(place / 'whole', args.whole_images) / 1e6:,.0f} MB for {args.whole_images:,}")
        log = VectorLog(place / "index", "made up", "one")
        print(f"shards: {write_all(log, args.images) / 1e6:,.0f} MB written")
        start = time.perf_counter()
        log = VectorLog(place / "index", "made up", "one")
        searcher = Nearest(faiss, log)
        if searcher.recall is not None:
            print(f"inverted file: made in {time.perf_counter() - start:.0f} s, ", end="")
            print(
                f"reads {searcher._parameters.nprobe} of {searcher._inverted.nlist} lists, recall {searcher.recall:.3f}"
            )
            start = time.perf_counter()
            searcher = Nearest(faiss, VectorLog(place / "index", "made up", "one"))
        print(f"opened in {time.perf_counter() - start:.1f} s")
        times = [timed(lambda query=query: searcher.search(query, 10))[0] for query in queries]
        print(f"a query: {1000 * float(np.median(times)):.1f} ms (median of {len(queries)})")


if __name__ == "__main__":
    main()
