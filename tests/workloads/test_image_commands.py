"""Images through the command line: what a newcomer types, and what a damaged file makes of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx_split
from PIL import Image

from sparsebench import cli
from sparsebench.workloads.images import in_memory


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine, and in an empty directory."""
    for name in ("SPARSEBENCH_DATA", "SPARSEBENCH_DATA_ALONE"):  # so that both are as before in the end
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPARSEBENCH_LOADER_PROCESSES", "1")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    in_memory._prepared.cache_clear()


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sparsebench", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def clothes(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for stem in ("train", "t10k"):
        pixels = random.integers(0, 256, (60, 28, 28), dtype=np.uint8)
        write_idx_split(folder, stem, pixels, (np.arange(60) % 10).astype(np.uint8), packed=True)
    return folder


def photographs(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4)):
        for number in range(count):
            place = folder / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file, "JPEG")
            (place / f"{number}.jpeg").write_bytes(file.getvalue())
    return folder


def test_the_four_files_are_all_that_training_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--method", "magnitude", "--sparsity", "0.9", "--steps", "4", "--set", "batch_size=18")
    assert run(monkeypatch, "train", "fashion-mnist", *words, "--data", clothes(tmp_path / "four")) == 0
    (record,) = (tmp_path / "empty").rglob("result.json")
    result = json.loads(record.read_text())
    assert (result["workload"], result["method"]) == ("fashion-mnist/resnet-8", "magnitude")
    assert result["points"][0]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert f"{result['points'][0]['metrics']['test']['accuracy']:.2f}" in capsys.readouterr().out


def test_a_truncated_file_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = clothes(tmp_path / "four") / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    assert run(monkeypatch, "train", "fashion-mnist", "--steps", "2", "--data", tmp_path / "four") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"{file} is truncated or damaged" in lines[0]


def test_a_photograph_that_a_loader_cannot_read_is_one_line_and_the_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "set")
    file = folder / "train" / "class1" / "5.jpeg"
    file.write_bytes(file.read_bytes()[:200])
    words = ("--steps", "40", "--set", "batch_size=2", "--checkpoint-seconds", "0")
    assert run(monkeypatch, "train", f"images:resnet-18@{folder}", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"{file} is not a readable image" in lines[0]
    assert len(list((tmp_path / "empty").rglob("checkpoint.pt"))) == 1


def test_another_set_s_folder_is_not_taken_for_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSEBENCH_DATA", str(clothes(tmp_path / "four")))
    assert run(monkeypatch, "train", "imagenet", "--steps", "1") == 2
    assert "imagenet is not here: put its folders train and val" in capsys.readouterr().err
