import configparser
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastgoal

ROOT = Path(__file__).resolve().parents[2]
DECLARED = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in")
TEXTS = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist and the wheel made from it, built from a copy without anything left of another build."""
    source = tmp_path_factory.mktemp("source")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = [line.split("=")[1].strip() for line in config["options"]["package_dir"].strip().splitlines()]
    for folder in [*folders, "tests"]:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*DECLARED, *TEXTS):
        shutil.copy(ROOT / name, source)
    output = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check"]
    result = subprocess.run(
        [*command, "--outdir", str(output), str(source)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return output


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the unpacked wheel, which is what `pip install --target` makes of it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(script, cwd, *paths):
    """Run a script in a fresh process that finds `paths` first and knows nothing of the checkout's folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert all(name.startswith(("fastgoal/", "fastgoal-")) for name in names)
    assert not [name for name in names if "test" in name or "__pycache__" in name]
    expected = {"fastgoal/py.typed"}
    mapping = {
        "fastgoal": "fastgoal",
        "modeling_fastgoal": "fastgoal/modeling_fastgoal",
        "processing": "fastgoal/processing",
        "trainer": "fastgoal/trainer",
        "hub_cards": "fastgoal/hub_cards",
    }
    # Every file of the source tree that means something at run time, not only those that somebody remembered to list.
    for folder, package in mapping.items():
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT / folder).as_posix()
            if path.is_file() and path.suffix != ".pyc" and not any(part.startswith(".") for part in name.split("/")):
                expected.add(f"{package}/{name}")
    assert {name for name in names if name.startswith("fastgoal/")} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_what_the_wheel_is_made_from_and_no_tests(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*DECLARED, *TEXTS}
    assert not [name for name in names if "test" in name or "__pycache__" in name]


def test_wheel_is_small(wheel):
    assert wheel.stat().st_size < 8_000_000


@pytest.mark.slow
def test_installed_wheel_gives_all_public_names(installed, tmp_path):
    script = (
        "import fastgoal, pathlib\n"
        "print(pathlib.Path(fastgoal.__file__).parent)\n"
        "for name in fastgoal.__all__:\n"
        "    assert getattr(fastgoal, name) is not None, name\n"
        "import fastgoal.processing\n"
        "print(pathlib.Path(fastgoal.processing.__file__).parent)\n"
    )
    place, processing = python(script, tmp_path, installed).splitlines()
    assert place == str(installed / "fastgoal")
    assert processing == str(installed / "fastgoal" / "processing")


def test_installed_wheel_has_the_command(installed, tmp_path):
    assert python("import sys; sys.argv[1:] = ['--version']; import fastgoal.__main__", tmp_path, installed) == ""
    script = (
        "from importlib.metadata import distribution\n"
        "(entry,) = distribution('fastgoal').entry_points\n"
        "print(entry.name, entry.value)"
    )
    assert python(script, tmp_path, installed).split() == ["fastgoal", "fastgoal.cli:main"]


@pytest.mark.slow
def test_installed_wheel_trains_through_accelerate(installed, tiny_clip, pairs_folder, tmp_path):
    script = (
        "import sys, runpy, fastgoal.trainer\n"
        f"assert fastgoal.trainer.__file__.startswith({str(installed)!r})\n"
        f"sys.argv[1:] = ['--config_file', {str(installed / 'fastgoal/trainer/accelerate_configs/cpu.yaml')!r}, '-m',\n"
        f"    'fastgoal.trainer.run', '--model', {str(tiny_clip)!r}, '--train_data', {str(pairs_folder)!r},\n"
        "    '--output_dir', 'out', '--max_steps', '1', '--use_cpu', '--per_device_train_batch_size', '4']\n"
        "runpy.run_module('accelerate.commands.launch', run_name='__main__')\n"
    )
    python(script, tmp_path, installed)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_import_is_light(tmp_path):
    script = "import fastgoal, sys; dir(fastgoal); print(*sys.modules)"
    modules = python(script, tmp_path).split()
    assert "fastgoal" in modules
    assert not {"torch", "transformers", "datasets", "ultralytics", "numpy", "PIL"} & set(modules)


def test_public_names():
    assert set(fastgoal.__all__) == {*fastgoal._MODULES, "__version__"}
    assert set(fastgoal.__all__) <= set(dir(fastgoal))
    for name, module in fastgoal._MODULES.items():
        assert getattr(fastgoal, name) is getattr(importlib.import_module(module), name)


def test_from_import():
    from fastgoal import retrieval_metrics

    assert (
        retrieval_metrics is importlib.import_module("fastgoal.trainer.evaluation.measures.retrieval").retrieval_metrics
    )


def test_version_is_the_one_of_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert fastgoal.__version__ == config["metadata"]["version"]


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'fastgoal' has no attribute 'FastGaol'"):
        _ = fastgoal.FastGaol
    assert not hasattr(fastgoal, "__wrapped__")
