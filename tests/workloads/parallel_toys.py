"""A tiny language pair: numbers in words, so small that networks learn it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.preparation import Preparation, prepare_corpus
from sparsebench.workloads.translation.transformer import Size
from sparsebench.workloads.translation.translation import Translation
from sparsebench.workloads.workload import Recipe

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs", "seven": "sieben"}
Pairs = list[tuple[str, str]]


def phrases(count: int, first: int = 0) -> Pairs:
    """Phrases of one to six words and their translations, word by word."""
    made = []
    for number in range(first, first + count):
        digits, rest = [], number * 7919 + 13
        for _ in range(1 + number % 6):
            rest, digit = divmod(rest, 7)
            digits.append(digit)
        made.append(tuple(" ".join(list(words)[digit] for digit in digits) for words in (WORDS, WORDS.values())))
    return made  # type: ignore[return-value]


@dataclass(frozen=True)
class ToyTexts:
    training: Pairs
    validation: Pairs
    test: Pairs


TOY = ToyTexts(phrases(400), phrases(20, 400), phrases(30, 420))
PREPARATION = Preparation(vocabulary_size=60, max_length=64)


def prepared(folder: Path, texts: ToyTexts = TOY, preparation: Preparation = PREPARATION) -> Corpus:
    return prepare_corpus("toy", {"text": repr(texts)}, preparation, texts, folder)


def write_folder(folder: Path, texts: ToyTexts = TOY) -> Path:
    """The splits as pairs of text files; an empty one is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, pairs in (("train", texts.training), ("dev", texts.validation), ("test", texts.test)):
        for side, language in enumerate(("en", "de")) if pairs else ():
            (folder / f"{stem}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return folder


def toy_workload(load: Callable[[], Corpus], **changes: object) -> Translation:
    settings = {
        "name": "toy",
        "summary": "numbers in words",
        "code_revision": 1,
        "recipe": Recipe(steps=20, batch_size=256, optimizer="adamw", learning_rate=0.005, auxiliary_lr_scale=5.0),
        "load": load,
        "size": Size(width=16, feed_forward=32, heads=2, layers=1),
        "dropout": 0.0,
        "language": "de",
        "scores": ("sacrebleu", "exact_match", "chrf"),
        "beams": {"validation": 1, "test": 2},
    }
    return Translation(**(settings | changes))  # type: ignore[arg-type]
