"""transformers' own tests of processors, run on ours and on the plain ones: ours must pass what the plain ones pass.

    python tests/peers/transformers_processors.py [SOURCE] [-k PART_OF_A_NAME]

SOURCE is the source archive or a checkout of the installed transformers, with `tests/test_processing_common.py`.
Without it `pip download` fetches the archive. Needs `pip install parameterized`.
"""

import argparse
import sys
import tempfile
import types
import unittest
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor, SiglipProcessor

sys.path.insert(0, str(Path(__file__).parents[2]))

from fastgoal import FastGoalProcessor
from tests.peers.transformers_models import outcomes_of, source_of, unpacked
from tests.tiny_models import make_clip, make_metaclip2, make_siglip

FAMILIES = {
    "clip": (make_clip, CLIPProcessor),
    "metaclip_2": (make_metaclip2, CLIPProcessor),
    "siglip": (make_siglip, SiglipProcessor),
}


def load_mixin(source: Path) -> Any:
    """Return `ProcessorTesterMixin`, without the files of other models that its module looks for."""
    package = types.ModuleType("transformers_processor_tests")
    package.__path__ = [str(source / "tests")]
    fetch = types.ModuleType("fetch_hub_objects_for_ci")
    fetch.url_to_local_path = lambda url: url  # type: ignore[attr-defined]
    sys.modules |= {package.__name__: package, fetch.__name__: fetch}
    return import_module(f"{package.__name__}.test_processing_common").ProcessorTesterMixin


def test_class(mixin: Any, processor: Any, folder: Path) -> Any:
    """Return the tests of a processor class with the tokenizer and image processor of a folder."""

    class ProcessorTest(mixin, unittest.TestCase):  # type: ignore[misc, valid-type]
        processor_class = processor

        @classmethod
        def _setup_tokenizer(cls) -> Any:
            return AutoTokenizer.from_pretrained(folder)

        @classmethod
        def _setup_image_processor(cls) -> Any:
            return AutoImageProcessor.from_pretrained(folder)

    return ProcessorTest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", metavar="SOURCE")
    parser.add_argument("-k", default="", metavar="PART", help="only tests with this in their names")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        mixin = load_mixin(unpacked(args.source or source_of(transformers.__version__, work), work))
        for family, (make, plain) in FAMILIES.items():
            folder = make(work / family)
            expected, got = (
                outcomes_of(test_class(mixin, processor, folder), args.k) for processor in (plain, FastGoalProcessor)
            )
            lost = {test: got[test] for test, outcome in expected.items() if outcome == "passed" != got[test]}
            counts = [list(outcomes.values()).count("passed") for outcomes in (expected, got)]
            print(f"{family}: {counts[1]} of {len(got)} passed, {plain.__name__}: {counts[0]}")
            for test, error in lost.items():
                print(f"  {test}: {error}")
            wrong += sum(error != "skipped" for error in lost.values())
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
