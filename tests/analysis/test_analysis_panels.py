"""The page's further figures, against SQL and naive computations."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics

import pytest
from analysis_studies import point, run, small_study, write
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.analysis.budget_figures import budget_panel, expected_best
from sparsebench.analysis.cost_figures import cost_panel
from sparsebench.analysis.frontiers import find_frontiers
from sparsebench.analysis.mask_figures import mask_panel
from sparsebench.analysis.method_costs import method_costs
from sparsebench.analysis.sensitivity import sensitivity_panel, value_groups
from sparsebench.analysis.sparsity_axis import position
from sparsebench.analysis.study_data import load_study
from sparsebench.analysis.training_curves import read_training_curve, training_panel
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = small_study()
    records = [
        record.model_copy(update={"processor_seconds": 9.0 + number % 5, "peak_memory_bytes": 2**20 * (1 + number % 3)})
        for number, record in enumerate(records)
    ]
    return load_study(write(tmp_path_factory.mktemp("study"), records, [0.8, 0.9, 0.98]))


def line(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


@given(st.lists(st.integers(0, 50).map(float), min_size=1, max_size=7))
def test_the_expected_best_is_the_mean_over_all_draws(ranked):
    """`ranked` stands in the order of choice, not of worth: what is chosen by validation need not be best on the test split."""
    for tries in range(1, len(ranked) + 1):
        draws = [ranked[min(places)] for places in itertools.combinations(range(len(ranked)), tries)]
        assert expected_best(ranked, tries) == pytest.approx(statistics.fmean(draws))


def test_the_budget_ends_at_the_value_of_the_method(data):
    frontiers = find_frontiers(data)
    panel = budget_panel(frontiers, "accuracy")
    for sparsity, name in ((0.8, "≥ 80\N{NO-BREAK SPACE}%"), (0.9, "≥ 90\N{NO-BREAK SPACE}%")):
        for method, chosen in frontiers.chosen.items():
            best = chosen[frontiers.sparsities.index(sparsity)]
            drawn = line(panel.figures[name], method)
            assert drawn.y[-1] == pytest.approx(best.test.mean)
            assert drawn.x[-1] == len(
                {p.configuration for p in frontiers.points if p.method == method and p.sparsity >= sparsity}
            )
    assert len(panel.figures) == 2  # nothing reaches 98 %


def test_sensitivity_shows_the_best_of_the_configurations_with_a_value(data):
    panel = sensitivity_panel(find_frontiers(data), "accuracy")
    assert set(panel.figures) == {"magnitude: begin", "random: begin"}  # sparsity is what the axis shows
    said = query(
        data.directory,
        "select target_sparsity, avg(value) as mean from results where method = 'magnitude' and split = 'test' "
        "and metric = 'accuracy' and json_extract(config, '$.parameters.begin') = 300 group by all order by all",
    )
    drawn = line(panel.figures["magnitude: begin"], "300")
    assert list(drawn.y) == [*(pytest.approx(mean) for mean in said["mean"]), None]
    assert list(drawn.x) == [pytest.approx(position(sparsity), abs=1e-5) for sparsity in (0.8, 0.9, 0.98)]


def test_many_values_of_a_setting_are_grouped_in_their_order():
    assert value_groups(["a", "b"]) == {"a": "a", "b": "b"}
    assert value_groups([f"pattern {number}" for number in range(7)]) is None
    found = value_groups([str(0.1 * number) for number in range(1, 21)])
    assert len(set(found.values())) == 6
    assert list(found) == sorted(found, key=float)


def test_costs_are_sqls_medians(data):
    panel = cost_panel(method_costs(data.results))
    said = query(
        data.directory,
        "select method, median(processor_seconds / steps) * 1000 as ms, median(peak_memory_bytes) / 1048576 as mib "
        "from (select distinct run_id, method, processor_seconds, steps, peak_memory_bytes from results) group by method",
    )
    for figure, column in zip(panel.figures.values(), ("ms", "mib"), strict=True):
        drawn = {trace.name: trace.x[1] for trace in figure.data}
        assert drawn == {method: pytest.approx(number) for method, number in zip(said["method"], said[column], strict=True)}


def test_costs_that_nobody_measured_are_not_drawn(tmp_path):
    data = load_study(write(tmp_path, [run("l0", {}, 0, point(0.9, 90.0, 91.0), memory=None)], [0.9]))
    panel = cost_panel(method_costs(data.results))
    assert panel.figures == {}
    assert "cannot be drawn" in panel.absence


def curve(folder, lines):
    folder.curve_path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_training_curves_are_those_of_the_first_seed(tmp_path):
    records = [run("magnitude", {}, seed, point(0.9, 90.0, 91.0)) for seed in (1, 2)]
    data = load_study(write(tmp_path, records, [0.9]))
    assert training_panel(data, find_frontiers(data)).figures == {}
    for record, loss in zip(records, (1.0, 2.0), strict=True):
        lines = [{"step": step, "metric": 90.0 + loss, "sparsity": step / 1000, "loss": loss} for step in (100, 900)]
        curve(RunFolder.of(tmp_path, record.run_id), lines)
    figure = training_panel(data, find_frontiers(data)).figures["≥ 90\N{NO-BREAK SPACE}%"]
    metric, sparsity = figure.data
    assert (list(metric.x), list(metric.y)) == ([100, 900], [91.0, 91.0])
    assert (list(sparsity.y), sparsity.yaxis) == ([0.1, 0.9], "y2")


def test_training_curves_can_be_passed_on_without_their_runs(tmp_path):
    records = [run("magnitude", {}, 0, point(0.9, 90.0, 91.0))]
    whole = write(tmp_path / "whole", records, [0.9])
    load_study(whole)
    (tmp_path / "passed" / "curves").mkdir(parents=True)
    for name in ("results.parquet", "layers.parquet", "study.json"):
        shutil.copy(whole / name, tmp_path / "passed" / name)
    written = '{"step": 5, "metric": 80.0, "sparsity": 0.5}\n'
    (tmp_path / "passed" / "curves" / f"{records[0].run_id}.jsonl").write_text(written)
    data = load_study(tmp_path / "passed")
    (figure,) = training_panel(data, find_frontiers(data)).figures.values()
    assert [(list(trace.x), list(trace.y)) for trace in figure.data] == [([5], [80.0]), ([5], [0.5])]


def test_training_curves_survive_what_is_no_number(tmp_path):
    folder = RunFolder.of(tmp_path, "a")
    folder.path.mkdir(parents=True)
    assert read_training_curve(folder.curve_path) is None
    curve(folder, [{"step": 1, "metric": float("nan"), "sparsity": 0.5}, {"step": 2, "sparsity": float("inf")}])
    found = read_training_curve(folder.curve_path)
    assert (found.steps, found.metric, found.sparsity) == ((1, 2), (None, None), (0.5, None))
    curve(folder, [{"step": step, "metric": 1.0, "sparsity": 0.0} for step in range(10_000)])
    assert len(read_training_curve(folder.curve_path).steps) <= 60
    for broken in ("{", '{"metric": 1}', "[]", ""):
        folder.curve_path.write_text(broken)
        assert read_training_curve(folder.curve_path) is None


def test_each_way_of_training_again_has_a_line(tmp_path):
    records = []
    for seed in range(2):
        records.append(run("magnitude", {}, seed, point(0.9, 90.0, 91.0 + seed)))
        records.append(run("lottery-ticket", {"rewind_to": 0}, seed, point(0.9, 80.0, 81.0 + seed)))
        for name, value in (("ordinary", 70.0), ("sparse", 72.0)):
            records.append(run("scratch-e", {"initialization": name}, seed, point(0.9, value, value + seed)))
    frontiers = find_frontiers(load_study(write(tmp_path, records, [0.9])))
    (figure,) = mask_panel(frontiers, "accuracy").figures.values()
    means = {trace.name: trace.y[0] for trace in figure.data}
    assert means == {"lottery-ticket": 81.5, "scratch-e, ordinary": 70.5, "scratch-e, sparse": 72.5, "magnitude": 91.5}
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 4
    without = find_frontiers(load_study(write(tmp_path / "without", records[:1], [0.9])))
    assert mask_panel(without, "accuracy").figures == {}


def test_sensitivity_does_not_pass_over_values_that_only_single_runs_have(tmp_path):
    """A setting of which one configuration for a high sparsity has several seeds is not judged by that one alone."""
    records = [run("l0", {"rate": 1, "end": 9}, seed, point(0.9, 70.0, 70.0)) for seed in range(3)]
    records += [
        run("l0", {"rate": 1, "end": 5}, 0, point(0.5, 98.0, 97.0)),
        run("l0", {"rate": 2, "end": 5}, 0, point(0.5, 96.0, 95.0)),
    ]
    panel = sensitivity_panel(find_frontiers(load_study(write(tmp_path, records, [0.5, 0.9]))), "accuracy")
    assert {trace.name: list(trace.y) for trace in panel.figures["l0: rate"].data} == {"1": [97.0, 70.0], "2": [95.0, None]}
