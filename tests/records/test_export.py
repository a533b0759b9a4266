"""Tables as files for other programs: what is read back is what the table holds."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_records_table import record, write

from sparsebench.errors import SparsebenchError
from sparsebench.records.export import export
from sparsebench.records.published.values import published_table, published_values
from sparsebench.records.rows import DISTRIBUTIONS_SCHEMA, LAYERS_SCHEMA, RESULTS_SCHEMA
from sparsebench.records.table import open_tables


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    odd = record(1, "variational-dropout", (3.0, 1.0), peak_memory_bytes=None, seconds=0.1 + 0.2, dense_multiply_adds=3)
    return write(tmp_path / "out", record(), odd)


def parsed(text: str, like: Any) -> Any:
    """What a cell says, read as Python reads it."""
    if text == "":
        return None
    if isinstance(like, bool):
        return {"true": True, "false": False}[text]
    return type(like)(text)


@pytest.mark.parametrize("table", ["results", "layers", "distributions", "published"])
@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_files_hold_the_table_to_the_last_bit(directory: Path, tmp_path: Path, table: str, ending: str) -> None:
    target = tmp_path / f"file{ending}"
    count = export(directory, target, table)
    tables = open_tables(directory)
    if table == "published":
        expected = [value.model_dump() for value in published_values()]
    else:
        expected = tables.rows(table).to_table().to_pylist()
    assert count == len(expected) > 0
    if ending == ".parquet":
        assert pq.read_table(target).to_pylist() == expected
        return
    text = (gzip.decompress(target.read_bytes()) if ending == ".csv.gz" else target.read_bytes()).decode()
    for row, found in zip(expected, csv.DictReader(io.StringIO(text), strict=True), strict=True):
        # In CSV, empty text and what is not known are the same.
        assert {name: parsed(found[name], value) for name, value in row.items()} == {
            name: None if value == "" else value for name, value in row.items()
        }


def test_same_rows_are_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    for ending in (".csv", ".csv.gz", ".parquet"):
        first, second = tmp_path / f"first{ending}", tmp_path / f"second{ending}"
        export(directory, first)
        export(directory, second)
        assert first.read_bytes() == second.read_bytes()
    assert gzip.decompress((tmp_path / "first.csv.gz").read_bytes()) == (tmp_path / "first.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("file.xlsx", "results", r"^cannot export to 'file\.xlsx': expected a name that ends in \.csv, \.csv\.gz, \.parquet$"),
        ("file.csv", "runs", r"^no table 'runs': expected one of results, layers, distributions, published$"),
        ("no/file.csv", "results", r"^cannot write \S+file\.csv: No such file or directory$"),
    ],
)
def test_what_cannot_be_exported_is_one_line(directory: Path, tmp_path: Path, name: str, table: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message):
        export(directory, tmp_path / name, table)
    assert list(tmp_path.iterdir()) == [directory]


def test_every_column_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    _, results, layers, distributions, published = re.split(r"^## The table .*$", text, flags=re.MULTILINE)
    for section, names in (
        (results, RESULTS_SCHEMA.names),
        (layers, LAYERS_SCHEMA.names),
        (distributions, DISTRIBUTIONS_SCHEMA.names),
        (published, published_table().column_names),
    ):
        assert set(re.findall(r"`(\w+)`", section)) >= set(names)
