"""NAME=VALUE, as options of the command line take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from sparsebench.errors import SparsebenchError

__all__ = ["parse_assignments", "parse_value"]


def parse_assignments(pairs: Sequence[str], option: str, example: str) -> dict[str, Any]:
    """Values by name; of two for a name, the later one.

    Args:
        pairs: NAME=VALUE each.
        option: The option that was given them, for the message.
        example: One of them, for the message.

    Raises:
        SparsebenchError: One is not of this form.

    Example:
        >>> parse_assignments(["steps=300", "layers=*.weight"], "--set", "steps=300")
        {'steps': 300, 'layers': '*.weight'}
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise SparsebenchError(f"{option} {pair!r}: expected NAME=VALUE, such as {option} {example}")
        values[name.strip()] = parse_value(text)
    return values


def parse_value(text: str) -> Any:
    """A value as YAML would read it; a text where it is no YAML, such as the layer pattern *.weight.

    Example:
        >>> parse_value("0.5"), parse_value("5 epochs")
        (0.5, '5 epochs')
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
