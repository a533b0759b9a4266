"""A workload of a plugin: a tiny task that goes wrong in ways that the environment asks for, by seed.

FRAGILE is a JSON object: for a seed, "kill" (the process dies at step 3, always), "kill once" (the first time), "raise" (an
exception of several lines), "hang" (step 3 never ends), "full disk" (from step 3 on this process can write no file to its end),
"slow" (30 ms a step). FRAGILE_LOG names a folder in which every step leaves a line. Of several processes at a run only that of
the number FRAGILE_RANK has mishaps; each but the first leaves its lines in a file of its own.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sparsebench.workloads.workload import Recipe, Split

RECIPE = Recipe(steps=40, batch_size=4, optimizer="adamw", learning_rate=0.01)


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Fragile:
    name: str = "fragile"
    summary: str = "for tests"
    revision: int = 1
    metric: str = "accuracy"
    recipe: Recipe = RECIPE
    training_examples: int = 100

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def batch(self, seed: int, step: int, batch_size: int) -> tuple[int, int, torch.Tensor]:
        return seed, step, torch.rand(batch_size, 16, generator=torch.Generator().manual_seed(1000 * seed + step))

    def loss(self, model: nn.Module, batch: tuple[int, int, torch.Tensor], label_smoothing: float) -> torch.Tensor:
        seed, step, pixels = batch
        if not torch.is_grad_enabled():  # not a training step: multiply-adds are being counted
            return nn.functional.cross_entropy(model(pixels), (pixels.sum(1) > 8).long())
        rank = os.environ.get("RANK", "0")
        mine = rank == os.environ.get("FRAGILE_RANK", rank)
        mishap = json.loads(os.environ.get("FRAGILE", "{}")).get(str(seed)) if mine else None
        log = Path(os.environ["FRAGILE_LOG"]) / (str(seed) if rank == "0" else f"{seed}.{rank}")
        with log.open("a") as file:
            file.write(f"{step}\n")
        if step == 3 and (mishap == "kill" or (mishap == "kill once" and log.read_text().split().count("3") == 1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and mishap == "raise":
            raise RuntimeError("it broke\nin several\nlines")
        if step == 3 and mishap == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # as a loop in a library may
            time.sleep(3600)
        if step == 3 and mishap == "full disk":
            os.fsync = _no_space
        if mishap == "slow":
            time.sleep(0.03)
        return nn.functional.cross_entropy(model(pixels), (pixels.sum(1) > 8).long())

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        batch = torch.rand(200, 16, generator=torch.Generator().manual_seed(0 if split == "test" else 1))
        with torch.no_grad():
            return {"accuracy": 100.0 * float((model(batch).argmax(1) == (batch.sum(1) > 8).long()).float().mean())}


FRAGILE = Fragile()
