"""All that the analysis reads of a results folder, in one value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.dataset import Dataset
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder, Status
from sparsebench.records.run_states import holds_tables_alone, run_folders
from sparsebench.records.schema import Fraction
from sparsebench.records.table import open_tables

__all__ = ["Failure", "MethodNote", "StudyData", "StudyNote", "known_steps", "load_study", "read_failures", "read_note"]


class MethodNote(BaseModel):
    """What a study file says about one method: a line that explains it, and the paper it comes from."""

    model_config = ConfigDict(frozen=True)

    summary: str = ""
    paper: str = ""


class StudyNote(BaseModel):
    """What `study.json` says. Fields that a later study runner adds are passed over.

    `command` and `planned_runs` are None where nobody wrote them down, which is so for a folder of single runs.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    workload: str
    description: str = ""
    note: str = ""
    command: str | None = None
    planned_runs: int | None = Field(default=None, ge=0)
    sparsities: tuple[Fraction, ...] = ()
    methods: dict[str, MethodNote] = Field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A run that failed: its folder's name, what it was (empty where its configuration cannot be read), and why."""

    run_id: str
    method: str
    config: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class StudyData:
    """A results folder as the analysis sees it.

    Args:
        directory: The folder.
        note: What the study says about itself; made up from the table where there is no `study.json`.
        has_study_file: Whether there is one.
        source: Who made the runs: `OWN_SOURCE`, or whose result files were imported.
        metric: The primary metric, higher is better.
        results: The table `results`.
        layers: The table `layers`.
        distributions: The table `distributions`, not read yet: it is large, and a page needs little of it.
        tables_alone: Whether the folder was passed on without its runs.
        failures: The runs that failed.
        unfinished: How many runs were begun and have not ended.
        stopped: How many runs a search stopped early; they have no results.
    """

    directory: Path
    note: StudyNote
    has_study_file: bool
    source: str
    metric: str
    results: pd.DataFrame
    layers: pd.DataFrame
    distributions: Dataset
    tables_alone: bool
    failures: tuple[Failure, ...]
    unfinished: int
    stopped: int


def load_study(directory: Path) -> StudyData:
    """Read a results folder.

    Args:
        directory: A folder written by `sparsebench study run`, `sparsebench train` or `sparsebench import`.

    Raises:
        SparsebenchError: The folder holds no finished run, mixes sources, workloads or metrics, or a file in it cannot be read.
    """
    tables = open_tables(directory)
    results, layers = (tables.rows(name).to_table().to_pandas() for name in ("results", "layers"))
    workload = _only(results["workload"], directory, "workload")
    source = _only(results["source"], directory, "source")  # one method's runs of two makers would pass for one method
    metric = _only(results.loc[results["primary_metric"], "metric"], directory, "primary metric")
    written = read_note(directory / "study.json")
    folders = run_folders(directory)
    statuses = [folder.status() for folder in folders]
    return StudyData(
        directory=directory,
        note=written or _note_from_table(directory, workload, results),
        has_study_file=written is not None,
        source=source,
        metric=metric,
        results=results,
        layers=layers,
        distributions=tables.rows("distributions"),
        tables_alone=holds_tables_alone(directory),
        failures=read_failures(folders, statuses),
        unfinished=statuses.count("started"),
        stopped=statuses.count("stopped"),
    )


def read_failures(folders: Sequence[RunFolder], statuses: Sequence[Status]) -> tuple[Failure, ...]:
    """Those runs that failed, in their order.

    Args:
        folders: The runs.
        statuses: How far each has come.
    """
    return tuple(_failure(folder) for folder, status in zip(folders, statuses, strict=True) if status == "failed")


def known_steps(runs: pd.DataFrame) -> list[int]:
    """The lengths of those runs whose length is known; of an imported run it may not be.

    Args:
        runs: Rows of the table `results`, one for each run.
    """
    return [int(steps) for steps in runs["steps"].dropna()]


def _only(column: pd.Series[Any], directory: Path, what: str) -> str:
    values = sorted(str(value) for value in column.unique())
    if not values:
        raise SparsebenchError(f"no run in {directory} has a value of its {what}; nothing can be compared")
    if len(values) > 1:
        raise SparsebenchError(
            f"{directory} mixes the {what}s {', '.join(values)}, which cannot be compared: keep one results folder per {what}"
        )
    return values[0]


def read_note(path: Path) -> StudyNote | None:
    """What a `study.json` says; None where there is none.

    Raises:
        SparsebenchError: It cannot be read.
    """
    try:
        return StudyNote.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise SparsebenchError(f"{path}: {field}: {first['msg']}; run the study again to write it anew") from error


def _note_from_table(directory: Path, workload: str, results: pd.DataFrame) -> StudyNote:
    targets = {float(target) for target in results["target_sparsity"].dropna().unique()}
    # A dense run may say that its target is 0; nobody asks for the best network that is at least 0 % sparse.
    asked = tuple(sorted(target for target in targets if target > 0.0))
    return StudyNote(name=directory.resolve().name, workload=workload, sparsities=asked)


def _failure(folder: RunFolder) -> Failure:
    try:
        config = json.loads((folder.path / "config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    if not isinstance(config, dict):
        config = {}
    try:
        reason = folder.read_failure().strip()
    except (OSError, ValueError):
        reason = ""
    return Failure(folder.path.name, str(config.get("method", "")), config, reason or "no reason was kept")
