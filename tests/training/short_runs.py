"""Runs of a second, and what must be equal when two of them are the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import RunRecord
from sparsebench.training.config import RunConfig, resolve
from sparsebench.training.loop import Progress

STEPS = 24

# Sparsity rises so little, and weights move so fast, that some dropped weights return where they may.
PRUNING = {"sparsity": 0.9, "initial_sparsity": 0.85, "begin": "4 steps", "end": "18 steps", "frequency": "2 steps"}
# Gates and noise begin so close to being dropped that thresholds cut something within a few steps.
VARIATIONAL = {"penalty": 3.0, "begin": "2 steps", "end": "12 steps", "thresholds": [3.0, 1.0], "initial_log_sigma2": -5.0}
GATES = {"penalty": 3.0, "begin": "2 steps", "end": "12 steps", "initial_log_alpha": 0.5}

# The four techniques, both policies, every allocation; the dense baseline.
TECHNIQUES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "random, gone": ("random", PRUNING),
    "random, returning": ("random", PRUNING | {"policy": "returning"}),
    "magnitude, returning": ("magnitude", PRUNING | {"policy": "returning"}),
    "magnitude, gone": ("magnitude", PRUNING | {"policy": "gone"}),
    "magnitude, global": ("magnitude-global", PRUNING),
    "magnitude, erdos-renyi-kernel": ("magnitude-erk", PRUNING),
    "snip": ("snip", {"sparsity": 0.9, "batches": 2}),
    "synflow": ("synflow", {"sparsity": 0.9}),
    "variational dropout": ("variational-dropout", VARIATIONAL),
    "l0": ("l0", GATES),
}


def short(technique: str, seed: int = 3, **settings: Any) -> RunConfig:
    method, parameters = TECHNIQUES[technique]
    return resolve("digits", method, parameters, {"steps": STEPS, "learning_rate": 0.03} | settings, seed)


def short_of_workload(workload: str, seed: int = 3) -> RunConfig:
    """The same of another workload than digits, with magnitude pruning."""
    return resolve(workload, "magnitude", PRUNING, {"steps": STEPS, "batch_size": 256}, seed)


def what_must_be_equal(folder: RunFolder, record: RunRecord) -> dict[str, Any]:
    """Everything that a run leaves behind, apart from the time and memory it took."""
    curve = [json.loads(line) for line in folder.curve_path.read_text().splitlines()]
    return {
        "record": record.model_dump(mode="json", exclude={"seconds", "processor_seconds", "peak_memory_bytes"}),
        "curve": [{name: value for name, value in row.items() if name != "seconds"} for row in curve],
        "model": folder.model_path.read_bytes().hex(),
    }


def left_over(path: Path) -> list[str]:
    """Files that a finished run folder must not hold."""
    expected = {"config.json", "curve.jsonl", "model.safetensors", "result.json"}
    return sorted(file.name for file in path.iterdir() if file.name not in expected)


class InterruptedRunError(Exception):
    pass


def stop_at(step: int) -> Callable[[Progress], None]:
    def observe(progress: Progress) -> None:
        if progress.step >= step:
            raise InterruptedRunError

    return observe
