"""What a run takes from the finished run that it goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.sparsifiers.inherited import Inherited
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.storage import load_compressed
from sparsebench.training.config import RunConfig
from sparsebench.workloads.workload import Workload

__all__ = ["ancestors", "inherit", "new_weights"]


def new_weights(workload: Workload, seed: int, *purpose: str) -> dict[str, torch.Tensor]:
    """Weights as a workload draws them; torch's generator is left as it was.

    Args:
        workload: The workload.
        seed: Of the run.
        purpose: Nothing for the weights with which a run of this seed begins, to the last bit; a word for others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(keyed_generator(seed, *purpose).initial_seed() if purpose else seed)
        return dict(workload.build_model().state_dict())


def inherit(config: RunConfig, folder: RunFolder, workload: Workload, network: nn.Module) -> Inherited | None:
    """What the run of a configuration takes from its parent, which lies beside it.

    Args:
        config: The configuration.
        folder: The run's folder.
        workload: Its workload.
        network: The network that is to be trained.

    Returns:
        The trained network and its earlier weights; None where the configuration has no parent. In iterative pruning the earlier
        weights are those of the first network of all.

    Raises:
        SparsebenchError: The parent is not finished, or a file of it cannot be read.
    """
    if config.parent is None:
        return None
    runs = folder.path.parent
    parent = _folder(runs, config)

    def earlier(step: int) -> Mapping[str, torch.Tensor]:
        *_, (first, held) = _line(config, runs)
        if step == 0:
            return new_weights(workload, first.seed)
        if first.keep_weights_at != step:
            raise SparsebenchError(
                f"run {first.run_id} kept no weights of step {step}; its keep_weights_at is {first.keep_weights_at}"
            )
        return load_compressed(held.kept_weights_path)

    return Inherited(
        network, load_compressed(parent.model_path), earlier, lambda: new_weights(workload, config.seed, "from scratch")
    )


def ancestors(config: RunConfig, runs: Path) -> tuple[RunFolder, ...]:
    """The finished runs whose files the run of a configuration reads: its parent, the parent's parent, and so on.

    Args:
        config: The configuration.
        runs: The folder in which run folders lie side by side.

    Raises:
        SparsebenchError: One is not finished.
    """
    return tuple(folder for _, folder in _line(config, runs))


def _line(config: RunConfig, runs: Path) -> Iterator[tuple[RunConfig, RunFolder]]:
    while config.parent is not None:
        found = _folder(runs, config)
        config = RunConfig.model_validate(found.read_result().config)
        yield config, found


def _folder(runs: Path, config: RunConfig) -> RunFolder:
    assert config.parent is not None
    parent = RunFolder(runs / config.parent.run_id)
    if parent.status() != "finished":
        raise SparsebenchError(f"{config.run_id} goes on from the run {parent.path.name}, which is not finished in {runs}")
    return parent
