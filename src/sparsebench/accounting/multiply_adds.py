"""Multiply-adds: run a model once and count where each weight is applied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from sparsebench.accounting.inventory import Inventory, count_nonzeros
from sparsebench.accounting.layers import Call, LayerKind

__all__ = ["count_multiply_adds"]


def count_multiply_adds(model: nn.Module, inventory: Inventory, example_input: Any) -> list[tuple[int, int]]:
    """Run the model once on an input and count the multiply-adds of each weight.

    Args:
        model: The model, in eval mode.
        inventory: Its inventory.
        example_input: One argument, a tuple or list of positional arguments or a mapping of keyword arguments.

    Returns:
        For each weight of the inventory, the multiply-adds of all weights and of the non-zero ones.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.accounting.inventory import take_inventory
        >>> model = nn.Linear(3, 2)
        >>> count_multiply_adds(model.requires_grad_(False), take_inventory(model), torch.ones(4, 3))
        [(24, 24)]
    """
    counter = _Counter(inventory)
    with ExitStack() as stack:
        for layer, kind in inventory.layers:
            for handle in counter.watch(layer, kind):
                stack.callback(handle.remove)
        # The wrappers talk to other processes or copy the model to other devices; the model inside costs the same.
        while isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        with counter:
            # A packed sequence is a tuple to Python, one argument to a model.
            if isinstance(example_input, (tuple, list)) and not isinstance(example_input, PackedSequence):
                model(*example_input)
            elif isinstance(example_input, Mapping):
                model(**example_input)
            else:
                model(example_input)
    return list(zip(counter.dense, counter.sparse, strict=True))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts calls of layers by hooks and uses of their weights outside them by the operators that read them.

    The hooks know what a layer does, even one that computes with something derived from its weight. The operators are
    there for weights that are used without calling their layer, such as an embedding that is also the softmax matrix
    (`functional.linear(hidden, embedding.weight)`). While a layer runs, its own weights are left to its hook.
    """

    supports_higher_order_operators = True  # or torch refuses to run flex_attention and its like under a mode

    def __init__(self, inventory: Inventory) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.inventory = inventory
        self.dense = [0] * len(inventory.weights)
        self.sparse = [0] * len(inventory.weights)
        self.running: list[tuple[nn.Module, set[int]]] = []
        self.copies: list[Tensor] = []
        # Several weights may be parts of one storage, as in recurrent layers on a GPU.
        self.storages: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for position, weight in enumerate(inventory.weights):
            self._locate(weight.value, position)

    def watch(self, layer: nn.Module, kind: LayerKind) -> list[torch.utils.hooks.RemovableHandle]:
        """Add the hooks that count a layer's calls."""
        own = {position for (owner, _), position in self.inventory.index.items() if owner == id(layer)}

        def enter(layer: nn.Module, args: Any) -> None:
            self.running.append((layer, own))

        def leave(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self.running and self.running[-1][0] is layer:
                self.running.pop()
            if output is not None:  # None: the layer raised, and the model may have caught it
                self._count_call(layer, kind, Call(args, kwargs, output))

        # First in line, so that hooks of the user's that change the output are not seen.
        return [
            layer.register_forward_pre_hook(enter, prepend=True),
            layer.register_forward_hook(leave, prepend=True, with_kwargs=True, always_call=True),
        ]

    def _count_call(self, layer: nn.Module, kind: LayerKind, call: Call) -> None:
        for use in kind.uses(layer, call):
            position = self.inventory.index.get((id(layer), use.weight))
            if position is not None and not self._is_running(position):
                self._add(position, self.inventory.weights[position].value[use.rows], use.positions)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _COPIES:
            position = self._weight_behind(args[0])
            if position is not None and not self._is_running(position):
                # Kept alive, so that nothing else is taken for it when its memory is given away again.
                self.copies.append(output)
                self._locate(output, position)
        elif func in _PRODUCTS:
            for factor, positions in _PRODUCTS[func](args, output):
                position = self._weight_behind(factor)
                if position is not None:
                    if not self._is_running(position):
                        self._add(position, factor, positions)
                    break  # a product of two weights is one product
        return output

    def _add(self, position: int, part: Tensor, positions: int) -> None:
        weight = self.inventory.weights[position]
        nonzeros = weight.nonzeros if part.numel() == weight.value.numel() else count_nonzeros(part)
        self.dense[position] += part.numel() * positions
        self.sparse[position] += nonzeros * positions

    def _is_running(self, position: int) -> bool:
        return any(position in own for _, own in self.running)

    def _locate(self, tensor: Tensor, position: int) -> None:
        if tensor.numel():
            storage, first, last = _span(tensor)
            self.storages[storage].append((first, last, position))

    def _weight_behind(self, tensor: Tensor) -> int | None:
        """The weight a tensor is, or is a view of."""
        if tensor.layout != torch.strided or tensor.is_nested or not tensor.numel():
            return None
        storage, first, last = _span(tensor)
        for start, end, position in self.storages.get(storage, ()):
            if start <= first and last <= end:
                return position
        return None


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """The storage of a tensor and the first and last byte it covers there."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.untyped_storage().data_ptr(), first, first + (reach + 1) * tensor.element_size() - 1


_Factors = list[tuple[Tensor, int]]


def _matrix_product(left: Tensor, right: Tensor) -> _Factors:
    """Both factors of a (batched) matrix product, each with the number of positions it is applied at."""
    return [(right, left.size(-2)), (left, right.size(-1))]


def _convolution(args: tuple[Any, ...], output: Tensor) -> _Factors:
    input, weight, transposed = args[0], args[1], args[6]
    where = input if transposed else output
    return [(weight, where.numel() // where.size(1) if where.size(1) else 0)]


_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.clone.default}
_PRODUCTS: dict[Any, Callable[[tuple[Any, ...], Tensor], _Factors]] = {
    _aten.mm.default: lambda args, output: _matrix_product(args[0], args[1]),
    _aten.bmm.default: lambda args, output: _matrix_product(args[0], args[1]),
    _aten.addmm.default: lambda args, output: _matrix_product(args[1], args[2]),
    _aten.baddbmm.default: lambda args, output: _matrix_product(args[1], args[2]),
    _aten.mv.default: lambda args, output: [(args[0], 1)],
    _aten.addmv.default: lambda args, output: [(args[1], 1)],
    # Under inference_mode this one reaches us whole.
    _aten.linear.default: lambda args, output: [(args[1], output.numel() // max(1, output.size(-1)))],
    _aten.convolution.default: _convolution,
}
