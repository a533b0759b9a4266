"""Reading one result file: columns tell its layout, every cell is checked, every trained network becomes a run."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.records.importing.cells import Parse, Value, fraction
from sparsebench.records.importing.layouts import LAYOUTS, Evaluation, Layout
from sparsebench.records.schema import canonical_json, short_hash

__all__ = ["SOURCE", "ImportedRun", "read_result_file"]

SOURCE = "gale2019"
"""What the column `source` says of runs that the authors of the study made."""

_SHOWN = 60  # letters of a strange column's name that a message quotes


@dataclass(frozen=True)
class ImportedRun:
    """A run that somebody else made.

    Args:
        run_id: A hash of workload, method, settings and seed: the same run has the same id in whatever file it stands.
        place: The file and line that it was read from.
        rows: Its rows of the table `results`, one for each evaluation; what the file does not tell is None.
    """

    run_id: str
    place: str
    rows: tuple[dict[str, Any], ...]


def read_result_file(path: Path) -> list[ImportedRun]:
    """Read one of the authors' result files.

    Args:
        path: A CSV file in one of `LAYOUTS`. The name of the file matters where nothing else tells the authors' files apart:
            keep it (`transformer_scratchb_augmented_init.csv`, `rn50_scratch_lr_scaled.csv`).

    Returns:
        Its runs in their order. Lines with the same settings are replicates and get the seeds 0, 1, ... in their order.

    Raises:
        SparsebenchError: There is no such file, it is empty, its columns are none that we know, or a cell is not what its
            column holds; the message names file, line and column.
    """
    lines = _lines(path)
    _, header = next(lines, (0, []))
    if not header:
        raise SparsebenchError(f"{path} is empty: expected a CSV file of results")
    layout = _layout(path, header)
    runs: list[ImportedRun] = []
    seeds: Counter[str] = Counter()
    for line, cells in lines:
        row = _Row(f"{path} line {line}", dict(zip(layout.columns, cells, strict=True)))
        for evaluations in layout.runs:
            runs.append(_run(layout, path.stem, row, evaluations, seeds))
    if not runs:
        raise SparsebenchError(f"{path} holds no results: expected lines below the header")
    return runs


@dataclass(frozen=True)
class _Row:
    place: str
    cells: Mapping[str, str]

    def read(self, column: str, parse: Parse) -> Value:
        cell = self.cells[column]
        try:
            return parse(cell)
        except ValueError as error:
            raise SparsebenchError(f"{self.place}, column {column!r}: {cell!r}: {error}") from error


def _run(layout: Layout, file_name: str, row: _Row, evaluations: Sequence[Evaluation], seeds: Counter[str]) -> ImportedRun:
    read = {name: row.read(column, parse) for column, (name, parse) in layout.settings.items()}
    method, settings = layout.method(read, file_name)
    measured = [0.0 if one.sparsity is None else float(row.read(one.sparsity, fraction)) for one in evaluations]
    targets = [layout.target(sparsity) for sparsity in measured]
    asked = {} if targets[0] is None else {"sparsity": targets[0]}
    config: dict[str, Any] = {
        "source": SOURCE,
        "workload": layout.workload,
        "method": method,
        "parameters": asked | dict(settings),
    }
    configuration = short_hash(config)
    seed = seeds[configuration]
    seeds[configuration] += 1
    config |= {"seed": seed}
    run_id = short_hash(config)
    shared = {
        "run_id": run_id,
        "source": SOURCE,
        "workload": layout.workload,
        "method": method,
        "configuration": configuration,
        "seed": seed,
        "split": "test",
        "metric": layout.metric,
        "primary_metric": True,
        "steps": layout.steps(settings),
        "config": canonical_json(config),
    }
    rows = tuple(
        shared
        | {
            "target_sparsity": target,
            "sparsity": sparsity,
            "threshold": one.threshold,
            "value": row.read(one.value, layout.read_value),
        }
        for one, sparsity, target in zip(evaluations, measured, targets, strict=True)
    )
    return ImportedRun(run_id, row.place, rows)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that hold anything, with their numbers; all have as many cells as the first."""
    width = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if not any(stripped):
                    continue
                width = width or len(stripped)
                if len(stripped) != width:
                    raise SparsebenchError(
                        f"{path} line {reader.line_num} has {len(stripped)} cells, its header {width} columns: expected as many"
                    )
                yield reader.line_num, stripped
    except FileNotFoundError as error:
        raise SparsebenchError(f"no such file: {path}") from error
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SparsebenchError(f"{path} is no text file: expected CSV in UTF-8") from error
    except csv.Error as error:
        raise SparsebenchError(f"{path} line {reader.line_num} is no CSV: {error}") from error


def _layout(path: Path, header: Sequence[str]) -> Layout:
    found = _folded(header)
    for layout in LAYOUTS.values():
        if _folded(layout.columns) == found:
            return layout
    name, nearest = max(LAYOUTS.items(), key=lambda entry: len(set(found) & set(_folded(entry[1].columns))))
    known = _folded(nearest.columns)
    unknown = [column for column in header if column.casefold() not in known]
    missing = [column for column in nearest.columns if column.casefold() not in found]
    if unknown:
        problem = f"unknown column {unknown[0][:_SHOWN]!r}"
    elif missing:
        problem = f"column {missing[0]!r} is missing"
    else:
        moved = next(column for column, other in zip_longest(header, known, fillvalue="-") if column.casefold() != other)
        problem = f"column {moved!r} is not in its place"
    expected = ",".join(nearest.columns)
    raise SparsebenchError(f"{path}: {problem}; the layout most like it is {name}: {expected}")


def _folded(columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(column.casefold() for column in columns)
