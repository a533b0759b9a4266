"""The rows of the tables: what a run's record says, a row for each evaluation, split and metric, each layer, each histogram."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sparsebench.records.latency import LatencyRecord
from sparsebench.records.schema import RunRecord, WeightHistogram, canonical_json, configuration_hash

__all__ = [
    "DISTRIBUTIONS_SCHEMA",
    "LAYERS_SCHEMA",
    "RESULTS_SCHEMA",
    "SCHEMAS",
    "distribution_rows",
    "histogram_columns",
    "layer_rows",
    "result_rows",
]

RESULTS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("study", pa.string()),
        ("source", pa.string()),  # who made the run: schema.OWN_SOURCE, or whose result file it was imported from
        ("workload", pa.string()),
        ("method", pa.string()),
        ("configuration", pa.string()),  # hash of the configuration without its seed: equal for replicates
        ("seed", pa.int64()),
        ("target_sparsity", pa.float64()),
        ("sparsity", pa.float64()),
        ("threshold", pa.float64()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("primary_metric", pa.bool_()),
        ("value", pa.float64()),
        ("steps", pa.int64()),
        ("seconds", pa.float64()),
        ("processor_seconds", pa.float64()),
        ("peak_memory_bytes", pa.int64()),
        ("inference_cost", pa.float64()),  # multiply-adds as multiples of the dense network's, and of its training: theoretical
        ("training_cost", pa.float64()),
        ("file_bytes", pa.int64()),  # of the run's compressed checkpoint, at the evaluation whose network it holds: the first
        # Measured later, of that network too: least time of one batch through compile_sparse, and in PyTorch.
        ("latency_ms", pa.float64()),
        ("dense_latency_ms", pa.float64()),
        ("latency_batch", pa.int64()),  # examples
        ("latency_threads", pa.int64()),
        ("config", pa.string()),
    ]
)
LAYERS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("configuration", pa.string()),
        ("seed", pa.int64()),
        ("target_sparsity", pa.float64()),
        ("threshold", pa.float64()),
        ("position", pa.int64()),  # order of the layer in the network
        ("layer", pa.string()),
        ("shape", pa.string()),
        ("weights", pa.int64()),
        ("zeros", pa.int64()),
        ("sparsity", pa.float64()),
        ("head_zeros", pa.string()),  # JSON: the zeros of each attention head, where heads share the tensor in equal parts
    ]
)

DISTRIBUTIONS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("configuration", pa.string()),
        ("seed", pa.int64()),
        ("moment", pa.string()),  # "initialization", before any mask, or "end", of an evaluation
        ("target_sparsity", pa.float64()),
        ("threshold", pa.float64()),
        ("position", pa.int64()),
        ("layer", pa.string()),
        ("weights", pa.int64()),  # that are not zero: the sum of the counts
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("counts", pa.string()),  # JSON: how many lie in each of equally wide bins from low to high
    ]
)

SCHEMAS = {"results": RESULTS_SCHEMA, "layers": LAYERS_SCHEMA, "distributions": DISTRIBUTIONS_SCHEMA}
"""The tables of a results folder and their columns."""


def result_rows(
    record: RunRecord, study: str | None, file_bytes: int | None, latency: LatencyRecord | None
) -> Iterator[dict[str, Any]]:
    """The rows of a run in the table `results`.

    Args:
        record: The run.
        study: The study's name.
        file_bytes: The size of its compressed checkpoint; None where there is none.
        latency: How fast its network is; None where that was not measured.
    """
    shared = {
        "run_id": record.run_id,
        "study": study,
        "source": record.source,
        "workload": record.workload,
        "method": record.method,
        "configuration": configuration_hash(record.config),
        "seed": record.seed,
        "steps": record.steps,
        "seconds": record.seconds,
        "processor_seconds": record.processor_seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "training_cost": _ratio(record.training_multiply_adds, record.dense_training_multiply_adds),
        "config": canonical_json(record.config),
    }
    of_checkpoint = {"file_bytes": file_bytes} | _latency(record, latency)
    of_others = dict.fromkeys(of_checkpoint)
    for number, point in enumerate(record.points):
        for split, metrics in point.metrics.items():
            for metric, value in metrics.items():
                yield (
                    shared
                    | (of_checkpoint if number == 0 else of_others)
                    | {
                        "target_sparsity": point.target_sparsity,
                        "sparsity": point.sparsity,
                        "threshold": point.threshold,
                        "inference_cost": _ratio(point.multiply_adds, record.dense_multiply_adds),
                        "split": split,
                        "metric": metric,
                        "primary_metric": metric == record.metric,
                        "value": value,
                    }
                )


def _latency(record: RunRecord, latency: LatencyRecord | None) -> dict[str, float | None]:
    if latency is None or latency.weights_sha256 != record.weights_sha256:
        return dict.fromkeys(("latency_ms", "dense_latency_ms", "latency_batch", "latency_threads"))
    return {
        "latency_ms": latency.latency_ms,
        "dense_latency_ms": latency.dense_latency_ms,
        "latency_batch": latency.batch,
        "latency_threads": latency.threads,
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def layer_rows(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The rows of a run in the table `layers`."""
    configuration = configuration_hash(record.config)
    for point in record.points:
        for position, layer in enumerate(point.layers):
            yield {
                "run_id": record.run_id,
                "method": record.method,
                "configuration": configuration,
                "seed": record.seed,
                "target_sparsity": point.target_sparsity,
                "threshold": point.threshold,
                "position": position,
                "layer": layer.layer,
                "shape": "x".join(str(size) for size in layer.shape),
                "weights": layer.weights,
                "zeros": layer.zeros,
                "sparsity": layer.zeros / layer.weights if layer.weights else 0.0,
                "head_zeros": json.dumps(layer.head_zeros) if layer.head_zeros else None,
            }


def distribution_rows(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The rows of a run in the table `distributions`; none where it wrote no histograms down."""
    shared = {
        "run_id": record.run_id,
        "method": record.method,
        "configuration": configuration_hash(record.config),
        "seed": record.seed,
    }
    before = shared | {"moment": "initialization", "target_sparsity": None, "threshold": None}
    for position, (layer, histogram) in enumerate(record.initial_histograms.items()):
        yield before | {"position": position, "layer": layer} | histogram_columns(histogram)
    for point in record.points:
        after = shared | {"moment": "end", "target_sparsity": point.target_sparsity, "threshold": point.threshold}
        for position, own in enumerate(point.layers):
            if own.histogram is not None:
                yield after | {"position": position, "layer": own.layer} | histogram_columns(own.histogram)


def histogram_columns(histogram: WeightHistogram) -> dict[str, Any]:
    """The columns of the table `distributions` that tell a histogram."""
    return {
        "weights": sum(histogram.counts),
        "low": histogram.low,
        "high": histogram.high,
        "counts": json.dumps(histogram.counts),
    }
