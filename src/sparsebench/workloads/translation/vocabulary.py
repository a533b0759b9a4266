"""One subword vocabulary for both languages: byte-pair encoding by sentencepiece."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.tokens import BEGIN, END, PADDING, UNKNOWN

__all__ = ["Vocabulary", "train_vocabulary"]

# What sentencepiece says, in messages that are all RuntimeErrors.
_TOO_LARGE, _TOO_SMALL, _NO_TEXT = "Vocabulary size too high", "smaller than required_chars", "[!sentences_.empty()]"

_LOG = logging.getLogger("sparsebench")


class Vocabulary:
    """Text to tokens and back.

    Args:
        model: A sentencepiece model, as `train_vocabulary` makes it.

    Attributes:
        size: Number of tokens.
        fingerprint: A number below 2**63 that stands for this model and no other.

    Raises:
        SparsebenchError: It is no sentencepiece model, or its special tokens have other numbers than those of `tokens`.
    """

    def __init__(self, model: bytes) -> None:
        try:
            self._processor: Any = _sentencepiece().SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise SparsebenchError("the vocabulary is damaged: expected a sentencepiece model") from error
        special = (self._processor.pad_id(), self._processor.bos_id(), self._processor.eos_id(), self._processor.unk_id())
        if special != (PADDING, BEGIN, END, UNKNOWN):
            raise SparsebenchError(f"the vocabulary numbers padding, begin, end and unknown {special}: expected (0, 1, 2, 3)")
        self.size: int = self._processor.get_piece_size()
        self.fingerprint = int.from_bytes(hashlib.sha256(model).digest()[:8], "big") >> 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, the end symbol last."""
        encoded: list[list[int]] = self._processor.encode(list(texts), add_eos=True)
        return encoded

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The text of each sequence of tokens."""
        return [self._processor.decode(list(sequence)) for sequence in tokens]


def train_vocabulary(texts: Callable[[], Iterable[str]], size: int, split_digits: bool) -> bytes:
    """Learn a vocabulary by byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909).

    It only counts, so that the same text gives the same vocabulary everywhere. Texts are not normalised, apart from spaces. A
    vocabulary that is smaller than asked for is logged as a warning.

    Args:
        texts: Gives the sentences of both languages, as often as it is called.
        size: Number of tokens; where the text is too short for so many, the largest of `size / 2`, `size / 4`, ... that it
            allows.
        split_digits: Every digit is a token of its own.

    Returns:
        A sentencepiece model.

    Raises:
        SparsebenchError: There is too little text for any vocabulary; or sentencepiece cannot learn one, such as one of fewer
            tokens than the text has characters; or it is not installed.
    """
    sentencepiece, asked = _sentencepiece(), size
    while size > UNKNOWN:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts()),
                model_writer=model,
                vocab_size=size,
                model_type="bpe",
                character_coverage=1.0,
                normalization_rule_name="identity",
                split_digits=split_digits,
                pad_id=PADDING,
                bos_id=BEGIN,
                eos_id=END,
                unk_id=UNKNOWN,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error)
            if _TOO_LARGE in reason:
                size //= 2
            elif _NO_TEXT in reason or (_TOO_SMALL in reason and size < asked):
                break
            else:
                told = reason.rpartition("] ")[2].strip().partition("\n")[0]
                raise SparsebenchError(f"sentencepiece cannot learn a vocabulary of {size:,} tokens: {told}") from error
        else:
            if size < asked:
                _LOG.warning("the vocabulary has %s tokens, not %s: there is too little text for more", f"{size:,}", f"{asked:,}")
            return model.getvalue()
    raise SparsebenchError("the training sentences are too little text to learn a vocabulary from")


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise SparsebenchError("translation needs sentencepiece: pip install 'sparsebench[translation]'") from error
    return sentencepiece
