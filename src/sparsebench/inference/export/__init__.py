"""Finished networks for other programs: ONNX files, programs of torch.export, semi-structured weights for GPUs."""

from sparsebench.inference.export.onnx_file import OnnxReport, export_onnx
from sparsebench.inference.export.program import export_program
from sparsebench.inference.export.semi_structured_weights import semi_structured

__all__ = ["OnnxReport", "export_onnx", "export_program", "semi_structured"]
