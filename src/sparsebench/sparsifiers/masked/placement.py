"""Where weights are: whole in every process, or as rows spread over processes (FSDP2), of which one holds its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.named_weights import is_sharded
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["agree", "any_sharded", "as_spread", "local", "place", "refuse_meta", "refuse_unshardable", "whole"]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's rows of a tensor that is spread over processes, sharing their memory; any other tensor itself."""
    return _sharded(tensor.detach()).to_local() if is_sharded(tensor) else tensor


def any_sharded(matrices: Sequence[WeightMatrix]) -> bool:
    """Whether a weight is spread over processes."""
    return any(is_sharded(matrix.weight.parameter) for matrix in matrices)


def place(tensor: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor where this process's part of a weight is: its rows, device and memory format; itself where it has them.

    Args:
        tensor: Of the full shape, the same in every process, or this process's rows already.
        weight: The weight.
        dtype: What the tensor is converted to.
    """
    own = local(weight)
    if tensor.shape != own.shape:
        from sparsebench.sparsifiers.masked.sharded import local_rows

        tensor = local_rows(tensor, _sharded(weight))
    if (tensor.dtype, tensor.device, tensor.stride()) == (dtype, own.device, own.stride()):
        return tensor
    return torch.empty_like(own, dtype=dtype, requires_grad=False).copy_(tensor)


def whole(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The full tensor from each process's rows; every process must call it. A tensor of a whole weight is whole itself."""
    if not is_sharded(weight):
        return tensor
    from sparsebench.sparsifiers.masked.sharded import all_rows

    return all_rows(tensor, _sharded(weight))


def as_spread(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A tensor of this process's rows as one that is spread like the weight: what a score can compute with."""
    if not is_sharded(weight):
        return tensor
    from sparsebench.sparsifiers.masked.sharded import spread

    return spread(tensor, _sharded(weight))


def agree(check: Callable[[], None], matrices: Sequence[WeightMatrix]) -> None:
    """Make a check that raises in every process that holds rows of the weights, or in none: one alone would leave others waiting.

    Raises:
        SparsebenchError: There is a problem here or elsewhere.
    """
    problem = None
    try:
        check()
    except SparsebenchError as error:
        problem = error
    for matrix in matrices:
        if is_sharded(matrix.weight.parameter):
            from sparsebench.sparsifiers.masked.sharded import shards_of

            shards = shards_of(matrix.name, _sharded(matrix.weight.parameter))
            (problems,) = shards.sum([int(problem is not None)], local(matrix.weight.parameter).device)
            if problems and problem is None:
                problem = SparsebenchError("another process found a problem with its rows of the weights; its message says which")
            break
    if problem is not None:
        raise problem


def refuse_meta(matrices: Sequence[WeightMatrix]) -> None:
    """Refuse weights without memory (the meta device), of which nothing can be chosen yet.

    Raises:
        SparsebenchError: There are some.
    """
    for matrix in matrices:
        if matrix.weight.parameter.is_meta:
            raise SparsebenchError(
                f"{matrix.weight.name!r} is on the meta device, and this method chooses masks in prepare(): give the network its "
                "weights first (to_empty), or begin after step 0"
            )


def refuse_unshardable(matrices: Sequence[WeightMatrix], plain: bool) -> None:
    """Refuse what cannot be done with the rows of one process.

    Args:
        matrices: The weights.
        plain: Whether single weights are kept or dropped, by a schedule alone.

    Raises:
        SparsebenchError: Weights are spread over processes and the method needs more, or they hold several matrices, or are
            flattened; in every process.
    """
    for matrix in matrices:
        if getattr(matrix.weight.parameter, "_fsdp_flattened", False):  # what FSDP1 marks its own with
            raise SparsebenchError(
                f"{matrix.weight.name!r} is part of a flat parameter (FullyShardedDataParallel): use fully_shard (FSDP2)"
            )
        if is_sharded(matrix.weight.parameter) and (matrix.count > 1 or not plain):
            what = "packed projections of attention" if matrix.count > 1 else "structures and regrowth"
            raise SparsebenchError(
                f"{matrix.weight.name!r} is spread over processes (fully_shard), where {what} are not supported: "
                + ("leave it out with layers=" if matrix.count > 1 else "use structure='element' and a schedule of pruning")
            )


def _sharded(tensor: Any) -> Any:
    """The same, for mypy, which knows no DTensor here."""
    return tensor
