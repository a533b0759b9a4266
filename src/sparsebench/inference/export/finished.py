"""What can be exported: networks that are finished, as copies that nothing changes any more."""

from __future__ import annotations

import copy

from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.inference.layers import SparseWeight
from sparsebench.sparsifiers.stochastic.layers import Activity

__all__ = ["finished_copy"]


def finished_copy(model: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode and without gradients; the model stays as it is.

    Raises:
        SparsebenchError: A layer still has noisy weights (variational dropout, L0), or runs sparse already.
    """
    for name, module in model.named_modules():
        where = repr(name) if name else "the model"
        if isinstance(getattr(module, "activity", None), Activity):
            raise SparsebenchError(f"{where} still has noisy weights ({type(module).__name__}): call sparsifier.finalize() first")
        if isinstance(module, SparseWeight) or any(choice.sparse for choice in vars(module).get("sparse_choices", ())):
            raise SparsebenchError(
                f"{where} ({type(module).__name__}) runs sparse, which is possible here only: export the model that it was "
                "compiled from"
            )
    return copy.deepcopy(model).eval().requires_grad_(False)
