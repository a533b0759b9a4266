"""What `sparsebench study plan`, `run` and `watch` say of a study with a search."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pretended_runs import finish, read

from sparsebench import cli
from sparsebench.analysis.progress import read_progress
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.rungs import RungRecord, StopRecord
from sparsebench.studies.forecast import Cost, Forecast, forecast_runs, forecast_unproposed
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.sample_runs import Sample, kind_of
from sparsebench.studies.study_runs import StudyRuns

pytest.importorskip("optuna")

STUDY = """
study: searched
workload: digits
seeds: 2
sparsities: [0.5, 0.9]
budget: 20
search: tpe
settings: {steps: 90}
methods:
  magnitude: {begin: {from: 0.0, to: 0.4}}
  l0: {penalty: {from: 0.1, to: 30, scale: log}}
"""


def test_runs_that_are_not_proposed_yet_take_what_the_others_take(tmp_path: Path) -> None:
    study = read(tmp_path, STUDY)
    runs = StudyRuns(study, tmp_path / "results", plan_runs(study))
    magnitude = [run for run in runs.planned if run.method == "magnitude"]
    assert len(magnitude) == 2 * 8
    samples = {kind_of(magnitude[0]): (Sample(0.5, 0.01, 2.0, 1000.0, 500), Sample(0.9, 0.03, 2.0, 200.0, 100))}
    known = forecast_runs(runs.planned, tmp_path, samples)
    later = forecast_unproposed(runs.unproposed, runs.planned, samples)
    # As many at each sparsity: what the known ones take, half as much again.
    assert later["magnitude"].runs == later["magnitude"].unproposed == 2 * 12
    for name in ("seconds", "flops", "file_bytes"):
        assert getattr(later["magnitude"].cost, name) == pytest.approx(1.5 * getattr(known["magnitude"].cost, name))
    assert later["l0"] == Forecast(runs=24, cost=Cost(), unmeasured=24, unproposed=24)
    both = known["magnitude"] + later["magnitude"]
    assert (both.runs, both.todo, both.unproposed) == (40, 40, 24)


def test_stopped_runs_are_not_to_do(tmp_path: Path) -> None:
    study = read(tmp_path, STUDY)
    first, second, *_ = StudyRuns(study, tmp_path / "results", plan_runs(study)).planned
    finish(tmp_path, first)
    folder = RunFolder.of(tmp_path, second.run_id)
    folder.path.mkdir()
    folder.write_rung(RungRecord(step=10, validation=20.0, sparsity=0.0))
    folder.write_stop(StopRecord(step=10, steps=90, rule="slow", metric="accuracy", validation=20.0))
    found = forecast_runs([first, second], tmp_path, {})["magnitude"]
    assert (found.runs, found.finished, found.stopped, found.todo, found.unmeasured) == (2, 1, 1, 0, 0)
    progress = read_progress(tmp_path, 0.0)
    assert (progress.finished, progress.stopped, progress.running, progress.quiet) == (1, 1, 0, 0)


def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["sparsebench", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    assert (caught.value.code or 0, err) == (0, "")
    return out


def test_plan_tells_how_many_runs_there_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "searched.yaml").write_text(STUDY)
    study, out = str(tmp_path / "searched.yaml"), str(tmp_path / "results")
    text = said(capfd, monkeypatch, "study", "plan", study, "--out", out, "--no-calibrate")
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if line.startswith("│")}
    assert rows == {"magnitude": "40", "l0": "40", "in all": "80"}
    assert "\n48 runs to do, or fewer, are proposed by the search as results come" in text
    part = said(capfd, monkeypatch, "study", "plan", study, "--out", out, "--no-calibrate", "--only", "method=l0")
    assert "│ l0     │   16 │" in part
    assert "\nstage grid, what its search is still to propose: planned when the runs are done that decide it" in part
    assert not (tmp_path / "results").exists()
