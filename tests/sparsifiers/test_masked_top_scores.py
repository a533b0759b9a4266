"""Exact selection of the highest scores, and masks as bits."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_oracle import highest

from sparsebench.sparsifiers.masked import masks
from sparsebench.sparsifiers.masked.masks import pack, top_scores, unpack

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, -float("inf"), 1.0, -1.0, 5.960464477539063e-08, -5.960464477539063e-08, 3.0, 65504.0, -65504.0]
LAYOUTS = ["contiguous", "permuted", "strided", "expanded", "channels_last"]


def laid_out(values, layout):
    """The same logical values in another memory layout."""
    if layout == "permuted" and values.dim() > 1:
        return values.permute(*reversed(range(values.dim()))).contiguous().permute(*reversed(range(values.dim())))
    if layout == "strided" and values.dim() > 0:
        wide = torch.full((*values.shape[:-1], 2 * values.shape[-1]), 7.0, dtype=values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "expanded" and values.dim() > 0:
        return values[:1].expand(values.shape)
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values


@st.composite
def score_tensors(draw):
    tensors = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        kind = draw(st.sampled_from(["distinct", "few values", "special", "equal"]))
        values = {
            "distinct": lambda g=generator, s=shape: g.normal(size=s),
            "few values": lambda g=generator, s=shape: g.integers(-2, 3, size=s) / 2.0,
            "special": lambda g=generator, s=shape: g.choice(SPECIAL, size=s),
            "equal": lambda g=generator, s=shape: np.full(s, g.choice(SPECIAL)),
        }[kind]()
        tensor = torch.tensor(values, dtype=draw(st.sampled_from(DTYPES))).reshape(shape)
        tensors.append(laid_out(tensor, draw(st.sampled_from(LAYOUTS))))
    total = sum(tensor.numel() for tensor in tensors)
    return tensors, draw(st.integers(0, total))


def check(tensors, keep):
    expected = highest([tensor.double().numpy() for tensor in tensors], keep)
    found = top_scores(tensors, keep)
    for mask, wanted, tensor in zip(found, expected, tensors, strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == tensor.shape
        np.testing.assert_array_equal(mask.numpy(), wanted)


@settings(max_examples=300)
@given(score_tensors(), st.sampled_from([0, 1, 7, masks.FEW_CANDIDATES]))
def test_the_kept_scores_are_those_of_a_stable_sort(case, few):
    with mock.patch.object(masks, "FEW_CANDIDATES", few):
        check(*case)


@settings(max_examples=200)
@given(score_tensors(), st.sampled_from([0, masks.MANY_SCORES]), st.booleans())
def test_scores_by_a_key_are_ranked_as_if_they_were_all_there(case, many, some):
    tensors, keep = case
    candidates = [torch.rand(tensor.shape) < 0.5 for tensor in tensors] if some else None
    keep = min(keep, sum(int(own.sum()) for own in candidates)) if candidates else keep
    with mock.patch.object(masks, "MANY_SCORES", many):
        found = top_scores(tensors, keep, candidates, torch.abs)
        expected = top_scores([tensor.abs() for tensor in tensors], keep, candidates)
    for mask, wanted in zip(found, expected, strict=True):
        assert torch.equal(mask, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2**14 - 1, 2**14, 2**14 + 1, 3 * 2**14])
@pytest.mark.parametrize("kind", ["distinct", "ties", "equal", "minus infinity"])
def test_counting_and_selection_agree_on_both_sides_of_their_boundary(dtype, size, kind):
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    if kind == "ties":
        values = (values * 3).round() / 3
    elif kind == "equal":
        values = torch.full_like(values, -0.25)
    elif kind == "minus infinity":
        values[values < 0.5] = -torch.inf
    values = values.to(dtype)
    parts = [values[: size // 3].reshape(-1, 1), values[size // 3 :]]
    with mock.patch.multiple(masks, FEW_CANDIDATES=2**14, MANY_SCORES=2**16):
        for keep in (1, size // 10, size // 2, size - 1):
            check(parts, keep)


def test_zeros_of_either_sign_are_equal():
    scores = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    assert top_scores([scores], 2)[0].tolist() == [True, True, False, False]


def test_half_precision_and_double_precision_scores_compete_exactly():
    # 1 + 2^-40 and 1 are equal in float32 and different in float64.
    scores = [torch.ones(3, dtype=torch.bfloat16), torch.tensor([1.0 + 2.0**-40, 1.0 - 2.0**-40], dtype=torch.float64)]
    assert [mask.tolist() for mask in top_scores(scores, 2)] == [[True, False, False], [True, False]]


@pytest.mark.parametrize("keep", [-1, 7])
def test_an_impossible_count_is_refused(keep):
    with pytest.raises(ValueError, match=f"keep={keep}: expected between 0 and the 6 scores"):
        top_scores([torch.zeros(2, 3)], keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_scores_are_never_gathered_however_many_they_are(monkeypatch, dtype):
    """PEERS 17: what a threshold needs beside the scores is bounded."""
    monkeypatch.setattr(masks, "FEW_CANDIDATES", 1 << 14)
    gathered, cat = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts: gathered.append(sum(part.numel() for part in parts)) or cat(parts))
    mask = top_scores([torch.zeros(5 * masks.FEW_CANDIDATES, dtype=dtype)], 1000)[0]
    assert bool(mask[:1000].all())
    assert int(mask.sum()) == 1000
    assert max(gathered, default=0) <= masks.FEW_CANDIDATES


@settings(max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=0, max_size=4), st.integers(0, 2**32 - 1), st.sampled_from(LAYOUTS))
def test_masks_survive_packing_to_bits(shape, seed, layout):
    mask = torch.from_numpy(np.asarray(np.random.default_rng(seed).random(shape) < 0.5))
    bits = pack(laid_out(mask, layout if layout not in ("expanded", "strided") else "permuted"))
    assert bits.dtype == torch.uint8
    assert bits.shape == (-(-mask.numel() // 8),)
    assert torch.equal(unpack(bits, mask.shape), mask)
    np.testing.assert_array_equal(np.packbits(mask.numpy().reshape(-1)), bits.numpy())
