from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sparsebench"
FILES = sorted(SOURCE.rglob("*.py"))

# What each part may import of the package, besides itself. Arrows point one way.
BASE = {"errors", "registry"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "registry": {"errors"},
    "sparsifiers": BASE,
    "workloads": BASE | {"atomic"},
    "accounting": BASE,
    "atomic": {"errors"},
    "storage": {"errors", "atomic"},
    "records": {"errors", "atomic"},
    "analysis": {"errors", "atomic", "records"},
    "training": BASE | {"atomic", "sparsifiers", "workloads", "accounting", "storage", "records"},
    "integrations": {"errors", "sparsifiers"},
    "inference": {"errors", "atomic", "accounting", "sparsifiers"},
    "deployment": {"errors", "atomic", "workloads", "storage", "records", "inference"},
    "studies": BASE | {"atomic", "sparsifiers", "workloads", "records", "training"},
    "terminal": {"errors", "records", "analysis", "training", "studies"},
    "environment_options": set(),
    "assignments": {"errors"},
    "execution_options": {"errors", "assignments", "records", "studies"},
    "study_commands": {
        "errors",
        "terminal",
        "environment_options",
        "assignments",
        "execution_options",
        "records",
        "analysis",
        "training",
        "studies",
    },
    "network_commands": {"terminal", "environment_options", "inference", "deployment"},
    "cli": BASE
    | {
        "terminal",
        "environment_options",
        "assignments",
        "study_commands",
        "network_commands",
        "storage",
        "records",
        "analysis",
        "training",
        "studies",
        "sparsifiers",
        "workloads",
    },
    # The public names; no part is allowed to import them from here.
    "__init__": {"errors", "accounting", "sparsifiers"},
    "__main__": {"cli"},
}
LONGEST = 400
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "base", "core", "lib", "tools"}


def part(file: Path) -> str:
    return file.relative_to(SOURCE).with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    """Modules that a file imports anywhere, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} line {node.lineno}: a relative import"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def parts_imported(file: Path) -> set[str]:
    ours = [name.split(".") for name in imported(file) if name.split(".")[0] == "sparsebench"]
    return {names[1] if len(names) > 1 else "__init__" for names in ours} - {part(file)}


def test_every_part_is_on_the_map() -> None:
    assert {part(file) for file in FILES} == set(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_one_way(name: str) -> None:
    wrong = {
        str(file.relative_to(SOURCE)): sorted(parts_imported(file) - ALLOWED[name])
        for file in FILES
        if part(file) == name and parts_imported(file) - ALLOWED[name]
    }
    assert wrong == {}


def test_map_has_no_circle() -> None:
    left = dict(ALLOWED)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("name", ["atomic", "records", "analysis", "registry", "errors", "terminal"])
def test_parts_without_torch_do_not_import_it(name: str) -> None:
    files = [file for file in FILES if part(file) == name]
    assert files
    for file in files:
        assert not {module for module in imported(file) if module.split(".")[0] in ("torch", "safetensors", "numpy.torch")}, file


@pytest.mark.parametrize(
    "module",
    [
        "sparsebench",
        "sparsebench.cli",
        "sparsebench.records.importing.results_folder",
        "sparsebench.records.query",
        "sparsebench.records.run_folder",
        "sparsebench.analysis.page",
    ],
)
def test_module_answers_without_loading_torch(module: str) -> None:
    program = f"import sys, {module}; print([name for name in sys.modules if name.split('.')[0] in ('torch', 'sklearn')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(SOURCE)) for file in FILES])
def test_file_can_be_read_in_one_sitting_and_says_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert file.stem.lower() not in VAGUE
    assert file.parent.name.lower() not in VAGUE
    assert ast.get_docstring(ast.parse(text)), "no docstring"


def test_accelerate_and_other_trackers_stay_out() -> None:
    """The core needs torch, numpy and safetensors; sparsifiers and accounting nothing else at import."""
    for file in FILES:
        if part(file) in ("sparsifiers", "accounting", "storage"):
            foreign = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names)
            extras = {"accounting": {"pandas"}, "storage": {"safetensors", "zstandard"}}.get(part(file), set())
            assert foreign <= {"sparsebench", "torch", "numpy"} | extras, file
