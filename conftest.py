"""Runs the examples of README and CONTRIBUTING as tests; those in docstrings are run by pytest itself."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["README.md", "CONTRIBUTING.md"]).pytest()
