"""Images that are decoded while a network trains: batches hang on seed, epoch and example alone."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsebench.errors import SparsebenchError
from sparsebench.training.devices import part_of_batch
from sparsebench.workloads.images.loading import RUNS_AT_A_TIME, BatchStream, evaluation_batches, loader_processes
from sparsebench.workloads.images.named_sets import images_workload
from sparsebench.workloads.images.reading import read_encoded_splits
from sparsebench.workloads.images.streamed import StreamedImages
from sparsebench.workloads.workload import ReadsParts

# Torch tells of more processes than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CLASSES, EACH, SIZE = 3, 7, 32


def write_photographs(folder: Path) -> Path:
    """JPEG files of different sizes, of which class 2 are grey; the red (or grey) level tells the example."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(EACH):
                height, width = random.integers(40, 90, 2)
                level = 10 * (label * EACH + number) + 20
                shape = (height, width) if label == 2 else (height, width, 3)
                Image.fromarray(np.full(shape, level, np.uint8)).save(place / f"{number}.jpeg", quality=95)
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs")


def levels(pixels: torch.Tensor) -> list[int]:
    return [round((float(level) - 20) / 10) for level in pixels[:, 0, 16, 16]]


def test_an_epoch_has_every_image_once_whatever_reads_it(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = read_encoded_splits(photographs, 10).training
    batches = []
    for processes in ("0", "2"):
        monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", processes)
        stream = BatchStream(images, SIZE, 3, 5)
        batches.append([stream.batch(step) for step in range(7)])
    assert len(images.labels) == CLASSES * EACH - 2  # a tenth is held out
    for alone, by_processes in zip(*batches, strict=True):
        assert torch.equal(alone.pixels, by_processes.pixels)
        assert torch.equal(alone.labels, by_processes.labels)
    seen = [level for batch in batches[0][:3] for level in levels(batch.pixels)]
    assert len(set(seen)) == 15  # three batches of five an epoch, the rest left out
    assert [level // EACH for level in seen] == torch.cat([batch.labels for batch in batches[0][:3]]).tolist()
    assert levels(batches[0][0].pixels) != levels(batches[0][3].pixels)  # another epoch, another order


def test_batches_are_the_same_from_the_middle_on_and_draw_no_noise(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", "1")
    images = read_encoded_splits(photographs, 10).training
    whole, resumed = BatchStream(images, SIZE, 0, 4), BatchStream(images, SIZE, 0, 4)
    before = torch.get_rng_state()
    expected = [whole.batch(step) for step in range(9)]
    for step in (5, 6, 7, 2, 8):
        assert torch.equal(resumed.batch(step).pixels, expected[step].pixels)
    assert torch.equal(torch.get_rng_state(), before)
    other = BatchStream(images, SIZE, 1, 4).batch(0)
    assert not torch.equal(other.pixels, expected[0].pixels)


def test_worker_processes_end_with_their_stream(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", "2")
    before = set(multiprocessing.active_children())
    stream = BatchStream(read_encoded_splits(photographs, 10).training, SIZE, 3, 5)
    for step in range(3):
        stream.batch(step)
    assert len(set(multiprocessing.active_children()) - before) == 2
    gc.disable()  # which would take 5 seconds for each
    try:
        del stream
        assert not set(multiprocessing.active_children()) - before
    finally:
        gc.enable()


@pytest.mark.parametrize(("batch_size", "count"), [(5, 2), (4, 3), (2, 3), (100, 4)])
def test_processes_read_their_part_of_a_batch_alone(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, count: int
) -> None:
    monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", "0")
    task = images_workload(f"resnet-18@{photographs}")
    assert isinstance(task, ReadsParts)
    read: list[int] = []
    images = type(task.read().training)
    original = images.read
    monkeypatch.setattr(images, "read", lambda self, index: read.append(index) or original(self, index))
    for step in range(3):
        whole = task.batch(0, step, batch_size)
        for index in range(count):
            read.clear()
            part, share = task.part_of_batch(0, step, batch_size, index, count)
            expected, expected_share = part_of_batch(task, whole, index, count)
            assert torch.equal(part.pixels, expected.pixels)
            assert torch.equal(part.labels, expected.labels)
            assert share == expected_share
            assert len(read) == len(part.labels)


def test_evaluation_takes_the_middle_of_all_images_in_order(photographs: Path) -> None:
    from torchvision.transforms import v2

    images = read_encoded_splits(photographs, 10).test
    batch = next(iter(evaluation_batches(images, SIZE)))
    assert batch.labels.tolist() == sorted(batch.labels.tolist())
    assert levels(batch.pixels) == list(range(CLASSES * EACH))
    random = np.random.default_rng(5).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    path = photographs / "val" / "class0" / "0.jpeg"
    Image.fromarray(random).save(path)
    expected = v2.functional.center_crop(v2.functional.resize(v2.functional.pil_to_tensor(Image.open(path)), [36]), [32])
    assert torch.equal(next(iter(evaluation_batches(images, SIZE))).pixels[0], expected)


def test_examples_can_be_sent_to_processes_that_do_not_fork(photographs: Path) -> None:
    images = read_encoded_splits(photographs, 10).training
    assert pickle.loads(pickle.dumps(images)).read(3) == images.read(3)


def test_workload_trains_evaluates_and_names_its_data(photographs: Path) -> None:
    task = images_workload(f"resnet-18@{photographs}")
    assert isinstance(task, StreamedImages)
    model = task.build_model()
    batch = task.batch(0, 0, 4)
    assert batch.pixels.shape == (4, 3, 224, 224)
    assert batch.pixels.dtype == torch.uint8
    assert (batch.pixels[:, 0].int() - batch.pixels[:, 2]).abs().max() <= 2  # grey images, but for JPEG's rounding
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.loss(model, batch, 0.1).backward()  # type: ignore[no-untyped-call]
    grey = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    spread = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    assert torch.allclose(seen[0] * spread + grey, batch.pixels.float(), atol=1e-4)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    measured = task.evaluate(model, "test")
    assert 0.0 <= measured["accuracy"] <= 100.0
    assert model.training
    revision = task.revision
    (photographs / "train" / "class0" / "0.jpeg").rename(photographs / "train" / "class0" / "9.jpeg")
    images_workload.cache_clear()
    assert images_workload(f"resnet-18@{photographs}").revision != revision


def test_damaged_files_and_settings_are_named(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photographs / "val" / "class1" / "2.jpeg"
    path.write_bytes(path.read_bytes()[:100])
    for processes in ("0", "1"):
        monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", processes)
        with pytest.raises(SparsebenchError, match=r"2\.jpeg is not a readable image") as caught:
            list(evaluation_batches(read_encoded_splits(photographs, 10).test, SIZE))
        assert "\n" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)
    monkeypatch.delenv("SPARSEBENCH_LOADER_PROCESSES")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(24)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert loader_processes() == 5
    monkeypatch.setenv(RUNS_AT_A_TIME, "3")
    assert loader_processes() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert loader_processes() == 7
    monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", "two")
    with pytest.raises(SparsebenchError, match="SPARSEBENCH_LOADER_PROCESSES='two': expected a whole number"):
        loader_processes()
    for split, message in (("val", "val/class3 is a class that .*train does not have"), ("train", "class3 is an empty class")):
        (photographs / split / "class3").mkdir()
        with pytest.raises(SparsebenchError, match=message):
            read_encoded_splits(photographs, 10)
        (photographs / split / "class3").rmdir()
    with pytest.raises(SparsebenchError, match=r"photographs/train has 3 classes: expected 1000$"):
        read_encoded_splits(photographs, 10, classes=1000)
