"""What users of other pruning packages ran into, by number: each has a test here that names it.

A test names a row in its own name, `test_peers_row_8_...`, or in its docstring, `PEERS 8` or `PEERS 4 and 7`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

ROWS = {
    1: "pruning changes neither memory nor files, and nobody says what is simulated",
    2: "theoretical savings are taken for measured ones",
    3: "sparse execution is slower than dense, and nobody says so",
    4: "masks and schedule are lost on resume",
    5: "checkpoints are not sparse",
    6: "an already sparse model cannot be trained further",
    7: "a resumed run is another run",
    8: "momentum or weight decay revives dropped weights",
    9: "a hook for each tensor is slow",
    10: "nobody knows whether values of dropped weights are kept",
    11: "processes hold different masks",
    12: "sharded parameters lose their masks",
    13: "deepcopy and pickle fail",
    14: "rewinding to saved weights does nothing",
    15: "recurrent layers break",
    16: "torch.compile breaks",
    17: "global thresholds run out of memory, or stop at 16 million weights",
    18: "masks change dtypes, mixed precision fails",
    19: "the sparsity reached is not the one asked for",
    20: "models and loops of one's own are not supported",
    21: "tied weights are pruned or counted twice",
    22: "L0 and variational dropout do not prune with the settings at hand",
    23: "results cannot be reproduced for want of settings and seeds",
    24: "a random sparse network made of a trained one confuses",
    25: "sparse files cannot be read without the package that wrote them",
}
# Rows whose only tests need more than every machine has, or take long; each with the reason why that is enough.
CONDITIONAL = {
    12: "its tests shard with FSDP2, fully_shard, which torch has from 2.6 on: older ones skip them",
}

NUMBERS = re.compile(r"PEERS\s+(\d+(?:(?:\s*,\s*|\s+and\s+)\d+)*)")


def rows_named(name: str, docstring: str) -> set[int]:
    """Numbers of the rows that a test says it is about."""
    in_name = re.match(r"test_peers_row_(\d+)_", name)
    listed = " ".join(NUMBERS.findall(docstring))
    return {int(number) for number in re.findall(r"\d+", listed)} | ({int(in_name[1])} if in_name else set())


def is_conditional(nodes: Iterable[ast.AST], names: frozenset[str] = frozenset()) -> bool:
    """Whether code skips, or marks as slow or to be skipped: by pytest's own words, or by one of `names` that stand for them."""
    words = {"skip", "skipif", "slow", "importorskip", "xfail"}
    parts = [part for node in nodes for part in ast.walk(node)]
    return any(
        (isinstance(part, ast.Attribute) and part.attr in words) or (isinstance(part, ast.Name) and part.id in names)
        for part in parts
    )


def read_tests(source: str) -> dict[str, tuple[set[int], bool]]:
    """The tests of a file: the rows that each names, and whether it always runs in `make test`."""
    body = ast.parse(source).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    rest = [node for node in body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    # A mark, or a fixture that skips, has a name; other conditional statements of a file hold for all of it.
    marks = [node for node in rest if isinstance(node, ast.Assign) and is_conditional([node.value])]
    named = {target.id for node in marks for target in node.targets if isinstance(target, ast.Name)}
    whole = "pytestmark" in named or is_conditional(
        node
        for node in rest
        if node not in marks or any(isinstance(part, ast.Call) and is_import(part) for part in ast.walk(node))
    )
    skipping = {node.name for node in functions if is_conditional([node], frozenset(named))}
    found = {}
    for node in functions:
        if node.name.startswith("test_"):
            arguments = {argument.arg for argument in node.args.args}
            always = not whole and node.name not in skipping and not arguments & skipping
            found[node.name] = rows_named(node.name, ast.get_docstring(node) or ""), always
    return found


def is_import(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "importorskip"


def named_by_tests(always: bool = False) -> dict[int, list[str]]:
    """Tests by the row that they name; where `always`, only those that run in every `make test`."""
    found: dict[int, list[str]] = defaultdict(list)
    for file in sorted(Path(__file__).parent.rglob("test_*.py")):
        if file != Path(__file__):
            for name, (rows, runs) in read_tests(file.read_text(encoding="utf-8")).items():
                for row in rows if runs or not always else ():
                    found[row].append(f"{file.name}::{name}")
    return found


@pytest.mark.parametrize(
    ("name", "docstring", "rows"),
    [
        ("test_peers_row_8_momentum", "", {8}),
        ("test_peers_row_21_ties", "PEERS 4 and 7: lost. Also 5.", {4, 7, 21}),
        ("test_peers_row_8", "PEERS row 8", set()),
        ("test_other", "Sets it back (PEERS\n    20).", {20}),
        ("test_other", "PEERS 1, 5 and 25", {1, 5, 25}),
    ],
)
def test_rows_are_read_from_names_and_docstrings(name: str, docstring: str, rows: set[int]) -> None:
    assert rows_named(name, docstring) == rows


def test_every_row_is_named_by_a_test() -> None:
    named = named_by_tests()
    assert sorted(ROWS) == list(range(1, 26))
    assert {row: title for row, title in ROWS.items() if row not in named} == {}
    unknown = {row: tests for row, tests in named.items() if row not in ROWS}
    assert unknown == {}, "these rows are tested: move them to ROWS, or mend the number"


@pytest.mark.parametrize(
    ("source", "always"),
    [
        ("def test_peers_row_8_a(): pass", True),
        ("@pytest.mark.parametrize('a', [1])\ndef test_peers_row_8_a(a): pass", True),
        ("@pytest.mark.slow\ndef test_peers_row_8_a(): pass", False),
        ("@pytest.mark.skipif(True, reason='')\ndef test_peers_row_8_a(): pass", False),
        ("needs = pytest.mark.skipif(True, reason='')\n@needs\ndef test_peers_row_8_a(): pass", False),
        ("needs = pytest.mark.skipif(True, reason='')\ndef test_peers_row_8_a(): pass", True),
        ("pytestmark = pytest.mark.slow\ndef test_peers_row_8_a(): pass", False),
        ("pytestmark = [pytest.mark.slow]\ndef test_peers_row_8_a(): pass", False),
        ("pytest.importorskip('x')\ndef test_peers_row_8_a(): pass", False),
        ("x = pytest.importorskip('x')\ndef test_peers_row_8_a(): pass", False),
        ("if old:\n    pytest.skip('', allow_module_level=True)\ndef test_peers_row_8_a(): pass", False),
        ("def test_peers_row_8_a():\n    pytest.importorskip('x')", False),
        ("def page():\n    pytest.skip('')\ndef test_peers_row_8_a(page): pass", False),
    ],
)
def test_tests_that_may_not_run_are_found(source: str, always: bool) -> None:
    assert read_tests(source)["test_peers_row_8_a"] == ({8}, always)


def test_every_row_has_a_test_that_always_runs_or_a_reason_why_not() -> None:
    named = named_by_tests(always=True)
    assert sorted(row for row in ROWS if row not in named) == sorted(CONDITIONAL)
    assert all(CONDITIONAL.values())
