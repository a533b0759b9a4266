"""Several drivers at one study: what another one holds is looked at again until it has ended or is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep

from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import Done, Executor, Outcome, ended_elsewhere
from sparsebench.training.config import RunConfig

__all__ = ["run_shared"]

LOOK_SECONDS = 1.0


def run_shared(executor: Executor, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: Mapping[str, int]) -> None:
    """Train configurations, beside other drivers that may be at the same study, until all of them have ended or paused.

    Args:
        executor: Trains them.
        configs: What to train.
        directory: The results folder.
        done: Called as each run ends, by whichever driver; never with the status "held".
        pauses: After how many steps runs are to pause, by their ids.
    """
    waiting = {config.run_id: config for config in configs}

    def ended(outcome: Outcome) -> None:
        if outcome.status != "held":
            del waiting[outcome.run_id]
            done(outcome)

    executor.run(configs, directory, ended, pauses)
    while waiting:
        sleep(LOOK_SECONDS)
        free = []
        for run_id, config in list(waiting.items()):
            folder = RunFolder.of(directory, run_id, executor.claims)
            outcome = ended_elsewhere(folder, pauses.get(run_id))
            if outcome is not None:
                ended(outcome)
            elif folder.is_free():
                free.append(config)
        if free:
            executor.run(free, directory, ended, pauses)
