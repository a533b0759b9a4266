"""Every number on the page is what SQL gives on the tables, read off the page itself."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import scipy.stats
from analysis_studies import point, run, small_study, with_histograms, write
from page_reader import Page

from sparsebench.analysis.page import render_page
from sparsebench.records.query import query

EN_DASH = "\N{EN DASH}"
SPARSITIES = (0.8, 0.9, 0.98)

# The rule of docs/report.md, said once more: points are means over seeds, the best is that by validation.
POINTS = """
    select method, configuration, threshold, avg(value) filter (split = 'validation') as validation,
        avg(value) filter (split = 'test') as test, stddev_samp(value) filter (split = 'test') as spread,
        avg(sparsity) filter (split = 'test') as sparsity, count(distinct seed) as seeds
    from results where primary_metric group by method, configuration, threshold
"""


def noisy(seed):
    """What training would add: a value that differs from run to run, the same on every machine."""
    return 0.7 * math.sin(12.9898 * seed)


def noisy_records():
    records = []
    for number, record in enumerate(small_study()):
        points = tuple(
            found.model_copy(
                update={
                    "metrics": {
                        split: {name: value + noisy(number + 7 * place) for name, value in metrics.items()}
                        for split, metrics in found.metrics.items()
                    }
                }
            )
            for place, found in enumerate(record.points)
        )
        times = {"seconds": 10.0 + 0.3 * number, "peak_memory_bytes": 2**20 + 1000 * number, "processor_seconds": 9.0 + number}
        records.append(with_histograms(record.model_copy(update={"points": points} | times)))
    return records


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write(tmp_path_factory.mktemp("study"), noisy_records(), SPARSITIES)


@pytest.fixture(scope="module")
def page(study):
    return Page(render_page(study))


def best(study, sparsities=SPARSITIES):
    """The chosen points by method and sparsity."""
    found = {}
    for sparsity in sparsities:
        rows = query(
            study,
            f"with points as ({POINTS}), "
            f"enough as (select * from points where sparsity >= {sparsity} - 0.0005 and method != 'dense') "
            "select *, count(*) over (partition by method) as tried from enough "
            "qualify row_number() over (partition by method order by validation desc, sparsity desc) = 1",
        )
        found |= {(row.method, f"{100 * sparsity:g} %"): row for row in rows.itertuples()}
    (dense,) = query(
        study,
        f"with points as ({POINTS}) select *, 1 as tried from points where method = 'dense' order by validation desc limit 1",
    ).itertuples()
    return found | {("dense", EN_DASH): dense}


def with_interval(mean, spread, seeds):
    half = scipy.stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds)
    return f"{mean:.2f} ± {half:.2f}"


def values(study, row):
    """The test values of a chosen point by seed."""
    threshold = "is null" if row.threshold is None or math.isnan(row.threshold) else f"= {row.threshold}"
    said = query(
        study,
        "select seed, value from results where primary_metric and split = 'test' "
        f"and configuration = '{row.configuration}' and method = '{row.method}' and threshold {threshold}",
    )
    return dict(zip(said["seed"], said["value"], strict=True))


def test_best_values_and_their_intervals(study, page):
    table = {row[0]: row[1:] for row in page.tables["Test accuracy (%) at least this sparse"]}
    heads = [head.removeprefix("≥ ") for head in table["method"]]
    chosen = best(study)
    compared = 0
    for method, asked in itertools.product(("magnitude", "random", "variational-dropout"), heads):
        cell = table[method][heads.index(asked)].removeprefix("★ highest: ")
        row = chosen.get((method, asked))
        assert cell == (EN_DASH if row is None else f"{with_interval(row.test, row.spread, row.seeds)}3 seeds")
        compared += row is not None
    dense = chosen["dense", EN_DASH]
    assert table["dense"] == [f"{with_interval(dense.test, dense.spread, dense.seeds)}3 seeds, no sparsity"]
    assert compared == 6
    for asked in heads:
        means = {method: row.test for (method, at), row in chosen.items() if at == asked}
        stars = [method for method in means if table[method][heads.index(asked)].startswith("★")]
        assert stars == ([max(means, key=means.get)] if means else [])


def test_areas_under_the_curves(tmp_path):
    """The mean height of the curve of each seed, on an axis that is even in the logarithm of the weights kept."""
    study = write(tmp_path, noisy_records(), (0.8, 0.9))
    table = dict(Page(render_page(study)).tables["Area under the trade-off curve"][1:])
    chosen = best(study, (0.8, 0.9))
    for method in ("magnitude", "random", "variational-dropout"):
        curves = [values(study, chosen[method, sparsity]) for sparsity in ("80 %", "90 %")]
        # One trapezium, divided by its width, is the mean of its heights, wherever its ends are.
        each = [(curves[0][seed] + curves[1][seed]) / 2 for seed in curves[0]]
        assert table[method] == with_interval(np.mean(each), np.std(each, ddof=1), len(each))


def test_the_settings_behind_the_values(study, page):
    chosen = best(study)
    rows = page.tables["Chosen points"][1:]
    assert {(row[0], row[1]) for row in rows} == set(chosen)
    for method, asked, measured, validation, test, tried, seeds, threshold, _, configuration in rows:
        row = chosen[method, asked]
        assert measured == f"{100 * row.sparsity:.2f} %"
        assert validation == f"{row.validation:.2f}"
        assert test == with_interval(row.test, row.spread, row.seeds)
        assert (tried, seeds) == (f"{row.tried}", f"{row.seeds}")
        assert threshold == (f"{row.threshold:g}" if row.threshold is not None and row.threshold == row.threshold else EN_DASH)
        assert configuration == row.configuration


def test_comparisons(study, page):
    """Differences, intervals, effect sizes and p values as SciPy has them for the values that SQL gives."""
    chosen = best(study)
    expected = {}
    for sparsity in ("80 %", "90 %"):
        methods = ["dense", *(method for method, at in chosen if at == sparsity)]
        rows = {method: chosen["dense", EN_DASH] if method == "dense" else chosen[method, sparsity] for method in methods}
        tests = {}
        for one, other in itertools.combinations(methods, 2):
            first, second = (values(study, rows[name]) for name in (one, other))
            apart = np.array([first[seed] - second[seed] for seed in sorted(first)])
            tests[one, other] = apart if apart.mean() >= 0 else -apart
            expected[frozenset((one, other)), sparsity] = [tests[one, other], hedges_g(first, second)]
        p = [scipy.stats.ttest_1samp(apart, 0.0).pvalue for apart in tests.values()]
        order = sorted(range(len(p)), key=p.__getitem__)
        running = 0.0
        for rank, place in enumerate(order):
            running = max(running, min(1.0, p[place] * (len(p) - rank)))
            expected[frozenset(list(tests)[place]), sparsity].append(running)
    rows = page.tables["Pairwise comparisons"][1:]
    assert len(rows) == len(expected) == 12
    for first, second, asked, difference, effect, adjusted, replicates, verdict in rows:
        apart, size, p = expected[frozenset((first, second)), asked]
        half = scipy.stats.t.ppf(0.975, 2) * apart.std(ddof=1) / math.sqrt(3)
        assert difference == f"{apart.mean():.2f} ± {half:.2f} points"
        assert (adjusted, replicates) == (f"{p:.4f}", "3 pairs")
        assert float(effect) == pytest.approx(size, abs=0.051)
        assert verdict == (f"{first} is better" if p <= 0.05 else "no difference shown")
        sentence = next(text for text in verdicts(page) if {first, second} <= set(re.findall(r"[\w-]+", text)))
        told = f"{first} beats {second}" in sentence and f"{difference} at" in sentence
        assert told == (p <= 0.05), (sentence, p)


def hedges_g(first, second):
    """Of groups of equal size: the pooled variance is the mean of both, and gamma functions give the exact correction."""
    groups = [np.array(list(own.values())) for own in (first, second)]
    pooled = math.sqrt(np.mean([own.var(ddof=1) for own in groups]))
    freedom = sum(map(len, groups)) - 2
    correction = math.gamma(freedom / 2) / (math.sqrt(freedom / 2) * math.gamma((freedom - 1) / 2))
    return abs(groups[0].mean() - groups[1].mean()) / pooled * correction


def verdicts(page):
    return ["On digits " + part for part in page.text.replace("\N{NO-BREAK SPACE}", " ").split("On digits ")[1:]]


def test_costs(study, page):
    said = query(
        study,
        "select method, count(distinct run_id) as runs, count(distinct configuration) as configurations, "
        "count(distinct (configuration, threshold)) as points, max(steps) as steps from results group by method",
    )
    times = query(
        study,
        "select method, sum(seconds) as total, avg(seconds) as mean, avg(peak_memory_bytes) as memory from "
        "(select distinct run_id, method, seconds, peak_memory_bytes from results) group by method",
    )
    expected = said.merge(times, on="method")
    table = {row[0]: row[1:] for row in page.tables["Tuning budget and training cost"][1:]}
    assert set(table) == set(expected["method"])
    for row in expected.itertuples():
        total = f"{row.total:.1f} s" if row.total < 60 else f"{row.total / 60:.1f} min"
        assert table[row.method] == [
            f"{row.configurations}",
            f"{row.points}",
            "3",
            f"{row.runs}",
            "0",
            f"{row.steps:,}",
            total,
            f"{row.mean:.1f} s",
            f"{row.memory / 2**20:.1f} MiB",
        ]


def test_the_summary_and_every_mark_of_the_first_figure(study, page):
    (counts,) = query(
        study, "select count(distinct run_id) as runs, count(distinct configuration) as configurations from results"
    ).itertuples()
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        f"{counts.runs} finished runs of 1,500 training steps each, {counts.configurations} configurations with 3 seeds" in text
    )
    points = query(study, f"with points as ({POINTS}) select * from points")
    expected = sorted((row.method, round(row.test, 5)) for row in points.itertuples())
    drawn = sorted(
        (trace["name"], value) for trace in page.figures["tradeoff"]["data"] if trace["mode"] == "markers" for value in trace["y"]
    )
    assert [name for name, _ in drawn] == [name for name, _ in expected]
    assert [value for _, value in drawn] == pytest.approx([value for _, value in expected], abs=1e-5)


def test_single_seeds_are_passed_over_where_there_are_points_of_several(tmp_path):
    """Also the place of each configuration in "What tuning buys", where they count."""
    lucky = [run("magnitude", {"sparsity": 0.9, "begin": begin}, 0, point(0.9, 99.0 + begin, 98.0)) for begin in (1, 2)]
    lucky += [run("l0", {"penalty": penalty}, 0, point(0.9, 80.0 + penalty, 70.0)) for penalty in (1.0, 2.0)]
    study = write(tmp_path, [*noisy_records(), *lucky], (0.9,))
    page = Page(render_page(study))
    rows = query(
        study,
        f"with points as ({POINTS}), enough as (select * from points where sparsity >= 0.9 - 0.0005 and method != 'dense') "
        "select * from enough qualify "
        "row_number() over (partition by method order by seeds > 1 desc, validation desc, sparsity desc) = 1",
    )
    table = {row[0]: row[1] for row in page.tables["Test accuracy (%) at least this sparse"][1:]}
    for row in rows.itertuples():
        text = f"{row.test:.2f}1 seed" if row.seeds == 1 else f"{with_interval(row.test, row.spread, row.seeds)}3 seeds"
        assert table[row.method].removeprefix("★ highest: ") == text
    assert {row.method: row.seeds for row in rows.itertuples()}["magnitude"] == 3
    assert {row.method: row.seeds for row in rows.itertuples()}["l0"] == 1
    tries = query(
        study,
        f"with points as ({POINTS}) select test from points where method = 'magnitude' and sparsity > 0.89 order by validation",
    )
    (budget,) = page.figures["panels"]["budget"]
    line = next(trace for trace in budget["data"] if trace["name"] == "magnitude")
    assert line["x"][0] == 1
    assert line["y"][0] == pytest.approx(tries["test"].mean())
    assert (line["x"][-1], line["y"][-1]) == (len(tries), pytest.approx(tries["test"].iloc[-1]))


def test_failed_runs_are_counted_and_change_no_value(study, tmp_path):
    """Their reasons and settings are not in the tables; all other numbers stay."""
    with_failure = write(tmp_path, [], SPARSITIES)
    (tmp_path / "runs").mkdir()
    for folder in (study / "runs").iterdir():
        (tmp_path / "runs" / folder.name).symlink_to(folder)
    lost = run("random", {"sparsity": 0.9, "begin": 0}, 99, small_study()[1].points[0])
    (tmp_path / "runs" / lost.run_id).mkdir()
    (tmp_path / "runs" / lost.run_id / "failure.txt").write_text("the loss is nan at step 3\n\nTraceback")
    found, before = Page(render_page(with_failure)), Page(render_page(study))
    for table in ("Test accuracy (%) at least this sparse", "Chosen points", "Pairwise comparisons"):
        assert found.tables[table] == before.tables[table]
    assert found.tables["Failed runs"][1][2] == "the loss is nan at step 3"
