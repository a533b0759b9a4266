"""A prepared parallel corpus: arrays of tokens that are mapped into memory, evaluation text, vocabulary."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.files import read_lines
from sparsebench.workloads.translation.vocabulary import Vocabulary

__all__ = ["Corpus", "Counts", "EvaluationCounts", "Sentences", "TokenArray", "read_corpus", "token_type"]


@dataclass
class Counts:
    """What became of the training pairs that were read."""

    read: int = 0
    kept: int = 0
    empty: int = 0
    too_long: int = 0
    unequal: int = 0

    def __str__(self) -> str:
        left_out = f"{self.empty:,} with an empty side, {self.too_long:,} too long, {self.unequal:,} too unequal in length"
        return f"{self.kept:,} of {self.read:,} kept; left out: {left_out}"


@dataclass(frozen=True)
class EvaluationCounts:
    """What an evaluation split holds that training text would not: nothing of it is left out."""

    sentences: int
    empty: int
    too_long: int
    max_length: int

    @property
    def remarkable(self) -> bool:
        """Whether it holds any such sentence."""
        return bool(self.empty or self.too_long)

    def __str__(self) -> str:
        odd = f"{self.empty:,} with an empty side, {self.too_long:,} longer than {self.max_length} tokens"
        return f"all {self.sentences:,} sentences kept; among them {odd}"


@dataclass(frozen=True)
class TokenArray:
    """Many sentences of tokens: `tokens[offsets[i]:offsets[i + 1]]` is the i-th, its end symbol last."""

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every sentence."""
        return np.diff(self.offsets)

    def padded(self, chosen: npt.NDArray[np.int64], max_length: int, padding: int) -> npt.NDArray[np.int64]:
        """Some sentences as rows, filled up with `padding`; longer ones cut.

        Example:
            >>> array = TokenArray(np.array([5, 2, 6, 7, 2]), np.array([0, 2, 5]))
            >>> array.padded(np.array([1, 0]), max_length=9, padding=0).tolist()
            [[6, 7, 2], [5, 2, 0]]
        """
        starts = self.offsets[chosen]
        lengths = np.minimum(self.offsets[chosen + 1] - starts, max_length)
        places = np.arange(int(lengths.max(initial=0)))
        inside = places < lengths[:, None]
        return np.where(inside, self.tokens[np.where(inside, starts[:, None] + places, 0)], padding).astype(np.int64)


@dataclass(frozen=True)
class Sentences:
    """An evaluation split: source texts and reference translations."""

    sources: tuple[str, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        source: Training sentences.
        target: Their translations.
        validation: Validation text.
        test: Test text.
        vocabulary: Of both languages.
        vocabulary_size: Tokens that the vocabulary was to have; it has fewer where the text is too short for so many.
        counts: What the filters left out.
        evaluation: What validation and test text hold, by split.
        fingerprint: A number below 2**48 that stands for this data and vocabulary and no other.
    """

    source: TokenArray
    target: TokenArray
    validation: Sentences
    test: Sentences
    vocabulary: Vocabulary
    vocabulary_size: int
    counts: Counts
    evaluation: Mapping[str, EvaluationCounts]
    fingerprint: int


def token_type(vocabulary_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds every token of a vocabulary."""
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


def read_corpus(folder: Path) -> Corpus:
    """A corpus as `prepare_corpus` wrote it.

    Raises:
        SparsebenchError: The folder is damaged.
    """
    try:
        described = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        counts = Counts(**described["counts"])
        vocabulary = Vocabulary((folder / "vocabulary.model").read_bytes())
        return Corpus(
            source=_tokens(folder, "source", vocabulary, counts),
            target=_tokens(folder, "target", vocabulary, counts),
            validation=_sentences(folder, "validation"),
            test=_sentences(folder, "test"),
            vocabulary=vocabulary,
            vocabulary_size=int(described["vocabulary_size"]),
            counts=counts,
            evaluation={split: EvaluationCounts(**held) for split, held in described["evaluation"].items()},
            fingerprint=int(described["fingerprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SparsebenchError(f"{folder} is damaged ({str(error).partition(os.linesep)[0]}): delete it") from error


def _tokens(folder: Path, side: str, vocabulary: Vocabulary, counts: Counts) -> TokenArray:
    tokens = np.memmap(folder / f"{side}.tokens", token_type(vocabulary.size), mode="r")
    offsets = np.load(folder / f"{side}.offsets.npy", mmap_mode="r")
    if len(offsets) != counts.kept + 1 or offsets[-1] != len(tokens):
        raise ValueError(f"{side}.tokens has {len(tokens)} tokens, {offsets[-1]} expected")
    return TokenArray(tokens, offsets)


def _sentences(folder: Path, split: str) -> Sentences:
    sources, references = (tuple(read_lines(folder / f"{split}.{side}")) for side in ("source", "target"))
    if len(sources) != len(references):
        raise ValueError(f"{split} has {len(sources)} sentences and {len(references)} translations")
    return Sentences(sources, references)
