"""Runs that pause at a step and go on: to the same last bit, and what was measured at the pause is that of the training curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from short_runs import STEPS, InterruptedRunError, left_over, short, stop_at, what_must_be_equal

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.rungs import RungRecord, StopRecord
from sparsebench.training import run as module
from sparsebench.training.run import train, train_claimed, train_claimed_to

PAUSES = (2, 8, 16)


@pytest.fixture(scope="module", params=["dense", "magnitude, returning", "variational dropout", "l0"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = RunFolder(tmp_path_factory.mktemp("undisturbed") / "run")
    return request.param, what_must_be_equal(folder, train(short(request.param), folder))


def measured(expected: dict[str, Any], step: int) -> RungRecord:
    (row,) = [row for row in expected["curve"] if row["step"] == step]
    return RungRecord(step=step, validation=row["metric"], sparsity=row["sparsity"])


def test_run_that_pauses_ends_with_the_same_bits(undisturbed: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    technique, expected = undisturbed
    folder = RunFolder(tmp_path / "run")
    for step in PAUSES:
        assert train_claimed_to(short(technique), folder, step) == measured(expected, step)
        assert folder.status() == "started"
    record = train_claimed(short(technique), folder)
    assert what_must_be_equal(folder, record) == expected
    assert folder.read_rungs() == {step: measured(expected, step) for step in PAUSES}
    assert left_over(folder.path) == ["rungs.jsonl"]


def test_run_that_is_interrupted_on_its_way_to_a_pause_measures_the_same(
    undisturbed: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    technique, expected = undisturbed
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train_claimed_to(short(technique), folder, 8, checkpoint_seconds=0.0, observe=stop_at(5))
    assert folder.read_rungs() == {}
    assert train_claimed_to(short(technique), folder, 8) == measured(expected, 8)


def test_run_that_dies_between_its_checkpoint_and_the_measurement_measures_the_same(
    undisturbed: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    technique, expected = undisturbed
    folder = RunFolder(tmp_path / "run")

    def die(*_: object) -> None:
        raise InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(module, "validate", die)
        with pytest.raises(InterruptedRunError):
            train_claimed_to(short(technique), folder, 8)
    assert folder.checkpoint_path.exists()
    assert train_claimed_to(short(technique), folder, 8) == measured(expected, 8)


def test_checkpoint_beyond_the_pause_is_not_measured(undisturbed: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    technique, expected = undisturbed
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short(technique), folder, checkpoint_seconds=0.0, observe=stop_at(STEPS - 2))
    assert train_claimed_to(short(technique), folder, 8) == measured(expected, 8)
    assert what_must_be_equal(folder, train_claimed(short(technique), folder)) == expected


def test_stopped_run_says_so_and_keeps_no_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    rung = train_claimed_to(short("dense"), folder, 8)
    folder.write_stop(StopRecord(step=8, steps=STEPS, rule="too slow", metric="accuracy", validation=rung.validation))
    assert folder.status() == "stopped"
    assert not folder.checkpoint_path.exists()
    assert json.loads(folder.stop_path.read_text()) == {
        "step": 8,
        "steps": STEPS,
        "rule": "too slow",
        "metric": "accuracy",
        "validation": rung.validation,
    }
    # Should it be wanted after all, it begins anew, and there is no trace of the stop.
    train(short("dense"), folder)
    assert folder.status() == "finished"
    assert left_over(folder.path) == ["rungs.jsonl"]


def test_damaged_measurements_are_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.rungs_path.write_text('{"step": 8}\n')
    with pytest.raises(
        SparsebenchError, match=r"^\S+rungs\.jsonl is damaged: delete it and the run's checkpoint\.pt, if there is one$"
    ):
        folder.read_rungs()
