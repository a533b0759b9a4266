"""A study of the workload `fragile`, run by the command line in processes of its own; what its tests look at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sparsebench.records.query import query

__all__ = ["Lab", "make_lab", "wait_for", "workers_of"]

STUDY = """
study: fragile
workload: fragile
seeds: {seeds}
sparsities: [0.5]
methods:
  magnitude: {{begin: 0.2, end: 0.8, frequency: 0.1, policy: returning}}
"""
TABLE = "select * exclude (seconds, processor_seconds, peak_memory_bytes) from results order by seed, split, metric"


@dataclass
class Lab:
    """A folder with a plugin that brings the workload `fragile`, and one with results."""

    path: Path

    @property
    def results(self) -> Path:
        return self.path / "results"

    def environment(self, mishaps: dict[str, str]) -> dict[str, str]:
        log = self.path / "log"
        log.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [str(self.path / "plugin"), os.environ.get("PYTHONPATH", "")]))
        return os.environ | {"PYTHONPATH": path, "FRAGILE": json.dumps(mishaps), "FRAGILE_LOG": str(log)}

    def command(self, *arguments: str) -> list[str]:
        program = str(Path(sys.executable).with_name("sparsebench"))
        study = ["study", "run", str(self.path / "fragile.yaml"), "--out", str(self.results)]
        return [program, *study, "--workers", "2", "--checkpoint-seconds", "0", *arguments]

    def run(self, mishaps: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(mishaps), capture_output=True, text=True, timeout=240, check=False
        )

    def steps(self, seed: int, rank: int = 0) -> list[int]:
        name = f"{seed}.{rank}" if rank else str(seed)
        return [int(line) for line in (self.path / "log" / name).read_text().split()]

    def table(self) -> pd.DataFrame:
        return query(self.results, TABLE)

    def folder(self, seed: int) -> Path:
        (found,) = [
            file.parent for file in self.results.glob("runs/*/config.json") if json.loads(file.read_bytes())["seed"] == seed
        ]
        return found


def make_lab(path: Path, seeds: list[int]) -> Lab:
    plugin = path / "plugin"
    information = plugin / "fragile-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[sparsebench.workloads]\nfragile = fragile_workload:FRAGILE\n")
    shutil.copy(Path(__file__).with_name("fragile_workload.py"), plugin)
    (path / "fragile.yaml").write_text(STUDY.format(seeds=seeds))
    return Lab(path)


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def workers_of(driver: int) -> list[int]:
    """Process ids of the driver's workers."""
    found = []
    for children in Path(f"/proc/{driver}/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return sorted(found)
