"""From text to a prepared corpus: the vocabulary learned, pairs filtered and encoded, once, as a stream."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.corpus import Corpus, Counts, EvaluationCounts, read_corpus, token_type
from sparsebench.workloads.translation.files import Pair, read_lines
from sparsebench.workloads.translation.vocabulary import Vocabulary, train_vocabulary

__all__ = ["Preparation", "Texts", "prepare_corpus", "spaced"]

FORMAT = 2
ENCODED_AT_ONCE = 2000
VOCABULARY_PAIRS = 2_000_000  # at most so many pairs, evenly spread, teach the vocabulary


class Texts(Protocol):
    """The three splits of a corpus; each can be iterated over as often as wanted."""

    @property
    def training(self) -> Iterable[Pair]:
        """Training pairs."""

    @property
    def validation(self) -> Iterable[Pair]:
        """Validation pairs."""

    @property
    def test(self) -> Iterable[Pair]:
        """Test pairs."""


@dataclass(frozen=True)
class Preparation:
    """What is made of text. Part of a corpus's identity.

    Attributes:
        vocabulary_size: Tokens of the shared vocabulary; fewer where the text is too short for so many.
        split_digits: Every digit is a token of its own.
        max_length: Training pairs with a longer side, in tokens with the end symbol, are left out.
        max_ratio: Training pairs whose longer side has more than so many times the tokens of the shorter are left out.
    """

    vocabulary_size: int
    split_digits: bool = False
    max_length: int = 128
    max_ratio: float = 4.0


def prepare_corpus(name: str, identity: Mapping[str, Any], preparation: Preparation, texts: Texts, cache: Path) -> Corpus:
    """Learn the vocabulary, filter and encode the training pairs; or read what an earlier call has made of the same.

    Text is read as a stream, tokens are written as they come and mapped into memory: a corpus may be larger than memory. Training
    pairs with an empty side, too long or too unequal in length are left out; evaluation text is kept whole, since the score of a
    part compares with nobody's. Both are counted, and the counts kept with the corpus.

    Args:
        name: The workload's, for messages.
        identity: What the text is, ready for JSON: digests of files, versions of generators.
        preparation: What is made of it.
        texts: The text, read only where nothing was prepared yet.
        cache: Folder for prepared corpora; made where it is missing.

    Raises:
        SparsebenchError: The text has mistakes, nothing is left of it, or the cache cannot be written or is damaged.
    """
    key = json.dumps({"format": FORMAT, "identity": dict(identity), "preparation": asdict(preparation)}, sort_keys=True)
    readable = "".join(letter if letter.isalnum() else "-" for letter in name)[-40:]
    folder = cache / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".preparing-", dir=cache))
        except OSError as error:
            raise SparsebenchError(
                f"cannot write {cache}: {error.strerror or error}; name another folder by SPARSEBENCH_CACHE"
            ) from error
        try:
            _write_corpus(name, preparation, texts, partial)
            partial.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # or another process was faster
                raise SparsebenchError(f"cannot write {folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return read_corpus(folder)


def _write_corpus(name: str, preparation: Preparation, texts: Texts, folder: Path) -> None:
    for split in ("validation", "test"):
        _write_sentences(name, split, getattr(texts, split), folder)
    model = train_vocabulary(lambda: _sampled(texts.training), preparation.vocabulary_size, preparation.split_digits)
    (folder / "vocabulary.model").write_bytes(model)
    vocabulary = Vocabulary(model)
    counts = _write_tokens(texts.training, vocabulary, preparation, folder)
    if not counts.kept:
        raise SparsebenchError(f"{name}: nothing is left to train on ({counts})")
    evaluation = {split: _counted(folder, split, vocabulary, preparation.max_length) for split in ("validation", "test")}
    described = {
        "fingerprint": _fingerprint(folder),
        "vocabulary_size": preparation.vocabulary_size,
        "counts": asdict(counts),
        "evaluation": {split: asdict(held) for split, held in evaluation.items()},
    }
    (folder / "corpus.json").write_text(json.dumps(described), encoding="utf-8")


def _sampled(training: Iterable[Pair]) -> Iterator[str]:
    """The sentences that teach the vocabulary: all, or every second pair, every third, ..."""
    every = max(-(-sum(1 for _ in training) // VOCABULARY_PAIRS), 1)
    return (text for pair in islice(iter(training), 0, None, every) for text in map(spaced, pair) if text)


def _write_tokens(training: Iterable[Pair], vocabulary: Vocabulary, preparation: Preparation, folder: Path) -> Counts:
    counts, dtype = Counts(), token_type(vocabulary.size)
    lengths: tuple[list[npt.NDArray[np.int64]], ...] = ([], [])
    with (folder / "source.tokens").open("wb") as source, (folder / "target.tokens").open("wb") as target:
        stream = iter(training)
        while block := list(islice(stream, ENCODED_AT_ONCE)):
            kept = list(_kept(block, vocabulary, preparation, counts))
            for side, file in enumerate((source, target)):
                encoded = [pair[side] for pair in kept]
                lengths[side].append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
                file.write(np.fromiter(chain.from_iterable(encoded), dtype).tobytes())
    for name, parts in zip(("source", "target"), lengths, strict=True):
        np.save(folder / f"{name}.offsets.npy", np.concatenate([np.zeros(1, np.int64), *parts]).cumsum())
    return counts


def _kept(block: list[Pair], vocabulary: Vocabulary, preparation: Preparation, counts: Counts) -> Iterator[list[list[int]]]:
    """The encoded pairs of a block that pass the filters."""
    counts.read += len(block)
    plain = [(spaced(source), spaced(target)) for source, target in block]
    full = [pair for pair in plain if all(pair)]
    counts.empty += len(block) - len(full)
    for pair in zip(vocabulary.encode([pair[0] for pair in full]), vocabulary.encode([pair[1] for pair in full]), strict=True):
        shorter, longer = sorted(map(len, pair))
        if longer > preparation.max_length:
            counts.too_long += 1
        elif longer > preparation.max_ratio * shorter:
            counts.unequal += 1
        else:
            counts.kept += 1
            yield list(pair)


def _write_sentences(name: str, split: str, pairs: Iterable[Pair], folder: Path) -> None:
    columns = list(zip(*(map(spaced, pair) for pair in pairs), strict=True))
    if not columns:
        raise SparsebenchError(f"{name}: the {split} split is empty")
    for side, column in zip(("source", "target"), columns, strict=True):
        (folder / f"{split}.{side}").write_text("".join(f"{text}\n" for text in column), encoding="utf-8", newline="\n")


def _counted(folder: Path, split: str, vocabulary: Vocabulary, max_length: int) -> EvaluationCounts:
    sources, references = (list(read_lines(folder / f"{split}.{side}")) for side in ("source", "target"))
    empty = too_long = 0
    lengths = (map(len, vocabulary.encode(side)) for side in (sources, references))
    for source, reference, *tokens in zip(sources, references, *lengths, strict=True):
        empty += not (source and reference)
        too_long += max(tokens) > max_length
    return EvaluationCounts(len(sources), empty, too_long, max_length)


def spaced(text: str) -> str:
    """Words with one plain space between: line separators and unbreakable spaces are no different to a vocabulary."""
    return " ".join(text.split())


def _fingerprint(folder: Path) -> int:
    """A number below 2**48 from all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return int.from_bytes(digest.digest()[:6], "big")
