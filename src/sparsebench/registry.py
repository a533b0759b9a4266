"""Named things that other packages can add to through entry points."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, Protocol, TypeVar

from sparsebench.errors import SparsebenchError

__all__ = ["Entry", "Registry", "nearest"]


class Entry(Protocol):
    """What is registered: it has a name and says in a line what it is."""

    @property
    def name(self) -> str:
        """The name it is asked for by."""

    @property
    def summary(self) -> str:
        """One line for a list."""


T = TypeVar("T", bound=Entry)


class Registry(Generic[T]):
    """Entries by name: the built-in ones, and those of installed packages.

    Args:
        kind: What the entries are, for messages: "method", "workload".
        group: The entry-point group in which other packages name objects of the same type.
        builtin: The package's own entries.
        families: What makes the entry `family:argument` or `family/argument` of an argument (empty for the bare name), by the
            family's name.
    """

    def __init__(
        self, kind: str, group: str, builtin: Iterable[T], families: Mapping[str, Callable[[str], T]] | None = None
    ) -> None:
        self._kind = kind
        self._group = group
        self._entries = {entry.name: entry for entry in builtin}
        self._families = dict(families or {})
        self._complete = False

    def add(self, entry: T) -> None:
        """Add an entry for this process; packages that are installed use the entry point instead.

        Raises:
            SparsebenchError: The name is taken.
        """
        if self._entries.setdefault(entry.name, entry) is not entry:
            raise SparsebenchError(f"there is a {self._kind} {entry.name!r} already: choose another name")

    def get(self, name: str) -> T:
        """The entry of a name.

        Raises:
            SparsebenchError: There is none; the message names those that exist.
        """
        if name not in self._entries:
            family = re.split("[:/]", name, maxsplit=1)[0]
            if family in self._families:
                return self._families[family](name[len(family) + 1 :])
            known = [entry.name for entry in self]  # those of other packages too
            if name not in self._entries:
                raise SparsebenchError(f"unknown {self._kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[T]:
        if not self._complete:
            for point in entry_points(group=self._group):
                self.add(point.load())
            self._complete = True
        return iter(tuple(self._entries.values()))


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the known word nearest to a misspelt one, or nothing.

    Example:
        >>> nearest("sparsty", ["sparsity", "begin"])
        " (did you mean 'sparsity'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
