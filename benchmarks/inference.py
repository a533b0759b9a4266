"""How fast finished sparse networks run on the CPU, beside dense ones in every runtime that is installed.

    python benchmarks/inference.py --quick
    python benchmarks/inference.py --json inference.json --figure docs/inference.svg
    python benchmarks/inference.py --show inference.json --figure docs/inference.svg

Prints Markdown tables; what they mean is in docs/benchmarks.md. All of a row take turns in one process.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from driving import facts, write_json
from inference_cases import NETWORK_CASES, Case, layer_cases, missing, pruned
from inference_runtimes import RUNTIMES, Dense, dense_ways, installed
from inference_tables import SECTIONS, draw, show
from measuring import elapsed

from sparsebench.inference import kernel_path
from sparsebench.training.start_up import set_up_process

SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98]
# Seconds between two runtimes: threads of the one before may spin for so long, on the cores that the next one needs.
PAUSE = 0.05
# So long a way runs untimed before it is timed, at least once: after a pause threads wake only slowly. What takes longer than
# LONG need not: they are awake after a small part of it.
AWAKE, LONG = 0.02, 0.1
PACKAGES = ["torch", "onnxruntime", "openvino", "nncf", "sparselab"]


def after_a_pause(ways: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each way, all taking turns; each runs untimed before, after a pause.

    Every runtime has threads of its own that go on spinning after their work: a pause lets them fall asleep, and what is not
    timed wakes those that come next.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    begin = time.perf_counter()
    for count in range(rounds):
        for name in ways if count % 2 == 0 else reversed(list(ways)):
            time.sleep(PAUSE)
            awake = time.perf_counter() + (AWAKE if min(times[name], default=0.0) < LONG else 0.0)
            while time.perf_counter() < awake:
                ways[name]()
            times[name].append(elapsed(ways[name]))
        if count >= 2 and time.perf_counter() - begin > seconds:
            break
    return times


def measure(case: Case, section: str, sparsities: list[float], threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Time one case in every way there is."""
    inputs = case.inputs()
    begin = time.perf_counter()
    dense = dense_ways(Dense(case, pruned(case.build(), 0.0), inputs, threads), say)
    prepared = time.perf_counter()
    say(f"{case.title}: {prepared - begin:.0f} s for the dense networks")
    ways: dict[tuple[str, str], Callable[[], Any]] = {("dense", name): way for name, way in dense.items()}
    layers: dict[str, dict[str, str]] = {}
    for name, make in case.sparse_ways(inputs).items():
        for sparsity in sparsities:
            network = make(sparsity)
            ways[name, str(sparsity)] = case.way(network, inputs)
            choices = getattr(network, "sparse_choices", ())
            layers.setdefault(name, {})[str(sparsity)] = f"{sum(choice.sparse for choice in choices)} of {len(choices)}"
    compiled = time.perf_counter()
    say(f"{case.title}: {compiled - prepared:.0f} s for the sparse ones")
    times = after_a_pause(ways, rounds, seconds)
    say(f"{case.title}: {time.perf_counter() - compiled:.0f} s timed")
    sparse: dict[str, dict[str, list[float]]] = {}
    for (name, sparsity), values in times.items():
        if name != "dense":
            sparse.setdefault(name, {})[sparsity] = values
    return {
        "section": section,
        "title": case.title,
        "dense": {name: times["dense", name] for name in dense},
        "precisions": {name: RUNTIMES[name].precision for name in dense},
        "sparse": sparse,
        "sparse layers": layers,
    }


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all that was chosen; what is measured is written as soon as it is there."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if find_spec(name)}
    described = facts(chosen.threads) | versions | {"kernels": kernel_path()}
    record: dict[str, Any] = {"facts": described, "cases": []}
    say(f"dense in {', '.join(installed())}")
    cases = [("layers", case) for case in layer_cases() if "layers" in chosen.sections and chosen.only in case.title]
    cases += [("networks", case) for case in NETWORK_CASES if "networks" in chosen.sections and chosen.only in case.title]
    if chosen.quick:
        cases = [next(one for one in cases if one[0] == section) for section in chosen.sections]
    for section, case in cases:
        reason = missing(case)
        if reason is not None:
            say(f"{case.title} is left out: {reason}")
            continue
        with torch.inference_mode():
            seconds = chosen.seconds / 2 if case.is_layer else chosen.seconds
            record["cases"].append(measure(case, section, chosen.sparsities, chosen.threads, chosen.repetitions, seconds))
        write_json(chosen.json, record)
        gc.collect()
    return record


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--only", default="", metavar="TEXT", help='only rows with this in their name, such as "ResNet-50"')
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES, metavar="FRACTION", help="such as 0.9 0.95")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: as many as there are cores)")
    parser.add_argument("--repetitions", type=int, default=100, help="rounds of a row at most (default 100)")
    parser.add_argument("--seconds", type=float, default=6, help="seconds of a network, half as many of a layer (default 6)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--show", type=Path, metavar="JSON", help="measure nothing: print the tables of an earlier run")
    parser.add_argument("--figure", type=Path, help="draw the networks into this file, .svg or .png")
    parser.add_argument("--quick", action="store_true", help="one layer and the MLP at 90 %%: to see that it works")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.seconds, chosen.sparsities = min(chosen.seconds, 1.0), [0.9]
    return chosen


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, draw."""
    chosen = parse(arguments)
    set_up_process()
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)
    record = run(chosen) if chosen.show is None else json.loads(chosen.show.read_text())
    print(show(record))
    if chosen.figure is not None:
        draw(record, chosen.figure)


if __name__ == "__main__":
    main()
