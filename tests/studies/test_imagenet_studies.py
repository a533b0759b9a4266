"""The studies of ResNet-50, planned on a stand-in for ImageNet of 1,000 classes."""

from __future__ import annotations

import collections
import io
import itertools
from pathlib import Path

import pytest
from PIL import Image

from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import read_study


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    for split, images in (("train", 5), ("val", 1)):
        for label in range(1000):
            folder = tmp_path / "imagenet" / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(images):
                (folder / f"{number}.JPEG").write_bytes(file.getvalue())
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path))


def test_it_is_what_the_paper_says_of_its_best_curve(imagenet):
    configs = plan_runs(read_study("imagenet-extended"))
    assert {config.recipe.steps for config in configs} == {192_000}
    assert {(config.method, config.target_sparsity, config.recipe.label_smoothing) for config in configs} == {
        (method, sparsity, smoothing)
        for method, sparsities in (("dense", [None]), ("magnitude", [0.8, 0.9, 0.95, 0.98]))
        for sparsity in sparsities
        for smoothing in (0.0, 0.1)
    }
    for config in configs:
        if config.method == "magnitude":
            assert config.parameters["allocation"] == {"conv1.weight": 0.0, "fc.weight": 0.8}
            assert [config.parameters[name] for name in ("begin", "end", "frequency")] == [30_000, 150_000, 2_000]


def test_the_grids_are_those_of_the_authors_files(imagenet):
    configs = plan_runs(read_study("gale2019-resnet50"))
    counts = collections.Counter(config.method for config in configs)
    assert counts == {"dense": 2, "magnitude": 324, "random": 324, "variational-dropout": 162, "l0": 324}
    assert {config.recipe.steps for config in configs} == {128_000}
    assert {config.recipe.weight_decay for config in configs if config.method != "l0"} == {1e-4}
    by_method = {method: [config for config in configs if config.method == method] for method in counts}
    times = ("begin", "end", "frequency")
    for method, begins, ends in (
        ("magnitude", (8_000, 20_000, 40_000), (68_000, 76_000, 100_000)),
        ("random", (0, 8_000, 20_000), (40_000, 68_000, 76_000)),
    ):
        found = {tuple(config.parameters[time] for time in times) for config in by_method[method]}
        assert found == set(itertools.product(begins, ends, (2_000, 4_000, 8_000)))
        assert {config.target_sparsity for config in by_method[method]} == {0.5, 0.7, 0.8, 0.9, 0.95, 0.98}
    assert {config.parameters["penalty"] for config in by_method["variational-dropout"]} == {
        0.01,
        0.03,
        0.05,
        0.1,
        0.3,
        0.5,
        1.0,
        10.0,
        100.0,
    }
    assert {config.parameters["initial_log_sigma2"] for config in by_method["variational-dropout"]} == {-15.0}
    gates = collections.Counter(config.parameters["initial_log_alpha"] for config in by_method["l0"])
    assert gates == {0.847: 80, 2.197: 80, 2.95: 84, 4.6: 80}  # two weight decays, two smoothings; their file lacks one row
