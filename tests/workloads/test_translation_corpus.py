from __future__ import annotations

import dataclasses
import logging
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parallel_toys import PREPARATION, TOY, Pairs, ToyTexts, phrases, prepared

pytest.importorskip("sentencepiece")

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.batches import TokenBatches, cut
from sparsebench.workloads.translation.corpus import Corpus, TokenArray, read_corpus
from sparsebench.workloads.translation.preparation import prepare_corpus
from sparsebench.workloads.translation.tokens import BEGIN, END, PADDING
from sparsebench.workloads.translation.vocabulary import Vocabulary, train_vocabulary


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepared(tmp_path_factory.mktemp("cache"))


def sentence(array: TokenArray, index: int) -> list[int]:
    return array.tokens[array.offsets[index] : array.offsets[index + 1]].tolist()


def test_corpus_holds_the_text_in_order(corpus: Corpus) -> None:
    assert len(corpus.source.lengths) == len(corpus.target.lengths) == len(TOY.training) == corpus.counts.kept
    for index in (0, 1, 57, 399):
        tokens = [sentence(side, index) for side in (corpus.source, corpus.target)]
        assert [one[-1] for one in tokens] == [END, END]
        assert tuple(corpus.vocabulary.decode(tokens)) == TOY.training[index]
    assert (*zip(corpus.test.sources, corpus.test.references, strict=True),) == (*TOY.test,)
    assert (*zip(corpus.validation.sources, corpus.validation.references, strict=True),) == (*TOY.validation,)


def test_filters_leave_out_and_count(tmp_path: Path) -> None:
    """Empty lines, sentences beyond the limit, and pairs of very different lengths."""
    good = phrases(50)
    bad = [("", "eins"), ("two", " \t"), ("", ""), ("one " * 200, "eins " * 200), ("one", "eins " * 12)]
    texts = ToyTexts([*good[:25], *bad, *good[25:]], TOY.validation, TOY.test)
    preparation = dataclasses.replace(PREPARATION, max_length=64, max_ratio=5.0)
    found = prepared(tmp_path, texts, preparation)
    assert dataclasses.asdict(found.counts) == {"read": 55, "kept": 50, "empty": 3, "too_long": 1, "unequal": 1}
    assert str(found.counts) == "50 of 55 kept; left out: 3 with an empty side, 1 too long, 1 too unequal in length"
    decoded = [found.vocabulary.decode([sentence(side, index) for side in (found.source, found.target)]) for index in range(50)]
    assert [tuple(pair) for pair in decoded] == good
    assert prepared(tmp_path, texts, preparation).counts == found.counts  # read again


def test_limits_are_exact(tmp_path: Path) -> None:
    texts = ToyTexts([*TOY.training, ("one two three", "eins")], TOY.validation, TOY.test)
    everything = prepared(tmp_path, texts, dataclasses.replace(PREPARATION, max_length=1000, max_ratio=1000.0))
    pairs = np.stack([everything.source.lengths, everything.target.lengths])
    longest, ratios = pairs.max(0), pairs.max(0) / pairs.min(0)
    for limit in (longest.max(), longest.max() - 1):
        found = prepared(tmp_path, texts, dataclasses.replace(PREPARATION, max_length=int(limit), max_ratio=1000.0))
        assert (found.counts.kept, found.counts.too_long) == ((longest <= limit).sum(), (longest > limit).sum())
    for limit in (ratios.max(), ratios.max() - 0.01):
        found = prepared(tmp_path, texts, dataclasses.replace(PREPARATION, max_length=1000, max_ratio=float(limit)))
        assert (found.counts.kept, found.counts.unequal) == ((ratios <= limit).sum(), (ratios > limit).sum())


def test_evaluation_text_is_never_left_out(tmp_path: Path) -> None:
    texts = ToyTexts(TOY.training, [("", "leer"), ("one " * 300, "eins " * 300)], TOY.test)
    found = prepared(tmp_path, texts)
    assert found.validation.sources == ("", ("one " * 300).strip())
    held = found.evaluation["validation"]
    assert str(held) == "all 2 sentences kept; among them 1 with an empty side, 1 longer than 64 tokens"
    assert held.remarkable
    assert not found.evaluation["test"].remarkable


def test_prepared_once_then_read(tmp_path: Path, corpus: Corpus) -> None:
    first = prepared(tmp_path)

    class Unreadable:
        def __getattr__(self, name: str) -> Pairs:
            raise AssertionError("the text was read again")

    again = prepare_corpus("toy", {"text": repr(TOY)}, PREPARATION, Unreadable(), tmp_path)
    assert again.fingerprint == first.fingerprint == corpus.fingerprint
    assert isinstance(again.source.tokens, np.memmap)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("part", ["training", "validation", "test"])
def test_fingerprint_depends_on_all_text(part: str, tmp_path: Path, corpus: Corpus) -> None:
    pairs = getattr(TOY, part)
    other = dataclasses.replace(TOY, **{part: [*pairs[:-1], (pairs[-1][0], "anders")]})
    assert prepared(tmp_path, other).fingerprint != corpus.fingerprint
    assert 0 <= corpus.fingerprint < 2**48


def test_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"^toy: nothing is left to train on \(0 of 400 kept; left out: 0"):
        prepared(tmp_path, preparation=dataclasses.replace(PREPARATION, max_length=1))
    with pytest.raises(SparsebenchError, match=r"^toy: the test split is empty$"):
        prepared(tmp_path, ToyTexts(TOY.training, TOY.validation, []))
    with pytest.raises(SparsebenchError, match=r"^the training sentences are too little text to learn a vocabulary from$"):
        prepared(tmp_path, ToyTexts([("", "")], TOY.validation, TOY.test))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsebenchError, match=r"^cannot write .*; name another folder by SPARSEBENCH_CACHE$"):
        prepared(tmp_path / "file")


def test_damaged_corpus_is_named(tmp_path: Path) -> None:
    prepared(tmp_path)
    (folder,) = tmp_path.iterdir()
    tokens = folder / "source.tokens"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(
        SparsebenchError, match=rf"^{folder} is damaged \(source.tokens has \d+ tokens, \d+ expected\): delete it$"
    ):
        read_corpus(folder)
    (folder / "vocabulary.model").write_bytes(b"nonsense")
    with pytest.raises(SparsebenchError, match=rf"^{folder} is damaged \(the vocabulary is damaged: expected a sentencepiece"):
        read_corpus(folder)


class Stream:
    """Many training pairs, made as they are read."""

    validation, test = TOY.validation, TOY.test

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    @property
    def training(self) -> Iterator[tuple[str, str]]:
        return Endless(self.pairs)  # type: ignore[return-value]


class Endless:
    def __init__(self, pairs: int) -> None:
        self.pairs = pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((f"{number} {'one two ' * 20}", f"{number} {'eins zwei ' * 20}") for number in range(self.pairs))


def test_text_is_not_held_in_memory(tmp_path: Path) -> None:
    """Five times the text needs no more memory, but for 16 bytes of lengths and offsets a pair."""
    peaks = {}
    for pairs in (4000, 20_000):
        tracemalloc.start()
        prepare_corpus("stream", {"pairs": pairs}, dataclasses.replace(PREPARATION, max_length=512), Stream(pairs), tmp_path)
        peaks[pairs] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[20_000] - peaks[4000] < 1_500_000  # the text alone is 6 MB longer


def test_same_text_gives_the_same_vocabulary_of_the_size_asked_for_or_a_part_of_it() -> None:
    texts = [text for pair in TOY.training for text in pair]
    one, other = (train_vocabulary(lambda: texts, 60, split_digits=False) for _ in range(2))
    assert one == other
    assert Vocabulary(one).size == 60
    assert Vocabulary(train_vocabulary(lambda: texts, 100_000, split_digits=False)).size < 400
    assert Vocabulary(one).fingerprint != Vocabulary(train_vocabulary(lambda: texts, 50, split_digits=False)).fingerprint


def test_smaller_vocabulary_is_told_once_with_its_size(caplog: pytest.LogCaptureFixture) -> None:
    texts = [text for pair in TOY.training for text in pair]
    with caplog.at_level(logging.WARNING, "sparsebench"):
        train_vocabulary(lambda: texts, 60, split_digits=False)
        assert caplog.messages == []
        size = Vocabulary(train_vocabulary(lambda: texts, 1600, split_digits=False)).size
    assert caplog.messages == [f"the vocabulary has {size} tokens, not 1,600: there is too little text for more"]


def test_other_mistakes_of_sentencepiece_do_not_make_the_vocabulary_smaller() -> None:
    with pytest.raises(
        SparsebenchError, match=r"^sentencepiece cannot learn a vocabulary of 18 tokens: .*required_chars"
    ) as caught:
        train_vocabulary(lambda: ["abcdefghijklmnopqrstuvwxyz"] * 30, 18, split_digits=False)
    assert "\n" not in str(caught.value)

    def broken() -> Iterator[str]:
        yield "one two"
        raise RuntimeError("the disk went away")

    with pytest.raises(SparsebenchError, match=r"^sentencepiece cannot learn a vocabulary of 60 tokens: .*the disk went away$"):
        train_vocabulary(broken, 60, split_digits=False)


def test_digits_are_split_where_asked_for() -> None:
    texts = ["1234 and 1234 or 1234"] * 50 + ["in 1234"]
    split = Vocabulary(train_vocabulary(lambda: texts, 40, split_digits=True))
    assert split.decode([[token] for token in split.encode(["1234"])[0][:-1]])[-4:] == ["1", "2", "3", "4"]


def naive_cuts(lengths: list[int], budget: int) -> list[int]:
    bounds = [0]
    while bounds[-1] < len(lengths):
        end = bounds[-1] + 1
        while end < len(lengths) and (end + 1 - bounds[-1]) * lengths[end] <= budget:
            end += 1
        bounds.append(end)
    return bounds


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(1, 50))
def test_cuts_are_those_of_a_loop_over_sentences(lengths: list[int], budget: int) -> None:
    assert cut(np.array(sorted(lengths)), budget).tolist() == naive_cuts(sorted(lengths), budget)


def rows(tokens: object) -> list[tuple[int, ...]]:
    return [tuple(token for token in row if token != PADDING) for row in tokens.tolist()]  # type: ignore[attr-defined]


def test_every_pair_comes_once_an_epoch_within_the_budget(corpus: Corpus) -> None:
    batches = TokenBatches(corpus, 128)
    expected = sorted((tuple(sentence(corpus.source, i)), tuple(sentence(corpus.target, i))) for i in range(400))
    epochs = []
    for epoch in range(2):
        found = []
        for position in range(len(batches)):
            batch = batches.batch(5, epoch * len(batches) + position)
            assert max(batch.source.numel(), batch.expected.numel()) <= 128
            assert batch.target.shape == batch.expected.shape
            assert (batch.target[:, 0] == BEGIN).all()
            assert batch.target[:, 1:].equal(batch.expected[:, :-1])
            found += zip(rows(batch.source), rows(batch.expected), strict=True)
        assert sorted(found) == expected
        epochs.append(found)
    assert epochs[0] != epochs[1]
    used = 2 * len(corpus.source.tokens) / (len(batches) * 128 * 2)
    assert used > 0.7  # little padding


def test_batch_depends_on_seed_and_step_alone(corpus: Corpus) -> None:
    """So that a run goes on exactly where it was, in the middle of an epoch too."""
    expected = TokenBatches(corpus, 128).batch(1, 50)
    batches = TokenBatches(corpus, 128)
    for seed, step in [(2, 50), (1, 0), (3, 500), (1, 51), (4, 70)]:
        assert not all(one.equal(other) for one, other in zip(batches.batch(seed, step), expected, strict=True))
    assert all(one.equal(other) for one, other in zip(batches.batch(1, 50), expected, strict=True))


def test_batch_of_one_token_is_one_token_on_each_side(corpus: Corpus) -> None:
    batch = TokenBatches(corpus, 1).batch(0, 0)
    assert [tuple(part.shape) for part in batch] == [(1, 1)] * 3
    assert batch.target.tolist() == [[BEGIN]]
