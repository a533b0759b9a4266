"""The whole network measured: memory format, sparse layers or none, all examples at once or a few at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from sparsebench.inference.choices import Seen, take_turns
from sparsebench.inference.folding import TRACED, Arrangement, Traced
from sparsebench.inference.independence import examples_are_independent

__all__ = ["Whole", "choose_memory_format", "fastest_whole", "with_replacements"]

# Rounds of each way, at least: a whole network takes long.
ROUNDS = 3
# The code as it was at first is left only for what takes less than this part of its time: what is nearer is not resolved.
NEARLY = 0.95
# Examples at a time: the activations of a few images are often as large as a cache.
PARTS = (1, 4, 16)

Run = Callable[[nn.Module], Any]


class Whole(NamedTuple):
    """A network as it is fastest.

    Attributes:
        network: With some of its layers replaced, or with none.
        is_sparse: Whether they are.
    """

    network: nn.Module
    is_sparse: bool


def choose_memory_format(network: nn.Module, run: Run) -> None:
    """Let a network of two-dimensional convolutions turn its images to channels_last where it is faster for that.

    Nothing is changed where the network was not traced, or gets something else than contiguous images. Sparse layers take both
    formats as they come: it is those that stay dense for which it matters.

    Args:
        network: In evaluation mode.
        run: Runs a network on the example.
    """
    images = _input(network, run)
    if images is None or len(images.shape) != 4 or not any(type(module) is nn.Conv2d for module in network.modules()):
        return
    if not images.random().is_contiguous() or images.shape[1] == 1:
        return
    assert isinstance(network, Traced)
    last, first = network.arrangement._replace(channels_last=True), network.arrangement
    times = take_turns([partial(_run_arranged, network, arrangement, run) for arrangement in (last, first)], ROUNDS)
    network.arrangement = last if times[0] < times[1] else first


def with_replacements(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy that shares all tensors, with some modules replaced wherever they are.

    Args:
        network: In evaluation mode.
        replacements: Modules of the network, and what each is to be replaced by: by itself, if it is not to be copied.
    """
    known: dict[int, Any] = {id(old): new for old, new in replacements.items()}
    known |= {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, known)


def fastest_whole(network: nn.Module, sparse: nn.Module | None, plain: nn.Module, run: Run) -> Whole:
    """The network with sparse layers and chains of them, without, or as its code was at first: whatever is fastest by 5 %.

    What is faster by itself need not be so between other layers, which leave other things in the caches; in a small network the
    calls that fewer passes save may be fewer than those that make them. Where examples are independent of each other, and the
    network was traced, the batch is also tried in parts.

    Args:
        network: In evaluation mode.
        sparse: The same with some layers replaced by sparse ones; None where none are.
        plain: The same before its passes were folded; `network` itself where they could not be.
        run: Runs a network on the example.
    """
    ways: list[tuple[Whole, Arrangement | None]] = [(Whole(network, False), None)]
    if sparse is not None:
        arrangements = _arrangements(sparse, run) if isinstance(sparse, Traced) else [None]
        ways += [(Whole(sparse, True), arrangement) for arrangement in arrangements]
    if plain is not network:
        ways.append((Whole(plain, False), None))
    if len(ways) == 1:
        return Whole(network, False)
    times = take_turns([partial(_run_arranged, way.network, arrangement, run) for way, arrangement in ways], ROUNDS)
    best, first = min(range(len(ways)), key=times.__getitem__), 0 if plain is network else len(ways) - 1
    fastest, arrangement = ways[best if times[best] <= NEARLY * times[first] else first]
    _arrange(fastest.network, arrangement)
    return fastest


def _arrange(network: nn.Module, arrangement: Arrangement | None) -> None:
    if arrangement is not None:
        cast(Traced, network).arrangement = arrangement


def _run_arranged(network: nn.Module, arrangement: Arrangement | None, run: Run) -> Any:
    _arrange(network, arrangement)
    return run(network)


def _arrangements(network: Traced, run: Run) -> list[Arrangement]:
    """Ways to run a traced network that give the same, as it is first."""
    batch = _input(network, run)
    found = [network.arrangement]
    # Without pixels, a few rows are too little work for a matrix product.
    code = cast(fx.GraphModule, network.get_submodule(TRACED))
    if batch is None or len(batch.shape) < 3 or not examples_are_independent(code):
        return found
    expected = run(network)
    for rows in PARTS:
        if rows < batch.shape[0]:
            arrangement = found[0]._replace(dimensions=len(batch.shape), rows=rows)
            try:
                torch.testing.assert_close(
                    _run_arranged(network, arrangement, run), expected, rtol=1e-3, atol=1e-3, equal_nan=True
                )
            except Exception:
                continue
            found.append(arrangement)
    return found


def _input(network: nn.Module, run: Run) -> Seen | None:
    """What a traced network gets from the example; None where it was not traced or gets several kinds of input."""
    if not isinstance(network, Traced):
        return None
    seen: set[Seen] = set()

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.add(Seen.of(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], Tensor) else Seen((), ()))

    handle = network.register_forward_pre_hook(record)
    try:
        run(network)
    finally:
        handle.remove()
    return seen.pop() if len(seen) == 1 else None
