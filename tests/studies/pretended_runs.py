"""Finished runs that nobody trained: stages depend on nothing but records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import PointRecord, RunRecord
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import Study, each_workload, read_study
from sparsebench.studies.study_runs import StudyRuns
from sparsebench.training.config import RunConfig

DENSE_COST = 1000


def read(folder: Path, text: str) -> Study:
    """A study of one workload, from its text."""
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    (study,) = each_workload(read_study(str(path)))
    return study


def lot(*of: object) -> float:
    """A number in [0, 1) that depends on nothing but what it is a lot of."""
    return int(hashlib.sha256(repr(of).encode()).hexdigest()[:8], 16) / 2**32


def record(config: RunConfig, points: Iterable[Mapping[str, Any]] | None = None) -> RunRecord:
    """The record of a run; where nothing is said of its points, what it was asked for and a validation metric drawn by lot.

    A point has `sparsity` and `validation`, and may have `threshold` and `cost`.
    """
    if points is None:
        thresholds = config.parameters.get("thresholds") or [None]
        asked = config.target_sparsity
        points = [
            {
                "sparsity": lot(config.run_id, threshold, "sparsity")
                if asked is None and config.method != "dense"
                else asked or 0.0,
                "validation": lot(config.run_id, threshold),
                "threshold": threshold,
            }
            for threshold in thresholds
        ]
    return RunRecord(
        run_id=config.run_id,
        config=config.model_dump(mode="json"),
        workload=config.workload,
        method=config.method,
        seed=config.seed,
        metric="accuracy",
        steps=config.recipe.steps,
        seconds=1.0,
        peak_memory_bytes=None,
        weights_sha256="",
        environment={},
        dense_multiply_adds=DENSE_COST,
        points=tuple(
            PointRecord(
                target_sparsity=config.target_sparsity,
                threshold=point.get("threshold"),
                sparsity=point["sparsity"],
                # The test split and the loss say the opposite: who chooses by them is found out.
                metrics={
                    "validation": {"accuracy": point["validation"], "loss": -point["validation"]},
                    "test": {"accuracy": -point["validation"]},
                },
                layers=(),
                multiply_adds=point.get("cost", int(DENSE_COST * (1.0 - point["sparsity"]))),
            )
            for point in points
        ),
    )


def finish(directory: Path, config: RunConfig, points: Iterable[Mapping[str, Any]] | None = None) -> None:
    """Leave the record of a run in a results folder."""
    folder = RunFolder(directory / "runs" / config.run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.result_path.write_text(record(config, points).model_dump_json(), encoding="utf-8")


def fail(directory: Path, config: RunConfig) -> None:
    """Leave a run that failed."""
    folder = RunFolder(directory / "runs" / config.run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_failure("it diverged", "")


def stages_of(study: Study, directory: Path) -> dict[str, list[RunConfig]]:
    """Finish run after run until nothing is left, and tell the runs of each stage."""
    runs = StudyRuns(study, directory, plan_runs(study))
    seen: set[str] = set()
    found = {"grid": runs.planned}
    while True:
        new = {run_id: config for run_id, config in runs.ready().items() if run_id not in seen}
        seen |= new.keys()
        for config in new.values():
            finish(directory, config)
        if not new:
            before = runs.unplanned
            if not runs.plan_further():
                return found
            for name in before:
                if name not in runs.unplanned:
                    found[name] = list(runs.of_stage(name))
