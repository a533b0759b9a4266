"""What a process that only trains sets up for itself: how it holds memory, how its threads wait. No import of sparsebench does.

A training step frees and asks for the same large tensors again and again. The C library gives them back to the system each time
and gets them as new pages, which costs more than many a layer. A process that retains what it freed is spared that. It is a
decision for a whole process, so that only programs make it: `sparsebench train`, workers of studies, benchmarks. No run's numbers
change.
"""

from __future__ import annotations

import ctypes
import os
import sys

from sparsebench.errors import SparsebenchError

__all__ = ["ALLOCATOR", "retains_memory", "set_up_process", "settings_in_force"]

ALLOCATOR = "SPARSEBENCH_ALLOCATOR"
"""The environment variable that leaves the allocator alone where it is "system"; "retain" is the default."""

# Of glibc's malloc.h; no portable name leads to them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
_MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_SPINS = "1000"

_in_force: dict[str, str] = {}


def set_up_process() -> None:
    """Retain freed memory, and let waiting OpenMP threads sleep soon, in this process and until it ends.

    Only on Linux with glibc, and only where nobody decided otherwise: through `$SPARSEBENCH_ALLOCATOR`, through glibc's own
    variables (`MALLOC_..._`, `GLIBC_TUNABLES`), with another allocator (`LD_PRELOAD`), or through `GOMP_SPINCOUNT` or
    `OMP_WAIT_POLICY`. How threads wait is settled when torch is loaded: call this before, or it stays as it is. Calling it twice
    does no harm.

    Raises:
        SparsebenchError: `$SPARSEBENCH_ALLOCATOR` is neither "retain" nor "system".
    """
    retain = retains_memory()
    if not _glibc():
        return
    if retain and not _allocator_is_chosen():
        mallopt = ctypes.CDLL(None).mallopt
        # All of it from the heap, whose end never goes back: pages once touched stay.
        if mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER):
            _in_force["allocator"] = "retains freed memory"
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        # A thread that waits longer than some tens of microseconds gives its core to whoever else needs one.
        os.environ["GOMP_SPINCOUNT"] = _SPINS
        _in_force["openmp"] = f"GOMP_SPINCOUNT={_SPINS}"


def retains_memory() -> bool:
    """What `$SPARSEBENCH_ALLOCATOR` asks for.

    Raises:
        SparsebenchError: It is neither "retain" nor "system".
    """
    asked = os.environ.get(ALLOCATOR, "retain")
    if asked not in ("retain", "system"):
        raise SparsebenchError(f"{ALLOCATOR}={asked!r}: expected 'retain' or 'system'")
    return asked == "retain"


def settings_in_force() -> dict[str, str]:
    """What `set_up_process` changed in this process, for the records of its runs; empty where it changed nothing.

    Example:
        >>> set(settings_in_force()) <= {"allocator", "openmp"}
        True
    """
    return dict(_in_force)


def _glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _allocator_is_chosen() -> bool:
    """Whether the user set glibc's allocator, or put another in its place."""
    chosen = any(name in os.environ for name in _MALLOC_VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return chosen or "malloc" in os.environ.get("LD_PRELOAD", "")
