"""What workloads show of how their networks are used: the same examples, prepared as evaluation prepares them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_toys import TOY, prepared, toy_workload
from PIL import Image
from torch import nn

from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.images.named_sets import images_workload
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.translation.batches import TokenBatch
from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.tokens import BEGIN, END, PADDING
from sparsebench.workloads.workload import ShowsUse, Workload


class Recorder(nn.Module):
    """Keeps what a network is called with in evaluation."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.seen = outputs, []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels)
        return torch.zeros(len(pixels), self.outputs)


def evaluated(workload: Workload, classes: int) -> torch.Tensor:
    recorder = Recorder(classes)
    workload.evaluate(recorder, "validation")
    return torch.cat(recorder.seen)


def assert_first_of(workload: Workload, classes: int) -> None:
    assert isinstance(workload, ShowsUse)
    pixels = evaluated(workload, classes)
    more = len(pixels) + 2
    (found,) = workload.example_input(more).arguments
    assert torch.equal(found[: len(pixels)], pixels)
    assert torch.equal(found[len(pixels) :], pixels[:2])
    model = workload.build_model().eval()
    example = workload.example_input(2)
    assert example.dynamic is None
    with torch.no_grad():
        assert torch.allclose(workload.use(model, example), model(pixels[:2]), atol=1e-5)


def test_digits() -> None:
    assert_first_of(DIGITS, 10)


@pytest.mark.parametrize(("size", "network"), [(12, "lenet-300-100"), (40, "resnet-18")])
def test_images_in_files(size: int, network: str, tmp_path: Path) -> None:
    """Small ones are held in memory, photographs are read by worker processes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(24):
            place = tmp_path / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    assert_first_of(images_workload(f"{network}@{tmp_path}"), 2)


def test_every_workload_shows_its_use() -> None:
    assert all(isinstance(workload, ShowsUse) for workload in WORKLOADS)


def test_translation(tmp_path: Path) -> None:
    @functools.cache
    def load() -> Corpus:
        return prepared(tmp_path)

    toy = toy_workload(load)
    example = toy.example_input(22)  # there are twenty
    source, target = example.arguments
    sentences = [english for english, _ in TOY.validation]
    for row, sentence in zip(source, [*sentences, *sentences[:2]], strict=True):
        tokens = row[row != PADDING].tolist()
        assert tokens[-1] == END
        assert load().vocabulary.decode([tokens[:-1]]) == [sentence]
    assert target[:, 0].tolist() == [BEGIN] * 22
    assert example.dynamic == {
        "source": {0: "sentences", 1: "source_positions"},
        "target": {0: "sentences", 1: "target_positions"},
    }
    model = toy.build_model().eval()
    assert model(source, target).shape == (*target.shape, load().vocabulary.size)
    assert toy.use(model, example) == toy.decode(model, TokenBatch(source, target, target), "test")
