"""Runs of a second, finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsebench.records.run_folder import RunFolder
from sparsebench.training.config import resolve
from sparsebench.training.run import run_folder, train

TIMES = {"begin": "2 steps", "end": "8 steps", "frequency": "2 steps"}


def finished(directory: Path, method: str = "magnitude", seed: int = 0, **parameters: Any) -> RunFolder:
    given = {"sparsity": 0.9} | TIMES | parameters if method == "magnitude" else parameters
    config = resolve("digits", method, given, {"steps": 10}, seed)
    folder = run_folder(directory, config)
    train(config, folder)
    return folder
