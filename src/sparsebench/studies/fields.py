"""A YAML mapping whose fields remember their lines, for messages."""

from __future__ import annotations

from typing import Any

import yaml

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest

__all__ = ["Fields", "compose"]


def compose(text: str, source: str, required: tuple[str, ...]) -> Fields:
    """The fields of a YAML text.

    Args:
        text: The text.
        source: Where it comes from, for messages.
        required: Fields to name where the text is no mapping.

    Raises:
        SparsebenchError: It is not YAML, no mapping, or has a field twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or error
        raise SparsebenchError(f"{where}: not YAML: {' '.join(str(problem).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise SparsebenchError(f"{source}: expected a mapping with the fields {', '.join(required)}")
    return Fields(node, source)


class Fields:
    """A YAML mapping.

    Args:
        node: The mapping.
        source: Where it comes from, for messages.

    Attributes:
        line: Where it begins.
        lines: The line of each field, by name.
    """

    def __init__(self, node: yaml.MappingNode, source: str) -> None:
        self._source = source
        self.line = node.start_mark.line + 1 if node.start_mark else 0
        self._nodes: dict[str, yaml.Node] = {}
        self.lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in self.lines:
                raise SparsebenchError(f"{source}, line {line}: {name!r} stands here twice (first on line {self.lines[name]})")
            self._nodes[name], self.lines[name] = value, line

    def where(self, name: str) -> str:
        """File, line and name of a field."""
        return f"{self._source}, line {self.lines[name]}: {name}" if name in self.lines else f"{self._source}: {name}"

    def check(self, known: tuple[str, ...], required: tuple[str, ...]) -> None:
        """Refuse fields that are not known, and the lack of those that are required."""
        for name, line in self.lines.items():
            if name not in known:
                raise SparsebenchError(
                    f"{self._source}, line {line}: unknown field {name!r}{nearest(name, known)}; known: {', '.join(known)}"
                )
        for name in required:
            if name not in self.lines:
                raise SparsebenchError(f"{self._source}: field {name!r} is missing")

    def value(self, name: str) -> Any:
        """The value of a field."""
        document = self._nodes[name]
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(document)
        except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
            raise SparsebenchError(f"{self.where(name)}: {getattr(error, 'problem', error)}") from error
        finally:
            loader.dispose()

    def values(self) -> dict[str, Any]:
        """All values by name."""
        return {name: self.value(name) for name in self.lines}

    def text(self, name: str, default: str | None = None) -> str:
        """A field that holds text."""
        if name not in self.lines and default is not None:
            return default
        value = self.value(name)
        if not isinstance(value, str) or not value.strip():
            raise SparsebenchError(f"{self.where(name)}={value!r}: expected a text")
        return value.strip()

    def mapping(self, name: str) -> Fields:
        """A field that holds a mapping; empty where it is left out."""
        node = self._nodes.get(name)
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
            return Fields(yaml.MappingNode("tag:yaml.org,2002:map", []), self._source)
        if not isinstance(node, yaml.MappingNode):
            raise SparsebenchError(f"{self.where(name)}: expected a mapping from names to values, such as {name}: {{...}}")
        return Fields(node, self._source)

    def mappings(self, name: str) -> list[Fields]:
        """A field that holds a mapping, or a list of them."""
        node = self._nodes.get(name)
        if not isinstance(node, yaml.SequenceNode):
            return [self.mapping(name)]
        if not node.value or not all(isinstance(item, yaml.MappingNode) for item in node.value):
            raise SparsebenchError(f"{self.where(name)}: expected a mapping, or a list of mappings")
        return [Fields(item, self._source) for item in node.value if isinstance(item, yaml.MappingNode)]

    def names(self, name: str) -> tuple[str, ...]:
        """A field that holds a name, or a list of different ones."""
        value = self.value(name)
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(isinstance(item, str) and item.strip() for item in listed) or len(set(listed)) != len(listed):
            raise SparsebenchError(f"{self.where(name)}={value!r}: expected a name, or a list of different names")
        return tuple(item.strip() for item in listed)
