"""The Transformer, with every weight in a layer that can be made sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.keys_values import DecoderCache, KeysValues, Memory
from sparsebench.workloads.translation.tokens import PADDING

__all__ = ["SIZES", "Attention", "Size", "Transformer", "attend", "sinusoidal_positions"]

# Positions are computed once for so many, and again, twice as far, when a longer text comes.
FIRST_POSITIONS = 256
# Where so few positions of so many sentences read, two plain products are faster than torch's attention on CPUs.
FEW_POSITIONS, MANY_SENTENCES = 8, 8


@dataclass(frozen=True)
class Size:
    """Width of the states, width of the feed-forward layers, heads, layers on each side."""

    width: int
    feed_forward: int
    heads: int
    layers: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(width=64, feed_forward=256, heads=4, layers=2),
    "small": Size(width=128, feed_forward=512, heads=4, layers=3),
    "base": Size(width=512, feed_forward=2048, heads=8, layers=6),
    "big": Size(width=1024, feed_forward=4096, heads=16, layers=6),
}
"""Base and big are those of Vaswani et al. 2017 (arXiv 1706.03762, table 3)."""


def sinusoidal_positions(count: int, width: int) -> torch.Tensor:
    """Position signals: sines in the first half of the features, cosines in the second, wavelengths from 2 pi to 20,000 pi.

    Tensor2tensor's arrangement, which the paper trained with; Vaswani et al. 2017 (arXiv 1706.03762, section 3.5) interleave
    them.

    Args:
        count: Positions, counted from 0.
        width: Features, an even number of at least 4.

    Returns:
        float32 [count, width].

    Example:
        >>> sinusoidal_positions(2, 4)[0].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000.0) / (half - 1)))
    angles = torch.arange(count, dtype=torch.float32).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, dropout: float, causal: bool
) -> torch.Tensor:
    """Scaled dot product attention (Vaswani et al. 2017, eq. 1), by torch's kernel or, in decoding, by two plain products.

    Args:
        query: [sentences, heads, positions, width of a head].
        keys: [sentences, heads, positions read, width of a head].
        values: Like `keys`.
        mask: Bool, broadcast to [sentences, heads, positions, positions read], True where reading is allowed; None for all.
        dropout: Probability of dropping an attention weight.
        causal: Position i reads the first i + 1 only.

    Returns:
        Like `query`.
    """
    plain = not causal and dropout == 0.0 and query.device.type == "cpu" and not torch.compiler.is_compiling()
    if not plain or query.shape[2] > FEW_POSITIONS or query.shape[0] < MANY_SENTENCES:
        return F.scaled_dot_product_attention(query, keys, values, mask, dropout, is_causal=causal)
    scores = torch.matmul(query / math.sqrt(query.shape[3]), keys.transpose(2, 3))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(3), values)


# Whether positions are few is known where a network runs, not where its code is traced.
torch.fx.wrap("attend")


class Attention(nn.Module):
    """Multi-head attention with four separate projections (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def keys_values(self, states: torch.Tensor) -> KeysValues:
        """Keys and values of [sentences, positions, width]."""
        return KeysValues(self._split(self.key(states)), self._split(self.value(states)))

    def forward(
        self, states: torch.Tensor, read: KeysValues, mask: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        """What the positions of `states` read.

        Args:
            states: [rows, positions, width]; several rows may read the keys and values of one sentence, one after the other.
            read: Keys and values to read from.
            mask: Bool, broadcast to [sentences, heads, positions, positions read], True where reading is allowed; None for all.
            causal: Position i reads the first i + 1 only.

        Returns:
            [rows, positions, width].
        """
        dropout = self.dropout.p if self.training else 0.0
        keys, values = read
        # All positions of all rows of a sentence read the same: one attention, whose keys and values are there once.
        query = self._split(self.query(states).reshape(keys.shape[0], -1, states.shape[-1]))
        mixed = attend(query, keys, values, mask, dropout, causal)
        combined: torch.Tensor = self.output(mixed.transpose(1, 2).reshape(states.shape))
        return combined

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(states.shape[0], states.shape[1], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a rectifier between (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, size: Size, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(size.width, size.feed_forward), nn.Linear(size.feed_forward, size.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., width] to [..., width]."""
        widened: torch.Tensor = self.outer(self.dropout(F.relu(self.inner(states))))
        return widened


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised before and added to what it read."""

    def __init__(self, size: Size, dropouts: Dropouts) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.attention = Attention(size.width, size.heads, dropouts.attention)
        self.feed_forward = FeedForward(size, dropouts.relu)
        self.dropout = nn.Dropout(dropouts.residual)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[sentences, positions, width] to the same."""
        normed = self.attention_norm(states)
        states = states + self.dropout(self.attention(normed, self.attention.keys_values(normed), mask))
        added: torch.Tensor = states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return added


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source and feed-forward, each normalised before and added to what it read."""

    def __init__(self, size: Size, dropouts: Dropouts) -> None:
        super().__init__()
        self.attention_norm, self.source_norm = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.feed_forward_norm = nn.LayerNorm(size.width)
        self.attention = Attention(size.width, size.heads, dropouts.attention)
        self.source_attention = Attention(size.width, size.heads, dropouts.attention)
        self.feed_forward = FeedForward(size, dropouts.relu)
        self.dropout = nn.Dropout(dropouts.residual)

    def forward(
        self,
        states: torch.Tensor,
        source: KeysValues,
        source_mask: torch.Tensor,
        earlier: KeysValues | None,
        parents: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """New states, and keys and values of all positions so far.

        `states` [rows, positions, width]; with `earlier`, there is one position, and `parents` says which row of it each row goes
        on from where that is not the same one. There may be several rows for each source sentence, one after the other.
        """
        normed = self.attention_norm(states)
        own = self.attention.keys_values(normed)
        if earlier is not None:
            own = earlier.followed_by(own, parents)
        states = states + self.dropout(self.attention(normed, own, causal=earlier is None))
        states = states + self.dropout(self.source_attention(self.source_norm(states), source, source_mask))
        return states + self.dropout(self.feed_forward(self.feed_forward_norm(states))), own


class Dropouts(NamedTuple):
    """Probabilities: of attention weights, after the rectifier, of what is added to the residual stream (embeddings included)."""

    attention: float
    relu: float
    residual: float


class Transformer(nn.Module):
    """An encoder-decoder Transformer, normalised before every part and at the end, with one embedding for everything.

    As in the paper (Gale et al. 2019; Vaswani et al. 2017 with tensor2tensor's later order of normalisation): source, target and
    softmax share one matrix, which is stored, counted and made sparse once; the softmax is an `nn.Linear` that holds it. Queries,
    keys, values and outputs of attention are four `nn.Linear`. Hugging Face's M2M100 computes the same function, its positions
    counted from 2.

    Args:
        vocabulary_size: Number of tokens, those of `tokens` included.
        size: Widths and layers.
        dropout: Probability in [0, 1) of dropping attention weights, outputs of the rectifier, and what is added to the residual
            stream.
        fingerprint: Identifies the vocabulary that the numbers of tokens refer to; kept in the state, so that a network is not
            loaded for another vocabulary.

    Example:
        >>> model = Transformer(100, SIZES["tiny"], dropout=0.1)
        >>> model(torch.tensor([[5, 6, 2]]), torch.tensor([[1, 7]])).shape
        torch.Size([1, 2, 100])
    """

    positions: torch.Tensor
    vocabulary_fingerprint: torch.Tensor

    def __init__(self, vocabulary_size: int, size: Size, dropout: float = 0.0, fingerprint: int = 0) -> None:
        super().__init__()
        dropouts = Dropouts(dropout, dropout, dropout)
        self.embedding = nn.Embedding(vocabulary_size, size.width)
        self.encoder = nn.ModuleList(EncoderLayer(size, dropouts) for _ in range(size.layers))
        self.encoder_norm = nn.LayerNorm(size.width)
        self.decoder = nn.ModuleList(DecoderLayer(size, dropouts) for _ in range(size.layers))
        self.decoder_norm = nn.LayerNorm(size.width)
        self.softmax = nn.Linear(size.width, vocabulary_size, bias=False)
        self.softmax.weight = self.embedding.weight
        self.dropout = nn.Dropout(dropouts.residual)
        self.register_buffer("positions", sinusoidal_positions(FIRST_POSITIONS, size.width), persistent=False)
        self.register_buffer("vocabulary_fingerprint", torch.tensor([fingerprint]))
        self._initialize()

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scores of the next token at every target position.

        Args:
            source: int64 [sentences, source positions], padded at the end.
            target: int64 [sentences, target positions], beginning with BEGIN, padded at the end.

        Returns:
            Logits [sentences, target positions, vocabulary].
        """
        logits, _ = self.decode(target, self.encode(source), None)
        return logits

    def encode(self, source: torch.Tensor) -> Memory:
        """What the decoder reads of source sentences [sentences, positions]."""
        mask = (source != PADDING)[:, None, None, :]
        states = self._embed(source, 0)
        for layer in self.encoder:
            states = layer(states, mask)
        states = self.encoder_norm(states)
        return Memory(tuple(layer.source_attention.keys_values(states) for layer in _decoder_layers(self)), mask)

    def decode(
        self, target: torch.Tensor, memory: Memory, cache: DecoderCache | None, parents: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, DecoderCache]:
        """Scores of the next token at target positions, and the cache with them in it.

        Args:
            target: int64 [rows, positions]; with a cache, the one position that follows those in it. Every source sentence has
                the same number of rows, one after the other.
            memory: From `encode`.
            cache: From the call before; None at the beginning.
            parents: int64 [rows], which row of the cache each row goes on from; None for the same one.

        Returns:
            Logits [rows, positions, vocabulary], and the cache.

        Raises:
            SparsebenchError: More than one position together with a cache.
        """
        if cache is not None and target.shape[1] != 1:
            raise SparsebenchError(f"target has {target.shape[1]} positions: expected one where there is a cache")
        states = self._embed(target, 0 if cache is None else cache[0].keys.shape[2])
        extended = []
        for index, layer in enumerate(self.decoder):
            states, own = layer(states, memory.layers[index], memory.mask, None if cache is None else cache[index], parents)
            extended.append(own)
        return self.softmax(self.decoder_norm(states)), tuple(extended)

    def _embed(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        last, width = first + tokens.shape[1], self.embedding.embedding_dim
        if last > len(self.positions):
            self.positions = sinusoidal_positions(2 * last, width).to(self.positions)
        dropped: torch.Tensor = self.dropout(self.embedding(tokens) * math.sqrt(width) + self.positions[first:last])
        return dropped

    def _initialize(self) -> None:
        """Glorot's uniform for matrices, zero for biases, N(0, 1 / width) for the embedding, which is scaled by its root."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.softmax:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's.

        Raises:
            SparsebenchError: The state is of another vocabulary or size, or, where `strict`, has other tensors than this network.
        """
        if strict:
            own = self.state_dict()
            if "vocabulary_fingerprint" not in state_dict:
                raise SparsebenchError(
                    "the saved network does not tell its vocabulary (vocabulary_fingerprint is missing): expected all that "
                    "state_dict() gave"
                )
            for told, names in (("has no", own.keys() - state_dict.keys()), ("also has", state_dict.keys() - own.keys())):
                if names:
                    raise SparsebenchError(f"the saved network {told} {min(names)}: load it into one of its size and method")
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}vocabulary_fingerprint")
        if saved is not None and not torch.equal(saved.cpu(), self.vocabulary_fingerprint.cpu()):
            raise SparsebenchError(
                f"the saved network belongs to the vocabulary {int(saved):x}, this one to {int(self.vocabulary_fingerprint):x}: "
                "use the vocabulary that it was trained with"
            )
        for name, tensor in self.state_dict(prefix=prefix).items():
            if name in state_dict and state_dict[name].shape != tensor.shape:
                raise SparsebenchError(
                    f"{name} is {_shape(state_dict[name])} in the saved network, {_shape(tensor)} in this one: load it into one "
                    "of its size"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _decoder_layers(model: Transformer) -> list[DecoderLayer]:
    return [layer for layer in model.decoder if isinstance(layer, DecoderLayer)]
