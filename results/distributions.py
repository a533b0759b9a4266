"""Fill the table of weight distributions of a results folder that holds tables and compressed checkpoints, but no runs.

    python results/distributions.py results/gale2019-digits

reads every file of the folder's `checkpoints/` and writes `distributions.parquet`. What a network held at the end is in its
checkpoint; what it began with follows from workload and seed, where the run began with the workload's own weights: of a run that
went on from another one, the beginning stays unknown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.records.query import query
from sparsebench.records.rows import DISTRIBUTIONS_SCHEMA, histogram_columns
from sparsebench.records.schema import configuration_hash
from sparsebench.sparsifiers.selection import select_weights
from sparsebench.storage import inspect, load_compressed
from sparsebench.training.config import RunConfig
from sparsebench.training.histograms import weight_histograms
from sparsebench.training.parent import new_weights
from sparsebench.workloads.registry import WORKLOADS


def rows(checkpoint: Path, known: frozenset[str]) -> Iterator[dict[str, Any]]:
    """The rows of one run."""
    held = inspect(checkpoint)
    if held.config is None or held.metrics is None:
        raise SparsebenchError(f"{checkpoint} does not say which run it is of")
    config = RunConfig.model_validate(held.config)
    if config.run_id not in known:
        raise SparsebenchError(f"{checkpoint} is of the run {config.run_id}, which the table of results does not have")
    workload = WORKLOADS.get(config.workload)
    names = [weight.name for weight in select_weights(workload.build_model())]
    shared = {
        "run_id": config.run_id,
        "method": config.method,
        "configuration": configuration_hash(held.config),
        "seed": config.seed,
    }
    end = {"moment": "end", "target_sparsity": held.metrics["target_sparsity"], "threshold": held.metrics["threshold"]}
    moments = [(end, load_compressed(checkpoint))]
    if config.parent is None:
        begin = {"moment": "initialization", "target_sparsity": None, "threshold": None}
        moments.insert(0, (begin, new_weights(workload, config.seed)))
    for moment, weights in moments:
        for position, (layer, histogram) in enumerate(weight_histograms(weights, names).items()):
            yield shared | moment | {"position": position, "layer": layer} | histogram_columns(histogram)


def main(folder: Path) -> None:
    """Write the table."""
    known = frozenset(query(folder, "select distinct run_id from results")["run_id"])
    found = [row for checkpoint in sorted((folder / "checkpoints").glob("*.safetensors")) for row in rows(checkpoint, known)]
    with atomic_file(folder / "distributions.parquet") as file:
        pq.write_table(pa.Table.from_pylist(found, schema=DISTRIBUTIONS_SCHEMA), file, compression="zstd")
    sys.stdout.write(f"{folder / 'distributions.parquet'}: {len(found)} histograms\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
