"""Tables over many runs from those of an earlier time and the records that changed since; no other record is read again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparsebench.records.rows import (
    DISTRIBUTIONS_SCHEMA,
    LAYERS_SCHEMA,
    RESULTS_SCHEMA,
    distribution_rows,
    layer_rows,
    result_rows,
)
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.run_states import RunState

__all__ = ["INDEX_SCHEMA", "Compacted", "merge"]

INDEX_SCHEMA = pa.schema(
    [
        ("run", pa.string()),  # the name of its folder; runs are in order of it, and so are their rows in the tables
        ("modified_ns", pa.int64()),
        ("size", pa.int64()),
        ("inode", pa.uint64()),
        ("latency_modified_ns", pa.int64()),
        ("latency_size", pa.int64()),
        ("latency_inode", pa.uint64()),
        ("results", pa.int64()),  # how many rows it has in each table
        ("layers", pa.int64()),
        ("distributions", pa.int64()),
    ]
)
_COUNTED = ("results", "layers", "distributions")
_RUNS_AT_ONCE = 500  # rows as Python objects take far more memory than in a table


@dataclass(frozen=True)
class Compacted:
    """Tables whose first rows are those of the runs in `index`, run after run; imported rows may follow in `results`."""

    results: pa.Table
    layers: pa.Table
    distributions: pa.Table
    index: pa.Table

    def is_whole(self) -> bool:
        """Whether the tables have the columns of this release, and all rows that the index tells of."""
        promised = (RESULTS_SCHEMA, LAYERS_SCHEMA, DISTRIBUTIONS_SCHEMA, INDEX_SCHEMA)
        tables = (self.results, self.layers, self.distributions, self.index)
        if not all(table.schema.equals(schema) for table, schema in zip(tables, promised, strict=True)):
            return False
        results, *others = (int(pc.sum(self.index[name]).as_py() or 0) for name in _COUNTED)
        return bool(results <= self.results.num_rows) and others == [self.layers.num_rows, self.distributions.num_rows]


def merge(directory: Path, states: Mapping[str, RunState], study: str | None, earlier: Compacted | None) -> Compacted:
    """The tables of the runs in `states`.

    Args:
        directory: The results folder.
        states: Its finished runs, in order of their names.
        study: The study's name, for the rows of runs that are read.
        earlier: Tables of the same study from which the rows of runs with the same state are taken; None where there are none.

    Raises:
        SparsebenchError: A record cannot be read.
    """
    kept = _Kept(earlier)
    parts: list[Compacted] = []
    for unchanged, group in itertools.groupby(states, key=lambda name: kept.has(name, states[name])):
        names = list(group)
        if unchanged:
            parts += kept.rows(names)
        else:
            several = (names[first : first + _RUNS_AT_ONCE] for first in range(0, len(names), _RUNS_AT_ONCE))
            parts += [_read(directory, some, states, study) for some in several]
    return Compacted(
        _joined((part.results for part in parts), RESULTS_SCHEMA),
        _joined((part.layers for part in parts), LAYERS_SCHEMA),
        _joined((part.distributions for part in parts), DISTRIBUTIONS_SCHEMA),
        _joined((part.index for part in parts), INDEX_SCHEMA),
    )


class _Kept:
    """Rows of earlier tables, by the run that they are of."""

    def __init__(self, earlier: Compacted | None) -> None:
        self._earlier = earlier
        self._places: dict[str, int] = {}
        self._states: list[RunState] = []
        if earlier is not None:
            index = earlier.index.to_pydict()
            self._places = {name: place for place, name in enumerate(index["run"])}
            self._states = list(itertools.starmap(RunState, zip(*(index[field] for field in RunState._fields), strict=True)))
            self._ends = {name: np.concatenate([[0], np.cumsum(index[name], dtype=np.int64)]) for name in _COUNTED}

    def has(self, name: str, state: RunState) -> bool:
        place = self._places.get(name)
        return place is not None and self._states[place] == state

    def rows(self, names: list[str]) -> list[Compacted]:
        """The rows of runs that are there, in parts that lay side by side."""
        assert self._earlier is not None
        places = np.array([self._places[name] for name in names])
        parts = []
        for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
            first, end = int(run[0]), int(run[-1]) + 1
            own = {name: getattr(self._earlier, name)[ends[first] : ends[end]] for name, ends in self._ends.items()}
            parts.append(Compacted(**own, index=self._earlier.index[first:end]))
        return parts


def _read(directory: Path, names: list[str], states: Mapping[str, RunState], study: str | None) -> Compacted:
    folders = [RunFolder.of(directory, name) for name in names]
    records = [folder.read_result() for folder in folders]
    sizes = [folder.model_path.stat().st_size if folder.model_path.exists() else None for folder in folders]
    latencies = [folder.read_latency() for folder in folders]
    results = [list(result_rows(*one)) for one in zip(records, itertools.repeat(study), sizes, latencies)]
    layers = [list(layer_rows(record)) for record in records]
    distributions = [list(distribution_rows(record)) for record in records]
    index = {
        "run": names,
        **{field: [getattr(states[name], field) for name in names] for field in RunState._fields},
        "results": [len(rows) for rows in results],
        "layers": [len(rows) for rows in layers],
        "distributions": [len(rows) for rows in distributions],
    }
    return Compacted(
        pa.Table.from_pylist(list(itertools.chain(*results)), schema=RESULTS_SCHEMA),
        pa.Table.from_pylist(list(itertools.chain(*layers)), schema=LAYERS_SCHEMA),
        pa.Table.from_pylist(list(itertools.chain(*distributions)), schema=DISTRIBUTIONS_SCHEMA),
        pa.table(index, schema=INDEX_SCHEMA),
    )


def _joined(parts: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(part.replace_schema_metadata(None) for part in parts)]).combine_chunks()
