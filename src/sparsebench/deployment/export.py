"""The network of a finished run as a file for other programs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sparsebench.atomic import atomic_file
from sparsebench.deployment.networks import FinishedNetwork, finished_network
from sparsebench.errors import SparsebenchError
from sparsebench.inference.export import export_onnx, export_program

__all__ = ["WRITERS", "export_model"]

EXAMPLES = 2


def export_model(source: Path, target: Path) -> str:
    """Write the network of a finished run as ONNX or as a program of torch.export, as the target's ending says.

    It takes what the network takes: images [batch, channels, height, width], normalised as in training; or source and target
    tokens [sentences, positions], padded at the end, and gives the scores of the next token at every target position.

    Args:
        source: The run's folder, or its `model.safetensors`.
        target: The file to write, `.onnx` or `.pt2`.

    Returns:
        A line that says what was written.

    Raises:
        SparsebenchError: The ending is another, the network cannot be built or exported, or the file cannot be written.
    """
    write = WRITERS.get(target.suffix)
    if write is None:
        raise SparsebenchError(f"cannot export to {target.name!r}: expected a name that ends in {' or '.join(WRITERS)}")
    return f"{target}: {write(finished_network(source), target)}"


def _write_onnx(network: FinishedNetwork, target: Path) -> str:
    example = network.workload.example_input(EXAMPLES)
    written = export_onnx(network.model, example.arguments, target, dynamic=example.dynamic)
    return (
        f"{written.file_bytes:,} bytes, opset {written.opset}, {written.zeros:,} zeros kept; ONNX Runtime differs from torch by "
        f"{written.greatest_difference:.1g} of the largest output"
    )


def _write_program(network: FinishedNetwork, target: Path) -> str:
    example = network.workload.example_input(EXAMPLES)
    program = export_program(network.model, example.arguments, dynamic=example.dynamic)
    with atomic_file(target) as file, warnings.catch_warnings():
        # Of weights in the memory format that convolutions prefer; they are saved as they are.
        warnings.simplefilter("ignore")
        torch.export.save(program, file)
    return f"{target.stat().st_size:,} bytes"


WRITERS: dict[str, Callable[[FinishedNetwork, Path], str]] = {".onnx": _write_onnx, ".pt2": _write_program}
"""What writes a file, by its ending."""
