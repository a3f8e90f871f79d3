"""transformers' own tests of models, run on our classes and on the plain ones: ours must pass what the plain ones pass.

    python tests/peers/transformers_models.py [SOURCE] [--family clip metaclip_2 siglip] [-k PART_OF_A_NAME]

SOURCE is the source archive or a checkout of the installed transformers, whose `tests/test_modeling_common.py` says
what every model must do (initialization, save and load, attention implementations, gradient checkpointing, devices...).
Without it `pip download` fetches the archive. Needs `pip install parameterized`.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

import fastgoal

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "clip": ("FastGoalCLIPModel", {"projection_dim": 16}, {"bos_token_id": 97, "eos_token_id": 98}),
    "metaclip_2": ("FastGoalMetaClip2Model", {"projection_dim": 16}, {"bos_token_id": 97, "eos_token_id": 98}),
    "siglip": ("FastGoalSiglipModel", {}, {}),
}
ROWS, TOKENS, SIDE, PATCH = 4, 7, 30, 5


def source_of(version: str, folder: Path) -> Path:
    """Download the source archive of a version of transformers and return its path."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", ":all:"]
    # pip also tries to build the archive, which may fail without setuptools, after the download.
    subprocess.run([*command, f"transformers=={version}", "-d", str(folder)], check=False)
    return next(folder.glob("transformers-*.tar.gz"))


def unpacked(source: Path, work: Path) -> Path:
    """Return the folder of a source, extracting it into `work` if it is an archive."""
    if source.is_dir():
        return source
    with tarfile.open(source) as archive:
        archive.extractall(work, filter="data")
    return next(work.glob("transformers-*/"))


def load_mixin(source: Path) -> Any:
    """Return `ModelTesterMixin`, with empty classes for the parts that archives lack."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(source / "tests")]
    sys.modules["transformers_tests"] = package
    missing = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
    for part, name in missing.items():
        parent = types.ModuleType(f"transformers_tests.{part.partition('.')[0]}")
        module = types.ModuleType(f"transformers_tests.{part}")
        setattr(module, name, type(name, (), {}))
        sys.modules |= {parent.__name__: parent, module.__name__: module}
    return import_module("transformers_tests.test_modeling_common").ModelTesterMixin


class Tester:
    """Makes configurations and inputs for the tests of a family."""

    def __init__(self, model_class: Any, more: dict[str, Any], text: dict[str, Any], local: bool):
        self.model_class, self.more, self.text, self.local = model_class, more, text, local
        self.batch_size, self.seq_length, self.is_training = ROWS, TOKENS, False

    def get_config(self) -> Any:
        text = {**TOWER, **self.more, **self.text, "vocab_size": 99, "max_position_embeddings": 64}
        vision = {**TOWER, **self.more, "image_size": SIDE, "patch_size": PATCH}
        return self.model_class.config_class(text_config=text, vision_config=vision, **self.more)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        def ids() -> torch.Tensor:
            drawn = torch.randint(3, 90, (ROWS, TOKENS))
            drawn[:, -1] = self.text.get("eos_token_id", 1)
            return drawn

        inputs = {"input_ids": ids(), "pixel_values": torch.rand(ROWS, 3, SIDE, SIDE)}
        if self.text:
            inputs["attention_mask"] = torch.ones(ROWS, TOKENS, dtype=torch.long)
        if self.local:
            inputs |= {"local_input_ids": ids(), "local_pixel_values": torch.rand(ROWS, 3, SIDE, SIDE)}
            inputs["region_mask"] = torch.rand(ROWS, (SIDE // PATCH) ** 2) < 0.3
            inputs["sentence_mask"] = torch.tensor([[0, 1, 1, 0, 1, 0, 0]] * ROWS, dtype=torch.bool)
        return self.get_config(), inputs


def test_class(mixin: Any, model_class: Any, more: Any, text: Any, local: bool) -> Any:
    """Return the tests of a model class."""

    class ModelTest(mixin, unittest.TestCase):  # type: ignore[misc, valid-type]
        all_model_classes = (model_class,)
        has_attentions = False
        test_resize_embeddings = False
        test_attention_outputs = False

        def setUp(self) -> None:
            self.model_tester = Tester(model_class, more, text, local)
            torch.manual_seed(0)

    return ModelTest


def outcomes_of(tests: Any, part: str) -> dict[str, str]:
    """Run the tests with `part` in their names; return `passed`, `skipped` or the last line of the error by name."""
    outcomes: dict[str, str] = {}
    names = [name for name in unittest.TestLoader().getTestCaseNames(tests) if part in name]
    for name in names:
        result = unittest.TestResult()
        unittest.TestSuite([tests(name)]).run(result)
        wrong = [*result.failures, *result.errors]
        outcomes[name] = wrong[0][1].strip().splitlines()[-1] if wrong else "skipped" if result.skipped else "passed"
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", metavar="SOURCE")
    parser.add_argument("--family", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("-k", default="", metavar="PART", help="only tests with this in their names")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        mixin = load_mixin(unpacked(args.source or source_of(transformers.__version__, work), work))
        for family in args.family:
            name, more, text = FAMILIES[family]
            ours = getattr(fastgoal, name)
            plain = ours.__bases__[-1]
            expected = outcomes_of(test_class(mixin, plain, more, text, False), args.k)
            for local in (False, True):
                got = outcomes_of(test_class(mixin, ours, more, text, local), args.k)
                lost = {test: got[test] for test, outcome in expected.items() if outcome == "passed" != got[test]}
                counts = [list(outcomes.values()).count("passed") for outcomes in (expected, got)]
                title = f"{name}{' with local pairs' if local else ''}"
                print(f"{title}: {counts[1]} of {len(got)} passed, {plain.__name__}: {counts[0]}")
                for test, error in lost.items():
                    print(f"  {test}: {error}")
                wrong += sum(error != "skipped" for error in lost.values())
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
