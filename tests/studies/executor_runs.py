"""What every executor must do with the runs it is given, and how its results are compared with another's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import Executor, Outcome
from sparsebench.training.config import RunConfig

__all__ = ["outcomes_of", "weights"]


def outcomes_of(executor: Executor, directory: Path, configs: Sequence[RunConfig]) -> dict[str, Outcome]:
    """How each run ended, told once each."""
    outcomes: dict[str, Outcome] = {}

    def done(outcome: Outcome) -> None:
        assert outcome.run_id not in outcomes
        outcomes[outcome.run_id] = outcome

    executor.run(configs, directory, done)
    assert set(outcomes) == {config.run_id for config in configs}
    return outcomes


def weights(directory: Path) -> dict[str, str]:
    """What stands for the trained weights of each finished run."""
    folders = [RunFolder(path) for path in (directory / "runs").iterdir() if path.is_dir()]
    return {folder.path.name: folder.read_result().weights_sha256 for folder in folders if folder.status() == "finished"}
