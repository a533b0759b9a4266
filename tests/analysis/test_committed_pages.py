"""The pages under results/ are what this code makes of the tables beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_reader import Page

from sparsebench.analysis.page import render_page

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob("*/report.html"))


def assert_alike(one: Any, other: Any, path: str) -> None:
    """Equal but for the last digits of numbers, in which machines differ."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_alike(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_alike(left, right, f"{path}[{place}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9), path
    else:
        assert one == other, path


def test_there_are_pages():
    assert len(COMMITTED) >= 3


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_page_is_what_its_tables_give(path):
    """After a change of the page: `sparsebench report results/NAME` for each of them."""
    committed, again = Page(path.read_text()), Page(render_page(path.parent))
    assert again.tables == committed.tables
    assert again.text == committed.text
    assert_alike(again.figures, committed.figures, "figures")
