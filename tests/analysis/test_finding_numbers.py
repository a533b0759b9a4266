"""The numbers behind the findings are what SQL and SciPy give on the tables."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy.stats
from analysis_studies import point, run, write
from page_reader import Page

from sparsebench.analysis.page import render_page
from sparsebench.records.query import query

SPARSITIES = (0.5, 0.8, 0.95)
MAGNITUDE = ("magnitude", "magnitude-erk")
NON_UNIFORM = ("magnitude-erk",)
GROUPS = {"magnitude pruning": MAGNITUDE, "non-uniform magnitude pruning": NON_UNIFORM, "uniform magnitude": ("magnitude",)}
DROPS = {
    "magnitude": (0.3, 1.2, 6.0),
    "magnitude-erk": (0.5, 0.9, 3.1),
    "variational-dropout": (0.4, 1.6, 2.8),
    "l0": (0.9, 2.6, 4.0),
    "random": (1.9, 6.0, 15.0),
    "scratch-b": (1.3, 2.0, 9.0),
    "lottery-ticket": (0.9, 2.3, 8.0),
}


def records():
    noise = np.random.default_rng(3)
    found = []
    for seed in range(4):
        found.append(run("dense", {}, seed, point(0.0, 90.0, 90.0 + 0.4 * noise.normal())))
        for method, drops in DROPS.items():
            for sparsity, drop in zip(SPARSITIES, drops, strict=True):
                values = 90.0 - drop + 0.4 * noise.normal(size=2)
                found.append(run(method, {"sparsity": sparsity}, seed, point(sparsity, *values, target=sparsity)))
    times = [10.0 + 5.0 * (record.method in ("l0", "variational-dropout")) + noise.random() for record in found]
    return [record.model_copy(update={"processor_seconds": time}) for record, time in zip(found, times, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("study"), records(), SPARSITIES)


@pytest.fixture(scope="module")
def page(folder):
    return Page(render_page(folder))


def chosen(folder, methods, sparsity):
    """The method, mean and test values by seed of the best point of some methods: one grid, every point with four seeds."""
    (row,) = query(
        folder,
        "with points as (select method, configuration, avg(value) filter (split = 'validation') as validation, "
        "avg(sparsity) as sparsity from results where metric = 'accuracy' group by method, configuration) "
        f"select * from points where method in {(*methods, '')} and sparsity >= {sparsity} - 0.0005 "
        "order by validation desc limit 1",
    ).itertuples()
    said = query(
        folder,
        f"select seed, value from results where configuration = '{row.configuration}' and method = '{row.method}' "
        "and split = 'test' and metric = 'accuracy' order by seed",
    )
    return row.method, said["value"].to_numpy()


def dense_mean(folder):
    return query(folder, "select avg(value) as m from results where method = 'dense' and split = 'test' and metric = 'accuracy'")[
        "m"
    ][0]


def interval(values):
    return scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))


def read(claim):
    """The two sides of a claim, and its limit in margins; None where it is not a difference."""
    for pattern, limit in (
        (r"(.+) matches or beats (.+)", -1.0),
        (r"(.+) beats (.+)", 1.0),
        (r"(?P<second>.+) stays below (?P<first>magnitude), whose masks it has", 1.0),
        (r"(.+) and (.+) are close", 3.0),
    ):
        found = re.fullmatch(pattern, claim)
        if found:
            first, second = (found["first"], found["second"]) if found.groupdict() else found.groups()
            return GROUPS.get(first, (first,)), GROUPS.get(second, (second,)), limit, "close" in pattern
    return None


def holm(p_values):
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = reached
    return adjusted


@pytest.mark.parametrize(("number", "rows_expected"), [(1, 15), (2, 6), (3, 2), (5, 6)])
def test_every_difference_behind_a_finding(folder, page, number, rows_expected):
    margin = 0.01 * dense_mean(folder)
    rows = [row for row in page.tables[f"Finding {number}"][1:] if read(row[0])]
    assert len(rows) == rows_expected
    fails = []
    for claim, where, numbers, p_holds, _, _ in rows:
        firsts, seconds, margins, close = read(claim)
        sparsity = float(where.split()[0]) / 100
        (first, one), (second, other) = (chosen(folder, methods, sparsity) for methods in (firsts, seconds))
        apart, limit = one - other, margins * margin
        said = numbers.replace("\N{NO-BREAK SPACE}", " ")
        assert said == (
            f"{first} {one.mean():.2f} ± {interval(one):.2f}, {second} {other.mean():.2f} ± {interval(other):.2f}: "
            f"{apart.mean():.2f} ± {interval(apart):.2f} points (limit {'±' if close else ''}{limit:.2f})"
        )

        def p(at, alternative, apart=apart):
            return scipy.stats.ttest_1samp(apart, at, alternative=alternative).pvalue

        holds = max(p(-limit, "greater"), p(limit, "less")) if close else p(limit, "greater")
        fails.append(min(1.0, 2 * min(p(limit, "greater"), p(-limit, "less"))) if close else p(limit, "less"))
        assert p_holds == f"{holds:.4f}"
    adjusted = [f"{p_value:.4f}" for p_value in holm(fails)]
    assert [row[4] for row in rows] == adjusted
    for row, p_fails in zip(rows, adjusted, strict=True):
        expected = "holds" if float(row[3]) <= 0.05 else "fails" if float(p_fails) <= 0.05 else "not shown"
        assert row[5] == expected


def test_the_other_statements_numbers(folder, page):
    """Finding 2's prices, finding 4's best network and finding 6's times."""
    times = query(folder, "select method, median(processor_seconds / steps) as step from results group by method")
    step = dict(zip(times["method"], times["step"], strict=True))
    prices = [row for row in page.tables["Finding 2"][1:] if "costs more" in row[0]]
    assert len(prices) == 2
    for row in prices:
        method = row[0].split()[0]
        assert f"{step[method] / step['magnitude']:.2f} times the processor time of magnitude" in row[2]
    (best,) = query(
        folder,
        "select avg(value) as m, avg(sparsity) as s from results where method = 'l0' and split = 'test' and metric = 'accuracy' "
        "group by configuration having avg(sparsity) >= 0.4995 order by m desc limit 1",
    ).itertuples()
    (unusable,) = page.tables["Finding 4"][1:]
    said = unusable[2].replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith(f"best of 3: {best.m:.2f} ±")
    assert said.endswith(f"at {100 * best.s:.2f} %; half of dense is {dense_mean(folder) / 2:.2f}")
    for row in page.tables["Finding 6"][1:]:
        method = row[0].split()[0]
        assert row[2].startswith(f"{step[method] / step['dense']:.2f} times (median of 12 runs)")
