"""The record of a run: what `result.json` holds, checked when it is read and when it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "OWN_SOURCE",
    "LayerRecord",
    "PointRecord",
    "RunRecord",
    "WeightHistogram",
    "canonical_json",
    "canonical_json_with",
    "configuration_hash",
    "short_hash",
    "text_hash",
]

OWN_SOURCE = "sparsebench"
"""The `source` of runs that this package made."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WeightHistogram(_Record):
    """How many of a tensor's non-zero weights lie in each of equally wide bins.

    The first bin begins at `low`, the last ends with `high`; both are 0 where every weight is zero.
    """

    low: float
    high: float
    counts: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)


class LayerRecord(_Record):
    """How sparse one weight tensor is at one evaluation point.

    `head_zeros`: the zeros of each attention head, where heads share the tensor in equal parts; empty elsewhere. `histogram`: of
    the weights that are left (None where the run wrote none down).
    """

    layer: str
    shape: tuple[int, ...]
    weights: int = Field(ge=0)
    zeros: int = Field(ge=0)
    head_zeros: tuple[int, ...] = ()
    histogram: WeightHistogram | None = None


class PointRecord(_Record):
    """One evaluation point of a run: a network of a given sparsity, and its metrics on every split.

    `sparsity` is the fraction of exact zeros among the sparsifiable weights of the network; `target_sparsity` what the method
    was asked for (None where the method finds its own); `threshold` the log-alpha threshold (None where there is none).
    `metrics` maps a split to metric names and values; percentages are in per cent. `multiply_adds`: of its non-zero weights
    for one example: theoretical, not a measured speed (None where unknown).
    """

    target_sparsity: Fraction | None
    threshold: float | None
    sparsity: Fraction
    metrics: dict[Literal["validation", "test"], dict[str, float]]
    layers: tuple[LayerRecord, ...]
    multiply_adds: int | None = Field(default=None, ge=0)


class RunRecord(_Record):
    """All that a finished run tells. Its existence in a run folder is what makes the run finished.

    `metric` names the primary metric, by which points are chosen; it is always one where higher is better. `seconds` is
    training time, evaluation left out; `processor_seconds` what the processors worked for it in all processes, which other
    programs of the machine lengthen less (None where unknown). `peak_memory_bytes` is how far the resident memory of the (first)
    process rose above what it held when the run began (None where the system does not tell). `weights_sha256` is a hash over
    names, shapes and bits of the final weights, so that two runs can be compared to the last bit. `dense_multiply_adds`: of the
    dense network for one example; `training_multiply_adds` the integral over the training, by the convention of
    `accounting.TrainingCost`, and `dense_training_multiply_adds` that of the dense training of as many steps (None if unknown).
    `initial_histograms`: of the weights with which the training began, by the names of their tensors (empty where the run wrote
    none down).
    """

    format: Literal[1] = 1
    run_id: str
    source: str = OWN_SOURCE
    config: dict[str, Any]
    workload: str
    method: str
    seed: int
    metric: str
    steps: int = Field(ge=1)
    seconds: float = Field(ge=0.0)
    processor_seconds: float | None = Field(default=None, ge=0.0)
    peak_memory_bytes: int | None
    weights_sha256: str
    environment: dict[str, str]
    dense_multiply_adds: int | None = Field(default=None, ge=0)
    training_multiply_adds: float | None = Field(default=None, ge=0.0)
    dense_training_multiply_adds: float | None = Field(default=None, ge=0.0)
    initial_histograms: dict[str, WeightHistogram] = Field(default_factory=dict)
    points: tuple[PointRecord, ...] = Field(min_length=1)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, no NaN.

    Example:
        >>> canonical_json({"b": 1, "a": 0.5})
        '{"a":0.5,"b":1}'
    """
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical_json_with(values: Mapping[str, Any], key: str, text: str) -> str:
    """The canonical JSON of an object with one value more, which is JSON already: what many objects share is encoded once.

    Args:
        values: The other values by key.
        key: The key of that value, none of the others.
        text: Its canonical JSON.

    Example:
        >>> canonical_json_with({"c": 1, "a": 0.5}, "b", canonical_json([1, 2]))
        '{"a":0.5,"b":[1,2],"c":1}'
    """
    before = canonical_json({other: value for other, value in values.items() if other < key})[1:-1]
    after = canonical_json({other: value for other, value in values.items() if other > key})[1:-1]
    return "{" + ",".join([part for part in (before, f"{canonical_json(key)}:{text}", after) if part]) + "}"


def short_hash(value: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a value's canonical JSON: the id of a configuration.

    Example:
        >>> short_hash({"a": 1})
        '015abd7f5cc57a2d'
    """
    return text_hash(canonical_json(value))


def text_hash(text: str) -> str:
    """The same, of a value's canonical JSON.

    Example:
        >>> text_hash(canonical_json({"a": 1})) == short_hash({"a": 1})
        True
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def configuration_hash(config: Mapping[str, Any]) -> str:
    """The id that replicates share: of a configuration without its seed, and without which replicate its parent is.

    Example:
        >>> configuration_hash({"method": "dense", "seed": 1}) == configuration_hash({"method": "dense", "seed": 2})
        True
        >>> first, second = ({"seed": 1, "parent": {"run_id": name, "configuration": "c"}} for name in "ab")
        >>> configuration_hash(first) == configuration_hash(second)
        True
    """
    shared = {key: value for key, value in config.items() if key != "seed"}
    if isinstance(shared.get("parent"), Mapping):
        shared["parent"] = {key: value for key, value in shared["parent"].items() if key != "run_id"}
    return short_hash(shared)
