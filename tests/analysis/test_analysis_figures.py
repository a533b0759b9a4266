from __future__ import annotations

import itertools

import pytest
from analysis_studies import small_study, write

from sparsebench.analysis.figures import trade_off
from sparsebench.analysis.frontiers import Frontiers, Point, find_frontiers
from sparsebench.analysis.layer_figures import layer_figures, layer_sparsities
from sparsebench.analysis.palette import styles
from sparsebench.analysis.settings import varying_settings
from sparsebench.analysis.sparsity_axis import position, ticks
from sparsebench.analysis.statistics import Estimate
from sparsebench.analysis.study_data import load_study
from sparsebench.records.query import query


@pytest.fixture
def data(tmp_path):
    return load_study(write(tmp_path, small_study(), [0.8, 0.9, 0.98]))


def test_a_method_looks_the_same_in_every_figure_and_company(data):
    frontiers = find_frontiers(data)
    figures = [trade_off(frontiers, "accuracy").figure, *layer_figures(frontiers, data.layers).values()]
    for method in frontiers.chosen:
        looks = {(trace.marker.color, trace.marker.symbol) for figure in figures for trace in figure.data if trace.name == method}
        assert looks == {(styles([method])[method].colour, styles([method])[method].symbol)}
    names = ["dense", "random", "magnitude", "magnitude-global", "magnitude-erk", "variational-dropout", "l0", "a", "b", "c"]
    assert len(set(styles(names).values())) == len(names)
    assert styles(names) == styles(reversed(names))


def test_layers_are_means_over_the_seeds_of_the_chosen_point(data):
    frontiers = find_frontiers(data)
    for method, chosen in frontiers.chosen.items():
        for point in chosen:
            if point is None:
                continue
            threshold = "threshold is null" if point.threshold is None else f"threshold = {point.threshold}"
            said = query(
                data.directory,
                f"select layer, avg(sparsity) as sparsity, min(weights) as weights from layers where method = '{method}' and "
                f"configuration = '{point.configuration}' and {threshold} group by layer, position order by position",
            )
            got = layer_sparsities(data.layers, point)
            assert [layer.layer for layer in got] == list(said["layer"])
            assert [layer.weights for layer in got] == list(said["weights"])
            assert [layer.sparsity for layer in got] == pytest.approx(list(said["sparsity"]))


def test_points_are_drawn_at_their_measured_sparsity_with_their_settings(data):
    """PEERS 23: every configuration tried is published, with settings and seeds."""
    frontiers = find_frontiers(data)
    curves = trade_off(frontiers, "accuracy")
    drawn = {trace.name: trace for trace in curves.figure.data if trace.mode == "markers"}
    assert len(drawn["magnitude"].x) == 4
    assert set(drawn["variational-dropout"].x) == {round(position(0.951), 5), round(position(0.85), 5)}
    assert all("begin" in text and "seeds: 0, 1 and 2" in text for text in drawn["magnitude"].text)
    assert curves.drawn == curves.total == 10
    outside = [
        point
        for point in frontiers.points
        if point.method != "dense"
        and not (curves.near.x[0] <= position(point.sparsity) <= curves.near.x[1] and curves.near.y[0] <= point.test.mean)
    ]
    assert curves.outside == len(outside)


def test_all_points_are_inside_the_view_of_all_points(data):
    frontiers = find_frontiers(data)
    view = trade_off(frontiers, "accuracy").all
    for point in frontiers.points:
        assert view.x[0] <= position(point.sparsity) <= view.x[1]
        assert view.y[0] <= point.test.mean <= view.y[1]


def test_a_huge_study_still_fits_a_page():
    points = tuple(
        Point("l0", f"{number:016x}", None, None, (0, 1), number / 20_000, 90.0, Estimate(90.0, 1.0, 2), {"penalty": number})
        for number in range(20_000)
    )
    frontiers = Frontiers((0.5,), {"l0": (points[-1],)}, None, points, 0)
    curves = trade_off(frontiers, "accuracy")
    assert curves.drawn == 5000
    assert curves.total == 20_000
    assert len(curves.figure.to_json()) < 2_500_000


def test_ticks_do_not_touch_and_prefer_what_was_asked_about():
    for asked in ([], [0.5, 0.8, 0.9, 0.95, 0.98], [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98], [0.9, 0.901], [0.75]):
        found = ticks(asked)
        assert found["tickvals"] == sorted(set(found["tickvals"]))
        assert {position(sparsity) for sparsity in asked} <= set(found["tickvals"])
        places = [place for place, label in zip(found["tickvals"], found["ticktext"], strict=True) if label]
        assert all(after - before >= 0.19 for before, after in itertools.pairwise(places))
    assert "75\N{NO-BREAK SPACE}%" in ticks([0.75])["ticktext"]
    assert position(1.0) == position(0.9999) == 3.0


def test_settings_that_share_a_name_keep_their_full_names():
    configs = {
        "a": {"parameters": {"rate": 1, "end": 5}, "recipe": {"rate": 1}, "seed": 0},
        "b": {"parameters": {"rate": 2}, "recipe": {"rate": 3}, "seed": 1},
    }
    assert varying_settings(configs) == {
        "a": {"parameters.rate": "1", "end": "5", "recipe.rate": "1"},
        "b": {"parameters.rate": "2", "end": "\N{EN DASH}", "recipe.rate": "3"},
    }
