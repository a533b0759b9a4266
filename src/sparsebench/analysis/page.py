"""One HTML page that a newcomer understands: everything in one file, which asks no other machine for anything."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sparsebench.analysis.comparisons import ERROR_RATE, areas, compare, in_words
from sparsebench.analysis.figures import View, trade_off
from sparsebench.analysis.frontiers import DENSE, TOLERANCE, find_frontiers
from sparsebench.analysis.layer_figures import layer_figures
from sparsebench.analysis.published_curves import published_curves, published_rows
from sparsebench.analysis.remarks import remarks, summary
from sparsebench.analysis.settings import shared_settings
from sparsebench.analysis.statistics import LEVEL
from sparsebench.analysis.study_data import load_study
from sparsebench.analysis.tables import best_rows, choices, comparison_rows, configurations, costs, failed_runs
from sparsebench.analysis.wording import asked, metric_label, value
from sparsebench.atomic import atomic_file
from sparsebench.records.schema import OWN_SOURCE

__all__ = ["render_page", "write_page"]


def write_page(directory: Path, out: Path | None = None) -> Path:
    """Write the page about a results folder.

    Args:
        directory: A folder written by `sparsebench study run` or `sparsebench train`.
        out: The file to write; `report.html` in the folder if None.

    Returns:
        The file that was written.

    Raises:
        SparsebenchError: The folder holds no finished run, its runs cannot be compared, or the file cannot be written.
    """
    page = render_page(directory)
    target = directory / "report.html" if out is None else out
    with atomic_file(target) as file:
        file.write(page.encode())
    return target


def render_page(directory: Path) -> str:
    """The page about a results folder, as HTML text.

    Args:
        directory: A folder written by `sparsebench study run` or `sparsebench train`.

    Raises:
        SparsebenchError: The folder holds no finished run, or its runs cannot be compared.
    """
    data = load_study(directory)
    frontiers = find_frontiers(data)
    published = published_curves(data.note.workload, data.metric)
    paired = data.source == OWN_SOURCE  # the seeds of imported runs only count their replicates
    comparisons = compare(frontiers, paired=paired)
    curves = trade_off(frontiers, data.metric, published)
    layers = layer_figures(frontiers, data.layers)
    described = {method: data.note.methods[method] for method in sorted(data.note.methods)}
    shared = {method: shared_settings(own) for method, own in configurations(data, frontiers).items() if own}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparsebench.analysis", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        note=data.note,
        metric=metric_label(data.metric),
        summary=summary(data, frontiers),
        remarks=remarks(data, frontiers),
        described=described,
        curves=curves,
        has_points=bool(frontiers.points),
        sparsities=[asked(sparsity) for sparsity in frontiers.sparsities],
        best=best_rows(frontiers),
        areas=areas(frontiers, paired=paired),
        area_text=value,
        verdicts=in_words(comparisons, data.note.workload, data.metric),
        comparisons=comparison_rows(comparisons, data.metric),
        paired=paired,
        error_rate=f"{ERROR_RATE:.2f}",
        published=published_rows(published, frontiers),
        dense=frontiers.dense and value(frontiers.dense.test),
        dense_seeds=frontiers.dense.test.n if frontiers.dense else 0,
        dense_name=DENSE,
        layer_choices=[asked(sparsity) for sparsity in layers],
        choices=choices(data, frontiers),
        shared=shared,
        costs=costs(data),
        failed=failed_runs(data),
        tolerance=f"{100 * TOLERANCE:g}",
        level=f"{100 * LEVEL:g}",
        figures=_as_script_data(
            {
                "tradeoff": _figure(curves.figure),
                "views": {"near": _ranges(curves.near), "all": _ranges(curves.all)},
                "layers": [_figure(figure) for figure in layers.values()],
            }
        ),
        style=Markup(_text("page.css")),
        plotly=Markup(get_plotlyjs()),
    )


def _text(name: str) -> str:
    return (resources.files("sparsebench.analysis") / name).read_text(encoding="utf-8")


def _figure(figure: go.Figure) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(figure.to_json())
    return written


def _ranges(view: View) -> dict[str, list[float]]:
    return {"xaxis.range": list(view.x), "yaxis.range": list(view.y)}


def _as_script_data(value: Any) -> Markup:
    """JSON that can stand inside a script element whatever texts are in it: none can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
