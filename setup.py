"""The compiled part of the package; everything else about it is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

setup(
    ext_modules=[
        # A plain shared library that ctypes loads, not a Python module. Without a compiler the package installs without it.
        Extension(
            "sparsebench.inference._kernels",
            sources=["src/sparsebench/inference/kernels.c"],
            depends=[str(header) for header in sorted(Path("src/sparsebench/inference").glob("*.h"))],
            extra_compile_args=["-O3", "-ffp-contract=fast", "-pthread"],
            optional=True,
        )
    ]
)
