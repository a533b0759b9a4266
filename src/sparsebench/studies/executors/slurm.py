"""Runs in the jobs of a SLURM array, on machines that share the disk of the results folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import Claims
from sparsebench.records.leases import Leases
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import NO_PAUSES, Done, Outcome, ended_elsewhere, give_up
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.training.config import RunConfig

__all__ = ["SlurmJobs"]

LOOK_SECONDS = 1.0
MOST_ARRAYS = 3  # in a row that end without having ended a run


@dataclass(frozen=True)
class SlurmJobs:
    """Trains in an array of SLURM jobs, each of which takes run after run until none is left.

    Which job trains which run is decided by claims on the shared disk, so that a job that is late, short or lost costs the others
    nothing: what it held is free again when its lease is over. This process submits the array and watches the folder; where jobs
    end (their time is up) before the runs do, it submits another array.

    Args:
        jobs: Jobs in the array, at least 1.
        checkpoint_seconds: Seconds between the checkpoints of a run, at least 0.
        run_timeout: Seconds that a run may take, above 0; None sets no limit.
        parameters: What submitit is to tell SLURM of each job, by submitit's names: timeout_min, mem_gb, slurm_partition, ...
        cluster: "slurm"; submitit's "local" (a process of this machine for each job) and "debug" (this process) try a study out.
        claims: How runs are claimed; it must hold between machines.
        processes_per_run: Processes of a job that train each run together, at least 1; a job asks for as many cores as they have
            threads.

    Raises:
        SparsebenchError: A value is out of range, or submitit is not installed.
    """

    jobs: int = 10
    checkpoint_seconds: float = 60.0
    run_timeout: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    claims: Claims = field(default_factory=Leases)
    processes_per_run: int = 1

    def __post_init__(self) -> None:
        _submitit()
        if self.jobs < 1:
            raise SparsebenchError(f"jobs={self.jobs}: expected at least 1")
        self._worker()

    def _worker(self) -> LocalProcesses:
        return LocalProcesses(1, self.checkpoint_seconds, self.run_timeout, self.claims, self.processes_per_run)

    def run(self, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int] = NO_PAUSES) -> None:
        """Train configurations in jobs until each has ended; see `Executor.run`."""
        left = {config.run_id: config for config in configs}
        fruitless = 0
        while left and fruitless < MOST_ARRAYS:
            before = len(left)
            jobs = self._submit(list(left.values()), directory, pauses)
            over = False
            try:
                while left and not over:
                    over = all(job.done() for job in jobs)  # before the look at the folder: nothing of theirs comes after it
                    for run_id in list(left):
                        ended = ended_elsewhere(RunFolder.of(directory, run_id), pauses.get(run_id))
                        if ended is not None:
                            del left[run_id]
                            # In a job of ours or of another driver: the folder does not tell them apart.
                            done(replace(ended, status="finished") if ended.status == "elsewhere" else ended)
                    if left and not over:
                        time.sleep(LOOK_SECONDS)
            finally:
                if not over:  # interrupted, or there is nothing left to do for jobs that still wait in the queue
                    for job in jobs:
                        job.cancel(check=False)
            for run_id in list(left):
                if not RunFolder.of(directory, run_id, self.claims).is_free():
                    del left[run_id]
                    done(Outcome(run_id, "held"))
            fruitless = fruitless + 1 if len(left) == before else 0
        for run_id in left:
            reason = f"{MOST_ARRAYS} arrays of jobs ended without it; their logs are in {directory / 'slurm'}"
            done(give_up(RunFolder.of(directory, run_id, self.claims), reason))

    def _submit(self, configs: list[RunConfig], directory: Path, pauses: Mapping[str, int]) -> list[Any]:
        logs = directory / "slurm"
        make_directory(logs)
        plan = logs / f"runs-{time.time_ns()}.json"
        with atomic_file(plan) as file:
            file.write(json.dumps([[config.model_dump(mode="json"), pauses.get(config.run_id)] for config in configs]).encode())
        jobs = min(self.jobs, len(configs))
        first = [len(configs) * number // jobs for number in range(jobs)]
        try:
            executor = _submitit().AutoExecutor(folder=logs, cluster=self.cluster)
            executor.update_parameters(name="sparsebench", cpus_per_task=configs[0].recipe.threads * self.processes_per_run)
            executor.update_parameters(**self.parameters)
            submitted: list[Any] = executor.map_array(
                _work, [self._worker()] * jobs, [str(plan)] * jobs, [str(directory)] * jobs, first
            )
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise SparsebenchError(f"submitit: {str(error).strip().partition(chr(10))[0]}") from error
        return submitted


def _work(worker: LocalProcesses, plan: str, directory: str, first: int) -> None:
    """In a job: begin at a run of its own, and take whatever nobody else has."""
    planned = [(RunConfig.model_validate(config), pause_at) for config, pause_at in json.loads(Path(plan).read_bytes())]
    pauses = {config.run_id: pause_at for config, pause_at in planned if pause_at is not None}
    configs = [config for config, _ in planned]
    worker.run(configs[first:] + configs[:first], Path(directory), lambda outcome: None, pauses)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise SparsebenchError(f"SLURM needs submitit ({error}): pip install 'sparsebench[slurm]'") from error
    return submitit
