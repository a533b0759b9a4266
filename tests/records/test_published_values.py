from __future__ import annotations

import json
from pathlib import Path

import pytest
from result_files import write_file

from sparsebench.records.importing.layouts import RESNET50, SPARSITIES, TRANSFORMER
from sparsebench.records.importing.results_folder import import_files
from sparsebench.records.published.values import PublishedValue, published_values
from sparsebench.records.query import query

VALUES = published_values()

# The paper's own table, as it prints it.
TRANSFORMER_TABLE = """
magnitude 26.33 25.94 25.21 24.65 23.26 20.75 16.37
variational-dropout 26.26 25.37 25.08 24.33 21.43 19.13 14.45
l0 26.72 26.16 25.29 24.15 20.05 19.78 16.83
random 24.56 24.45 24.01 23.15 20.67 17.42 10.94
"""
RESNET50_TABLE = """
magnitude 76.53 76.38 75.58 73.91 70.59 57.90
variational-dropout 76.55 - 75.28 73.84 71.91 67.36
random 74.59 72.20 70.21 65.00 58.04 43.99
"""


@pytest.mark.parametrize(("workload", "table"), [(TRANSFORMER, TRANSFORMER_TABLE), (RESNET50, RESNET50_TABLE)])
def test_the_papers_table_is_there(workload: str, table: str) -> None:
    for line in table.split("\n")[1:-1]:
        method, *cells = line.split()
        expected = {sparsity: float(cell) for sparsity, cell in zip(SPARSITIES[workload], cells, strict=True) if cell != "-"}
        own = [value for value in VALUES if (value.reference, value.workload, value.method) == ("gale2019", workload, method)]
        assert {value.sparsity: value.low for value in own} == expected
        assert all(value.low == value.high for value in own)


def test_every_value_has_a_citation_and_the_metric_of_its_workload() -> None:
    assert {(value.workload, value.metric) for value in VALUES} == {(RESNET50, "accuracy"), (TRANSFORMER, "bleu")}
    for value in VALUES:
        assert "arXiv:" in value.citation
        assert value.low <= value.high
        assert (value.sparsity == 0.0) == (value.method == "dense")
    assert {value.reference for value in VALUES} == {"gale2019", "evci2020", "kusupati2020", "peste2021", "lee2023"}
    assert len({value.citation for value in VALUES}) == 5
    assert len(VALUES) == 5 + 28 + 3 + 6 + 4 + 5 + 6 + 6 + 5 + 4 + 4 + 4


def test_ranges_have_two_ends() -> None:
    tickets = [value for value in VALUES if value.method == "lottery-ticket"]
    assert [(value.sparsity, value.low, value.high) for value in tickets][::5] == [(0.5, 74.5, 74.8), (0.98, 51.0, 52.0)]


def test_a_range_upside_down_is_refused() -> None:
    good = json.loads(VALUES[0].model_dump_json())
    with pytest.raises(ValueError, match=r"low=30.0 is above high=20.0"):
        PublishedValue.model_validate(good | {"low": 30.0, "high": 20.0})


def test_sql_sets_them_beside_results(tmp_path: Path) -> None:
    import_files([write_file(tmp_path, "rn50_magnitude_pruning.csv")], tmp_path)
    answer = query(
        tmp_path,
        "select r.sparsity, round(r.value - p.low, 2) as difference from results r join published p "
        "using (workload, method, sparsity) where p.reference = 'gale2019' order by all",
    )
    assert answer.to_numpy().tolist() == [[0.5, -0.92], [0.9, 0.0]]
