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
    """The source archive of a version of transformers."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", ":all:"]
    # pip also tries to build what it has fetched, which may fail for want of setuptools: the archive is there then.
    subprocess.run([*command, f"transformers=={version}", "-d", str(folder)], check=False)
    return next(folder.glob("transformers-*.tar.gz"))


def load_mixin(source: Path, work: Path) -> Any:
    """`ModelTesterMixin`, with empty classes for its parts about exporting and generating, which archives lack."""
    if source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(work, filter="data")
        source = next(path for path in work.iterdir() if path.is_dir())
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

    def __init__(self, kind: Any, more: dict[str, Any], text: dict[str, Any], local: bool):
        self.kind, self.more, self.text, self.local = kind, more, text, local
        self.batch_size, self.seq_length, self.is_training = ROWS, TOKENS, False

    def get_config(self) -> Any:
        text = {**TOWER, **self.more, **self.text, "vocab_size": 99, "max_position_embeddings": 64}
        vision = {**TOWER, **self.more, "image_size": SIDE, "patch_size": PATCH}
        return self.kind.config_class(text_config=text, vision_config=vision, **self.more)

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


def outcomes(mixin: Any, kind: Any, more: Any, text: Any, local: bool, part: str) -> dict[str, str]:
    """What becomes of every test, by its name: `passed`, `skipped`, or the last line of the error."""

    class ModelTest(mixin, unittest.TestCase):  # type: ignore[misc, valid-type]
        all_model_classes = (kind,)
        has_attentions = False
        test_resize_embeddings = False
        test_attention_outputs = False

        def setUp(self) -> None:
            self.model_tester = Tester(kind, more, text, local)
            torch.manual_seed(0)

    found: dict[str, str] = {}
    for name in unittest.TestLoader().getTestCaseNames(ModelTest):
        if part in name:
            result = unittest.TestResult()
            ModelTest(name).run(result)
            wrong = [*result.failures, *result.errors]
            found[name] = wrong[0][1].strip().splitlines()[-1] if wrong else "skipped" if result.skipped else "passed"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", metavar="SOURCE")
    parser.add_argument("--family", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("-k", default="", metavar="PART", help="only tests with this in their names")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        mixin = load_mixin(args.source or source_of(transformers.__version__, Path(folder)), Path(folder))
        for family in args.family:
            name, more, text = FAMILIES[family]
            ours = getattr(fastgoal, name)
            plain = ours.__bases__[-1]
            expected = outcomes(mixin, plain, more, text, False, args.k)
            for local in (False, True):
                got = outcomes(mixin, ours, more, text, local, args.k)
                lost = {test: got[test] for test, how in expected.items() if how == "passed" != got[test]}
                counts = [list(how.values()).count("passed") for how in (expected, got)]
                title = f"{name}{' with local pairs' if local else ''}"
                print(f"{title}: {counts[1]} of {len(got)} passed, {plain.__name__}: {counts[0]}")
                for test, error in lost.items():
                    print(f"  {test}: {error}")
                wrong += sum(error != "skipped" for error in lost.values())
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
