"""What tests of sparse inference run on: every instruction set, one thread and two."""

import pytest
import torch
from built_kernels import PATHS, kernels

from sparsebench.inference import chains, compressed_blocks, compressed_rows, compressed_tiles, convolutions, few_queries


@pytest.fixture(params=PATHS, scope="module")
def path(request):
    """The kernels of one instruction set, or torch's product, in all sparse layers."""
    chosen = kernels(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for module in (chains, compressed_blocks, compressed_rows, compressed_tiles, convolutions, few_queries):
            patch.setattr(module, "load_kernels", lambda: chosen)
        yield request.param


@pytest.fixture(params=[1, 2], scope="module")
def threads(request):
    """How many threads torch has, and so the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
