"""Weights of which two in four are zero, as GPUs multiply them: torch's semi-structured tensors."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsebench.errors import SparsebenchError
from sparsebench.inference.export.finished import finished_copy

__all__ = ["semi_structured"]

TYPES = (torch.float16, torch.bfloat16)
# NVIDIA's sparse tensor cores begin with Ampere.
LEAST_CAPABILITY = (8, 0)


def semi_structured(model: nn.Module, layers: tuple[str, ...] | None = None) -> nn.Module:
    """A copy of a network whose linear layers multiply by two weights of every four alone, on NVIDIA GPUs from Ampere on.

    Train with `structure="2:4"`, call `finalize()`, then `model.to("cuda", torch.float16)`. The layers' weights become
    `torch.sparse.SparseSemiStructuredTensor`; how much faster that is depends on the sizes, and batches of a few rows are not.

    Args:
        model: Any finished module; it is not changed.
        layers: Name patterns of the linear layers, such as `("encoder.*",)`. None: all that follow the pattern.

    Returns:
        The copy, in evaluation mode.

    Raises:
        SparsebenchError: A layer that `layers` names, or every one without it, has more than two weights that are not zero for
            four neighbouring inputs; a weight is not float16 or bfloat16, or torch refuses its shape; there is no such GPU or the
            network is not on one; or a layer has noisy weights (the sparsifier is not finalized).
    """
    finished = finished_copy(model)
    chosen = _chosen(finished, layers)
    for name, layer in chosen.items():
        if layer.weight.dtype not in TYPES:
            raise SparsebenchError(
                f"{name}.weight is {layer.weight.dtype}: expected torch.float16 or torch.bfloat16 for semi-structured sparsity"
            )
    _check_device(chosen)
    for name, layer in chosen.items():
        try:
            # A tensor subclass of torch's own, whose type is not exported.
            converted = cast(Tensor, cast(Any, torch.sparse).to_sparse_semi_structured(layer.weight.detach().contiguous()))
        except RuntimeError as error:
            raise SparsebenchError(f"{name}.weight cannot be made semi-structured: {error}") from error
        layer.weight = nn.Parameter(converted, requires_grad=False)
    return finished


def _chosen(model: nn.Module, layers: tuple[str, ...] | None) -> dict[str, nn.Linear]:
    linear = {name or "the model": module for name, module in model.named_modules() if type(module) is nn.Linear}
    if layers is None:
        chosen = {name: layer for name, layer in linear.items() if _broken_group(layer.weight) is None}
        if not chosen:
            reason = next((f": {_complaint(name, layer)}" for name, layer in linear.items()), "")
            raise SparsebenchError(f"no linear layer is 2:4 sparse{reason}; train with structure='2:4'")
        return chosen
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise SparsebenchError(f"layers={pattern!r} matches no linear layer; there are: {', '.join(linear) or 'none'}")
    chosen = {name: layer for name, layer in linear.items() if any(fnmatchcase(name, pattern) for pattern in layers)}
    for name, layer in chosen.items():
        if _broken_group(layer.weight) is not None:
            raise SparsebenchError(f"{_complaint(name, layer)}; train with structure='2:4'")
    return chosen


def _broken_group(weight: Tensor) -> tuple[int, int] | None:
    """Row and first column of four neighbouring weights of which more than two are not zero; None where there are none."""
    rows, columns = weight.shape
    padded = nn.functional.pad(weight.detach() != 0, (0, -columns % 4))
    broken = (padded.view(rows, -1, 4).sum(-1) > 2).nonzero()
    return None if not len(broken) else (int(broken[0, 0]), 4 * int(broken[0, 1]))


def _complaint(name: str, layer: nn.Linear) -> str:
    row, column = _broken_group(layer.weight) or (0, 0)
    columns = f"{column} to {min(column + 3, layer.in_features - 1)}"
    return f"{name}.weight has more than two weights that are not zero in row {row}, columns {columns}"


def _check_device(chosen: dict[str, nn.Linear]) -> None:
    if not torch.cuda.is_available():
        raise SparsebenchError(
            "semi-structured sparsity needs an NVIDIA GPU, and torch finds none here; on the CPU use compile_sparse"
        )
    for name, layer in chosen.items():
        if layer.weight.device.type != "cuda":
            raise SparsebenchError(f"{name}.weight is on {layer.weight.device}: expected a GPU; call model.cuda() first")
        capability = torch.cuda.get_device_capability(layer.weight.device)
        if capability < LEAST_CAPABILITY:
            raise SparsebenchError(
                f"{torch.cuda.get_device_name(layer.weight.device)} has compute capability {capability[0]}.{capability[1]}: "
                "semi-structured sparsity needs 8.0 (Ampere) or newer"
            )
