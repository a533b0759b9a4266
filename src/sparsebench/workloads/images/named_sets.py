"""fashion-mnist, mnist, cifar10, cifar100, imagenet, each with a model by name (`cifar10/resnet-20`), and any as images:PATH."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.data_folders import data_folder, expanded, is_folder
from sparsebench.workloads.images.in_memory import InMemoryImages, count_training_images
from sparsebench.workloads.images.layouts import holds_encoded_images, holds_training_images
from sparsebench.workloads.images.networks import check_network_name, takes_photographs
from sparsebench.workloads.images.reading import EncodedSplits, RawSplits, read_encoded_splits, read_splits
from sparsebench.workloads.images.streamed import StreamedImages
from sparsebench.workloads.recipes import reference_recipes

__all__ = ["IMAGE_FAMILIES", "NAMED_SETS", "images_workload"]

ImageWorkload: TypeAlias = InMemoryImages | StreamedImages

HUB = "https://huggingface.co/datasets"
IMAGENET_TRAINING, IMAGENET_VALIDATION = 1_281_167, 10_000
# Of any folder of images: most that are held out for the test where it has none, and of photographs for validation.
HELD_OUT = 10_000
RECIPES = reference_recipes("sparsebench.workloads.images")


@dataclass(frozen=True)
class _SmallSet:
    """A set of small images.

    Attributes:
        shape: Height, width and channels.
        counts: Training images of each class in the whole set, to tell sets with equal files apart.
        downloads: Addresses, by the names that files get.
        others: Further names of its folder.
        validation: Training images that are held out.
    """

    summary: str
    shape: tuple[int, int, int]
    counts: tuple[int, ...]
    downloads: Mapping[str, str]
    others: tuple[str, ...]
    model: str
    flip: bool
    max_shift: int
    validation: int = 5000


def _parquet(repository: str, folder: str) -> dict[str, str]:
    return {
        f"{split}.parquet": f"{HUB}/{repository}/resolve/main/{folder}/{split}-00000-of-00001.parquet"
        for split in ("train", "test")
    }


_MNIST_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
_SMALL_SETS = {
    "fashion-mnist": _SmallSet(
        "70,000 28x28 images of clothes",
        (28, 28, 1),
        (6000,) * 10,
        _parquet("zalando-datasets/fashion_mnist", "fashion_mnist"),
        ("FashionMNIST",),
        "resnet-8",
        flip=True,
        max_shift=2,
    ),
    "mnist": _SmallSet(
        "70,000 28x28 handwritten digits",
        (28, 28, 1),
        _MNIST_COUNTS,
        _parquet("ylecun/mnist", "mnist"),
        ("MNIST",),
        "lenet-5",
        flip=False,
        max_shift=2,
    ),
    "cifar10": _SmallSet(
        "60,000 32x32 colour images in 10 classes",
        (32, 32, 3),
        (5000,) * 10,
        _parquet("uoft-cs/cifar10", "plain_text"),
        ("cifar-10-batches-py",),
        "resnet-20",
        flip=True,
        max_shift=4,
    ),
    "cifar100": _SmallSet(
        "60,000 32x32 colour images in 100 classes",
        (32, 32, 3),
        (500,) * 100,
        _parquet("uoft-cs/cifar100", "cifar100"),
        ("cifar-100-python",),
        "wrn-22-2",
        flip=True,
        max_shift=4,
    ),
}


@functools.cache
def _small(name: str, model: str) -> InMemoryImages:
    chosen = _SMALL_SETS[name]
    model = model or chosen.model
    check_network_name(model)
    if takes_photographs(model) and not model.startswith("timm."):
        raise SparsebenchError(f"{name}/{model}: {model} is for photographs; expected resnet-20 or wrn-16-2, say")
    recipe = RECIPES[_recipe_name(name, model)]
    return InMemoryImages(
        name=f"{name}/{model}",
        summary=_summary(chosen.summary, f"{name}/{model}", model, recipe.published),
        code_revision=recipe.revision,
        recipe=recipe.recipe(sum(chosen.counts) - chosen.validation),
        read=functools.partial(_read_small, name),
        network=model,
        flip=chosen.flip and recipe.augmented,
        max_shift=chosen.max_shift if recipe.augmented else 0,
    )


@functools.cache
def _imagenet(model: str) -> StreamedImages:
    model = model or "resnet-50"
    check_network_name(model)
    recipe = RECIPES["imagenet"]
    return StreamedImages(
        name=f"imagenet/{model}",
        summary=_summary("1.28 million photographs in 1,000 classes", f"imagenet/{model}", model, recipe.published),
        code_revision=recipe.revision,
        recipe=recipe.recipe(IMAGENET_TRAINING - IMAGENET_VALIDATION),
        read=_read_imagenet,
        network=model,
    )


@functools.cache
def images_workload(argument: str) -> ImageWorkload:
    """Any folder of images: `PATH`, or `MODEL@PATH`.

    Models for photographs get them as ImageNet's are given, decoded while the network trains; models for small images need
    images of one size and have them in memory.

    Raises:
        SparsebenchError: There is no such folder or model.
    """
    model, at, path = argument.partition("@")
    if not at or "/" in model:
        model, path = "resnet-20", argument
    check_network_name(model)
    folder = expanded(path).resolve()
    if not path or not is_folder(folder):
        raise SparsebenchError(
            f"images:{argument}: {path!r} is no folder; expected images:PATH or images:MODEL@PATH, say images:resnet-18@flowers"
        )
    name, summary = f"images:{model}@{folder}", f"images in {folder}, {model}"
    recipe = RECIPES[_recipe_name("images", model)]
    if takes_photographs(model):
        find = functools.cache(functools.partial(read_encoded_splits, folder, HELD_OUT, HELD_OUT))
        return StreamedImages(
            name=name,
            summary=summary,
            code_revision=recipe.revision,
            recipe=recipe.recipe(len(find().training.labels)),
            read=find,
            network=model,
        )
    read = functools.cache(functools.partial(read_splits, folder, HELD_OUT))
    max_shift = 2 if recipe.augmented else 0
    return InMemoryImages(
        name=name,
        summary=summary,
        code_revision=recipe.revision,
        recipe=recipe.recipe(count_training_images(read, max_shift)),
        read=read,
        network=model,
        flip=False,
        max_shift=max_shift,
    )


def _summary(summary: str, name: str, model: str, published: Mapping[str, float]) -> str:
    beside = f"; published dense accuracy {published[name]} %" if name in published else ""
    return f"{summary}, {model}{beside}"


def _recipe_name(name: str, model: str) -> str:
    if model.startswith("lenet"):
        return model
    if takes_photographs(model) and name == "images":
        return "large-images"
    if not name.startswith("cifar"):
        return "small-resnet"
    return "wide-resnet" if model.startswith("wrn") else "resnet-cifar"


def _read_small(name: str) -> RawSplits:
    """A named set of small images, from this machine or from the hub.

    Raises:
        SparsebenchError: It is not there, is damaged, or is another set; the message names the folder.
    """
    chosen = _SMALL_SETS[name]
    folder = data_folder(name, chosen.downloads, chosen.others, holds_training_images)
    splits = read_splits(folder, classes=len(chosen.counts))
    shape = tuple(splits.training.pixels.shape[1:])
    if shape != chosen.shape:
        raise SparsebenchError(f"{folder} has images of {shape} (height, width, channels): {name} has {chosen.shape}")
    counts = tuple(splits.training.labels.bincount(minlength=splits.classes).tolist())
    if sum(counts) == sum(chosen.counts) and counts != chosen.counts:
        raise SparsebenchError(
            f"{folder} holds another set than {name}: {counts[0]:,} training images of class 0, expected {chosen.counts[0]:,}"
        )
    return splits


def _read_imagenet() -> EncodedSplits:
    """ImageNet, which is only given to who agrees to its terms, as torchvision and ImageNet's own archives lay it out."""
    contents = "its folders train and val, each with one folder of images for each class,"
    folder = data_folder("imagenet", {}, ("ILSVRC2012", "imagenet-1k"), holds_encoded_images, contents)
    return read_encoded_splits(folder, IMAGENET_VALIDATION, classes=1000)


IMAGE_FAMILIES: dict[str, Callable[[str], ImageWorkload]] = {
    **{name: functools.partial(_small, name) for name in _SMALL_SETS},
    "imagenet": _imagenet,
    "images": images_workload,
}
"""What makes a workload of a set's name and a model (the set's own where it is empty)."""

NAMED_SETS: list[ImageWorkload] = [IMAGE_FAMILIES[name]("") for name in (*_SMALL_SETS, "imagenet")]
"""Each named set with its own model."""
