"""Chains of sparse layers in a whole network, each where it is measured to be faster than its layers one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsebench.inference.attention import attention_by_torch, self_attention, with_self_attention
from sparsebench.inference.chains import SparseChain
from sparsebench.inference.choices import MARGIN, LayerChoice, least_times_of
from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.few_queries import put_few_queries
from sparsebench.inference.folding import TRACED, Added, Rectified, Traced
from sparsebench.inference.layers import SparseLinear, SparseWeight
from sparsebench.inference.native import load_kernels
from sparsebench.inference.regions import Region, chain_of, find_regions, mutates, put_chain

__all__ = ["ChainedForward", "add_chains"]

Key = tuple[Any, ...]
Parameters = tuple[tuple[str, Any], ...]
_CONSTANT = (type(None), bool)
_LAYERS = (SparseWeight, SparseConvolution, Added, Rectified)


class ChainedForward:
    """In the place of a module's `forward`: code with chains for the kinds of calls that the example had.

    For all others it is the module's own.

    A kind of call is which arguments are None, True or False: code may decide by these. In training mode, and where there is one
    of them inside an argument, the module's own code runs.

    Args:
        module: The module, which keeps its parts, methods and attributes.
        networks: For each kind of call its code, which takes the other arguments.
    """

    def __init__(self, module: nn.Module, networks: Mapping[Key, fx.GraphModule]) -> None:
        self.module, self.networks = module, dict(networks)
        self._parameters = _parameters(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes."""
        values = _bound(self._parameters, args, kwargs)
        key = None if values is None or self.module.training else _key(values)
        network = None if key is None else self.networks.get(key)
        if values is None or network is None:
            return type(self.module).forward(self.module, *args, **kwargs)
        return network.forward(*(value for value in values if not isinstance(value, _CONSTANT)))


def _parameters(module: nn.Module) -> Parameters | None:
    """Names and defaults of a module's arguments; None where there are others than plain ones."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    if any(parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        return None
    return tuple((parameter.name, parameter.default) for parameter in parameters)


def _bound(parameters: Parameters | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """A value for every parameter; None where they do not go together."""
    if parameters is None or len(args) > len(parameters):
        return None
    values = [*args, *(kwargs.get(name, default) for name, default in parameters[len(args) :])]
    unknown = len(kwargs) > sum(name in kwargs for name, _ in parameters[len(args) :])
    return None if unknown or any(value is inspect.Parameter.empty for value in values) else values


def _key(values: Sequence[Any]) -> Key | None:
    """What kind of call it is; None where code could decide by more than that, such as a None in a tuple."""
    if not all(isinstance(value, _CONSTANT) or _is_transparent(value) for value in values):
        return None
    return tuple(value if isinstance(value, _CONSTANT) else "given" for value in values)


def _is_transparent(value: Any) -> bool:
    """Whether tracing notices that code decides by a value: by a number or a tensor, but not by whether something is None."""
    if isinstance(value, tuple | list):
        return all(map(_is_transparent, value))
    if isinstance(value, Mapping):
        return all(map(_is_transparent, value.values()))
    return isinstance(value, Tensor | int | float | str) and not isinstance(value, bool)


class _Tracer(fx.Tracer):
    """Looks into everything but layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LAYERS) or super().is_leaf_module(m, module_qualified_name)


def add_chains(model: nn.Module, run: Callable[[nn.Module], Any], sparse: Mapping[int, SparseLinear]) -> list[LayerChoice]:
    """Put chains into a network, in place.

    Modules are tried from the outermost inwards: the first whose code can be traced gets new code for the calls that it has in
    the example, and its parts none.

    Args:
        model: In evaluation mode.
        run: Runs the example on it.
        sparse: Sparse layers by the identity of the dense ones that they could replace.

    Returns:
        A choice for every chain that is there now; what it is compared with are its layers, each as it was chosen.
    """
    if load_kernels() is None:
        return []
    calls = _calls(model, run)
    choices: list[LayerChoice] = []
    _descend(model, "", calls, sparse, choices)
    return choices


class _Call(NamedTuple):
    """The last call of a kind, and how many there were."""

    values: list[Any]
    times: int


def _calls(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[nn.Module, dict[Key, _Call]]:
    calls: dict[nn.Module, dict[Key, _Call]] = {}
    handles = []
    for module in model.modules():
        parameters = _parameters(module) if _is_composed(module) else None
        if parameters is not None:
            handles.append(
                module.register_forward_pre_hook(_recorder(calls.setdefault(module, {}), parameters), with_kwargs=True)
            )
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _recorder(seen: dict[Key, _Call], parameters: Parameters) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = _bound(parameters, args, kwargs)
        key = None if values is None else _key(values)
        if values is not None and key is not None:
            seen[key] = _Call(values, seen[key].times + 1 if key in seen else 1)

    return record


def _is_composed(module: nn.Module) -> bool:
    """Whether there may be several layers in it, in code that is not torch's."""
    is_torchs = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
    return not is_torchs and not isinstance(module, (*_LAYERS, Traced))


def _descend(
    module: nn.Module,
    name: str,
    calls: Mapping[nn.Module, Mapping[Key, _Call]],
    sparse: Mapping[int, SparseLinear],
    choices: list[LayerChoice],
) -> None:
    # What was traced before is tried without what may decide by the shape of its input.
    code = module.get_submodule(TRACED) if isinstance(module, Traced) else module
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    traced = None if hooked else _chained(code, name, calls.get(code, {}), sparse)
    if traced is not None:
        networks, tried = traced
        choices += tried
        if networks:
            vars(module)["chained" if isinstance(module, Traced) else "forward"] = ChainedForward(code, networks)
        return
    for part_name, part in code.named_children():
        _descend(part, f"{name}.{part_name}" if name else part_name, calls, sparse, choices)


def _chained(
    module: nn.Module, name: str, calls: Mapping[Key, _Call], sparse: Mapping[int, SparseLinear]
) -> tuple[dict[Key, fx.GraphModule], list[LayerChoice]] | None:
    """Code with chains for each kind of call, those without any left out; None where none can be traced."""
    networks, choices, is_traced = {}, [], False
    for key, call in calls.items():
        network = _trace(module, key)
        if network is None or mutates(network):
            continue
        given = [value for value in call.values if not isinstance(value, _CONSTANT)]
        try:
            expected, values = _values(network, given)
            torch.testing.assert_close(type(module).forward(module, *call.values), expected, rtol=1e-3, atol=1e-3, equal_nan=True)
        except Exception:
            # Code that tracing misread, or that does not run without what surrounds it.
            continue
        is_traced = True
        attentive = with_self_attention(network, values)
        tried = [] if attentive is None else _put_attention_chains(*attentive, name, sparse, call.times)
        if attentive is not None and tried:
            network, values = attentive
        tried += _put_chains(network, values, name, sparse, call.times)
        choices += tried
        if any(choice.sparse for choice in tried):
            put_few_queries(network, values)
            networks[key] = network
    return (networks, choices) if is_traced else None


def _trace(module: nn.Module, key: Key) -> fx.GraphModule | None:
    names = [name for name, _ in _parameters(module) or ()]
    constants = {name: value for name, value in zip(names, key, strict=True) if isinstance(value, _CONSTANT)}
    tracer = _Tracer()
    try:
        graph = tracer.trace(module, concrete_args=constants)
        for node in list(graph.nodes):
            if node.op == "placeholder" and str(node.target).rsplit("_", 1)[0] in constants:
                _erase(graph, node)
            elif _does_nothing(tracer.root, node):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)
        return fx.GraphModule(tracer.root, graph)
    except Exception:
        # Whatever the code makes of being called with something that is no tensor.
        return None


def _does_nothing(root: nn.Module, node: fx.Node) -> bool:
    """Whether it is dropout in evaluation mode, or an identity."""
    if node.op == "call_module":
        part = root.get_submodule(str(node.target))
        return type(part) is nn.Identity or (type(part) is nn.Dropout and not part.training)
    return node.op == "call_function" and node.target is F.dropout and node.kwargs.get("training", True) is False


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """A node and all that looks at it: checks that a constant is what it was."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _values(network: fx.GraphModule, inputs: list[Any]) -> tuple[Any, dict[fx.Node, Any]]:
    """The result, and what each node gives."""
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    result = interpreter.run(*inputs)
    return result, interpreter.env


def _put_chains(
    network: fx.GraphModule, values: dict[fx.Node, Any], name: str, sparse: Mapping[int, SparseLinear], count: int
) -> list[LayerChoice]:
    """Put chains without attention where they are faster than their layers one by one; `values` is kept up to date."""
    return _put_faster(network, values, name, sparse, count, lambda region, chain: ())


def _put_attention_chains(
    network: fx.GraphModule, values: dict[fx.Node, Any], name: str, sparse: Mapping[int, SparseLinear], count: int
) -> list[LayerChoice]:
    """Put chains with attention where they are faster than their layers one by one, and than chains on both sides of it."""

    def apart(region: Region, chain: SparseChain) -> tuple[nn.Module, ...] | None:
        if not any(node.target is self_attention for node in region.nodes):
            return None
        # What runs where sequences do not fit the chain.
        code = cast(fx.GraphModule, chain.network)
        _put_chains(code, _values(code, _inputs(region, values))[1], name, sparse, count)
        return (code,)

    choices = _put_faster(network, values, name, sparse, count, apart)
    for node in network.graph.nodes:
        if node.target is self_attention:
            node.target = attention_by_torch
    return choices


def _put_faster(
    network: fx.GraphModule,
    values: dict[fx.Node, Any],
    name: str,
    sparse: Mapping[int, SparseLinear],
    count: int,
    rivals: Callable[[Region, SparseChain], tuple[nn.Module, ...] | None],
) -> list[LayerChoice]:
    """Put chains where they are faster than their layers one by one and than all their rivals; None for rivals leaves one out."""
    choices = []
    # Once with all layers that have zeros; where that is slower, with those alone that are faster by themselves.
    for known in (sparse, {}) if sparse else ({},):
        faster = []
        for region in find_regions(network, known, values):
            chain = chain_of(network, region, known, values)
            others = rivals(region, chain)
            if others is None:
                continue
            before = chain_of(network, region, {}, values).network
            times = least_times_of((before, chain, *others), _inputs(region, values))
            if times[1] <= MARGIN * min((times[0], *times[2:])):
                faster.append((region, chain))
                choices.append(_choice(name, region, chain, values, count, times))
        _put(network, faster, values)
    return choices


def _put(network: fx.GraphModule, chains: list[tuple[Region, SparseChain]], values: dict[fx.Node, Any]) -> None:
    for region, chain in chains:
        replaced = put_chain(network, region, chain, f"chain_{len(values)}")
        values |= {new: values[old] for old, new in replaced.items()}
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()


def _inputs(region: Region, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    return [values[node] for node in (*region.inputs, *region.masks)]


def _choice(
    name: str, region: Region, chain: SparseChain, values: Mapping[fx.Node, Any], count: int, times: Sequence[float]
) -> LayerChoice:
    layers = [layer for layer in chain.layers if isinstance(layer, SparseLinear)]
    weights = sum(layer.inputs * layer.outputs for layer in layers)
    entries = sum(int(layer.values.count_nonzero()) for layer in layers)
    names = [str(node.target) for node in region.nodes if node.op == "call_module"]
    known = [".".join(part for part in f"{name}.{target}".split(".") if part and part != TRACED) for target in names]
    shapes = tuple(tuple(values[node].shape) for node in region.inputs)
    before_ms, chain_ms = (count * time for time in times[:2])
    return LayerChoice(" + ".join(known), True, weights, 1 - entries / max(1, weights), shapes, before_ms, chain_ms, "")
