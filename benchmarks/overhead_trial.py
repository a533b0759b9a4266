"""One measurement of overhead.py, in a process of its own: prints one line of JSON.

python overhead_trial.py steps resnet20 --repetitions 20 --seconds 30
python overhead_trial.py memory resnet20 --method "L0"
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import PeakMemory, Training, interleaved, ratios, saved_bytes, spread
from networks import NETWORKS, Network

import sparsebench
from sparsebench import Sparsifier
from sparsebench.storage import save_compressed
from sparsebench.training.start_up import set_up_process

SPARSITY = 0.9
# Masks move in every fourth step, so that steps with and without an update are timed in the same run, and the median step is one
# without. The last update is far away.
FREQUENCY, FIRST, LAST = 4, 1, 1_000_000

MOVING = {"sparsity": SPARSITY, "begin": FIRST, "end": LAST, "frequency": FREQUENCY}

MASKED: dict[str, Callable[[], Sparsifier]] = {
    "magnitude, global, gone": lambda: _magnitude(allocation="global", policy="gone"),
    "magnitude, uniform, gone": lambda: _magnitude(allocation="uniform", policy="gone"),
    "magnitude, uniform, returning": lambda: _magnitude(allocation="uniform", policy="returning"),
    "magnitude, uniform, gone, masks of bytes": lambda: _magnitude(allocation="uniform", policy="gone").keep_byte_masks(),
    "RigL": lambda: sparsebench.rigl(**MOVING),
}
# Those whose cost is near to one of the above: measured where every method is asked for.
FURTHER: dict[str, Callable[[], Sparsifier]] = {
    "magnitude, Erdos-Renyi-kernel, returning": lambda: _magnitude(allocation="erdos-renyi-kernel", policy="returning"),
    "magnitude, uniform, blocks of 4x4": lambda: _magnitude(allocation="uniform", policy="gone", structure="block:4x4"),
    "magnitude, once": lambda: sparsebench.one_shot_pruning(sparsity=SPARSITY, step=FIRST),
    "random": lambda: sparsebench.random_pruning(**MOVING, initial_sparsity=SPARSITY - 0.01),
    "static": lambda: sparsebench.static_sparse_training(sparsity=SPARSITY),
    "SET": lambda: sparsebench.set_training(**MOVING),
    "SNFS": lambda: sparsebench.snfs(**MOVING),
}
STOCHASTIC: dict[str, Callable[[], Sparsifier]] = {
    "variational dropout, noise per example": lambda: sparsebench.variational_dropout(penalty=1e-5, noise="example"),
    "variational dropout, noise on weights": lambda: sparsebench.variational_dropout(penalty=1e-5, noise="weight"),
    "L0": lambda: sparsebench.l0_regularization(penalty=1e-5),
}
METHODS = MASKED | FURTHER | STOCHASTIC
DENSE, CONTROL = "dense", "dense again (A/A control)"


def _magnitude(**parts: Any) -> sparsebench.MaskedSparsifier:
    return sparsebench.magnitude_pruning(
        sparsity=SPARSITY, begin=FIRST, end=LAST, frequency=FREQUENCY, initial_sparsity=SPARSITY - 0.01, **parts
    )


class Sparse:
    """A network that trains with a method, and what the method's hooks and penalty take of every step."""

    def __init__(self, network: Network, build: Callable[[], Sparsifier]) -> None:
        self.training = Training(network)
        self.sparsifier = build()
        self.sparsifier.prepare(self.training.model)
        self.optimizer = network.optimizer(self.training.model.parameters())
        # Hooks run in the order in which they were registered: one of ours before and one after the sparsifier's.
        self.begun, self.spent = 0.0, 0.0
        self.optimizer.register_step_pre_hook(self._begin)
        self.optimizer.register_step_post_hook(self._begin)
        self.sparsifier.attach(self.optimizer)
        self.optimizer.register_step_pre_hook(self._end)
        self.optimizer.register_step_post_hook(self._end)
        self.plain: list[float] = []
        self.updates: list[float] = []

    def step(self) -> None:
        """One training step."""
        self.spent = 0.0
        self.training.step(self.optimizer, self._penalty)
        (self.updates if self.sparsifier.step % FREQUENCY == FIRST else self.plain).append(self.spent)

    def _penalty(self) -> torch.Tensor:
        begin = time.perf_counter()
        penalty = self.sparsifier.penalty()
        self.spent += time.perf_counter() - begin
        return penalty

    def _begin(self, *_: Any) -> None:
        self.begun = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.spent += time.perf_counter() - self.begun


def dense_step(network: Network) -> Callable[[], None]:
    """A training step of a dense network."""
    training = Training(network)
    optimizer = network.optimizer(training.model.parameters())
    return lambda: training.step(optimizer)


def time_steps(network: Network, names: list[str], repetitions: int, seconds: float) -> dict[str, Any]:
    """Whole steps of all methods in turns, and what hooks and penalty take of them."""
    steps = {name: dense_step(network) for name in (DENSE, CONTROL)}
    sparse = {name: Sparse(network, METHODS[name]) for name in names}
    steps |= {name: method.step for name, method in sparse.items()}
    times = interleaved(steps, repetitions, seconds, warm_up=2)
    base = statistics.median(times[DENSE])
    hooks = {}
    for name, method in sparse.items():
        # The two steps that warmed up: the first was an update, the second none.
        plain, updates = method.plain[1:], method.updates[1:]
        if name in STOCHASTIC:
            plain, updates = plain + updates, []
        hooks[name] = {
            kind: spread(values) | {"share": statistics.median(values) / base}
            for kind, values in (("plain", plain), ("update", updates))
            if values
        }
    return {"steps": ratios(times, DENSE), "hooks": hooks}


def time_update(network: Network, name: str, repetitions: int) -> dict[str, Any]:
    """One mask update alone: steps of an optimizer that has no gradients do nothing else."""
    method = Sparse(network, METHODS[name])
    weights = sum(mask.numel() for mask in method.sparsifier.masks().values())
    extra, held = [], 0
    for _ in range(FREQUENCY * (repetitions + 1)):
        memory = PeakMemory()
        method.spent = 0.0
        method.optimizer.step()
        if method.sparsifier.step % FREQUENCY == FIRST:
            method.updates.append(method.spent)
            extra.append(memory.rise())
            held = max(held, memory.held())
    return {
        "weights": weights,
        "update": spread(method.updates[1:]),
        "extra": statistics.median(extra[1:]) / (4 * weights),
        "extra_first": extra[0] / (4 * weights),
        "held_first": held / (4 * weights),
    }


def peak_memory(network: Network, name: str) -> dict[str, Any]:
    """Bytes by which building a network and three steps of its training raise this process's memory."""
    memory = PeakMemory()
    step = Sparse(network, METHODS[name]).step if name in METHODS else dense_step(network)
    for _ in range(3):
        step()
    return {"bytes": memory.rise()}


def saved_sizes(network: Network, name: str) -> dict[str, Any]:
    """Bytes of what a run saves, and of the finished network, per weight that the method makes sparse."""
    method = Sparse(network, METHODS[name])
    weights = sum(mask.numel() for mask in method.sparsifier.masks().values())
    for _ in range(2):
        method.step()
    sizes = {
        "sparsifier state": saved_bytes(method.sparsifier.state_dict()),
        "model state": saved_bytes(method.training.model.state_dict()),
        "optimizer state": saved_bytes(method.optimizer.state_dict()),
    }
    sparsity = method.sparsifier.sparsity
    model = method.sparsifier.finalize()
    sizes["finished network, torch.save"] = saved_bytes(model.state_dict())
    sizes["finished network, compressed"] = _compressed_bytes(model)
    return {"weights": weights, "sparsity": sparsity, "bytes": sizes}


def _compressed_bytes(model: torch.nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_compressed(model, path)
        return path.stat().st_size


def main() -> None:
    """Measure what the command line asks for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=["steps", "update", "update-memory", "memory", "sizes"])
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--method", action="append", choices=[DENSE, CONTROL, *METHODS])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    set_up_process()  # not where memory is measured: driving.py has set the allocator then
    network, methods = NETWORKS[arguments.network], arguments.method or list(METHODS)
    if arguments.section == "steps":
        measured = time_steps(network, methods, arguments.repetitions, arguments.seconds)
    elif arguments.section in ("update", "update-memory"):
        # The same twice: times with memory retained, memory with an allocator that gives back at once (driving.py).
        measured = time_update(network, methods[0], arguments.repetitions)
    elif arguments.section == "memory":
        measured = peak_memory(network, methods[0])
    else:
        measured = saved_sizes(network, methods[0])
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
