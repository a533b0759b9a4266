"""The workloads that studies and the command line know by name."""

from __future__ import annotations

from sparsebench.registry import Registry
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.workload import Workload

__all__ = ["WORKLOADS"]

WORKLOADS: Registry[Workload] = Registry("workload", "sparsebench.workloads", [DIGITS])
