"""What a study costs beside its training, and what several processes bring: runs on digits, in turns.

    python benchmarks/studies.py
    python benchmarks/studies.py --runs 6 --rounds 1

Prints a Markdown table. Each row is measured in a fresh process, start-up and imports included, in every round once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from driving import TrialError, facts, run_trial, table, write_json

TRIAL = "studies_trial.py"


def measure(runs: int, rounds: int) -> dict[str, Any]:
    """What every way of doing the runs took, in each round."""
    cores = os.cpu_count() or 1
    ways = {
        f"one process with {cores} threads, run after run": (["loop", str(cores)], cores),
        f"{cores} processes with 1 thread each, as a study": (["study", str(cores)], 1),
        "one process with 1 thread, as a study": (["study", "1"], 1),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in ways if turn % 2 == 0 else reversed(ways):
            arguments, threads = ways[name]
            found[name].append(run_trial(sys.executable, TRIAL, [*arguments, str(runs)], threads, 3600.0))
    return {"facts": facts(cores), "runs": runs, "ways": found}


def print_table(measured: dict[str, Any]) -> None:
    """The medians over rounds."""
    ways, runs = measured["ways"], measured["runs"]
    plain = next(iter(ways.values()))
    rows = []
    for name, rounds in ways.items():
        hours = [3600.0 * runs / one["seconds"] for one in rounds]
        ratios = [base["seconds"] / one["seconds"] for base, one in zip(plain, rounds, strict=True)]
        beside = [one["beside"] for one in rounds]
        rows.append(
            [name, f"{statistics.median(hours):.0f}", f"{statistics.median(ratios):.2f}", f"{statistics.median(beside):.2f}"]
        )
    print(", ".join(f"{name}: {value}" for name, value in measured["facts"].items()))
    print(f"\n{runs} runs of digits, {len(plain)} rounds; medians\n")
    print(table(["", "runs an hour", "x the first row", "seconds of a run beside its training"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="runs in each measurement (default: 12)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    given = parser.parse_args()
    try:
        everything = measure(given.runs, given.rounds)
    except TrialError as problem:
        raise SystemExit(f"a measurement failed: {problem}") from None
    print_table(everything)
    write_json(given.json, everything)
