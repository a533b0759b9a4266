"""Reading a compressed checkpoint back into a state dict."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.storage.checkpoint_file import CheckpointFile, read_checkpoint
from sparsebench.storage.coding import decode_tensor
from sparsebench.storage.damage import naming
from sparsebench.storage.element_types import element_type_named, tensor_of

__all__ = ["load_compressed"]

# Without max_bytes a file may unfold to this much in any case, and to so many times its own size.
# Weights of 32 bits that are 99.5 % zero at random places unfold 155-fold.
ALWAYS_ALLOWED = 1 << 30
EXPANSION = 256


def load_compressed(path: str | Path, *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """Read a compressed checkpoint.

    The file need not be trusted: no code in it is run, its checksum and everything it says are checked, and nothing is allocated
    beyond a few times its own size, what its header takes as objects (ten times its bytes; of texts made for it 25 times, of at
    most 16 MiB each), and the size of the tensors it declares, which is bounded by `max_bytes` before the first of them is made.

    Args:
        path: What `save_compressed` wrote.
        max_bytes: Most bytes that the tensors with left-out zeros may have together. None: 1 GiB, or 256 times the size of the
            file if that is more.

    Returns:
        The state dict, on the CPU, for `model.load_state_dict`. Tied names share one tensor.

    Raises:
        SparsebenchError: There is no such file, it is damaged or no compressed checkpoint, it unfolds to more than `max_bytes`,
            or it needs zstandard, which is not installed. Nothing was loaded then.

    Example:
        >>> import tempfile
        >>> from sparsebench.storage import save_compressed
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_compressed({"weight": torch.eye(30), "bias": torch.ones(30)}, path)
        >>> state = load_compressed(path)
        >>> torch.equal(state["weight"], torch.eye(30)), list(state)
        (True, ['weight', 'bias'])
    """
    path = Path(path)
    file = read_checkpoint(path)
    _check_size(path, file, max_bytes)
    state: dict[str, torch.Tensor] = {}
    stored = file.container.tensors
    for name in file.names:
        with naming(path), naming(f"tensor {name!r:.100}"):
            row = file.rows.get(name)
            if row is None:
                state[name] = tensor_of(stored[name].data, element_type_named(stored[name].kind), stored[name].shape)
            else:
                state[name] = decode_tensor(stored, name, row)
    return state | {second: state[first] for second, first in file.tied.items()}


def _check_size(path: Path, file: CheckpointFile, max_bytes: int | None) -> None:
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise SparsebenchError(f"max_bytes={max_bytes!r}: expected a number of bytes")
    limit = max(ALWAYS_ALLOWED, EXPANSION * file.container.size) if max_bytes is None else max_bytes
    declared = sum(row.bytes for row in file.rows.values())
    if declared > limit:
        raise SparsebenchError(
            f"{path} unfolds to {declared:,} bytes, the limit is {limit:,}: if you trust the file, raise it with max_bytes"
        )
