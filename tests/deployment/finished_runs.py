"""Runs of a second, finished; and what the command line answers about them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sparsebench import cli
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


def answer(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sparsebench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    text = capfd.readouterr()
    return int(ended.value.code or 0), text.out, text.err
