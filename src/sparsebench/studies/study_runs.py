"""The runs of a study, as far as finished ones tell: those of its grid, and of the stages whose turn has come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsebench.records.run_folder import RunFolder, Status
from sparsebench.records.rungs import RungRecord, StopRecord
from sparsebench.records.schema import RunRecord
from sparsebench.studies.search.proposals import Proposals
from sparsebench.studies.stages import plan_stage
from sparsebench.studies.study_file import GRID, Study
from sparsebench.training.config import RunConfig

__all__ = ["StudyRuns"]


class StudyRuns:
    """Stage after stage of a study. It is a function of what lies in the results folder: nothing else is remembered.

    Args:
        study: The study.
        directory: Its results folder.
        grid: The runs of its first stage, as `studies.plan.plan_runs` gives them; none where a search proposes them.

    Raises:
        SparsebenchError: The study has a search, and Optuna is not installed.
    """

    def __init__(self, study: Study, directory: Path, grid: Iterable[RunConfig]) -> None:
        self._study, self._directory = study, directory
        self._stages = {GRID: {config.run_id: config for config in grid}}
        self._search = Proposals(study, _FolderResults(directory)) if study.search is not None else None
        if self._search is not None:
            self._search.advance()
            self._take_proposals(self._search)
        self._known = dict(self._stages[GRID])

    @property
    def planned(self) -> list[RunConfig]:
        """All that is known so far, each once."""
        return list(self._known.values())

    @property
    def unproposed(self) -> Mapping[str, int]:
        """How many runs of each method the search is still to propose, at most."""
        return {} if self._search is None else self._search.unproposed

    @property
    def pauses(self) -> Mapping[str, int]:
        """After how many steps runs are to pause, by their ids; the others are trained to the end."""
        return {} if self._search is None else self._search.pauses

    @property
    def stops(self) -> Mapping[str, StopRecord]:
        """Runs that the search stops early, by their ids."""
        return {} if self._search is None else self._search.stops

    @property
    def unplanned(self) -> tuple[str, ...]:
        """Stages whose turn has not come."""
        return tuple(stage.name for stage in self._study.stages if stage.name not in self._stages)

    def of_stage(self, name: str) -> list[RunConfig]:
        """The runs of a stage whose turn has come."""
        return list(self._stages[name].values())

    def folder(self, run_id: str) -> RunFolder:
        """Where a run lies."""
        return RunFolder.of(self._directory, run_id)

    def ready(self) -> dict[str, RunConfig]:
        """Those that can run, or have, by their ids: what a run goes on from must be finished."""
        return {
            run_id: config
            for run_id, config in self._known.items()
            if config.parent is None or self.folder(config.parent.run_id).status() == "finished"
        }

    def plan_further(self) -> bool:
        """Let the search propose more, and plan the stages whose earlier stage has ended.

        Returns:
            Whether there is something more to run, or to stop.

        Raises:
            SparsebenchError: A record cannot be read.
        """
        if self._search is not None and self._search.advance():
            self._take_proposals(self._search)
            self._known |= self._stages[GRID]
            return True
        before = len(self._stages)
        for stage in self._study.stages:
            earlier = self._stages.get(stage.of)
            if stage.name not in self._stages and earlier is not None and self._is_over(stage.of):
                configs = plan_stage(self._study, stage, earlier.values(), self._result)
                self._stages[stage.name] = {config.run_id: config for config in configs}
                self._known |= self._stages[stage.name]
        return len(self._stages) > before

    def _take_proposals(self, search: Proposals) -> None:
        self._stages[GRID] = {config.run_id: config for config in search.configs}

    def _is_over(self, stage: str) -> bool:
        """Whether all runs of a stage have ended, and no others will come."""
        if stage == GRID and self._search is not None:
            return self._search.complete
        return all(map(self._has_ended, self._stages[stage]))

    def _has_ended(self, run_id: str) -> bool:
        """Whether a run is finished or failed, or will never run because it goes on from one that failed."""
        status = self.folder(run_id).status()
        if status in ("finished", "failed"):
            return True
        parent = self._known[run_id].parent
        return parent is not None and self._failed(parent.run_id)

    def _failed(self, run_id: str) -> bool:
        if self.folder(run_id).status() == "failed":
            return True
        parent = self._known[run_id].parent if run_id in self._known else None
        return parent is not None and self._failed(parent.run_id)

    def _result(self, run_id: str) -> RunRecord | None:
        folder = self.folder(run_id)
        return folder.read_result() if folder.status() == "finished" else None


class _FolderResults:
    """What is known of the runs of a results folder; a record that was read is not read again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, RunRecord] = {}

    def status(self, run_id: str) -> Status:
        return RunFolder.of(self._directory, run_id).status()

    def record(self, run_id: str) -> RunRecord:
        if run_id not in self._records:
            self._records[run_id] = RunFolder.of(self._directory, run_id).read_result()
        return self._records[run_id]

    def rungs(self, run_id: str) -> Mapping[int, RungRecord]:
        return RunFolder.of(self._directory, run_id).read_rungs()
