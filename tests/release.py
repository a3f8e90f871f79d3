"""Check a release: build it, and run it with the oldest and the newest requirements on several versions of Python.

    make release-check
    python -m tests.release --python 3.11 3.13 --sets oldest newest

`python -m build` makes the sdist and the wheel, and `twine check` reads them. For each Python and set, uv installs the
requirements of setup.cfg and the wheel into an environment of its own, outside the checkout: the lowest versions that
setup.cfg allows, or the highest. Each environment runs `fastgoal quickstart`, the Python blocks of the README with a
tiny model in place of OpenAI's, and the core tests. The result is a table in Markdown.

Needs build, twine and uv, and the network.
"""

import argparse
import configparser
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
SHOWN = ("torch", "transformers", "accelerate", "datasets", "peft")
TOOLS = ("pytest>=8.3", "hypothesis>=6.100")
# Tests of the method, training, checkpoints and adapters that need no file of the checkout but those in tests/.
CORE = (
    "modeling_fastgoal",
    "processing/test_flism.py",
    "processing/test_processing_fastgoal.py",
    "processing/test_pixels.py",
    "processing/checkpoints/test_adapters.py",
    "trainer/test_trainer.py",
    "trainer/test_trainer_saving.py",
    "trainer/evaluation/test_evaluate.py",
    "fastgoal/export/test_average.py",
    "hub_cards/test_model_card.py",
)
# What the README's blocks name, in small.
PREPARE = """
from pathlib import Path
from PIL import Image
from tests.tiny_models import make_clip
make_clip(Path("openai/clip-vit-base-patch16"))
for name in ("photograph.jpg", "dog.jpg"):
    Image.radial_gradient("L").convert("RGB").resize((60, 40)).save(name)
"""


def requirements() -> list[str]:
    """Return the requirements of the package with adapters, as setup.cfg declares them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"] + config["options.extras_require"]["adapters"]
    return [line for line in lines.splitlines() if line and not line.startswith("#")]


def build(work: Path) -> Path:
    """Build a copy of the files that git knows or would add, check the result with twine, and return the wheel."""
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in files.splitlines():
        if (ROOT / name).is_file():
            (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / "source" / name)
    run([sys.executable, "-m", "build", "--outdir", str(work / "dist"), str(work / "source")])
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, (work / "dist").iterdir())])
    return next((work / "dist").glob("*.whl"))


def run(command: Sequence[str], cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it prints; raise `SystemExit` with that if it fails."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-6000:]}")
    return done.stdout


def check(folder: Path, wheel: Path, python: str, name: str) -> list[str]:
    """Install a set of requirements and the wheel into a folder, run all checks, and return the row of the table."""
    uv, interpreter = [sys.executable, "-m", "uv"], str(folder / "venv/bin/python")
    run([*uv, "venv", "--quiet", "--python", python, str(folder / "venv")])
    install = [*uv, "pip", "install", "--quiet", "--python", interpreter]
    run([*install, "--only-binary", ":all:", "--resolution", RESOLUTIONS[name], *requirements(), *TOOLS])
    run([*install, "--no-deps", str(wheel)])
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import platform\nfrom importlib.metadata import version\nprint(platform.python_version())\n"
        f"for name in {SHOWN}: print(version(name).partition('+')[0])"
    )
    row = [name, *run([interpreter, "-c", script], folder).split()]

    def result(command: Sequence[str], cwd: Path = folder) -> str:
        """Return "ok", or the last line of what a failed command prints; all of it is in a log in the folder."""
        try:
            text = run([interpreter, *command], cwd, HF_HUB_OFFLINE="1", PYTHONPATH=str(folder))
        except SystemExit as error:
            with open(folder / "errors.log", "a", encoding="utf-8") as log:
                log.write(f"{error}\n\n")
            return "**" + str(error).strip().splitlines()[-1].replace("|", "\\|")[:120] + "**"
        tests = re.search(r"\d+ passed.*? in", text)
        return tests[0].removesuffix(" in") if tests else "ok"

    row.append(result(["-m", "fastgoal", "quickstart"]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    (folder / "readme").mkdir()  # apart from the tests, which name the same model and expect it on the Hub
    row.append(result(["-c", PREPARE + "".join(blocks)], folder / "readme"))
    settings = folder / "pytest.ini"  # without the checkout, whose folders are not those of the package
    settings.write_text("[pytest]\npythonpath = .\nmarkers =\n    slow\n    outsider\n")
    tests = [f"tests/{test}" for test in CORE]
    options = ["-q", "--import-mode=importlib", "-m", "not slow and not outsider", "-p", "no:cacheprovider"]
    row.append(result(["-m", "pytest", *options, *tests]))
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=["3.11", "3.13"], help="versions or paths of Python")
    parser.add_argument("--sets", nargs="+", choices=RESOLUTIONS, default=list(RESOLUTIONS), help="requirements")
    parser.add_argument("--work", type=Path, help="folder to keep (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastgoal-release-") as temporary:
        work = (args.work or Path(temporary)).resolve()
        wheel = build(work)
        head = ["requirements", "Python", *SHOWN, "quickstart", "README", "core tests"]
        print(f"{wheel.name}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
        failed = False
        for number, (python, name) in enumerate(itertools.product(args.python, args.sets)):
            folder = work / f"{name}-{number}"
            row = check(folder, wheel, python, name)
            failed |= any(cell.startswith("**") for cell in row)
            print(f"| {' | '.join(row)} |", flush=True)
            shutil.rmtree(folder / "venv")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
