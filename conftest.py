"""Settings of all tests; runs the examples of README and CONTRIBUTING as tests, those in docstrings are run by pytest itself."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# Other programs may take the cores, and a first example may load torch: how long an example takes says nothing.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def process_as_it_is() -> Iterator[None]:
    """Commands that are called in the tests' own process set nothing up there: the allocator would keep what it is told."""
    from sparsebench.training import start_up

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start_up, "set_up_process", lambda: None)
        yield


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
