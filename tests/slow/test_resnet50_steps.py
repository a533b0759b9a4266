"""ResNet-50 at 224 pixels takes real optimizer steps under every method, on JPEG files that worker processes decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_arguments import LEARNING, arguments_of, every_method
from PIL import Image

from sparsebench import fixed_masks, static_sparse_training
from sparsebench.accounting import report
from sparsebench.records.run_folder import RunFolder
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.config import resolve
from sparsebench.training.first_batches import FirstBatches
from sparsebench.training.loop import Progress
from sparsebench.training.run import train
from sparsebench.workloads.images.named_sets import images_workload

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_threads")]

STEPS, BATCH = 2, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty JPEG files of four classes, larger and smaller than what the network is given."""
    place = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, each in (("train", 8), ("val", 2)):
        for label in range(4):
            (place / split / f"class{label}").mkdir(parents=True)
            for number in range(each):
                height, width = random.integers(160, 400, 2)
                coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
                coarse[..., : label % 4] //= 4
                image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
                image.save(place / split / f"class{label}" / f"{number}.jpeg")
    return place


@every_method
def test_resnet_50_takes_steps(folder: Path, method: str) -> None:
    torch.manual_seed(0)
    task = images_workload(f"resnet-50@{folder}")
    model = task.build_model()
    arguments = arguments_of(method, FirstBatches(task, 0, task.recipe.model_copy(update={"batch_size": BATCH})))
    sparsifier = METHODS.get(method).build(**arguments)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(0.01), 0.01, momentum=0.9, nesterov=True, fused=True)
    sparsifier.attach(optimizer)
    first = task.batch(0, 0, BATCH)
    losses = []
    for step in range(STEPS):
        batch = task.batch(0, step, BATCH)
        assert step > 0 or torch.equal(batch.pixels, first.pixels)
        assert batch.pixels.shape == (BATCH, 3, 224, 224)
        loss = task.loss(model, batch, 0.0) + sparsifier.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sparsifier.step == STEPS
    assert np.isfinite(losses).all()
    finished = sparsifier.finalize()
    rows = {row.name: row for row in report(finished).layers}
    assert len(rows) == 53 + 1  # convolutions and the last layer
    if "sparsity" in arguments:
        assert sum(row.zeros for row in rows.values()) / sum(row.weights for row in rows.values()) == pytest.approx(0.8, abs=2e-3)
    elif method not in LEARNING:
        assert not any(row.zeros for row in rows.values())


def test_resnet_50_takes_steps_with_the_masks_of_another_network(folder: Path) -> None:
    """As lottery tickets, networks from scratch and iterative pruning do in studies."""
    task = images_workload(f"resnet-50@{folder}")
    parent = static_sparse_training(sparsity=0.8)
    parent.prepare(task.build_model())
    model = task.build_model()
    sparsifier = fixed_masks(parent.masks())
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(sparsifier.parameter_groups(0.01), 0.01, momentum=0.9)
    sparsifier.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        task.loss(model, task.batch(0, step, BATCH), 0.0).backward()
        optimizer.step()
    assert all(torch.equal(mask, model.get_parameter(name) != 0) for name, mask in parent.masks().items())


VARIATIONAL = {"penalty": 1.0, "end": "2 steps", "thresholds": [3.0], "initial_log_sigma2": -6.0}


@pytest.mark.parametrize(
    ("method", "arguments", "precision"),
    [
        ("magnitude", {"sparsity": 0.9, "end": "2 steps", "frequency": "1 steps"}, "float32"),
        ("variational-dropout", VARIATIONAL, "bfloat16"),
    ],
)
def test_whole_run_is_stopped_and_goes_on_exactly(
    folder: Path, tmp_path: Path, method: str, arguments: dict[str, Any], precision: str
) -> None:
    settings = {"steps": 4, "batch_size": BATCH, "warmup_steps": 0, "threads": 2, "precision": precision}
    config = resolve(f"images:resnet-50@{folder}", method, arguments, settings)
    whole = train(config, RunFolder(tmp_path / "whole"))
    if method == "magnitude":
        assert whole.points[0].sparsity == pytest.approx(0.9, abs=1e-4)
    else:
        assert 0.0 < whole.points[0].sparsity < 1.0
    assert whole.dense_multiply_adds == pytest.approx(4.09e9, rel=0.01)  # torchvision prints 4.09 GFLOPs (multiply-adds)

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, RunFolder(tmp_path / "again"), checkpoint_seconds=0.0, observe=stop)
    assert train(config, RunFolder(tmp_path / "again")).weights_sha256 == whole.weights_sha256
