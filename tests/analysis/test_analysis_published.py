from __future__ import annotations

import pytest
from analysis_studies import point, run, write
from page_reader import Page

from sparsebench.analysis.frontiers import DENSE
from sparsebench.analysis.page import render_page
from sparsebench.analysis.published_curves import published_curves
from sparsebench.analysis.sparsity_axis import position
from sparsebench.records.query import query
from sparsebench.workloads.registry import WORKLOADS

RESNET = "imagenet/resnet50"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    records = [run("magnitude", {}, seed, point(0.9, 70.0, 71.0 + seed), workload=RESNET) for seed in range(3)]
    return write(tmp_path_factory.mktemp("resnet"), records, [0.9], workload=RESNET)


def test_printed_curves_are_drawn_and_listed_with_sqls_numbers(directory):
    page = Page(render_page(directory))
    said = query(directory, f"select * from published where workload = '{RESNET}' and metric = 'accuracy' order by all")
    sparse = said[said["method"] != DENSE]
    dotted = [trace for trace in page.figures["tradeoff"]["data"] if trace.get("line", {}).get("dash") == "dot"]
    drawn = sorted((x, round(y, 6)) for trace in dotted for x, y in zip(trace["x"], trace["y"], strict=True))
    middles = zip(sparse["sparsity"], (sparse["low"] + sparse["high"]) / 2, strict=True)
    assert drawn == sorted((round(position(sparsity), 5), round(middle, 6)) for sparsity, middle in middles)
    rows = page.tables["Published values"][1:]
    assert len(rows) == len(said)
    assert ["magnitude", "90 %", "73.91", "72.00 ± 2.48"] in [row[:4] for row in rows]
    assert ["variational-dropout", "90 %", "73.84", "\N{EN DASH}"] in [row[:4] for row in rows]
    assert all("arXiv" in row[4] for row in rows)


def test_other_workloads_and_metrics_have_no_printed_curves(tmp_path):
    assert published_curves("digits", "accuracy") == published_curves(RESNET, "bleu") == ()
    page = Page(render_page(write(tmp_path, [run("l0", {}, 0, point(0.9, 90.0, 91.0))], [0.9])))
    assert "Published values" not in page.tables


@pytest.mark.parametrize("name", ["imagenet/resnet-50", "wmt14-ende"])
def test_printed_curves_are_found_by_the_names_of_our_workloads(name):
    workload = WORKLOADS.get(name)
    assert [curve.reference for curve in published_curves(workload.name, workload.metric)].count("gale2019") >= 4
