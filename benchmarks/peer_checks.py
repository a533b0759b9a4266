"""What users expect of a package that prunes, checked; each finding is one line, a failure says what failed."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import socket
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from networks import NETWORKS, Batch, Network, loss_of
from peer_trial import Pruned, asked_sparsity, load_adapter


def run_checks(name: str, package: ModuleType) -> dict[str, str]:
    """Every check by name, with what it found."""
    network = checked_network(package)
    checks: dict[str, Callable[[], str]] = {
        "count": lambda: count(package, network),
        "dropped weights stay zero": lambda: revival(package, network),
        "resume": lambda: resume(package, network),
        "deepcopy": lambda: deepcopy(package, network),
        "torch.compile": lambda: compiles(package, network),
        "DDP": lambda: same_masks(name),
    }
    return findings(checks)


def findings(checks: dict[str, Callable[[], str]]) -> dict[str, str]:
    """What checks found; a failure of one is what it found."""
    found = {}
    for check, run in checks.items():
        try:
            found[check] = run()
        except Exception as problem:  # whatever a package raises is what is to be told
            lines = str(problem).strip().splitlines() or [""]
            # What a process raised comes after its traceback.
            line = lines[-1] if isinstance(problem, torch.multiprocessing.ProcessRaisedException) else lines[0]
            told = f"fails: {type(problem).__name__}: {line}".removesuffix(": ")
            found[check] = textwrap.shorten(told, 130, placeholder=" ...")
    return found


def checked_network(package: ModuleType) -> Network:
    """The network of the checks: small, with little data, and one that the package can prune."""
    network = NETWORKS[getattr(package, "CHECKED_ON", "mlp")]

    def batch() -> Batch:
        whole = network.batch()
        return Batch(tuple(tensor[:8] for tensor in whole.inputs), whole.targets[:8])

    return network._replace(batch=batch)


def count(package: ModuleType, network: Network) -> str:
    """Zeros as the forward pass sees them, against the number asked for."""
    pruned = Pruned(package, network)
    pruned.sparsify()
    if hasattr(pruned.adapter, "removed"):
        return f"removes channels: {pruned.adapter.removed():.4f} of the weights taken out, {asked_sparsity(package)} aimed at"
    weights = pruned.adapter.weights()
    sparsity = asked_sparsity(package)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    total = sum(weight.numel() for weight in weights.values())
    # One count over all layers, or one for each: both are exact.
    exact = {int(sparsity * total + 0.5), sum(int(sparsity * weight.numel() + 0.5) for weight in weights.values())}
    if zeros in exact:
        return f"exact: {zeros} of {total}"
    return f"{zeros} of {total} are zero, {min(exact, key=lambda value: abs(value - zeros))} asked"


def revival(package: ModuleType, network: Network) -> str:
    """Dropped weights after steps with momentum and weight decay."""
    pruned = Pruned(package, network)
    if hasattr(pruned.adapter, "removed"):
        return "removes channels"
    for _ in range(3):
        pruned.step()  # momentum builds up while weights are there
    pruned.sparsify(steps=1)  # what was grown at zero has left it by then
    dropped = {name: weight == 0 for name, weight in pruned.adapter.weights().items()}
    before = sum(int(mask.sum()) for mask in dropped.values())
    for _ in range(2):
        pruned.step()
    seen, held = (
        sum(int((weight == 0).logical_not().logical_and(dropped[name]).sum()) for name, weight in tensors.items())
        for tensors in (pruned.adapter.weights(), pruned.adapter.held())
    )
    if seen == held == 0:
        return f"zero everywhere ({before} weights)"
    if seen == 0:
        return f"zero in the forward pass; the parameter that is optimized holds values for {held} of {before}"
    return f"{seen} of {before} are no longer zero in the forward pass"


def resume(package: ModuleType, network: Network) -> str:
    """Training stopped, saved, loaded into a new object and gone on with, against training that went on."""
    straight = Pruned(package, network)
    straight.sparsify(steps=3)
    file = io.BytesIO()
    torch.save(straight.adapter.save(), file)
    file.seek(0)
    # The same network, as the same script would make it again.
    resumed = Pruned(package, network, seed=0)
    resumed.adapter.load(torch.load(file, weights_only=False))
    for _ in range(5):
        straight.step()
        resumed.step()
    same = all(
        torch.equal(a, b) for a, b in zip(straight.adapter.model.parameters(), resumed.adapter.model.parameters(), strict=True)
    )
    if hasattr(straight.adapter, "weights"):
        pairs = zip(straight.adapter.weights().values(), resumed.adapter.weights().values(), strict=True)
        same = same and all(torch.equal(a, b) for a, b in pairs)
    return "bit-exact" if same else "goes on differently"


def deepcopy(package: ModuleType, network: Network) -> str:
    """A copy of the model in training, between two steps."""
    pruned = Pruned(package, network)
    pruned.sparsify(steps=2)
    pruned.gradients()
    pruned.adapter.model.eval()
    model = copy.deepcopy(pruned.adapter.model)
    inputs = pruned.training.batch.inputs
    with torch.no_grad():
        return "works" if torch.equal(model(*inputs), pruned.adapter.model(*inputs)) else "the copy computes something else"


def compiles(package: ModuleType, network: Network) -> str:
    """Forward and backward in one graph; no code is generated, the graph is all that is asked."""
    pruned = Pruned(package, network)
    pruned.sparsify(steps=1)
    pruned.adapter.optimizer.zero_grad()
    compiled = torch.compile(pruned.adapter.model, fullgraph=True, backend="aot_eager")
    loss_of(compiled, pruned.training.batch).backward()
    pruned.adapter.step()
    loss_of(compiled, pruned.training.batch).backward()
    return "one graph"


def channels_last(package: ModuleType) -> str:
    """A convolutional network in the memory format that is fastest on many processors."""
    Pruned(package, NETWORKS["resnet20"], memory_format=torch.channels_last).sparsify(steps=1)
    return "works"


def same_masks(name: str) -> str:
    """Two gloo processes under DistributedDataParallel, each with data and a seed of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        hashes = manager.dict()
        torch.multiprocessing.spawn(_rank, (name, port, hashes), nprocs=2, join=True)
        return "same masks" if hashes[0] == hashes[1] else "ranks hold different masks"


def _rank(rank: int, name: str, port: int, hashes: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    # The same seed everywhere, as launchers advise; the data differ.
    package = load_adapter(name)
    network = checked_network(package)
    pruned = Pruned(package, network)
    torch.manual_seed(rank)
    pruned.training.batch = network.batch()
    adapter = pruned.adapter
    plain, parallel = adapter.model, torch.nn.parallel.DistributedDataParallel(adapter.model)
    digest = hashlib.sha256()
    adapter.model = parallel
    update = pruned.reach_update()
    adapter.model = plain
    if update is not None:
        update()
    adapter.model = parallel
    for _ in range(6):
        pruned.step()
    adapter.model = plain
    tensors = adapter.weights().values() if hasattr(adapter, "weights") else plain.parameters()
    for tensor in tensors:
        digest.update((tensor.detach() != 0).numpy().tobytes())
    hashes[rank] = digest.hexdigest()
    torch.distributed.destroy_process_group()
