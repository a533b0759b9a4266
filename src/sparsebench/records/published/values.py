"""Reading the published values that ship with the package."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Annotated, Any

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["PublishedValue", "printed_as", "published_table", "published_values"]


class PublishedValue(BaseModel):
    """One value as its authors print it.

    Attributes:
        reference: A short name of the paper, such as "gale2019".
        workload: What was trained, named as imported results name it.
        method: The method's name; ours where we have the method.
        sparsity: The sparsity it is printed for, between 0 and 1.
        metric: "accuracy" (top-1, in per cent) or "bleu".
        low: The value, or the lower end where a range is printed.
        high: The value, or the upper end.
        citation: The paper.
        note: What a reader must know to compare with it; may be empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reference: str
    workload: str
    method: str
    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)]
    metric: str
    low: Annotated[float, Field(ge=0.0, le=100.0)]
    high: Annotated[float, Field(ge=0.0, le=100.0)]
    citation: str
    note: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> PublishedValue:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


_PRINTED_AS = {
    ("imagenet/resnet-50", "accuracy"): ("imagenet/resnet50", "accuracy"),
    ("wmt14-ende", "tokenized_bleu"): ("wmt14-ende/transformer-base", "bleu"),
}


def printed_as(workload: str, metric: str) -> tuple[str, str]:
    """The names by which values of one of our workloads are printed and imported; themselves where these are the same.

    Example:
        >>> printed_as("imagenet/resnet-50", "accuracy")
        ('imagenet/resnet50', 'accuracy')
    """
    return _PRINTED_AS.get((workload, metric), (workload, metric))


@functools.cache
def published_values() -> tuple[PublishedValue, ...]:
    """All published values, in the order of the file `values.yaml` beside this module.

    Example:
        >>> found = [value for value in published_values() if value.workload == "imagenet/resnet50"]
        >>> [value.low for value in found if value.method == "magnitude" and value.reference == "gale2019"]
        [76.53, 76.38, 75.58, 73.91, 70.59, 57.9]
    """
    file = resources.files("sparsebench.records.published") / "values.yaml"
    references: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(
        PublishedValue(
            reference=name,
            workload=table["workload"],
            metric=table["metric"],
            method=table["method"],
            sparsity=sparsity,
            low=low,
            high=high[0] if high else low,
            citation=reference["citation"],
            note=table.get("note", ""),
        )
        for name, reference in references.items()
        for table in reference["tables"]
        for sparsity, low, *high in table["values"]
    )


def published_table() -> pa.Table:
    """All published values as a table with a column for each attribute."""
    return pa.Table.from_pylist([value.model_dump() for value in published_values()])
