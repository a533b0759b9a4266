"""Where a run trains: in one process or in several, on processors or on CUDA devices. The only module that knows Accelerate.

Several processes are those that `torchrun` or `accelerate launch` started. Each trains on its part of every batch, gradients are
averaged, and all hold the same masks. The first one claims the run and writes its files. CUDA devices are not tested here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.distributed import verify_same_masks
from sparsebench.sparsifiers.sparsifier import Sparsifier
from sparsebench.workloads.epochs import part_of_examples
from sparsebench.workloads.workload import AveragesTerms, ReadsParts, Workload

__all__ = [
    "Devices",
    "OneProcess",
    "cuda_devices",
    "devices",
    "launched_processes",
    "noise_state",
    "on_device",
    "part_of_batch",
    "seed_noise",
    "set_noise_state",
]

T = TypeVar("T")


class Devices(Protocol):
    """What the training of a run asks of where it happens."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def processes(self) -> int:
        """How many processes train this run."""

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to be called in training steps, whose gradients are averaged over all processes."""

    def batch(self, workload: Workload, seed: int, step: int, batch_size: int) -> tuple[Any, float]:
        """This process's part of a step's batch, on its device, and what its mean loss counts in the mean over processes."""

    def gathered(self, value: T) -> list[T]:
        """What every process gives, in the order of their numbers; all must ask at the same point."""

    def from_main(self, value: T) -> T:
        """What the first process gives, for all of them; all must ask at the same point."""

    def verify(self, sparsifier: Sparsifier) -> None:
        """Refuse to go on where processes hold other masks."""


@dataclasses.dataclass(frozen=True)
class OneProcess:
    """The usual case: this process alone."""

    processes: ClassVar[int] = 1
    rank: ClassVar[int] = 0
    is_main: ClassVar[bool] = True

    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network itself."""
        return model

    def batch(self, workload: Workload, seed: int, step: int, batch_size: int) -> tuple[Any, float]:
        """The whole batch."""
        batch = workload.batch(seed, step, batch_size)
        return (batch if self.device.type == "cpu" else on_device(batch, self.device)), 1.0

    def gathered(self, value: T) -> list[T]:
        """The value alone."""
        return [value]

    def from_main(self, value: T) -> T:
        """The value."""
        return value

    def verify(self, sparsifier: Sparsifier) -> None:
        """There is nothing to compare."""


class _SeveralProcesses:
    """Processes that a launcher started, one for each device."""

    def __init__(self, cpu: bool) -> None:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise SparsebenchError("several processes need accelerate: pip install 'sparsebench[devices]'") from error
        state = PartialState(cpu=cpu)
        self.device: torch.device = state.device
        self.processes: int = state.num_processes
        self.rank: int = state.process_index

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, None if self.device.type == "cpu" else [self.device])

    def batch(self, workload: Workload, seed: int, step: int, batch_size: int) -> tuple[Any, float]:
        if isinstance(workload, ReadsParts):
            part, share = workload.part_of_batch(seed, step, batch_size, self.rank, self.processes)
        else:
            part, share = part_of_batch(workload, workload.batch(seed, step, batch_size), self.rank, self.processes)
        return on_device(part, self.device), share

    def gathered(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        together: list[T] = gather_object([value])
        return together

    def from_main(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def verify(self, sparsifier: Sparsifier) -> None:
        verify_same_masks(sparsifier.masks())


@functools.cache
def devices() -> Devices:
    """Where this process trains: among the processes of its launcher, on $SPARSEBENCH_DEVICE ("cpu", the default, or "cuda").

    Raises:
        SparsebenchError: There is no such device, or Accelerate is missing.
    """
    name = _kind_of_device()
    if launched_processes() > 1:
        return _SeveralProcesses(cpu=name == "cpu")
    return OneProcess(torch.device(name))


def cuda_devices() -> list[str]:
    """The CUDA devices that this machine has for runs, as `CUDA_VISIBLE_DEVICES` names them; none where runs train on processors.

    Raises:
        SparsebenchError: There is no such device as `$SPARSEBENCH_DEVICE` names.
    """
    if _kind_of_device() == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(torch.cuda.device_count())] if named is None else named.split(",")


def _kind_of_device() -> str:
    name = os.environ.get("SPARSEBENCH_DEVICE", "cpu")
    if name not in ("cpu", "cuda"):
        raise SparsebenchError(f"SPARSEBENCH_DEVICE={name!r}: expected 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise SparsebenchError("SPARSEBENCH_DEVICE='cuda': torch finds no CUDA device on this machine; expected 'cpu'")
    return name


def launched_processes() -> int:
    """How many processes torchrun or accelerate launch started; 1 where this one was started alone.

    Raises:
        SparsebenchError: The `mpirun` of Open MPI or MVAPICH started several, each of which would train the whole run.
    """
    if "WORLD_SIZE" not in os.environ:
        for name in ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
            if os.environ.get(name, "1") not in ("", "1"):
                raise SparsebenchError(f"{name}={os.environ[name]}: started by mpirun; expected torchrun")
    return int(os.environ.get("WORLD_SIZE", "1"))


def part_of_batch(workload: Workload, batch: Any, index: int, count: int) -> tuple[Any, float]:
    """The `index`-th of `count` parts of a batch: consecutive examples, as many in each as can be.

    The loss of a batch is a mean over terms (examples; tokens where the workload says so). The mean of the parts' losses, each
    times the number that is returned with it, is the loss of the whole batch; so it is for gradients.

    Args:
        workload: Says what the loss is a mean over.
        batch: Tensors with the examples as first dimension, in a tuple or dataclass.
        index: In [0, count).
        count: Parts.
    """
    examples, share = part_of_examples(_rows(batch), index, count)
    part = _changed(batch, lambda tensor: tensor[examples])
    if share and isinstance(workload, AveragesTerms):
        share = count * workload.terms(part) / workload.terms(batch)
    return part, share


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with all its tensors on a device."""
    return _changed(batch, lambda tensor: tensor.to(device, non_blocking=True))


def seed_noise(where: Devices, seed: int) -> None:
    """Begin the noise in layers, once the network is there: the run's own goes on, other processes and CUDA get others."""
    if where.rank:
        torch.default_generator.manual_seed(_derived(seed, where.rank))
    if where.device.type == "cuda":
        torch.cuda.manual_seed(_derived(seed, where.rank))


def noise_state(where: Devices) -> list[torch.Tensor]:
    """The states of the generators that this process's noise comes from."""
    cuda = [torch.cuda.get_rng_state(where.device)] if where.device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def set_noise_state(where: Devices, states: list[list[torch.Tensor]]) -> None:
    """Go on with the noise of all processes, in the order of their numbers.

    Raises:
        ValueError: There were more or fewer processes, or other devices.
    """
    if len(states) != where.processes:
        raise ValueError(f"it is of {len(states)} processes, these are {where.processes}")
    own = states[where.rank]
    if len(own) != len(noise_state(where)):
        raise ValueError(f"it was trained on another kind of device than {where.device.type}")
    torch.set_rng_state(own[0])
    if where.device.type == "cuda":
        torch.cuda.set_rng_state(own[1], where.device)


def _derived(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])


def _rows(batch: Any) -> int:
    """Examples of a batch: the first dimension of its first tensor."""
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tensor))
        return tensor

    _changed(batch, note)
    return sizes[0]


def _changed(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return type(batch)(**{name: _changed(value, change) for name, value in values.items()})
    if isinstance(batch, dict):
        return {name: _changed(value, change) for name, value in batch.items()}
    if isinstance(batch, tuple):
        parts = [_changed(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
