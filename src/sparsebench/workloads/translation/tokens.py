"""The tokens that mean something to network and decoder, by their number in every vocabulary."""

from __future__ import annotations

__all__ = ["BEGIN", "END", "PADDING", "UNKNOWN"]

PADDING, BEGIN, END, UNKNOWN = range(4)
