"""The folder of one run: what is in it, whether the run is done, and the claim on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from sparsebench.atomic import atomic_file, make_directory
from sparsebench.errors import SparsebenchError
from sparsebench.records.claims import Claims, Locks
from sparsebench.records.latency import LatencyRecord
from sparsebench.records.rungs import RungRecord, StopRecord
from sparsebench.records.schema import RunRecord, canonical_json

__all__ = ["RUNS", "RunFolder", "Status"]

RUNS = "runs"
"""The folder of all runs in a results folder."""

_LOCKS = Locks()

_AnyRecord = TypeVar("_AnyRecord", bound=BaseModel)

Status = Literal["new", "started", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, all written whole or not at all, `result.json` last.

    Args:
        path: The folder; it is created by `create`.
        claims: How the run is claimed; file locks where left out.
    """

    path: Path
    claims: Claims = field(default=_LOCKS, repr=False, compare=False)

    @staticmethod
    def of(directory: Path, run_id: str, claims: Claims = _LOCKS) -> RunFolder:
        """Where a run lies in a results folder."""
        return RunFolder(directory / RUNS / run_id, claims)

    @property
    def config_path(self) -> Path:
        """The configuration, written when the run begins."""
        return self.path / "config.json"

    @property
    def result_path(self) -> Path:
        """The record; the run is finished if and only if this file exists."""
        return self.path / "result.json"

    @property
    def checkpoint_path(self) -> Path:
        """Where an unfinished run goes on from."""
        return self.path / "checkpoint.pt"

    @property
    def model_path(self) -> Path:
        """The final network as a compressed checkpoint; `sparsebench.storage.load_compressed` reads it."""
        return self.path / "model.safetensors"

    @property
    def kept_weights_path(self) -> Path:
        """The network at the step that `keep_weights_at` names, likewise; only where a configuration asks for it."""
        return self.path / "kept_weights.safetensors"

    @property
    def curve_path(self) -> Path:
        """The training curve: one JSON object a line."""
        return self.path / "curve.jsonl"

    @property
    def latency_path(self) -> Path:
        """How fast the final network is; only where that was measured, after the run."""
        return self.path / "latency.json"

    @property
    def failure_path(self) -> Path:
        """One line and the traceback of a run that failed."""
        return self.path / "failure.txt"

    @property
    def rungs_path(self) -> Path:
        """What was measured where the run paused: one JSON object a line; only where a search may stop runs early."""
        return self.path / "rungs.jsonl"

    @property
    def stop_path(self) -> Path:
        """At which step a search stopped the run, and why; it has no result then."""
        return self.path / "stopped.json"

    def status(self) -> Status:
        """Tell how far the run has come.

        Returns:
            "finished", "failed", "stopped", "started" (it has a folder and none of these), or "new".
        """
        if self.result_path.exists():
            return "finished"
        if self.failure_path.exists():
            return "failed"
        if self.stop_path.exists():
            return "stopped"
        return "started" if self.path.exists() else "new"

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write the configuration into it; what a killed process left half-written is removed.

        Raises:
            SparsebenchError: The folder cannot be written, or it holds a run of another configuration.
        """
        make_directory(self.path)
        for unfinished in self.path.glob(".*.part"):
            unfinished.unlink(missing_ok=True)
        file = self.config_path
        text = canonical_json(config)
        if file.exists():
            if file.read_bytes() != text.encode():
                raise SparsebenchError(f"{file} holds another configuration; choose another folder with --out")
            return
        with atomic_file(file) as stream:
            stream.write(text.encode())

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the run for this process.

        Yields:
            True where the run is ours, False where another process holds it.

        Raises:
            SparsebenchError: The claim cannot be written.
        """
        make_directory(self.path.parent)
        # Beside the folder, not in it: a run folder that exists says that the run was begun.
        with self.claims.hold(self.path) as ours:
            yield ours

    def is_free(self) -> bool:
        """Whether no process holds the run just now.

        Raises:
            SparsebenchError: The claim cannot be written.
        """
        with self.claim() as ours:
            return ours

    def write_result(self, record: RunRecord) -> None:
        """Make the run finished: write its record, then drop what only an unfinished run needs.

        Raises:
            SparsebenchError: It cannot be written, or another process took the run over.
        """
        self.claims.check(self.path)
        _write(self.result_path, record)
        self.checkpoint_path.unlink(missing_ok=True)
        self.forget_end()

    def forget_end(self) -> None:
        """Drop why the run failed or was stopped: it goes on."""
        self.failure_path.unlink(missing_ok=True)
        self.stop_path.unlink(missing_ok=True)

    def read_result(self) -> RunRecord:
        """Read the record of a finished run.

        Raises:
            SparsebenchError: There is none, or it is not a record.
        """
        return _read(self.result_path, RunRecord, "a run record", "run it again")

    def write_latency(self, latency: LatencyRecord) -> None:
        """Keep how fast the run's network is, in place of an earlier measurement.

        Raises:
            SparsebenchError: It cannot be written.
        """
        _write(self.latency_path, latency)

    def read_latency(self) -> LatencyRecord | None:
        """How fast the run's network is; None where that was not measured.

        Raises:
            SparsebenchError: The file cannot be read, or it is not such a record.
        """
        if not self.latency_path.exists():
            return None
        return _read(self.latency_path, LatencyRecord, "a latency record", "measure it again")

    def write_failure(self, line: str, traceback: str) -> None:
        """Keep why the run failed; it stays failed until somebody asks for it again.

        Raises:
            SparsebenchError: It cannot be written, or another process took the run over.
        """
        self.claims.check(self.path)
        make_directory(self.path)
        with atomic_file(self.failure_path) as stream:
            stream.write(f"{line}\n\n{traceback}".encode())

    def read_failure(self) -> str:
        """The line that says why the run failed."""
        return self.failure_path.read_text(encoding="utf-8").partition("\n")[0]

    def write_rung(self, rung: RungRecord) -> None:
        """Keep what was measured where the run paused.

        Raises:
            SparsebenchError: It cannot be written, or another process took the run over.
        """
        self.claims.check(self.path)
        rungs = self.read_rungs() | {rung.step: rung}
        with atomic_file(self.rungs_path) as stream:
            for step in sorted(rungs):
                stream.write(f"{rungs[step].model_dump_json()}\n".encode())

    def read_rungs(self) -> dict[int, RungRecord]:
        """What was measured where the run paused, by the step.

        Raises:
            SparsebenchError: The file is damaged.
        """
        try:
            lines = self.rungs_path.read_bytes().splitlines()
            rungs = [RungRecord.model_validate_json(line) for line in lines]
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise SparsebenchError(
                f"{self.rungs_path} is damaged: delete it and the run's checkpoint.pt, if there is one"
            ) from error
        return {rung.step: rung for rung in rungs}

    def write_stop(self, stop: StopRecord) -> None:
        """Make the run a stopped one, and drop what it would go on from.

        Raises:
            SparsebenchError: It cannot be written.
        """
        _write(self.stop_path, stop)
        self.checkpoint_path.unlink(missing_ok=True)


def _write(path: Path, record: BaseModel) -> None:
    with atomic_file(path) as stream:
        stream.write(json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False).encode())


def _read(path: Path, kind: type[_AnyRecord], name: str, purpose: str) -> _AnyRecord:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SparsebenchError(f"cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise SparsebenchError(f"{path} is not {name}: {field}: {first['msg']}; delete the file to {purpose}") from error
