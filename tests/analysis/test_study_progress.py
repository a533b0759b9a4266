"""Watching a study: counts, time left and best values from the results folder alone."""

from __future__ import annotations

import os

import pytest
from analysis_studies import fail, point, run, small_study, write

from sparsebench.analysis import progress as progress_module
from sparsebench.analysis.frontiers import best_values
from sparsebench.analysis.progress import read_progress, results_folder, watch
from sparsebench.cli import app
from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder

NOW = 1_000_000.0


def touch(path, seconds_ago):
    os.utime(path, (NOW - seconds_ago, NOW - seconds_ago))


def begin(directory, name, seconds_ago):
    folder = directory / "runs" / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for path in (folder / "config.json", folder):
        touch(path, seconds_ago)


@pytest.fixture
def study(tmp_path):
    """30 finished runs, one every 10 seconds until 10 seconds ago, a failed, a running and a silent one, of 40."""
    records = small_study()
    directory = write(tmp_path / "study", records, [0.8, 0.9], planned_runs=40)
    lost = run("l0", {}, 9, point(0.9, 1.0, 1.0))
    fail(directory, lost, "out of memory")
    touch(RunFolder.of(directory, lost.run_id).failure_path, 5000.0)
    for number, record in enumerate(records):
        touch(RunFolder.of(directory, record.run_id).result_path, 10.0 * (len(records) - number))
    begin(directory, "running", 299.0)
    begin(directory, "silent", 301.0)
    return directory


def test_counts_and_time_left(study):
    found = read_progress(study, NOW)
    assert (found.name, found.planned, found.finished, found.failed, found.running, found.quiet) == ("synthetic", 40, 30, 1, 1, 1)
    # The last twenty ended since the one before them did, 210 seconds ago. Nine runs are left.
    assert found.seconds_left == pytest.approx(9 * 210.0 / 20)
    assert not found.ended


def test_the_first_runs_tell_the_pace_since_the_study_began(tmp_path):
    """Two workers that have just ended their first runs, at the same moment."""
    records = small_study()[:2]
    directory = write(tmp_path / "study", records, [0.8, 0.9], planned_runs=10)
    begin(directory, "running", 10.0)
    for record in records:
        folder = RunFolder.of(directory, record.run_id)
        folder.config_path.write_text("{}")
        touch(folder.config_path, 1200.0)
        touch(folder.result_path, 1.0)
    assert read_progress(directory, NOW).seconds_left == pytest.approx(8 * 1200.0 / 2)


def test_no_time_is_told_where_nobody_works(study):
    later = read_progress(study, NOW + 1000.0)
    assert (later.running, later.quiet, later.seconds_left) == (0, 2, None)


def test_a_folder_without_a_plan_has_no_end(tmp_path):
    found = read_progress(write(tmp_path / "loose", small_study()), NOW)
    assert (found.name, found.planned, found.ended, found.seconds_left) == ("loose", None, False, None)


def test_watching_ends_with_the_study_and_writes_the_page(tmp_path, monkeypatch):
    records = small_study()
    directory = write(tmp_path, records[:-1], [0.8, 0.9], planned_runs=len(records))

    def work(seconds):
        assert seconds == 7.0
        write(directory, records[-1:])

    monkeypatch.setattr(progress_module.time, "sleep", work)
    seen = list(watch(directory, interval=7.0, refresh_page=True))
    assert [snapshot.progress.finished for snapshot in seen] == [len(records) - 1, len(records)]
    assert seen[-1].best == best_values(directory)
    assert seen[-1].page == directory / "report.html"
    assert seen[-1].page.exists()


def test_a_study_whose_first_run_is_not_done_can_be_watched(tmp_path):
    directory = tmp_path / "early"
    (directory / "runs").mkdir(parents=True)
    snapshot = next(watch(directory, interval=1.0, refresh_page=True))
    assert (snapshot.progress.finished, snapshot.best, snapshot.page) == (0, None, None)
    assert not (directory / "report.html").exists()


def test_a_page_is_written_of_failures_alone(tmp_path):
    directory = write(tmp_path, [], [0.8], planned_runs=1)
    lost = directory / "runs" / "lost"
    lost.mkdir(parents=True)
    (lost / "failure.txt").write_text("out of luck")
    snapshot = next(watch(directory, interval=0.0, refresh_page=True))
    assert snapshot.best is None
    assert "out of luck" in snapshot.page.read_text()


def test_the_folder_is_found_by_path_or_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = write(tmp_path / "runs" / "mine", small_study(), [0.8])
    assert results_folder("mine").resolve() == results_folder(str(directory)).resolve() == directory
    with pytest.raises(SparsebenchError, match=r"no results folder 'other', neither here nor in runs; in runs: mine"):
        results_folder("other")


def test_the_command_prints_counts_and_best_values(study, capsys):
    app(["study", "watch", str(study), "--once"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "synthetic: 30 of 40 runs finished, 1 failed" in said
    assert "magnitude" in said
    assert "94.75 ± 0.62" in said
