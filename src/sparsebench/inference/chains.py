"""Several sparse products and what is between them as one pass over panels of columns."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sparsebench.inference.layers import SparseLinear
from sparsebench.inference.native import MOST_COLUMNS, STEP_KINDS, Kernels, Product, Step, load_kernels

__all__ = ["Link", "Port", "SparseChain"]

# Floats in a vector of the widest instruction set.
_WIDEST = 16


class Link(NamedTuple):
    """A step between matrices that lie one after the other in a panel.

    Attributes:
        kind: "product", "normalize", "add", "rectify" or "attend".
        source: First feature of what is read; queries of "attend".
        also: First feature of the second summand of "add"; keys of "attend".
        to: First feature of what is written; nothing that is read.
        features: Number of features read.
        layer: Place of the layer among those of the chain; -1 where there is none.
        third: First feature of the values of "attend".
        heads: Of "attend".
        mask: Place among the masks of which keys "attend" may read; -1 where it may read all.
    """

    kind: str
    source: int
    also: int
    to: int
    features: int
    layer: int
    third: int = 0
    heads: int = 0
    mask: int = -1


class Port(NamedTuple):
    """A tensor that a chain reads or writes.

    Attributes:
        first: Its first feature in a panel.
        features: Size of its last dimension.
        dimensions: Of an input, how many it has.
        like: Of an output, the place of the input that has all its other sizes.
    """

    first: int
    features: int
    dimensions: int
    like: int


class SparseChain(nn.Module):
    """Sparse linear layers, layer normalizations, rectifiers, sums and self-attention that follow each other, panel by panel.

    What is between them stays in the second-level cache and is never turned around; nothing but inputs and outputs is written to
    memory.

    Args:
        network: Computes the same of the same inputs, layer by layer: where there are no kernels, or for inputs that do not fit.
            Its parts are in evaluation mode.
        layers: `SparseLinear` and `nn.LayerNorm`.
        links: Steps in their order.
        inputs: What it reads; where there is attention, each is [sequences, positions, features]. Masks of attention come after
            them, in their order: bool [sequences or 1, 1, 1, positions], True where a key may be read.
        outputs: What it gives, a tuple if several.
        features: Of all matrices in a panel together.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[nn.Module],
        links: Sequence[Link],
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        features: int,
    ) -> None:
        super().__init__()
        self.network, self.layers = network, nn.ModuleList(layers)
        self.links, self.inputs, self.outputs, self.features = tuple(links), tuple(inputs), tuple(outputs), features
        self._attends = any(link.kind == "attend" for link in links)
        self._program: _Program | None = None
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """What the network computes, of what it reads and of masks."""
        kernels = load_kernels()
        matrices, masks = inputs[: len(self.inputs)], inputs[len(self.inputs) :]
        if kernels is None or not self._fits(matrices, masks):
            return self.network(*inputs)
        program = self._program
        if program is None or not program.is_current():
            program = self._program = _Program(self)
        if program.steps is None:
            return self.network(*inputs)
        return self._run(kernels, program.steps, matrices, masks)

    def extra_repr(self) -> str:
        """How many of what."""
        kinds = [link.kind for link in self.links]
        return ", ".join(f"{kind}: {kinds.count(kind)}" for kind in dict.fromkeys(kinds))

    def _fits(self, matrices: Sequence[Tensor], masks: Sequence[Tensor]) -> bool:
        columns = matrices[0].numel() // self.inputs[0].features
        for x, port in zip(matrices, self.inputs, strict=True):
            if x.dim() != port.dimensions or x.shape[-1] != port.features or x.numel() != columns * port.features:
                return False
            if x.dtype != torch.float32 or x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
                return False
        return not self.training and (not self._attends or self._are_sequences(matrices, masks))

    @staticmethod
    def _are_sequences(matrices: Sequence[Tensor], masks: Sequence[Tensor]) -> bool:
        """Whether panels hold whole sequences, at least three quarters full, all of one shape."""
        sequences, positions = matrices[0].shape[:2]
        together = MOST_COLUMNS // max(positions, 1) * positions
        if 4 * together < 3 * -(-together // _WIDEST) * _WIDEST or together == 0:
            return False
        if any(x.shape[:2] != (sequences, positions) for x in matrices):
            return False
        shapes = ((sequences, 1, 1, positions), (1, 1, 1, positions))
        return all(mask.dtype == torch.bool and mask.shape in shapes for mask in masks)

    def _run(self, kernels: Kernels, template: ctypes.Array[Step], matrices: Sequence[Tensor], masks: Sequence[Tensor]) -> Any:
        # A copy: another thread may run the chain at the same time.
        steps = type(template).from_buffer_copy(template)
        columns, kept, results = matrices[0].numel() // self.inputs[0].features, [], []
        for step, x, port in zip(steps, matrices, self.inputs, strict=False):
            flat = x.reshape(columns, port.features)
            distance, neighbours = flat.stride()
            if neighbours != 1 and port.features > 1:
                flat, distance = flat.contiguous(), port.features
            kept.append(flat)
            step.memory, step.stride = flat.data_ptr(), distance
        flat_masks = [mask.flatten(1).contiguous() for mask in masks]
        for number, link in enumerate(self.links, len(self.inputs)):
            if link.mask >= 0:
                mask = flat_masks[link.mask]
                steps[number].mask, steps[number].mask_stride = mask.data_ptr(), mask.shape[1] if len(mask) > 1 else 0
        for number, port in enumerate(self.outputs, len(steps) - len(self.outputs)):
            out = matrices[port.like].new_empty((*matrices[port.like].shape[:-1], port.features))
            steps[number].memory = out.data_ptr()
            results.append(out)
        kernels.run_chain(steps, self.features, columns, matrices[0].shape[1] if self._attends else 1)
        return results[0] if len(results) == 1 else tuple(results)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_program": None}


class _Program:
    """The steps of a chain as the kernels read them, with the addresses of its layers' tensors.

    Attributes:
        steps: Those that read, those in between and those that write, but for what differs from call to call; None where a tensor
            is not float32 on the CPU.
    """

    steps: ctypes.Array[Step] | None

    def __init__(self, chain: SparseChain) -> None:
        self._tensors: list[tuple[dict[str, Any], str, Tensor]] = []
        self._products: list[Product] = []
        reads = [_step("read", to=port.first, features=port.features) for port in chain.inputs]
        steps = [self._step(link, None if link.layer < 0 else chain.layers[link.layer]) for link in chain.links]
        writes = [_step("write", source=port.first, features=port.features, stride=port.features) for port in chain.outputs]
        steps = [*reads, *steps, *writes]
        self.steps = (Step * len(steps))(*steps) if all(_is_plain(name, tensor) for _, name, tensor in self._tensors) else None

    def is_current(self) -> bool:
        """Whether the layers still hold these tensors."""
        return all(held.get(name) is tensor for held, name, tensor in self._tensors)

    def _step(self, link: Link, layer: nn.Module | None) -> Step:
        places = {"source": link.source, "also": link.also, "third": link.third, "to": link.to}
        step = _step(link.kind, **places, features=link.features, heads=link.heads)
        if link.heads:
            step.scale = math.sqrt(link.heads / link.features)
        if isinstance(layer, SparseLinear):
            self._hold(layer._buffers, ("starts", "columns", "values", "bias"))
            product = layer.matrix.product(layer.bias, layer.rectify)
            self._products.append(product)
            step.product = ctypes.pointer(product)
        elif layer is not None:
            norm = cast(nn.LayerNorm, layer)
            self._hold(norm._parameters, ("weight", "bias"))
            step.gain, step.shift = (None if tensor is None else tensor.data_ptr() for tensor in (norm.weight, norm.bias))
            step.epsilon = norm.eps
        return step

    def _hold(self, held: dict[str, Any], names: Sequence[str]) -> None:
        self._tensors += [(held, name, held[name]) for name in names if held[name] is not None]


def _step(kind: str, **fields: int) -> Step:
    return Step(STEP_KINDS.index(kind), **fields)


def _is_plain(name: str, tensor: Tensor) -> bool:
    expected = {"starts": (torch.int32,), "columns": (torch.int32, torch.uint8)}.get(name, (torch.float32,))
    return tensor.dtype in expected and tensor.device.type == "cpu" and tensor.is_contiguous()
