"""The compressed checkpoint: a sparse network as one small safetensors file, see docs/compressed-checkpoint.md."""

from __future__ import annotations

from sparsebench.storage.inspection import CheckpointReport, TensorReport, inspect
from sparsebench.storage.load import load_compressed
from sparsebench.storage.save import save_compressed

__all__ = ["CheckpointReport", "TensorReport", "inspect", "load_compressed", "save_compressed"]
