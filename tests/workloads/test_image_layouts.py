"""The layouts that labelled images come in: which files are a split, what is held out where one is missing, what is refused."""

from __future__ import annotations

import io
import json
import os
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
from typer.testing import CliRunner

from sparsebench import cli
from sparsebench.errors import SparsebenchError
from sparsebench.training.config import resolve
from sparsebench.workloads.images import in_memory, mapped_images, parquet_files
from sparsebench.workloads.images.named_sets import RECIPES, images_workload
from sparsebench.workloads.images.networks import make_network
from sparsebench.workloads.images.reading import read_encoded_splits, read_splits

CLASSES, EACH = 3, 10
BOTH = pytest.mark.parametrize(
    "read",
    [lambda folder: read_splits(folder, 100), lambda folder: read_encoded_splits(folder, 100, 100)],
    ids=["decoded", "encoded"],
)


def picture(level: int, size: tuple[int, int] = (20, 20), ending: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(size, level, np.uint8)).save(file, ending)
    return file.getvalue()


def write_classes(folder: Path, *, size: tuple[int, int] = (20, 20)) -> Path:
    for level in range(CLASSES * EACH):
        place = folder / f"class{level % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{level:03}.png").write_bytes(picture(level, size))
    return folder


def write_parquet(path: Path, labels: Any = None, names: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = range(CLASSES * EACH)
    given = [level % CLASSES for level in levels] if labels is None else labels
    table = pa.table({"image": [{"bytes": picture(level), "path": None} for level in levels], "label": given})
    if names is not None:
        note = {"info": {"features": {"label": {"names": [str(number) for number in range(names)]}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, path)
    return path


def contents(splits: Any) -> list[list[str]]:
    """The names of all examples, by split."""
    return [[part.name(i) for i in range(len(part.labels))] for part in (splits.training, splits.validation, splits.test) if part]


@BOTH
def test_a_folder_of_classes_alone_is_a_set_from_which_the_test_is_held_out(tmp_path: Path, read: Any) -> None:
    (tmp_path / "train").mkdir()  # another set beside it does not matter
    splits = read(write_classes(tmp_path / "flowers"))
    names = [name for part in contents(splits) for name in part]
    assert len(names) == len(set(names)) == CLASSES * EACH
    assert len(splits.test.labels) == 3
    assert splits.classes == CLASSES
    assert contents(read(tmp_path / "flowers")) == contents(splits)


def test_a_set_that_must_have_a_test_split_is_refused_without(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "flowers")
    with pytest.raises(SparsebenchError, match="flowers holds training images, but none named test or validation"):
        read_splits(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001-ab12.parquet", "data/test-00000-of-00001-ab12.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train/part.parquet", "test/part.parquet"),
    ],
)
def test_parquet_files_are_found_under_the_names_that_the_hub_gives(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_parquet(tmp_path / name)
    splits = read_splits(tmp_path)
    for part, name in zip((splits.training, splits.test), names, strict=True):
        assert part.name(4) == f"{tmp_path / name}, row 4"
        assert len(part.labels) == CLASSES * EACH


def test_two_sets_in_one_folder_are_not_taken_for_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(SparsebenchError, match=r"holds several sets, in \S+/a and in \S+/b: give one of them$"):
        read_splits(tmp_path)


def test_a_folder_of_several_sets_is_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / name / "train.parquet")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    in_memory._prepared.cache_clear()
    with pytest.raises(SparsebenchError, match=r"^imagenet is not here: put its folders train and val"):
        resolve("imagenet", "dense", {})
    monkeypatch.setenv("SPARSEBENCH_DATA_ALONE", "1")
    with pytest.raises(SparsebenchError, match=rf"^mnist is not in {tmp_path}: put its files \(train\.parquet, test\.parquet"):
        resolve("mnist", "dense", {})


@BOTH
def test_test_images_without_labels_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    """As on the hub, and in ImageNet's own archives."""
    for split in ("train", "validation"):
        write_parquet(tmp_path / "hub" / f"{split}.parquet")
    expected = contents(read(tmp_path / "hub"))
    write_parquet(tmp_path / "hub" / "test.parquet", [-1] * CLASSES * EACH)
    with monkeypatch.context() as small:  # what is not used is not laid out in the cache
        small.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
        small.setattr(parquet_files, "IN_MEMORY_BYTES", 0)
        assert contents(read(tmp_path / "hub")) == expected
        assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2
    mapped_images._batches.cache_clear()
    for split in ("train", "val"):
        write_classes(tmp_path / "folders" / split)
    expected = contents(read(tmp_path / "folders"))
    (tmp_path / "folders" / "test").mkdir()
    (tmp_path / "folders" / "test" / "1.png").write_bytes(picture(1))
    assert contents(read(tmp_path / "folders")) == expected


@BOTH
def test_images_of_every_ending_and_behind_links_are_read_once(tmp_path: Path, read: Any) -> None:
    folder = write_classes(tmp_path / "set")
    (folder / "class0" / "a.gif").write_bytes(picture(200, ending="GIF"))
    (folder / "class0" / "b.PGM").write_bytes(picture(201, ending="PPM"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.png").write_bytes(picture(202))
    (elsewhere / "again").symlink_to(elsewhere)
    (folder / "class0" / "more").symlink_to(elsewhere)
    names = [name for part in contents(read(folder)) for name in part]
    assert len(names) == len(set(names)) == CLASSES * EACH + 3


@BOTH
@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "Val")])
def test_splits_are_known_in_letters_of_any_case(tmp_path: Path, read: Any, names: tuple[str, str]) -> None:
    for name in names:
        write_classes(tmp_path / name)
    splits = read(tmp_path)
    assert splits.classes == CLASSES
    assert len(splits.test.labels) == CLASSES * EACH


@BOTH
def test_folders_that_are_no_classes_are_not_taken_for_them(tmp_path: Path, read: Any) -> None:
    for name in ("seg_train", "seg_test"):
        write_classes(tmp_path / "nested" / name / name)
        write_classes(tmp_path / "flat" / name)
        for file in (tmp_path / "flat" / name).rglob("*.png"):
            file.rename(tmp_path / "flat" / name / f"{file.parent.name}-{file.name}")
    refused(read, tmp_path / "nested", "nested holds seg_test, seg_train, which look like splits: call them train and test")
    message = "flat holds seg_test, seg_train, which look like splits: call them train and test"
    write_classes(tmp_path / "data" / "flowers" / "train")
    write_classes(tmp_path / "data" / "more")
    refused(read, tmp_path / "data", r"data holds a set, \S+/flowers: give that, or move it elsewhere")
    for place in (tmp_path / "flat").rglob("class*"):
        if place.is_dir():
            place.rmdir()
    refused(read, tmp_path / "flat", message)


@BOTH
def test_classes_alone_may_be_nested_and_have_any_names(tmp_path: Path, read: Any) -> None:
    for name in ("train_station", "forest"):
        write_classes(tmp_path / name)
    (tmp_path / "forest" / "class0").rename(tmp_path / "Test")
    assert read(tmp_path).classes == 3
    (tmp_path / "none").mkdir()
    refused(read, tmp_path, r"none is an empty class: put images of it there")


@BOTH
def test_two_folders_for_one_split_are_refused(tmp_path: Path, read: Any) -> None:
    for name in ("train", "training", "test"):
        write_classes(tmp_path / name)
    refused(read, tmp_path, "holds both train and training: keep one of them there")


@BOTH
def test_parts_of_a_split_are_all_there_and_once(tmp_path: Path, read: Any) -> None:
    for part in (0, 2):
        write_parquet(tmp_path / f"train-{part:05d}-of-00003.parquet")
    refused(read, tmp_path, r"lacks part 1 of 00003 beside train-00000-of-00003\.parquet: get it anew")
    write_parquet(tmp_path / "train-00001-of-00003.parquet")
    assert len([name for part in contents(read(tmp_path)) for name in part]) == 3 * CLASSES * EACH
    write_parquet(tmp_path / "train.parquet")
    refused(read, tmp_path, r"train-00000-of-00003\.parquet and \S+train\.parquet are of the same split, but not parts of one")


@BOTH
def test_a_labelled_test_split_is_never_passed_over(tmp_path: Path, read: Any) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split)
    for file in (tmp_path / "test" / "class1").iterdir():
        file.rename(file.with_suffix(".heic"))
    refused(read, tmp_path, r"test/class1 is an empty class: put images of it there \(\.bmp, ")


@BOTH
def test_other_splits_lie_where_training_does(tmp_path: Path, read: Any) -> None:
    write_parquet(tmp_path / "train.parquet")
    expected = contents(read(tmp_path))
    for other in ("old/test.parquet", "a/b/test.parquet", ".backup/test.parquet"):
        write_parquet(tmp_path / other)
    assert contents(read(tmp_path)) == expected
    write_parquet(tmp_path / "test" / "0000.parquet")
    assert len(read(tmp_path).test.labels) == CLASSES * EACH
    hidden = write_parquet(tmp_path / "set" / "data" / "train.parquet")
    expected = contents(read(tmp_path / "set"))
    write_parquet(tmp_path / "set" / ".data" / hidden.name)
    assert contents(read(tmp_path / "set")) == expected


@BOTH
def test_training_images_without_labels_are_named(tmp_path: Path, read: Any) -> None:
    write_parquet(tmp_path / "train.parquet", [-1] * CLASSES * EACH)
    refused(read, tmp_path, "holds training images without labels: all are -1")


@BOTH
def test_two_links_to_one_folder_count_once_under_the_first_name(tmp_path: Path, read: Any) -> None:
    found = []
    for order in (("a", "b"), ("b", "a")):
        folder, elsewhere = write_classes(tmp_path / f"{order[0]} first" / "set"), tmp_path / f"{order[0]} first" / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "more.png").write_bytes(picture(200))
        for name in order:
            (folder / "class0" / name).symlink_to(elsewhere)
        found.append([Path(name).relative_to(folder) for part in contents(read(folder)) for name in part])
    assert found[0] == found[1]
    assert Path("class0/a/more.png") in found[0]


@BOTH
def test_a_class_may_not_lose_all_its_images_to_what_is_held_out(tmp_path: Path, read: Any) -> None:
    for label in range(2):
        (tmp_path / f"class{label}").mkdir()
        (tmp_path / f"class{label}" / "1.png").write_bytes(picture(label))
    refused(read, tmp_path, r"has no image of class \d left to train on, 1 being held out: expected some of all 2 classes")


def test_small_images_may_lose_no_class_either(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in range(2):
            (tmp_path / split / f"class{label}").mkdir(parents=True)
            (tmp_path / split / f"class{label}" / "1.png").write_bytes(picture(label))
    with pytest.raises(SparsebenchError, match=r"has no image of class \d left to train on, 1 being held out"):
        images_workload(f"resnet-8@{tmp_path}").training_examples  # noqa: B018


def test_encoded_images_are_not_asked_for_in_layouts_that_hold_none(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    refused(
        lambda folder: read_encoded_splits(folder, 10, 10),
        tmp_path,
        r"images: expected train\*\.parquet, a folder train with one folder of images for each class, or only such folders$",
    )


def test_grey_pgm_files_of_16_bits_become_8(tmp_path: Path) -> None:
    expected = read_splits(write_classes(tmp_path / "eight"), 100)
    folder = write_classes(tmp_path / "sixteen")
    for file in folder.rglob("*.png"):
        level = int(file.stem) * 257
        file.with_suffix(".pgm").write_bytes(b"P5 20 20 65535\n" + np.full(400, level, ">u2").tobytes())
        file.unlink()
    assert torch.equal(read_splits(folder, 100).training.pixels, expected.training.pixels)


def test_folders_that_cannot_be_looked_into_are_named_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for argument in ("~nobody-of-this-name/flowers", "x" * 300, f"resnet-8@{tmp_path / 'nowhere'}"):
        with pytest.raises(SparsebenchError, match=r"no user has that folder|is no folder; expected images:PATH"):
            images_workload(argument)
    for name, message in (("~nobody-of-this-name", "no user has that folder"), ("x" * 300, "is no folder: expected one")):
        monkeypatch.setenv("SPARSEBENCH_DATA", name)
        with pytest.raises(SparsebenchError, match=message):
            resolve("fashion-mnist", "dense", {})


@BOTH
def test_a_class_that_cannot_be_read_is_not_called_empty(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_classes(tmp_path / "set")
    scan = os.scandir

    def denied(path: Any) -> Any:  # a superuser may read everything
        if str(path).endswith("class1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(read, folder, r"^cannot read \S+class1: Permission denied$")


def test_epochs_are_of_the_images_that_are_left_to_train_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split)
    for model in ("resnet-8", "resnet-18"):
        task = images_workload(f"{model}@{tmp_path}")
        assert task.training_examples == 27
        asked = resolve(task.name, "dense", {}, {"steps": "3 epochs", "batch_size": 4})
        assert asked.recipe.steps == 18
        settings = RECIPES["large-images" if model == "resnet-18" else "small-resnet"].settings
        assert task.recipe.steps == settings["epochs"] * max(27 // settings["batch_size"], 1)


def refused(read: Any, folder: Path, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@BOTH
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2**40, *[2] * 27], r"train\.parquet: row 2 has the label 1099511627776: expected 0 or more"),
        (pa.array([2**63 + 5, *[2] * 29], pa.uint64()), r"row 0 has the label 9223372036854775813: expected 0 or more"),
        ([0, None, *[2] * 28], r"row 1 has the label None: expected 0 or more"),
        ([0, 1, -1, *[2] * 27], r"row 2 has label -1: expected 0 to 2 \(3 classes\)"),
        ([0, 1, 77, *[2] * 27], r"has 30 images for 78 classes, the greatest label is 77 \(\S+, row 2\): expected some of all"),
        ([0] * 30, r"train\.parquet has one class: expected at least two"),
        ([0, 2] * 15, r"train\.parquet has no image of class 1: expected some of all 3 classes"),
    ],
)
def test_labels_that_make_no_sense_are_named(tmp_path: Path, read: Any, labels: Any, message: str) -> None:
    write_parquet(tmp_path / "train.parquet", labels)
    refused(read, tmp_path, message)


@BOTH
def test_classes_are_those_that_parquet_files_name(tmp_path: Path, read: Any) -> None:
    write_parquet(tmp_path / "train.parquet", names=5)
    refused(read, tmp_path, "has no image of class 3: expected some of all 5 classes")
    refused(lambda folder: read_splits(folder, 100, 4), tmp_path, r"train\.parquet has 5 classes: expected 4")
    write_parquet(tmp_path / "train.parquet", names=2)
    refused(read, tmp_path, r"train\.parquet, row 2 has label 2: expected 0 to 1")


@BOTH
def test_sets_of_nothing_and_links_to_nothing_are_named(tmp_path: Path, read: Any) -> None:
    empty = pa.table({"image": pa.array([], pa.struct({"bytes": pa.binary()})), "label": pa.array([], pa.int64())})
    pq.write_table(empty, tmp_path / "train.parquet")
    refused(read, tmp_path, r"train\.parquet holds no images")
    pq.write_table(pa.table({"image": [{"bytes": "text"}], "label": [0]}), tmp_path / "train.parquet")
    refused(read, tmp_path, r"expected image to be a struct of bytes and path")
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.parquet").symlink_to(tmp_path / "nowhere")
    refused(read, tmp_path, r"train\.parquet is not a readable Parquet file \(.*No such file")


def test_idx_files_of_nothing_or_without_their_labels_are_named(tmp_path: Path) -> None:
    for stem in ("train", "t10k"):
        write_idx_split(tmp_path, stem, np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.uint8), packed=False)
    refused(read_splits, tmp_path, "train-labels-idx1-ubyte holds no images")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    message = r"train-images-idx3-ubyte lies there alone: expected train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz beside"
    refused(read_splits, tmp_path, message)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "images")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    refused(read_splits, tmp_path, "train-labels-idx1-ubyte lies there alone: expected train-images-idx3-ubyte or")


def test_batches_of_cifar_are_named(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    pixels = np.zeros((10, 3072), np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (place / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    assert read_splits(tmp_path, classes=10).training.name(12) == f"{place / 'data_batch_2'}: example 2"
    for label, message in (
        (12, r"data_batch_3: example 9 has label 12: expected 0 to 9"),
        (2**70, "data_batch_3 is not a batch"),
    ):
        (place / "data_batch_3").write_bytes(pickle.dumps({"data": pixels, "labels": [*range(9), label]}))
        refused(lambda folder: read_splits(folder, classes=10), tmp_path, message)
    (tmp_path / "cifar-100-python").mkdir()
    refused(
        read_splits, tmp_path, r"holds several sets, in \S+/cifar-10-batches-py and in \S+/cifar-100-python: give one of them"
    )
    (tmp_path / "cifar-100-python").rmdir()
    (place / "data_batch_3").unlink()
    refused(read_splits, tmp_path, "cifar-10-batches-py lacks data_batch_3: get it anew")


def test_images_that_a_network_cannot_take_are_refused(tmp_path: Path) -> None:
    wide = write_classes(tmp_path / "wide", size=(20, 24))
    with pytest.raises(SparsebenchError, match="lenet-5 needs square images, these have 24x20 pixels"):
        images_workload(f"lenet-5@{wide}").build_model()
    task = images_workload(f"resnet-8@{wide}")
    assert task.loss(task.build_model(), task.batch(0, 0, 4), 0.0).isfinite()
    with pytest.raises(SparsebenchError, match="lenet-5 needs images of at least 16x16 pixels, these have 8x8"):
        make_network("lenet-5", 1, 8, 10)
    assert make_network("lenet-5", 1, 16, 10)
    for name in ("resnet_9000", "vit_tiny_patch16_224.nonsense"):
        with pytest.raises(SparsebenchError, match=rf"timm \S+ has no model '{name}' \("):
            make_network(f"timm.{name}", 3, 224, 10)


def test_a_folder_given_in_the_command_must_hold_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds it, and so it would be trained on other files than were meant."""
    for name in ("SPARSEBENCH_DATA", "SPARSEBENCH_DATA_ALONE"):  # so that both are as before in the end
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    for stem in ("train", "t10k"):
        labels = (np.arange(60) % 10).astype(np.uint8)
        write_idx_split(tmp_path / "cache/data/fashion-mnist", stem, np.zeros((60, 28, 28), np.uint8), labels, packed=False)
    (tmp_path / "mine").mkdir()
    command = ["train", "fashion-mnist/lenet-300-100", "--steps", "1", "--set", "batch_size=9", "--out", str(tmp_path / "runs")]
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "mine"))
    assert CliRunner().invoke(cli.app, command).exit_code == 0  # the environment's folder may lack some sets
    in_memory._prepared.cache_clear()  # which a new process has not got
    found = CliRunner().invoke(cli.app, [*command, "--data", str(tmp_path / "mine")])
    assert str(found.exception) == (
        f"fashion-mnist is not in {tmp_path / 'mine'}: put its files (train.parquet, test.parquet, or those of another layout) "
        "there or into its folder fashion-mnist, or leave out --data"
    )
    shutil.copytree(tmp_path / "cache/data/fashion-mnist", tmp_path / "mine/fashion-mnist")
    assert CliRunner().invoke(cli.app, [*command, "--data", str(tmp_path / "mine")]).exit_code == 0
