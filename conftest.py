"""Runs the examples of README and CONTRIBUTING as tests; those in docstrings are run by pytest itself."""

from importlib.util import find_spec
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["README.md", "CONTRIBUTING.md"]).pytest()

# Examples in the docstrings of what an extra brings; the tests of these files say by themselves that they are skipped.
collect_ignore = [
    str(Path("src/sparsebench/integrations") / f"{package}.py")
    for package in ("transformers", "lightning")
    if not find_spec(package)
]
