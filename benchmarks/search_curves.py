"""Train a grid on digits and look at every run after a ninth and a third of its steps, for `search.py` to replay Hyperband on.

    python benchmarks/search_curves.py --out runs/search-curves

206 runs of 450 steps, about ten minutes on two cores; stopped at will, the same command goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.search.samplers import RESOURCES, WHOLE
from sparsebench.studies.study_file import Study, read_study

GRID = """
study: search-curves
workload: digits
seeds: 1
sparsities: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]
settings: {steps: 450}
methods:
  magnitude: {begin: [0.0, 0.2, 0.4], end: [0.6, 0.8, 1.0], frequency: [0.005, 0.02]}
  l0: {penalty: [0.03, 0.1, 0.3, 1.0, 3.0], shape: [linear, cubic], begin: [0.0, 0.2, 0.4, 0.6], ramp: [0.2, 0.4]}
"""


def curves_study() -> Study:
    """The grid whose runs are looked at while they train."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "search-curves.yaml"
        path.write_text(GRID, encoding="utf-8")
        return read_study(str(path))


def train_all(directory: Path, workers: int) -> None:
    """Bring all runs to their first pause, then to their second, then to the end."""
    configs = plan_runs(curves_study())
    executor = LocalProcesses(workers)
    for part in (*RESOURCES, None):
        pauses = {} if part is None else {config.run_id: config.recipe.steps * part // WHOLE for config in configs}
        todo = [
            config
            for config in configs
            if (folder := RunFolder.of(directory, config.run_id)).status() != "finished"
            and pauses.get(config.run_id) not in folder.read_rungs()
        ]
        print(f"{len(todo)} runs to {'the end' if part is None else f'{part}/{WHOLE}'}", flush=True)
        executor.run(todo, directory, lambda outcome: None, pauses)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/search-curves"), help="results folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    given = parser.parse_args()
    train_all(given.out, given.workers)
