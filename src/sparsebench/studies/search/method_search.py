"""The search of one method: generation after generation of configurations, each from the results of those before."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparsebench.records.choice import DENSE
from sparsebench.records.run_folder import Status
from sparsebench.records.rungs import RungRecord, StopRecord
from sparsebench.records.schema import RunRecord, canonical_json, text_hash
from sparsebench.studies.search.samplers import REDUCTION, RESOURCES, WHOLE, Asked, Sampler
from sparsebench.studies.search.settings import HYPERBAND, NSGA_2, SearchSettings
from sparsebench.studies.search.values import FAILED, trade_off, value_at
from sparsebench.studies.spaces import Space
from sparsebench.studies.study_file import Study
from sparsebench.training.config import RunConfig
from sparsebench.workloads.registry import WORKLOADS

__all__ = ["MethodSearch", "Proposal", "Results"]

SPARSITY = "sparsity"
ATTEMPTS = 10  # of a sampler to propose what was not proposed before
MOST_ATTEMPTS = 100  # where there is no list of what is left


class Results(Protocol):
    """What is known of runs."""

    def status(self, run_id: str) -> Status:
        """How far a run has come."""

    def record(self, run_id: str) -> RunRecord:
        """The record of a finished run."""

    def rungs(self, run_id: str) -> Mapping[int, RungRecord]:
        """What was measured where a run paused, by the step."""


@dataclass
class Proposal:
    """A configuration that a sampler proposed.

    Attributes:
        runs: It with each seed of the study.
        aim: The sparsity at which it is to be good; None where it is to be good at any.
        pauses: The steps at which its runs are looked at.
        passed: How many of these it got over.
        over: Whether its runs have ended.
        stops: Why and where its runs were stopped, by their ids.
    """

    asked: Asked
    sampler: Sampler
    runs: tuple[RunConfig, ...]
    aim: float | None
    pauses: tuple[int, ...]
    passed: int = 0
    over: bool = False
    stops: dict[str, StopRecord] = field(default_factory=dict)

    @property
    def pause_at(self) -> int | None:
        """The step at which its runs are to pause next; None where they are to be trained to the end."""
        return self.pauses[self.passed] if self.passed < len(self.pauses) else None


class MethodSearch:
    """The configurations of one method, a function of the results of its runs and of nothing else.

    They are proposed in generations. When all runs of one have ended, their values are told to the samplers in the order in which
    they were proposed, whatever the order in which they ended, and the next generation is asked for.

    TPE and random search have a sampler for each sparsity asked about, which propose in turns, and are told the results of the
    others: of a method that finds its own sparsity, the value at theirs; of one that is told it, how far below the best it was.
    NSGA-II has one, with two values: validation metric and sparsity.

    Args:
        study: The study, with a search.
        method: The method.
        spaces: What its grids hold.
        results: What is known of its runs.
    """

    def __init__(self, study: Study, method: str, spaces: Sequence[Space], results: Results) -> None:
        assert study.search is not None
        assert study.budget is not None
        self.method = method
        self.proposals: list[Proposal] = []
        self._settings: SearchSettings = study.search
        self._seeds, self._results, self._budget = study.seeds, results, study.budget
        self._tried: set[str] = set()
        self._under_way: list[Proposal] = []
        self._is_told = any(SPARSITY in space.axes for space in spaces)
        self._aims = [_Aim(self._settings, method, aim, spaces) for aim in self._find_aims(study, spaces)]
        self._turn = 0
        self._best: dict[float, float] = {}
        # What finds its own sparsity can be proposed for any.
        self._size = _size(self._aims if self._is_told else self._aims[:1], study.budget)

    def _find_aims(self, study: Study, spaces: Sequence[Space]) -> Sequence[float | None]:
        if self._settings.sampler == NSGA_2:
            return [None]
        if self._is_told:
            return sorted({sparsity for space in spaces for sparsity in _told(space)})
        return list(study.sparsities) if study.sparsities and self.method != DENSE else [0.0]

    @property
    def unproposed(self) -> int:
        """How many configurations are still to be proposed."""
        return max(self._size - len(self.proposals), 0) if self._aims else 0

    @property
    def complete(self) -> bool:
        """Whether all configurations are proposed and their runs have ended."""
        return not self.unproposed and not self._under_way

    def advance(self) -> bool:
        """Take in what has ended, and propose what follows from it.

        Returns:
            Whether there is something new to run, or to stop.
        """
        waiting = [proposal for proposal in self._under_way if not proposal.over]
        if not all(self._has_come(run, proposal.pause_at) for proposal in waiting for run in proposal.runs):
            return False
        for proposal in waiting:
            self._look_at(proposal)
        if not all(proposal.over for proposal in self._under_way):
            return True
        for tell in (self._tell, self._spread):
            for proposal in self._under_way:
                tell(proposal)
        self._under_way = self._generation()
        self.proposals += self._under_way
        return bool(self._under_way) or any(proposal.stops for proposal in waiting)

    def _has_come(self, run: RunConfig, pause_at: int | None) -> bool:
        """Whether a run has ended, or come to its pause."""
        if self._results.status(run.run_id) in ("finished", "failed"):
            return True
        return pause_at is not None and pause_at in self._results.rungs(run.run_id)

    def _look_at(self, proposal: Proposal) -> None:
        """Let a proposal whose runs have come to their pause, or their end, go on or not."""
        step = proposal.pause_at
        status = [self._results.status(run.run_id) for run in proposal.runs]
        if step is None or "failed" in status:
            proposal.over = True
            if step is not None:
                self._stop(proposal, step, "another seed of this configuration failed")
            return
        rungs = [self._results.rungs(run.run_id).get(step) for run in proposal.runs]
        values = [rung.validation for rung in rungs if rung is not None]
        # What was trained to the end before the search came to it costs nothing more.
        known = len(values) == len(rungs)
        if known and proposal.sampler.stops(proposal.asked, RESOURCES[proposal.passed], sum(values) / len(values)):
            proposal.over = True
            self._stop(proposal, step, f"{HYPERBAND}: not among the best 1/{REDUCTION} of {self.method} after so many steps")
        else:
            proposal.passed += 1

    def _stop(self, proposal: Proposal, step: int, rule: str) -> None:
        for run in proposal.runs:
            rung = self._results.rungs(run.run_id).get(step)
            if rung is not None and self._results.status(run.run_id) not in ("finished", "failed"):
                metric = WORKLOADS.get(run.workload).metric
                stop = StopRecord(step=step, steps=run.recipe.steps, rule=rule, metric=metric, validation=rung.validation)
                proposal.stops[run.run_id] = stop

    def _tell(self, proposal: Proposal) -> None:
        """Tell the sampler of a proposal what it was worth."""
        sampler, asked = proposal.sampler, proposal.asked
        if not self._failed(proposal) and proposal.pause_at is not None:
            sampler.tell_stopped(asked)
        elif proposal.aim is None:
            sampler.tell(asked, (FAILED, 0.0) if self._failed(proposal) else trade_off(self._records(proposal)))
        else:
            value = self._value(proposal, proposal.aim)
            self._best[proposal.aim] = max(self._best.get(proposal.aim, value), value)
            sampler.tell(asked, (value,))

    def _spread(self, proposal: Proposal) -> None:
        """Tell the samplers of other sparsities what a proposal was worth."""
        if proposal.aim is None or (proposal.pause_at is not None and not self._failed(proposal)):
            return
        for other in self._aims:
            if other.sparsity is None or other.sampler is proposal.sampler:
                continue
            if not self._is_told:
                other.sampler.hear(proposal.asked, self._value(proposal, other.sparsity))
            elif other.sparsity in self._best:
                # So far below the best there as it is below the best at its own sparsity.
                value = self._value(proposal, proposal.aim)
                other.sampler.hear(proposal.asked, self._best[other.sparsity] + value - self._best[proposal.aim])

    def _value(self, proposal: Proposal, sparsity: float) -> float:
        return FAILED if self._failed(proposal) else value_at(self._records(proposal), sparsity)

    def _failed(self, proposal: Proposal) -> bool:
        return any(self._results.status(run.run_id) == "failed" for run in proposal.runs)

    def _records(self, proposal: Proposal) -> list[RunRecord]:
        return [self._results.record(run.run_id) for run in proposal.runs]

    def _generation(self) -> list[Proposal]:
        found: list[Proposal] = []
        while self._aims and len(found) < min(self._settings.generation, self._budget - len(self.proposals)):
            aim = self._aims[self._turn % len(self._aims)]
            proposal = self._propose(aim)
            if proposal is None:  # all of it was proposed
                self._aims.remove(aim)
            else:
                self._turn += 1
                found.append(proposal)
        return found

    def _propose(self, aim: _Aim) -> Proposal | None:
        for attempt in range(MOST_ATTEMPTS):
            if attempt >= ATTEMPTS and aim.is_finite:
                break
            asked = aim.sampler.ask()
            config = aim.config(asked)
            if config.run_id not in self._tried:
                return self._proposal(aim, asked, config)
            aim.sampler.refuse(asked)
        left = [each for run_id, each in aim.listed.items() if run_id not in self._tried] if aim.is_finite else []
        if not left:
            return None
        asked = aim.sampler.ask_for(*aim.lot.choice(left))
        return self._proposal(aim, asked, aim.config(asked))

    def _proposal(self, aim: _Aim, asked: Asked, config: RunConfig) -> Proposal:
        self._tried.add(config.run_id)
        runs = tuple(config.model_copy(update={"seed": seed}) for seed in self._seeds)
        steps = config.recipe.steps
        pauses = tuple(max(steps * part // WHOLE, 1) for part in RESOURCES) if self._settings.stop and steps > 1 else ()
        return Proposal(asked, aim.sampler, runs, aim.sparsity, pauses)


class _Aim:
    """A sparsity at which configurations are to be good, with a sampler of its own; None is all of them at once."""

    def __init__(self, settings: SearchSettings, method: str, sparsity: float | None, spaces: Sequence[Space]) -> None:
        self.sparsity = sparsity
        # Of a method that is told its sparsity, only this one.
        self._spaces = [space for space in spaces if sparsity is None or sparsity in (_told(space) or [sparsity])]
        grids = [
            {**space.axes, SPARSITY: [sparsity]} if sparsity is not None and SPARSITY in space.axes else space.axes
            for space in self._spaces
        ]
        seed = int(text_hash(canonical_json([settings.seed, method, sparsity])), 16) % 2**32
        self.sampler = Sampler(settings, f"{method} {sparsity}", seed, grids)
        self.lot = random.Random(seed)
        self.is_finite = not any(space.continuous for space in self._spaces)

    def config(self, asked: Asked) -> RunConfig:
        return self._spaces[asked.grid].config(asked.values)

    def combinations(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """All that can be proposed: the number of the grid, and a value for each of its fields."""
        for grid, space in enumerate(self._spaces):
            for values in space.combinations():
                if self.sparsity is None or values.get(SPARSITY, self.sparsity) == self.sparsity:
                    yield grid, values

    @functools.cached_property
    def listed(self) -> Mapping[str, tuple[int, Mapping[str, Any]]]:
        """The same by the id of its first run, where it can be listed."""
        found: dict[str, tuple[int, Mapping[str, Any]]] = {}
        for grid, values in self.combinations():
            found.setdefault(self._spaces[grid].config(values).run_id, (grid, values))
        return found


def _told(space: Space) -> list[float]:
    """The sparsities that a method is told; none where it finds its own."""
    axis = space.axes.get(SPARSITY, [])
    assert isinstance(axis, list)
    return axis


def _size(aims: Sequence[_Aim], most: int) -> int:
    """How many configurations a search proposes: `most` of them, or all where there are fewer."""
    if not all(aim.is_finite for aim in aims):
        return most
    combinations = sum(1 for aim in aims for _ in aim.combinations())
    if combinations > 10 * most:  # hardly any of them mean the same
        return most
    return min(most, len({run_id for aim in aims for run_id in aim.listed}))
