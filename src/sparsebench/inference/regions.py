"""Where a traced network has sparse linear layers that can run as one chain, and putting chains there."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from sparsebench.inference.attention import attention_by_torch, self_attention
from sparsebench.inference.chains import Link, Port, SparseChain
from sparsebench.inference.folding import is_rectifier
from sparsebench.inference.layers import SparseLinear

__all__ = ["Region", "chain_of", "find_regions", "mutates", "put_chain"]

_ADDITIONS = (operator.add, torch.add)


class Region(NamedTuple):
    """Nodes that run as one.

    Attributes:
        nodes: In the order of the graph.
        inputs: What they read from outside.
        masks: Masks of attention that they read from outside.
        outputs: Those that something outside reads.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    masks: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def mutates(network: fx.GraphModule) -> bool:
    """Whether something in the code changes a tensor in place: then the order of calls matters in ways a graph does not show."""
    for node in network.graph.nodes:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op in ("call_method", "call_function"):
            in_place = str(name).endswith("_") and not str(name).endswith("__")
            if in_place or node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
                return True
        if node.op == "call_module" and getattr(network.get_submodule(str(node.target)), "inplace", False):
            return True
    return False


def find_regions(network: fx.GraphModule, sparse: Mapping[int, SparseLinear], values: Mapping[fx.Node, Any]) -> Iterator[Region]:
    """Sets of nodes with two products or more, or with one and a normalization or sum, that can run as one.

    A node belongs to the chain of something that it reads, or that reads the same, unless there is a way from the chain to the
    node through something else: then neither could come first.

    Args:
        network: Traced.
        sparse: Sparse layers by the identity of the module that they stand for.
        values: What each node gives for an example.
    """
    chains: list[list[fx.Node]] = []
    home: dict[fx.Node, list[fx.Node]] = {}
    for node in network.graph.nodes:
        read = node.all_input_nodes
        if not _is_link(network, node, sparse, values):
            continue
        own = [home[other] for other in read if other in home]
        beside = [chain for chain in chains if any(other in _matrices(member) for member in chain for other in _matrices(node))]
        chain = next((chain for chain in reversed(own + beside) if _can_join(node, chain, home)), None)
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(node)
        home[node] = chain
    for chain in chains:
        products = sum(_product(network, node, sparse) is not None for node in chain)
        region = _region(chain)
        if products and len(chain) > 1 and region.outputs:
            yield region


def _can_join(node: fx.Node, chain: Sequence[fx.Node], home: Mapping[fx.Node, list[fx.Node]]) -> bool:
    """Whether what the node reads, other than the chain itself, is there before the chain begins."""
    members, seen = set(chain), set()
    waiting = [other for other in node.all_input_nodes if other not in members]
    while waiting:
        other = waiting.pop()
        if other in members:
            return False
        if other not in seen:
            seen.add(other)
            # A chain runs as a whole: all that any part of it reads comes before it.
            waiting += [read for part in home.get(other, [other]) for read in part.all_input_nodes]
    return True


def _region(nodes: Sequence[fx.Node]) -> Region:
    inside = set(nodes)
    inputs = dict.fromkeys(other for node in nodes for other in _matrices(node) if other not in inside)
    masks = dict.fromkeys(mask for node in nodes if (mask := _mask(node)) is not None)
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    return Region(tuple(nodes), tuple(inputs), tuple(masks), tuple(outputs))


def _matrices(node: fx.Node) -> list[fx.Node]:
    """What a link reads, but for a mask."""
    arguments = node.args[:3] if node.target is self_attention else node.args
    return [argument for argument in arguments if isinstance(argument, fx.Node)]


def _mask(node: fx.Node) -> fx.Node | None:
    return cast("fx.Node | None", node.args[3]) if node.target is self_attention else None


def _is_link(network: fx.GraphModule, node: fx.Node, sparse: Mapping[int, SparseLinear], values: Mapping[fx.Node, Any]) -> bool:
    if node.target is self_attention:
        return True
    read: list[Any] = [values.get(argument) if isinstance(argument, fx.Node) else None for argument in node.args]
    value: Any = values.get(node)
    if any(node.kwargs.values()) or not all(_has_features(tensor) for tensor in (*read, value)):
        return False
    if node.op == "call_module" and not is_rectifier(network, node):
        module = network.get_submodule(str(node.target))
        is_norm = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
        return len(read) == 1 and (is_norm or _product(network, node, sparse) is not None)
    if is_rectifier(network, node):
        return len(read) == 1
    is_sum = (node.op == "call_function" and node.target in _ADDITIONS) or (node.op == "call_method" and node.target == "add")
    return is_sum and len(read) == 2 and all(tensor.shape == value.shape for tensor in read)


def _has_features(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() > 0 and value.shape[-1] > 0


def _product(network: fx.GraphModule, node: fx.Node, sparse: Mapping[int, SparseLinear]) -> SparseLinear | None:
    if node.op != "call_module":
        return None
    module = network.get_submodule(str(node.target))
    return module if isinstance(module, SparseLinear) else sparse.get(id(module))


def chain_of(
    network: fx.GraphModule, region: Region, sparse: Mapping[int, SparseLinear], values: Mapping[fx.Node, Any]
) -> SparseChain:
    """The chain that computes a region; its arguments are the region's inputs, its results the region's outputs."""
    widths = {node: cast(Tensor, values[node]).shape[-1] for node in (*region.inputs, *region.nodes)}
    places, features = _places(region, widths)
    layers: list[nn.Module] = []
    links: list[Link] = []
    likes = {node: number for number, node in enumerate(region.inputs)}
    parts = nn.Module()
    graph, copies = fx.Graph(), {}
    for number, node in enumerate((*region.inputs, *region.masks)):
        copies[node] = graph.placeholder(f"input_{number}")
    for node in region.nodes:
        read = _matrices(node)
        likes[node] = likes[read[0]]
        copies[node] = graph.node_copy(node, copies.__getitem__)
        layer, kind = -1, "rectify" if is_rectifier(network, node) else "add"
        if node.op == "call_module":
            module = _product(network, node, sparse) or network.get_submodule(str(node.target))
            if kind != "rectify":
                kind, layer = "normalize" if isinstance(module, nn.LayerNorm) else "product", len(layers)
                layers.append(module)
            name = f"part_{len(links)}"
            parts.add_module(name, module)
            copies[node].target = name
        also, last = places[read[min(1, len(read) - 1)]], places[read[-1]]
        link = Link(kind, places[read[0]], also, places[node], widths[read[0]], layer)
        if node.target is self_attention:
            mask = _mask(node)
            number = -1 if mask is None else region.masks.index(mask)
            copies[node].target = attention_by_torch
            link = link._replace(kind="attend", third=last, heads=int(cast(int, node.args[4])), mask=number)
        links.append(link)
    results = tuple(copies[node] for node in region.outputs)
    graph.output(results if len(results) > 1 else results[0])
    inputs = [Port(places[node], widths[node], cast(Tensor, values[node]).dim(), -1) for node in region.inputs]
    outputs = [Port(places[node], widths[node], 0, likes[node]) for node in region.outputs]
    return SparseChain(fx.GraphModule(parts, graph), layers, links, inputs, outputs, features)


def _places(region: Region, widths: Mapping[fx.Node, int]) -> tuple[dict[fx.Node, int], int]:
    """Where in a panel every matrix lies, none on another one that is still to be read, and the panel's size."""
    last = {node: len(region.nodes) for node in region.outputs}
    for number, node in enumerate(region.nodes):
        for other in _matrices(node):
            last[other] = max(last.get(other, 0), number)
    places: dict[fx.Node, int] = {}
    living: list[fx.Node] = []

    def place(node: fx.Node) -> None:
        begin = 0
        for other in sorted(living, key=places.__getitem__):
            if places[other] - begin >= widths[node]:
                break
            begin = max(begin, places[other] + widths[other])
        places[node] = begin
        living.append(node)

    for node in region.inputs:
        place(node)
    for number, node in enumerate(region.nodes):
        place(node)
        living[:] = [other for other in living if last.get(other, -1) > number]
    return places, max(places[node] + widths[node] for node in places)


def put_chain(network: fx.GraphModule, region: Region, chain: SparseChain, name: str) -> dict[fx.Node, fx.Node]:
    """Let a chain compute a region, and say which node is now in the place of which output.

    Nodes that the region read when it was found may have been replaced since. The caller recompiles the network after the last.
    """
    graph = network.graph
    region = _region(region.nodes)
    network.add_submodule(name, chain)
    with graph.inserting_before(region.nodes[0]):
        whole = graph.call_module(name, (*region.inputs, *region.masks))
        if len(region.outputs) == 1:
            results = [whole]
        else:
            results = [graph.call_function(operator.getitem, (whole, number)) for number in range(len(region.outputs))]
    replaced = dict(zip(region.outputs, results, strict=True))
    for node, result in replaced.items():
        node.replace_all_uses_with(result)
    for node in reversed(region.nodes):
        graph.erase_node(node)
    _sort(graph)
    return replaced


def _sort(graph: fx.Graph) -> None:
    """Every node after those that it reads, otherwise in the order there is."""
    done: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        if node not in done:
            for other in node.all_input_nodes:
                visit(other)
            done[node] = None

    for node in graph.nodes:
        visit(node)
    ordered = list(done)
    for earlier, later in pairwise(ordered):
        earlier.append(later)
