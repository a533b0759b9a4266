"""What every executor must do with the runs it is given, and how its results are compared with another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import NO_PAUSES, Executor, Outcome
from sparsebench.training.config import RunConfig

__all__ = ["outcomes_of", "pause_and_go_on", "weights"]


def outcomes_of(
    executor: Executor, directory: Path, configs: Sequence[RunConfig], pauses: Mapping[str, int] = NO_PAUSES
) -> dict[str, Outcome]:
    """How each run ended, or paused, told once each."""
    outcomes: dict[str, Outcome] = {}

    def done(outcome: Outcome) -> None:
        assert outcome.run_id not in outcomes
        outcomes[outcome.run_id] = outcome

    executor.run(configs, directory, done, pauses)
    assert set(outcomes) == {config.run_id for config in configs}
    return outcomes


def weights(directory: Path) -> dict[str, str]:
    """What stands for the trained weights of each finished run."""
    folders = [RunFolder(path) for path in (directory / "runs").iterdir() if path.is_dir()]
    return {folder.path.name: folder.read_result().weights_sha256 for folder in folders if folder.status() == "finished"}


def pause_and_go_on(executor: Executor, directory: Path, configs: Sequence[RunConfig]) -> None:
    """Let runs pause at steps 3 and 9, the first of them only once; then train them to the end."""
    for number, step in enumerate((3, 9)):
        pausing = configs[number:]
        outcomes = outcomes_of(executor, directory, configs[number:], {config.run_id: step for config in pausing})
        assert {outcome.status for outcome in outcomes.values()} == {"paused"}
        for config in pausing:
            assert step in RunFolder.of(directory, config.run_id).read_rungs()
    # One that has been so far is not trained again, whoever asks.
    again = outcomes_of(executor, directory, configs[:1], {configs[0].run_id: 3})
    assert again[configs[0].run_id].status == "paused"
    outcomes = outcomes_of(executor, directory, configs)
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    assert set(RunFolder.of(directory, configs[0].run_id).read_rungs()) == {3}
    assert all(not RunFolder.of(directory, config.run_id).checkpoint_path.exists() for config in configs)
