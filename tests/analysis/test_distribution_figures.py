"""Weights before and after: what is drawn is what the table holds."""

from __future__ import annotations

import itertools
import json

import pytest
from analysis_studies import layers, point, run, small_study, with_histograms, write
from page_reader import Page

from sparsebench.analysis.distribution_figures import distribution_panel
from sparsebench.analysis.frontiers import find_frontiers
from sparsebench.analysis.page import StudyReport, render_page
from sparsebench.analysis.print_figures import print_figures
from sparsebench.analysis.study_data import load_study
from sparsebench.records.query import query
from sparsebench.records.schema import WeightHistogram

SPACE = "\N{NO-BREAK SPACE}"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    records = [with_histograms(record) for record in small_study()]
    return write(tmp_path_factory.mktemp("study"), records, [0.8, 0.9, 0.98])


def panel(directory):
    data = load_study(directory)
    return distribution_panel(find_frontiers(data), data.distributions)


def test_every_curve_is_what_sql_gives(study):
    data = load_study(study)
    frontiers = find_frontiers(data)
    drawn = panel(study)
    assert list(drawn.figures) == [
        f"magnitude ≥ 80{SPACE}%",
        f"magnitude ≥ 90{SPACE}%",
        f"random ≥ 80{SPACE}%",
        f"random ≥ 90{SPACE}%",
        f"variational-dropout ≥ 80{SPACE}%",
        f"variational-dropout ≥ 90{SPACE}%",
    ]
    compared = 0
    for method, chosen in frontiers.chosen.items():
        for sparsity, own in zip(("80", "90", "98"), chosen, strict=True):
            if own is None:
                continue
            figure = drawn.figures[f"{method} ≥ {sparsity}{SPACE}%"]
            threshold = "is null" if own.threshold is None else f"= {own.threshold}"
            said = query(
                study,
                "select layer, moment, low, high, counts from distributions "
                f"where configuration = '{own.configuration}' and seed = {own.seeds[0]} "
                f"and (moment = 'initialization' or threshold {threshold}) order by position, moment desc",
            )
            assert list(said["moment"]) == ["initialization", "end"] * 2
            for trace, row in zip(figure.data, said.itertuples(), strict=True):
                counts = json.loads(row.counts)
                assert list(trace.customdata) == [0, *counts, 0]
                assert trace.x0 + trace.dx / 2 == pytest.approx(row.low)
                assert trace.x0 + (len(counts) + 0.5) * trace.dx == pytest.approx(row.high)
                assert list(trace.y) == pytest.approx([count / max(counts) for count in trace.customdata], abs=6e-4)
                compared += 1
            titles = [note.text for note in figure.layout.annotations]
            left = [sum(json.loads(counts)) for counts in said["counts"]]
            assert titles == [
                f"block.{place}.weight · {left[2 * place + 1]:,} of {left[2 * place]:,}{SPACE}weights left" for place in (0, 1)
            ]
    assert compared == 6 * 4


def test_what_was_not_recorded_is_named(tmp_path):
    old = write(tmp_path / "old", small_study(), [0.8])
    assert "recorded no distributions of their weights" in Page(render_page(old)).text
    records = [record if record.method == "random" else with_histograms(record) for record in small_study()]
    some = panel(write(tmp_path / "some", records, [0.8]))
    assert not any(name.startswith("random") for name in some.figures)
    assert some.caption.endswith(f"Not recorded: dense; random ≥ 80{SPACE}%.")


def test_weights_at_the_end_alone_are_drawn_alone(tmp_path):
    record = with_histograms(run("l0", {}, 0, point(0.9, 90.0, 90.0, layers=layers(0.9, 1.0))))
    empty = record.points[0].layers[1].model_copy(update={"histogram": WeightHistogram(low=0.0, high=0.0, counts=(0,) * 50)})
    bare = point(0.9, 90.0, 90.0, layers=(record.points[0].layers[0], empty))
    figure = panel(write(tmp_path, [record.model_copy(update={"initial_histograms": {}, "points": (bare,)})], [0.9])).figures
    (own,) = figure.values()
    assert [trace.name for trace in own.data] == ["l0, at the end"] * 2
    assert [bool(trace.y) for trace in own.data] == [True, False]
    assert [note.text for note in own.layout.annotations] == ["block.0.weight · 96 left", "block.1.weight · 0 left"]


def test_of_many_layers_some_are_drawn_from_the_first_to_the_last(tmp_path):
    record = with_histograms(run("l0", {}, 0, point(0.9, 90.0, 90.0, layers=layers(*[0.9] * 54))))
    drawn = panel(write(tmp_path, [record], [0.9]))
    (figure,) = drawn.figures.values()
    names = [note.text.partition(" ")[0] for note in figure.layout.annotations]
    assert names == [f"block.{place}.weight" for place in (0, 8, 15, 23, 30, 38, 45, 53)]
    assert "8 layers are drawn, evenly picked" in drawn.caption
    assert len(figure.data) == 16
    domains = [figure.layout[f"yaxis{number}"].domain for number in ("", *range(2, 9))]
    assert all(0.0 <= low < high <= 1.0 for low, high in domains)
    assert all(below[1] < above[0] for above, below in itertools.pairwise(domains))


def test_print_figures_have_a_part_for_each_layer(study, tmp_path):
    named = StudyReport.of(study).figures.named()
    name = f"distributions magnitude ≥ 80{SPACE}%"
    written = print_figures({name: named[name]}, tmp_path)
    assert [path.name for path in written] == ["distributions-magnitude-80.pdf", "distributions-magnitude-80.svg"]
    text = written[1].read_text()
    assert "block.0.weight · " in text
    assert "block.1.weight · " in text
    assert "at initialization" in text
    assert text.count('id="axes_') == 2
