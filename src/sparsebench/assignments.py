"""NAME=VALUE, as options of the command line take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import yaml

from sparsebench.errors import SparsebenchError

__all__ = ["parse_assignments", "parse_value"]


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


def parse_assignments(
    pairs: Sequence[str], option: str, example: str, parse: Callable[[str], Any] = parse_value
) -> dict[str, Any]:
    """Values by name; of two for a name, the later one.

    Args:
        pairs: NAME=VALUE each.
        option: The option that was given them, for the message.
        example: One of them, for the message.
        parse: Reads a value; it raises yaml.YAMLError where it is none.

    Raises:
        SparsebenchError: One is not of this form.

    Example:
        >>> parse_assignments(["steps=300", "layers=*.weight"], "--set", "--set steps=300")
        {'steps': 300, 'layers': '*.weight'}
    """
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise SparsebenchError(f"{option} {pair!r}: expected NAME=VALUE, such as {example}")
        try:
            values[name.strip()] = parse(text)
        except yaml.YAMLError as error:
            raise SparsebenchError(f"{option} {pair!r}: {text!r} is no value") from error
    return values
