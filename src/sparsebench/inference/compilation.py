"""Sparse execution of a whole network: each layer as it is measured to be faster."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from sparsebench.errors import SparsebenchError
from sparsebench.inference.chaining import add_chains
from sparsebench.inference.choices import MARGIN, Choices, Inputs, LayerChoice, Seen, least_times
from sparsebench.inference.compressed_blocks import BLOCK, CompressedBlocks
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.compressed_tiles import TILE, CompressedTiles
from sparsebench.inference.convolutions import AnyConvolution, SparseConvolution, reason_to_stay_dense
from sparsebench.inference.folding import CONVOLUTIONS, TRACED, Added, Rectified, Traced, fold
from sparsebench.inference.layers import SparseLinear, Storage
from sparsebench.inference.native import load_kernels
from sparsebench.inference.reuse import write_sums_in_place
from sparsebench.inference.whole import choose_memory_format, fastest_whole, with_replacements

__all__ = ["compile_sparse"]

# Layers with inputs of many shapes, as in decoding, are timed on those that are most frequent.
MOST_SHAPES = 4
FASTER_DENSE = "the network as a whole is faster without"
# A weight is tried in blocks of 16 outputs where so many of them are not all zero, and so much of those is not zero.
MOST_BLOCKS = 0.9
LEAST_FILL = 0.5
# It is tried in tiles where their rows have so many entries. With fewer, a layer that is timed alone seems faster than it is
# between others: the processor learns by heart where its short rows end.
LEAST_IN_TILE = 6
# These read the weights of their parts without calling them.
_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
# These multiply by weights too, and may be subclasses of what could run sparse; an embedding only looks its weights up.
_OTHERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)


def compile_sparse(model: nn.Module, example_input: Any) -> nn.Module:
    """A copy of a finished network whose layers multiply by what is not zero where that is faster, for inference on the CPU.

    Linear layers and convolutions (all but those that `reason_to_stay_dense` names) are timed, sparse and dense, on inputs of
    the shapes and layouts that they get when the network runs on the example, with the threads that torch has now; what is
    faster by a tenth or more runs sparse, linear layers in tiles or blocks where that is faster. Before that, batch
    normalization, sums with a residual and rectifiers become part of the layer before them where the code of a module can be
    traced. After that, linear layers, layer normalizations, rectifiers and sums that follow each other run as one chain where the
    code can be traced and the chain is faster by a tenth or more than its layers. All other layers stay as they are, and all do
    where the network as a whole is slower for it.

    Args:
        model: Any module with parameters in float32 on the CPU; it is not changed.
        example_input: What the network will be called with: a tensor, a tuple or list of positional arguments, or a dict of
            keyword arguments; for what is not one call of `forward`, such as decoding, a function that takes the network and runs
            it.

    Returns:
        The copy, in evaluation mode, without gradients, with the methods and attributes of `model`. `sparse_choices` says,
        printed or as a tuple of `LayerChoice`, what runs sparse and both times: first every layer by itself, then the chains. The
        copy can be deep-copied and pickled; choices made on one machine are kept on another. Its weights are fixed.

    Raises:
        SparsebenchError: Parameters are not float32 on the CPU.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.inference import compile_sparse
        >>> model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        >>> _ = nn.init.sparse_(model[0].weight, sparsity=0.98)
        >>> x = torch.randn(64, 512)
        >>> compiled = compile_sparse(model, x)
        >>> with torch.no_grad():
        ...     torch.allclose(compiled(x), model(x), atol=1e-4)
        True
        >>> print([(choice.name, choice.sparse) for choice in compiled.sparse_choices])
        [('0', True), ('2', False)]
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise SparsebenchError(f"{name} is {parameter.dtype} on {parameter.device}: expected torch.float32 on the CPU")
    with torch.no_grad():
        plain = _copy(model)
        compiled = _folded(plain, example_input)
        run = partial(_run, example_input=example_input)
        choose_memory_format(compiled, run)
        calls = _calls(compiled, example_input)
        measured: dict[str, LayerChoice] = {}
        replacements: dict[nn.Module, nn.Module] = {}
        others: dict[nn.Module, SparseLinear] = {}
        for name, module in _candidates(compiled):
            choice, sparse = _choose(_known_name(name), module, calls.get(name))
            measured[choice.name] = choice
            if choice.sparse and sparse is not None:
                replacements[module] = sparse
            elif isinstance(sparse, SparseLinear):
                others[module] = sparse
        # The dense layers that a chain may take instead are the same ones in both networks.
        replaced = with_replacements(compiled, {**replacements, **{module: module for module in others}})
        chains = add_chains(replaced, run, {id(module): sparse for module, sparse in others.items()})
        for module in replaced.modules():
            if isinstance(module, fx.GraphModule):
                write_sums_in_place(module)
        choices = [*_all_layers(plain, measured), *chains]
        is_changed = bool(replacements or chains)
        whole = fastest_whole(compiled, replaced if is_changed else None, plain, run)
        compiled = whole.network
        if is_changed and not whole.is_sparse:
            choices = [choice._replace(sparse=False, reason=choice.reason or FASTER_DENSE) for choice in choices]
        compiled.requires_grad_(False)
    vars(compiled)["sparse_choices"] = Choices(choices)
    return compiled


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _folded(plain: nn.Module, example_input: Any) -> nn.Module:
    """A copy with fewer passes; the network itself where none can be saved, or the example shows that tracing misread code."""
    try:
        folded = fold(_copy(plain))
        traced = [name for name, module in folded.named_modules() if isinstance(module, Traced)]
        if not traced:
            return plain
        found = _outputs(folded, traced, example_input)
        expected = _outputs(plain, [_known_name(name) for name in traced], example_input)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    except Exception:
        _run(plain, example_input)  # it is the example that fails, if this does
        return plain
    return folded


def _known_name(name: str) -> str:
    """A module's name in the network as it was given."""
    return ".".join(part for part in name.split(".") if part != TRACED)


def _outputs(network: nn.Module, names: Iterable[str], example_input: Any) -> list[Any]:
    """What some modules give each time that the example calls them, and what it returns, which may be nothing."""
    outputs: list[Any] = []
    handles = [network.get_submodule(name).register_forward_hook(lambda *call: outputs.append(call[2])) for name in names]
    try:
        result = _run(network, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return [*outputs, result]


def _run(model: nn.Module, example_input: Any) -> Any:
    if callable(example_input) and not isinstance(example_input, Tensor):
        return example_input(model)
    if isinstance(example_input, tuple | list):
        return model(*example_input)
    if isinstance(example_input, Mapping):
        return model(**example_input)
    return model(example_input)


def _weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Layers that multiply by weights, each once with its sum and its rectifier, and why they cannot run sparse, if so."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, (Rectified, Added, *_CLOSED)):
            inside.update(module.modules())
        layer = _layer_of(module)
        if isinstance(layer, _CLOSED + _OTHERS):
            yield name, module, _reason_to_stay_dense(layer)


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module, reason in _weighted_layers(model) if not reason)


def _all_layers(plain: nn.Module, measured: Mapping[str, LayerChoice]) -> Iterator[LayerChoice]:
    """A choice for every layer of the network as it was given: code that was traced has lost those of types of their own."""
    for name, module, reason in _weighted_layers(plain):
        yield measured[name] if name in measured else _untimed(name, module, reason)


def _layer_of(module: nn.Module) -> nn.Module:
    return _layer_of(module.layer) if isinstance(module, Rectified | Added) else module


def _reason_to_stay_dense(layer: nn.Module) -> str:
    if isinstance(layer, _CLOSED):
        return "reads the weights of its parts without calling them"
    if type(layer) in CONVOLUTIONS:
        return reason_to_stay_dense(cast(AnyConvolution, layer))
    return "" if type(layer) is nn.Linear else f"no sparse {type(layer).__name__}"


def _calls(model: nn.Module, example_input: Any) -> dict[str, Counter[Inputs]]:
    """What kinds of inputs each layer that can run sparse gets, and how often, in one run of the example."""
    calls: dict[str, Counter[Inputs]] = {}
    handles = []
    for name, module in _candidates(model):
        handles.append(module.register_forward_pre_hook(_recorder(calls.setdefault(name, Counter()))))
    try:
        _run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _recorder(seen: Counter[Inputs]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and all(isinstance(value, Tensor) for value in inputs):
            seen[tuple(map(Seen.of, inputs))] += 1

    return record


def _choose(
    name: str, module: nn.Module, seen: Counter[Inputs] | None
) -> tuple[LayerChoice, SparseLinear | SparseConvolution | None]:
    untimed = _untimed(name, module, "" if seen else "not called by the example")
    if untimed.sparsity == 0.0:
        return untimed._replace(reason="no zeros"), None
    if not seen:
        return untimed, None
    ways, frequent = _ways(module), seen.most_common(MOST_SHAPES)
    milliseconds = [0.0] * (1 + len(ways))
    for kind, count in frequent:
        times = least_times((module, *ways), kind)
        milliseconds = [before + count * time for before, time in zip(milliseconds, times, strict=True)]
    sparse_ms, sparse = min(zip(milliseconds[1:], ways, strict=True), key=lambda timed: timed[0])
    faster = sparse_ms <= MARGIN * milliseconds[0]
    shapes = tuple(kind[0].shape for kind, _ in frequent)
    return untimed._replace(sparse=faster, inputs=shapes, dense_ms=milliseconds[0], sparse_ms=sparse_ms), sparse


def _untimed(name: str, module: nn.Module, reason: str) -> LayerChoice:
    weights = [weight for weight in module.parameters() if weight.dim() > 1]
    total, kept = sum(weight.numel() for weight in weights), sum(int(weight.count_nonzero()) for weight in weights)
    return LayerChoice(name, False, total, 1.0 - kept / max(1, total), (), None, None, reason)


def _ways(module: nn.Module) -> list[SparseLinear | SparseConvolution]:
    """A layer as it may run sparse."""
    layer, rectify = _layer_of(module), isinstance(module, Rectified)
    if isinstance(layer, nn.Linear):
        return [SparseLinear(layer.weight, layer.bias, rectify, storage) for storage in _storages(layer.weight)]
    return [SparseConvolution(cast(AnyConvolution, layer), rectify)]


def _storages(weight: Tensor) -> list[Storage]:
    """How a weight may be kept: in tiles or in blocks only where these are filled well."""
    if load_kernels() is None:
        return [CompressedRows]
    found: list[Storage] = [CompressedRows]
    across = -(-weight.shape[1] // TILE[1])
    if weight.shape[1] >= TILE[1] and int(weight.count_nonzero()) >= LEAST_IN_TILE * across * len(weight):
        found.append(CompressedTiles)
    blocks = CompressedBlocks.of(weight)
    if BLOCK * len(blocks.columns) <= MOST_BLOCKS * weight.numel() and blocks.fill >= LEAST_FILL:
        found.append(CompressedBlocks)
    return found
