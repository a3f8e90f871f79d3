"""The shipped configurations, as `accelerate launch` reads them."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file

from fastgoal import FastGoalCLIPModel

FOLDER = Path(__file__).resolve().parents[2] / "trainer" / "accelerate_configs"
EXPECTED = {
    "one_gpu": ("NO", "bf16"),
    "many_gpus": ("MULTI_GPU", "bf16"),
    "cpu": ("NO", "no"),
    "fsdp": ("FSDP", "bf16"),
}


def test_these_are_all():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name):
    path = str(FOLDER / f"{name}.yaml")
    config = load_config_from_file(path)
    assert (str(config.distributed_type).split(".")[-1], config.mixed_precision) == EXPECTED[name]
    args = launch.launch_command_parser().parse_args(["--config_file", path, "--num_processes", "1", "run.py"])
    args, _, _ = launch._validate_launch_command(args)
    assert args.num_processes == 1
    assert args.use_cpu is (name == "cpu")
    assert bool(args.use_fsdp) is (name == "fsdp")


def test_the_wrapped_layer_is_the_models(tiny_clip):
    settings = yaml.safe_load((FOLDER / "fsdp.yaml").read_text())["fsdp_config"]
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    names = [type(module).__name__ for module in model.modules()]
    assert names.count(settings["fsdp_transformer_layer_cls_to_wrap"]) == 4  # two layers in each tower
