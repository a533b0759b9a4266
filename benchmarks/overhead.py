"""What sparsebench costs: time, memory and bytes, beside a dense network trained in turns with it.

    python benchmarks/overhead.py --quick
    python benchmarks/overhead.py --networks mlp resnet20 --sections steps --json overhead.json

Prints Markdown tables. What they mean is in docs/benchmarks.md. Every measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driving import TrialError, facts, milliseconds, run_trial, table, write_json

NETWORKS = ["mlp", "resnet20", "transformer-small", "resnet50", "transformer-base"]
MASKED = [
    "magnitude, global, gone",
    "magnitude, uniform, gone",
    "magnitude, uniform, returning",
    "magnitude, uniform, gone, masks of bytes",
    "RigL",
]
FURTHER = [
    "magnitude, Erdos-Renyi-kernel, returning",
    "magnitude, uniform, blocks of 4x4",
    "magnitude, once",
    "random",
    "static",
    "SET",
    "SNFS",
]
STOCHASTIC = ["variational dropout, noise per example", "variational dropout, noise on weights", "L0"]
EVERY = MASKED + FURTHER + STOCHASTIC
CONTROLS = ["dense", "dense again (A/A control)"]
SECTIONS = ["steps", "update", "memory", "sizes"]
# Methods that are timed in one process, where it cannot hold the networks of all: large ones fill the memory, small ones push
# each other out of the processor's caches, which the network of a training has to itself.
TOGETHER = {"mlp": 1, "resnet50": 8, "transformer-base": 4}
# The mask update that the tables are about is of all 25.5 M weights of this network.
UPDATED = "resnet50"


class Measurement:
    """Runs the trials of one table after another and keeps what they found."""

    def __init__(self, threads: int, timeout: float) -> None:
        self.threads, self.timeout = threads, timeout
        self.record: dict[str, Any] = {}

    def trial(self, section: str, network: str, *arguments: str) -> Any:
        """What one trial found, None after a failure, which is told on stderr and recorded."""
        found: Any
        try:
            found = run_trial(sys.executable, "overhead_trial.py", [section, network, *arguments], self.threads, self.timeout)
        except TrialError as problem:
            print(f"{section} {network} {' '.join(arguments)}: {problem}", file=sys.stderr)
            found = {"failed": str(problem)}
        held, name = self.record.setdefault(section, {}).setdefault(network, {}), " ".join(arguments)
        held[f"{name} again" if name in held else name] = found
        return None if "failed" in found else found

    def steps(self, network: str, methods: list[str], repetitions: int, seconds: float) -> Iterator[str]:
        """Whole steps, and the part of them that is the method's."""
        number = TOGETHER.get(network, len(methods))
        groups = [methods[begin : begin + number] for begin in range(0, len(methods), number)]
        limits = (f"--repetitions={repetitions}", f"--seconds={seconds}")
        measured = [self.trial("steps", network, *(f"--method={name}" for name in group), *limits) for group in groups]
        found = [group for group in measured if group is not None]
        if not found:
            return
        least = min(group["steps"]["dense"]["repetitions"] for group in found)
        yield f"\n### Steps: {network}\n"
        header = [
            "",
            "whole step, ms",
            "x dense",
            "hooks and penalty, ms",
            "% of dense",
            "... with a mask update, ms",
            "% at one update in 100",
        ]
        rows = []
        timed = [(name, step, group["hooks"].get(name, {})) for group in found for name, step in group["steps"].items()]
        for name, step, hooks in timed:
            plain, update = hooks.get("plain"), hooks.get("update")
            each = None if plain is None or update is None else 0.99 * plain["share"] + 0.01 * update["share"]
            rows.append(
                [
                    name,
                    milliseconds(step),
                    f"{step['ratio']:.3f}",
                    milliseconds(plain) if plain else "",
                    f"{100 * plain['share']:.2f}" if plain else "",
                    milliseconds(update) if update else "",
                    f"{100 * each:.2f}" if each is not None else "",
                ]
            )
        yield table(header, rows)
        if len(found) == 1:
            yield f"\nMedian (least-greatest) of {least} steps each, in turns."
        else:
            yield f"\nMedian (least-greatest) of {least} steps each or more, in turns; methods in groups, each beside a dense"
            yield "network of its own."

    def update(self, repetitions: int) -> Iterator[str]:
        """One mask update by itself."""
        rows = []
        # RigL chooses by gradients, which an update by itself does not have.
        for method in [*MASKED[:-1], MASKED[0]]:
            arguments = (UPDATED, f"--method={method}", f"--repetitions={repetitions}")
            found, memory = self.trial("update", *arguments), self.trial("update-memory", *arguments)
            if found is not None and memory is not None:
                extra = [f"{memory[part]:.2f}" for part in ("extra_first", "extra", "held_first")]
                title = f"{method}, again (A/A control)" if any(row[0] == method for row in rows) else method
                rows.append([title, f"{found['weights']:,}", milliseconds(found["update"]), *extra])
        yield "\n### One mask update\n"
        yield table(["", "weights", "ms", "peak extra memory, first", "later", "kept after"], rows)

    def memory(self, network: str, methods: list[str]) -> Iterator[str]:
        """Peak memory of training."""
        found = {name: self.trial("memory", network, f"--method={name}") for name in [*CONTROLS, *methods]}
        dense = found[CONTROLS[0]]
        if dense is None:
            return
        yield f"\n### Peak memory: {network}\n"
        rows = [
            [name, f"{held['bytes'] / 2**20:.0f}", f"{held['bytes'] / dense['bytes']:.2f}"]
            for name, held in found.items()
            if held is not None
        ]
        yield table(["", "MiB", "x dense"], rows)

    def sizes(self, network: str, methods: list[str]) -> Iterator[str]:
        """Bytes of what is saved."""
        rows, header = [], ["bytes per sparsified weight", "sparsity"]
        for name in methods:
            found = self.trial("sizes", network, f"--method={name}")
            if found is not None:
                header[2:] = list(found["bytes"])
                each = [f"{size / found['weights']:.3f}" if size is not None else "" for size in found["bytes"].values()]
                rows.append([name, f"{found['sparsity']:.3f}", *each])
        yield f"\n### Saved: {network}\n"
        yield table(header, rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=MASKED + STOCHASTIC, metavar="METHOD")
    parser.add_argument("--every-method", dest="methods", action="store_const", const=EVERY, help="those near to others too")
    parser.add_argument("--threads", type=int, default=2, help="threads of every process (default 2)")
    parser.add_argument("--repetitions", type=int, default=200, help="steps of every method at most (default 200)")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of timed steps for one network (default 60)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a process is given up (default 1800)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--quick", action="store_true", help="the MLP and ResNet-20 only, few repetitions: to see that it works")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.networks = [name for name in chosen.networks if name in ("mlp", "resnet20")]
        chosen.repetitions, chosen.seconds = 5, 5.0
    return chosen


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    chosen = parse(arguments)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    described = facts(chosen.threads) | versions
    print("\n".join(f"- {fact}: {value}" for fact, value in described.items()), flush=True)
    measurement = Measurement(chosen.threads, chosen.timeout)
    for section in chosen.sections:
        for lines in _tables(measurement, section, chosen):
            for line in lines:
                print(line, flush=True)
            write_json(chosen.json, {"facts": described} | measurement.record)


def _tables(measurement: Measurement, section: str, chosen: argparse.Namespace) -> Iterator[Iterator[str]]:
    if section == "update":
        yield measurement.update(2 if chosen.quick else 10)
        return
    for network in chosen.networks:
        if section == "steps":
            yield measurement.steps(network, chosen.methods, chosen.repetitions, chosen.seconds)
        elif section == "memory":
            yield measurement.memory(network, chosen.methods)
        else:
            yield measurement.sizes(network, chosen.methods)


if __name__ == "__main__":
    main()
