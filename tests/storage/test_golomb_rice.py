from __future__ import annotations

import math

import bit_by_bit_golomb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsebench.storage import golomb_rice
from sparsebench.storage.damage import DamagedFileError
from sparsebench.storage.golomb_rice import MAX_PARAMETER, decode_positions, encode_mask, measure_gaps


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Random, clustered, nearly empty and nearly full masks."""
    seed = draw(st.integers(0, 2**32 - 1))
    length = draw(st.one_of(st.integers(0, 40), st.integers(0, 3000)))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        return rng.random(length) < draw(st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0]))
    runs = rng.integers(1, draw(st.sampled_from([3, 30, 600])), size=length + 1)
    return np.repeat(np.arange(length + 1) % 2, runs)[:length].astype(bool)


def decoded(code: np.ndarray, kept: int, parameter: int, length: int) -> np.ndarray:
    mask = np.zeros(length, bool)
    for positions in decode_positions(code, kept, parameter, length):
        mask[positions] = True
    return mask


@settings(max_examples=300)
@given(mask=masks(), chunk=st.sampled_from([8, 24, 64, 1000, 1 << 20]), element=st.sampled_from(["u1", "u2", "u4", "u8", "?"]))
@example(mask=np.zeros(0, bool), chunk=8, element="u1")
@example(mask=np.repeat([False, True], [2000, 1]), chunk=64, element="u4")  # a gap over many chunks
def test_code_is_that_of_the_oracle_in_both_directions(mask: np.ndarray, chunk: int, element: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(golomb_rice, "CHUNK", chunk)
        patched.setattr(golomb_rice, "UNARY_CHUNK", chunk // 8)
        elements = mask.astype(element)
        gaps = measure_gaps(elements)
        assert gaps.kept == mask.sum()
        for k in range(len(gaps.quotient_sums)):
            expected = bit_by_bit_golomb.encode(mask.tolist(), k)
            code = encode_mask(elements, gaps, k)
            assert code.tobytes() == expected
            assert gaps.code_bytes(k) == len(expected)
            assert bit_by_bit_golomb.decode(expected, gaps.kept, k, len(mask)) == mask.tolist()
            assert np.array_equal(decoded(code, gaps.kept, k, len(mask)), mask)
        sizes = [len(bit_by_bit_golomb.encode(mask.tolist(), k)) for k in range(16)]
        assert gaps.best_parameter == sizes.index(min(sizes))
        assert min(sizes) <= (len(mask) + 7) // 8  # never longer than a bitmask


def test_parameters_beyond_the_listed_quotients_cannot_be_shorter() -> None:
    gaps = measure_gaps(np.repeat([0, 1], [1000, 1]))
    assert gaps.quotient_sums[-1] == 0
    assert 0 not in gaps.quotient_sums[:-1]
    assert gaps.quotient_sums == tuple(1000 >> k for k in range(11))


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05, 0.02, 0.005])
def test_random_mask_takes_at_most_three_per_cent_more_than_its_entropy(density: float) -> None:
    mask = np.random.default_rng(0).random(3_000_000) < density
    gaps = measure_gaps(mask)
    p = gaps.kept / len(mask)
    entropy = -len(mask) * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert entropy <= 8 * gaps.code_bytes(gaps.best_parameter) <= 1.03 * entropy


@settings(max_examples=1500)
@given(
    code=st.binary(max_size=60),
    kept=st.integers(0, 70) | st.integers(0, 2**59),
    k=st.integers(0, MAX_PARAMETER),
    length=st.integers(1, 600) | st.integers(1, 2**60 - 1),
)
@example(code=b"\x00" * 7 + b"\x01" + b"\xff" * 5, kept=1, k=40, length=2**60 - 1)
@example(code=b"\xff" * 2 + b"\xff" * 60, kept=12, k=40, length=2**60 - 1)
def test_any_bytes_are_a_mask_or_a_clear_error(code: bytes, kept: int, k: int, length: int) -> None:
    problem = None
    try:
        positions = [int(place) for chunk in decode_positions(np.frombuffer(code, np.uint8), kept, k, length) for place in chunk]
    except DamagedFileError as error:
        problem = str(error)
    if problem is not None:
        assert "code of the mask" in problem
        return
    assert len(positions) == kept
    assert positions == sorted(set(positions))
    assert not positions or (positions[0] >= 0 and positions[-1] < length)
    if length <= 600:
        mask = bit_by_bit_golomb.decode(code, kept, k, length)
        assert [place for place, one in enumerate(mask) if one] == positions


@pytest.mark.parametrize(
    ("code", "kept", "k", "length", "words"),
    [
        ([], 1, 0, 8, "too few for 1 kept"),
        ([0b10000000], 2, 0, 8, "keeps 1 elements, but there are 2"),
        ([0b11000000], 1, 0, 8, "keeps more than 1"),
        ([0b00000001], 1, 0, 7, "goes past its 7 elements"),
        ([0b01000000, 0b10000000], 1, 1, 3, "goes past its 3 elements"),  # by its remainder
        ([0b10000000, 0], 1, 0, 8, "bytes to spare"),
        ([0], 0, 0, 8, "bytes to spare"),
    ],
)
def test_wrong_code_is_named(code: list[int], kept: int, k: int, length: int, words: str) -> None:
    with pytest.raises(DamagedFileError, match=words):
        list(decode_positions(np.array(code, np.uint8), kept, k, length))


def test_quotient_that_would_wrap_around_64_bits_is_past_the_end() -> None:
    """A quotient of 2^24 with k = 40 stands for 2^64 dropped elements, which is 0 in 64 bits."""
    code = np.frombuffer(bytes(1 << 21) + b"\x80" + bytes(5), np.uint8)
    with pytest.raises(DamagedFileError, match="goes past its 100 elements"):
        list(decode_positions(code, 1, 40, 100))
