"""Settings of a process that trains: made by programs alone, seen in the allocator itself, told in records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.training.config import resolve
from sparsebench.training.start_up import retains_memory, set_up_process

ON_GLIBC = pytest.mark.skipif(
    sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="settings of glibc's allocator"
)

# The C library itself is asked how many blocks it has mapped, and how many bytes in them.
PROGRAM = """
import ctypes, json, os, sys
{before}
import torch

class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
if not hasattr(library, "mallinfo2"):
    sys.exit(77)
library.mallinfo2.restype = Mallinfo2
before = library.mallinfo2()
tensor = torch.ones(16_000_000)
large = library.mallinfo2()
del tensor
after = library.mallinfo2()
held = after.arena + after.hblkhd - before.arena - before.hblkhd
from sparsebench.training.start_up import settings_in_force
print(json.dumps({{"mapped": large.hblks - before.hblks, "held": held, "settings": settings_in_force(),
                  "spins": os.environ.get("GOMP_SPINCOUNT")}}))
"""
OTHERS = ("SPARSEBENCH_ALLOCATOR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "LD_PRELOAD", "GLIBC_TUNABLES")
SET_UP = "from sparsebench.training.start_up import set_up_process; set_up_process()"


def asked(before: str, **variables: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name not in OTHERS and not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM.format(before=before)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip("glibc before 2.33 tells less")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@ON_GLIBC
def test_import_of_the_library_changes_nothing() -> None:
    names = "import sparsebench, sparsebench.cli, sparsebench.training.run, sparsebench.studies.run_study; sparsebench.rigl"
    found = asked(names)
    assert found["mapped"] == 1
    assert found["held"] < 1_000_000
    assert (found["settings"], found["spins"]) == ({}, None)


@ON_GLIBC
def test_process_that_is_set_up_takes_large_tensors_from_a_heap_that_it_keeps() -> None:
    found = asked(f"{SET_UP}; set_up_process()")
    assert found["mapped"] == 0
    assert found["held"] >= 64_000_000
    assert found["settings"] == {"allocator": "retains freed memory", "openmp": "GOMP_SPINCOUNT=1000"}
    assert found["spins"] == "1000"


@ON_GLIBC
@pytest.mark.parametrize(
    "variables",
    [
        {"SPARSEBENCH_ALLOCATOR": "system", "GOMP_SPINCOUNT": "77"},
        {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_WAIT_POLICY": "passive"},
    ],
    ids=["ours", "the C library's"],
)
def test_what_the_user_decided_stays(variables: dict[str, str]) -> None:
    found = asked(SET_UP, **variables)
    assert found["mapped"] == 1
    assert found["held"] < 1_000_000
    assert (found["settings"], found["spins"]) == ({}, variables.get("GOMP_SPINCOUNT"))


@ON_GLIBC
def test_threads_are_left_alone_once_torch_is_loaded() -> None:
    found = asked(f"import torch; {SET_UP}")
    assert found["settings"] == {"allocator": "retains freed memory"}
    assert found["spins"] is None


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda *_: pytest.fail("the C library was asked"))
    set_up_process()


def test_other_values_are_refused_in_a_line_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEBENCH_ALLOCATOR", "jemalloc")
    message = r"^SPARSEBENCH_ALLOCATOR='jemalloc': expected 'retain' or 'system'$"
    for refused in (
        retains_memory,
        set_up_process,
        lambda: LocalProcesses(1).run([resolve("digits", "dense", {})], tmp_path, lambda _: None),
    ):
        with pytest.raises(SparsebenchError, match=message):
            refused()
    assert not (tmp_path / "runs").exists()


@ON_GLIBC
def test_settings_change_no_number_and_stand_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("digits", "variational-dropout", {"penalty": 0.1}, {"steps": 15})
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    records = {}
    for choice in ("retain", "system"):
        monkeypatch.setenv("SPARSEBENCH_ALLOCATOR", choice)
        LocalProcesses(1).run([config], tmp_path / choice, lambda _: None)
        records[choice] = RunFolder.of(tmp_path / choice, config.run_id).read_result()
    assert records["retain"].environment["allocator"] == "retains freed memory"
    assert records["retain"].environment["openmp"] == "GOMP_SPINCOUNT=1000"
    assert "allocator" not in records["system"].environment
    assert records["retain"].weights_sha256 == records["system"].weights_sha256
    assert records["retain"].points == records["system"].points


@ON_GLIBC
def test_train_sets_itself_up(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in OTHERS}
    command = [sys.executable, "-m", "sparsebench", "train", "digits", "--steps", "5", "--out", str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    [path] = tmp_path.glob("runs/*/result.json")
    told = json.loads(path.read_bytes())["environment"]
    assert (told["allocator"], told["openmp"]) == ("retains freed memory", "GOMP_SPINCOUNT=1000")
