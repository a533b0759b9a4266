"""What a training pass of a workload's network costs, weight by weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsebench.accounting import LayerReport, report
from sparsebench.training.devices import on_device
from sparsebench.workloads.placement import device_of
from sparsebench.workloads.workload import Workload

__all__ = ["report_of_example"]


class _Pass(nn.Module):
    """A network called as its workload calls it, so that nobody else needs to know what its input looks like."""

    def __init__(self, workload: Workload, network: nn.Module) -> None:
        super().__init__()
        self.network, self.workload = network, workload

    def forward(self, batch: Any) -> torch.Tensor:
        return self.workload.loss(self.network, batch, 0.0)


def report_of_example(workload: Workload, network: nn.Module) -> list[LayerReport]:
    """The rows of `accounting.report` for one training example, by the names that the network has for its parameters."""
    batch = on_device(workload.batch(0, 0, 1), device_of(network))
    rows = report(_Pass(workload, network), (batch,)).layers
    return [replace(row, name=row.name.removeprefix("network.")) for row in rows]
