"""What a run of each method takes on this machine, from shortened ones."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.config import RunConfig, step_parameters
from sparsebench.training.run import train_claimed
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.workload import Split, Workload

__all__ = ["Kind", "Sample", "kind_of", "sample_runs", "shortened"]

FEWEST_STEPS, MOST_STEPS = 10, 40  # training curves have ten points, each with an evaluation
SAMPLE_SECONDS = 2.0  # of training steps

Kind = tuple[str, str, int, int]


@dataclass(frozen=True)
class Sample:
    """What a run takes, from a shortened one.

    Attributes:
        target_sparsity: What it was asked for; None where its method finds its own.
        step_seconds: Seconds a step.
        other_seconds: Seconds of everything else: building the network, evaluation, writing.
        step_flops: Theoretical floating-point operations of a step, two for each multiply-add, averaged over the training.
        file_bytes: What its folder holds when it is finished.
    """

    target_sparsity: float | None
    step_seconds: float
    other_seconds: float
    step_flops: float
    file_bytes: int


def kind_of(config: RunConfig) -> Kind:
    """What runs must share to be taken for alike at equal sparsity: workload, method, batch size, threads."""
    return config.workload, config.method, config.recipe.batch_size, config.recipe.threads


def sample_runs(
    configs: Iterable[RunConfig],
    *,
    begin: Callable[[int], None] = lambda todo: None,
    done: Callable[[], None] = lambda: None,
) -> Mapping[Kind, tuple[Sample, ...]]:
    """Train a shortened run of each kind, at its lowest and at its highest sparsity, in this process.

    Each split of a workload is evaluated once, and counted as long in the other runs. After so few steps a network may be slower
    to evaluate than a finished one: translations end late.

    Args:
        configs: The runs that are asked about.
        begin: Called once with how many shortened runs there are.
        done: Called after each of them.

    Returns:
        For each kind what was measured, in order of the sparsity. Nothing for a kind whose runs fail when they are shortened, or
        go on from others.
    """
    ends: dict[Kind, dict[float, RunConfig]] = {}
    for config in configs:
        sparsity = -1.0 if config.target_sparsity is None else config.target_sparsity
        found = ends.setdefault(kind_of(config), {})
        found.setdefault(sparsity, config)
        if len(found) > 2:
            del found[sorted(found)[1]]
    begin(sum(map(len, ends.values())))
    prepared: dict[str, tuple[_EvaluatedOnce, int]] = {}
    samples: dict[Kind, tuple[Sample, ...]] = {}
    for kind, found in ends.items():
        measured = []
        for config in (found[sparsity] for sparsity in sorted(found)):
            if config.workload not in prepared:
                prepared[config.workload] = _prepared(config)
            workload, steps = prepared[config.workload]
            measured.append(_sample(config, steps, workload))
            done()
        samples[kind] = tuple(sample for sample in measured if sample is not None)
    return samples


class _EvaluatedOnce:
    """A workload that answers with the first evaluation of a split from then on.

    Attributes:
        saved: Seconds that the evaluations would have taken that were asked for but not made.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._known: dict[Split, tuple[dict[str, float], float]] = {}
        self.saved = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Metrics of the split, of the first network that was evaluated."""
        if split in self._known:
            metrics, seconds = self._known[split]
            self.saved += seconds
            return metrics
        begun = time.perf_counter()
        metrics = self._workload.evaluate(model, split)
        self._known[split] = metrics, time.perf_counter() - begun
        return metrics


def _prepared(config: RunConfig) -> tuple[_EvaluatedOnce, int]:
    """A workload, and how many steps its shortened runs have, from a first one, which loads what later ones share."""
    workload = _EvaluatedOnce(WORKLOADS.get(config.workload))
    first = _sample(config, FEWEST_STEPS, workload)
    steps = FEWEST_STEPS if first is None else round(SAMPLE_SECONDS / first.step_seconds)
    return workload, min(max(steps, FEWEST_STEPS), MOST_STEPS)


def _sample(config: RunConfig, steps: int, workload: _EvaluatedOnce) -> Sample | None:
    saved_before = workload.saved
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary) / "run")
        begun = time.perf_counter()
        try:
            record = train_claimed(shortened(config, steps), folder, workload=cast(Workload, workload))
        except SparsebenchError:
            return None
        seconds = time.perf_counter() - begun + workload.saved - saved_before
        return Sample(
            target_sparsity=config.target_sparsity,
            step_seconds=record.seconds / record.steps,
            other_seconds=max(seconds - record.seconds, 0.0),
            step_flops=2.0 * (record.training_multiply_adds or 0.0) / record.steps,
            file_bytes=sum(file.stat().st_size for file in folder.path.iterdir()),
        )


def shortened(config: RunConfig, steps: int) -> RunConfig:
    """The same training in fewer steps: its times shrink in proportion, to 1 at least where they are intervals.

    So masks are as sparse as in the whole run at the same fraction of it, and FLOPs are right; masks that change at nearly every
    step make the time a little long.

    Args:
        config: The configuration.
        steps: Its length, at least 1.

    Example:
        >>> from sparsebench.training.config import resolve
        >>> config = resolve("digits", "magnitude", {"sparsity": 0.9, "begin": 0.2, "end": 0.5, "frequency": "30 steps"})
        >>> shortened(config, 40).parameters["begin"], shortened(config, 40).parameters["end"]
        (8, 20)
    """
    if config.recipe.steps <= steps:
        return config
    scale = steps / config.recipe.steps
    parameters = dict(config.parameters)
    for name in step_parameters(METHODS.get(config.method)):
        if parameters.get(name) is not None:
            parameters[name] = max(int(parameters[name] * scale + 0.5), 1 if name == "frequency" else 0)
    recipe = config.recipe.model_copy(update={"steps": steps, "warmup_steps": int(config.recipe.warmup_steps * scale)})
    return config.model_copy(update={"parameters": parameters, "recipe": recipe, "keep_weights_at": None})
