"""Schedules: when masks are updated, and how far the sparsity has risen by then."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.ramp import Ramp

__all__ = ["Schedule", "constant", "linear", "one_shot", "polynomial"]


@dataclass(frozen=True)
class Schedule:
    """Updates at begin, begin + frequency, begin + 2 frequency, ... and always at the end of the ramp.

    Args:
        ramp: From when to when the sparsity rises, and along which curve.
        frequency: Steps between two updates, at least 1.
        last: Step of the last update, at least the ramp's end; the end of the ramp where None.
        initial: Sparsity at the ramp's begin, in [0, 1]; less where the final one is less.

    Raises:
        SparsebenchError: A value is out of range.
    """

    ramp: Ramp
    frequency: int
    last: int | None = None
    initial: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.frequency, bool) or not isinstance(self.frequency, int) or self.frequency < 1:
            raise SparsebenchError(f"frequency={self.frequency!r}: expected a number of steps, an integer of at least 1")
        if self.last is not None and self.last < self.ramp.end:
            raise SparsebenchError(f"end={self.last} is before begin={self.ramp.end}: expected end >= begin")
        if not isinstance(self.initial, (int, float)) or not 0.0 <= self.initial <= 1.0:
            raise SparsebenchError(f"initial_sparsity={self.initial!r}: expected a fraction of the weights in [0, 1]")

    @property
    def end(self) -> int:
        """Step of the last update."""
        return self.ramp.end if self.last is None else self.last

    def updates_at(self, step: int) -> bool:
        """Whether masks are made anew once `step` steps are completed."""
        if not self.ramp.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.ramp.begin) % self.frequency == 0

    def sparsity(self, step: int, final: float) -> float:
        """The sparsity at `step` on the way to `final`: `s_f + (s_i - s_f) (1 - p)^power` (Zhu and Gupta 2017, eq. 1).

        It never falls: layers that end with less than the initial sparsity, dense ones above all, have what they end with.
        """
        return final + (min(self.initial, final) - final) * self.ramp.remaining(step)


def polynomial(begin: int, end: int, frequency: int, power: float = 3.0, initial: float = 0.0) -> Schedule:
    """From `initial` at step `begin` to the target at step `end`, fast first: cubic by default.

    Example:
        >>> polynomial(begin=100, end=300, frequency=50).sparsity(200, final=0.8)
        0.7000000000000001
    """
    return Schedule(Ramp(begin, end, power), frequency, initial=initial)


def linear(begin: int, end: int, frequency: int, initial: float = 0.0) -> Schedule:
    """From `initial` at step `begin` to the target at step `end` in equal increments."""
    return polynomial(begin, end, frequency, power=1.0, initial=initial)


def constant(begin: int, end: int, frequency: int) -> Schedule:
    """The target from step `begin` on; masks are made anew until step `end`."""
    return Schedule(Ramp(begin, begin), frequency, last=end)


def one_shot(step: int = 0) -> Schedule:
    """The target at once, after `step` steps; 0 is the moment of `prepare`."""
    return Schedule(Ramp(step, step), frequency=1)
