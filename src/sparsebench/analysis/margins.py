"""Whether one method is higher than another by more than a margin, or both lie within it: one-sided t tests.

A plain test of no difference can show that methods differ, never that they are alike. With a margin both can be shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsebench.analysis.statistics import Difference

__all__ = ["AtLeast", "MarginTest", "Within"]


@dataclass(frozen=True)
class AtLeast:
    """The statement that a difference is higher than a limit.

    A positive limit says "is better, by more than the limit", a negative one "is no worse, or by less than the limit".
    """

    difference: Difference
    limit: float

    @property
    def p_holds(self) -> float:
        """How probable such data would be if the statement were false: small where it is shown."""
        return self.difference.p_above(self.limit)

    @property
    def p_fails(self) -> float:
        """How probable such data would be if the statement were true: small where it is shown to be false."""
        return self.difference.p_below(self.limit)


@dataclass(frozen=True)
class Within:
    """The statement that a difference is nearer to zero than a limit.

    References:
        Schuirmann, "A comparison of the Two One-Sided Tests Procedure and the Power Approach for assessing the equivalence of
        average bioavailability", Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.
    """

    difference: Difference
    limit: float

    @property
    def p_holds(self) -> float:
        """How probable such data would be if the statement were false: small where it is shown."""
        return max(self.difference.p_above(-self.limit), self.difference.p_below(self.limit))

    @property
    def p_fails(self) -> float:
        """How probable such data would be if the statement were true: small where it is shown to be false."""
        return min(1.0, 2.0 * min(self.difference.p_above(self.limit), self.difference.p_below(-self.limit)))


MarginTest = AtLeast | Within
