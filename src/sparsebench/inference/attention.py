"""Self-attention in traced code, found by what it computes, whatever it is written like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

__all__ = ["attention_by_torch", "computes", "self_attention", "with_self_attention"]

_VIEWS = {"contiguous", "flatten", "permute", "reshape", "swapaxes", "transpose", "unflatten", "view"}
# Sentences and positions on which code must compute attention to be taken for it, and how near, relative to the largest output.
_TRIALS, _NEAR = ((1, 1), (2, 3), (3, 2), (9, 4), (2, 11)), 1e-4
# Nodes between projections and the output, sizes of tensors included; more is no attention.
_MOST_NODES = 60


def self_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Multi-head scaled dot product attention within each sequence (Vaswani et al. 2017, eq. 1).

    Args:
        query: [sequences, positions, features]; the features of a head are neighbours.
        keys: Like `query`.
        values: Like `query`.
        mask: Bool, broadcast to [sequences, heads, positions, positions read], True where reading is allowed; None for all.
        heads: How many; they divide the features.

    Returns:
        Like `query`.

    Example:
        >>> import torch
        >>> from sparsebench.inference.attention import self_attention
        >>> self_attention(torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 2, 4), None, 2).shape
        torch.Size([1, 2, 4])
    """
    return attention_by_torch(query, keys, values, mask, heads)


def attention_by_torch(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """The same as `self_attention`, under another name: in traced code, one that no chain takes up."""
    sizes = (*query.shape[:2], heads, query.shape[2] // heads)
    split = [x.reshape(sizes).transpose(1, 2) for x in (query, keys, values)]
    return F.scaled_dot_product_attention(split[0], split[1], split[2], mask).transpose(1, 2).reshape(query.shape)


class _Found(NamedTuple):
    """Nodes that read queries, keys, values and perhaps a mask, and give the same as `self_attention`."""

    sources: tuple[fx.Node, fx.Node, fx.Node]
    mask: fx.Node | None
    heads: int
    result: fx.Node


def with_self_attention(
    network: fx.GraphModule, values: Mapping[fx.Node, Any]
) -> tuple[fx.GraphModule, dict[fx.Node, Any]] | None:
    """The network with calls of `self_attention` where it computes that, and what each node gives; None where it does nowhere.

    Code is tried on random tensors of several shapes: it must compute the same, whatever the number of sequences and positions.

    Args:
        network: Traced; it is not changed, and shares its parts with the result.
        values: What each node gives for an example.
    """
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, copies))
    known = {copy: values[node] for node, copy in copies.items()}
    for node in list(graph.nodes):
        found = _found(node, known)
        if found is not None:
            with graph.inserting_after(found.result):
                call = graph.call_function(self_attention, (*found.sources, found.mask, found.heads))
            # One node also where the code is loaded, which traces it again: as `torch.fx.wrap` marks its own.
            call.meta["is_wrapped"] = True
            known[call] = known.pop(found.result)
            found.result.replace_all_uses_with(call)
    if not any(node.target is self_attention for node in graph.nodes):
        return None
    attentive = fx.GraphModule(network, graph)
    graph.eliminate_dead_code()
    attentive.recompile()
    return attentive, {node: known[node] for node in graph.nodes if node in known}


def _found(node: fx.Node, values: Mapping[fx.Node, Any]) -> _Found | None:
    """Attention around a node that mixes values of heads by queries and keys, all [sequences, heads, positions, features]."""
    read = [other for other in node.args[:3] if isinstance(other, fx.Node)]
    if node.op != "call_function" or len(read) < 3:
        return None
    shapes = {tuple(values[other].shape) if isinstance(values.get(other), Tensor) else () for other in (*read, node)}
    query, keys, mixed, result = _source(read[0]), _source(read[1]), _source(read[2]), _result(node)
    shape = shapes.pop()
    whole = [values.get(other) for other in (query, keys, mixed, result)]
    if shapes or len(shape) != 4 or not all(_is_matrix(value, (shape[0], shape[2], shape[1] * shape[3])) for value in whole):
        return None
    mask: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if mask is not None and not _is_key_mask(values.get(mask), shape[0], shape[2]):
        return None
    found = _Found((query, keys, mixed), mask, shape[1], result)
    return found if _computes_it(found, values) else None


def _source(node: fx.Node) -> fx.Node:
    """What a node looks at."""
    while _is_view(node):
        node = cast(fx.Node, node.args[0])
    return node


def _result(node: fx.Node) -> fx.Node:
    """The last of the nodes, each the only one to look at the one before."""
    while len(users := list(filter(_is_view, node.users))) == 1:
        node = users[0]
    return node


def _is_matrix(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and tuple(value.shape) == shape


def _is_key_mask(value: Any, sequences: int, positions: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.bool
        and tuple(value.shape) in ((sequences, 1, 1, positions), (1, 1, 1, positions))
    )


def _computes_it(found: _Found, values: Mapping[fx.Node, Any]) -> bool:
    """Whether the nodes compute attention, for any number of sequences and positions."""
    known = (*found.sources, *([] if found.mask is None else [found.mask]))
    sequences, positions, _ = values[found.result].shape
    part = _part(found.result, known, values, (sequences, positions))
    if part is None:
        return False
    code, outside = part
    generator = torch.Generator().manual_seed(0)
    for count, length in _TRIALS:
        widths = [values[node].shape[2] for node in (*outside, *(found.result,) * 3)]
        drawn = [torch.randn(count, length, width, generator=generator, dtype=torch.float32) for width in widths]
        inputs, matrices = drawn[: len(outside)], drawn[len(outside) :]
        mask = None if found.mask is None else torch.rand(count, 1, 1, length, generator=generator) > 0.5
        if mask is not None:
            mask[..., 0] = True
        # One tensor may be read as several.
        given = dict(zip(found.sources, matrices, strict=True))
        masks = [] if mask is None else [mask]
        first, second, third = (given[source] for source in found.sources)
        if not computes(code, (*given.values(), *masks, *inputs), self_attention(first, second, third, mask, found.heads)):
            return False
    return True


def computes(code: Callable[..., Tensor], given: Sequence[Tensor], expected: Tensor) -> bool:
    """Whether code gives nearly what is expected; it does not where it fails, whatever it makes of another shape."""
    try:
        computed = code(*given)
        return computed.shape == expected.shape and bool((computed - expected).abs().max() <= _NEAR * expected.abs().max())
    except Exception:
        return False


def _part(
    result: fx.Node, known: Iterable[fx.Node], values: Mapping[fx.Node, Any], sizes: tuple[int, int]
) -> tuple[fx.GraphModule, list[fx.Node]] | None:
    """Code from what is known to a result, and what else it reads for its size: matrices of as many sequences and positions."""
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    for number, node in enumerate(dict.fromkeys(known)):
        copies[node] = graph.placeholder(f"known_{number}")
    outside: list[fx.Node] = []
    needed, waiting = {result}, [result]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node in copies or node in needed or node in outside:
                continue
            value = values.get(node)
            if isinstance(value, Tensor) and value.dim() == 3 and tuple(value.shape[:2]) == sizes and not _is_view(node):
                outside.append(node)
            else:
                needed.add(node)
                waiting.append(node)
    if len(needed) > _MOST_NODES or any(node.op not in ("call_function", "call_method") for node in needed):
        return None
    for number, node in enumerate(outside):
        copies[node] = graph.placeholder(f"outside_{number}")
    for node in result.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return fx.GraphModule({}, graph), outside


def _is_view(node: fx.Node) -> bool:
    """Whether it only looks at a tensor in another shape."""
    return node.op == "call_method" and node.target in _VIEWS
