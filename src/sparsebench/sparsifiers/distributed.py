"""What the processes of a distributed training must agree on: the masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import distributed

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.masks import pack

__all__ = ["several_processes", "verify_same_masks"]

T = TypeVar("T")


def several_processes(group: distributed.ProcessGroup | None = None) -> bool:
    """Whether there is a group of processes with more than this one in it."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1


def verify_same_masks(masks: Mapping[str, torch.Tensor], group: distributed.ProcessGroup | None = None) -> None:
    """Compare a hash of the masks between the processes of a group; every one of them must call this at the same point.

    Processes compute masks each for itself, from the same values and the same seeds. Where these were not the same, every process
    would train another network, and averaging their gradients would make sense for none of them.

    Args:
        masks: Bool tensors by parameter name, True where a weight is kept; replicated, not sharded.
        group: The processes; all where None. Nothing is compared where there is one process only.

    Raises:
        SparsebenchError: They differ. Every process raises it, with the first name whose masks differ and the ranks in question.

    Example:
        >>> verify_same_masks({"weight": torch.tensor([True, False])})
    """
    if not several_processes(group):
        return
    digests = {name: _digest(mask) for name, mask in masks.items()}
    total = hashlib.sha256(repr(list(digests.items())).encode()).hexdigest()
    # A message of the same length from everyone first: the names are only sent where something differs.
    if len(set(_gathered(total, group))) == 1:
        return
    first, *others = _gathered(digests, group)
    for rank, other in enumerate(others, start=1):
        for name in (*first, *(name for name in other if name not in first)):
            if first.get(name) != other.get(name):
                raise SparsebenchError(
                    f"process {rank} has other masks of {name!r} than process 0: prepare the same model (same weights, layers= "
                    "and seed) in every process before it is wrapped"
                )
    raise SparsebenchError("processes have the same masks in another order: prepare the same model in every process")


def _digest(mask: torch.Tensor) -> str:
    """A hash of shape and bits."""
    return hashlib.sha256(str(tuple(mask.shape)).encode() + pack(mask).numpy().tobytes()).hexdigest()


def _gathered(value: T, group: distributed.ProcessGroup | None) -> list[T]:
    """What every process of the group gave, in the order of ranks."""
    everyone: list[T] = [value] * distributed.get_world_size(group)
    distributed.all_gather_object(everyone, value, group=group)
    return everyone
