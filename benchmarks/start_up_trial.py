"""One measurement of start_up.py, in a process of its own: training steps of one dense network. Prints one line of JSON.

python start_up_trial.py resnet-20 --precision bfloat16 --format channels_last --allocator retain --seconds 5
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import spread
from networks import NETWORKS, Batch, Network, loss_of

from sparsebench.training.start_up import ALLOCATOR, set_up_process
from sparsebench.workloads.images.networks import make_network


def small_images(name: str, channels: int, size: int) -> Network:
    """A network of the image workloads with a batch of 128, trained as their recipes do."""
    lenet = name.startswith("lenet")
    return Network(
        name,
        lambda: make_network(name, channels, size, 10),
        lambda: Batch((torch.randn(128, channels, size, size),), torch.randint(0, 10, (128,))),
        lambda parameters: (
            torch.optim.AdamW(parameters, fused=True)
            if lenet
            else torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
        ),
    )


MEASURED = {
    "lenet-5": small_images("lenet-5", 1, 28),
    "resnet-8": small_images("resnet-8", 1, 28),
    "resnet-20": small_images("resnet-20", 3, 32),
    "transformer-small": NETWORKS["transformer-small"],
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def training_step(network: Network, precision: str, memory_format: torch.memory_format) -> Callable[[], None]:
    """A dense training step; images and convolutions in one memory format."""
    torch.manual_seed(0)
    model, batch = network.build().to(memory_format=memory_format), network.batch()
    inputs = tuple(x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in batch.inputs)
    batch = batch._replace(inputs=inputs)
    optimizer = network.optimizer(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure what the command line asks for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=list(MEASURED))
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--format", choices=list(FORMATS), default="channels_last")
    parser.add_argument("--allocator", choices=["retain", "system"], default="retain")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    os.environ[ALLOCATOR] = arguments.allocator
    set_up_process()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    step = training_step(MEASURED[arguments.network], arguments.precision, FORMATS[arguments.format])
    for _ in range(3):
        step()
    times: list[float] = []
    begin, processor = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < arguments.seconds or len(times) < 5:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    processor = (time.process_time() - processor) / len(times)
    print(json.dumps(spread(times) | {"processor": processor * 1e3, "peak": _peak_bytes()}))


def _peak_bytes() -> int | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main()
