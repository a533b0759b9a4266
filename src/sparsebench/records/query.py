"""SQL over the tables of a results folder, and over the published values."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd

from sparsebench.errors import SparsebenchError
from sparsebench.records.published.values import published_table
from sparsebench.records.rows import SCHEMAS
from sparsebench.records.table import open_tables

__all__ = ["query"]


def query(directory: Path, sql: str) -> pd.DataFrame:
    """Answer a SQL query (DuckDB's dialect) over the tables `results`, `layers`, `distributions` and `published`.

    `published` holds the values that papers print, each with its citation: the same in every folder.

    Args:
        directory: A folder written by `sparsebench study run`, `sparsebench train` or `sparsebench import`.
        sql: One query, such as `select method, max(value) from results where split = 'test' group by method`.

    Returns:
        The answer as a DataFrame.

    Raises:
        SparsebenchError: The folder holds no results, or the query is wrong; the message is DuckDB's first line.
    """
    tables = open_tables(directory)
    with duckdb.connect() as connection:
        for name in SCHEMAS:
            connection.register(name, tables.rows(name))  # duckdb itself would read a * in a path as a pattern
        connection.register("published", published_table())
        try:
            relation = connection.sql(sql)
            if relation is None:
                raise SparsebenchError("the query returns no rows: write a select, such as: select * from results limit 5")
            frame: pd.DataFrame = relation.df()
            return frame
        except duckdb.Error as error:
            message = str(error).strip().splitlines()[0]
            raise SparsebenchError(f"the query failed: {message}") from error
