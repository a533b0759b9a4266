"""Small studies with known answers, written as run folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import LayerRecord, PointRecord, RunRecord, WeightHistogram, canonical_json, short_hash


def layers(*sparsities: float, weights: int = 1000) -> tuple[LayerRecord, ...]:
    return tuple(
        LayerRecord(layer=f"block.{index}.weight", shape=(weights // 10, 10), weights=weights, zeros=round(weights * sparsity))
        for index, sparsity in enumerate(sparsities)
    )


def bell(weights: int, deviation: float, hole: float = 0.0) -> WeightHistogram:
    """About so many weights of a normal distribution, those nearer to zero than `hole` left out."""
    places = [3 * deviation * (2 * (index + 0.5) / 50 - 1) for index in range(50)]
    heights = [math.exp(-0.5 * (place / deviation) ** 2) if abs(place) >= hole else 0.0 for place in places]
    return WeightHistogram(
        low=-3 * deviation, high=3 * deviation, counts=tuple(round(weights * height / sum(heights)) for height in heights)
    )


def with_histograms(record: RunRecord) -> RunRecord:
    """The run as if it had written down how the weights of its layers are distributed."""
    points = []
    for place, found in enumerate(record.points):
        own = tuple(
            layer.model_copy(update={"histogram": bell(layer.weights - layer.zeros, 0.5 + 0.1 * place, 0.2)})
            for layer in found.layers
        )
        points.append(found.model_copy(update={"layers": own}))
    before = {layer.layer: bell(layer.weights, 0.1) for layer in record.points[0].layers}
    return record.model_copy(update={"points": tuple(points), "initial_histograms": before})


def point(
    sparsity: float,
    validation: float | None,
    test: float | None,
    *,
    target: float | None = None,
    threshold: float | None = None,
    layers: tuple[LayerRecord, ...] = (),
    metric: str = "accuracy",
) -> PointRecord:
    metrics: dict[Any, dict[str, float]] = {}
    if validation is not None:
        metrics["validation"] = {metric: validation, "loss": 100.0 - validation}
    if test is not None:
        metrics["test"] = {metric: test, "loss": 100.0 - test}
    return PointRecord(target_sparsity=target, threshold=threshold, sparsity=sparsity, metrics=metrics, layers=layers)


def run(
    method: str,
    parameters: dict[str, Any],
    seed: int,
    *points: PointRecord,
    steps: int = 1500,
    seconds: float = 10.0,
    memory: int | None = 2**20,
    workload: str = "digits",
    metric: str = "accuracy",
) -> RunRecord:
    config = {
        "format": 1,
        "workload": workload,
        "method": method,
        "parameters": parameters,
        "recipe": {"steps": steps, "batch_size": 32},
        "seed": seed,
    }
    return RunRecord(
        run_id=short_hash(config),
        config=config,
        workload=workload,
        method=method,
        seed=seed,
        metric=metric,
        steps=steps,
        seconds=seconds,
        peak_memory_bytes=memory,
        weights_sha256="0" * 64,
        environment={},
        points=points,
    )


def write(directory: Path, records: Iterable[RunRecord], sparsities: Iterable[float] | None = None, **note: Any) -> Path:
    """Write a results folder, with a study.json if `sparsities` are given."""
    records = list(records)
    for record in records:
        # As RunFolder writes them, but without waiting for the disk: these folders need not survive a power failure.
        folder = RunFolder(directory / "runs" / record.run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / "config.json").write_text(canonical_json(record.config), encoding="utf-8")
        folder.result_path.write_text(record.model_dump_json(), encoding="utf-8")
    if sparsities is not None:
        written = {
            "name": "synthetic",
            "workload": "digits",
            "description": "A study with known answers.",
            "note": "",
            "command": "sparsebench study run synthetic",
            "planned_runs": len(records),
            "sparsities": list(sparsities),
            "methods": {"magnitude": {"summary": "Drops the smallest weights.", "paper": "Zhu & Gupta 2017"}},
        }
        (directory / "study.json").write_text(json.dumps(written | note), encoding="utf-8")
    return directory


def fail(directory: Path, record: RunRecord, reason: str) -> None:
    folder = RunFolder(directory / "runs" / record.run_id)
    folder.create(record.config)
    folder.write_failure(reason, "Traceback (most recent call last): ...")


def small_study() -> list[RunRecord]:
    """Three seeds of a dense network, two pruning methods at two sparsities, and variational dropout at two thresholds."""
    records = []
    for seed in range(3):
        records.append(run("dense", {}, seed, point(0.0, 97.0 + seed, 96.0 + seed)))
        for target in (0.8, 0.9):
            for begin in (0, 300):
                drop = 20 * (target - 0.8) + begin / 300
                for method, handicap in (("magnitude", 0.0), ("random", 5.0)):
                    value = 95.0 - drop - handicap + 0.25 * seed
                    found = point(
                        target, value, value - 0.5, target=target, layers=layers(target - 0.05 + 0.01 * seed, target + 0.05)
                    )
                    records.append(run(method, {"sparsity": target, "begin": begin}, seed, found))
        records.append(
            run(
                "variational-dropout",
                {"penalty": 1.0, "thresholds": [1.0, 3.0]},
                seed,
                point(0.95 + 0.001 * seed, 90.0 + seed, 91.0 + 2 * seed, threshold=1.0, layers=layers(0.99, 0.91 + 0.02 * seed)),
                point(0.85, 94.0, 93.0 - seed, threshold=3.0, layers=layers(0.8, 0.9)),
            )
        )
    return records
