"""Runs the examples of README and CONTRIBUTING as tests; those in docstrings are run by pytest itself."""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def enter_folder(namespace: dict[str, Any]) -> None:
    """Examples write files: into a folder of their own."""
    namespace["_folder"], namespace["_before"] = TemporaryDirectory(), Path.cwd()
    os.chdir(namespace["_folder"].name)


def leave_folder(namespace: dict[str, Any]) -> None:
    """Back to where they began; what they wrote is removed."""
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "CONTRIBUTING.md"], setup=enter_folder, teardown=leave_folder
).pytest()

# Examples in the docstrings of what an extra brings; the tests of these files say by themselves that they are skipped.
collect_ignore = [
    str(Path("src/sparsebench") / file)
    for package, file in (
        ("transformers", "integrations/transformers.py"),
        ("lightning", "integrations/lightning.py"),
        ("onnxruntime", "inference/export/onnx_file.py"),
    )
    if not find_spec(package)
]
