"""Batches by a budget of tokens: which sentences each step of an epoch gets, a function of (seed, epoch) alone."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.tokens import BEGIN, PADDING

__all__ = ["TokenBatch", "TokenBatches", "cut"]


class TokenBatch(NamedTuple):
    """Sentences and their translations, int64 [sentences, positions], padded at the end.

    `target` begins with BEGIN and is what the decoder reads; `expected` is what it should say, one position earlier, END last.
    """

    source: torch.Tensor
    target: torch.Tensor
    expected: torch.Tensor

    @staticmethod
    def of(source: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> TokenBatch:
        """A batch of padded source sentences and translations, neither with a begin symbol."""
        begin = np.full((len(expected), 1), BEGIN)
        target = np.concatenate([begin, expected[:, :-1]], 1)
        return TokenBatch(torch.from_numpy(source), torch.from_numpy(target), torch.from_numpy(expected))


def cut(lengths: npt.NDArray[Any], budget: int) -> npt.NDArray[np.int64]:
    """Where to cut sentences in order of length, so that batches are as large as the budget allows.

    Args:
        lengths: Tokens of each sentence, ascending, at least 1.
        budget: Most tokens of a batch, padding counted: sentences times the longest of them. A longer sentence has a batch of its
            own.

    Returns:
        The batches' bounds: the i-th holds the sentences from the i-th bound up to the next.

    Example:
        >>> cut(np.array([2, 2, 2, 3, 9]), budget=6).tolist()
        [0, 3, 4, 5]
    """
    values, counts = np.unique(lengths, return_counts=True)
    runs = list(zip(values.tolist(), counts.cumsum().tolist(), strict=True))  # each length, and where the sentences of it end
    bounds, run = [0], 0
    while bounds[-1] < len(lengths):
        begin = bounds[-1]
        while runs[run][1] <= begin:
            run += 1
        end = begin + 1
        for length, run_end in runs[run:]:
            end = max(end, min(run_end, begin + budget // length))
            if end < run_end:
                break
        bounds.append(end)
    return np.array(bounds, dtype=np.int64)


class TokenBatches:
    """The batches of a corpus for one budget of tokens.

    Sentences are put in order of their longer side, those of equal length by lot, and cut into batches; the batches come by lot.
    Where the cuts fall depends on lengths alone, so that every epoch has as many batches, and a step knows its epoch.

    Args:
        corpus: The corpus.
        budget: Most tokens of a batch on its longer side, padding counted. Sentences are cut to it where they are longer.
    """

    def __init__(self, corpus: Corpus, budget: int) -> None:
        self._corpus, self._budget = corpus, budget
        longest = np.minimum(np.maximum(corpus.source.lengths, corpus.target.lengths), budget)
        self._lengths = longest.astype(np.uint16 if budget < 2**16 else np.int64)  # small integers are sorted faster
        self._bounds = cut(np.sort(self._lengths), budget)
        self._order = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def batch(self, seed: int, step: int) -> TokenBatch:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, len(self))
        sentences, batches = self._order(seed, epoch)
        chosen = sentences[self._bounds[batches[position]] : self._bounds[batches[position] + 1]]
        return TokenBatch.of(
            self._corpus.source.padded(chosen, self._budget, PADDING), self._corpus.target.padded(chosen, self._budget, PADDING)
        )

    def _draw(self, seed: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Sentences in order of length, those of equal length by lot; and the order of the batches."""
        generator = np.random.default_rng([seed, epoch])
        shuffled = generator.permutation(len(self._lengths))
        sentences = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        return sentences, generator.permutation(len(self))
