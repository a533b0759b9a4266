"""A table of a results folder as a file for other programs."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.records.published.values import published_table
from sparsebench.records.rows import SCHEMAS
from sparsebench.records.table import open_tables

__all__ = ["ENDINGS", "TABLES", "export"]

ENDINGS = (".csv", ".csv.gz", ".parquet")
TABLES = (*SCHEMAS, "published")


def export(directory: Path, target: Path, table: str = "results") -> int:
    """Write a table of a results folder as CSV or Parquet, as the target's ending says.

    In CSV the first line names the columns, what is not known is empty, text is in quotes, and numbers are as long as they
    must be to be read back to the last bit. The same results give the same bytes.

    Args:
        directory: A folder written by `sparsebench study run`, `sparsebench train` or `sparsebench import`.
        target: The file to write: `.csv`, `.csv.gz` or `.parquet`.
        table: `results` (a row for each evaluation, split and metric), `layers` (one for each layer of an evaluation),
            `distributions` (one for each histogram of a layer's weights) or `published` (what papers print, the same in every
            folder).

    Returns:
        The number of rows.

    Raises:
        SparsebenchError: The ending or the table is none of these, the folder holds no results, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from sparsebench.training import run
        >>> from sparsebench.training.config import resolve
        >>> from sparsebench.records.run_folder import RunFolder
        >>> results = Path(tempfile.mkdtemp())
        >>> config = resolve("digits", "dense", {}, {"steps": 10})
        >>> record = run.train(config, RunFolder.of(results, config.run_id))
        >>> export(results, results / "results.csv")  # two splits, two metrics
        4
    """
    ending = next((one for one in reversed(ENDINGS) if target.name.endswith(one)), None)
    if ending is None:
        raise SparsebenchError(f"cannot export to {target.name!r}: expected a name that ends in {', '.join(ENDINGS)}")
    rows = _read(directory, table)
    with atomic_file(target) as file:
        if ending == ".parquet":
            pq.write_table(rows, file, compression="zstd")
        else:
            # No name and no time in the gzip header, so that the same rows are the same bytes.
            packed = gzip.GzipFile("", "wb", 9, file, 0) if ending == ".csv.gz" else contextlib.nullcontext(file)
            with packed as stream:
                pyarrow.csv.write_csv(rows, cast(IO[bytes], stream))
    return int(rows.num_rows)


def _read(directory: Path, table: str) -> pa.Table:
    if table not in TABLES:
        raise SparsebenchError(f"no table {table!r}: expected one of {', '.join(TABLES)}")
    tables = open_tables(directory)
    if table == "published":
        return published_table()
    # What this package keeps about the rows means nothing elsewhere.
    return tables.rows(table).to_table().replace_schema_metadata(None)
