"""Finished networks, run without multiplying their zeros: sparse layers for the CPU, each where it is measured to be faster."""

from sparsebench.inference.compilation import compile_sparse
from sparsebench.inference.native import kernel_path

__all__ = ["compile_sparse", "kernel_path"]
