"""Crops and mirrored images: what an example becomes in training, and what decides it."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sparsebench.workloads.images.in_memory import InMemoryImages
from sparsebench.workloads.images.labelled import LabelledImages
from sparsebench.workloads.images.loading import BatchStream
from sparsebench.workloads.images.named_sets import IMAGE_FAMILIES
from sparsebench.workloads.images.reading import RawSplits, read_encoded_splits
from sparsebench.workloads.workload import Recipe

EXAMPLES, SIZE, SHIFT = 64, 9, 2
PIXELS = np.random.default_rng(0).integers(1, 256, (EXAMPLES, SIZE, SIZE, 3), dtype=np.uint8)


def splits() -> RawSplits:
    part = LabelledImages(torch.from_numpy(PIXELS), torch.arange(EXAMPLES), "here")
    return RawSplits(part, part, part, EXAMPLES)


def task(flip: bool) -> InMemoryImages:
    recipe = Recipe.model_validate({"steps": 10, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.1})
    return InMemoryImages("toy/resnet-8", "", 1, recipe, splits, "resnet-8", flip, SHIFT)


def shown(images: InMemoryImages, seed: int, epoch: int) -> dict[int, np.ndarray]:
    """What every example became in an epoch, as bytes."""
    mean = PIXELS.astype(np.float64).mean((0, 1, 2))
    deviation = PIXELS.astype(np.float64).std((0, 1, 2))
    found = {}
    for step in range(epoch * 4, epoch * 4 + 4):
        batch = images.batch(seed, step, 16)
        pixels = (batch.pixels.permute(0, 2, 3, 1).double().numpy() * deviation + mean).round().astype(np.uint8)
        found |= dict(zip(batch.labels.tolist(), pixels, strict=True))
    return found


@functools.cache
def crops(example: int) -> list[np.ndarray]:
    padded = np.pad(PIXELS[example], ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    places = range(2 * SHIFT + 1)
    return [padded[down : down + SIZE, right : right + SIZE] for down in places for right in places]


def mirrored(example: int, image: np.ndarray) -> bool:
    plain, turned = (any(np.array_equal(crop, way) for crop in crops(example)) for way in (image, image[:, ::-1]))
    assert plain != turned, "a crop of the example, or its mirror"
    return turned


def test_half_of_the_images_are_mirrored_in_every_epoch_others_where_flip_is_asked() -> None:
    choices = []
    for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0)):
        images = shown(task(flip=True), seed, epoch)
        assert sorted(images) == list(range(EXAMPLES))
        choices.append([mirrored(example, images[example]) for example in range(EXAMPLES)])
        assert 16 <= sum(choices[-1]) <= 48  # of 64; beyond 4 standard deviations
    assert len({tuple(choice) for choice in choices}) == 4
    again = shown(task(flip=True), 0, 1)
    assert [mirrored(example, again[example]) for example in range(EXAMPLES)] == choices[1]


def test_no_image_is_mirrored_where_flip_is_not_asked() -> None:
    images = shown(task(flip=False), 0, 0)
    assert not any(mirrored(example, images[example]) for example in range(EXAMPLES))


def test_named_sets_mirror_all_but_digits_and_what_linear_layers_get() -> None:
    given = {
        name: (IMAGE_FAMILIES[name](model).flip, IMAGE_FAMILIES[name](model).max_shift)  # type: ignore[union-attr]
        for name, model in (("fashion-mnist", ""), ("mnist", ""), ("cifar10", ""), ("cifar100", ""))
    }
    assert given == {"fashion-mnist": (True, 2), "mnist": (False, 2), "cifar10": (True, 4), "cifar100": (True, 4)}
    plain = IMAGE_FAMILIES["fashion-mnist"]("lenet-300-100")
    assert isinstance(plain, InMemoryImages)
    assert (plain.flip, plain.max_shift) == (False, 0)


def test_half_of_the_photographs_are_mirrored(tmp_path: Path, monkeypatch) -> None:
    """Each is dark on its left: the brighter side of what comes out says which way it was turned."""
    monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", "0")
    ramp = np.broadcast_to(np.linspace(0, 255, 48).astype(np.uint8)[None, :, None], (40, 48, 3))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(ramp)).save(file, "PNG")
    for split, count in (("train", 40), ("val", 2)):
        for number in range(count):
            place = tmp_path / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(file.getvalue())
    stream = BatchStream(read_encoded_splits(tmp_path, 4).training, 32, 0, 36)
    turned = []
    for epoch in range(2):
        pixels = stream.batch(epoch).pixels.double()
        turned.append(pixels[..., :16].mean((1, 2, 3)) > pixels[..., 16:].mean((1, 2, 3)))
        assert 6 <= int(turned[-1].sum()) <= 30  # of 36
    assert not torch.equal(*turned)
