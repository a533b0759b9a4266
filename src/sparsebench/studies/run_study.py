"""Running a study: what is done stays, the rest is worked off, the table is brought up to date."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.plan import describe_methods, plan_runs
from sparsebench.studies.study_file import Study
from sparsebench.studies.workers import Outcome, run_all
from sparsebench.training.config import RunConfig

__all__ = ["StudySummary", "run_study"]


@dataclass(frozen=True)
class StudySummary:
    """What a call of `run_study` did.

    Attributes:
        planned: Runs of the study.
        finished_before: Those that were done already and did not run again.
        finished: Those that this call finished.
        failed: Those that failed, in this call or an earlier one, with the reason.
        held: Those that another process is at.
    """

    planned: int
    finished_before: int
    finished: int
    failed: dict[str, str]
    held: tuple[str, ...]


def run_study(
    study: Study,
    directory: Path,
    *,
    workers: int,
    retry_failed: bool = False,
    checkpoint_seconds: float = 60.0,
    begin: Callable[[int, int], None] | None = None,
    done: Callable[[Outcome], None] | None = None,
) -> StudySummary:
    """Run what a study has not run yet.

    Args:
        study: The study.
        directory: Its results folder; runs of an earlier version of the study in it stay.
        workers: Number of worker processes, at least 1.
        retry_failed: Whether runs that failed earlier are run again.
        checkpoint_seconds: Seconds between the checkpoints of a run.
        begin: Called with the number of planned runs and of those to do now.
        done: Called as each run ends.

    Raises:
        SparsebenchError: The study is wrong, or the folder cannot be written or belongs to another study.
    """
    if workers < 1:
        raise SparsebenchError(f"workers={workers}: expected at least 1")
    configs = plan_runs(study)
    make_directory(directory / "runs")
    _write_description(study, configs, directory)
    outcomes: list[Outcome] = []
    todo, before, failed = [], 0, {}
    for config in configs:
        folder = RunFolder(directory / "runs" / config.run_id)
        status = folder.status()
        if status == "finished":
            before += 1
        elif status == "failed" and not retry_failed:
            failed[config.run_id] = folder.read_failure()
        else:
            folder.failure_path.unlink(missing_ok=True)
            todo.append(config)
    if begin is not None:
        begin(len(configs), len(todo))

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if done is not None:
            done(outcome)

    run_all(todo, directory, workers, checkpoint_seconds, ended)
    failed |= {outcome.run_id: outcome.reason for outcome in outcomes if outcome.status == "failed"}
    return StudySummary(
        planned=len(configs),
        finished_before=before,
        finished=sum(outcome.status == "finished" for outcome in outcomes),
        failed=failed,
        held=tuple(outcome.run_id for outcome in outcomes if outcome.status == "held"),
    )


def _write_description(study: Study, configs: list[RunConfig], directory: Path) -> None:
    """Write what a reader of the folder must know of the study."""
    path = directory / "study.json"
    if path.exists():
        try:
            name = json.loads(path.read_bytes())["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SparsebenchError(f"{path} is damaged: delete it and run the study again") from error
        if name != study.name:
            raise SparsebenchError(f"{directory} holds the study {name!r}, not {study.name!r}: choose another folder with --out")
    shown = study.source if Path(study.source).exists() else study.name
    description = {
        "name": study.name,
        "workload": study.workload,
        "description": study.description,
        "note": study.note,
        "command": f"sparsebench study run {shlex.quote(shown)} --out {shlex.quote(str(directory))}",
        "planned_runs": len(configs),
        "sparsities": list(study.sparsities),
        "methods": describe_methods(configs),
    }
    with atomic_file(path) as file:
        file.write(json.dumps(description, indent=1).encode())
