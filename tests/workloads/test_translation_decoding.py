from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.decoding import CHUNK, _greatest, beam_search, greedy, length_penalty
from sparsebench.workloads.translation.tokens import BEGIN, END, PADDING, UNKNOWN
from sparsebench.workloads.translation.transformer import Size, Transformer

VOCABULARY = 7  # three ordinary tokens beside the four special ones
ORDINARY = [UNKNOWN, 4, 5, 6]
LONGEST = 4


def network(seed: int) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, Size(width=16, feed_forward=16, heads=2, layers=1)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(4.0)
        model.embedding.weight[END] = model.embedding.weight[[4, 5, 6]].mean(0)  # so that translations have various lengths
    return model


def sources(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCABULARY, (5, 5), generator=generator)
    tokens[:, 4] = END
    tokens[1, 2:] = torch.tensor([END, PADDING, PADDING])
    return tokens


def log_probability(model: Transformer, source: torch.Tensor, translation: tuple[int, ...]) -> float:
    """Of a whole sequence, token by token; padding and the begin symbol are never chosen."""
    with torch.no_grad():
        logits = model(source[None], torch.tensor([[BEGIN, *translation[:-1]]]))[0]
    logits[:, [PADDING, BEGIN]] = float("-inf")
    return sum(float(row.log_softmax(0)[token]) for row, token in zip(logits, translation, strict=True))


def exhaustive(model: Transformer, source: torch.Tensor, exponent: float) -> list[int]:
    """The best of all translations that end within the longest length."""
    best: tuple[float, list[int]] = (float("-inf"), [])
    for length in range(LONGEST):
        for tokens in itertools.product(ORDINARY, repeat=length):
            score = log_probability(model, source, (*tokens, END)) / length_penalty(length + 1, exponent)
            best = max(best, (score, list(tokens)))
    return best[1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("exponent", [0.0, 0.6, 3.0])
def test_wide_beam_finds_what_exhaustive_search_finds(seed: int, exponent: float) -> None:
    model, source = network(seed), sources(seed)
    expected = [exhaustive(model, row, exponent) for row in source]
    assert beam_search(model, source, LONGEST, beam=len(ORDINARY) ** LONGEST, exponent=exponent) == expected


def test_cases_are_such_that_narrow_beams_and_other_exponents_differ() -> None:
    """Or the test above would hold of anything."""
    lengths, exponents_differ, narrow_differ = set(), False, False
    for seed in range(4):
        model, source = network(seed), sources(seed)
        wide = {exponent: beam_search(model, source, LONGEST, 256, exponent) for exponent in (0.0, 3.0)}
        lengths |= {len(translation) for translation in wide[0.0] + wide[3.0]}
        exponents_differ |= wide[0.0] != wide[3.0]
        narrow_differ |= wide[3.0] != beam_search(model, source, LONGEST, 1, 3.0)
    assert len(lengths) > 1
    assert exponents_differ
    assert narrow_differ


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_sentences_do_not_depend_on_their_company(beam: int) -> None:
    for seed in range(4):
        model, source = network(seed), sources(seed)
        apart = [beam_search(model, row[None], 12, beam)[0] for row in source]
        assert beam_search(model, source, 12, beam) == apart
        assert greedy(model, source, 12) == [greedy(model, row[None], 12)[0] for row in source]


def by_hand(model: Transformer, source: torch.Tensor, longest: int, beam: int) -> list[int]:
    """A beam search as the documentation says it, without cache, early stop or tensors of hypotheses."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, longest + 1):
        continued = []
        for log_p, tokens in live:
            with torch.no_grad():
                logits = model(source[None], torch.tensor([[BEGIN, *tokens]]))[0, -1]
            logits[[PADDING, BEGIN]] = float("-inf")
            continued += [(log_p + float(p), (*tokens, token)) for token, p in enumerate(logits.log_softmax(0))]
        best = sorted(continued, reverse=True)[: 2 * beam]
        finished += [(log_p / length_penalty(length), tokens[:-1]) for log_p, tokens in best if tokens[-1] == END]
        live = [item for item in best if item[1][-1] != END][:beam]
    return list(max(finished)[1] if finished else live[0][1])


@pytest.mark.parametrize("beam", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_beam_search_is_the_one_that_is_described(beam: int, seed: int) -> None:
    """The early stop loses nothing: the loop by hand goes on to the longest length."""
    model, source = network(seed), sources(seed)
    expected = [by_hand(model, row[row != PADDING], 9, beam) for row in source]
    assert beam_search(model, source, 9, beam) == expected


def test_unfinished_hypotheses_stand_in_where_none_is_finished() -> None:
    model = network(0)
    with torch.no_grad():
        model.decoder_norm.bias.copy_(-20.0 * model.embedding.weight[END])  # the end symbol becomes impossible
    source = sources(0)
    translations = greedy(model, source, 6)
    assert {len(translation) for translation in translations} == {6}
    # A beam of one looks at two continuations of three that are possible; a wider one would finish at once, however improbably.
    assert beam_search(model, source, 6, beam=1) == translations


def test_length_penalty_is_that_of_the_paper() -> None:
    assert length_penalty(7) == pytest.approx(2.0**0.6)
    assert length_penalty(25, 0.6) == pytest.approx(5.0**0.6)
    assert length_penalty(25, 0.0) == 1.0


def test_beam_and_exponent_out_of_range_are_refused() -> None:
    with pytest.raises(SparsebenchError, match=r"^beam=0: expected at least 1$"):
        beam_search(network(0), sources(0), 5, beam=0)
    with pytest.raises(SparsebenchError, match=r"^exponent=nan: expected at least 0$"):
        beam_search(network(0), sources(0), 5, exponent=float("nan"))


@settings(max_examples=60)
@given(st.integers(1, 5), st.sampled_from([1, 63, 64, 300, 1100, 4000]), st.integers(1, 12), st.booleans(), st.integers(0, 2**31))
def test_greatest_of_each_row(rows: int, columns: int, count: int, rounded: bool, seed: int) -> None:
    """Of many equal numbers any may be taken."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if rounded:
        values = values.round()
    values[:, ::7] = float("-inf")
    count = min(count, columns)
    found, where = _greatest(values, count)
    assert found.equal(values.topk(count)[0])
    assert values.gather(1, where).equal(found)
    assert all(len(set(row)) == count for row in where.tolist())


def test_search_in_a_large_vocabulary_is_the_same_without_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Transformer(40 * CHUNK + 3, Size(width=16, feed_forward=16, heads=2, layers=2)).eval()
    source = torch.randint(4, 200, (6, 5))
    found = beam_search(model, source, 6, beam=3)
    monkeypatch.setattr("sparsebench.workloads.translation.decoding._greatest", lambda values, count: values.topk(count))
    assert beam_search(model, source, 6, beam=3) == found
