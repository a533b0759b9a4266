"""A machine without a compiler installs the package and runs everything, by torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsebench.inference import native

ROOT = Path(__file__).parents[2]
USE = """
import torch
from torch import nn
from sparsebench.inference import compile_sparse, kernel_path, native

model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(torch.rand_like(parameter) > 0.98)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(compile_sparse(model, x)(x), model(x), rtol=1e-4, atol=1e-5)
print(kernel_path(), native.__file__)
"""


@pytest.mark.slow
def test_package_built_without_a_compiler_runs_by_torch(tmp_path):
    pytest.importorskip("setuptools")
    hidden = os.environ | {"CC": str(tmp_path / "no-compiler"), "CXX": str(tmp_path / "no-compiler")}
    built = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib")],
        cwd=ROOT,
        env=hidden,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    assert "no-compiler" in built.stdout + built.stderr  # the build tried, and went on
    assert not list((tmp_path / "lib").rglob("_kernels*"))
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={name: value for name, value in hidden.items() if name != native.VARIABLE} | {"PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    path, file = done.stdout.split()
    assert path == "torch"
    assert Path(file).is_relative_to(tmp_path)
