from __future__ import annotations

import collections
import itertools
import math

import pytest
from analysis_studies import small_study, write
from hypothesis import given
from hypothesis import strategies as st
from plotly.validator_cache import ValidatorCache

from sparsebench.analysis.figures import trade_off
from sparsebench.analysis.frontiers import Frontiers, Point, find_frontiers
from sparsebench.analysis.latencies import measured_latencies
from sparsebench.analysis.layer_figures import layer_figures, layer_sparsities
from sparsebench.analysis.palette import BUILT_IN, style
from sparsebench.analysis.point_marks import thin_out
from sparsebench.analysis.published_curves import published_curves
from sparsebench.analysis.settings import varying_settings
from sparsebench.analysis.sparsity_axis import position, ticks
from sparsebench.analysis.statistics import Estimate
from sparsebench.analysis.study_data import load_study
from sparsebench.analysis.study_figures import study_figures
from sparsebench.records.latency import LatencyRecord
from sparsebench.records.published.values import published_values
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.sparsifiers.registry import METHODS


@pytest.fixture
def data(tmp_path):
    return load_study(write(tmp_path, small_study(), [0.8, 0.9, 0.98]))


def test_a_method_looks_the_same_in_every_figure_and_company(data):
    frontiers = find_frontiers(data)
    figures = [trade_off(frontiers, "accuracy").figure, *layer_figures(frontiers, data.layers).values()]
    for method in frontiers.chosen:
        looks = {(trace.marker.color, trace.marker.symbol) for figure in figures for trace in figure.data if trace.name == method}
        assert looks == {(style(method).colour, style(method).symbol)}


def test_methods_are_told_apart_without_colours():
    """Every method of the package and of the published values has a look of its own, by its marker alone too."""
    names = {method.name for method in METHODS} | {printed.method for printed in published_values()}
    assert names <= set(BUILT_IN)
    assert len({look.symbol for look in BUILT_IN.values()}) == len(BUILT_IN)
    strangers = {style(f"idea {number}") for number in range(400)}
    assert len(strangers) == 35
    assert not {look.symbol for look in strangers} & {look.symbol for look in BUILT_IN.values()}
    # A name that Plotly does not know would be drawn as a circle.
    open_symbols = ValidatorCache.get_validator("scatter.marker", "symbol").values
    assert {f"{look.symbol}-open" for look in {*strangers, *BUILT_IN.values()}} <= set(open_symbols)


def test_every_axis_has_sqls_places(data):
    curves = trade_off(find_frontiers(data), "accuracy", weights=2000)
    assert [axis.key for axis in curves.axes] == ["sparsity", "weights"]
    line = next(trace for trace in curves.figure.data if trace.name == "variational-dropout" and trace.mode == "lines+markers")
    said = query(
        data.directory,
        "select threshold, 2000 * (1 - avg(sparsity)) as kept from results where method = 'variational-dropout' "
        "and split = 'test' and metric = 'accuracy' group by threshold order by threshold",
    )
    assert list(line.meta["weights"]) == [
        pytest.approx(said["kept"][1], rel=1e-4),
        pytest.approx(said["kept"][0], rel=1e-4),
        None,
    ]
    for axis in curves.axes[1:]:
        for trace in curves.figure.data:
            assert len(trace.meta[axis.key]) == len(trace.x)
            known = [math.log10(place) for place in trace.meta[axis.key] if place is not None]
            assert all(axis.all[0] - 1e-9 <= place <= axis.all[1] + 1e-9 for place in known)


def test_bytes_are_an_axis_where_runs_kept_their_networks(tmp_path):
    directory = write(tmp_path, small_study(), [0.8, 0.9])
    for number, folder in enumerate(sorted((directory / "runs").iterdir())):
        (folder / "model.safetensors").write_bytes(bytes(1000 + 7 * number))
    data = load_study(directory)
    frontiers = find_frontiers(data)
    curves = trade_off(frontiers, "accuracy")
    assert [axis.key for axis in curves.axes] == ["sparsity", "bytes"]
    line = next(trace for trace in curves.figure.data if trace.name == "magnitude" and trace.mode == "lines+markers")
    for place, point in zip(line.meta["bytes"], frontiers.chosen["magnitude"], strict=True):
        said = query(
            directory,
            f"select avg(file_bytes) as bytes from results where configuration = '{point.configuration}' "
            "and split = 'test' and metric = 'accuracy'",
        )
        assert place == pytest.approx(said["bytes"][0], rel=1e-4)
    # Its best network at 90 % is that of the first threshold, which its runs kept; the one at 80 % is nowhere.
    line = next(trace for trace in curves.figure.data if trace.name == "variational-dropout" and trace.mode == "lines+markers")
    assert [place is None for place in line.meta["bytes"]] == [True, False]


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
    columns = [
        line.split(" %{")[0] for line in drawn["magnitude"].hovertemplate.removesuffix("<extra></extra>").split("<br>")[1:]
    ]
    told = [dict(zip(columns, row, strict=True)) for row in drawn["magnitude"].customdata]
    assert {row["begin"] for row in told} == {"0", "300"}
    assert {row["seeds"] for row in told} == {"0, 1 and 2"}
    assert list(drawn["dense"].x) == [0.0]
    assert curves.drawn == curves.total == 11
    outside = [
        point
        for point in frontiers.points
        if not (
            curves.axes[0].near[0] <= position(point.sparsity) <= curves.axes[0].near[1]
            and curves.views["near"][0] <= point.test.mean
        )
    ]
    assert curves.outside == len(outside)


def test_all_points_are_inside_the_view_of_all_points(data):
    frontiers = find_frontiers(data)
    curves = trade_off(frontiers, "accuracy")
    view = curves.view(curves.axes[0], "all")
    for point in frontiers.points:
        assert view["xaxis.range"][0] <= position(point.sparsity) <= view["xaxis.range"][1]
        assert view["yaxis.range"][0] <= point.test.mean <= view["yaxis.range"][1]


def test_a_huge_study_still_fits_a_page():
    points = tuple(
        Point("l0", f"{number:016x}", None, None, (0, 1), number / 20_000, 90.0, Estimate(90.0, 1.0, 2), {"penalty": number})
        for number in range(20_000)
    )
    frontiers = Frontiers((0.5,), {"l0": (points[-1],)}, None, points, 0)
    curves = trade_off(frontiers, "accuracy")
    assert curves.drawn == 6000
    assert curves.total == 20_000
    assert len(curves.figure.to_json()) < 1_000_000


def spread(configurations, thresholds):
    """Points by configuration and threshold; validation prefers a threshold in the middle."""
    return [
        Point(
            "l0",
            f"{number:04}",
            None,
            float(threshold),
            (0,),
            threshold / thresholds,
            -abs(threshold - thresholds // 2) + 0.0,
            Estimate(90.0, None, 1),
            {},
        )
        for number in range(configurations)
        for threshold in range(thresholds)
    ]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 100))
def test_thresholds_are_left_out_before_configurations(configurations, thresholds, most):
    points = spread(configurations, thresholds)
    left = thin_out(points, most)
    assert left == [point for point in points if point in left]
    assert len(left) <= most
    own = collections.Counter(point.configuration for point in left)
    if len(points) <= most:
        assert left == points
    elif configurations < most:
        assert len(own) == configurations
        assert len(set(own.values())) == 1
        assert len(left) + configurations > most or next(iter(own.values())) == thresholds
    else:
        assert len(left) == most
        assert {point.threshold for point in left} == {thresholds // 2}
    if own and next(iter(own.values())) > 1:
        assert {0.0, thresholds - 1.0} <= {point.threshold for point in left}


def test_printed_values_lie_inside_the_views():
    """Those of a paper can be far above a short run's, and sparser than anything asked about here."""
    low = Point("magnitude", "a", 0.9, None, (0, 1), 0.9, 20.0, Estimate(20.0, 1.0, 2), {})
    frontiers = Frontiers((0.9,), {"magnitude": (low,)}, None, (low,), 0)
    published = [curve for curve in published_curves("imagenet/resnet50", "accuracy") if curve.method == "magnitude"]
    curves = trade_off(frontiers, "accuracy", published)
    printed = {one.sparsity: one.low for curve in published for one in curve.values}
    assert curves.views["near"][0] < 19.0 < printed[0.9] < curves.views["near"][1]
    near, every = curves.axes[0].near, curves.axes[0].all
    assert near[1] < position(max(printed)) < every[1]
    assert curves.views["all"][0] < min(20.0, *printed.values()) < max(printed.values()) < curves.views["all"][1]


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


def test_settings_do_not_tell_which_replicate_a_parent_is():
    configs = {
        name: {"parameters": {"end": 5}, "seed": 0, "parent": {"configuration": name * 4, "run_id": name * 9}} for name in "ab"
    }
    assert varying_settings(configs) == {"a": {"parent": "aaaa"}, "b": {"parent": "bbbb"}}


def measured(directory, batches=(8, 8), left_out=()):
    """Latencies beside the runs: 0.5 ms and 2 ms in PyTorch, a little more with each run."""
    for number, folder in enumerate(sorted((directory / "runs").iterdir())):
        if number in left_out:
            continue
        record = RunFolder(folder).read_result()
        times = {"latency_ms": 0.5 + 0.01 * number, "dense_latency_ms": 2.0 + 0.01 * number}
        found = LatencyRecord(
            weights_sha256=record.weights_sha256,
            batch=batches[number % 2],
            threads=2,
            rounds=9,
            median_latency_ms=1.0,
            median_dense_latency_ms=3.0,
            sparse_layers=1,
            layers=2,
            **times,
        )
        (folder / "latency.json").write_text(found.model_dump_json())
    return load_study(directory)


def test_measured_latency_is_an_axis_where_it_is_known(tmp_path):
    directory = write(tmp_path, small_study(), [0.8, 0.9])
    data = load_study(directory)
    assert measured_latencies(data.results) is None
    data = measured(directory)
    curves = study_figures(data, find_frontiers(data)).trade_off
    (axis,) = (axis for axis in curves.axes if axis.key == "latency")
    dense = query(directory, "select avg(m) as m from (select run_id, any_value(dense_latency_ms) as m from results group by 1)")
    said = f"measured latency, ms (8 examples, 2 threads; in PyTorch {dense['m'][0]:.3g})"
    assert axis.title.replace("\N{NO-BREAK SPACE}", " ") == said
    line = next(trace for trace in curves.figure.data if trace.name == "magnitude" and trace.mode == "lines+markers")
    for place, point in zip(line.meta["latency"], find_frontiers(data).chosen["magnitude"], strict=True):
        mean = query(
            directory,
            f"select avg(latency_ms) as ms from results where configuration = '{point.configuration}' "
            "and split = 'test' and metric = 'accuracy'",
        )
        assert place == pytest.approx(mean["ms"][0], rel=1e-4)
    # Measured is the network that a run kept: that of the first threshold.
    line = next(trace for trace in curves.figure.data if trace.name == "variational-dropout" and trace.mode == "lines+markers")
    assert [place is None for place in line.meta["latency"]] == [True, False]


def test_latencies_of_different_batches_are_not_drawn(tmp_path):
    data = measured(write(tmp_path, small_study(), [0.8, 0.9]), batches=(1, 8))
    assert measured_latencies(data.results) is None
    assert "latency" not in [axis.key for axis in study_figures(data, find_frontiers(data)).trade_off.axes]


def test_a_close_view_shows_what_is_near_the_highest():
    def figure(*values):
        points = tuple(
            Point(f"m{place}", f"{place}", None, None, (0,), 0.9, value, Estimate(value, None, 1), {})
            for place, value in enumerate(values)
        )
        chosen = {point.method: (point,) for point in points}
        return trade_off(Frontiers((0.9,), chosen, None, points, 0), "accuracy")

    low, high = figure(97.0, 95.0, 90.0, 20.0).views["close"]
    assert 87.0 < low < 90.0
    assert 97.0 < high < 99.0
    assert figure(97.0, 95.0, 90.0, 20.0).views["near"][0] < 20.0
    assert "close" not in figure(97.0, 95.0, 90.0).views  # all of them are
    assert "close" not in figure(97.0, 20.0).views  # one alone is
