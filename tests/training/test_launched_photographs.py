"""Photographs and a network of timm's under `accelerate launch`: each process reads its part, the network is that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsebench.storage import load_compressed

CLASSES, EACH = 2, 12
# Without batch norm and dropout; with SGD, since with Adam gradients that are rounding errors would become whole steps.
TRAINING = [
    "--method",
    "magnitude",
    "--sparsity",
    "0.8",
    "--begin",
    "1 steps",
    "--end",
    "4 steps",
    "--frequency",
    "1 steps",
    "--steps",
    "6",
]
SETTINGS = ["--set", "batch_size=5", "--set", "learning_rate=0.01", "--set", "warmup_steps=0"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            place = tmp_path / "photographs" / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(EACH):
                pixels = random.integers(0, 256, (48, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpeg")
    return tmp_path / "photographs"


@pytest.mark.slow
def test_two_processes_train_a_network_of_timm_as_one_does(photographs: Path, tmp_path: Path) -> None:
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    runs = {"one": [sys.executable], "two": launcher}
    for out, start in runs.items():
        command = [*start, "-m", "sparsebench", "train", f"images:timm.test_vit@{photographs}", *TRAINING, *SETTINGS]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / out)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SPARSEBENCH_LOADER_PROCESSES": "1"},
        )
        assert done.returncode == 0, done.stderr
    results, weights = [], []
    for out in runs:
        [result] = (tmp_path / out).glob("runs/*/result.json")
        results.append(json.loads(result.read_text()))
        weights.append(load_compressed(result.with_name("model.safetensors")))
    assert results[1]["environment"]["processes"] == "2"
    assert results[0]["run_id"] == results[1]["run_id"]
    assert results[0]["points"][0]["sparsity"] == results[1]["points"][0]["sparsity"] == pytest.approx(0.8, abs=1e-4)
    for name, weight in weights[0].items():
        assert torch.equal(weight == 0, weights[1][name] == 0), name
        assert torch.allclose(weight, weights[1][name], atol=1e-5), name
