"""The search of a study: that of each of its methods, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from sparsebench.records.rungs import StopRecord
from sparsebench.studies.search.method_search import MethodSearch, Results
from sparsebench.studies.search.samplers import check_installed
from sparsebench.studies.spaces import Space
from sparsebench.studies.study_file import Study
from sparsebench.training.config import RunConfig

__all__ = ["Proposals"]


class Proposals:
    """The configurations that a study's search has proposed so far: a function of the results and of nothing else.

    Args:
        study: The study, with a search and of one workload.
        results: What is known of its runs.

    Raises:
        SparsebenchError: Optuna is not installed.
    """

    def __init__(self, study: Study, results: Results) -> None:
        check_installed()
        spaces: dict[str, list[Space]] = {}
        for grid in study.methods:
            spaces.setdefault(grid.method, []).append(Space(study, grid))
        self._seeds = len(study.seeds)
        self._methods = [MethodSearch(study, method, own, results) for method, own in spaces.items()]

    @property
    def configs(self) -> list[RunConfig]:
        """The runs of all proposals, replicates of a configuration apart by all others."""
        replicates = zip(*(proposal.runs for method in self._methods for proposal in method.proposals), strict=True)
        return list(itertools.chain.from_iterable(replicates))

    @property
    def pauses(self) -> Mapping[str, int]:
        """After how many steps runs are to pause, by their ids; the others are trained to the end."""
        return {
            run.run_id: proposal.pause_at
            for method in self._methods
            for proposal in method.proposals
            if proposal.pause_at is not None
            for run in proposal.runs
        }

    @property
    def stops(self) -> Mapping[str, StopRecord]:
        """Why and where runs were stopped, by their ids."""
        return {
            run_id: stop for method in self._methods for proposal in method.proposals for run_id, stop in proposal.stops.items()
        }

    @property
    def unproposed(self) -> Mapping[str, int]:
        """How many runs of each method are still to be proposed, at most."""
        return {method.method: self._seeds * method.unproposed for method in self._methods if method.unproposed}

    @property
    def complete(self) -> bool:
        """Whether all is proposed and all of its runs have ended."""
        return all(method.complete for method in self._methods)

    def advance(self) -> bool:
        """Take in what has ended, and propose what follows from it.

        Returns:
            Whether there is something new to run, or to stop.
        """
        moved = [method.advance() for method in self._methods]  # each of them, whatever the others say
        return any(moved)
