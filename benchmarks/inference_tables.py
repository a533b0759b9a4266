"""Tables and the figure of what `inference.py` measured, from its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from driving import table
from inference_cases import BLOCKS, ELEMENTS, SPARSELAB

SECTIONS = ("layers", "networks")
FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
PYTORCH, AGAIN = "PyTorch", "PyTorch again"


def least(times: Sequence[float]) -> float:
    """Milliseconds: what else runs on the machine makes times longer, never shorter."""
    return min(times) * 1e3


def fastest(case: Mapping[str, Any], precision: str = FLOAT32) -> float | None:
    """Least time of the dense network in any runtime of a precision, in milliseconds; None where there is none."""
    times = [least(values) for name, values in case["dense"].items() if case["precisions"][name] == precision]
    return min(times, default=None)


def show(record: Mapping[str, Any]) -> str:
    """Everything measured, as Markdown."""
    parts = ["\n".join(f"- {fact}: {value}" for fact, value in record["facts"].items())]
    for section in SECTIONS:
        cases = [case for case in record["cases"] if case["section"] == section]
        if cases:
            parts += [f"### Inference: {section}", _dense_table(cases), _sparse_table(cases)]
    return "\n\n".join(parts)


def _dense_table(cases: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for case in cases for name in case["dense"]))
    rows = []
    for case in cases:
        row = [case["title"]]
        for name in names:
            times = case["dense"].get(name)
            if times is None:
                row.append("")
            elif name == AGAIN:
                row.append(f"{least(times) / least(case['dense'][PYTORCH]):.2f}")
            else:
                row.append(f"{least(times):.3g} ({statistics.median(times) * 1e3:.3g})")
        rows.append(row)
    return table(["dense, ms: least (median)", *("A/A" if name == AGAIN else name for name in names)], rows)


def _sparse_table(cases: Sequence[Mapping[str, Any]]) -> str:
    sparsities = list(dict.fromkeys(sparsity for case in cases for way in case["sparse"].values() for sparsity in way))
    rows = []
    for case in cases:
        for name, times in case["sparse"].items():
            row = [case["title"], name]
            for sparsity in sparsities:
                ours = least(times[sparsity])
                row.append(f"{fastest(case) / ours:.2f} ({least(case['dense'][PYTORCH]) / ours:.2f})")
            rows.append(row)
    header = [f"{100 * float(sparsity):.0f} %" for sparsity in sparsities]
    return table(["sparse: times faster than the fastest float32 (than PyTorch)", "zeros", *header], rows)


# The same in every panel.
LOOKS = {ELEMENTS: ("#0072b2", "o"), BLOCKS: ("#d55e00", "s"), SPARSELAB: ("#009e73", "^")}


def draw(record: Mapping[str, Any], path: Path) -> None:
    """A panel for each network: how many times faster than the fastest dense float32, by sparsity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    cases = [case for case in record["cases"] if case["section"] == "networks"]
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    plt.rcParams["svg.hashsalt"] = "inference"
    figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[len(cases) :]:
        axes.set_axis_off()
    for axes, case in zip(grid.flat, cases, strict=False):
        base = fastest(case)
        axes.axhline(1.0, color="0.3", linewidth=1.0, label="fastest dense float32")
        for precision, style in ((BFLOAT16, "--"), (INT8, ":")):
            other = fastest(case, precision)
            if other is not None:
                axes.axhline(base / other, color="0.5", linewidth=1.0, linestyle=style, label=f"fastest dense {precision}")
        for name, times in case["sparse"].items():
            (colour, marker), speed = LOOKS[name], [base / least(values) for values in times.values()]
            axes.plot([f"{100 * float(sparsity):.0f}" for sparsity in times], speed, color=colour, marker=marker, label=name)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(case["title"], fontsize=9)
        axes.set_xlabel("sparsity, %", fontsize=8)
        axes.set_ylabel("times faster", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    handles = {}
    for axes in grid.flat[: len(cases)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
