"""`python -m sparsebench`, for launchers that start modules: `torchrun --nproc-per-node 2 -m sparsebench train ...`."""

from __future__ import annotations

from sparsebench.cli import main

main()
