"""The code of a mask as docs/compressed-checkpoint.md defines it, a bit at a time in plain Python: the oracle."""

from __future__ import annotations

from collections.abc import Sequence


def to_bytes(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8))


def encode(mask: Sequence[bool], k: int) -> bytes:
    quotients, remainders, gap = "", "", 0
    for kept in mask:
        if not kept:
            gap += 1
            continue
        quotients += "0" * (gap // 2**k) + "1"
        remainders += format(gap % 2**k, f"0{k}b") if k else ""
        gap = 0
    return to_bytes(quotients) + to_bytes(remainders)


def decode(code: bytes, kept: int, k: int, length: int) -> list[bool]:
    bits = "".join(format(byte, "08b") for byte in code)
    place = 0
    quotients = []
    for _ in range(kept):
        quotient = 0
        while bits[place] == "0":
            quotient += 1
            place += 1
        place += 1
        quotients.append(quotient)
    place = (place + 7) // 8 * 8
    mask: list[bool] = []
    for quotient in quotients:
        remainder = int(bits[place : place + k], 2) if k else 0
        place += k
        mask += [False] * (quotient * 2**k + remainder) + [True]
    assert (place + 7) // 8 == len(code)
    return mask + [False] * (length - len(mask))
