"""The page's figures as PDF and SVG for papers and slides, drawn by Matplotlib from the same data."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["print_figures"]

_FORMATS = ("pdf", "svg")
_SIZE = (6.4, 4.0)  # inches: across a page, or the width of a slide's half
_ROW = 1.1  # inches of a row where there are many
_POINTS_PER_PIXEL = 0.6
_LEGEND_LETTERS = 110  # of a line
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
_ALIGNED = {"top": "top", "middle": "center"}
_MARKERS = {  # Matplotlib's names for Plotly's symbols; what it lacks is drawn by its number of corners
    "line-ew": "_",
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "x": "X",
    "star": "*",
    "hexagon": "h",
    "pentagon": "p",
    "cross": "P",
    "hexagram": (6, 1, 0),
    "triangle-left": "<",
    "triangle-se": (3, 0, 225),
    "triangle-nw": (3, 0, 315),
    "diamond-cross": (4, 1, 67),
    "triangle-right": ">",
    "bowtie": (4, 1, 45),
    "hourglass": (4, 1, 0),
    "diamond-tall": "d",
    "star-diamond": (4, 1, 22),
    "octagon": "8",
    "diamond-wide": (4, 0, 20),
    "star-triangle-up": (3, 1, 0),
    "star-square": (4, 1, 10),
    "star-triangle-down": (3, 1, 180),
    "triangle-ne": (3, 0, 45),
    "triangle-sw": (3, 0, 135),
    "hexagon2": "H",
}


def print_figures(figures: Mapping[str, go.Figure], folder: Path) -> list[Path]:
    """Write figures as PDF and SVG.

    Args:
        figures: Figures of lines and marks by their names, which become names of files.
        folder: Where to write; made where it is missing.

    Returns:
        The files, two for each figure.

    Raises:
        SparsebenchError: Matplotlib is not installed, or a file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SparsebenchError("--figures needs Matplotlib: pip install 'sparsebench[analysis]'") from error
    make_directory(folder)
    written = []
    # A fixed salt and no dates: the same data give the same files. Texts stay texts.
    with mpl.rc_context({"svg.hashsalt": "sparsebench", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}):
        for name, figure in figures.items():
            canvas = Figure(figsize=_SIZE, layout="constrained")
            _draw(canvas, figure.to_plotly_json())
            for kind in _FORMATS:
                path = folder / f"{_file_name(name)}.{kind}"
                buffer = io.BytesIO()
                canvas.savefig(buffer, format=kind, metadata={"CreationDate" if kind == "pdf" else "Date": None})
                with atomic_file(path) as file:
                    file.write(buffer.getvalue())
                written.append(path)
    return written


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")


def _draw(canvas: Any, figure: Mapping[str, Any]) -> None:
    layout = figure["layout"]
    rows = [key for key in layout if key.startswith("yaxis")]
    own_x = "xaxis2" in layout  # else all rows have the first one's
    heights = [end - begin for begin, end in (layout[row].get("domain") or (0.0, 1.0) for row in rows)]
    grid = canvas.subplots(len(rows), 1, sharex=not own_x, height_ratios=heights, squeeze=False)[:, 0]
    canvas.set_figheight(max(_SIZE[1], _ROW * len(rows)))
    parts: dict[str, Axes] = {row.replace("axis", ""): part for row, part in zip(rows, grid, strict=True)}
    for trace in figure["data"]:
        _draw_trace(parts[trace.get("yaxis") or "y"], trace)
    for row, part in zip(rows, grid, strict=True):
        x = layout[row.replace("y", "x") if own_x else "xaxis"]
        _dress(part, x, layout[row], named=own_x or part is grid[-1])
    for shape in layout.get("shapes") or ():
        if shape["type"] == "line":
            _draw_line(parts["y"], shape)
    for number, note in enumerate(layout.get("annotations") or ()):
        if own_x:
            grid[number].set_title(_plain(note["text"]), loc="left", fontsize=7, pad=2)
            continue
        parts["y"].annotate(
            _plain(note["text"]), (0.0, note["y"]), xycoords=("axes fraction", "data"), fontsize=6, va=_ALIGNED[note["yanchor"]]
        )
    handles, labels = parts["y"].get_legend_handles_labels()
    if labels:
        canvas.legend(handles, labels, loc="outside upper left", ncols=_columns(labels), fontsize=7, frameon=False)


def _columns(labels: Iterable[str]) -> int:
    """How many columns of a legend fit side by side."""
    return max(1, min(4, _LEGEND_LETTERS // (max(map(len, labels)) + 8)))


def _draw_trace(part: Any, trace: Mapping[str, Any]) -> None:
    if trace["type"] == "heatmap":
        _draw_cells(part, trace)
        return
    y = _numbers(trace.get("y"))
    x = [trace["x0"] + place * trace["dx"] for place in range(len(y))] if "x0" in trace else _numbers(trace.get("x"))
    line, marker = trace.get("line") or {}, trace.get("marker") or {}
    if trace.get("fill") == "toself":
        part.fill(x, y, color="#808080", alpha=0.18, linewidth=0)
        return
    if len(x) < len(y):
        return  # a printed curve has no places on other axes
    mode, symbol = trace.get("mode") or "lines", str(marker.get("symbol", "circle"))
    size = marker.get("size", 6)
    lines, marks = "lines" in mode, "markers" in mode
    label = _plain(trace["name"]) if trace.get("showlegend") is not False else None
    look = {
        "color": line.get("color") or marker.get("color"),
        "linestyle": _DASHES[line.get("dash", "solid")] if lines else "none",
        "linewidth": _POINTS_PER_PIXEL * line.get("width", 2),
        "marker": _MARKERS[symbol.removesuffix("-open")] if marks else "none",
        "markersize": _POINTS_PER_PIXEL * (max(size) if isinstance(size, list | tuple) else size),
        "alpha": marker.get("opacity"),
        "drawstyle": "steps-mid" if line.get("shape") == "hvh" else "default",
        "label": label,
    }
    if symbol.endswith("-open"):
        look["markerfacecolor"] = "none"
    if isinstance(size, list | tuple):
        look["markevery"] = [place for place, own in enumerate(size) if own]
    bars = _numbers((trace.get("error_y") or {}).get("array"))
    if len(bars):
        part.errorbar(x, y, yerr=bars, capsize=2, elinewidth=0.8, **look)
    else:
        part.plot(x, y, **look)
    if trace.get("fill") == "tozeroy":
        part.fill_between(x, y, color=line["color"], alpha=0.25, linewidth=0, step="mid")


def _draw_cells(part: Any, trace: Mapping[str, Any]) -> None:
    rows = [_numbers(row) for row in trace["z"]]
    cells = part.imshow(rows, aspect="auto", cmap="cividis", vmin=trace["zmin"], vmax=trace["zmax"])
    part.set_xticks(range(len(rows[0])))
    part.figure.colorbar(cells, ax=part, label=_plain(trace["colorbar"]["title"]["text"]))


def _numbers(values: Iterable[Any] | None) -> list[float]:
    return [float("nan") if value is None else float(value) for value in (() if values is None else values)]


def _dress(part: Any, x: Mapping[str, Any], y: Mapping[str, Any], *, named: bool) -> None:
    for name, axis in (("x", x), ("y", y)):
        if axis.get("type") == "log":
            part.set(**{f"{name}scale": "log"})
        limits = getattr(part, f"get_{name}lim")()
        if axis.get("range") is not None:
            limits = tuple(10.0**end for end in axis["range"]) if axis.get("type") == "log" else tuple(axis["range"])
        if axis.get("tickvals") is not None:
            part.set(**{f"{name}ticks": list(axis["tickvals"]), f"{name}ticklabels": [_plain(text) for text in axis["ticktext"]]})
        part.set(**{f"{name}lim": limits})  # after the ticks, which would widen them
        if axis.get("showticklabels") is False:
            part.set(**{f"{name}ticks": []})
        if name == "y" or named:
            part.set(**{f"{name}label": _plain((axis.get("title") or {}).get("text", ""))})
    part.grid(visible=True, color="#dddddd", linewidth=0.5)
    part.set_axisbelow(True)
    part.spines[["top", "right"]].set_visible(False)


def _draw_line(part: Any, shape: Mapping[str, Any]) -> None:
    look = {"color": "#808080", "linewidth": 1.0, "linestyle": "--", "zorder": 0}
    if shape["x0"] == shape["x1"]:
        part.axvline(shape["x0"], **look)
    else:
        part.axhline(shape["y0"], **look)


def _plain(text: str) -> str:
    """Text for Matplotlib, which would take what stands between two dollar signs for a formula."""
    return html.unescape(text).replace("$", r"\$")
