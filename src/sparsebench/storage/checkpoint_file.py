"""A compressed checkpoint as it lies on disk, whole and consistent in itself; nothing is decoded yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.storage.container import Container, has_checksum, read_container, verify_checksum
from sparsebench.storage.damage import DamagedFileError, naming
from sparsebench.storage.table import FORMAT, Row, parse_object, parse_table

__all__ = ["CheckpointFile", "read_checkpoint"]


@dataclass(frozen=True)
class CheckpointFile:
    """What a compressed checkpoint holds.

    Attributes:
        container: The stored tensors and the metadata.
        rows: The table.
        tied: Second names of tensors, and the first.
    """

    container: Container
    rows: dict[str, Row]
    tied: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Names of the tensors that come out, each tensor once, in the order of the header."""
        masks = {row.mask for row in self.rows.values()}
        return [name for name in self.container.tensors if name not in masks]


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a compressed checkpoint and check everything that can be checked without decoding it.

    Raises:
        SparsebenchError: There is no such file, it is none, or it is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
    with naming(path):
        if not has_checksum(data):
            raise DamagedFileError(
                "not a compressed checkpoint of sparsebench; a plain .safetensors file is read by safetensors itself"
            )
        verify_checksum(data)
        container = read_container(data)
        if container.metadata.get("format") != FORMAT:
            raise DamagedFileError(
                f"format is {container.metadata.get('format')!r:.60}: this version of sparsebench reads {FORMAT!r}"
            )
        file = CheckpointFile(
            container,
            parse_table(container.metadata.get("tensors", "")),
            parse_object(container.metadata.get("tied", ""), "list of tied tensors"),
        )
        _check_names(file)
    return file


def _check_names(file: CheckpointFile) -> None:
    masks = [row.mask for row in file.rows.values() if row.mask is not None]
    for name in (*file.rows, *masks):
        if name not in file.container.tensors:
            raise DamagedFileError(f"the table names {name!r:.100}, which is not in the file")
    if len(set(masks)) < len(masks) or set(masks) & file.rows.keys():
        raise DamagedFileError("two tensors have the same mask, or one is the mask of another")
    names = set(file.names)
    for second, first in file.tied.items():
        if not isinstance(first, str) or first not in names or second in file.container.tensors:
            raise DamagedFileError(f"{second!r:.100} is tied to {first!r:.100}: expected a new name tied to a tensor in the file")
