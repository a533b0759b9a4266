"""Options of the command line that say where the runs of a study train, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from sparsebench.assignments import parse_assignments
from sparsebench.errors import SparsebenchError

if TYPE_CHECKING:
    from sparsebench.studies.executors.executor import Executor

__all__ = ["Gpus", "Ray", "Slurm", "SlurmCluster", "SlurmSettings", "make_executor"]

Slurm = Annotated[
    int | None,
    typer.Option("--slurm", metavar="JOBS", help="In an array of so many SLURM jobs, on a disk that all of them see.", min=1),
]
SlurmSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm-set",
        metavar="NAME=VALUE",
        help="What SLURM is told of each job, by submitit's names: timeout_min=240, slurm_partition=cpu; repeatable.",
    ),
]
SlurmCluster = Annotated[
    str, typer.Option("--slurm-cluster", help='"slurm"; "local" tries a study out in processes of this machine, "debug" in one.')
]
Ray = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help='As tasks of a Ray cluster: "auto", HOST:PORT, ray://HOST:PORT.')
]
Gpus = Annotated[
    float | None, typer.Option("--gpus", help="GPUs of each run on the Ray cluster, or a fraction of one.  [default: 0]", min=0.0)
]


def make_executor(
    *,
    workers: int | None,
    checkpoint_seconds: float,
    run_timeout: float | None,
    shared_disk: bool,
    processes_per_run: int,
    slurm: int | None,
    slurm_settings: Sequence[str],
    slurm_cluster: str,
    ray: str | None,
    gpus: float | None,
) -> Executor:
    """The executor that options of `study run` ask for: processes of this machine, SLURM jobs or Ray tasks.

    Raises:
        SparsebenchError: Options that do not go together, or a value that is not of its form; the message names them.
    """
    from sparsebench.records.claims import Locks
    from sparsebench.records.leases import Leases

    given = {
        "--slurm": slurm is not None,
        "--ray": ray is not None,
        "--workers": workers is not None,
        "--slurm-set": bool(slurm_settings),
        "--slurm-cluster": slurm_cluster != "slurm",
        "--gpus": gpus is not None,
    }
    for option, other in (("--slurm", "--ray"), ("--slurm", "--workers"), ("--ray", "--workers")):
        if given[option] and given[other]:
            raise SparsebenchError(f"{option} and {other}: expected one of them")
    for option, needed in (("--slurm-set", "--slurm"), ("--slurm-cluster", "--slurm"), ("--gpus", "--ray")):
        if given[option] and not given[needed]:
            raise SparsebenchError(f"{option}: expected together with {needed}")
    claims = Leases() if shared_disk else Locks()
    if slurm is not None:
        from sparsebench.studies.executors.slurm import CLUSTERS, SlurmJobs

        cluster = next((known for known in CLUSTERS if known == slurm_cluster), None)
        if cluster is None:
            raise SparsebenchError(f"--slurm-cluster {slurm_cluster!r}: expected one of {', '.join(CLUSTERS)}")
        settings = parse_assignments(slurm_settings, "--slurm-set", "timeout_min=240", yaml.safe_load)
        return SlurmJobs(slurm, checkpoint_seconds, run_timeout, settings, cluster, processes_per_run=processes_per_run)
    if ray is not None:
        from sparsebench.studies.executors.ray_tasks import RayTasks

        return RayTasks(ray, gpus or 0.0, run_timeout, claims, processes_per_run)
    from sparsebench.studies.executors.local import LocalProcesses

    return LocalProcesses(workers, checkpoint_seconds, run_timeout, claims, processes_per_run)
