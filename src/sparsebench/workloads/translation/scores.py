"""Scores of translations against their references: sacreBLEU, chrF, the paper's tokenized BLEU, exact match."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsebench.errors import SparsebenchError

__all__ = ["SCORES", "Score", "exact_match", "tokenize_as_the_paper"]

Texts = Sequence[str]


@dataclass(frozen=True)
class Score:
    """A score in per cent, higher is better.

    Attributes:
        of: From translations, references and the target language to the score.
        signature: What exactly is measured, in the words of sacreBLEU where it has any.
    """

    of: Callable[[Texts, Texts, str], float]
    signature: Callable[[], str]


def exact_match(translations: Texts, references: Texts) -> float:
    """Per cent of translations that equal their reference.

    Example:
        >>> exact_match(["ja", "nein"], ["ja", "doch"])
        50.0
    """
    return 100.0 * sum(one == other for one, other in zip(translations, references, strict=True)) / len(references)


def tokenize_as_the_paper(texts: Texts, language: str) -> list[str]:
    """Moses' tokenizer, then compounds split at hyphens, as tensor2tensor's script for English-German does before multi-bleu.

    Raises:
        SparsebenchError: sacremoses is not installed.
    """
    try:
        from sacremoses import MosesTokenizer
    except ImportError as error:
        raise SparsebenchError("tokenized BLEU needs sacremoses: pip install 'sparsebench[translation]'") from error
    tokenizer = MosesTokenizer(lang=language)
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", tokenizer.tokenize(text, return_str=True)) for text in texts]


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise SparsebenchError("translation needs sacrebleu: pip install 'sparsebench[translation]'") from error
    return sacrebleu


def _corpus_score(metric: Any, translations: Texts, references: Texts) -> float:
    return float(metric.corpus_score(list(translations), [list(references)]).score)


def _signature(metric: Any) -> str:
    """As sacreBLEU prints it, for one reference."""
    metric.corpus_score(["."], [["."]])
    return str(metric.get_signature())


def _multi_bleu() -> Any:
    return _sacrebleu().BLEU(tokenize="none", smooth_method="none", force=True)


def _tokenized_bleu(translations: Texts, references: Texts, language: str) -> float:
    tokenized = [tokenize_as_the_paper(texts, language) for texts in (translations, references)]
    return _corpus_score(_multi_bleu(), *tokenized)


SCORES: Mapping[str, Score] = {
    "sacrebleu": Score(
        lambda translations, references, _: _corpus_score(_sacrebleu().BLEU(), translations, references),
        lambda: _signature(_sacrebleu().BLEU()),
    ),
    "chrf": Score(
        lambda translations, references, _: _corpus_score(_sacrebleu().CHRF(), translations, references),
        lambda: _signature(_sacrebleu().CHRF()),
    ),
    "tokenized_bleu": Score(
        _tokenized_bleu, lambda: f"Moses tokenizer, hyphenated compounds split, as multi-bleu: {_signature(_multi_bleu())}"
    ),
    "exact_match": Score(
        lambda translations, references, _: exact_match(translations, references), lambda: "per cent of equal sentences"
    ),
}
