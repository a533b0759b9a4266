"""The longer, not uniform variant of the paper's ResNet-50 recipe, planned on a stand-in for ImageNet of 1,000 classes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import read_study


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    for split, images in (("train", 2), ("val", 1)):
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
