"""What the study `quickstart` must find on digits, over five seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sparsebench.analysis.frontiers import Frontiers, Point, find_frontiers
from sparsebench.analysis.study_data import load_study
from sparsebench.records.choice import best_candidate
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.run_study import run_study
from sparsebench.studies.study_file import Study, read_study

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2, 3, 4)
METHODS = ("dense", "random", "magnitude", "variational-dropout", "l0")


def five_seeds(study: Study) -> Study:
    """The shipped study's own grids and settings, at the two sparsities and the methods asked about here."""
    grids = tuple(grid for grid in study.methods if grid.method in METHODS)
    assert {grid.method for grid in grids} == set(METHODS)
    return dataclasses.replace(study, seeds=SEEDS, sparsities=(0.95, 0.98), methods=grids)


@pytest.fixture(scope="module")
def frontiers(tmp_path_factory: pytest.TempPathFactory) -> Frontiers:
    directory: Path = tmp_path_factory.mktemp("digits")
    summary = run_study(five_seeds(read_study("quickstart")), directory, LocalProcesses(workers=2))
    assert summary.failed == {}
    return find_frontiers(load_study(directory))


def value(frontiers: Frontiers, method: str, sparsity: float) -> Point:
    """The best point by validation with at least that sparsity."""
    point = best_candidate([point for point in frontiers.points if point.method == method], sparsity)
    assert point is not None, f"no point of {method} has a sparsity of {sparsity}"
    assert point.seeds == SEEDS
    return point


def test_dense_network_has_98_percent(frontiers: Frontiers) -> None:
    assert value(frontiers, "dense", 0.0).test.mean >= 98.0


@pytest.mark.parametrize(("sparsity", "points"), [(0.95, 3.0), (0.98, 20.0)])
def test_magnitude_beats_random(frontiers: Frontiers, sparsity: float, points: float) -> None:
    magnitude, random = (value(frontiers, method, sparsity).test.mean for method in ("magnitude", "random"))
    assert magnitude - random >= points


@pytest.mark.parametrize(("method", "sparsity", "accuracy"), [("variational-dropout", 0.95, 97.0), ("l0", 0.90, 95.0)])
def test_learned_sparsity_is_high_and_accurate(frontiers: Frontiers, method: str, sparsity: float, accuracy: float) -> None:
    """PEERS 22: with the settings that the package ships."""
    point = value(frontiers, method, sparsity)
    assert point.sparsity >= sparsity
    assert point.test.mean >= accuracy
