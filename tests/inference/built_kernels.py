"""The kernels built from the source as it is now: an installed library may be older."""

import functools
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import pytest

from sparsebench.inference import native

SOURCE = Path(native.__file__).with_name("kernels.c")
FLAGS = ["-O3", "-ffp-contract=fast", "-pthread", "-Wall", "-Wextra", "-Werror"]


def compiler() -> list[str]:
    """The C compiler that extensions are built with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


@functools.cache
def has_compiler() -> bool:
    """Whether there is one."""
    try:
        return subprocess.run([*compiler(), "--version"], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


def build(source: str, folder: Path) -> Path:
    """A library made from C; without a compiler the test is skipped and says so."""
    if not has_compiler():
        pytest.skip(f"no C compiler ({compiler()[0]}): the compiled kernels cannot be tested here")
    file = folder / "library.so"
    command = [*compiler(), *FLAGS, "-fPIC", "-shared", "-I", str(SOURCE.parent), "-x", "c", "-", "-o", str(file)]
    subprocess.run(command, input=source, text=True, check=True, timeout=300)
    return file


@functools.cache
def built_library():
    """The kernels."""
    with tempfile.TemporaryDirectory() as folder:
        return native.open_library(build(SOURCE.read_text(encoding="utf-8"), Path(folder)))


def kernels(path: str) -> native.Kernels | None:
    """Kernels of an instruction set, None for torch's product; a test of one that this processor lacks is skipped and says so."""
    if path == native.FALLBACK:
        return None
    library = built_library()
    if path not in native.runnable_sets(library):
        pytest.skip(f"this processor has no {path}")
    return native.Kernels(library, path)


PATHS = [*native.INSTRUCTION_SETS, native.FALLBACK]
