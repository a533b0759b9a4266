"""Plain files of weights: what is compressed, and what comes out of a compressed checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.storage.container import StoredTensor, has_checksum, read_container, write_container
from sparsebench.storage.damage import DamagedFileError, naming
from sparsebench.storage.element_types import bytes_of, element_type, element_type_named, stored_shape, tensor_of

__all__ = ["read_state", "write_state"]


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a safetensors file, or from one that `torch.save(model.state_dict(), path)` wrote.

    Which of them it is shows in its content. No code in it is run (`torch.load` with `weights_only=True`).

    Raises:
        SparsebenchError: There is no such file, it is damaged, it holds something else than a state dict, or it is a compressed
            checkpoint already.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
    if has_checksum(data):
        raise SparsebenchError(f"{path} is a compressed checkpoint already; `sparsebench inspect` tells what it holds")
    if data[8:9] != b"{":  # where the header of a safetensors file begins
        return _read_torch(path)
    with naming(path):
        state = {}
        for name, stored in read_container(data).tensors.items():
            with naming(f"tensor {name!r:.100}"):
                state[name] = tensor_of(stored.data, element_type_named(stored.kind), stored.shape)
        return state


def write_state(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a plain safetensors file. Tensors that share memory are written under each of their names.

    Raises:
        SparsebenchError: The file cannot be written.
    """
    tensors = {
        name: StoredTensor(element_type(tensor.dtype).name, stored_shape(tensor), bytes_of(tensor))
        for name, tensor in state.items()
    }
    write_container(path, tensors, {"format": "pt"})


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the zip, pickle and tensor readers each raise their own
        raise DamagedFileError(
            f"{path} is no safetensors file and no file of tensors that torch.save wrote, or it is damaged: "
            "expected what torch.save(model.state_dict(), path) writes"
        ) from error
    if not isinstance(state, dict):
        raise SparsebenchError(f"{path} holds one {type(state).__name__}: expected a state dict")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise SparsebenchError(
                f"{path}: {name!r:.100} is no tensor but {type(value).__name__}: expected a state dict by itself, "
                "as torch.save(model.state_dict(), path) writes it"
            )
    return state
