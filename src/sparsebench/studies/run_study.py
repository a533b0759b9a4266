"""Running a study: what is done stays, the rest is worked off, stage by stage."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RUNS
from sparsebench.studies.executors.executor import Executor, Outcome
from sparsebench.studies.plan import describe_methods, plan_runs
from sparsebench.studies.selection import EVERYTHING, Selection
from sparsebench.studies.sharing import run_shared
from sparsebench.studies.study_file import Study
from sparsebench.studies.study_runs import StudyRuns
from sparsebench.training.devices import launched_processes

__all__ = ["StudySummary", "run_study"]


@dataclass(frozen=True)
class StudySummary:
    """What a call of `run_study` did.

    Attributes:
        planned: Runs of the study that were chosen, as far as they are known.
        finished_before: Those that were done already and did not run again.
        finished: Those that this call finished.
        elsewhere: Those that another driver of the study finished meanwhile.
        failed: Those that failed, in this call or an earlier one, with the reason.
        unplanned: Stages whose runs are not known yet: some that they depend on have not ended.
        stopped: Those that the study's search stopped early.
        unproposed: How many runs its search is still to propose, at most, whether they would be chosen or not.
    """

    planned: int
    finished_before: int
    finished: int
    elsewhere: int
    failed: dict[str, str]
    unplanned: tuple[str, ...] = ()
    stopped: int = 0
    unproposed: int = 0

    @property
    def left(self) -> int:
        """Runs that have not ended: more than the limit of a call, or going on from others that failed or were not chosen."""
        return self.planned - self.finished_before - self.finished - self.elsewhere - len(self.failed) - self.stopped


def run_study(
    study: Study,
    directory: Path,
    executor: Executor,
    *,
    selection: Selection = EVERYTHING,
    retry_failed: bool = False,
    begin: Callable[[int, int], None] | None = None,
    done: Callable[[Outcome], None] | None = None,
) -> StudySummary:
    """Run what a study has not run yet, beside other drivers that may be at it too.

    Args:
        study: The study.
        directory: Its results folder; runs of an earlier version of the study in it stay.
        executor: Trains the runs.
        selection: Which runs of the study to work on.
        retry_failed: Whether runs that failed earlier are run again.
        begin: Called before each stage with the number of runs that had ended and of those to do now.
        done: Called as each run ends.

    Raises:
        SparsebenchError: The study or the selection is wrong, a launcher of several processes started this one, or the folder
            cannot be written or belongs to another study.
    """
    if launched_processes() > 1:
        raise SparsebenchError("a study starts its own processes: run it without torchrun or accelerate launch")
    runs = StudyRuns(study, directory, plan_runs(study))
    selection.check(runs.planned, complete=not study.stages and not runs.unproposed)
    make_directory(directory / RUNS)
    _write_description(study, runs, directory)
    outcomes: dict[str, Outcome] = {}

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.run_id] = outcome
        if done is not None:
            done(outcome)

    before: set[str] = set()
    failed: dict[str, str] = {}
    looked_at: set[tuple[str, int | None]] = set()
    while True:
        pauses, stops = runs.pauses, runs.stops
        todo = []
        for config in selection.choose(runs.ready().values()):
            run_id = config.run_id
            pause_at = pauses.get(run_id)
            if run_id in stops or (run_id, pause_at) in looked_at:
                continue
            looked_at.add((run_id, pause_at))
            folder = runs.folder(run_id)
            status = folder.status()
            if status == "finished":
                if run_id not in outcomes:
                    before.add(run_id)
            elif status == "failed" and not retry_failed:
                failed[run_id] = folder.read_failure()
            elif pause_at is None or pause_at not in folder.read_rungs():
                todo.append(config)
        if todo:
            todo = selection.within_limit(todo, len(outcomes))
            if not todo:
                break
            for config in todo:
                runs.folder(config.run_id).forget_end()
            if begin is not None:
                begin(len(before) + len(failed) + sum(one.status != "paused" for one in outcomes.values()), len(todo))
            run_shared(executor, todo, directory, ended, pauses)
        elif runs.plan_further():
            for run_id, stop in runs.stops.items():
                if runs.folder(run_id).status() != "stopped":
                    runs.folder(run_id).write_stop(stop)
            _write_description(study, runs, directory)
        else:
            break
    if begin is not None and not outcomes:
        begin(len(before) + len(failed), 0)
    failed |= {run_id: outcome.reason for run_id, outcome in outcomes.items() if outcome.status == "failed"}
    return StudySummary(
        planned=len(selection.choose(runs.planned)),
        finished_before=len(before),
        finished=sum(outcome.status == "finished" for outcome in outcomes.values()),
        elsewhere=sum(outcome.status == "elsewhere" for outcome in outcomes.values()),
        failed=failed,
        unplanned=runs.unplanned,
        stopped=len(selection.choose(config for config in runs.planned if config.run_id in runs.stops)),
        unproposed=sum(runs.unproposed.values()),
    )


def _write_description(study: Study, runs: StudyRuns, directory: Path) -> None:
    """Write what a reader of the folder must know of the study."""
    path = directory / "study.json"
    if path.exists():
        try:
            name = json.loads(path.read_bytes())["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SparsebenchError(f"{path} is damaged: delete it and run the study again") from error
        if name != study.name:
            raise SparsebenchError(f"{directory} holds the study {name!r}, not {study.name!r}: choose another folder with --out")
    description = {
        "name": study.name,
        "workload": study.workload,
        "description": study.description,
        "note": study.note,
        **({} if study.revision is None else {"revision": study.revision}),
        "command": shlex.join(["sparsebench", "study", "run", *study.arguments, "--out", str(directory)]),
        "planned_runs": len(runs.planned) + sum(runs.unproposed.values()),
        "sparsities": list(study.sparsities),
        "methods": describe_methods(runs.planned),
    }
    with atomic_file(path) as file:
        file.write(json.dumps(description, indent=1).encode())
