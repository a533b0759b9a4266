"""Processes, facts about the machine, and tables. Imports no torch: what is measured runs in processes of its own."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"


class TrialError(Exception):
    """A measurement could not be made; the message is its last line."""


def run_trial(python: Path | str, script: str, arguments: Sequence[str], threads: int, timeout: float) -> Any:
    """Run a trial in a fresh process of the given Python and read the JSON that it prints last.

    Raises:
        TrialError: It failed, or took longer than `timeout` seconds.
    """
    environment = os.environ | {
        "PYTHONPATH": str(SOURCE),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # What is freed goes back at once, so that peaks are those of what is in use. Times are taken with it retained.
        **({"MALLOC_MMAP_THRESHOLD_": "65536"} if arguments[0].endswith("memory") else {}),
    }
    command = [str(Path(python).absolute()), str(HERE / script), *arguments]
    try:
        # Some packages write their logs where they run.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, cwd=folder)
    except subprocess.TimeoutExpired:
        raise TrialError(f"took longer than {timeout:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        problem = [line for line in done.stderr.strip().splitlines() if line and not line.startswith(" ")]
        raise TrialError(problem[-1][:300] if problem else f"ended with status {done.returncode}")
    return json.loads(lines[-1])


def facts(threads: int) -> dict[str, Any]:
    """When and where: date, processor, cores, Python."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load at start": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def milliseconds(measured: dict[str, float]) -> str:
    """Median (least to greatest)."""
    return f"{_short(measured['median'])} ({_short(measured['min'])}-{_short(measured['max'])})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write what was measured, if a file was asked for; whole or not at all."""
    if path is not None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)
