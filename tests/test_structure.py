"""The structure that CONTRIBUTING.md draws: which folder imports which, no circles, tests where their subject lies."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A stage may import itself and those before it.
STAGES = (
    "modeling_fastgoal",
    "processing",
    "processing/checkpoints",
    "processing/detectors",
    "processing/data",
    "processing/builders",
    "hub_cards",
    "trainer/cli",
    "trainer/parallel",
    "trainer/batches",
    "trainer/evaluation/measures",
    "trainer/evaluation/protocols",
    "trainer/evaluation",
    "trainer",
    "trainer/reproduce",
    "fastgoal/export",
    "fastgoal/search",
    "fastgoal/retrieval_recall",
    "fastgoal/pages",
    "fastgoal/quickstart",
    "fastgoal/demo",
    "hub_cards/space",
    "fastgoal/commands",
    "fastgoal",
    "benchmarks",
)
TOPS = ("modeling_fastgoal", "processing", "hub_cards", "trainer", "fastgoal", "benchmarks")
# Subjects that are more than one file: a folder as others find it, several processes, the whole package.
CROSS_CUTTING = {
    "tests/test_structure.py",
    "tests/docs/test_docs.py",
    "tests/fastgoal/test_families.py",
    "tests/fastgoal/test_fresh_process.py",
    "tests/fastgoal/test_loading.py",
    "tests/fastgoal/test_package.py",
    "tests/trainer/test_two_processes.py",
    "tests/campaign/test_campaign.py",
    "tests/trainer/test_accelerate_configs.py",
}
ALLOWED_TO_TRAVEL = {*sys.stdlib_module_names, "huggingface_hub", "numpy", "PIL", "torch", "transformers"}


def sources() -> dict[str, Path]:
    """The project's modules by their import names (benchmarks by their paths with full stops)."""
    found = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
            found[name if top in ("fastgoal", "benchmarks") else f"fastgoal.{name}"] = path
    return found


MODULES = sources()


def imports_of(name: str, path: Path) -> set[str]:
    """The project's modules that a file names in an import, at its top or inside of functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            candidates = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES] or [base]
        else:
            continue
        found.update(candidate for candidate in candidates if candidate in MODULES)
    # The public names of the package are found when they are asked for, wherever they lie.
    return found - {name, "fastgoal"}


EDGES = {name: imports_of(name, path) for name, path in MODULES.items() if name != "fastgoal"}


def stage_of(name: str) -> str:
    folder = MODULES[name].parent.relative_to(ROOT).as_posix()
    return next(stage for stage in sorted(STAGES, key=len, reverse=True) if f"{folder}/".startswith(f"{stage}/"))


def test_a_stage_imports_only_earlier_ones():
    wrong = [
        f"{name} imports {other}"
        for name, others in EDGES.items()
        for other in sorted(others)
        if STAGES.index(stage_of(other)) > STAGES.index(stage_of(name))
    ]
    assert not wrong


def test_there_are_no_circles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(EDGES.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in EDGES:
        visit(name, ())


def test_what_travels_with_a_checkpoint_imports_its_siblings_only():
    travelling = [ROOT / "processing/processing_fastgoal.py", *(ROOT / "modeling_fastgoal").glob("*_fastgoal.py")]
    seen = set()
    while travelling:
        path = travelling.pop()
        if path in seen:
            continue
        seen.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # FLISM stays in the package, and the processor does without it where the package is missing.
        tree.body = [node for node in tree.body if not isinstance(node, ast.Try)]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path
                travelling.append(path.with_name(f"{node.module}.py"))
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {str(name).split(".")[0] for name in names} <= ALLOWED_TO_TRAVEL, path
    assert {path.parent.name for path in seen} == {"modeling_fastgoal", "processing"}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_a_test_lies_where_its_subject_lies(path):
    where = path.relative_to(ROOT)
    if where.as_posix() in CROSS_CUTTING:
        return
    folder = ROOT / where.relative_to("tests").parent
    names = [source.stem.strip("_").removesuffix("_fastgoal") for source in folder.glob("*.py")]
    # test_positions.py is about positions_fastgoal.py, test_pairs_in_processes.py about pairs.py.
    assert any(re.fullmatch(rf"test_{re.escape(name)}(_\w+)?", path.stem) for name in names)


# These parse a command line of their own.
COMMAND_LINES = (
    "trainer/cli/",
    "trainer/reproduce/",
    "trainer/run.py",
    "fastgoal/commands/",
    "fastgoal/cli.py",
    "fastgoal/quickstart/train_base.py",
)


def messages(tree: ast.AST) -> Iterator[str]:
    """The string literals of a module without docstrings and elements of lists; `{}` stands for a value."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Expr | ast.JoinedStr):
            skipped.update(ast.iter_child_nodes(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_library_code_names_parameters_and_not_flags():
    found = []
    for path in MODULES.values():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("benchmarks/") or name.startswith(COMMAND_LINES):
            continue
        for text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            # A whole command may have flags: `fastgoal merge ADAPTER --output DIR`.
            without_commands = re.sub(r"(?:fastgoal|ray) [a-z][^`\n]*", "", text)
            found += [f"{name}: {flag}" for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", without_commands)]
    assert not found
