"""The state of an unfinished run: all that is needed to go on to the same last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError

__all__ = ["load_checkpoint", "save_checkpoint", "weights_hash"]


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; the older one stays until then.

    Raises:
        SparsebenchError: It cannot be written.
    """
    with atomic_file(path) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # torch turns a failed write (a full disk, say) into an error of its own.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise SparsebenchError(f"cannot write {path}: {getattr(cause, 'strerror', None) or _first_line(cause)}") from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint.

    Returns:
        What was saved, or None where there is none.

    Raises:
        SparsebenchError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the zip, pickle and tensor readers each raise their own
        raise SparsebenchError(
            f"{path} is damaged ({_first_line(error)}): delete it, and the run begins again from its first step"
        ) from error
    if not isinstance(state, dict) or "step" not in state:
        raise SparsebenchError(f"{path} is not a checkpoint of a run: delete it, and the run begins again from its first step")
    return state


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits of a model's state."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
