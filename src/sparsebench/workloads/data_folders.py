"""Where data lies: $SPARSEBENCH_DATA, the cache, a download, in this order."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparsebench.errors import SparsebenchError

__all__ = ["cache_folder", "data_folder", "expanded", "is_folder"]

SECONDS = 30.0  # without an answer


def expanded(path: str) -> Path:
    """A path whose leading ~ or ~USER is that user's folder.

    Raises:
        SparsebenchError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SparsebenchError(f"{path!r}: no user has that folder; write the path without ~") from error


def is_folder(path: Path) -> bool:
    """Whether there is a folder; where that cannot be found out (no permission, a name too long) there is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def cache_folder() -> Path:
    """Where downloads and prepared corpora are kept: $SPARSEBENCH_CACHE, or `sparsebench` in the user's cache folder."""
    if named := os.environ.get("SPARSEBENCH_CACHE"):
        return expanded(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sparsebench"


def data_folder(
    name: str,
    downloads: Mapping[str, str],
    others: Sequence[str] = (),
    is_it: Callable[[Path], bool] = lambda folder: False,
    contents: str | None = None,
) -> Path:
    """The folder of a data set: `name` in $SPARSEBENCH_DATA if it is there, else in the cache, else a download into the cache.

    Where $SPARSEBENCH_DATA_ALONE is set, as by --data, only the first of these.

    Args:
        name: The data set's.
        downloads: Addresses of its files, by the names they get; none where a person must fetch them.
        others: Further names that its folder may have in $SPARSEBENCH_DATA.
        is_it: Whether a folder holds the files of such a set, so that $SPARSEBENCH_DATA may be the set's own folder.
        contents: What the folder must hold, for the message; the files that would be downloaded where left out.

    Raises:
        SparsebenchError: $SPARSEBENCH_DATA is no folder; or the set is nowhere and cannot be downloaded. The message says how to
            provide it.
    """
    if given := os.environ.get("SPARSEBENCH_DATA"):
        data = expanded(given)
        if not is_folder(data):
            raise SparsebenchError(f"SPARSEBENCH_DATA={given!r} is no folder: expected one that holds a folder {name}")
        for folder in (data / other for other in (name, *others)):
            if is_folder(folder):
                return folder
        if is_it(data):
            return data
        if os.environ.get("SPARSEBENCH_DATA_ALONE"):
            what = contents or f"its files ({', '.join(downloads)}, or those of another layout)"
            raise SparsebenchError(f"{name} is not in {data}: put {what} there or into its folder {name}, or leave out --data")
    folder = cache_folder() / "data" / name
    if not is_folder(folder):
        what = contents or f"its files ({', '.join(downloads)})"
        provide = f"put {what} into $SPARSEBENCH_DATA/{name} or {folder}"
        if not downloads:
            raise SparsebenchError(f"{name} is not here: {provide}")
        _download(name, downloads, folder, provide)
    return folder


def _download(name: str, downloads: Mapping[str, str], folder: Path, provide: str) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".downloading-", dir=folder.parent))
    except OSError as error:
        raise SparsebenchError(
            f"{name} is not here, and {folder.parent} cannot be written ({error.strerror}): {provide}"
        ) from error
    try:
        for file, address in downloads.items():
            with urllib.request.urlopen(address, timeout=SECONDS) as answer, (partial / file).open("wb") as out:
                shutil.copyfileobj(answer, out)
        partial.rename(folder)
    except (OSError, urllib.error.URLError) as error:
        if not folder.is_dir():  # or another process was faster
            raise SparsebenchError(f"{name} is not here and cannot be downloaded ({error}): {provide}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
