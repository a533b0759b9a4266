"""What a run leaves where it pauses, and where a search stops it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RungRecord", "StopRecord"]


class RungRecord(BaseModel):
    """A pause of a run: completed steps, and the primary metric on the validation split and the sparsity at that step.

    They are those of the network's first evaluation point, as in the training curve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: int = Field(ge=1)
    validation: float
    sparsity: float = Field(ge=0.0, le=1.0)


class StopRecord(BaseModel):
    """A run that was stopped early: after how many of its steps, by what rule, and what it was worth by then."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: int = Field(ge=1)
    steps: int = Field(ge=1)
    rule: str
    metric: str
    validation: float
