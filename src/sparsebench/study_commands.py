"""The command line's `study`: say what a study takes, run it, watch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench import terminal
from sparsebench.assignments import parse_assignments
from sparsebench.environment_options import Data, Device
from sparsebench.execution_options import Gpus, Ray, Slurm, SlurmCluster, SlurmSettings, make_executor

if TYPE_CHECKING:
    from sparsebench.studies.sample_runs import Kind, Sample
    from sparsebench.studies.study_file import Study

__all__ = ["app"]

app = typer.Typer(help="Studies: many runs from one file.", no_args_is_help=True)

StudyName = Annotated[str, typer.Argument(help="Path of a study file, or a name from `sparsebench list studies`.")]
WorkloadName = Annotated[str | None, typer.Option("--workload", help="This workload alone, whatever the study's file says.")]
StudySettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Another setting of the recipe, for all methods; repeatable."),
]
StudyOut = Annotated[Path | None, typer.Option("--out", help="Results folder; runs/NAME where left out.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="FIELD=VALUE", help="Only runs with this method, sparsity, ...; A,B for either; repeatable."),
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only the I-th of N shares, which no other share has a run of.")
]


@app.command("plan")
def study_plan(
    study: StudyName,
    workload: WorkloadName = None,
    set_: StudySettings = None,
    data: Data = None,
    out: StudyOut = None,
    only: Only = None,
    shard: Shard = None,
    limit: Annotated[int | None, typer.Option(help="The first runs to do of each workload, at most N.", metavar="N")] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Train a few steps of each method here, and evaluate them, to tell time, FLOPs, disk.",
        ),
    ] = True,
) -> None:
    """Say what a study takes, without running it: runs, finished ones, time, training FLOPs and disk of each method.

    Example: sparsebench study plan quickstart --only method=magnitude
    """
    from sparsebench.training.start_up import set_up_process

    set_up_process()  # before torch is loaded: steps are timed here as workers will take them
    from sparsebench.studies.calibration import cores
    from sparsebench.studies.forecast import Forecast, forecast_runs, forecast_unproposed
    from sparsebench.studies.plan import plan_runs
    from sparsebench.studies.sample_runs import sample_runs
    from sparsebench.studies.selection import EVERYTHING, Selection
    from sparsebench.studies.study_file import GRID
    from sparsebench.studies.study_runs import StudyRuns

    selection = Selection(tuple(only or ()), shard, limit)
    for one, directory in _each_with_folder(study, workload, set_ or [], out):
        runs = StudyRuns(one, directory, plan_runs(one))
        while runs.plan_further():
            pass
        selection.check(runs.planned, complete=not runs.unplanned and not runs.unproposed)
        chosen = selection.of_folder(selection.choose(runs.planned), directory)
        samples: Mapping[Kind, tuple[Sample, ...]] = {}
        if calibrate:
            with terminal.counting(f"calibrating {one.name}", "shortened runs") as counter:
                samples = sample_runs(chosen, begin=counter.begin, done=counter.done)
        forecasts = forecast_runs(chosen, directory, samples)
        unplanned = runs.unplanned
        if selection == EVERYTHING:
            for method, later in forecast_unproposed(runs.unproposed, chosen, samples).items():
                forecasts[method] = forecasts.get(method, Forecast()) + later
        elif runs.unproposed:  # whether a run that is not proposed yet would be chosen, nobody can tell
            unplanned = (f"{GRID}, what its search is still to propose", *unplanned)
        terminal.print_forecast(forecasts, unplanned, cores(), directory)


@app.command("run")
def study_run(
    study: StudyName,
    workload: WorkloadName = None,
    set_: StudySettings = None,
    data: Data = None,
    out: StudyOut = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time; as many as pay on this machine where left out.", min=1)
    ] = None,
    processes_per_run: Annotated[
        int,
        typer.Option(
            help="Processes that train each run together, each with its part of every batch; one CUDA device each.", min=1
        ),
    ] = 1,
    device: Device = None,
    only: Only = None,
    shard: Shard = None,
    limit: Annotated[int | None, typer.Option(help="Train at most this many runs of each workload now.", metavar="N")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed earlier.")] = False,
    run_timeout: Annotated[
        float | None, typer.Option(help="A run that takes longer is ended, and has failed.", metavar="SECONDS")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between the checkpoints of a run.", min=0.0)] = 60.0,
    shared_disk: Annotated[
        bool, typer.Option("--shared-disk", help="Other machines work in the same results folder, all of them with this option.")
    ] = False,
    slurm: Slurm = None,
    slurm_settings: SlurmSettings = None,
    slurm_cluster: SlurmCluster = "slurm",
    ray: Ray = None,
    gpus: Gpus = None,
) -> None:
    """Run all that a study has not run yet, in parallel: on this machine, or with --slurm or --ray on a cluster.

    Example: sparsebench study run quickstart --out runs/quickstart

    Stop it whenever you like: the same command goes on, and runs nothing that is done. Two at once share the work.
    """
    from sparsebench.studies.plan import plan_runs
    from sparsebench.studies.run_study import run_study
    from sparsebench.studies.selection import Selection

    selection = Selection(tuple(only or ()), shard, limit)
    executor = make_executor(
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        run_timeout=run_timeout,
        shared_disk=shared_disk,
        processes_per_run=processes_per_run,
        slurm=slurm,
        slurm_settings=slurm_settings or (),
        slurm_cluster=slurm_cluster,
        ray=ray,
        gpus=gpus,
    )
    failed = False
    chosen = _each_with_folder(study, workload, set_ or [], out)
    for later, _ in chosen[1:]:
        plan_runs(later)  # what is wrong with it must be known before the first one is run
    for one, directory in chosen:
        with terminal.study_progress(one.name) as progress:
            summary = run_study(
                one,
                directory,
                executor,
                selection=selection,
                retry_failed=retry_failed,
                begin=progress.begin,
                done=progress.done,
            )
        terminal.print_summary(summary, directory)
        failed = failed or bool(summary.failed)
    if failed:
        raise typer.Exit(1)


@app.command("watch")
def study_watch(
    results: Annotated[str, typer.Argument(metavar="DIR|NAME", help="Results folder, or the name of one in runs/.")],
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and do not wait.")] = False,
    refresh_page: Annotated[
        bool, typer.Option("--refresh-page", help="Write report.html anew, too, as runs come to an end.")
    ] = False,
) -> None:
    """Show how a study comes along: runs done, running, failed, the time left, the best values so far.

    Example: sparsebench study watch quickstart --refresh-page

    It reads the results folder and disturbs nobody who works in it, and ends when all runs have ended.
    """
    from itertools import islice

    from sparsebench.analysis.progress import results_folder, watch

    snapshots = watch(results_folder(results), interval=interval, refresh_page=refresh_page)
    terminal.show_snapshots(islice(snapshots, 1) if once else snapshots)


def _each_with_folder(study: str, workload: str | None, settings: Sequence[str], out: Path | None) -> list[tuple[Study, Path]]:
    """A study of each workload, and its results folder."""
    from sparsebench.studies.study_file import each_workload, read_study, with_settings

    changed = with_settings(read_study(study), parse_assignments(settings, "--set", "--set steps=1000"))
    chosen = each_workload(changed, workload)
    return [(one, Path("runs") / one.name if out is None else out if len(chosen) == 1 else out / one.name) for one in chosen]
