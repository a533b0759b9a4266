"""How much memory a run needed, also in a process that has had other runs before."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

__all__ = ["PeakMemory"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """The highest resident memory of this process since the object was made, above what it held then.

    Linux only: the kernel's high-water mark is set back, which no portable call does (the usual `ru_maxrss` never falls, so that
    in a long-lived process every run would seem to need what the largest one did).

    Example:
        >>> memory = PeakMemory()
        >>> block = b"x" * 50_000_000
        >>> peak = memory.peak_bytes()
        >>> peak is None or peak >= 49_000_000  # the kernel counts a little behind
        True
    """

    def __init__(self) -> None:
        self._before: int | None = None
        # Memory that the allocator holds and nobody uses would hide what the run asks for.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
            self._before = _kilobytes("VmRSS")

    def peak_bytes(self) -> int | None:
        """Bytes above the beginning; None where the system does not tell."""
        if self._before is None:
            return None
        return max(_kilobytes("VmHWM") - self._before, 0) * 1024


def _kilobytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(match[1])
