"""How the chosen networks came about: metric and sparsity while they were trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sparsebench.analysis.frontiers import DENSE, Frontiers, Point
from sparsebench.analysis.layout import as_plotly_text, base_layout, line_trace
from sparsebench.analysis.palette import style
from sparsebench.analysis.panels import Panel
from sparsebench.analysis.study_data import StudyData
from sparsebench.analysis.wording import asked, metric_label
from sparsebench.records.run_folder import RunFolder

__all__ = ["PASSED_ON", "TrainingCurve", "read_training_curve", "training_curve_path", "training_panel"]

PASSED_ON = "curves"
"""The folder of training curves in a results folder that was passed on without its runs."""

_MOST_PLACES = 60


@dataclass(frozen=True)
class TrainingCurve:
    """What a run wrote down while it was trained; None where a value was not known or no number."""

    steps: tuple[int, ...]
    metric: tuple[float | None, ...]
    sparsity: tuple[float | None, ...]


def training_curve_path(directory: Path, run_id: str) -> Path:
    """Where a results folder keeps the training curve of a run: the run's folder, or `curves` where it came without runs."""
    own = RunFolder.of(directory, run_id).curve_path
    return own if own.exists() else directory / PASSED_ON / f"{run_id}.jsonl"


def read_training_curve(path: Path) -> TrainingCurve | None:
    """The curve of a run, at most sixty places of it; None where there is none that can be read."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        lines = lines[:: max(1, -(-len(lines) // _MOST_PLACES))]
        steps = tuple(int(line["step"]) for line in lines)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not steps:
        return None
    return TrainingCurve(steps, *(tuple(_number(line.get(name)) for line in lines) for name in ("metric", "sparsity")))


def _number(value: Any) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, int | float) and math.isfinite(value) else None


def training_panel(data: StudyData, frontiers: Frontiers) -> Panel:
    """A figure for every sparsity: the first seed of each chosen point, the metric above, the sparsity below."""
    runs = data.results.drop_duplicates("run_id").set_index(["configuration", "seed"])["run_id"]
    figures = {}
    for index, sparsity in enumerate(frontiers.sparsities):
        chosen = [frontiers.dense, *(row[index] for row in frontiers.chosen.values())]
        figure = go.Figure()
        for point in chosen:
            curve = None if point is None else _curve(data, runs, point)
            if point is not None and curve is not None:
                figure.add_traces(_traces(point, curve, data.metric))
        if any(trace.name != DENSE for trace in figure.data):
            figures[f"≥ {asked(sparsity)}"] = figure.update_layout(_layout(data.metric))
    return Panel(
        key="training",
        title="While they were trained",
        label="Chosen points at",
        figures=figures,
        caption="The first seed of every chosen point: above the metric on the validation split, below the sparsity at "
        "that step. Variational dropout is shown at the threshold that its run watches.",
        absence="The folder holds no training curves of the chosen points (tables of results alone have none).",
        first=len(figures) // 2,
    )


def _curve(data: StudyData, runs: Any, point: Point) -> TrainingCurve | None:
    run_id = runs.get((point.configuration, point.seeds[0]))
    return None if run_id is None else read_training_curve(training_curve_path(data.directory, str(run_id)))


def _traces(point: Point, curve: TrainingCurve, metric: str) -> Sequence[go.Scatter]:
    look = style(point.method)
    line = {"color": look.colour, "width": 1.5}
    marker = {"color": look.colour, "symbol": look.symbol, "size": 5}
    name = as_plotly_text(point.method)
    parts = ((curve.metric, metric_label(metric), "y"), (curve.sparsity, "sparsity", "y2"))
    traces = []
    for values, label, axis in parts:
        template = f"<b>{name}</b>, step %{{x}}<br>{as_plotly_text(label)} %{{y:.4g}}<extra></extra>"
        traces.append(
            line_trace(
                point.method,
                curve.steps,
                values,
                [],
                look,
                line=line,
                marker=marker,
                yaxis=axis,
                showlegend=axis == "y",
            ).update(hovertemplate=template, text=None)
        )
    return traces


def _layout(metric: str) -> dict[str, Any]:
    return base_layout(height=520) | {
        "xaxis": {"title": {"text": "training step"}, "anchor": "y2", "zeroline": False},
        "yaxis": {
            "title": {"text": as_plotly_text(f"validation {metric_label(metric)}")},
            "domain": [0.42, 1.0],
            "zeroline": False,
            "automargin": True,
        },
        "yaxis2": {
            "title": {"text": "sparsity"},
            "domain": [0.0, 0.34],
            "range": [-0.02, 1.02],
            "zeroline": False,
            "automargin": True,
        },
    }
