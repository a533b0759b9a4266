"""A finished network as a program of torch.export, which Python code of the network is no longer needed for."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from sparsebench.errors import SparsebenchError
from sparsebench.inference.export.example import Dynamic, ExampleCall
from sparsebench.inference.export.finished import finished_copy

__all__ = ["export_program", "program_of_call"]


def export_program(model: nn.Module, example_input: Any, *, dynamic: Dynamic | None = None) -> ExportedProgram:
    """A finished network as a program: what `torch.export.save` writes, and AOTInductor, ExecuTorch and other tools read.

    Weights are those of the network, zeros included, under their own names.

    Args:
        model: Any finished module; it is not changed.
        example_input: What the network will be called with: a tensor, a tuple or list of positional arguments, or a dict of
            keyword arguments.
        dynamic: Which dimensions may have other sizes than the example's, by argument of `forward`, and what they are called:
            `{"source": {0: "sentences", 1: "positions"}}`. None: the first of every tensor, the batch.

    Returns:
        The program, in evaluation mode.

    Raises:
        SparsebenchError: A layer has noisy weights (the sparsifier is not finalized) or was compiled by `compile_sparse`, the
            network does not take such arguments, or torch cannot export it so; the message says why.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.inference.export import export_program
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> program = export_program(model, torch.randn(2, 8))
        >>> program.module()(torch.randn(5, 8)).shape
        torch.Size([5, 4])
    """
    finished = finished_copy(model)
    return program_of_call(finished, ExampleCall(finished, example_input, dynamic))


def program_of_call(finished: nn.Module, call: ExampleCall) -> ExportedProgram:
    """The program of a network of which nobody else keeps a reference.

    Raises:
        SparsebenchError: The network fails on the example, or torch cannot export it.
    """
    # Of a size of one torch would conclude that it is always one.
    arguments, keywords = call.with_sizes(lambda size: max(size, 2)).arguments()
    name = type(finished).__name__
    with torch.no_grad():
        try:
            finished(*arguments, **keywords)
        except Exception as error:
            raise SparsebenchError(f"{name} fails on the example: {_reason(error)}") from error
        try:
            with warnings.catch_warnings():
                # Of how torch's own layers are written: nothing that a caller can change.
                warnings.simplefilter("ignore")
                return torch.export.export(
                    finished, arguments, keywords, dynamic_shapes=call.dynamic_shapes(lambda _: Dim.DYNAMIC)
                )
        except Exception as error:
            raise SparsebenchError(f"torch cannot export {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The lines of torch's message that say what is wrong: the first, and those of a list under it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    listed = [line.lstrip("- ") for line in lines[1:] if line.startswith("- ")]
    return " ".join([lines[0] if lines else type(error).__name__, *listed])
