"""Where the command line lets the runs of a study train."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsebench.cli import main
from sparsebench.execution_options import make_executor
from sparsebench.records.claims import Locks
from sparsebench.records.leases import Leases
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.executors.ray_tasks import RayTasks
from sparsebench.studies.executors.slurm import SlurmJobs

DEFAULTS = {
    "workers": None,
    "checkpoint_seconds": 7.0,
    "run_timeout": 9.0,
    "shared_disk": False,
    "processes_per_run": 2,
    "slurm": None,
    "slurm_settings": (),
    "slurm_cluster": "slurm",
    "ray": None,
    "gpus": None,
}
STUDY = "study: two\nworkload: digits\nseeds: 1\nsparsities: [0.5]\nsettings: {steps: 8}\nmethods: {dense: {}, magnitude: {}}\n"


@pytest.fixture
def study(tmp_path: Path) -> str:
    file = tmp_path / "two.yaml"
    file.write_text(STUDY)
    return str(file)


def test_this_machine_unless_a_cluster_is_named():
    assert make_executor(**DEFAULTS | {"workers": 3}) == LocalProcesses(3, 7.0, 9.0, Locks(), 2)
    assert make_executor(**DEFAULTS | {"shared_disk": True}).claims == Leases()


def test_slurm_jobs_get_what_slurm_is_told():
    given = {"slurm": 5, "slurm_settings": ["timeout_min=240", "slurm_partition=cpu"], "slurm_cluster": "local"}
    parameters = {"timeout_min": 240, "slurm_partition": "cpu"}
    assert make_executor(**DEFAULTS | given) == SlurmJobs(5, 7.0, 9.0, parameters, "local", processes_per_run=2)


def test_ray_tasks_get_address_and_gpus():
    given = {"ray": "auto", "gpus": 0.5, "processes_per_run": 1}
    assert make_executor(**DEFAULTS | given) == RayTasks("auto", 0.5, 9.0, Locks(), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slurm", "2", "--ray", "auto"], "--slurm and --ray: expected one of them"),
        (["--slurm", "2", "--workers", "2"], "--slurm and --workers: expected one of them"),
        (["--ray", "auto", "--workers", "2"], "--ray and --workers: expected one of them"),
        (["--gpus", "1"], "--gpus: expected together with --ray"),
        (["--slurm-set", "mem_gb=4"], "--slurm-set: expected together with --slurm"),
        (["--slurm-cluster", "local"], "--slurm-cluster: expected together with --slurm"),
        (["--slurm", "1", "--slurm-cluster", "pbs"], "--slurm-cluster 'pbs': expected one of slurm, local, debug"),
        (["--slurm", "1", "--slurm-set", "mem_gb"], "--slurm-set 'mem_gb': expected NAME=VALUE, such as timeout_min=240"),
        (["--slurm", "1", "--slurm-set", "mem_gb=[4"], "--slurm-set 'mem_gb=[4': '[4' is no value"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(options, message, study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sparsebench", "study", "run", study, "--out", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def in_all(printed: str) -> list[str]:
    """Runs, finished, failed and to do, as a plan prints them."""
    (line,) = (line for line in printed.splitlines() if "in all" in line)
    return [cell.strip() for cell in line.split("│")[2:6]]


# submitit leaves its log files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_study_runs_as_jobs(study, tmp_path):
    from sparsebench.cli import app

    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["study", "plan", study, "--out", str(out), "--no-calibrate", "--limit", "1"])
    assert in_all(answer.output) == ["1", "0", "0", "1"]
    answer = CliRunner().invoke(app, ["study", "run", study, "--out", str(out), "--slurm", "1", "--slurm-cluster", "debug"])
    assert answer.exit_code == 0, answer.output
    assert len(list(out.glob("runs/*/result.json"))) == 2
    answer = CliRunner().invoke(app, ["study", "plan", study, "--out", str(out), "--no-calibrate", "--limit", "1"])
    assert "dense" not in answer.output
    assert "magnitude" not in answer.output
