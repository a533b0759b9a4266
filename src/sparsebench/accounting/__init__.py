"""What a network holds and what it costs: weights, zeros, bytes and multiply-adds, layer by layer."""

from __future__ import annotations

from sparsebench.accounting.report import LayerReport, Report, report

__all__ = ["LayerReport", "Report", "report"]
