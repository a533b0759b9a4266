"""One measurement or check of one package, in that package's own Python: prints one line of JSON.

    /tmp/peers/nncf/bin/python peer_trial.py steps nncf resnet20

A package is known by its adapter, peers/NAME.py: `DISTRIBUTION` (whose version is told), `WAY` (what is measured: the use that
the package documents), where needed `SPARSITY` (the only one that it knows) and `CHECKED_ON` (another network for the checks
than the MLP), and a class `Adapter(model, make_optimizer, sparsity, batch)` with

- `model`, `optimizer`: what is trained; pruned already where the package does so at once;
- `step()`: all that the documented loop calls in place of `optimizer.step()`;
- `update()`: the call that is one mask update, where there is one; `prepare_update()`: whether it can be made after this step;
- `weights()`: the pruned weights as the forward pass sees them; `held()`: as the optimizer holds them; or, where channels are
  taken out instead of zeroed, `removed()`: the fraction taken out;
- `save()` and `load(state)`: a checkpoint in training; `final()`: what is saved at the end, or the size of its file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from measuring import PeakMemory, Training, elapsed, interleaved, ratios, saved_bytes, spread
from networks import NETWORKS, Network, loss_of

from sparsebench.training.start_up import set_up_process

SPARSITY = 0.9


def load_adapter(name: str) -> ModuleType:
    """The adapter of a package. By path: most are called like the package that they import."""
    path = Path(__file__).resolve().parent / "peers" / f"{name.replace('-', '_')}.py"
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def training_in(network: Network, memory_format: torch.memory_format = torch.contiguous_format, seed: int = 0) -> Training:
    """A network and its batch in a memory format: contiguous, since not all packages work with channels_last."""
    training = Training(network, seed)
    training.model.to(memory_format=memory_format)
    inputs = (x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in training.batch.inputs)
    training.batch = training.batch._replace(inputs=tuple(inputs))
    return training


class Pruned:
    """A network in training with a package."""

    def __init__(
        self,
        package: ModuleType,
        network: Network,
        seed: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.training = training_in(network, memory_format, seed)
        self.adapter = package.Adapter(self.training.model, network.optimizer, asked_sparsity(package), self.training.batch)

    def gradients(self) -> None:
        """Forward and backward."""
        self.adapter.optimizer.zero_grad()
        loss_of(self.adapter.model, self.training.batch).backward()

    def step(self) -> None:
        """One training step."""
        self.gradients()
        self.adapter.step()

    def sparsify(self, steps: int = 6) -> None:
        """Train until there are masks, and they have moved where they do."""
        update = self.reach_update()
        if update is not None:
            update()
        for _ in range(steps):
            self.step()

    def reach_update(self) -> Callable[[], Any] | None:
        """Train until a mask update can be made; that update, or None where there is none."""
        if not hasattr(self.adapter, "update"):
            self.step()
            return None
        ready = getattr(self.adapter, "prepare_update", lambda: True)
        for _ in range(8):
            self.step()
            if ready():
                break
        self.gradients()
        update: Callable[[], Any] = self.adapter.update()
        return update


def version(distribution: str) -> str:
    """Of an installed package; this one is measured as it lies beside the benchmarks."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "this clone"


def asked_sparsity(package: ModuleType) -> float:
    """What the package is asked for: 0.9, unless it knows only another."""
    return float(getattr(package, "SPARSITY", SPARSITY))


def time_steps(package: ModuleType, network: Network, repetitions: int, seconds: float) -> dict[str, Any]:
    """Steps with masks in force, in turns with a dense network and another one for control."""
    steps: dict[str, Callable[[], None]] = {}
    for name in ("dense", "control"):
        training = training_in(network)
        optimizer = network.optimizer(training.model.parameters())
        steps[name] = lambda training=training, optimizer=optimizer: training.step(optimizer)
    pruned = Pruned(package, network)
    pruned.sparsify(steps=1)
    steps["pruned"] = pruned.step
    return ratios(interleaved(steps, repetitions, seconds, warm_up=1), "dense")


def time_update(package: ModuleType, network: Network, repetitions: int) -> dict[str, Any]:
    """One mask update of the whole network."""
    if not hasattr(package.Adapter, "update"):
        raise NotImplementedError("not offered: no call of its own updates the masks")
    pruned, times = Pruned(package, network), []
    # The batch is small here: the weights are what counts.
    pruned.training.batch = type(pruned.training.batch)(
        tuple(tensor[:2] for tensor in pruned.training.batch.inputs), pruned.training.batch.targets[:2]
    )
    for _ in range(repetitions + 1):
        update = pruned.reach_update()
        assert update is not None
        times.append(elapsed(update))
    return spread(times[1:])


def peak_memory(package: ModuleType, network: Network) -> dict[str, Any]:
    """Bytes by which preparing and a few steps raise the memory of this process."""
    memory = PeakMemory()
    Pruned(package, network).sparsify(steps=2)
    return {"bytes": memory.rise()}


def dense_memory(network: Network) -> dict[str, Any]:
    """The same of a dense network."""
    memory = PeakMemory()
    training = training_in(network)
    optimizer = network.optimizer(training.model.parameters())
    for _ in range(4):
        training.step(optimizer)
    return {"bytes": memory.rise()}


def file_size(package: ModuleType, network: Network) -> dict[str, Any]:
    """Bytes of what is saved at the end and in training, and of the dense network."""
    dense = saved_bytes(network.build().state_dict())
    pruned = Pruned(package, network)
    pruned.sparsify(steps=2)
    training = saved_bytes(pruned.adapter.save())
    final = pruned.adapter.final()
    return {"final": final if isinstance(final, int) else saved_bytes(final), "training": training, "dense": dense}


def main() -> None:
    """Measure what the command line asks for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "section", choices=["about", "steps", "update", "memory", "dense-memory", "size", "checks", "channels-last"]
    )
    parser.add_argument("package")
    parser.add_argument("network", choices=list(NETWORKS), nargs="?", default="mlp")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    set_up_process()  # alike for all packages; not where memory is measured: driving.py has set the allocator then
    network = NETWORKS[arguments.network]
    package = load_adapter(arguments.package)
    found: dict[str, Any]
    if arguments.section == "about":
        found = {
            "version": version(package.DISTRIBUTION),
            "torch": torch.__version__,
            "way": package.WAY,
            "sparsity": asked_sparsity(package),
        }
    elif arguments.section == "steps":
        found = time_steps(package, network, arguments.repetitions, arguments.seconds)
    elif arguments.section == "update":
        found = time_update(package, network, arguments.repetitions)
    elif arguments.section == "memory":
        found = peak_memory(package, network)
    elif arguments.section == "dense-memory":
        found = dense_memory(network)
    elif arguments.section == "size":
        found = file_size(package, network)
    elif arguments.section == "channels-last":
        from peer_checks import channels_last, findings

        found = findings({"channels_last": lambda: channels_last(package)})
    else:
        from peer_checks import run_checks

        found = run_checks(arguments.package, package)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
