"""Which elements are kept, as Golomb-Rice codes of the gaps between them; with parameter 0 the code is a bitmask.

A gap is the number of dropped elements before a kept one, in row-major order. With parameter k it is written as its quotient by
2^k in unary (as many zeros as the quotient says, then a one) and its remainder in k bits (S. W. Golomb, "Run-length encodings",
IEEE Transactions on Information Theory 12, 1966; R. F. Rice, "Some practical universal noiseless coding techniques", JPL 79-22,
1979). All quotients come first, padded with zeros to whole bytes, then all remainders, padded likewise; the first bit of a byte
is its highest. Two streams instead of one take the same number of bits and can be read many codes at a time.

With k = 0 a gap is as many zeros, then a one: the bitmask itself, up to its last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsebench.storage.damage import DamagedFileError

__all__ = ["MAX_PARAMETER", "Gaps", "decode_positions", "encode_mask", "measure_gaps"]

CHUNK = 1 << 20  # elements looked at in one go; what is allocated beside input and output is a small multiple of this
UNARY_CHUNK = CHUNK // 8
MAX_PARAMETER = 40  # the remainders of a chunk add up to less than 2^60: no sum below leaves 64 bits


@dataclass(frozen=True)
class Gaps:
    """What the gaps of a mask add up to: enough to know the size of its code for every parameter.

    Attributes:
        kept: Number of kept elements.
        quotient_sums: For k = 0, 1, ... the sum of `gap >> k` over all gaps, up to the first that is zero.
    """

    kept: int
    quotient_sums: tuple[int, ...]

    def code_bytes(self, parameter: int) -> int:
        """Size of the code in bytes.

        Args:
            parameter: The Rice parameter k, from 0 to `len(quotient_sums) - 1`.
        """
        return _bytes(self.kept + self.quotient_sums[parameter]) + _bytes(self.kept * parameter)

    @property
    def best_parameter(self) -> int:
        """The parameter with the shortest code, the smallest of equals. Its code is never longer than a bitmask."""
        return min(range(min(len(self.quotient_sums), MAX_PARAMETER + 1)), key=self.code_bytes)


def measure_gaps(elements: NDArray[Any]) -> Gaps:
    """Add up the gaps between the non-zero elements.

    Args:
        elements: One-dimensional array of unsigned integers (the bits of the elements of a tensor) or bools.

    Example:
        >>> measure_gaps(np.array([0, 0, 5, 7], dtype=np.uint8))
        Gaps(kept=2, quotient_sums=(2, 1, 0))
    """
    kept, sums, last = 0, [0], -1
    for positions in _positions(elements):
        gaps = _gaps(positions, last)
        kept, last = kept + len(positions), int(positions[-1])
        parameter = 0
        while total := int(gaps.sum()):
            sums[parameter] += total
            parameter += 1
            if parameter == len(sums):
                sums.append(0)
            gaps >>= 1
    return Gaps(kept, tuple(sums))


def encode_mask(elements: NDArray[Any], gaps: Gaps, parameter: int) -> NDArray[np.uint8]:
    """The code of a mask.

    Args:
        elements: As for `measure_gaps`; zeros are dropped.
        gaps: What `measure_gaps` found in them.
        parameter: The Rice parameter k, from 0 to `len(gaps.quotient_sums) - 1`.

    Returns:
        `gaps.code_bytes(parameter)` bytes.

    Example:
        >>> elements = np.array([0, 0, 5, 7], dtype=np.uint8)
        >>> encode_mask(elements, measure_gaps(elements), 0)  # 0011 and four bits of padding
        array([48], dtype=uint8)
        >>> encode_mask(elements, measure_gaps(elements), 1)  # quotients 1, 0: 011; remainders 0, 0: 00
        array([96,  0], dtype=uint8)
    """
    unary = np.zeros(_bytes(gaps.kept + gaps.quotient_sums[parameter]), np.uint8)
    remainders = np.zeros(_bytes(gaps.kept * parameter), np.uint8)
    shifts = np.arange(parameter - 1, -1, -1)
    done, last, end = 0, -1, -1  # codes written; where the last kept element is, and the last one of the unary stream
    for positions in _positions(elements):
        code = _gaps(positions, last)
        ones = np.cumsum((code >> parameter) + 1) + end
        bits = np.zeros(int(ones[-1] - ones[0]) + 1, np.uint8)
        bits[ones - ones[0]] = 1
        _write_bits(unary, int(ones[0]), bits)
        if parameter:
            _write_bits(remainders, done * parameter, ((code[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1))
        done, last, end = done + len(positions), int(positions[-1]), int(ones[-1])
    return np.concatenate((unary, remainders))


def decode_positions(code: NDArray[np.uint8], kept: int, parameter: int, length: int) -> Iterator[NDArray[np.int64]]:
    """The positions of the kept elements, in order, some at a time.

    Nothing is allocated in proportion to `length` or `kept`: the code, too, may come from a file that nobody trusts.

    Args:
        code: What `encode_mask` gave.
        kept: Number of kept elements.
        parameter: The Rice parameter k, from 0 to `MAX_PARAMETER`.
        length: Number of all elements, below 2^60.

    Yields:
        Strictly increasing positions from 0 to `length - 1`, `kept` of them in all once the iteration has ended.

    Raises:
        DamagedFileError: No mask with `kept` of `length` elements has this code.

    Example:
        >>> [chunk.tolist() for chunk in decode_positions(np.array([0b01100000, 0], dtype=np.uint8), 2, 1, 4)]
        [[2, 3]]
    """
    split = len(code) - _bytes(kept * parameter)
    if split < _bytes(kept):
        raise DamagedFileError(f"the code of the mask has {len(code)} bytes, too few for {kept} kept elements")
    unary, remainders = code[:split], code[split:]
    done, remainder_sum = 0, 0
    for start in range(0, split, UNARY_CHUNK):
        ones = np.flatnonzero(np.unpackbits(unary[start : start + UNARY_CHUNK]).view(np.bool_))
        if not len(ones):
            continue
        if done + len(ones) > kept:
            raise DamagedFileError(f"the code of the mask keeps more than {kept} elements")
        index = np.arange(done, done + len(ones))
        # The one that ends code i stands at place u of the stream: the quotients up to i add up to u - i.
        positions = ones + 8 * start - index
        if int(positions[-1]) << parameter >= length:
            raise DamagedFileError(f"the code of the mask goes past its {length} elements")
        positions <<= parameter
        if parameter:
            sums = np.cumsum(_read_remainders(remainders, done, len(ones), parameter))
            positions += sums + remainder_sum
            remainder_sum += int(sums[-1])
        positions += index
        if int(positions[-1]) >= length:
            raise DamagedFileError(f"the code of the mask goes past its {length} elements")
        done += len(ones)
        yield positions
    if done != kept:
        raise DamagedFileError(f"the code of the mask keeps {done} elements, but there are {kept} values")
    if split and not unary[-1]:
        raise DamagedFileError("the code of the mask has bytes to spare")


def _positions(elements: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Positions of the non-zero elements, a chunk at a time; chunks without any are left out."""
    for start in range(0, len(elements), CHUNK):
        found = np.flatnonzero(elements[start : start + CHUNK] != 0)
        if len(found):
            yield found + start


def _gaps(positions: NDArray[np.int64], last: int) -> NDArray[np.int64]:
    return np.diff(positions, prepend=last) - 1


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _write_bits(stream: NDArray[np.uint8], first: int, bits: NDArray[np.uint8]) -> None:
    """Set bits of a stream of zeros from bit `first` on."""
    packed = np.packbits(np.concatenate((np.zeros(first % 8, np.uint8), bits)))
    stream[first // 8 : first // 8 + len(packed)] |= packed


def _read_remainders(stream: NDArray[np.uint8], index: int, count: int, parameter: int) -> NDArray[np.int64]:
    """`count` remainders of `parameter` bits each, from the remainder `index` on."""
    first, end = index * parameter, (index + count) * parameter
    bits = np.unpackbits(stream[first // 8 : _bytes(end)])[first % 8 :][: end - first].reshape(count, parameter)
    remainders = np.zeros(count, np.int64)
    for column in range(parameter):
        remainders = remainders << 1 | bits[:, column]
    return remainders
