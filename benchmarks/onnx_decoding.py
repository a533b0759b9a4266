"""A Transformer that decodes in another runtime: the same beam search around two ONNX graphs, encoding and one position."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sparsebench.workloads.translation.keys_values import DecoderCache, KeysValues, Memory
from sparsebench.workloads.translation.tokens import BEGIN, PADDING
from sparsebench.workloads.translation.transformer import Transformer

__all__ = ["OtherTransformer", "as_onnx", "assert_same_scores", "onnx_graphs"]

Graph = Callable[[Sequence[Any]], Sequence[Any]]
"""From arrays to arrays."""


class Encode(nn.Module):
    """From source tokens to keys and values of every layer of the decoder, one after the other."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: torch.Tensor) -> list[torch.Tensor]:
        """[sentences, positions] to two tensors for each layer."""
        return [tensor for layer in self.model.encode(source).layers for tensor in layer]


class Step(nn.Module):
    """The next position of every hypothesis.

    Hypotheses have a dimension of their own, which tells the exporter that there are as many of each sentence.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, *states: torch.Tensor) -> list[torch.Tensor]:
        """Scores [hypotheses, 1, vocabulary], and the longer keys and values.

        Args:
            tokens: [sentences, beam].
            mask: Which source positions are no padding, [sentences, 1, 1, positions].
            *states: Keys and values of the source, two for each layer, then those of earlier positions [sentences, beam, heads,
                earlier positions, width of a head].
        """
        half = len(states) // 2
        cache = tuple(KeysValues(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in _pairs(states[half:]))
        memory = Memory(tuple(KeysValues(*pair) for pair in _pairs(states[:half])), mask)
        logits, extended = self.model.decode(tokens.reshape(-1, 1), memory, cache)
        return [logits, *(tensor.unflatten(0, tokens.shape) for layer in extended for tensor in layer)]


def _pairs(tensors: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def onnx_graphs(model: Transformer, source: torch.Tensor, beam: int) -> tuple[bytes, bytes]:
    """Encoding and one position as ONNX, for any number of sentences and positions.

    Args:
        model: The network.
        source: Tokens [sentences, positions], at least two of each.
        beam: Hypotheses of each sentence.
    """
    dim = torch.export.Dim
    sentences, positions, earlier = (
        dim("sentences", min=2, max=4096),
        dim("positions", min=2, max=256),
        dim("earlier", min=2, max=250),
    )
    source = source if len(source) > 1 else source.repeat(2, 1)
    memory = model.encode(source)
    _, first = model.decode(torch.full((len(source) * beam, 1), BEGIN), memory, None)
    three = [tensor.repeat(1, 1, 3, 1).unflatten(0, (len(source), beam)) for layer in first for tensor in layer]
    states = [tensor for layer in memory.layers for tensor in layer]
    read = {0: sentences, 2: positions}
    shapes = ({0: sentences}, {0: sentences, 3: positions}, (read,) * len(states) + ({0: sentences, 3: earlier},) * len(three))
    tokens = torch.full((len(source), beam), BEGIN)
    return (
        as_onnx(Encode(model), (source,), ({0: sentences, 1: positions},)),
        as_onnx(Step(model), (tokens, memory.mask, *states, *three), shapes),
    )


def as_onnx(module: nn.Module, arguments: tuple[torch.Tensor, ...], shapes: tuple[Any, ...] | None = None) -> bytes:
    """A network as ONNX, for arguments of these sizes alone or, in the dimensions that `shapes` names, of any."""
    program = torch.onnx.export(module.eval(), arguments, dynamo=True, verbose=False, dynamic_shapes=shapes)
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


class OtherTransformer:
    """What `beam_search` needs of a network, computed by two graphs of another runtime.

    Args:
        like: The network whose sizes the graphs have.
        encode: From the arguments of `Encode` to its results.
        step: From those of `Step` to its results.
    """

    def __init__(self, like: Transformer, encode: Graph, step: Graph) -> None:
        size = like.softmax.in_features
        heads = like.encoder[0].attention.heads
        self.layers, self.heads, self.width = len(like.encoder), heads, size // heads
        self._encode, self._step = encode, step

    def encode(self, source: torch.Tensor) -> Memory:
        """See `Transformer.encode`."""
        states = [torch.from_numpy(array) for array in self._encode([source.numpy()])]
        return Memory(tuple(KeysValues(*pair) for pair in _pairs(states)), (source != PADDING)[:, None, None, :])

    def decode(
        self, target: torch.Tensor, memory: Memory, cache: DecoderCache | None, parents: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, DecoderCache]:
        """See `Transformer.decode`; one position at a time."""
        if cache is not None and parents is not None:
            cache = tuple(layer.chosen(parents) for layer in cache)
        sentences = len(memory.mask)
        beam = len(target) // sentences
        if cache is None:
            nothing = torch.empty(len(target), self.heads, 0, self.width)
            cache = (KeysValues(nothing, nothing),) * self.layers
        earlier = [tensor.view(sentences, beam, *tensor.shape[1:]) for layer in cache for tensor in layer]
        states = [tensor for layer in memory.layers for tensor in layer] + earlier
        arrays = [tensor.numpy() for tensor in (target.view(sentences, beam), memory.mask, *states)]
        logits, *extended = (torch.from_numpy(array) for array in self._step(arrays))
        return logits, tuple(KeysValues(*(tensor.flatten(0, 1) for tensor in pair)) for pair in _pairs(extended))


def assert_same_scores(model: Transformer, other: OtherTransformer, source: torch.Tensor, beam: int) -> None:
    """Compare the scores of the first positions; translations of random weights differ, whose best tokens are nearly alike."""
    memories, caches = (model.encode(source), other.encode(source)), [None, None]
    tokens = torch.full((len(source) * beam, 1), BEGIN)
    for _ in range(4):
        found = [one.decode(tokens, memory, cache) for one, memory, cache in zip((model, other), memories, caches, strict=True)]
        (scores, theirs), caches = ([one[part] for one in found] for part in (0, 1))
        torch.testing.assert_close(theirs, scores, rtol=1e-3, atol=1e-3)
        tokens = scores[:, -1].argmax(-1, keepdim=True)
