"""Histograms of weights against a naive count, and in the records of runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from short_runs import TECHNIQUES, short

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.storage import load_compressed
from sparsebench.training import histograms
from sparsebench.training.histograms import BINS, weight_histograms
from sparsebench.training.parent import new_weights
from sparsebench.training.run import train
from sparsebench.workloads.registry import WORKLOADS

VALUES = st.one_of(st.just(0.0), st.floats(-8.0, 8.0, width=16), st.floats(-(2.0**-20), 2.0**-20, width=32))


def naive(weights: list[float]) -> list[int]:
    """Each weight goes to the last bin that begins at or below it."""
    kept = [weight for weight in weights if weight != 0.0]
    largest = max(map(abs, kept), default=0.0)
    begins = list(np.linspace(-largest, largest, BINS + 1))[:-1]
    counts = [0] * BINS
    for weight in kept:
        counts[max(place for place, begin in enumerate(begins) if begin <= weight)] += 1
    return counts


@settings(max_examples=60)
@given(st.lists(VALUES, max_size=40), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_weights_are_counted_where_they_lie(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    found = weight_histograms({"a": tensor, "b": tensor}, ["a"])
    assert list(found) == ["a"]
    exact = [float(value) for value in tensor]
    assert list(found["a"].counts) == naive(exact)
    assert found["a"].high == max(map(abs, exact), default=0.0) == -found["a"].low


def test_large_tensors_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a": torch.randn(7, 11, 13, generator=torch.Generator().manual_seed(0))}
    whole = weight_histograms(weights, weights)
    monkeypatch.setattr(histograms, "_AT_ONCE", 10)
    assert weight_histograms(weights, weights) == whole


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_number_are_named(value: float) -> None:
    with pytest.raises(SparsebenchError, match=r"weight 'layer\.weight' holds NaN or an infinity"):
        weight_histograms({"layer.weight": torch.tensor([1.0, value])}, ["layer.weight"])


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_run_records_its_weights_before_and_after(tmp_path: Path, technique: str) -> None:
    config = short(technique)
    folder = RunFolder(tmp_path / "run")
    record = train(config, folder)
    names = [layer.layer for layer in record.points[0].layers]
    assert record.initial_histograms == weight_histograms(new_weights(WORKLOADS.get(config.workload), config.seed), names)
    after = weight_histograms(load_compressed(folder.model_path), names)
    assert {layer.layer: layer.histogram for layer in record.points[0].layers} == after
    for point in record.points:
        for layer in point.layers:
            assert layer.histogram is not None
            assert sum(layer.histogram.counts) == layer.weights - layer.zeros
    assert folder.read_result() == record
