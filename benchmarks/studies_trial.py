"""One measurement of benchmarks/studies.py: digits runs in a loop of this process, or as a study. Prints JSON."""

from __future__ import annotations

import time

begun = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from sparsebench.records.run_folder import RunFolder  # noqa: E402
from sparsebench.studies.executors.local import LocalProcesses  # noqa: E402
from sparsebench.training.config import RunConfig, resolve  # noqa: E402
from sparsebench.training.run import train  # noqa: E402
from sparsebench.training.start_up import set_up_process  # noqa: E402


def configurations(runs: int, threads: int) -> list[RunConfig]:
    """Magnitude pruning, seed after seed."""
    return [resolve("digits", "magnitude", {"sparsity": 0.9}, {"threads": threads}, seed) for seed in range(runs)]


def main(way: str, processes: int, runs: int, directory: Path) -> dict[str, float]:
    """Do the runs and tell how long they took, and what each run after the first of a process took beside its training."""
    side_by_side = 1 if way == "loop" else processes
    configs = configurations(runs, processes if way == "loop" else 1)
    ends: list[tuple[float, str]] = []
    if way == "loop":
        set_up_process()  # as the processes of a study do
        for config in configs:
            train(config, RunFolder.of(directory, config.run_id))
            ends.append((time.perf_counter(), config.run_id))
    else:
        LocalProcesses(processes).run(configs, directory, lambda outcome: ends.append((time.perf_counter(), outcome.run_id)))
    seconds = time.perf_counter() - begun
    # From when every process has ended its first run: what came before is start-up, once in the life of a process.
    counted = [run_id for _, run_id in ends[side_by_side:]]
    training = sum(RunFolder.of(directory, run_id).read_result().seconds for run_id in counted)
    busy = side_by_side * (ends[-1][0] - ends[side_by_side - 1][0])
    return {"seconds": seconds, "beside": (busy - training) / len(counted)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(folder))))
