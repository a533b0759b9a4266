"""Sparsity per attention head: what SQL says, and nothing where a network has no heads."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from analysis_studies import point, run, small_study, write

from sparsebench.analysis.frontiers import find_frontiers
from sparsebench.analysis.head_figures import head_figures, head_panel, head_sparsities
from sparsebench.analysis.page import StudyReport
from sparsebench.analysis.print_figures import print_figures
from sparsebench.analysis.study_data import StudyData, load_study
from sparsebench.records.query import query
from sparsebench.records.schema import LayerRecord, RunRecord

ATTENTIONS = {"encoder.0.attention": 4, "decoder.0.source_attention": 2}


def layers(seed: int, sparsity: float) -> tuple[LayerRecord, ...]:
    """An embedding without heads, then attentions whose heads lose different parts of their weights in each projection."""
    rows = [LayerRecord(layer="embedding.weight", shape=(10, 8), weights=80, zeros=40)]
    for name, heads in ATTENTIONS.items():
        for place, projection in enumerate(("query", "key", "value", "output")):
            zeros = tuple(round(sparsity * 10) + head + place + seed for head in range(heads))
            rows.append(
                LayerRecord(
                    layer=f"{name}.{projection}.weight",
                    shape=(heads * 5, 8),
                    weights=40 * heads,
                    zeros=sum(zeros),
                    head_zeros=zeros,
                )
            )
    return tuple(rows)


def translation(method: str, seed: int) -> RunRecord:
    points = [point(sparsity, 30.0, 29.0, target=sparsity, layers=layers(seed, sparsity)) for sparsity in (0.8, 0.9)]
    return run(method, {}, seed, *points)


@pytest.fixture
def data(tmp_path: Path) -> StudyData:
    records = [translation(method, seed) for method in ("magnitude", "random") for seed in (0, 1)]
    return load_study(write(tmp_path, records, [0.8, 0.9]))


def test_heads_are_what_sql_says(data: StudyData) -> None:
    frontiers = find_frontiers(data)
    for method, chosen in frontiers.chosen.items():
        for found in chosen:
            assert found is not None
            rows = query(
                data.directory,
                f"select layer, weights, head_zeros from layers where method = '{method}' and head_zeros is not null "
                f"and target_sparsity = {found.target_sparsity} order by position",
            )
            zeros: dict[tuple[str, int], int] = defaultdict(int)
            weights: dict[tuple[str, int], int] = defaultdict(int)
            for row in rows.itertuples():
                own = json.loads(row.head_zeros)
                for head, count in enumerate(own):
                    zeros[row.layer.split(".attention.")[0].split(".source")[0], head] += count
                    weights[row.layer.split(".attention.")[0].split(".source")[0], head] += row.weights // len(own)
            got = head_sparsities(data.layers, found)
            assert [(name, len(own)) for name, own in got.items()] == list(ATTENTIONS.items())
            for name, own in got.items():
                side = name.removesuffix(".attention").removesuffix(".source_attention")
                assert own == pytest.approx([zeros[side, head] / weights[side, head] for head in range(len(own))])


def test_a_figure_for_each_method_and_sparsity_with_a_cell_for_each_head(data: StudyData, tmp_path: Path) -> None:
    frontiers = find_frontiers(data)
    figures = head_figures(frontiers, data.layers)
    assert len(figures) == 4
    for figure in figures.values():
        (cells,) = figure.data
        names = [note.text for note in figure.layout.annotations]
        assert names == list(ATTENTIONS)
        filled = [[value for value in row if value is not None] for row in cells.z]
        assert [len(row) for row in filled] == [0, 4, 0, 2]
    assert len(print_figures(figures, tmp_path / "figures")) == 8
    assert "heads" in {panel.key for panel in StudyReport.of(data.directory).figures.panels}


def test_networks_without_heads_have_no_such_part(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, small_study(), [0.8]))
    assert head_panel(find_frontiers(study), study.layers) is None
    assert "heads" not in {panel.key for panel in StudyReport.of(tmp_path).figures.panels}
