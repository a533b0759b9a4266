"""CIFAR as Krizhevsky published it and torchvision keeps it: pickled batches of 32x32 colour images."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.labelled import LabelledImages

__all__ = ["find_cifar", "is_cifar", "read_cifar"]

_LAYOUTS = {
    "cifar-10-batches-py": {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    "cifar-100-python": {"train": ["train"], "test": ["test"]},
}
# What the pickles of NumPy arrays name, in the releases before and after 2.
_HARMLESS = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "ndarray", "dtype")
} | {("_codecs", "encode")}


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, lists and texts; a file that names anything else is refused, since pickles can run programs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def is_cifar(folder: Path) -> bool:
    """Whether a folder has the name of one of torchvision's folders of CIFAR."""
    return folder.name in _LAYOUTS


def find_cifar(folder: Path, split: str) -> list[Path] | None:
    """The batches of "train" or "test" where `folder` is or holds one of torchvision's folders of CIFAR.

    Raises:
        SparsebenchError: Some of them are missing, or both sets are there.
    """
    both = [folder / name for name in _LAYOUTS if (folder / name).is_dir()]
    if len(both) > 1:
        raise SparsebenchError(f"{folder} holds several sets, in {both[0]} and in {both[1]}: give one of them")
    for name, splits in _LAYOUTS.items():
        for place in (folder, folder / name):
            files = [place / batch for batch in splits[split]]
            missing = [file.name for file in files if not file.is_file()]
            if place.name == name and len(missing) < len(files):
                if missing:
                    raise SparsebenchError(f"{place} lacks {', '.join(missing)}: get it anew")
                return files
    return None


def read_cifar(files: list[Path]) -> LabelledImages:
    """Images of all batches, and their labels (of CIFAR-100 the fine ones).

    Raises:
        SparsebenchError: A batch is damaged.
    """
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    for file in files:
        try:
            with file.open("rb") as opened:
                batch = _ArraysOnly(opened, encoding="latin1").load()
            given = batch["fine_labels"] if "fine_labels" in batch else batch["labels"]
            pixels.append(np.asarray(batch["data"], np.uint8).reshape(len(given), 3, 32, 32))
            labels.extend(np.asarray(given, np.int64).tolist())
            names.extend(f"{file}: example {number}" for number in range(len(given)))
        except OSError as error:
            raise SparsebenchError(f"cannot read {file}: {error.strerror or error}") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise SparsebenchError(f"{file} is not a batch of CIFAR ({error}): get it anew") from error
    together = np.ascontiguousarray(np.concatenate(pixels).transpose(0, 2, 3, 1))
    return LabelledImages(torch.from_numpy(together), torch.tensor(labels, dtype=torch.int64), str(files[0].parent), names=names)
