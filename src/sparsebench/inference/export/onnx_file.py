"""A finished network as an ONNX file that was compared with the network before it was written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsebench.atomic import atomic_file
from sparsebench.errors import SparsebenchError
from sparsebench.inference.export.example import Dynamic, ExampleCall
from sparsebench.inference.export.finished import finished_copy
from sparsebench.inference.export.program import program_of_call

__all__ = ["OnnxReport", "export_onnx"]

MOST_BYTES = 2**31 - 2**20  # of one protobuf message, with room for what is no weight
ONLY_ERRORS = 3  # of ONNX Runtime's log


class OnnxReport(NamedTuple):
    """What was written.

    Attributes:
        path: The file.
        file_bytes: Its size.
        opset: The version of ONNX's operators.
        zeros: Zeros in the weights, as in the network: no fewer.
        greatest_difference: Between ONNX Runtime's outputs and torch's, as a fraction of the output's largest magnitude.
    """

    path: Path
    file_bytes: int
    opset: int
    zeros: int
    greatest_difference: float


def export_onnx(
    model: nn.Module, example_input: Any, path: str | Path, *, dynamic: Dynamic | None = None, tolerance: float = 1e-4
) -> OnnxReport:
    """Write a finished network as an ONNX file, zeros kept exactly.

    Before anything is written the file is run by ONNX Runtime on the CPU and compared with torch: on the example, with one more
    element in every dimension that may change, and with a batch of one. The file is as large as a dense one: ONNX Runtime
    multiplies zeros like other numbers; `compile_sparse` does not.

    Args:
        model: Any finished module with parameters on the CPU; it is not changed. Batch normalization becomes part of the
            convolution before it.
        example_input: What the network will be called with: a tensor, a tuple or list of positional arguments, or a dict of
            keyword arguments.
        path: The file to write, by convention `.onnx`; it is there whole or not at all.
        dynamic: Which dimensions may have other sizes than the example's, by argument of `forward`, and what they are called:
            `{"source": {0: "sentences", 1: "positions"}}`. None: the first of every tensor, "batch".
        tolerance: Largest difference of outputs as a fraction of their largest magnitude, above 0.

    Returns:
        What was written and how exact it is.

    Raises:
        SparsebenchError: A layer has noisy weights (the sparsifier is not finalized) or was compiled by `compile_sparse`; the
            network does not take such arguments, is not on the CPU, is larger than 2 GB or cannot be exported; ONNX Runtime
            computes something else; onnx, onnxscript or onnxruntime is not installed; or the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from sparsebench.inference.export import export_onnx
        >>> model = nn.Linear(8, 4)
        >>> _ = nn.init.sparse_(model.weight, sparsity=0.75)
        >>> written = export_onnx(model, torch.randn(1, 8), Path(tempfile.mkdtemp()) / "model.onnx")
        >>> written.zeros, written.greatest_difference < 1e-5
        (24, True)
    """
    onnx, onnxruntime = _packages()
    if not tolerance > 0:
        raise SparsebenchError(f"tolerance={tolerance}: expected a number above 0")
    finished = finished_copy(model)
    _check_weights(finished)
    call = ExampleCall(finished, example_input, dynamic)
    program = program_of_call(finished, call)
    data = _translated(program, call)
    graph = onnx.load_from_string(data)
    zeros = sum(_zeros(torch.from_numpy(onnx.numpy_helper.to_array(held).copy())) for held in graph.graph.initializer)
    kept = _weight_zeros(program)
    if zeros < kept:
        raise SparsebenchError(f"the network has {kept:,} zeros in its weights, the ONNX graph {zeros:,}: it was not written")
    differences = [_difference(onnxruntime, data, finished, one, tolerance) for one in _calls(call)]
    target = Path(path)
    with atomic_file(target) as file:
        file.write(data)
    opset = next(used.version for used in graph.opset_import if used.domain in ("", "ai.onnx"))
    return OnnxReport(target, len(data), opset, kept, max(differences))


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise SparsebenchError(f"ONNX files need {error.name}: pip install 'sparsebench[onnx]'") from error
    return onnx, onnxruntime


def _check_weights(model: nn.Module) -> None:
    total = 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise SparsebenchError(f"{name} is on {tensor.device}: expected the CPU; call model.cpu() first")
        total += tensor.numel() * tensor.element_size()
    if total > MOST_BYTES:
        raise SparsebenchError(f"the network has {total:,} bytes of weights: an ONNX file holds at most {MOST_BYTES:,}")


def _translated(program: ExportedProgram, call: ExampleCall) -> bytes:
    outputs = len(program.graph_signature.user_outputs)
    names = ["output"] if outputs == 1 else [f"output_{number}" for number in range(outputs)]
    try:
        with warnings.catch_warnings():
            # Of names that two dimensions share, and of how torch itself is written.
            warnings.simplefilter("ignore")
            translated = torch.onnx.export(
                program, dynamo=True, verbose=False, output_names=names, dynamic_shapes=call.dynamic_shapes(str)
            )
            assert translated is not None
            serialized: bytes = translated.model_proto.SerializeToString()
            return serialized
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SparsebenchError(f"torch cannot write this network as ONNX: {first}") from error


def _weight_zeros(program: ExportedProgram) -> int:
    """Zeros in the matrices and kernels that the program reads, tied ones once."""
    names = program.graph_signature.inputs_to_parameters
    used = {names[node.name] for node in program.graph.nodes if node.op == "placeholder" and node.name in names and node.users}
    weights = {tensor.data_ptr(): tensor for name in used if isinstance(tensor := program.state_dict[name], Tensor)}
    return sum(_zeros(weight) for weight in weights.values())


def _zeros(tensor: Tensor) -> int:
    return tensor.numel() - int(tensor.count_nonzero()) if tensor.dim() > 1 else 0


def _calls(call: ExampleCall) -> list[ExampleCall]:
    return [call, call.with_sizes(lambda size: size + 1), call.with_sizes(lambda size: 1)]


def _difference(onnxruntime: Any, data: bytes, model: nn.Module, call: ExampleCall, tolerance: float) -> float:
    """The greatest relative difference of one call's outputs."""
    arguments, keywords = call.arguments()
    with torch.no_grad():
        expected = [leaf for leaf in pytree.tree_leaves(model(*arguments, **keywords)) if isinstance(leaf, Tensor)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_ERRORS
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    inputs = {held.name: tensor.numpy() for held, tensor in zip(session.get_inputs(), call.tensors(), strict=True)}
    try:
        found = [torch.from_numpy(output) for output in session.run(None, inputs)]
    except Exception as error:
        sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in call.tensors())
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SparsebenchError(f"ONNX Runtime cannot run the network on an input of {sizes}: {first}") from error
    greatest = 0.0
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.shape != other.shape:
            raise SparsebenchError(
                f"ONNX Runtime's output {number} has the shape {tuple(one.shape)}, torch's {tuple(other.shape)}: not written"
            )
        if not other.numel():
            continue
        apart = float(
            (one.double() - other.double()).abs().nan_to_num(0.0 if one.isnan().equal(other.isnan()) else torch.inf).max()
        )
        difference = (
            apart / max(float(other.double().abs().nan_to_num(0.0).max()), torch.finfo(torch.float32).tiny) if apart else 0.0
        )
        if not difference <= tolerance:
            raise SparsebenchError(
                f"ONNX Runtime's output {number} differs from torch's by {difference:.2g} of its largest magnitude: "
                f"expected at most {tolerance:g}; nothing was written"
            )
        greatest = max(greatest, difference)
    return greatest
