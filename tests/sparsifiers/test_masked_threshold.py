"""The threshold of very many scores, which a sample brackets: exact whatever the sample says; and scores among candidates."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_oracle import highest

from sparsebench.sparsifiers.masked import bracket, masks
from sparsebench.sparsifiers.masked.masks import count_kept, top_scores

KINDS = {
    "distinct": lambda g, n: g.normal(size=n),
    "few values": lambda g, n: g.integers(-2, 3, size=n) / 2.0,
    "mostly one value": lambda g, n: np.where(g.random(n) < 0.9, 0.5, g.normal(size=n)),
    "equal": lambda g, n: np.zeros(n),
    "sorted": lambda g, n: np.sort(g.normal(size=n)),
    "minus infinity": lambda g, n: np.where(g.random(n) < 0.5, -np.inf, g.normal(size=n)),
    # Every 73rd score, which is what the sample sees of 400,000, is unlike the others.
    "misleading": lambda g, n: np.where(np.arange(n) % 73 == 0, 100.0, 0.0) + g.normal(size=n),
}


def check(tensors, keep, candidates=None):
    scores = [tensor.double().numpy() for tensor in tensors]
    found = top_scores(tensors, keep, candidates)
    if candidates is not None:
        allowed = [(candidate != 0).numpy() for candidate in candidates]
        # Ranks of the allowed among themselves, so that minus infinity is above what is not allowed.
        flat = np.concatenate([score.reshape(-1) for score in scores])
        ranks = np.unique(flat, return_inverse=True)[1].astype(float)
        parts = np.split(ranks, np.cumsum([score.size for score in scores])[:-1])
        scores = [np.where(own, part.reshape(own.shape), -1.0) for own, part in zip(allowed, parts, strict=True)]
    for mask, wanted in zip(found, highest(scores, keep), strict=True):
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), wanted)


@settings(max_examples=250)
@given(
    st.sampled_from(list(KINDS)),
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
    st.floats(0.0, 1.0),
    st.sampled_from([8, 64]),
    st.one_of(st.none(), st.tuples(st.floats(-3.0, 3.0, width=16), st.floats(0.0, 3.0, width=16))),
    st.sampled_from([None, torch.bool, torch.float32, torch.bfloat16]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_sampled_threshold_is_the_exact_one(kind, sizes, share, sample, bounds, candidate_dtype, dtype, transposed, seed):
    generator = np.random.default_rng(seed)
    tensors = [torch.as_tensor(KINDS[kind](generator, 2 * size)).to(dtype).reshape(2, size) for size in sizes]
    candidates = None
    if candidate_dtype is not None:
        candidates = [torch.as_tensor(generator.random((2, size)) < 0.6).to(candidate_dtype) for size in sizes]
    if transposed:
        tensors = [tensor.T.contiguous().T for tensor in tensors]
    total = 2 * sum(sizes) if candidates is None else sum(int((candidate != 0).sum()) for candidate in candidates)
    lie = {} if bounds is None else {"bracket": lambda *_: (bounds[0], bounds[0] + bounds[1])}
    with (
        mock.patch.multiple(masks, MANY_SCORES=10, FEW_CANDIDATES=20, **lie),
        mock.patch.multiple(bracket, LARGEST_SAMPLE=sample, CHUNK=97),
    ):
        check(tensors, int(share * total), candidates)


@pytest.mark.parametrize("kind", ["distinct", "mostly one value", "misleading"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_large_tensor_goes_by_its_sample(kind, share):
    values = torch.as_tensor(KINDS[kind](np.random.default_rng(0), 400_000)).float().reshape(400, 1000)
    check([values], int(share * values.numel()))
    may = torch.as_tensor(np.random.default_rng(1).random((400, 1000)) < 0.5)
    check([values], int(share * int(may.sum())), [may.float()])


def test_what_is_looked_at_closely_is_a_small_part_of_random_scores():
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    looked_at, own = [], masks._select
    with mock.patch.object(masks, "_select", lambda near, k: looked_at.append(len(near)) or own(near, k)):
        top_scores([values], 100_000)
    assert 0 < looked_at[0] < 50_000


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.float64])
def test_kept_entries_are_counted_exactly(dtype):
    mask = (torch.arange(70_000) % 3 > 0).reshape(100, 700).to(dtype)
    assert count_kept(mask) == count_kept(mask.T) == 46_666


def test_more_than_16_million_kept_entries_are_counted_exactly():
    """PEERS 17: float32 cannot count further than 16 M by ones."""
    assert count_kept(torch.ones((1 << 24) + 3)) == (1 << 24) + 3
