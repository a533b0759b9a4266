"""The command line's part about networks of finished runs: how fast they are, and files of them for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebench import terminal
from sparsebench.environment_options import Data

__all__ = ["export_model", "latency"]


def latency(
    directory: Annotated[Path, typer.Argument(help="Results folder, as `sparsebench study run` or `train` made it.")],
    batch: Annotated[int, typer.Option(help="Examples in a batch: images, or sentences to translate.", min=1)] = 16,
    threads: Annotated[int | None, typer.Option(help="CPU threads; as many as torch takes where left out.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="How long each network is timed.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Also measure what was measured with these settings before.")] = False,
    data: Data = None,
) -> None:
    """Measure how fast the networks of finished runs are, run sparse and in PyTorch, and keep it beside each run.

    Example: sparsebench latency runs/quickstart --batch 16 --threads 2

    Let nothing else run meanwhile. Stop it whenever you like: the same command goes on. Tables have the times from then on, as
    latency_ms and dense_latency_ms.
    """
    import torch

    from sparsebench.deployment.latency import LatencySettings, measure_runs
    from sparsebench.inference import kernel_path

    settings = LatencySettings(batch, threads or torch.get_num_threads(), seconds)
    with terminal.counting("latency", "networks") as progress:
        summary = measure_runs(directory, settings, again=again, begin=progress.begin, done=progress.done)
    for reason in dict.fromkeys(summary.failed.values()):
        first, *others = (run_id for run_id, its in summary.failed.items() if its == reason)
        more = f" and {len(others):,} more" if others else ""
        terminal.say(f"run {first}{more} could not be measured: {reason}")
    how = f"batch {batch}, threads {settings.threads}, kernels {kernel_path()}"
    terminal.say(f"{summary.measured:,} networks measured ({how}), {summary.present:,} had been before; results: {directory}")
    if summary.failed:
        raise typer.Exit(1)


def export_model(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or its model.safetensors.")],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write: .onnx, or .pt2 for torch.export.")],
    data: Data = None,
) -> None:
    """Write the network of a finished run for other programs: as ONNX, compared with torch before, or for torch.export.

    Example: sparsebench export-model runs/quickstart/runs/0123456789abcdef model.onnx

    Weights are those of the run, zeros included. ONNX needs: pip install "sparsebench[onnx]".
    """
    from sparsebench.deployment.export import export_model as write

    terminal.say(write(source, target))
