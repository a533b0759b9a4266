"""Study files: YAML that names workloads, methods, grids, sparsities, seeds, and stages that depend on earlier results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest
from sparsebench.studies.fields import Fields, compose
from sparsebench.studies.search.settings import SearchSettings, read_search
from sparsebench.training.config import check_setting_names

__all__ = ["GRID", "MethodGrid", "Stage", "Study", "each_workload", "read_study", "shipped_studies", "with_settings"]

GRID = "grid"
"""The name of a study's first stage, the runs of its `methods`."""


@dataclass(frozen=True)
class MethodGrid:
    """A grid of a method: values by field, each one value or a list of alternatives; `line` is where it stands in the file."""

    method: str
    values: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Stage:
    """Runs that an earlier stage's results decide.

    From the runs of the stage `of` the best configuration of each method is chosen at every sparsity of the study. Without
    `methods` it is run again with other seeds; with them, each method goes on from its runs.

    Attributes:
        name: Its name.
        of: The earlier stage.
        take: The methods of that stage that count; all where empty.
        seeds: Seeds of the chosen configurations; those of the study where None.
        keep_weights_at: When chosen configurations keep their weights for lottery tickets; None for never.
        methods: Methods that go on from the chosen runs.
        line: Where it stands in the file.
        lines: Where its fields stand in the file.
    """

    name: str
    of: str
    take: tuple[str, ...]
    seeds: tuple[int, ...] | None
    keep_weights_at: Any
    methods: tuple[MethodGrid, ...]
    line: int
    lines: Mapping[str, int]


@dataclass(frozen=True)
class Study:
    """A study as its file says it, names and values not yet checked against methods and workloads.

    Attributes:
        name: Its name.
        description: What it is for, in a line.
        note: What its page must say to be honest.
        revision: Of the file, which it may say; raised when it asks for other runs than before.
        workloads: Names of the workloads.
        seeds: Seeds of the replicates.
        sparsities: Sparsities asked about; methods with a parameter `sparsity` are trained at each.
        budget: The most configurations of a method; None for all of its grid.
        search: How these are proposed from the results of earlier ones; None where they are drawn before anything runs.
        settings: Changes to the workload's recipe for all methods.
        methods: The methods with their grids.
        stages: What follows, in order.
        source: The file, for messages.
        lines: Where its fields stand in the file, for messages.
        arguments: What `sparsebench study run` must be given for it.
    """

    name: str
    description: str
    note: str
    revision: int | None
    workloads: tuple[str, ...]
    seeds: tuple[int, ...]
    sparsities: tuple[float, ...]
    budget: int | None
    search: SearchSettings | None
    settings: Mapping[str, Any]
    methods: tuple[MethodGrid, ...]
    stages: tuple[Stage, ...]
    source: str
    lines: Mapping[str, int]
    arguments: tuple[str, ...]

    @property
    def workload(self) -> str:
        """The workload of a study that has one: see `each_workload`."""
        (workload,) = self.workloads
        return workload

    def where(self, field: str) -> str:
        """The place of a field, as messages name it."""
        return f"{self.source}, line {self.lines[field]}" if field in self.lines else self.source


_KNOWN = (
    "study",
    "description",
    "note",
    "revision",
    "workload",
    "workloads",
    "seeds",
    "sparsities",
    "budget",
    "search",
    "settings",
    "methods",
    "stages",
)
_STAGE = ("of", "take", "seeds", "keep_weights_at", "methods")


def shipped_studies() -> dict[str, Study]:
    """The studies that come with the package, by name."""
    folder = files("sparsebench.studies") / "files"
    found = (item for item in folder.iterdir() if item.name.endswith(".yaml"))
    studies = [
        _parse(item.read_text(encoding="utf-8"), item.name, item.name.removesuffix(".yaml"))
        for item in sorted(found, key=lambda item: item.name)
    ]
    return {study.name: study for study in studies}


def read_study(name: str) -> Study:
    """Read a study.

    Args:
        name: Path of a YAML file, or the name of a study that comes with the package.

    Raises:
        SparsebenchError: There is none, or the file is wrong; the message names file, line and field.

    Example:
        >>> read_study("quickstart").workload
        'digits'
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return _parse(path.read_text(encoding="utf-8"), str(path), name)
        except UnicodeDecodeError as error:
            raise SparsebenchError(f"{path} is not a text file in UTF-8") from error
        except OSError as error:
            raise SparsebenchError(f"cannot read study file {path}: {error.strerror or error}") from error
    shipped = shipped_studies()
    if name not in shipped:
        raise SparsebenchError(
            f"unknown study {name!r}{nearest(name, shipped)}; known: {', '.join(shipped)}, or the path of a YAML file"
        )
    return shipped[name]


def each_workload(study: Study, workload: str | None = None) -> list[Study]:
    """A study of several workloads as studies of one: each has results, and a page, of its own.

    Args:
        study: The study.
        workload: The only one to keep; it need not be among those that the file names. All if None.

    Returns:
        The studies. Their names end with that of the workload where there could be several.

    Example:
        >>> [one.name for one in each_workload(read_study("gale2019"), "digits")]
        ['gale2019-digits']
    """
    if workload is None and "workload" in study.lines:
        return [study]
    chosen = study.workloads if workload is None else (workload,)
    own = set(chosen) <= set(study.workloads)
    return [
        replace(
            study,
            # What the file does not say is not on a line of it.
            lines={field: line for field, line in study.lines.items() if own or not field.startswith("workload")},
            name=f"{study.name}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}",
            workloads=(name,),
            arguments=(*study.arguments, "--workload", name),
        )
        for name in chosen
    ]


def with_settings(study: Study, settings: Mapping[str, Any]) -> Study:
    """A study with further changes to the recipe for all methods, which replace those of its file.

    Args:
        study: The study.
        settings: A value, or a list of alternatives, for each field of the recipe.

    Raises:
        SparsebenchError: There is no such field.

    Example:
        >>> with_settings(read_study("quickstart"), {"steps": 100}).settings["steps"]
        100
    """
    check_setting_names(settings)
    told = (argument for name, value in settings.items() for argument in ("--set", f"{name}={json.dumps(value)}"))
    return replace(study, settings={**study.settings, **settings}, arguments=(*study.arguments, *told))


def _parse(text: str, source: str, asked: str) -> Study:
    fields = compose(text, source, ("study", "workload", "methods"))
    named = "workloads" if "workloads" in fields.lines else "workload"
    fields.check(_KNOWN, ("study", named, "methods"))
    if named == "workloads" and "workload" in fields.lines:
        raise SparsebenchError(f"{fields.where('workload')}: expected either this field or 'workloads', not both")
    grids = _grids(fields, "methods")
    if not grids:
        raise SparsebenchError(f"{fields.where('methods')}: expected at least one method")
    return Study(
        name=fields.text("study"),
        description=fields.text("description", ""),
        note=" ".join(fields.text("note", "").split()),
        revision=_count(fields, "revision", "the file's revision"),
        workloads=(fields.text("workload"),) if named == "workload" else fields.names("workloads"),
        seeds=_seeds(fields, 3),
        sparsities=_sparsities(fields),
        budget=_count(fields, "budget", "a number of configurations of each method"),
        search=read_search(fields),
        settings=fields.mapping("settings").values(),
        methods=grids,
        stages=_stages(fields.mapping("stages")),
        source=source,
        lines=fields.lines,
        arguments=(asked,),
    )


def _grids(fields: Fields, name: str) -> tuple[MethodGrid, ...]:
    methods = fields.mapping(name)
    found = []
    for method, line in methods.lines.items():
        grids = methods.mappings(method)
        found += [MethodGrid(method, grid.values(), line if len(grids) == 1 else grid.line) for grid in grids]
    return tuple(found)


def _stages(fields: Fields) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for name, line in fields.lines.items():
        stage = fields.mapping(name)
        stage.check(_STAGE, ())
        earlier = [GRID, *(one.name for one in stages)]
        if name == GRID:
            raise SparsebenchError(f"{fields.where(name)}: the runs of the study's methods have this name; choose another")
        of = stage.text("of", earlier[-1])
        if of not in earlier:
            raise SparsebenchError(f"{stage.where('of')}={of!r}: expected an earlier stage, one of {', '.join(earlier)}")
        grids = _grids(stage, "methods")
        for field in ("seeds", "keep_weights_at"):
            if grids and field in stage.lines:
                raise SparsebenchError(
                    f"{stage.where(field)}: methods of a stage go on from the runs that are there; give it to the stage {of!r}"
                )
        stages.append(
            Stage(
                name=name,
                of=of,
                take=stage.names("take") if "take" in stage.lines else (),
                seeds=_seeds(stage, 3) if "seeds" in stage.lines else None,
                keep_weights_at=stage.value("keep_weights_at") if "keep_weights_at" in stage.lines else None,
                methods=grids,
                line=line,
                lines=stage.lines,
            )
        )
    return tuple(stages)


def _seeds(fields: Fields, default: int) -> tuple[int, ...]:
    value = fields.value("seeds") if "seeds" in fields.lines else default
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    if isinstance(value, list) and value and all(_is_seed(seed) for seed in value) and len(set(value)) == len(value):
        return tuple(value)
    raise SparsebenchError(f"{fields.where('seeds')}={value!r}: expected a number of seeds, or a list of different integers >= 0")


def _sparsities(fields: Fields) -> tuple[float, ...]:
    value = fields.value("sparsities") if "sparsities" in fields.lines else []
    if not isinstance(value, list) or not all(_is_sparsity(sparsity) for sparsity in value):
        raise SparsebenchError(
            f"{fields.where('sparsities')}={value!r}: expected a list of fractions in [0, 1), such as [0.5, 0.9]"
        )
    return tuple(sorted({float(sparsity) for sparsity in value}))


def _count(fields: Fields, name: str, what: str) -> int | None:
    if name not in fields.lines:
        return None
    value = fields.value(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SparsebenchError(f"{fields.where(name)}={value!r}: expected {what}, at least 1")
    return value


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_sparsity(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value < 1.0
