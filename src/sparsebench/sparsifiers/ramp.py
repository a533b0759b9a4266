"""How far a process that begins and ends at given steps has come."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebench.errors import SparsebenchError

__all__ = ["Ramp"]


@dataclass(frozen=True)
class Ramp:
    """A way from 0 to 1 along `1 - (1 - p)^power`, where p is the fraction of [begin, end] that has passed.

    Power 1 is linear, power 3 the cubic of Zhu and Gupta (2017, arXiv 1710.01878, eq. 1). With `begin == end` the way is a jump.

    Args:
        begin: Step at which it starts, at least 0.
        end: Step at which it arrives, at least `begin`.
        power: Exponent, above 0.

    Raises:
        SparsebenchError: A value is out of range.

    Example:
        >>> Ramp(begin=0, end=100, power=3).progress(50)
        0.875
    """

    begin: int
    end: int
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("begin", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SparsebenchError(f"{name}={value!r}: expected a number of steps, an integer of at least 0")
        if self.end < self.begin:
            raise SparsebenchError(f"end={self.end} is before begin={self.begin}: expected end >= begin")
        if not isinstance(self.power, (int, float)) or not self.power > 0:
            raise SparsebenchError(f"power={self.power!r}: expected a number above 0")

    def remaining(self, step: int) -> float:
        """The part of the way still ahead at `step`, in [0, 1]: `(1 - p)^power`."""
        if step >= self.end:
            return 0.0
        if step <= self.begin:
            return 1.0
        return float((1.0 - (step - self.begin) / (self.end - self.begin)) ** self.power)

    def progress(self, step: int) -> float:
        """The part of the way done at `step`, in [0, 1]."""
        return 1.0 - self.remaining(step)
