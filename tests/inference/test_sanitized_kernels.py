"""The kernels under the address and undefined-behaviour sanitizers, and under the thread sanitizer."""

import os
import subprocess
from pathlib import Path

import pytest
from built_kernels import FLAGS, SOURCE, compiler, has_compiler

DRIVER = Path(__file__).with_name("sanitized_products.c")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("limits", [[], ["-DPANEL_BYTES=4096"]], ids=["", "small panels"])
def test_kernels_are_clean(sanitizers, limits, tmp_path):
    """Small panels too: what large networks reach, the driver's small matrices do not."""
    if not has_compiler():
        pytest.skip(f"no C compiler ({compiler()[0]})")
    program = tmp_path / "products"
    sanitize = ["-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    command = [*compiler(), *FLAGS, *limits, *sanitize, "-I", str(SOURCE.parent), str(DRIVER), "-o", str(program), "-lm"]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run(
        [str(program)], capture_output=True, text=True, timeout=300, env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 150
