"""The network of a finished run, as a module again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.storage import inspect, load_compressed
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import ExampleInput, ShowsUse

__all__ = ["FinishedNetwork", "finished_network"]


class FinishedNetwork(NamedTuple):
    """A network and what shows how it is used.

    Attributes:
        model: The network in evaluation mode, on the CPU.
        workload: What it was trained on.
    """

    model: nn.Module
    workload: ShowsUse

    def use_of(self, example: ExampleInput) -> Callable[[nn.Module], Any]:
        """What is done with this network, or another of the workload, and an example."""
        return lambda model: self.workload.use(model, example)


def finished_network(source: Path) -> FinishedNetwork:
    """Build the network of a finished run and load its weights.

    Args:
        source: The run's folder, or its `model.safetensors`, which tells the configuration too.

    Raises:
        SparsebenchError: There is no such file, it is damaged or tells no workload of this installation, or the weights are
            those of another network.
    """
    path = RunFolder(source).model_path if source.is_dir() else source
    if not path.exists():
        raise SparsebenchError(f"there is no {path}: expected the folder of a finished run, or its model.safetensors")
    name = (inspect(path).config or {}).get("workload")
    if not isinstance(name, str):
        raise SparsebenchError(
            f"{path} does not tell its workload, so its network cannot be built here: load it into yours with load_compressed"
        )
    workload = WORKLOADS.get(name)
    if not isinstance(workload, ShowsUse):
        raise SparsebenchError(f"the workload {name!r} does not show how its networks are used: it lacks example_input and use")
    with torch.random.fork_rng(devices=[]):
        model = workload.build_model()
    try:
        model.load_state_dict(load_compressed(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SparsebenchError(f"{path} holds another network than {name!r} has here: {reason:.200}") from error
    return FinishedNetwork(model.eval(), cast(ShowsUse, workload))
