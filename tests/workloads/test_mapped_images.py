"""Parquet files that are too large for memory are read through Arrow files, and hold the same images."""

from __future__ import annotations

import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.images import mapped_images, parquet_files
from sparsebench.workloads.images.parquet_files import parquet_images


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """All files count as large; returns where Arrow files go."""
    monkeypatch.setattr(parquet_files, "IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arrow"


def write(file: Path, images: list[bytes | None], labels: list[int], group: int = 1000) -> Path:
    rows = [None if image is None else {"bytes": image, "path": f"{image!r}"} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())}), file, row_group_size=group)
    return file


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=40), max_size=20), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 7),
)
def test_the_same_images_as_when_read_into_memory(tmp_path, large, monkeypatch, contents, group, rows):
    mapped_images._batches.cache_clear()
    mapped_images._begins.cache_clear()
    monkeypatch.setattr(mapped_images, "ROWS", rows)
    number = len(list(tmp_path.iterdir()))
    files = [
        write(tmp_path / f"{number}" / f"train-{part}.parquet", images, [*range(len(images))], group)
        for part, images in enumerate(contents)
    ]
    mapped = pickle.loads(pickle.dumps(parquet_images(files)))
    monkeypatch.setattr(parquet_files, "IN_MEMORY_BYTES", 2**40)
    whole = parquet_images(files)
    monkeypatch.setattr(parquet_files, "IN_MEMORY_BYTES", 0)
    assert list(mapped.labels) == list(whole.labels)
    assert mapped.source == whole.source
    for index in range(len(whole.labels)):
        assert mapped.read(index) == whole.read(index)
        assert mapped.name(index) == whole.name(index)


def test_arrow_files_are_written_once_and_anew_when_the_file_changed(tmp_path, large):
    file = write(tmp_path / "train.parquet", [b"one"], [0])
    parquet_images([file])
    (arrow,) = large.iterdir()
    written = arrow.stat().st_mtime_ns
    parquet_images([file])
    assert [path.stat().st_mtime_ns for path in large.iterdir()] == [written]
    write(file, [b"another"], [0])
    assert parquet_images([file]).read(0) == b"another"
    assert len(list(large.iterdir())) == 2


def test_of_several_that_need_a_file_one_writes_it(tmp_path, large, monkeypatch):
    file = write(tmp_path / "train.parquet", [b"one"], [0])
    written, columns = [], mapped_images._columns

    def slowly(*given):
        written.append(given)
        time.sleep(0.2)
        return columns(*given)

    monkeypatch.setattr(mapped_images, "_columns", slowly)
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(lambda _: mapped_images.map_images(file, "image", large), range(4)))
    assert len(written) == 1
    assert list(large.iterdir()) == list(places)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"ARROW1" + bytes(100))])
def test_a_damaged_or_removed_arrow_file_is_named(tmp_path, large, damage):
    mapped_images._batches.cache_clear()
    mapped_images._begins.cache_clear()
    images = parquet_images([write(tmp_path / "train.parquet", [b"one"], [0])])
    (arrow,) = large.iterdir()
    damage(arrow)
    message = rf"^{re.escape(str(arrow))} cannot be read \(.*\): remove it, and the next run makes it anew$"
    with pytest.raises(SparsebenchError, match=message):
        images.read(0)


def test_a_row_without_an_image_is_named_when_it_is_read(tmp_path, large):
    images = parquet_images([write(tmp_path / "train.parquet", [b"one", None, b""], [0, 0, 0])])
    assert images.read(0) == b"one"
    for row in (1, 2):
        with pytest.raises(SparsebenchError, match=rf"train.parquet, row {row} holds no image"):
            images.read(row)


def test_a_damaged_file_leaves_no_arrow_file(tmp_path, large):
    file = write(tmp_path / "train.parquet", [bytes([number % 256]) * 500 for number in range(2000)], [0] * 2000, 100)
    content = bytearray(file.read_bytes())
    # Of the first images' page, header and all; the labels, and what the file says of itself at its end, stay.
    content[4:200] = bytes(196)
    file.write_bytes(content)
    with pytest.raises(SparsebenchError, match=r"train.parquet is not a readable Parquet file"):
        parquet_images([file])
    assert list(large.iterdir()) == []


def test_other_columns_than_images_are_refused(tmp_path):
    pq.write_table(pa.table({"image": ["text"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(SparsebenchError, match="expected image to be a struct of bytes and path"):
        parquet_images([tmp_path / "train.parquet"])
