"""Batch normalization, sums and rectifiers made part of the layer before them, where a module's code is simple enough."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["CONVOLUTIONS", "TRACED", "Added", "Arrangement", "Rectified", "Traced", "fold", "is_rectifier"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Under this name a `Traced` holds what it runs; no part of the names that users know.
TRACED = "_traced"
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECTIFIERS = (F.relu, F.relu_, torch.relu, torch.relu_)
_OPERATORS_IN_PLACE = {
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and hasattr(operator, f"__{name}__")
}
_SUMS, _SUMS_IN_PLACE = (operator.add, torch.add, "add"), (operator.iadd, "add_")


# Of what wraps a layer: the layer's own, for code that reads them.
_WEIGHT = property(lambda wrapper: wrapper.layer.weight)
_BIAS = property(lambda wrapper: wrapper.layer.bias)


class Added(nn.Module):
    """A convolution and the sum of what it gives with something else.

    Args:
        layer: Any module whose output nothing else reads.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.inference.folding import Added
        >>> Added(nn.Hardtanh())(torch.tensor([-1.0, 2.0]), torch.tensor([10.0, 20.0]))
        tensor([ 9., 21.])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    weight, bias = _WEIGHT, _BIAS

    def forward(self, x: Tensor, added: Any) -> Tensor:
        """The layer's output plus `added`, a tensor or a number."""
        out = cast(Tensor, self.layer(x))
        if isinstance(added, Tensor) and (added.shape, added.dtype) == (out.shape, out.dtype):
            return out.add_(added)
        return cast(Tensor, out + added)


class Rectified(nn.Module):
    """A layer and the positive part of what it gives.

    Args:
        layer: Any module whose output nothing else reads.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.inference.folding import Rectified
        >>> Rectified(nn.Identity())(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    weight, bias = _WEIGHT, _BIAS

    def forward(self, *inputs: Any) -> Tensor:
        """The layer's output without what is negative."""
        return torch.relu_(self.layer(*inputs))


class Arrangement(NamedTuple):
    """How a traced network gets its input.

    Attributes:
        channels_last: Whether images, in four dimensions, are turned to this memory format.
        rows: How many examples at a time, for smaller activations that stay in the caches; None for all at once. For networks
            that compute each by itself.
        dimensions: Of an input that has examples in its rows.
    """

    channels_last: bool = False
    rows: int | None = None
    dimensions: int = 0


class Traced(nn.Module):
    """A module that runs what tracing made of another, and has that one's attributes and parts.

    Args:
        network: What tracing made; by itself it would lose attributes when it is copied.
        original: The module that was traced.

    Attributes:
        arrangement: How the input is handed to the network.
        chained: What runs in the place of the network, the same in faster code; None where it runs itself.
    """

    arrangement: Arrangement
    chained: Callable[[Any], Any] | None

    def __init__(self, network: fx.GraphModule, original: nn.Module) -> None:
        super().__init__()
        own = {*dir(nn.Module), *vars(self), "arrangement", "chained"}
        for name in dir(original):
            if not name.startswith("_") and name not in own and name not in original._modules:
                value = getattr(original, name)
                if not callable(value) and not isinstance(value, Tensor):
                    vars(self)[name] = value
        self.arrangement, self.chained = Arrangement(), None
        self.add_module(TRACED, network)
        self.train(original.training)

    def forward(self, x: Any) -> Any:
        """What the module computes."""
        network, arrangement = self.chained or cast(fx.GraphModule, self._modules[TRACED]), self.arrangement
        if arrangement.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if arrangement.rows is None or x.dim() != arrangement.dimensions or len(x) <= arrangement.rows:
            return network(x)
        return torch.cat([network(rows) for rows in x.split(arrangement.rows)])

    def extra_repr(self) -> str:
        """The arrangement, where there is something to say."""
        rows = [] if self.arrangement.rows is None else [f"{self.arrangement.rows} at a time"]
        return ", ".join(["channels_last"] * self.arrangement.channels_last + rows)

    def __getattr__(self, name: str) -> Any:
        # The parts of the original are those of the network; how to copy it (__deepcopy__) is not. Without any parts yet, this
        # is a copy about to be filled.
        network = vars(self).get("_modules", {}).get(TRACED)
        if network is not None and not name.startswith("_"):
            return getattr(network, name)
        return super().__getattr__(name)


def fold(model: nn.Module) -> nn.Module:
    """The same network with fewer passes over its activations, for inference.

    The code of modules that take one argument and have no public methods but `forward` is traced (torch.fx); where tracing
    fails or a module is of another kind, its parts are tried one by one. In what was traced, batch normalization after a
    convolution or linear layer becomes part of its weights, the sum of a convolution with something else part of an `Added`, and
    a rectifier part of a `Rectified`. The modules around stay as they are.

    Args:
        model: In evaluation mode; its parts are changed in place.

    Returns:
        The model, or a `Traced` in its place.
    """
    if _takes_one_argument(model) and not _has_methods(model) and not _has_hooks(model):
        folded = _fold_traced(model)
        if folded is not None:
            return Traced(folded, model)
    for name, child in model.named_children():
        setattr(model, name, fold(child))
    return model


def _has_hooks(model: nn.Module) -> bool:
    """Whether someone looks at parts of the model: they would no longer be called, or with other values."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _has_methods(model: nn.Module) -> bool:
    """Whether someone may call something else than the module itself."""
    if type(model) is nn.Sequential:
        return False
    names = [name for name in dir(type(model)) if not name.startswith("_") and not hasattr(nn.Module, name)]
    members = [inspect.getattr_static(type(model), name) for name in names]
    return any(callable(member) or isinstance(member, property | staticmethod | classmethod) for member in members)


def _takes_one_argument(module: nn.Module) -> bool:
    """A module with several may decide by whether one is None, which tracing does not see."""
    if type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential:
        return False
    parameters = list(inspect.signature(module.forward).parameters.values())
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(parameters) == 1 and parameters[0].kind in plain and parameters[0].default is inspect.Parameter.empty


def _fold_traced(model: nn.Module) -> fx.GraphModule | None:
    """The folded network, None where its code cannot be traced or there is nothing to fold."""
    try:
        traced = fx.symbolic_trace(model)
    except Exception:
        # Whatever a user's code makes of being called with a proxy.
        return None
    changed = 0
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            changed += _fold_normalization(traced, node)
            summed = _fold_sum(traced, node)
            changed += summed is not node
            changed += _fold_rectifier(traced, summed)
    if not changed:
        return None
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _fold_normalization(traced: fx.GraphModule, node: fx.Node) -> bool:
    layer, after = traced.get_submodule(str(node.target)), _only_reader(node)
    if after is None or after.op != "call_module" or not _is_used_once(traced, node):
        return False
    norm = traced.get_submodule(str(after.target))
    if type(norm) not in _NORMALIZATIONS or norm.running_mean is None:
        return False
    statistics = cast(nn.BatchNorm2d, norm)
    if type(layer) in CONVOLUTIONS:
        folded: nn.Module = fuse_conv_bn_eval(cast(nn.Conv2d, layer), statistics)
    elif type(layer) is nn.Linear:
        folded = fuse_linear_bn_eval(layer, statistics)
    else:
        return False
    _replace(traced, node, after, folded.eval())
    return True


def _fold_sum(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node that computes layer and sum, in the place of the sum; `node` itself where there is none."""
    layer, after = traced.get_submodule(str(node.target)), _only_reader(node)
    if type(layer) not in CONVOLUTIONS or after is None or not _is_used_once(traced, node):
        return node
    if after.kwargs or len(after.args) != 2 or len(node.args) != 1 or node.kwargs:
        return node
    left, right = after.args
    is_sum = after.target in _SUMS or (after.target in _SUMS_IN_PLACE and left is node)
    if not is_sum or not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right:
        return node
    if _is_written_between(traced, node, after):
        return node
    parent, _, name = str(node.target).rpartition(".")
    setattr(traced.get_submodule(parent), name, Added(layer).eval())
    with traced.graph.inserting_before(after):
        summed = traced.graph.call_module(str(node.target), (node.args[0], right if left is node else left))
    after.replace_all_uses_with(summed)
    traced.graph.erase_node(after)
    traced.graph.erase_node(node)
    return summed


def _is_written_between(traced: fx.GraphModule, node: fx.Node, after: fx.Node) -> bool:
    """Whether something between two nodes may write to a tensor, and so to what the first reads."""
    between = node.next
    while between is not after:
        name = getattr(between.target, "__name__", str(between.target))
        if between.op == "call_module":
            if getattr(traced.get_submodule(str(between.target)), "inplace", False):
                return True
        elif between.op in ("call_function", "call_method"):
            in_place = between.kwargs.get("inplace") is True or any(argument is True for argument in between.args)
            in_place = in_place or "out" in between.kwargs
            if in_place or name.endswith("_") or name == "setitem" or between.target in _OPERATORS_IN_PLACE:
                return True
        between = between.next
    return False


def _fold_rectifier(traced: fx.GraphModule, node: fx.Node) -> bool:
    layer, after = traced.get_submodule(str(node.target)), _only_reader(node)
    if type(layer) not in (*CONVOLUTIONS, nn.Linear, Added) or after is None or not _is_used_once(traced, node):
        return False
    if not is_rectifier(traced, after):
        return False
    _replace(traced, node, after, Rectified(layer).eval())
    return True


def is_rectifier(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node of a traced network takes the positive part."""
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.ReLU
    if node.op == "call_function":
        return node.target in _RECTIFIERS
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_used_once(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's module is called, and its weights are read, by no other node."""
    layer = traced.get_submodule(str(node.target))
    calls = [
        other for other in traced.graph.nodes if other.op == "call_module" and traced.get_submodule(str(other.target)) is layer
    ]
    read = any(other.op == "get_attr" and str(other.target).startswith(f"{node.target}.") for other in traced.graph.nodes)
    return len(calls) == 1 and not read


def _replace(traced: fx.GraphModule, node: fx.Node, after: fx.Node, folded: nn.Module) -> None:
    """Put `folded` in the place of two nodes, under the name of the first."""
    parent, _, name = str(node.target).rpartition(".")
    setattr(traced.get_submodule(parent), name, folded)
    after.replace_all_uses_with(node)
    traced.graph.erase_node(after)
