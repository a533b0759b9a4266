"""Random convolution networks on every instruction set, with one thread and two: outputs as before, also after pickling."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from built_kernels import PATHS, kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_times import pretend_sparse_is_fastest
from torch import nn

from sparsebench.inference import compile_sparse, native

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Identity)


@pytest.fixture(autouse=True, scope="module")
def _all_sparse():
    with pytest.MonkeyPatch.context() as patch:
        pretend_sparse_is_fastest(patch)
        yield


@st.composite
def networks(draw):
    """A network with every kind of convolution in it, and two batches for it, in either memory format."""
    sizes = st.sampled_from([4, 8, 12, 20])
    channels = first = draw(sizes)
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        outputs, kernel = draw(sizes), draw(st.sampled_from([1, 1, 3, 3, 5]))
        stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
        dilation = draw(st.integers(1, 2)) if kernel < 5 else 1
        groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
        parts.append(nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())))
        if draw(st.booleans()):
            parts.append(nn.BatchNorm2d(outputs))
        parts.append(draw(st.sampled_from(ACTIVATIONS))())
        channels = outputs
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 7)).eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sparsity = draw(st.sampled_from([0.3, 0.8, 0.97]))
    with torch.no_grad():
        for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            if tensor.dim() > 1:
                sign = 2.0 * (torch.rand(tensor.shape, generator=generator) > 0.5) - 1.0
                tensor.mul_(sign * (torch.rand(tensor.shape, generator=generator) >= sparsity))
    # Of 70 pixels, one is left by three kernels of five with stride three.
    batches = [torch.randn(draw(st.sampled_from([1, 2, 9])), first, 70, draw(st.integers(70, 75)), generator=generator)]
    batches.append(torch.randn(3, *batches[0].shape[1:], generator=generator))
    if draw(st.booleans()):
        batches = [batch.to(memory_format=torch.channels_last) for batch in batches]
    return model, batches


@pytest.mark.usefixtures("path", "threads")
@settings(max_examples=12)
@given(networks())
def test_outputs_are_those_of_the_dense_network(network):
    model, batches = network
    with torch.no_grad():
        compiled = compile_sparse(model, batches[0])
        for batch in batches:
            expected = model(batch)
            for again in (compiled, pickle.loads(pickle.dumps(compiled))):
                found = again(batch)
                assert (found - expected).abs().max() <= 1e-4 * max(1e-2, float(expected.abs().max()))


FRESH = """
import sys, torch
from sparsebench.inference import kernel_path
network, x, expected = torch.load(sys.argv[1], weights_only=False)
for threads in (1, 2):
    torch.set_num_threads(threads)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    print(kernel_path(), torch.get_num_threads())
"""


@pytest.mark.parametrize("path", PATHS)
def test_a_fresh_process_computes_the_same(path, tmp_path):
    kernels(path)
    if path != native.FALLBACK and native.installed_library() is None:
        pytest.skip("the compiled kernels are not installed")
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 20)).eval()
    x = torch.randn(5, 3, 12, 12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.8)
        compiled = compile_sparse(model, x)
        torch.save((compiled, x, model(x)), tmp_path / "network.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "network.pt")],
        env=os.environ | {native.VARIABLE: path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [path, "1", path, "2"], done.stderr
