"""Writing a compressed checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.storage import zstd as zstd_frames
from sparsebench.storage.coding import encode_tensor
from sparsebench.storage.container import StoredTensor, write_sealed_container
from sparsebench.storage.rounding import negative_zeros, rounded, without_negative_zeros
from sparsebench.storage.table import FORMAT, MOST_TEXT, Row, table_json

__all__ = ["save_compressed"]

NOTABLE = 0.01  # fraction of elements that are -0.0 from which on somebody should know


def save_compressed(
    model_or_state_dict: nn.Module | Mapping[str, torch.Tensor],
    path: str | Path,
    *,
    values: torch.dtype | None = None,
    signed_zeros: bool = True,
    zstd: int | None = None,
    method: str | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as a compressed checkpoint: one safetensors file that leaves out zeros.

    Every tensor is stored in the smallest way: as it is, or as its non-zero values and a code of where they are. What comes back
    is the same to the last bit: only elements without a bit set are left out, -0.0 and NaN are values like others. Tensors that
    share their memory (tied parameters) are stored once. The same network gives the same bytes. The format is described in
    docs/compressed-checkpoint.md.

    Args:
        model_or_state_dict: A network, whose `state_dict()` is taken, or a state dict: tensors by name, on any device.
        path: The file to write, by convention `.safetensors`; it is there whole or not at all.
        values: `torch.float16` or `torch.bfloat16`: float32 and float64 tensors of two or more dimensions are rounded to it. They
            come back in their own type, rounded. Biases, normalization and running statistics stay as they are.
        signed_zeros: Keep -0.0 apart from 0.0, as a value that takes its bytes. `weight * mask` makes -0.0 of negative weights
            (what this package makes sparse has none); False leaves them out, and they come back as 0.0.
        zstd: Level from 1 (fast) to 22 (small): compress values and masks with Zstandard where that saves bytes. Needs the
            extra `storage`. None: such a file can be read with safetensors and NumPy alone.
        method: How the network became sparse.
        config: The configuration it was trained with, as JSON values.
        metrics: What was measured of it, as JSON values.

    Warns:
        UserWarning: More than one element in a hundred is -0.0, and kept.

    Raises:
        SparsebenchError: Something is no tensor, has no values or no type in safetensors, or does not fit into `values`;
            config or metrics are not JSON; or the file cannot be written.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(100, 100)
        >>> with torch.no_grad():
        ...     _ = model.weight.mul_(torch.rand(100, 100) > 0.9)
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_compressed(model, path, signed_zeros=False, method="random", metrics={"accuracy": 91.5})
        >>> path.stat().st_size < 0.2 * 4 * 100 * 100
        True
    """
    if values not in (None, torch.float16, torch.bfloat16):
        raise SparsebenchError(f"values={values!r}: expected torch.float16, torch.bfloat16 or None")
    if zstd is not None:
        zstd_frames.check_level(zstd)
    metadata = _described(method, config, metrics)
    tensors, tied = _distinct(_state(model_or_state_dict))
    if signed_zeros:
        _warn_of_negative_zeros(tensors)
    stored: dict[str, StoredTensor] = {}
    rows: dict[str, Row] = {}
    for name, tensor in tensors.items():
        mask_name = f"{name}.mask"
        while mask_name in tensors or mask_name in stored:
            mask_name += "_"
        try:
            prepared = tensor if values is None else rounded(tensor, values)
            coded = encode_tensor(prepared if signed_zeros else without_negative_zeros(prepared), tensor.dtype, mask_name, zstd)
        except SparsebenchError as error:
            raise SparsebenchError(f"tensor {name!r}: {error}") from error
        stored[name] = coded.values
        if coded.mask is not None:
            stored[mask_name] = coded.mask
        if not coded.row.is_plain:
            rows[name] = coded.row
    metadata |= {"tensors": table_json(rows), "tied": _json("tied names", tied)}
    for field, text in metadata.items():
        if len(text) > MOST_TEXT:
            raise SparsebenchError(f"{field} would take {len(text):,} characters of the file, which may have {MOST_TEXT:,}")
    write_sealed_container(Path(path), stored, {"format": FORMAT} | metadata)


def _warn_of_negative_zeros(tensors: Mapping[str, torch.Tensor]) -> None:
    elements, negative = sum(tensor.numel() for tensor in tensors.values()), sum(map(negative_zeros, tensors.values()))
    if negative > elements * NOTABLE:
        warnings.warn(
            f"{negative:,} of {elements:,} elements are -0.0, which is kept like any value: signed_zeros=False "
            "(--unsigned-zeros on the command line) leaves them out, and the file gets smaller",
            stacklevel=3,
        )


def _described(method: str | None, config: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None) -> dict[str, str]:
    described = {} if method is None else {"method": method}
    for field, value in (("config", config), ("metrics", metrics)):
        if value is not None:
            described[field] = _json(field, dict(value))
    return described


def _json(field: str, value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SparsebenchError(
            f"{field} cannot be written as JSON ({error}): expected texts, finite numbers, lists, dicts"
        ) from error


def _state(model_or_state_dict: nn.Module | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    state = model_or_state_dict.state_dict() if isinstance(model_or_state_dict, nn.Module) else model_or_state_dict
    if not isinstance(state, Mapping):
        raise SparsebenchError(f"expected a torch.nn.Module or a state dict, not {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise SparsebenchError(f"the state dict has the key {name!r:.60}: expected names of tensors")
        if not isinstance(tensor, torch.Tensor):
            raise SparsebenchError(f"{name!r} is no tensor but {type(tensor).__name__}: leave it out of the state dict")
        if tensor.is_meta:
            raise SparsebenchError(f"{name!r} is on the meta device and has no values: load the weights first")
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else str(tensor.layout)
            raise SparsebenchError(f"{name!r} is {kind}: make it an ordinary tensor first, by to_dense() or dequantize()")
        if hasattr(tensor, "full_tensor"):
            raise SparsebenchError(f"{name!r} is sharded over processes: gather it first, by full_tensor()")
    return state


def _distinct(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state without tensors that are another one under a second name, and the names of both."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if tensor.numel():
            place = (
                tensor.device,
                tensor.data_ptr(),
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
                tensor.is_conj(),
                tensor.is_neg(),
            )
            first = first_names.setdefault(place, name)
            if first != name:
                tied[name] = first
                continue
        tensors[name] = tensor
    return tensors, tied
