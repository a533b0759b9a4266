"""Options that say where: --data and --device. They set the environment of this command and of the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

__all__ = ["Data", "Device"]

T = TypeVar("T")


def _into(variable: str) -> Callable[[T | None], T | None]:
    def remember(value: T | None) -> T | None:
        if value is not None:
            os.environ[variable] = str(value)
        return value

    return remember


def _data(context: typer.Context, value: Path | None) -> Path | None:
    """A folder that is given in the command must hold what is trained on; one of the environment may lack some sets."""
    source = context.get_parameter_source("data")
    if source is not None and source.name == "COMMANDLINE":
        os.environ["SPARSEBENCH_DATA_ALONE"] = "1"
    return _into("SPARSEBENCH_DATA")(value)


Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="SPARSEBENCH_DATA",
        callback=_data,
        help="Folder that holds data sets, each in a folder of its name; or the folder of the one that is trained on.",
    ),
]
"""Where data sets lie; workloads read the environment."""

Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        envvar="SPARSEBENCH_DEVICE",
        callback=_into("SPARSEBENCH_DEVICE"),
        help='"cpu" or "cuda"; one device for each process.  [default: cpu]',
    ),
]
"""What a run computes on; `training.devices` reads the environment."""
