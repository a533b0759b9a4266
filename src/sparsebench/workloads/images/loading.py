"""Decoding and augmentation of photographs in worker processes; what each example gets hangs on seed, epoch and example alone."""

from __future__ import annotations

import functools
import importlib
import itertools
import operator
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.epochs import part_of_examples, place_in_epoch
from sparsebench.workloads.images.image_files import EncodedImages
from sparsebench.workloads.images.labelled import decode_image

__all__ = ["Batch", "BatchStream", "evaluation_batch", "evaluation_batches", "loader_processes"]

EVALUATION_BATCH = 100
MOST_PROCESSES = 16
RUNS_AT_A_TIME = "SPARSEBENCH_RUNS_AT_A_TIME"
"""The environment variable in which a study tells its workers how many of them share this machine."""


class Batch(NamedTuple):
    """Images as the network gets them but for the normalisation: uint8 [examples, 3, size, size], and int64 [examples]."""

    pixels: torch.Tensor
    labels: torch.Tensor


class Draw(NamedTuple):
    """An example of a batch: its number, and the seed of its augmentation, None where it is evaluated."""

    example: int
    seed: int | None


class BatchStream:
    """The training batches of a run, in order, from any step on.

    A batch that does not follow the last one is read here; worker processes start when batches are asked for one after another.

    Args:
        images: The training images.
        size: Height and width that they get.
        seed: The run's.
        batch_size: Examples a batch; an epoch's last, incomplete batch is left out.
        index: Which part of every batch is read, in [0, count).
        count: In how many parts batches are read; see `part_of_examples`.

    Attributes:
        share: What the mean over this part counts in the mean over all of them; 1 for whole batches.

    Raises:
        SparsebenchError: torchvision is not installed.
    """

    def __init__(self, images: EncodedImages, size: int, seed: int, batch_size: int, index: int = 0, count: int = 1) -> None:
        self._decoded = _Decoded(images, size)
        part, self.share = part_of_examples(min(batch_size, len(images.labels)), index, count)
        # Knows nothing of this object: garbage collection of a cycle ends worker processes only after 5 seconds each.
        self._draws = functools.partial(_draws, len(images.labels), seed, batch_size, part)
        self._following: Iterator[Batch | SparsebenchError] | None = None
        self._next: int | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0.

        Raises:
            SparsebenchError: A file cannot be read; the message names it.
        """
        if step != self._next:
            self._following = None
            batch = self._decoded[next(self._draws(step))]
        else:
            if self._following is None:
                self._following = iter(_loader(self._decoded, self._draws(step)))
            batch = next(self._following)
        self._next = step + 1
        return _without_error(batch)


def _draws(examples: int, seed: int, batch_size: int, part: slice, step: int) -> Iterator[list[Draw]]:
    """What is drawn for a step and those that follow."""
    places = (place_in_epoch(following, examples, batch_size) for following in itertools.count(step))
    for epoch, batches in itertools.groupby(places, key=operator.itemgetter(0)):
        order = np.random.default_rng([seed, epoch]).permutation(examples)
        for _, batch in batches:
            yield [Draw(index, _augmentation_seed(seed, epoch, index)) for index in order[batch][part].tolist()]


def evaluation_batch(images: EncodedImages, size: int, examples: Iterable[int]) -> Batch:
    """Some images by number, their middle, decoded by this process.

    Raises:
        SparsebenchError: As for `evaluation_batches`.
    """
    return _without_error(_Decoded(images, size)[[Draw(index, None) for index in examples]])


def evaluation_batches(images: EncodedImages, size: int) -> Iterator[Batch]:
    """All images in order, their middle, in batches.

    Raises:
        SparsebenchError: A file cannot be read; the message names it. Or torchvision is not installed.
    """
    examples = range(len(images.labels))
    batches = [[Draw(index, None) for index in examples[i : i + EVALUATION_BATCH]] for i in examples[::EVALUATION_BATCH]]
    return map(_without_error, _loader(_Decoded(images, size), batches))


def loader_processes() -> int:
    """How many processes decode images: $SPARSEBENCH_LOADER_PROCESSES, or the cores that the training leaves, at most 16.

    Where several processes train on this machine, or a study several runs, that is for each of them.

    Raises:
        SparsebenchError: The variable is no whole number of at least 0.
    """
    given = os.environ.get("SPARSEBENCH_LOADER_PROCESSES")
    if given is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * int(os.environ.get(RUNS_AT_A_TIME, "1"))
        return min(max(cores - torch.get_num_threads(), 1), MOST_PROCESSES)
    if not given.isdecimal():
        raise SparsebenchError(f"SPARSEBENCH_LOADER_PROCESSES={given!r}: expected a whole number, 0 for none")
    return int(given)


def _augmentation_seed(seed: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0])


def _loader(decoded: _Decoded, draws: Iterable[list[Draw]]) -> DataLoader[Batch | SparsebenchError]:
    # A generator of its own: a loader draws a seed for its processes, and the run's noise must not hang on that.
    as_it_is: Any = _as_it_is  # torch's annotation knows lists of examples alone
    return DataLoader(
        decoded,
        sampler=draws,
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=loader_processes(),
        pin_memory=os.environ.get("SPARSEBENCH_DEVICE") == "cuda",
        generator=torch.Generator(),
    )


def _as_it_is(batch: Batch | SparsebenchError) -> Batch | SparsebenchError:
    return batch


def _without_error(batch: Batch | SparsebenchError) -> Batch:
    if isinstance(batch, SparsebenchError):
        raise batch
    return batch


@dataclass(frozen=True)
class _Decoded(Dataset[Batch | SparsebenchError]):
    """Whole batches by their draws; an error is handed over as it is, since a loader would wrap it in a traceback."""

    images: EncodedImages
    size: int

    def __post_init__(self) -> None:
        _transforms()

    def __getitem__(self, draws: list[Draw]) -> Batch | SparsebenchError:
        try:
            pixels = torch.stack([self._example(draw) for draw in draws])
        except SparsebenchError as error:
            return error
        return Batch(pixels, torch.tensor([self.images.labels[draw.example] for draw in draws]))

    def _example(self, draw: Draw) -> torch.Tensor:
        v2 = _transforms()
        decoded = decode_image(self.images.read(draw.example), self.images.name(draw.example))
        pixels = torch.from_numpy(decoded.copy()).permute(2, 0, 1)
        pixels = pixels.expand(3, *pixels.shape[1:])
        if draw.seed is None:
            middle: torch.Tensor = v2.CenterCrop(self.size)(v2.Resize(self.size * 8 // 7, antialias=True)(pixels))
            return middle
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw.seed)
            part = v2.RandomResizedCrop(self.size, antialias=True)(pixels)
            mirrored: torch.Tensor = v2.RandomHorizontalFlip()(part)
            return mirrored


def _transforms() -> ModuleType:
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except ImportError as error:
        raise SparsebenchError("photographs need torchvision: pip install 'sparsebench[images]'") from error
