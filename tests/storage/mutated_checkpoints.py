"""Compressed checkpoints that somebody damaged, or made to do harm."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsebench.storage import save_compressed

START = b'{"__metadata__":{"sha256":"'
HOSTILE: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 41, 255, 2**31, 2**40, 2**53, 2**60, 2**62, 2**63, 2**64, 10**30, 0.5, 1e308, float("nan")),
    *(None, True, False, "", "w", "w.mask", "b", "\x00", "__metadata__"),
    *("U8", "F32", "F16", "BF16", "F64", "BOOL", "F4", "F8_E8M0"),
    *([], {}, [0], [1], [2**40], [2**20, 2**20], [2**62, 4], [-1], [0, 2**40], [1] * 70, [[]]),
    *(["values"], ["mask"], ["values", "mask"]),
    {"dtype": "F32", "shape": [2**40], "zeros": 2**40},
    {"dtype": "U8", "shape": [3], "zeros": 0},
    {"a": {"b": []}},
]


def write_original(path: Path, **options: Any) -> bytes:
    """A small file with every coding in it."""
    generator = torch.Generator().manual_seed(0)

    def sparse(sparsity: float, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= sparsity) + 0.0

    state = {
        "w": sparse(0.9, 40, 30),
        "half": sparse(0.5, 20, 30).half(),
        "zeros": torch.zeros(30, 30, dtype=torch.float64),
        "b": torch.randn(30, generator=generator),
        "flags": torch.tensor([True, False, True]),
        "steps": torch.tensor(12),
        "empty": torch.empty(0, 4),
    }
    state["tied"] = state["w"]
    save_compressed(state, path, method="m", config={"a": [1, 2]}, metrics={"x": 0.5}, **options)
    return path.read_bytes()


def take_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header, with the table and the tied names as objects, and data."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for field in ("tensors", "tied"):
        header["__metadata__"][field] = json.loads(header["__metadata__"][field])
    return header, data[end:]


def put_together(header: dict[str, Any], data: bytes) -> bytes:
    """A file with a right length and a right checksum, whatever the header says."""
    header = copy.deepcopy(header)
    for field in ("tensors", "tied"):
        if not isinstance(header["__metadata__"].get(field, ""), str):
            header["__metadata__"][field] = json.dumps(header["__metadata__"][field])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return seal(len(text).to_bytes(8, "little") + text + data)


def seal(data: bytes) -> bytes:
    """The file with the checksum that it must have; as it is where it has no place for one."""
    place = 8 + len(START)
    if data[8:place] != START or len(data) < place + 64:
        return data
    digest = hashlib.sha256(data[:place] + b"0" * 64 + data[place + 64 :]).hexdigest().encode()
    return data[:place] + digest + data[place + 64 :]


def flip_bytes(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    header_end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(chance.choice([1, 1, 1, 2, 5, 30])):
        place = chance.randrange(chance.choice([len(data), header_end]))
        flipped = changed[place] ^ 1 << chance.randrange(8)
        changed[place] = chance.choice([flipped, chance.randrange(256), *b'012",:[]{}'])
    return bytes(changed)


def cut(chance: random.Random, data: bytes) -> bytes:
    place = chance.randrange(len(data))
    return chance.choice([data[:place], data[place:], data + data[:place], data + b"\0", data[:place] + data[place + 1 :]])


def move_bytes(chance: random.Random, data: bytes) -> bytes:
    first, second = sorted(chance.randrange(len(data)) for _ in range(2))
    length = chance.randrange(1, 40)
    return data[:first] + data[second : second + length] + data[first + length :]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*path, key) for key, _ in inner] + [place for key, child in inner for place in _places(child, (*path, key))]


def edit_header(chance: random.Random, data: bytes) -> bytes:
    """Values in the header replaced, removed, renamed, exchanged; sealed again."""
    header, rest = take_apart(data)
    for _ in range(chance.choice([1, 1, 2, 4])):
        places = [place for place in _places(header) if place[-1] != "__metadata__" and place[1:] != ("sha256",)]
        *parents, key = chance.choice(places)
        holder = header
        for parent in parents:
            holder = holder[parent]
        action = chance.randrange(6)
        if action < 3:
            holder[key] = copy.deepcopy(chance.choice(HOSTILE))
        elif action == 3 and type(holder[key]) is int:
            holder[key] += chance.choice([-1, 1, 8, -8])
        elif action == 4 and isinstance(holder, dict):
            value = holder.pop(key)
            if chance.random() < 0.5:
                holder[str(chance.choice(HOSTILE))] = value
        else:
            other = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[key], holder[other] = holder[other], holder[key]
    return put_together(header, rest)


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    flip_bytes,
    cut,
    move_bytes,
    lambda chance, data: seal(flip_bytes(chance, data)),
    lambda chance, data: seal(move_bytes(chance, data)),
    edit_header,
    edit_header,
]
