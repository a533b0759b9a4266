"""Annotations that say in which unit a method's argument is, so that a study can give it relative to the training's length."""

from __future__ import annotations

from typing import Annotated, TypeAlias

__all__ = ["STEPS_UNIT", "TIMES_ONE_OVER_N_UNIT", "Penalty", "Steps"]

STEPS_UNIT = "optimizer steps"
TIMES_ONE_OVER_N_UNIT = "multiples of 1/N in a study"

Steps: TypeAlias = Annotated[int, STEPS_UNIT]
"""A number of optimizer steps; a study may write a fraction of training instead ("0.25")."""

Penalty: TypeAlias = Annotated[float, TIMES_ONE_OVER_N_UNIT]
"""What multiplies the summed penalty; a study writes it in multiples of 1/N, N being the number of training examples."""
