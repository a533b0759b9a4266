from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from idx_files import idx_bytes, write_idx_split
from PIL import Image

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images.in_memory import InMemoryImages
from sparsebench.workloads.images.named_sets import images_workload
from sparsebench.workloads.images.networks import make_network
from sparsebench.workloads.images.reading import read_encoded_splits, read_splits
from sparsebench.workloads.registry import WORKLOADS

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (40, 12, 12), dtype=np.uint8)
LABELS = (np.arange(40) % 4).astype(np.uint8)


def write_idx(folder: Path, packed: bool = False) -> Path:
    for stem in ("train", "t10k"):
        write_idx_split(folder, stem, PIXELS, LABELS, packed=packed)
    return folder


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_classes(folder: Path) -> Path:
    for split in ("train", "test"):
        for index, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:03}.png").write_bytes(png(image))
    return folder


def write_parquet(folder: Path, labels: np.ndarray = LABELS) -> Path:
    folder.mkdir(exist_ok=True)
    cells = [{"bytes": png(image), "path": None} for image in PIXELS]
    note = {"info": {"features": {"label": {"names": list("abcd"), "_type": "ClassLabel"}}}}
    table = pa.table({"image": cells, "label": labels.astype(np.int64)})
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_to_the_last_pixel(tmp_path: Path, packed: bool) -> None:
    splits = read_splits(write_idx(tmp_path / "set", packed), 4)
    assert np.array_equal(splits.training.pixels[..., 0].numpy(), PIXELS)
    assert np.array_equal(splits.test.labels.numpy(), LABELS)


def test_parquet_and_folders_hold_the_same_images(tmp_path: Path) -> None:
    table, folder = read_splits(write_parquet(tmp_path / "a"), 4), read_splits(write_classes(tmp_path / "b"), 4)
    assert np.array_equal(table.training.pixels[..., 0].numpy(), PIXELS)
    by_class = np.argsort(LABELS, kind="stable")
    assert np.array_equal(folder.training.pixels[..., 0].numpy(), PIXELS[by_class])
    assert np.array_equal(folder.training.labels.numpy(), LABELS[by_class])


def test_cifar_batches_are_read_in_torchvision_layout(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    data = RANDOM.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (place / name).write_bytes(pickle.dumps({"data": data.reshape(10, -1), "labels": list(range(10))}))
    splits = read_splits(tmp_path, 10)
    assert splits.training.pixels.shape == (50, 32, 32, 3)
    assert np.array_equal(splits.test.pixels.permute(0, 3, 1, 2).numpy(), data)


def test_cifar_100_is_read_by_its_fine_classes(tmp_path: Path) -> None:
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    data = RANDOM.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    fine = RANDOM.permutation(100)
    batch = {"data": data.reshape(100, -1), "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
    for name in ("train", "test"):
        (place / name).write_bytes(pickle.dumps(batch))
    splits = read_splits(tmp_path, classes=100)
    assert splits.training.labels.tolist() == fine.tolist()
    assert np.array_equal(splits.training.pixels.permute(0, 3, 1, 2).numpy(), data)


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("img", "fine_label"), ("image", "labels")])
@pytest.mark.parametrize("encoded", [False, True], ids=["decoded", "encoded"])
def test_columns_have_the_names_that_the_hub_s_sets_give_them(tmp_path: Path, image: str, label: str, encoded: bool) -> None:
    columns = {image: [{"bytes": png(pixels), "path": None} for pixels in PIXELS], label: LABELS.astype(np.int64)}
    if label == "fine_label":
        columns["coarse_label"] = np.zeros(40, np.int64)
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    part = read_encoded_splits(tmp_path, 4).test if encoded else read_splits(tmp_path, classes=4).test
    assert list(part.labels) == LABELS.tolist()


def test_cifar_batches_that_would_run_a_program_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    for name in ("train", "test"):
        (place / name).write_bytes(pickle.dumps({"data": Path("x")}))
    with pytest.raises(SparsebenchError, match=r"train is not a batch of CIFAR"):
        read_splits(tmp_path)


def truncate(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])


def truncate_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])


def label_out_of_range(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.where(np.arange(40) == 7, 9, LABELS).astype(np.uint8)))


def fewer_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:-1]))


def no_third_class(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.where(LABELS == 2, 1, LABELS).astype(np.uint8)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train-images-idx3-ubyte is truncated: 5,755 bytes of values, expected 5,760"),
        (truncate_gzip, r"train-images-idx3-ubyte is truncated or damaged"),
        (label_out_of_range, r"t10k-labels-idx1-ubyte: example 7 has label 9: expected 0 to 3"),
        (fewer_labels, r"train-labels-idx1-ubyte has 39 labels for the 40 images"),
        (no_third_class, r"train-labels-idx1-ubyte has no image of class 2"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, damage: object, message: str) -> None:
    folder = write_idx(tmp_path / "set")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(SparsebenchError, match=message) as caught:
        read_splits(folder, 4)
    assert "\n" not in str(caught.value)


def test_damaged_images_classes_and_labels_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    folder = write_classes(tmp_path / "a")
    (folder / "train" / "class1" / "001.png").write_bytes(png(PIXELS[0])[:60])
    with pytest.raises(SparsebenchError, match=r"001\.png is not a readable image"):
        read_splits(folder)
    (folder / "train" / "class9").mkdir()
    with pytest.raises(SparsebenchError, match=r"class9 is an empty class"):
        read_splits(folder)
    with pytest.raises(SparsebenchError, match=r"parquet, row 0 has label 7: expected 0 to 3"):
        read_splits(write_parquet(tmp_path / "b", np.full(40, 7)))
    with pytest.raises(SparsebenchError, match="holds no training images"):
        read_splits(empty)


@pytest.mark.parametrize("read", [read_splits, lambda folder: read_encoded_splits(folder, 4)], ids=["decoded", "encoded"])
def test_classes_have_the_numbers_of_training_s_folders_in_every_split(tmp_path: Path, read: Any) -> None:
    folder = write_classes(tmp_path / "set")
    whole = read(folder)
    shutil.rmtree(folder / "test" / "class1")
    part = read(folder)
    assert part.classes == whole.classes == 4
    kept = [int(label) for label in whole.test.labels if label != 1]
    assert [int(label) for label in part.test.labels] == kept
    (folder / "test" / "class2").rename(folder / "test" / "other")
    with pytest.raises(SparsebenchError, match=r"test/other is a class that .*train does not have: expected class0, class1"):
        read(folder)


def test_grey_images_of_16_bits_become_8_and_numbers_of_32_are_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set")
    place = folder / "train" / "class1" / "001.png"
    wide = PIXELS[1].astype(np.uint16) * 257
    Image.fromarray(wide).save(place)
    before = read_splits(write_classes(tmp_path / "plain"))
    assert torch.equal(read_splits(folder).training.pixels, before.training.pixels)
    Image.fromarray(wide.astype(np.float32)).save(place.with_suffix(".tiff"))
    with pytest.raises(SparsebenchError, match=r"001\.tiff has the mode 'F': expected 8 or 16 bits"):
        read_splits(folder)


def test_what_other_programs_hide_among_images_is_passed_over(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "set")
    before = read_splits(folder)
    for place in (folder / "train", folder / "train" / "class1"):
        (place / "__MACOSX").mkdir()
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".ipynb_checkpoints" / "1-checkpoint.png").write_bytes(png(PIXELS[0]))
        (place / "._001.png").write_bytes(b"no image")
    after = read_splits(folder)
    assert torch.equal(after.training.labels, before.training.labels)
    assert torch.equal(after.training.pixels, before.training.pixels)


def workload(tmp_path: Path) -> InMemoryImages:
    return images_workload(f"lenet-300-100@{write_idx(tmp_path / 'set')}")


def test_batches_are_crops_keyed_by_seed_epoch_and_example(tmp_path: Path) -> None:
    task = workload(tmp_path)
    assert task.training_examples == 36
    batch = task.batch(5, 13, 9)  # the second of epoch 3
    torch.manual_seed(1)
    for step in range(50):
        task.batch(step, step, 9)
    again = task.batch(5, 13, 9)
    assert torch.equal(batch.pixels, again.pixels)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    # Of an epoch, each image comes once: found by undoing the normalisation and trying every crop.
    from sparsebench.workloads.images.in_memory import _prepared

    data = _prepared(task.read, 2)
    seen = set()
    for step in range(12, 16):
        given = task.batch(5, step, 9)
        grey = (given.pixels[:, 0] * data.deviation + data.mean).round().to(torch.uint8)
        for image, label in zip(grey.numpy(), given.labels.tolist(), strict=True):
            matches = [
                index
                for index in range(36)
                for down in range(5)
                for right in range(5)
                if np.array_equal(data.padded[index, :, :, 0].numpy()[down : down + 12, right : right + 12], image)
            ]
            assert len(matches) == 1
            assert int(data.labels[matches[0]]) == label
            seen.add(matches[0])
    assert seen == set(range(36))


def test_name_of_a_workload_is_set_and_model() -> None:
    assert WORKLOADS.get("fashion-mnist") is WORKLOADS.get("fashion-mnist/resnet-8")
    assert WORKLOADS.get("cifar10/wrn-16-2").name == "cifar10/wrn-16-2"
    with pytest.raises(SparsebenchError, match=r"unknown model 'lenet5' \(did you mean 'lenet-5'"):
        WORKLOADS.get("mnist/lenet5")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        # Of LeNets the weights alone, as pruning papers count them (Han et al. 2015: 266K and 431K with biases).
        ("lenet-300-100", 266_200),
        ("lenet-5", 430_500),
        # All parameters: He et al. 2016, table 6, print 0.27, 0.46 and 0.85 million; ResNet-8 and 14 are of the same rule.
        ("resnet-8", 75_290),
        ("resnet-14", 172_506),
        ("resnet-20", 269_722),
        ("resnet-32", 464_154),
        ("resnet-56", 853_018),
        # Zagoruyko and Komodakis 2016, table 5: 0.7, 1.1 and 36.5 million.
        ("wrn-16-2", 691_674),
        ("wrn-22-2", 1_079_642),
        ("wrn-28-10", 36_479_194),
    ],
)
def test_networks_have_the_sizes_of_their_papers(name: str, weights: int) -> None:
    grey = name.startswith("lenet")
    channels, size = (1, 28) if grey else (3, 32)
    with torch.device("meta"):
        network = make_network(name, channels, size, 10)
        assert network(torch.zeros(2, channels, size, size)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters() if p.ndim > 1 or not grey) == weights
