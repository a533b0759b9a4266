"""How fast finished sparse networks run on the CPU, beside dense ones in PyTorch and, where installed, ONNX Runtime and OpenVINO.

    python benchmarks/inference.py --quick
    python benchmarks/inference.py --sections layers networks --json inference.json

Prints Markdown tables; what they mean is in docs/benchmarks.md. All of a row take turns in one process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Threads that wait spin for a millisecond only: on a machine that is not quite idle, spinning costs up to ten times more.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from driving import facts, table, write_json
from measuring import elapsed
from networks import NETWORKS, TransformerLayer
from torch import nn

from sparsebench.inference import compile_sparse, kernel_path
from sparsebench.inference.layers import SparseLinear, SparsePointwiseConvolution
from sparsebench.training.start_up import set_up_process

SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98]
LINEAR = [(1024, 1024), (512, 2048), (2048, 512)]
BATCHES = [1, 32, 256]
# Inputs, outputs, height and width, images.
POINTWISE = [(256, 64, 56, 1), (512, 512, 14, 1), (1024, 256, 14, 1), (1024, 256, 14, 16)]
DENSE, AGAIN = "PyTorch", "PyTorch again (A/A control)"


class Encoder(nn.Module):
    """The encoder of Transformer base, without the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(512, 8, 2048, False) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


WHOLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "MLP 784-300-100-10, batch 128": (NETWORKS["mlp"].build, lambda: torch.randn(128, 784)),
    "Transformer base encoder, 16 x 64 tokens": (Encoder, lambda: torch.randn(16, 64, 512)),
    "Transformer base encoder, 1 x 16 tokens": (Encoder, lambda: torch.randn(1, 16, 512)),
    "ResNet-50, 224 px, batch 1": (NETWORKS["resnet50"].build, lambda: torch.randn(1, 3, 224, 224)),
    "ResNet-50, 224 px, batch 16": (NETWORKS["resnet50"].build, lambda: torch.randn(16, 3, 224, 224)),
}


def pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """Random zeros in all linear and convolution layers but those that read an image; for inference."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[1] > 3:
                module.weight.mul_(torch.rand_like(module.weight) >= sparsity)
    return model.eval().requires_grad_(False)


def onnx_runtime(model: nn.Module, x: torch.Tensor, threads: int) -> Callable[[], Any]:
    """The dense network in ONNX Runtime."""
    import io

    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)


def openvino(model: nn.Module, x: torch.Tensor, threads: int) -> Callable[[], Any]:
    """The dense network in OpenVINO, in float32."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.compile_model(ov.convert_model(model, example_input=x), "CPU", settings).create_infer_request()
    return lambda: request.infer([x.numpy()])


RUNTIMES = {"ONNX Runtime": ("onnxruntime", onnx_runtime), "OpenVINO": ("openvino", openvino)}


def after_a_pause(ways: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each way, all taking turns; each runs once untimed before, after a pause.

    Every runtime has threads of its own that go on spinning for some milliseconds after their work, on the cores that the next
    one needs: a pause lets them fall asleep, and the run that is not timed wakes those that come next.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    begin = time.perf_counter()
    for count in range(rounds):
        for name in ways if count % 2 == 0 else reversed(list(ways)):
            time.sleep(0.01)
            ways[name]()
            times[name].append(elapsed(ways[name]))
        if count >= 2 and time.perf_counter() - begin > seconds:
            break
    return times


class Measurement:
    """Rows of a table: dense runtimes, then ours at every sparsity."""

    def __init__(self, threads: int, repetitions: int, seconds: float) -> None:
        self.threads, self.repetitions, self.seconds = threads, repetitions, seconds
        self.runtimes = {name: make for name, (package, make) in RUNTIMES.items() if find_spec(package)}
        self.record: dict[str, dict[str, list[float]]] = {}

    @property
    def header(self) -> list[str]:
        """Columns of every table."""
        return ["", DENSE + ", ms", "A/A", *self.runtimes, *(f"{100 * sparsity:.0f} %" for sparsity in SPARSITIES)]

    def row(self, name: str, dense: nn.Module, x: torch.Tensor, sparse: Callable[[float], nn.Module]) -> list[str]:
        """Time one network. `sparse` makes ours at a sparsity; ratios are those of least times, above 1 where ours is faster."""
        contiguous = x.contiguous(memory_format=torch.contiguous_format)
        ways: dict[str, Callable[[], Any]] = {DENSE: lambda: dense(x), AGAIN: lambda: dense(x)}
        ways |= {runtime: make(dense, contiguous, self.threads) for runtime, make in self.runtimes.items()}
        for sparsity in SPARSITIES:
            network = sparse(sparsity)
            ways[str(sparsity)] = partial(network, x)
        times = self.record[name] = after_a_pause(ways, self.repetitions, self.seconds)
        # What else runs on the machine makes times longer, never shorter.
        least = {way: min(values) * 1e3 for way, values in times.items()}
        fastest = min(least[way] for way in (DENSE, AGAIN, *self.runtimes))
        middle = statistics.median(times[DENSE]) * 1e3
        return [
            name,
            f"{least[DENSE]:.3g} (median {middle:.3g})",
            f"{least[AGAIN] / least[DENSE]:.2f}",
            *(f"{least[runtime]:.3g}" for runtime in self.runtimes),
            *(f"{fastest / least[str(sparsity)]:.2f}" for sparsity in SPARSITIES),
        ]

    def layers(self, quick: bool) -> Iterator[list[str]]:
        """Single layers, always sparse."""
        for outputs, inputs in LINEAR[:1] if quick else LINEAR:
            for batch in BATCHES[1:2] if quick else BATCHES:

                def linear(sparsity: float, inputs: int = inputs, outputs: int = outputs) -> nn.Module:
                    layer = pruned(nn.Linear(inputs, outputs), sparsity)
                    return SparseLinear(layer.weight, layer.bias, False)

                name = f"linear {inputs} to {outputs}, batch {batch}"
                yield self.row(name, pruned(nn.Linear(inputs, outputs), 0), torch.randn(batch, inputs), linear)
        for inputs, outputs, size, images in [] if quick else POINTWISE:

            def pointwise(sparsity: float, inputs: int = inputs, outputs: int = outputs) -> nn.Module:
                layer = pruned(nn.Conv2d(inputs, outputs, 1), sparsity)
                return SparsePointwiseConvolution(layer.weight.flatten(1), layer.bias, False, (1, 1))

            name = f"1x1 convolution {inputs} to {outputs}, {size} x {size}, batch {images}"
            yield self.row(name, pruned(nn.Conv2d(inputs, outputs, 1), 0), torch.randn(images, inputs, size, size), pointwise)

    def networks(self, names: list[str]) -> Iterator[list[str]]:
        """Whole networks: compile_sparse chooses for each layer."""
        for name in names:
            build, batch = WHOLE[name]
            x = batch()
            if x.dim() == 4:
                x = x.to(memory_format=torch.channels_last)
            yield self.row(
                name, pruned(build(), 0), x, lambda sparsity, build=build, x=x: compile_sparse(pruned(build(), sparsity), x)
            )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=["layers", "networks"], default=["layers", "networks"])
    parser.add_argument("--networks", nargs="+", choices=list(WHOLE), default=list(WHOLE), metavar="NETWORK")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: as many as there are cores)")
    parser.add_argument("--repetitions", type=int, default=100, help="rounds of a row at most (default 100)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of a row (default 10)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--quick", action="store_true", help="one layer and the MLP: to see that it works")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.networks, chosen.seconds = chosen.networks[:1], 1.0
    return chosen


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    chosen = parse(arguments)
    set_up_process()
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)
    packages = ["torch", *(package for package, _ in RUNTIMES.values() if find_spec(package))]
    described = facts(chosen.threads) | {name: importlib.metadata.version(name) for name in packages} | {"kernels": kernel_path()}
    print("\n".join(f"- {fact}: {value}" for fact, value in described.items()), flush=True)
    measurement = Measurement(chosen.threads, chosen.repetitions, chosen.seconds)
    for section in chosen.sections:
        print(f"\n### Inference: {section}\n")
        rows = measurement.layers(chosen.quick) if section == "layers" else measurement.networks(chosen.networks)
        with torch.inference_mode():
            print(table(measurement.header, []), flush=True)
            for row in rows:
                print(table(row, []).splitlines()[0], flush=True)
                write_json(chosen.json, {"facts": described, "seconds": measurement.record})


if __name__ == "__main__":
    main()
