"""Where named image sets are found, that one is not taken for another, and what stands for their contents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx_split

from sparsebench.errors import SparsebenchError
from sparsebench.training.config import resolve
from sparsebench.workloads.images import in_memory
from sparsebench.workloads.registry import WORKLOADS

RANDOM = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    in_memory._prepared.cache_clear()


def write_idx(folder: Path, examples: int = 200, size: int = 28, labels: np.ndarray | None = None, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for stem in ("train", "t10k"):
        pixels = random.integers(0, 256, (examples, size, size), dtype=np.uint8)
        classes = (np.arange(examples) % 10).astype(np.uint8) if labels is None or stem == "t10k" else labels
        write_idx_split(folder, stem, pixels, classes, packed=True)
    return folder


@pytest.mark.parametrize("place", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_files_are_found_by_name_in_torchvisions_folder_or_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write_idx(tmp_path / "data" / place)
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "data"))
    assert WORKLOADS.get("fashion-mnist").training_examples == 180


def test_named_folder_comes_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "cache" / "data" / "mnist", 100)
    assert WORKLOADS.get("mnist").training_examples == 90
    write_idx(tmp_path / "data" / "mnist", 50)
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "data"))
    in_memory._prepared.cache_clear()
    assert WORKLOADS.get("mnist").training_examples == 45


def test_a_folder_that_holds_another_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(SparsebenchError, match=r"^SPARSEBENCH_DATA='.*nowhere' is no folder: expected one that holds a folder"):
        resolve("fashion-mnist", "dense", {})
    monkeypatch.setenv("SPARSEBENCH_DATA", str(write_idx(tmp_path / "larger", size=32)))
    with pytest.raises(
        SparsebenchError, match=r"has images of \(32, 32, 1\) \(height, width, channels\): mnist has \(28, 28, 1\)"
    ):
        resolve("mnist", "dense", {})
    # As many images as the whole set has, but not its classes: MNIST and Fashion-MNIST have files of the same names.
    small = np.repeat(np.arange(10, dtype=np.uint8), 6000)
    folder = tmp_path / "clothes"
    for stem, classes in (("train", small), ("t10k", small[:100])):
        write_idx_split(folder, stem, np.zeros((len(classes), 28, 28), np.uint8), classes, packed=False)
    monkeypatch.setenv("SPARSEBENCH_DATA", str(folder))
    with pytest.raises(SparsebenchError, match=r"holds another set than mnist: 6,000 training images of class 0, expected 5,923"):
        resolve("mnist", "dense", {})
    assert resolve("fashion-mnist", "dense", {}).workload == "fashion-mnist/resnet-8"


def test_imagenet_is_never_downloaded() -> None:
    with pytest.raises(SparsebenchError) as caught:
        resolve("imagenet", "dense", {})
    message = str(caught.value)
    assert message.startswith(
        "imagenet is not here: put its folders train and val, each with one folder of images for each class,"
    )
    assert "\n" not in message


def test_revision_stands_for_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        monkeypatch.setenv("SPARSEBENCH_DATA", str(write_idx(tmp_path / name, seed=seed)))
        in_memory._prepared.cache_clear()
        revisions.append(WORKLOADS.get("mnist/lenet-300-100").revision)
    assert revisions[0] == revisions[1] != revisions[2]
    assert revisions[0] >> 48 == 2


def test_names_are_a_set_and_a_model() -> None:
    assert WORKLOADS.get("imagenet").name == "imagenet/resnet-50"
    assert WORKLOADS.get("imagenet").recipe.steps == 128_000
    with pytest.raises(SparsebenchError, match="cifar10/resnet-50: resnet-50 is for photographs; expected resnet-20"):
        WORKLOADS.get("cifar10/resnet-50")
    with pytest.raises(SparsebenchError, match=r"^images:/nowhere: '/nowhere' is no folder; expected images:PATH or"):
        WORKLOADS.get("images:/nowhere")
