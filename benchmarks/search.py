"""How many runs a search needs to come near to a whole grid: searches over grids that were trained already.

    python benchmarks/search.py --quick                                          # that it works
    python benchmarks/search.py --json search.json --figure docs/search.svg      # all: about an hour on one core
    python benchmarks/search.py --curves runs/search-curves --json search.json --figure docs/search.svg   # Hyperband, too
    python benchmarks/search.py --show search.json --figure docs/search.svg      # tables and figure again

The grid is that of gale2019 on digits, whose results are committed; a search looks up there what it would have trained, so that
many seeds cost nothing and every search sees the same numbers. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from driving import table, write_json
from search_curves import curves_study

from sparsebench.records.choice import sparse_enough
from sparsebench.records.run_folder import RunFolder, Status
from sparsebench.records.rungs import RungRecord
from sparsebench.records.schema import PointRecord, RunRecord
from sparsebench.studies.search.method_search import MethodSearch
from sparsebench.studies.search.settings import HYPERBAND, NSGA_2, RANDOM, TPE, SearchSettings
from sparsebench.studies.spaces import Space
from sparsebench.studies.study_file import Study, each_workload, read_study
from sparsebench.training.config import RunConfig

RESULTS = Path(__file__).parents[1] / "results" / "gale2019-digits" / "results.parquet"
METHODS = ("magnitude", "magnitude-global", "magnitude-erk", "random", "variational-dropout", "l0")
CHECKPOINTS = (7, 14, 21, 28, 35, 42, 56, 70, 84, 98, 112, 126)
SHARE = 0.99
SHUFFLED = "grid, shuffled"
CURVE_METHODS = ("magnitude", "l0")
CURVE_CHECKPOINTS = (5, 10, 15, 20, 30, 40, 50, 60)


@dataclass(frozen=True)
class Table:
    """Runs of one seed that were trained already, as a search asks for them."""

    records: Mapping[str, RunRecord]
    measured: Mapping[str, Mapping[int, RungRecord]]

    def status(self, run_id: str) -> Status:
        return "finished" if run_id in self.records else "new"

    def record(self, run_id: str) -> RunRecord:
        return self.records[run_id]

    def rungs(self, run_id: str) -> Mapping[int, RungRecord]:
        return self.measured.get(run_id, {})


@cache
def committed_grid() -> tuple[Study, Table]:
    """The grid of gale2019 on digits and its results."""
    import pandas as pd

    (study,) = each_workload(read_study("gale2019"), "digits")
    rows = pd.read_parquet(RESULTS)
    rows = rows[rows["primary_metric"] & (rows["seed"] == study.seeds[0])]
    values: dict[str, dict[tuple[float, float | None], dict[str, float]]] = {}
    for run_id, sparsity, threshold, split, value in zip(
        *(rows[column] for column in ("run_id", "sparsity", "threshold", "split", "value")), strict=True
    ):
        point = (float(sparsity), None if pd.isna(threshold) else float(threshold))
        values.setdefault(run_id, {}).setdefault(point, {})[split] = float(value)
    return replace(study, stages=()), Table({run_id: _record(run_id, points) for run_id, points in values.items()}, {})


def _record(run_id: str, points: Mapping[tuple[float, float | None], Mapping[str, float]]) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        config={},
        workload="digits",
        method="",
        seed=0,
        metric="accuracy",
        steps=1,
        seconds=0.0,
        peak_memory_bytes=None,
        weights_sha256="",
        environment={},
        points=tuple(
            PointRecord(
                target_sparsity=None,
                threshold=threshold,
                sparsity=sparsity,
                metrics={split: {"accuracy": value} for split, value in splits.items()},
                layers=(),
            )
            for (sparsity, threshold), splits in points.items()
        ),
    )


@cache
def trained_curves(directory: Path) -> tuple[Study, Table]:
    """The grid of `search_curves.py` and its results, with what was measured on the way."""
    folders = [RunFolder(path) for path in (directory / "runs").iterdir() if path.is_dir()]
    records = {folder.path.name: folder.read_result() for folder in folders}
    return curves_study(), Table(records, {folder.path.name: folder.read_rungs() for folder in folders})


def searched(study: Study, table: Table, method: str, settings: SearchSettings, runs: int) -> tuple[list[RunConfig], list[float]]:
    """What a search proposes, in order, as far as it was trained to the end; and the trainings' worth spent until then."""
    study = replace(study, search=settings, budget=runs)
    spaces = [Space(study, grid) for grid in study.methods if grid.method == method]
    search = MethodSearch(study, method, spaces, table)
    while search.advance():
        pass
    assert search.complete
    finished, spent, total = [], [], 0.0
    for proposal in search.proposals:
        (config,) = proposal.runs
        if proposal.pause_at is None:
            total += 1.0
            finished.append(config)
            spent.append(total)
        else:
            total += proposal.pause_at / config.recipe.steps
    return finished, spent


def shuffled(study: Study, method: str, seed: int) -> list[RunConfig]:
    """The grid in a random order."""
    spaces = [Space(study, grid) for grid in study.methods if grid.method == method]
    found = {config.run_id: config for space in spaces for config in map(space.config, space.combinations())}
    order = sorted(found)
    random.Random(seed).shuffle(order)
    return [found[run_id] for run_id in order]


def areas(study: Study, table: Table, configs: Iterable[RunConfig]) -> list[tuple[float, float]]:
    """After each run, the area under the trade-off curve on the test split and on the validation split, in per cent.

    The curve is that of the study's page: at each sparsity the best point that is sparse enough, chosen on the validation split,
    and 0 where there is none. The area is its mean over the sparsities from the lowest to the highest, by the trapezoidal rule.
    """
    best: dict[float, tuple[float, float, float]] = {}
    found = []
    for config in configs:
        for point in table.record(config.run_id).points:
            for sparsity in study.sparsities:
                if sparse_enough(point.sparsity, sparsity):
                    validation, test = (point.metrics[split]["accuracy"] for split in ("validation", "test"))
                    best[sparsity] = max(best.get(sparsity, (-1.0, 0.0, 0.0)), (validation, point.sparsity, test))
        test, validation = ([best[s][place] if s in best else 0.0 for s in study.sparsities] for place in (2, 0))
        found.append((_area(study.sparsities, test), _area(study.sparsities, validation)))
    return found


def _area(places: Sequence[float], values: Sequence[float]) -> float:
    width = places[-1] - places[0]
    return (
        sum(
            (right - left) * (low + high) / 2.0
            for (left, right), (low, high) in zip(pairwise(places), pairwise(values), strict=True)
        )
        / width
    )


def at(checkpoints: Sequence[int], spent: Sequence[float], values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The values at some numbers of trainings; 0 where none was finished by then."""
    found = []
    for most in checkpoints:
        known = [value for cost, value in zip(spent, values, strict=True) if cost <= most + 1e-9]
        found.append(known[-1] if known else (0.0, 0.0))
    return found


def first_reaching(spent: Sequence[float], values: Sequence[float], wanted: float) -> float | None:
    """How many trainings until a value is reached; None where it never is."""
    return next((cost for cost, value in zip(spent, values, strict=True) if value >= wanted), None)


def one_search(task: tuple[str, str, int, int, Path | None]) -> dict[str, Any]:
    """One method, one way of searching, one seed."""
    method, way, seed, generation, curves = task
    study, results = committed_grid() if curves is None else trained_curves(curves)
    checkpoints = CHECKPOINTS if curves is None else CURVE_CHECKPOINTS
    if way == SHUFFLED:
        configs = shuffled(study, method, seed)[: checkpoints[-1]]
        spent = [float(number + 1) for number in range(len(configs))]
    else:
        sampler, _, stop = way.partition(" + ")
        settings = SearchSettings(sampler, seed, generation, stop or None)
        # Trainings that are stopped early leave room for more configurations.
        most = 3 * checkpoints[-1] if stop else checkpoints[-1]
        configs, spent = searched(study, results, method, settings, most)
    values = areas(study, results, configs)
    whole = areas(study, results, shuffled(study, method, 0))[-1]
    return {
        "method": method,
        "way": way,
        "seed": seed,
        "whole": whole,
        "at": at(checkpoints, spent, values),
        "reached": [first_reaching(spent, [each[split] for each in values], SHARE * whole[split]) for split in (0, 1)],
    }


def measure(
    ways: Sequence[str], methods: Sequence[str], seeds: int, generation: int, workers: int, curves: Path | None
) -> list[Any]:
    """All searches."""
    tasks = [(method, way, seed, generation, curves) for seed in range(seeds) for way in ways for method in methods]
    found = []
    with ProcessPoolExecutor(workers) as pool:
        for number, one in enumerate(pool.map(one_search, tasks)):
            found.append(one)
            if number % 50 == 49:
                print(f"{number + 1} of {len(tasks)} searches", file=sys.stderr, flush=True)
    return found


def _spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    return f"{write(statistics.median(values))} ({write(min(values))}-{write(max(values))})"


def _reached(numbers: Iterable[float | None]) -> str:
    """The median, the least and the greatest; searches that never came so far are above all others."""
    ordered = sorted(float("inf") if number is None else number for number in numbers)
    median, least, most = ordered[(len(ordered) - 1) // 2], ordered[0], ordered[-1]
    shown = ["never" if number == float("inf") else f"{number:.0f}" for number in (median, least, most)]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def print_tables(title: str, searches: Sequence[Mapping[str, Any]], checkpoints: Sequence[int], shown: Sequence[int]) -> None:
    """Median, least and greatest over seeds."""
    methods, ways = (list(dict.fromkeys(one[field] for one in searches)) for field in ("method", "way"))
    print(f"\n### {title}\n")
    for split, name in enumerate(("test", "validation")):
        print(f"Runs until the area on the {name} split is {100 * SHARE:g} % of the whole grid's:\n")
        rows = [
            [
                method,
                *(
                    _reached(one["reached"][split] for one in searches if (one["method"], one["way"]) == (method, way))
                    for way in ways
                ),
            ]
            for method in methods
        ]
        print(table(["method", *ways], rows), "\n")
    for split, name in enumerate(("test", "validation")):
        rows = []
        for method in methods:
            for way in ways:
                own = [one for one in searches if (one["method"], one["way"]) == (method, way)]
                cells = [
                    _spread([100.0 * one["at"][place][split] / one["whole"][split] for one in own], "{:.1f}".format)
                    for place in map(checkpoints.index, shown)
                ]
                rows.append([method, way, *cells])
        print(f"Area under the trade-off curve on the {name} split, in per cent of the whole grid's:\n")
        print(table(["method", "search", *(f"{number} runs" for number in shown)], rows), "\n")


def draw(everything: Mapping[str, Any], path: Path) -> None:
    """Area against runs, a panel for each method: medians over seeds, and the middle half of them."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "sparsebench", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    panels = [
        (f"{method}{suffix}", [one for one in searches if one["method"] == method], checkpoints)
        for searches, checkpoints, suffix in (
            (everything["grid"], CHECKPOINTS, ""),
            (everything.get("curves", []), CURVE_CHECKPOINTS, ", 450 steps"),
        )
        for method in dict.fromkeys(one["method"] for one in searches)
    ]
    columns = 2
    figure, axes = plt.subplots(-(-len(panels) // columns), columns, figsize=(9, 2.6 * -(-len(panels) // columns)), squeeze=False)
    ways = list(dict.fromkeys(one["way"] for part in ("grid", "curves") for one in everything.get(part, [])))
    colours = dict(zip(ways, ("#777777", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"), strict=False))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, searches, checkpoints) in zip(axes.flat, panels, strict=False):
        for way in dict.fromkeys(one["way"] for one in searches):
            own = [one for one in searches if one["way"] == way]
            columns_of = [
                sorted(100.0 * one["at"][place][1] / one["whole"][1] for one in own) for place in range(len(checkpoints))
            ]
            axis.plot(checkpoints, [statistics.median(each) for each in columns_of], color=colours[way], label=way, marker=".")
            low, high = ([each[int(share * (len(each) - 1))] for each in columns_of] for share in (0.25, 0.75))
            axis.fill_between(checkpoints, low, high, color=colours[way], alpha=0.15, linewidth=0)
        axis.axhline(100.0 * SHARE, color="black", linewidth=0.6, linestyle=":")
        axis.set_ylim(94.0, 100.2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("runs" if "steps" not in title else "runs' worth of steps", fontsize=8)
        axis.set_ylabel("% of the grid's area", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7, loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def print_everything(everything: Mapping[str, Any]) -> None:
    print_tables("The grid of gale2019 on digits", everything["grid"], CHECKPOINTS, (14, 28, 56, 126))
    if "curves" in everything:
        print_tables("Trainings stopped early", everything["curves"], CURVE_CHECKPOINTS, (10, 20, 40, 60))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="searches of each kind (default: %(default)s)")
    parser.add_argument("--generation", type=int, default=8, help="configurations proposed at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--curves", type=Path, help="results folder of search_curves.py: compares Hyperband, too")
    parser.add_argument("--quick", action="store_true", help="two seeds of one method")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--figure", type=Path, help="also draw it, as SVG")
    parser.add_argument("--show", type=Path, help="measure nothing, take this file of an earlier call")
    given = parser.parse_args()
    if given.show is not None:
        everything = json.loads(given.show.read_bytes())
    else:
        methods, seeds = (("l0",), 2) if given.quick else (METHODS, given.seeds)
        everything = {"grid": measure((SHUFFLED, RANDOM, TPE, NSGA_2), methods, seeds, given.generation, given.workers, None)}
        if given.curves is not None:
            ways = (RANDOM, f"{RANDOM} + {HYPERBAND}", TPE, f"{TPE} + {HYPERBAND}")
            chosen = ("l0",) if given.quick else CURVE_METHODS
            everything["curves"] = measure(ways, chosen, seeds, given.generation, given.workers, given.curves)
        write_json(given.json, everything)
    print_everything(everything)
    if given.figure is not None:
        draw(everything, given.figure)
