"""The one error that a user's mistake raises. Imports nothing, so that every part of the package may use it."""

from __future__ import annotations

__all__ = ["SparsebenchError"]


class SparsebenchError(ValueError):
    """Something the user must change: the message is one line that names what is wrong and what would be right.

    The command line prints the message and ends with exit status 2; nobody is shown a traceback for it.

    Example:
        >>> from sparsebench.errors import SparsebenchError
        >>> issubclass(SparsebenchError, ValueError)
        True
    """
