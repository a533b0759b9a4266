"""Validation and test text taken out of training text, where a corpus has none of its own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.files import Pair
from sparsebench.workloads.translation.preparation import spaced

__all__ = ["HELD_OUT_REVISION", "MOST", "SHARE", "GivenTexts"]

# Raised when other pairs are held out of the same text.
HELD_OUT_REVISION = 1
MOST, SHARE = 1000, 10  # for each split a tenth of the different source sentences, at most 1,000


@dataclass(frozen=True)
class GivenTexts:
    """The splits of a corpus, those that are missing held out of its training pairs.

    Source sentences are drawn by hash: no release of a random generator changes the split, nor does the order of the text. A
    sentence that is drawn is in no training pair; where it has several translations, the first stands for it. Pairs with an empty
    side are never drawn.

    Args:
        given_training: All pairs to train on, and to hold some out of; iterated over as often as wanted.
        given_validation: None where there are none.
        given_test: None where there are none.
        name: The corpus's, for messages.

    Example:
        >>> texts = GivenTexts([(str(number), "x") for number in range(100)], None, [("1", "y")], "numbers")
        >>> len(list(texts.training)), len(list(texts.validation)), len(list(texts.test))
        (90, 10, 1)
    """

    given_training: Iterable[Pair]
    given_validation: Iterable[Pair] | None
    given_test: Iterable[Pair] | None
    name: str

    @property
    def training(self) -> Iterable[Pair]:
        """The training pairs that are left."""
        drawn = frozenset[int]().union(*self._drawn.values())
        return _Without(self.given_training, drawn) if drawn else self.given_training

    @property
    def validation(self) -> Iterable[Pair]:
        """Validation pairs."""
        given = self.given_validation
        return _Only(self.given_training, self._drawn["validation"]) if given is None else given

    @property
    def test(self) -> Iterable[Pair]:
        """Test pairs."""
        given = self.given_test
        return _Only(self.given_training, self._drawn["test"]) if given is None else given

    @functools.cached_property
    def _drawn(self) -> dict[str, frozenset[int]]:
        """Keys of the source sentences of each split that is held out; the text is read for it, eight bytes a pair are kept."""
        missing = [name for name, given in (("validation", self.given_validation), ("test", self.given_test)) if given is None]
        if not missing:
            return {}
        keys = np.unique(np.fromiter((_key(pair) for pair in self.given_training if all(map(spaced, pair))), np.uint64))
        count = max(min(len(keys) // SHARE, MOST), 1)
        if len(keys) <= len(missing) * count:
            raise SparsebenchError(
                f"{self.name}: {len(keys)} different sentences are too few to hold some out for {' and '.join(missing)}"
            )
        return {split: frozenset(keys[index * count : (index + 1) * count].tolist()) for index, split in enumerate(missing)}


@dataclass(frozen=True)
class _Without:
    """Pairs whose source sentence was not drawn."""

    pairs: Iterable[Pair]
    drawn: frozenset[int]

    def __iter__(self) -> Iterator[Pair]:
        return (pair for pair in self.pairs if _key(pair) not in self.drawn)


@dataclass(frozen=True)
class _Only:
    """The first whole pair of every source sentence that was drawn."""

    pairs: Iterable[Pair]
    drawn: frozenset[int]

    def __iter__(self) -> Iterator[Pair]:
        left = set(self.drawn)
        for pair in self.pairs:
            if left and (key := _key(pair)) in left and all(map(spaced, pair)):
                left.remove(key)
                yield pair


def _key(pair: Pair) -> int:
    """A number below 2**64 by which source sentences are drawn: the smallest ones are."""
    return int.from_bytes(hashlib.blake2b(spaced(pair[0]).encode(), digest_size=8).digest(), "big")
