"""What a network holds and what it costs: weights, zeros, bytes and multiply-adds, layer by layer."""

from __future__ import annotations

from sparsebench.accounting.report import LayerReport, Report, report
from sparsebench.accounting.training_cost import TrainingCost

__all__ = ["LayerReport", "Report", "TrainingCost", "report"]
