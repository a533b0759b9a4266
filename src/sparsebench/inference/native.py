"""The compiled kernels: finding the library, which instruction set runs, and the call itself.

The library is built with the package where there is a compiler, and loaded by ctypes, which lets other Python threads run during
a call. Its work is done by the threads of the OpenMP runtime that torch has loaded: two pools would wait for each other.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from sparsebench.errors import SparsebenchError

__all__ = [
    "INSTRUCTION_SETS",
    "MOST_COLUMNS",
    "STEP_KINDS",
    "VARIABLE",
    "Attention",
    "Axis",
    "Convolution",
    "Kernels",
    "Layout",
    "Places",
    "Planes",
    "Product",
    "Step",
    "installed_library",
    "kernel_path",
    "load_kernels",
    "open_library",
    "runnable_sets",
]

# From narrow to wide, as the library numbers them.
INSTRUCTION_SETS = ("generic", "avx2", "avx512")
FALLBACK = "torch"
# As in kernels.c.
REVISION = 6
STEP_KINDS = ("read", "write", "product", "normalize", "add", "rectify", "attend")
MOST_COLUMNS = 64
VARIABLE = "SPARSEBENCH_KERNELS"


class Layout(ctypes.Structure):
    """`struct layout` of kernels.c: distances in elements."""

    _fields_ = (("feature", ctypes.c_int64), ("image", ctypes.c_int64), ("position", ctypes.c_int64))


class Product(ctypes.Structure):
    """`struct product` of kernels.c: one sparse product with all that it reads and writes."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("features", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rectify", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_layout", Layout),
        ("y_layout", Layout),
        ("images", ctypes.c_int64),
        ("positions", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("is_tiled", ctypes.c_int64),
    )


class Step(ctypes.Structure):
    """`struct step` of chain.h: one step of a chain; `kind` is a place in `STEP_KINDS`."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("source", ctypes.c_int64),
        ("also", ctypes.c_int64),
        ("to", ctypes.c_int64),
        ("features", ctypes.c_int64),
        ("product", ctypes.POINTER(Product)),
        ("gain", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
        ("memory", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("third", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("mask", ctypes.c_void_p),
        ("mask_stride", ctypes.c_int64),
    )


class Planes(ctypes.Structure):
    """`struct planes` of convolution.h: distances in elements."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("image", "channel", "row", "column"))


class Axis(ctypes.Structure):
    """`struct axis` of convolution.h: one dimension of the images and of the kernel."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("before", "after", "kernel", "stride", "padding", "dilation"))


class Convolution(ctypes.Structure):
    """`struct convolution` of convolution.h: one sparse convolution with all that it reads and writes."""

    _fields_ = (
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("tile", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("entries", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rectify", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("added", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_planes", Planes),
        ("y_planes", Planes),
        ("images", ctypes.c_int64),
        ("rows", Axis),
        ("columns", Axis),
    )


class Places(ctypes.Structure):
    """`struct places` of few_queries.h: distances in elements."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("sequence", "head", "position"))


class Attention(ctypes.Structure):
    """`struct attention` of few_queries.h: one attention with all that it reads and writes."""

    _fields_ = (
        ("sequences", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("queries", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("query_places", Places),
        ("key_places", Places),
        ("value_places", Places),
        ("out_places", Places),
        ("scale", ctypes.c_double),
        ("mask", ctypes.c_void_p),
        ("mask_stride", ctypes.c_int64),
    )


class Kernels:
    """The loaded library, on one instruction set.

    Args:
        library: Made from kernels.c.
        instruction_set: One of `INSTRUCTION_SETS` that this processor can run.
    """

    def __init__(self, library: ctypes.CDLL, instruction_set: str) -> None:
        self.instruction_set = instruction_set
        self._number = INSTRUCTION_SETS.index(instruction_set)
        self._product = library.sparsebench_csr_product
        self._product.argtypes = (ctypes.POINTER(Product), ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        self._convolution = library.sparsebench_convolution
        self._convolution.argtypes = (ctypes.POINTER(Convolution), ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        self._attention = library.sparsebench_attention
        self._attention.argtypes = (ctypes.POINTER(Attention), ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        self._chain = library.sparsebench_chain
        number, sizes = ctypes.c_int, (ctypes.c_int64,) * 4
        self._chain.argtypes = (ctypes.POINTER(Step), *sizes, number, number, ctypes.c_void_p)
        self._parallel = _torch_parallel()

    @property
    def parallel(self) -> bool:
        """Whether several threads can work; otherwise the calling one does all."""
        return self._parallel is not None

    def multiply(self, product: Product) -> None:
        """Write `product.y`, with at most `torch.get_num_threads()` threads.

        Raises:
            MemoryError: Scratch memory for a panel, below 1 MB unless there are very many features, was not to be had.
        """
        if self._product(ctypes.byref(product), self._number, torch.get_num_threads(), self._parallel) != 0:
            raise MemoryError("no memory for a panel of a sparse product")

    def convolve(self, convolution: Convolution) -> None:
        """Write `convolution.y`, with at most `torch.get_num_threads()` threads.

        Raises:
            MemoryError: As for `multiply`.
        """
        if self._convolution(ctypes.byref(convolution), self._number, torch.get_num_threads(), self._parallel) != 0:
            raise MemoryError("no memory for a panel of a sparse convolution")

    def attend(self, attention: Attention) -> None:
        """Write `attention.out`, with at most `torch.get_num_threads()` threads.

        Raises:
            MemoryError: Scratch memory, a number for each key, was not to be had.
        """
        if self._attention(ctypes.byref(attention), self._number, torch.get_num_threads(), self._parallel) != 0:
            raise MemoryError("no memory for the weights of keys")

    def run_chain(self, steps: ctypes.Array[Step], features: int, columns: int, length: int) -> None:
        """Run steps on columns or sequences that are independent of each other, with at most `torch.get_num_threads()` threads.

        Args:
            steps: In their order.
            features: Of all matrices in a panel together.
            columns: How many.
            length: Columns of a sequence, at most `MOST_COLUMNS`; 1 where columns are independent.

        Raises:
            MemoryError: Scratch memory for a panel was not to be had.
        """
        threads = torch.get_num_threads()
        if self._chain(steps, len(steps), features, columns, length, self._number, threads, self._parallel) != 0:
            raise MemoryError("no memory for a panel of a chain of sparse products")


def kernel_path() -> str:
    """What sparse layers run on here: "avx512", "avx2" or "generic" for the compiled kernels, "torch" without them.

    The environment variable SPARSEBENCH_KERNELS, read when kernels are first used, chooses a narrower one by name.

    Raises:
        SparsebenchError: SPARSEBENCH_KERNELS names what this installation or processor does not have.

    Example:
        >>> from sparsebench.inference import kernel_path
        >>> kernel_path() in ("avx512", "avx2", "generic", "torch")
        True
    """
    kernels = load_kernels()
    return FALLBACK if kernels is None else kernels.instruction_set


@functools.cache
def load_kernels() -> Kernels | None:
    """The kernels that this process uses; None for torch's own sparse product.

    Raises:
        SparsebenchError: As for `kernel_path`.
    """
    asked = os.environ.get(VARIABLE)
    library = installed_library()
    can_run = [] if library is None else runnable_sets(library)
    if asked is not None and asked not in (*can_run, FALLBACK):
        ways = ", ".join([*can_run, FALLBACK])
        reason = "" if library is not None else " (the compiled kernels are not installed)"
        raise SparsebenchError(f"{VARIABLE}={asked!r}: expected one of {ways} on this machine{reason}")
    if library is None or asked == FALLBACK:
        return None
    return Kernels(library, asked or can_run[-1])


def installed_library() -> ctypes.CDLL | None:
    """What was built with the package; None where there was no compiler."""
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).with_name(f"_kernels{suffix}")
        if file.exists():
            return open_library(file)
    return None


def open_library(file: Path) -> ctypes.CDLL:
    """Load the kernels from a file.

    Raises:
        SparsebenchError: They were built from an older or newer kernels.c than belongs to this Python code.
    """
    library = ctypes.CDLL(str(file))
    if not hasattr(library, "sparsebench_kernels_revision") or library.sparsebench_kernels_revision() != REVISION:
        raise SparsebenchError(f"{file} was built from another version of sparsebench: install the package again")
    return library


def runnable_sets(library: ctypes.CDLL) -> list[str]:
    """Instruction sets of the library that this processor has, from narrow to wide."""
    bits = library.sparsebench_instruction_sets()
    return [name for number, name in enumerate(INSTRUCTION_SETS) if bits >> number & 1]


def _torch_parallel() -> ctypes.c_void_p | None:
    """Address of GOMP_parallel in the runtime that torch itself is linked with; libgomp, and LLVM's and Intel's too, have it."""
    # Looked up in torch's extension module and all that it depends on.
    try:
        function = ctypes.CDLL(str(torch._C.__file__)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p)
