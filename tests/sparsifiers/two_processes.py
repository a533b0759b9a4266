"""Runs a function in two processes that can talk to each other, and brings back what each of them returned."""

import datetime
import time
from pathlib import Path

import torch
from torch import distributed, multiprocessing

# A busy machine of two cores needs seconds to import torch twice; nothing here takes longer than a few seconds after that.
SECONDS = 180


def in_processes(function, folder, *arguments, processes=2):
    """What `function(rank, *arguments)` returned in each process of a gloo group.

    The processes meet over a file, so that no port has to be free; none of them outlives the call.
    """
    folder = Path(folder)
    started = multiprocessing.spawn(_enter, args=(function, str(folder), processes, arguments), nprocs=processes, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        # True once all have ended well; raises what one of them raised.
        while not started.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes did not end within {SECONDS} seconds")
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _enter(rank, function, folder, processes, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
        # Nobody leaves while another one still talks to it.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
