"""Study files: a YAML file that names workload, methods, grids, sparsities and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest

__all__ = ["MethodGrid", "Study", "read_study", "shipped_studies"]


@dataclass(frozen=True)
class MethodGrid:
    """One method's part of a study: values by field, each a list of alternatives; `line` is where it stands in the file."""

    method: str
    values: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Study:
    """A study as its file says it, names and values not yet checked against methods and workloads.

    Attributes:
        name: Its name.
        description: What it is for, in a line.
        note: What its page must say to be honest.
        workload: Name of the workload.
        seeds: Seeds of the replicates.
        sparsities: Sparsities asked about; methods with a parameter `sparsity` are trained at each.
        settings: Changes to the workload's recipe for all methods.
        methods: The methods with their grids.
        source: The file, for messages.
        lines: Where its fields stand in the file, for messages.
    """

    name: str
    description: str
    note: str
    workload: str
    seeds: tuple[int, ...]
    sparsities: tuple[float, ...]
    settings: Mapping[str, Any]
    methods: tuple[MethodGrid, ...]
    source: str
    lines: Mapping[str, int]

    def where(self, field: str) -> str:
        """The place of a field, as messages name it."""
        return f"{self.source}, line {self.lines[field]}" if field in self.lines else self.source


_REQUIRED = ("study", "workload", "methods")
_KNOWN = ("study", "description", "note", "workload", "seeds", "sparsities", "settings", "methods")


def shipped_studies() -> dict[str, Study]:
    """The studies that come with the package, by name."""
    folder = files("sparsebench.studies") / "files"
    found = (item for item in folder.iterdir() if item.name.endswith(".yaml"))
    studies = [_parse(item.read_text(encoding="utf-8"), item.name) for item in sorted(found, key=lambda item: item.name)]
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
            return _parse(path.read_text(encoding="utf-8"), str(path))
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


def _parse(text: str, source: str) -> Study:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or error
        raise SparsebenchError(f"{where}: not YAML: {' '.join(str(problem).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise SparsebenchError(f"{source}: expected a mapping with the fields {', '.join(_REQUIRED)}")
    fields = _Fields(node, source)
    fields.check(_KNOWN, _REQUIRED)
    methods = fields.mapping("methods")
    if not methods.lines:
        raise SparsebenchError(f"{fields.where('methods')}: expected at least one method")
    return Study(
        name=fields.text("study"),
        description=fields.text("description", ""),
        note=" ".join(fields.text("note", "").split()),
        workload=fields.text("workload"),
        seeds=fields.seeds(),
        sparsities=fields.sparsities(),
        settings=fields.mapping("settings").values(),
        methods=tuple(MethodGrid(name, methods.mapping(name).values(), line) for name, line in methods.lines.items()),
        source=source,
        lines=fields.lines,
    )


class _Fields:
    """A YAML mapping whose keys remember their lines."""

    def __init__(self, node: yaml.MappingNode, source: str) -> None:
        self._source = source
        self._nodes: dict[str, yaml.Node] = {}
        self.lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in self.lines:
                raise SparsebenchError(f"{source}, line {line}: {name!r} stands here twice (first on line {self.lines[name]})")
            self._nodes[name], self.lines[name] = value, line

    def where(self, name: str) -> str:
        return f"{self._source}, line {self.lines[name]}: {name}" if name in self.lines else f"{self._source}: {name}"

    def check(self, known: tuple[str, ...], required: tuple[str, ...]) -> None:
        for name, line in self.lines.items():
            if name not in known:
                raise SparsebenchError(
                    f"{self._source}, line {line}: unknown field {name!r}{nearest(name, known)}; known: {', '.join(known)}"
                )
        for name in required:
            if name not in self.lines:
                raise SparsebenchError(f"{self._source}: field {name!r} is missing")

    def value(self, name: str) -> Any:
        document = self._nodes[name]
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(document)
        except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
            raise SparsebenchError(f"{self.where(name)}: {getattr(error, 'problem', error)}") from error
        finally:
            loader.dispose()

    def values(self) -> dict[str, Any]:
        return {name: self.value(name) for name in self.lines}

    def text(self, name: str, default: str | None = None) -> str:
        if name not in self.lines and default is not None:
            return default
        value = self.value(name)
        if not isinstance(value, str) or not value.strip():
            raise SparsebenchError(f"{self.where(name)}={value!r}: expected a text")
        return value.strip()

    def mapping(self, name: str) -> _Fields:
        node = self._nodes.get(name)
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
            return _Fields(yaml.MappingNode("tag:yaml.org,2002:map", []), self._source)
        if not isinstance(node, yaml.MappingNode):
            raise SparsebenchError(f"{self.where(name)}: expected a mapping from names to values, such as {name}: {{...}}")
        return _Fields(node, self._source)

    def seeds(self) -> tuple[int, ...]:
        value = self.value("seeds") if "seeds" in self.lines else 3
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return tuple(range(value))
        if isinstance(value, list) and value and all(_is_seed(seed) for seed in value) and len(set(value)) == len(value):
            return tuple(value)
        raise SparsebenchError(
            f"{self.where('seeds')}={value!r}: expected a number of seeds, or a list of different integers >= 0"
        )

    def sparsities(self) -> tuple[float, ...]:
        value = self.value("sparsities") if "sparsities" in self.lines else []
        if not isinstance(value, list) or not all(_is_sparsity(sparsity) for sparsity in value):
            raise SparsebenchError(
                f"{self.where('sparsities')}={value!r}: expected a list of fractions in [0, 1), such as [0.5, 0.9]"
            )
        return tuple(sorted({float(sparsity) for sparsity in value}))


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_sparsity(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value < 1.0
