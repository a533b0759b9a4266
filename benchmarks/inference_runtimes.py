"""The dense networks in every runtime that is installed: float32 is what ours is compared with, bf16 and int8 stand beside it."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from inference_cases import BEAM, Case, Way
from onnx_decoding import OtherTransformer, as_onnx, assert_same_scores, onnx_graphs
from torch import nn

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
PYTORCH, AGAIN = "PyTorch", "PyTorch again"


class Dense:
    """A dense network, its arguments, and what several runtimes make from them."""

    def __init__(self, case: Case, model: nn.Module, inputs: Sequence[torch.Tensor], threads: int) -> None:
        self.case, self.model, self.inputs, self.threads = case, model, inputs, threads

    @property
    def arrays(self) -> list[Any]:
        """The arguments as contiguous arrays."""
        return [tensor.contiguous(memory_format=torch.contiguous_format).numpy() for tensor in self.inputs]

    @cached_property
    def onnx(self) -> bytes:
        """The network as ONNX."""
        return as_onnx(self.model, tuple(map(torch.from_numpy, self.arrays)))

    @cached_property
    def graphs(self) -> tuple[bytes, bytes]:
        """The two graphs of a network that decodes, as ONNX."""
        with torch.inference_mode(False), torch.no_grad():
            return onnx_graphs(self.model, torch.from_numpy(self.arrays[0]), BEAM)

    def decoding(self, run: Callable[[bytes], Callable[[Sequence[Any]], Sequence[Any]]]) -> Way:
        """The case's use of the network, computed by the two graphs.

        Args:
            run: From a graph to what computes it.
        """
        other = OtherTransformer(self.model, *map(run, self.graphs))
        assert_same_scores(self.model, other, torch.from_numpy(self.arrays[0]), BEAM)
        return self.case.way(other, self.inputs)

    @cached_property
    def openvino(self) -> Any:
        """The network as OpenVINO's."""
        import openvino as ov

        model = ov.convert_model(self.model, example_input=tuple(map(torch.from_numpy, self.arrays)))
        model.reshape({port.any_name: list(array.shape) for port, array in zip(model.inputs, self.arrays, strict=True)})
        return model


def pytorch(dense: Dense) -> Way:
    """As it is."""
    return dense.case.way(dense.model, dense.inputs)


def pytorch_bfloat16(dense: Dense) -> Way:
    """Weights and activations in bfloat16."""
    inputs = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in dense.inputs]
    return dense.case.way(copy.deepcopy(dense.model).bfloat16(), inputs)


def onnx_runtime(dense: Dense) -> Way:
    """ONNX Runtime in float32."""
    if dense.case.use is not None:
        return dense.decoding(partial(_computed, threads=dense.threads))
    return partial(_computed(dense.onnx, dense.threads), dense.arrays)


def onnx_runtime_int8(dense: Dense) -> Way:
    """ONNX Runtime with weights and activations in int8: its static quantization, scales from the input itself."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it warns of every vector of weights

    class Once(CalibrationDataReader):
        def __init__(self, inputs: dict[str, Any]) -> None:
            self.left = [inputs]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(dense.onnx)
        quantize_static(before, after, Once(_named(dense)), quant_format=QuantFormat.QDQ, per_channel=True)
        return partial(_computed(after.read_bytes(), dense.threads), dense.arrays)


def openvino(dense: Dense, precision: str = "f32") -> Way:
    """OpenVINO in float32, or with its hint for bfloat16."""
    if dense.case.use is not None:
        import openvino as ov

        return dense.decoding(lambda graph: _requested(ov.Core().read_model(graph), dense.threads, precision))
    return partial(_requested(dense.openvino, dense.threads, precision), dense.arrays)


def openvino_int8(dense: Dense) -> Way:
    """OpenVINO with weights and activations in int8, quantized by NNCF with scales from the input itself."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    arrays = dense.arrays
    data = nncf.Dataset([arrays[0] if len(arrays) == 1 else arrays])
    return partial(_requested(nncf.quantize(dense.openvino.clone(), data, subset_size=1), dense.threads, "f32"), arrays)


def _named(dense: Dense) -> dict[str, Any]:
    import onnx

    return dict(zip([held.name for held in onnx.load_from_string(dense.onnx).graph.input], dense.arrays, strict=True))


def _computed(graph: bytes, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [held.name for held in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _requested(model: Any, threads: int, precision: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.compile_model(model, "CPU", settings).create_infer_request()
    return lambda arrays: list(request.infer(arrays).values())


class Runtime(NamedTuple):
    """A way to run dense networks.

    Attributes:
        packages: What must be installed.
        precision: Of weights and activations.
        make: From a network to what is timed.
        calls_only: Whether it runs networks that are called, and does not decode.
    """

    packages: tuple[str, ...]
    precision: str
    make: Callable[[Dense], Way]
    calls_only: bool = True


RUNTIMES: dict[str, Runtime] = {
    PYTORCH: Runtime((), FLOAT32, pytorch, calls_only=False),
    AGAIN: Runtime((), FLOAT32, pytorch, calls_only=False),
    "ONNX Runtime": Runtime(("onnx", "onnxscript", "onnxruntime"), FLOAT32, onnx_runtime, calls_only=False),
    "OpenVINO": Runtime(("openvino",), FLOAT32, openvino, calls_only=False),
    "PyTorch bf16": Runtime((), BFLOAT16, pytorch_bfloat16, calls_only=False),
    "OpenVINO bf16": Runtime(("openvino",), BFLOAT16, partial(openvino, precision="bf16")),
    "ONNX Runtime int8": Runtime(("onnx", "onnxscript", "onnxruntime"), INT8, onnx_runtime_int8),
    "OpenVINO int8": Runtime(("openvino", "nncf"), INT8, openvino_int8),
}


def installed() -> list[str]:
    """Names of the runtimes that can be used here; one for int8, the last, because quantizing takes long."""
    found = [name for name, runtime in RUNTIMES.items() if all(find_spec(package) for package in runtime.packages)]
    quantized = [name for name in found if RUNTIMES[name].precision == INT8]
    return [name for name in found if name not in quantized[:-1]]


def dense_ways(dense: Dense, say: Callable[[str], None]) -> dict[str, Way]:
    """What is timed in every runtime that can run a case; `say` is told why one cannot."""
    ways: dict[str, Way] = {}
    for name in installed():
        runtime = RUNTIMES[name]
        if (runtime.calls_only and dense.case.use is not None) or (dense.case.is_layer and runtime.precision != FLOAT32):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                way = runtime.make(dense)
                way()
        except Exception as error:  # of another package: the others can be measured all the same
            say(f"{name} cannot run {dense.case.title}: {next(iter(str(error).splitlines()), type(error).__name__)}")
            continue
        ways[name] = way
    return ways
