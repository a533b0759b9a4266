"""Whether a traced network computes each example of a batch by itself, so that a batch can be run a part at a time."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.folding import Added, Rectified
from sparsebench.inference.layers import SparseLinear

__all__ = ["examples_are_independent"]

# What gives the same for an example whatever else is in the batch, in evaluation mode.
_MODULES = {
    *(SparseConvolution, SparseLinear, Added, Rectified, nn.Linear, nn.Identity, nn.Flatten, nn.LayerNorm, nn.GroupNorm),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d),
}
_FUNCTIONS = {
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout),
    *(operator.add, operator.sub, operator.mul, operator.iadd, operator.imul, torch.add, torch.sub, torch.mul),
}
_METHODS = {"relu", "relu_", "sigmoid", "tanh", "add", "add_", "mul", "mul_", "contiguous"}
# These keep the order of all elements: the parts of a batch, one after the other, are the batch.
_VIEWS = {"view", "reshape", "flatten", torch.flatten, torch.reshape}


def examples_are_independent(traced: fx.GraphModule) -> bool:
    """Whether nothing in a network's code looks at more than one example of the batch.

    Args:
        traced: Takes a tensor with one example in each row.

    Returns:
        Whether that is certain: True only where every operation is known.

    Example:
        >>> from torch import fx, nn
        >>> from sparsebench.inference.independence import examples_are_independent
        >>> examples_are_independent(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))
        True
        >>> examples_are_independent(fx.symbolic_trace(nn.Sequential(nn.Linear(3, 8), nn.Softmax(0))))
        False
    """
    sizes: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if _is_size(node, sizes):
            sizes.add(node)
        elif node.op in ("call_module", "call_function", "call_method"):
            is_view = node.target in _VIEWS
            # A number that depends on the batch may only say how to look at it.
            if not is_view and any(argument in sizes for argument in node.all_input_nodes):
                return False
            if not is_view and not _is_known(traced, node):
                return False
    return True


def _is_size(node: fx.Node, sizes: Iterable[Any]) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return str(node.args[1]) == "shape"
    return node.target is operator.getitem and node.args[0] in sizes


def _is_known(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        # Without statistics of its own, batch normalization takes those of the batch.
        return type(module) in _MODULES and getattr(module, "running_mean", 0) is not None
    if node.target in (torch.mean, "mean", torch.cat):
        along = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dimensions = along if isinstance(along, list | tuple) else [along]
        return all(isinstance(dimension, int) and dimension >= 1 for dimension in dimensions)
    return node.target in (_FUNCTIONS if node.op == "call_function" else _METHODS)
