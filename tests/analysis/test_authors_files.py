"""The authors' own ResNet-50 result files, where somebody has them: their figure appears, with the values that they print.

    SPARSEBENCH_PUBLISHED=FOLDER pytest tests/analysis/test_authors_files.py

FOLDER holds the files `rn50_*.csv` that docs/imported-results.md says where to get.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from page_reader import Page

from sparsebench.analysis.page import render_page
from sparsebench.analysis.paper import paper_figures
from sparsebench.records.importing.results_folder import import_files
from sparsebench.records.published.values import published_values

FOLDER = os.environ.get("SPARSEBENCH_PUBLISHED", "")
# What their files hold where it is not what they print: see the notes in values.yaml.
DIFFERS = {
    **{("random", sparsity): value for sparsity, value in ((0.7, 72.22), (0.95, 58.08), (0.98, 44.00))},
    **{
        ("variational-dropout", sparsity): value for sparsity, value in ((0.8, 75.46), (0.9, 73.91), (0.95, 71.82), (0.98, 66.75))
    },
}


@pytest.mark.skipif(not FOLDER, reason="THE AUTHORS' FILES WERE NOT TRIED: SPARSEBENCH_PUBLISHED names no folder of rn50_*.csv")
def test_the_papers_figure_appears_with_its_values_and_l0_fails(tmp_path):
    import_files(sorted(Path(FOLDER).rglob("rn50_*.csv")), tmp_path)
    drawn = paper_figures(tmp_path, "gale2019")
    compared = 0
    for (row,) in drawn.rows:
        printed = [
            value
            for value in published_values()
            if (value.reference, value.workload, value.method) == ("gale2019", "imagenet/resnet50", row.method)
            and row.printed == f"{value.low:.2f}"
            and value.sparsity > 0
        ]
        for value in printed if row.ours != "\N{EN DASH}" else ():
            assert row.ours == f"{DIFFERS.get((row.method, value.sparsity), value.low):.2f}"
            compared += 1
    assert compared == 17
    lines = {trace.name for trace in drawn.named()["curves trade-off"].data if "lines" in trace.mode}
    assert {"dense", "magnitude", "variational-dropout", "random", "l0"} <= lines
    page = Page(render_page(tmp_path))
    assert page.tables["Finding 4"][1][-1] == "holds"
    verdict = page.text[page.text.index("4. L0 regularization gives no usable network") :]
    assert "On imagenet/resnet50: supported" in verdict[: verdict.index("5. ")]
