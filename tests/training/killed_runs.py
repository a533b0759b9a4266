"""Kills training processes with SIGKILL again and again and lets them go on; a program, run by the tests.

    python killed_runs.py FOLDER KILLS SEED TECHNIQUE...

A technique is one of `short_runs`, or a workload's name, which is then trained with magnitude pruning.

It trains each technique once undisturbed and once killed KILLS times at random moments, the last time in the final
evaluation, and prints a JSON object: for each technique what went wrong, a list that should be empty. Children are forked
before torch has computed anything, because starting an interpreter for each would take most of the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401 - optimizers import it late: here once, and not in every child
from short_runs import STEPS, TECHNIQUES, left_over, short, short_of_workload, what_must_be_equal

from sparsebench.records.run_folder import RunFolder
from sparsebench.training import run as training_run
from sparsebench.training.config import RunConfig
from sparsebench.training.loop import Progress
from sparsebench.training.run import train


def in_child(config: RunConfig, folder: RunFolder, kill_at: int | None, delay: float = 0.0) -> int:
    """Train in a process of its own; kill it `delay` seconds after it began to report step `kill_at`. Its exit status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        with contextlib.suppress(BaseException):
            if kill_at == STEPS + 1:
                training_run._evaluate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

            def observe(progress: Progress) -> None:
                os.write(writer, bytes([progress.step]))

            train(config, folder, checkpoint_seconds=0.0, observe=observe)
            status = 0
        os._exit(status)
    os.close(writer)
    step = 0
    while (seen := os.read(reader, 1)) and (kill_at is None or step < kill_at):
        step = seen[0]
    if kill_at is not None and kill_at <= STEPS:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Only now: a child that goes on after `kill_at` must be able to report its next steps until it is killed.
    os.close(reader)
    return status


def compare(technique: str, directory: Path, kills: int, chance: random.Random) -> list[str]:
    config = short(technique) if technique in TECHNIQUES else short_of_workload(technique)
    calm, harried = RunFolder(directory / "calm" / config.run_id), RunFolder(directory / "harried" / config.run_id)
    wrong = []
    if in_child(config, calm, None) != 0:
        return ["the undisturbed run failed"]
    moments = sorted(chance.randint(1, STEPS) for _ in range(kills - 1))
    for moment in [*moments, STEPS + 1]:
        status = in_child(config, harried, moment, chance.uniform(0.0, 0.01))
        if status not in (-signal.SIGKILL, 0):
            wrong.append(f"exit status {status} when killed at step {moment}")
        if status == -signal.SIGKILL and moment > STEPS and harried.result_path.exists():
            wrong.append("a result before the final evaluation")
    if in_child(config, harried, None) != 0:
        return [*wrong, "the resumed run failed"]
    one, other = (what_must_be_equal(folder, folder.read_result()) for folder in (calm, harried))
    wrong += [f"{name} differs" for name in one if one[name] != other[name]]
    return wrong + [f"{name} is left over" for name in left_over(harried.path)]


def main() -> None:
    directory, kills, seed, *techniques = sys.argv[1:]
    chance = random.Random(int(seed))
    found = {name: compare(name, Path(directory) / str(index), int(kills), chance) for index, name in enumerate(techniques)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
