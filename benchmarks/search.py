"""Write an index of made-up vectors and search it.

    python -m benchmarks.search                     # 100,000 vectors, all of them compared
    python -m benchmarks.search --images 1200000    # above a million: LanceDB's inverted file, with its recall

The vectors lie in groups: half of a vector's length is the center of its group. Those of real images are distributed
differently.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import timed
from fastgoal.search import index as index_module
from fastgoal.search.index import ImageIndex

WIDTH, GROUPS, QUERIES, TOP_K = 512, 5000, 20, 10


def made_up(count: int, seed: int) -> torch.Tensor:
    """Return normalized vectors `(count, WIDTH)`."""
    centers = torch.randn(GROUPS, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(GROUPS, (count,), generator=generator)
    return torch.nn.functional.normalize(centers[group] + torch.randn(count, WIDTH, generator=generator), dim=1)


class MadeUpIndex(ImageIndex):
    """An index that makes up its vectors, which takes `made_up_seconds`."""

    made_up_seconds = 0.0

    def _embed(
        self, names: Sequence[str], errors: dict[str, str], batch_size: int, num_workers: int, progress: bool
    ) -> NDArray[np.float16]:
        start = time.perf_counter()
        vectors = made_up(len(names), int(names[0][:8]) + 1).half().numpy()
        self.made_up_seconds += time.perf_counter() - start
        return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="number of vectors (default: %(default)s)")
    images = parser.parse_args().images
    queries = made_up(QUERIES, 999).numpy()
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{number:08d}.jpg" for number in range(images)]
        index_module.embedder_fingerprint = lambda model, processor: "made up"
        index_module._list_files = lambda *args: (dict.fromkeys(names, (123456, 1700000000)), {})
        start = time.perf_counter()
        index = MadeUpIndex(folder, None, None)
        index.update()
        seconds = time.perf_counter() - start - index.made_up_seconds
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"{images:,} vectors of width {WIDTH}: written in {seconds:.1f} s, {size / 1e6:,.0f} MB")
        start = time.perf_counter()
        index = MadeUpIndex(folder, None, None)
        index.update()
        print(f"opened and compared with the files in {time.perf_counter() - start:.2f} s")
        times = [timed(lambda query=query: index._nearest(query, TOP_K))[0] for query in queries]
        print(f"a query: {1000 * float(np.median(times)):.0f} ms (median of {QUERIES})")
        if images > index_module.EXACT_UP_TO:
            hits = [index._nearest(query, TOP_K) for query in queries]
            index_module.EXACT_UP_TO = images
            exact = [index._nearest(query, TOP_K) for query in queries]
            shares = [len({*one} & {*other}) / TOP_K for one, other in zip(hits, exact, strict=True)]
            print(f"recall of the {TOP_K} nearest: {np.mean(shares):.3f}")


if __name__ == "__main__":
    main()
