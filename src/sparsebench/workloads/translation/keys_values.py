"""Keys and values that attention reads: of the source, and of the target positions so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.fx

__all__ = ["DecoderCache", "KeysValues", "Memory", "appended"]


class KeysValues(NamedTuple):
    """Keys and values of one attention, each [sentences, heads, positions, width of a head]."""

    keys: torch.Tensor
    values: torch.Tensor

    def followed_by(self, later: KeysValues, rows: torch.Tensor | None = None) -> KeysValues:
        """These positions, of some sentences by index or of all, and later ones of the same sentences."""
        return KeysValues(appended(self.keys, rows, later.keys), appended(self.values, rows, later.values))

    def chosen(self, rows: torch.Tensor) -> KeysValues:
        """Those of some sentences, by index."""
        return KeysValues(self.keys.index_select(0, rows), self.values.index_select(0, rows))

    def contiguous(self) -> KeysValues:
        """The same, all that belongs to a head side by side in memory."""
        return KeysValues(self.keys.contiguous(), self.values.contiguous())


class Memory(NamedTuple):
    """What the decoder reads of source sentences: keys and values for each of its layers, and which positions are no padding."""

    layers: tuple[KeysValues, ...]
    mask: torch.Tensor

    def chosen(self, rows: torch.Tensor) -> Memory:
        """That of some sentences, by index."""
        return Memory(tuple(layer.chosen(rows) for layer in self.layers), self.mask.index_select(0, rows))

    def contiguous(self) -> Memory:
        """The same, laid out to be read again and again."""
        return Memory(tuple(layer.contiguous() for layer in self.layers), self.mask)


DecoderCache = tuple[KeysValues, ...]
"""Keys and values of the target positions so far, for each layer of the decoder."""


def appended(earlier: torch.Tensor, rows: torch.Tensor | None, later: torch.Tensor) -> torch.Tensor:
    """Some rows of `earlier` [sentences, heads, positions, width], by index or all, and `later` positions of the same sentences.

    On CPUs, without gradients, what is chosen is copied once, to where it stays.
    """
    if rows is None:
        return torch.cat([earlier, later], 2)
    if torch.is_grad_enabled() or earlier.device.type != "cpu":
        return torch.cat([earlier.index_select(0, rows), later], 2)
    sentences, heads, positions, width = later.shape
    whole = earlier.new_empty(sentences, heads, earlier.shape[2] + positions, width)
    torch.index_select(earlier, 0, rows, out=whole[:, :, :-positions])
    whole[:, :, -positions:] = later
    return whole


# Whether gradients are asked for is known where a network runs, not where its code is traced.
torch.fx.wrap("appended")
