"""Attention of few queries, as in decoding, by the compiled kernels: found in traced code by what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsebench.inference.attention import computes
from sparsebench.inference.choices import MARGIN, least_times_of
from sparsebench.inference.native import Attention, Kernels, Places, load_kernels

__all__ = ["FewQueries", "put_few_queries"]

# With more, products of whole matrices are faster.
MOST_QUERIES = 8
# A head has a multiple of so many features, those of the narrowest vector.
LEAST_VECTOR = 4
# Sequences, heads, queries and keys on which code must compute attention to be taken for it.
_TRIALS = ((1, 2, 1, 1), (2, 1, 1, 7), (9, 2, 1, 3), (3, 3, 4, 5), (12, 1, 2, 20), (2, 2, 5, 5))


class FewQueries(nn.Module):
    """Scaled dot product attention (Vaswani et al. 2017, eq. 1), by the compiled kernels where few queries read.

    With more than eight queries for each sequence, in other types than float32, on other devices, where gradients are asked for
    or the kernels were not built, other code computes the same.

    Args:
        otherwise: That code, called with the same arguments.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from sparsebench.inference.few_queries import FewQueries
        >>> query, keys = torch.ones(2, 4, 1, 8), torch.ones(2, 4, 10, 8)
        >>> FewQueries(F.scaled_dot_product_attention)(query, keys, keys).shape
        torch.Size([2, 4, 1, 8])
    """

    def __init__(self, otherwise: Callable[..., Tensor]) -> None:
        super().__init__()
        self.otherwise = otherwise

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """What queries read.

        Args:
            query: [sequences, heads, positions, features of a head].
            keys: [sequences, heads, positions read, features of a head].
            values: Like `keys`.
            mask: Bool, [sequences or 1, 1, 1, positions read], True where reading is allowed; None for all.

        Returns:
            Like `query`; features of all heads of a position are neighbours in memory.
        """
        kernels = load_kernels()
        given = (query, keys, values) if mask is None else (query, keys, values, mask)
        if kernels is None or not _fits(*given):
            out: Tensor = self.otherwise(*given)
            return out
        return _attend(kernels, query, keys, values, mask)


def _fits(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> bool:
    """Whether the kernels can compute it, and faster."""
    if not (query.dim() == keys.dim() == 4 and 0 < query.shape[2] <= MOST_QUERIES and query.shape[3] % LEAST_VECTOR == 0):
        return False
    sequences, heads, _, depth = query.shape
    read = keys.shape[2]
    if keys.shape != values.shape or keys.shape != (sequences, heads, read, depth) or read == 0:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, keys, values)):
        return False
    if any(x.dtype != torch.float32 or x.device.type != "cpu" or x.stride(3) != 1 for x in (query, keys, values)):
        return False
    if mask is None:
        return True
    is_bool = mask.dtype == torch.bool and mask.device.type == "cpu" and mask.dim() == 4
    return is_bool and tuple(mask.shape) in ((sequences, 1, 1, read), (1, 1, 1, read)) and (read == 1 or mask.stride(3) == 1)


def _attend(kernels: Kernels, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    sequences, heads, queries, depth = query.shape
    out = query.new_empty(sequences, queries, heads, depth).transpose(1, 2)
    kernels.attend(
        Attention(
            sequences,
            heads,
            queries,
            keys.shape[2],
            depth,
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            *(Places(*x.stride()[:3]) for x in (query, keys, values, out)),
            1.0 / math.sqrt(depth),
            None if mask is None else mask.data_ptr(),
            0 if mask is None or mask.shape[0] == 1 else mask.stride(0),
        )
    )
    return out


class _Found(NamedTuple):
    """A node that computes attention of the tensors that these nodes give."""

    node: fx.Node
    read: tuple[fx.Node, ...]
    code: fx.GraphModule


def put_few_queries(network: fx.GraphModule, values: Mapping[fx.Node, Any]) -> int:
    """Let attention of few queries run on the compiled kernels where that is faster by a tenth or more; how often it is.

    Args:
        network: Traced; its code is changed in place.
        values: What each node gives for an example.
    """
    count = 0
    for node in list(network.graph.nodes):
        found = _found(node, values)
        if found is None:
            continue
        module = FewQueries(found.code)
        times = least_times_of((found.code, module), [values[other] for other in found.read])
        if times[1] > MARGIN * times[0]:
            continue
        name = f"few_queries_{count}"
        network.add_submodule(name, module)
        with network.graph.inserting_after(node):
            node.replace_all_uses_with(network.graph.call_module(name, found.read))
        network.graph.erase_node(node)
        count += 1
    if count:
        network.recompile()
    return count


def _found(node: fx.Node, values: Mapping[fx.Node, Any]) -> _Found | None:
    """What a call is made of that computes attention of few queries, whatever its function is named."""
    read = tuple(node.all_input_nodes)
    if node.op != "call_function" or len(read) not in (3, 4) or node.args[:3] != read[:3]:
        return None
    given = [value for other in read if isinstance(value := values.get(other), Tensor)]
    if len(given) != len(read) or not _fits(*given):
        return None
    graph, copies = fx.Graph(), {}
    for number, other in enumerate(read):
        copies[other] = graph.placeholder(f"read_{number}")
    call = graph.node_copy(node, copies.__getitem__)
    call.meta.update(node.meta)
    graph.output(call)
    code = fx.GraphModule({}, graph)
    return _Found(node, read, code) if _computes_it(code, given[0].shape[3], len(read) == 4) else None


def _computes_it(code: fx.GraphModule, depth: int, masked: bool) -> bool:
    """Whether code computes attention, whatever the sizes."""
    generator = torch.Generator().manual_seed(0)
    for sequences, heads, queries, read in _TRIALS:
        shapes = [(sequences, heads, positions, depth) for positions in (queries, read, read)]
        query, keys, values = (torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes)
        mask = torch.rand(sequences, 1, 1, read, generator=generator) > 0.5 if masked else None
        if mask is not None:
            mask[..., 0] = True
        given = (query, keys, values) if mask is None else (query, keys, values, mask)
        if not computes(code, given, F.scaled_dot_product_attention(query, keys, values, mask)):
            return False
    return True
