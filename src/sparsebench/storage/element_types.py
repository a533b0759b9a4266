"""The element types of safetensors, as torch has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsebench.errors import SparsebenchError
from sparsebench.storage.damage import DamagedFileError

__all__ = ["ElementType", "bytes_of", "element_type", "element_type_named", "stored_shape", "tensor_of", "words"]


@dataclass(frozen=True)
class ElementType:
    """An element type.

    Attributes:
        name: Its name in a safetensors file.
        torch: Its torch type.
        packed: Elements that torch counts as one, two for the 4-bit floats.
    """

    name: str
    torch: torch.dtype
    packed: int = 1

    @property
    def bytes(self) -> int:
        """Size of what torch counts as one element."""
        return self.torch.itemsize


# What safetensors calls it, what torch does. The later ones are not in every torch that this package runs with.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
_BY_NAME = {
    name: ElementType(name, getattr(torch, torch_name), 2 if name == "F4" else 1)
    for name, torch_name in _NAMES.items()
    if hasattr(torch, torch_name)
}
_BY_TORCH = {known.torch: known for known in _BY_NAME.values()}


def element_type(dtype: torch.dtype) -> ElementType:
    """The element type that stores a torch type.

    Raises:
        SparsebenchError: Safetensors has none.

    Example:
        >>> element_type(torch.float32).name
        'F32'
    """
    if dtype not in _BY_TORCH:
        raise SparsebenchError(f"safetensors has no element type for {dtype}: expected one of {', '.join(map(str, _BY_TORCH))}")
    return _BY_TORCH[dtype]


def element_type_named(name: str) -> ElementType:
    """The element type with a name in safetensors.

    Raises:
        DamagedFileError: There is none, or this torch does not have it.
    """
    if name not in _BY_NAME:
        raise DamagedFileError(f"elements of type {name!r}: torch {torch.__version__} has {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def stored_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape as safetensors writes it, which counts single elements."""
    shape = tuple(tensor.shape)
    packed = element_type(tensor.dtype).packed
    return (*shape[:-1], shape[-1] * packed) if shape else shape


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, in row-major order whatever its memory format; a view where it lies so in memory.

    Args:
        tensor: Strided, on any device.

    Returns:
        One-dimensional.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data: NDArray[np.uint8] = plain.reshape(-1).view(torch.uint8).numpy()
    return data


def words(data: NDArray[np.uint8], width: int) -> NDArray[Any]:
    """The same memory as unsigned integers of `width` bytes, one for each element: zero if and only if no bit is set."""
    return data.view(f"u{width}")


def tensor_of(data: NDArray[np.uint8], kind: ElementType, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that shares its memory with these bytes.

    Args:
        data: Writable, one-dimensional, as many bytes as the tensor has.
        kind: Its element type.
        shape: Its shape as safetensors writes it.

    Raises:
        DamagedFileError: A bool is neither 0 nor 1, or torch has no tensor of this shape.
    """
    if kind.torch is torch.bool and len(data) and int(data.max()) > 1:
        raise DamagedFileError("a bool is neither 0 nor 1")
    if kind.packed > 1:
        if not shape or shape[-1] % kind.packed:
            raise DamagedFileError(f"the shape {list(shape)} does not hold whole pairs of {kind.name}")
        shape = (*shape[:-1], shape[-1] // kind.packed)
    try:
        if not len(data):
            return torch.empty(shape, dtype=kind.torch)
        return torch.from_numpy(data).view(kind.torch).reshape(shape)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise DamagedFileError(f"torch has no tensor of shape {list(shape)}") from error
