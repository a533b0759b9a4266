"""What users of other pruning packages ran into, by number: each has a test here that names it.

A test names a row in its own name, `test_peers_row_8_...`, or in its docstring, `PEERS 8` or `PEERS 4 and 7`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROWS = {
    1: "pruning changes neither memory nor files, and nobody says what is simulated",
    2: "theoretical savings are taken for measured ones",
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
UNTESTED = {
    3: "sparse execution slower than dense: nothing is executed sparsely yet",
}

NUMBERS = re.compile(r"PEERS\s+(\d+(?:(?:\s*,\s*|\s+and\s+)\d+)*)")


def rows_named(name: str, docstring: str) -> set[int]:
    """Numbers of the rows that a test says it is about."""
    in_name = re.match(r"test_peers_row_(\d+)_", name)
    listed = " ".join(NUMBERS.findall(docstring))
    return {int(number) for number in re.findall(r"\d+", listed)} | ({int(in_name[1])} if in_name else set())


def named_by_tests() -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for file in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if file != Path(__file__) and isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in rows_named(node.name, ast.get_docstring(node) or ""):
                    found[row].append(f"{file.name}::{node.name}")
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


def test_every_row_is_named_by_a_test_or_said_to_be_untested() -> None:
    named = named_by_tests()
    assert sorted(ROWS.keys() | UNTESTED.keys()) == list(range(1, 26))
    assert {row: title for row, title in ROWS.items() if row not in named} == {}
    unknown = {row: tests for row, tests in named.items() if row not in ROWS}
    assert unknown == {}, "these rows are tested: move them to ROWS, or mend the number"
