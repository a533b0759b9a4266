"""What a process that trains gains by its settings: freed memory retained, channels_last, bfloat16.

    python benchmarks/start_up.py allocator --seconds 3 --rounds 3
    python benchmarks/start_up.py formats --threads 1

Prints a Markdown table. Every value is measured in fresh processes, which take turns, back and forth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from driving import TrialError, facts, run_trial, table, write_json

TRIAL = "start_up_trial.py"
IMAGES, PRECISIONS = ["lenet-5", "resnet-8", "resnet-20"], ["float32", "bfloat16"]
Times = dict[str, list[dict[str, Any]]]


def measure(network: str, ways: dict[str, list[str]], threads: int, seconds: float, rounds: int) -> Times:
    """Steps of one network in each of the ways, a fresh process for each in every round."""
    found: Times = {name: [] for name in ways}
    for turn in range(rounds):
        for name in ways if turn % 2 == 0 else reversed(ways):
            given = [network, *ways[name], "--seconds", str(seconds)]
            found[name].append(run_trial(sys.executable, TRIAL, given, threads, 600.0))
    return found


def median(rounds: list[dict[str, Any]], of: str) -> float:
    """Over rounds: of "median", each round's median step in milliseconds, "processor" (the same, mean), "peak" in bytes."""
    return statistics.median(one[of] or 0.0 for one in rounds)


def shown(rounds: list[dict[str, Any]], clock: str) -> str:
    """Median (least and greatest of a round)."""
    times = [one[clock] for one in rounds]
    return f"{statistics.median(times):.3g} ({min(times):.3g}-{max(times):.3g})"


def allocator_row(network: str, precision: str, threads: int, found: Times, clock: str) -> list[str]:
    """With the system's allocator, retained, how many times faster, and the highest memory as a multiple."""
    system, retain = found["system"], found["retain"]
    faster = median(system, clock) / median(retain, clock)
    more = median(retain, "peak") / (median(system, "peak") or 1.0)
    return [network, precision, str(threads), shown(system, clock), shown(retain, clock), f"{faster:.2f}", f"{more:.2f}"]


def formats_row(network: str, threads: int, found: Times, clock: str) -> list[str]:
    """Each way, and how many times faster than the first the best is."""
    times = [median(rounds, clock) for rounds in found.values()]
    return [network, str(threads), *(shown(rounds, clock) for rounds in found.values()), f"{times[0] / min(times):.2f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["allocator", "formats"])
    parser.add_argument("--networks", nargs="+", default=[*IMAGES, "transformer-small"], metavar="NETWORK")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each process (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each row and way (default: 3)")
    parser.add_argument(
        "--clock",
        choices=["median", "processor"],
        default="median",
        help="of a step: its median time, or its mean processor time, which other work on the machine disturbs less (one thread)",
    )
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    given = parser.parse_args()
    about = facts(max(given.threads))
    print(", ".join(f"{name}: {value}" for name, value in about.items()) + "\n")
    record: dict[str, Any] = {"facts": about, "rows": {}}
    rows = []
    for network in given.networks:
        for threads in given.threads:
            if given.section == "allocator":
                for precision in PRECISIONS:
                    ways = {name: ["--precision", precision, "--allocator", name] for name in ("system", "retain")}
                    found = measure(network, ways, threads, given.seconds, given.rounds)
                    rows.append(allocator_row(network, precision, threads, found, given.clock))
                    record["rows"][f"{network} {precision} {threads}"] = found
            elif network in IMAGES:
                ways = {
                    f"{p} {f}": ["--precision", p, "--format", f] for p in PRECISIONS for f in ("contiguous", "channels_last")
                }
                found = measure(network, ways, threads, given.seconds, given.rounds)
                rows.append(formats_row(network, threads, found, given.clock))
                record["rows"][f"{network} {threads}"] = found
            write_json(given.json, record)
    if given.section == "allocator":
        header = ["network", "precision", "threads", "system, ms", "retained, ms", "times faster", "peak memory, x"]
    else:
        header = [
            "network",
            "threads",
            *(f"{p}, {f}, ms" for p in PRECISIONS for f in ("contiguous", "channels_last")),
            "best, x",
        ]
    print(table(header, rows))


if __name__ == "__main__":
    try:
        main()
    except TrialError as problem:
        raise SystemExit(f"a measurement failed: {problem}") from None
