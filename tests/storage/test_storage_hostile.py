"""Files that are damaged or made to do harm: one clear error each, and never more memory than allowed."""

from __future__ import annotations

import contextlib
import pickle
import random
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exact_bits import same_bits
from mutated_checkpoints import MUTATIONS, put_together, seal, take_apart, write_original

from sparsebench.errors import SparsebenchError
from sparsebench.storage import inspect, load_compressed, save_compressed

LIMIT = 1 << 20
# What reading takes beside the tensors: chunks of the code in 64-bit numbers, texts, the file itself.
SPARE = 8 << 20


def test_texts_that_unfold_to_many_objects_are_not_read(tmp_path):
    path = tmp_path / "x"
    header, data = take_apart(write_original(path))
    lists = '{"a":[' + "[]," * (6 << 20) + "[]]}"
    for field, read in (("tensors", load_compressed), ("tied", load_compressed), ("config", inspect)):
        changed = header | {"__metadata__": header["__metadata__"] | {field: lists}}
        path.write_bytes(put_together(changed, data))
        size = path.stat().st_size
        tracemalloc.start()
        try:
            with pytest.raises(SparsebenchError, match=r"has 18,874,378 characters: expected at most 16,777,216$"):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 6 * size
        finally:
            tracemalloc.stop()


def test_names_cannot_move_the_cursor(tmp_path):
    path = tmp_path / "x"
    save_compressed({"a\x1b[2J\nb": torch.ones(3), "größe": torch.ones(3)}, path)
    text = str(inspect(path))
    assert "\x1b" not in text
    assert r"a\x1b[2J\nb" in text
    assert "größe" in text


def outcome(path: Path, data: bytes) -> dict[str, torch.Tensor] | None:
    """What is loaded, None where a clear error says why nothing is; anything else fails."""
    path.write_bytes(data)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    state, problem = None, f"{path}"
    try:
        state = load_compressed(path, max_bytes=LIMIT)
    except SparsebenchError as error:
        problem = str(error)
    assert problem.startswith(f"{path}")
    assert "\n" not in problem
    assert len(problem) < 600
    assert tracemalloc.get_traced_memory()[1] - before < LIMIT + SPARE
    with contextlib.suppress(SparsebenchError):
        str(inspect(path))
    return state


def fuzz(tmp_path: Path, cases: int, seed: int, **options: Any) -> None:
    original = write_original(tmp_path / "original", **options)
    whole = load_compressed(tmp_path / "original")
    chance, loaded = random.Random(seed), 0
    tracemalloc.start()
    try:
        for _ in range(cases):
            mutation = chance.choice(MUTATIONS)
            data = mutation(chance, original)
            state = outcome(tmp_path / "mutated", data)
            if state is not None:
                loaded += 1
                if data == original:
                    assert same_bits(state, whole)
                else:  # only who makes the checksum anew can change anything
                    assert mutation not in MUTATIONS[:3]
                    assert data == seal(data)
                    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) <= LIMIT + len(data)
    finally:
        tracemalloc.stop()
    # Some mutations of a sealed file only give another file: the deeper checks were reached.
    assert cases / 100 < loaded < cases / 2


def test_thousands_of_mutated_files(tmp_path: Path) -> None:
    fuzz(tmp_path, 3000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_tens_of_thousands_of_mutated_files(tmp_path: Path, seed: int) -> None:
    fuzz(tmp_path, 6000, seed=100 + seed)


def test_every_single_bit_of_a_file_matters(tmp_path: Path) -> None:
    save_compressed({"w": torch.eye(30)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (tmp_path / "y").write_bytes(changed)
        with pytest.raises(SparsebenchError, match=r"^\S+/y: "):
            load_compressed(tmp_path / "y")
        with pytest.raises(SparsebenchError, match=r"^\S+/y: "):
            inspect(tmp_path / "y")


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    save_compressed({"w": torch.eye(30)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for length in range(len(data)):
        (tmp_path / "y").write_bytes(data[:length])
        with pytest.raises(SparsebenchError, match=r"^\S+/y: (not a compressed checkpoint|cut short or altered)"):
            load_compressed(tmp_path / "y")


def test_terabyte_of_zeros_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """A few hundred bytes can say so, and mean it: the code of an empty mask has no bytes."""
    save_compressed({"w": torch.zeros(20, 30)}, tmp_path / "x")
    header, rest = take_apart((tmp_path / "x").read_bytes())
    assert rest == b""
    header["__metadata__"]["tensors"]["w"] |= {"shape": [2**20, 2**20], "zeros": 2**40}
    (tmp_path / "x").write_bytes(put_together(header, rest))
    assert inspect(tmp_path / "x").dense_bytes == 4 * 2**40
    tracemalloc.start()
    with pytest.raises(
        SparsebenchError, match=r"x unfolds to 4,398,046,511,104 bytes, the limit is 1,073,741,824: .* max_bytes$"
    ):
        load_compressed(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_limit_is_on_all_tensors_together_and_can_be_set(tmp_path: Path) -> None:
    save_compressed({"a": torch.zeros(100, 100), "b": torch.zeros(100, 100), "dense": torch.ones(1000)}, tmp_path / "x")
    with pytest.raises(SparsebenchError, match="unfolds to 80,000 bytes, the limit is 79,999"):
        load_compressed(tmp_path / "x", max_bytes=79_999)
    assert len(load_compressed(tmp_path / "x", max_bytes=80_000)) == 3
    for wrong in (-1, 1.5, "1"):
        with pytest.raises(SparsebenchError, match=r"^max_bytes=\S+: expected a number of bytes$"):
            load_compressed(tmp_path / "x", max_bytes=wrong)  # type: ignore[arg-type]


def test_default_limit_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.storage.load.ALWAYS_ALLOWED", 1000)
    save_compressed({"w": torch.zeros(400, 400)}, tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    with pytest.raises(SparsebenchError, match=f"the limit is {256 * size:,}:"):
        load_compressed(tmp_path / "x")
    save_compressed({"w": torch.zeros(400, 400), "dense": torch.ones(1000)}, tmp_path / "x")
    assert len(load_compressed(tmp_path / "x")) == 2


def test_more_kept_values_than_the_shape_has_elements(tmp_path: Path) -> None:
    for changes, words in [
        ({"zeros": 869}, r"stored values: F32 of shape \[30\], expected F32 of shape \[31\]"),
        ({"zeros": 901}, "zeros is 901: expected an integer from 0 to 900"),
        ({"shape": [30, 31]}, r"stored values: F32 of shape \[30\], expected F32 of shape \[60\]"),
        ({"shape": [30, 31], "zeros": 900}, None),
        ({"shape": [30, 29], "zeros": 840}, "goes past its 870 elements"),
        ({"shape": []}, "zeros is 870: expected an integer from 0 to 1"),
        ({"shape": [0, 30]}, "shape stands for 0 elements"),
        ({"shape": [2**40, 2**40]}, "shape stands for 1208925819614629174706176 elements"),
        ({"shape": [True, 900]}, "an entry of shape is True"),
        ({"shape": [1] * 65}, "shape is not a list of at most 64"),
        ({"rice": 41}, "rice is 41: expected an integer from 0 to 40"),
        ({"rice": 40}, "too few for 30 kept elements"),
        ({"dtype": "F64"}, r"expected F64 of shape \[30\]"),
        ({"dtype": "F5"}, "elements of type 'F5': torch"),
        ({"dtype": ["F32"]}, "dtype is"),
        ({"dtype": "F4"}, "dtype is 'F4': tensors of this type are stored as they are"),
        ({"values": "F64"}, "values is 'F64'"),
        ({"values": "BF16"}, r"expected BF16 of shape \[30\]"),
        ({"mask": "none"}, "the table names 'none', which is not in the file"),
        ({"mask": "w"}, "or one is the mask of another"),
        ({"mask": "b"}, "stored mask: F32 of shape"),
        ({"mask": None}, "mask and rice must be there together"),
        ({"zstd": ["all"]}, "zstd does not list"),
        ({"extra": 1}, "does not have the fields"),
    ]:
        weight = torch.eye(30)
        save_compressed({"w": weight, "b": torch.ones(3)}, tmp_path / "x")
        header, rest = take_apart((tmp_path / "x").read_bytes())
        assert header["__metadata__"]["tensors"]["w"]["zeros"] == 870
        header["__metadata__"]["tensors"]["w"] |= changes
        (tmp_path / "x").write_bytes(put_together(header, rest))
        if words is None:  # a row of zeros more: another file, and a right one
            assert load_compressed(tmp_path / "x")["w"].shape == (30, 31)
            continue
        with pytest.raises(SparsebenchError, match=words) as caught:
            load_compressed(tmp_path / "x")
        assert str(caught.value).startswith(f"{tmp_path / 'x'}: ")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("format", "sparsebench compressed 2", "format is 'sparsebench compressed 2': this version of sparsebench reads"),
        ("tensors", "[" * 100_000, "the table of tensors is not JSON"),
        ("tensors", "[]", "the table of tensors is not a JSON object"),
        ("tensors", '{"w": {"dtype": "F32", "shape": [1], "zeros": ' + "9" * 10_000 + "}}", "the table of tensors is not JSON"),
        ("tensors", '{"w": 1}', "tensor 'w': its row does not have"),
        ("tensors", '{"x": {"dtype": "F32", "shape": [1], "zeros": 0}}', "the table names 'x'"),
        ("tied", "null", "the list of tied tensors is not a JSON object"),
        ("tied", {"t": "x"}, "'t' is tied to 'x': expected a new name"),
        ("tied", {"b": "w"}, "'b' is tied to 'w': expected a new name"),
        ("tied", {"t": ["w"]}, "'t' is tied to"),
        ("tied", {"t": "w.mask"}, "'t' is tied to 'w.mask'"),
    ],
)
def test_metadata_that_make_no_sense(tmp_path: Path, field: str, value: Any, words: str) -> None:
    save_compressed({"w": torch.eye(30), "b": torch.ones(3)}, tmp_path / "x")
    header, rest = take_apart((tmp_path / "x").read_bytes())
    header["__metadata__"][field] = value
    (tmp_path / "x").write_bytes(put_together(header, rest))
    with pytest.raises(SparsebenchError, match=words):
        load_compressed(tmp_path / "x")


def test_masks_cannot_be_shared(tmp_path: Path) -> None:
    save_compressed({"v": torch.eye(30), "w": torch.eye(30)}, tmp_path / "x")
    header, rest = take_apart((tmp_path / "x").read_bytes())
    header["__metadata__"]["tensors"]["v"]["mask"] = "w.mask"
    (tmp_path / "x").write_bytes(put_together(header, rest))
    with pytest.raises(SparsebenchError, match="two tensors have the same mask"):
        load_compressed(tmp_path / "x")


def test_kept_zero_and_strange_bool_are_refused(tmp_path: Path) -> None:
    save_compressed({"w": torch.eye(30)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    one = torch.ones(1).numpy().tobytes()
    (tmp_path / "x").write_bytes(seal(data.replace(one, bytes(4), 1)))
    with pytest.raises(SparsebenchError, match="tensor 'w': its values do not have the 870 zeros"):
        load_compressed(tmp_path / "x")
    save_compressed({"flag": torch.tensor([True, True])}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(seal(data[:-2] + b"\1\2"))
    with pytest.raises(SparsebenchError, match="tensor 'flag': a bool is neither 0 nor 1"):
        load_compressed(tmp_path / "x")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_files_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No code of a file is run."""
    monkeypatch.chdir(tmp_path)
    safetensors.torch.save_file({"w": torch.ones(3)}, "plain.safetensors")
    torch.save({"w": torch.ones(3)}, "state.pt")
    Path("evil").write_bytes(pickle.dumps(Evil()))
    Path("empty").write_bytes(b"")
    for name in ("plain.safetensors", "state.pt", "evil", "empty"):
        with pytest.raises(SparsebenchError, match=rf"^{name}: not a compressed checkpoint of sparsebench"):
            load_compressed(name)
    with pytest.raises(SparsebenchError, match=r"^cannot read none: No such file or directory$"):
        load_compressed("none")
    with pytest.raises(SparsebenchError, match=r"^cannot read \.: Is a directory$"):
        load_compressed(".")
    assert not Path("executed").exists()


def test_reading_warns_of_nothing(tmp_path: Path) -> None:
    write_original(tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tensor in load_compressed(tmp_path / "x").values():
            tensor.add_(tensor.to(tensor.dtype))  # memory of its own, writable
