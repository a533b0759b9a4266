"""Named things that other packages can add to through entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
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
    """

    def __init__(self, kind: str, group: str, builtin: Iterable[T]) -> None:
        self._kind = kind
        self._group = group
        self._entries = {entry.name: entry for entry in builtin}
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
        entries = {entry.name: entry for entry in self}
        if name not in entries:
            raise SparsebenchError(f"unknown {self._kind} {name!r}{nearest(name, entries)}; known: {', '.join(entries)}")
        return entries[name]

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
