"""The method of CONTRIBUTING, as somebody else's installed package: everything knows it, and nothing of ours was changed."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebench.records.query import query
from sparsebench.sparsifiers.registry import METHODS

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
STUDY = """
study: contributed
workload: digits
seeds: 2
sparsities: [0.5]
settings: {steps: 40}
methods:
  taylor: {}
  magnitude: {begin: 0.2, end: 0.8, frequency: 0.05}
"""

Command = Callable[..., str]


def section(title: str) -> str:
    return CONTRIBUTING.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def code_block(language: str, title: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", section(title), flags=re.MULTILINE | re.DOTALL)
    return block


def definitions(code: str) -> str:
    """The imports, functions and constants of an example, to the letter: what goes into a package, without what tries it out."""
    tree = ast.parse(code)
    kept = [
        node
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper())
    ]
    return "\n".join(ast.get_source_segment(code, node) or "" for node in kept) + "\n"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs the program in a folder with a study, and with the method's package installed."""
    folder = tmp_path_factory.mktemp("contributed")
    (folder / "contributed.yaml").write_text(STUDY)
    toml = code_block("toml", "A method")
    (group,) = re.findall(r'^\[project\.entry-points\."(.+)"\]$', toml, flags=re.MULTILINE)
    ((name, module, constant),) = re.findall(r'^(\w+) = "(\w+):(\w+)"$', toml, flags=re.MULTILINE)
    information = folder / "site" / "my_package-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{constant}\n")
    code = definitions(code_block("python", "A score")) + definitions(code_block("python", "A method"))
    (folder / "site" / f"{module}.py").write_text(code)

    def run(*arguments: str, installed: bool = True) -> str:
        path = [str(folder / "site")] if installed else []
        path += filter(None, [os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [str(Path(sys.executable).with_name("sparsebench")), *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(scope="module")
def results(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    told = command("study", "run", "contributed.yaml", "--workers", "2", "--out", str(out))
    assert told == f"4 runs planned: 4 finished now, 0 were done already; results: {out}\n"
    return out


def test_the_list_has_it_once_the_package_is_installed(command: Command) -> None:
    functions = {method.name: getattr(method.build, "func", method.build) for method in METHODS}
    assert "taylor" not in {name for name, function in functions.items() if function.__module__.startswith("sparsebench.")}
    lines = command("list", "methods").splitlines()
    assert len([line for line in lines if re.fullmatch("taylor +gradual pruning by first-order change of the loss", line)]) == 1


def test_worker_processes_train_with_it(results: Path) -> None:
    """To the sparsity that was asked for, and to other weights than the built-in method with the same schedule."""
    frame = query(results, "select distinct method, seed, target_sparsity, sparsity from results order by method, seed")
    assert list(zip(frame["method"], frame["seed"], strict=True)) == list(itertools.product(("magnitude", "taylor"), (0, 1)))
    assert list(frame["target_sparsity"]) == [0.5] * 4
    assert (frame["sparsity"] - 0.5).abs().max() < 0.001
    records = [json.loads(file.read_bytes()) for file in results.glob("runs/*/result.json")]
    assert len({record["weights_sha256"] for record in records}) == len(records) == 4


def test_the_report_has_it(command: Command, results: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    told = command("report", str(results), "--out", str(page))
    best = query(results, "select avg(value) as mean from results where method = 'taylor' and split = 'test' and primary_metric")
    (row,) = [line for line in told.splitlines() if "taylor" in line]
    assert f"{best['mean'][0]:.2f}" in row
    html = page.read_text(encoding="utf-8")
    assert "Molchanov et al. 2016" in html
    assert re.search(r"<t[hd][^>]*>\s*taylor\s*</t[hd]>", html)
    # Whoever only reads results needs no package of the method.
    assert command("report", str(results), "--out", str(page), installed=False) == told
    assert page.read_text(encoding="utf-8") == html
