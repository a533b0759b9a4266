"""The report on a model: rows, totals and their conversions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from sparsebench.accounting.inventory import take_inventory
from sparsebench.accounting.multiply_adds import count_multiply_adds
from sparsebench.accounting.table import report_table
from sparsebench.accounting.undisturbed import undisturbed
from sparsebench.errors import SparsebenchError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LayerReport", "Report", "report"]


@dataclass(frozen=True)
class LayerReport:
    """One weight tensor.

    Attributes:
        name: Its name in `model.named_parameters()`.
        layer_type: The type of the layer that holds it; of several different ones, joined by " + ".
        shape: Its shape.
        weights: Number of weights.
        zeros: Number of weights that are exactly zero (0.0 or -0.0).
        bytes: Its size as held.
        compressed_bytes: An estimate of its size stored sparsely: a mask of one bit per weight and the non-zero values
            in their own type, or as held where that is smaller.
        multiply_adds: Weights times the positions they are applied at; None if no example input was given.
        sparse_multiply_adds: The same for non-zero weights only. What a perfect sparse implementation would need, not
            a measured speed.
    """

    name: str
    layer_type: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    bytes: int
    compressed_bytes: int
    multiply_adds: int | None = None
    sparse_multiply_adds: int | None = None

    @property
    def nonzeros(self) -> int:
        """Number of weights other than zero."""
        return self.weights - self.zeros

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are zero."""
        return self.zeros / self.weights if self.weights else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row as plain Python values, ready for JSON."""
        return {
            "name": self.name,
            "layer_type": self.layer_type,
            "shape": list(self.shape),
            "weights": self.weights,
            "zeros": self.zeros,
            "sparsity": self.sparsity,
            "bytes": self.bytes,
            "compressed_bytes": self.compressed_bytes,
            "multiply_adds": self.multiply_adds,
            "sparse_multiply_adds": self.sparse_multiply_adds,
        }


@dataclass(frozen=True, repr=False)
class Report:
    """What a model holds and costs. `print` shows it as a table.

    Attributes:
        layers: One row per weight tensor, in the order of the model.
        other_parameters: Number of elements of all other parameters: biases, normalisation, parameters of layers that
            are not in the table of layer types. Zeros among them do not count as sparsity.
        other_bytes: Their size.
        buffer_bytes: The size of the buffers, such as the running statistics of batch normalisation.

    Example:
        >>> from torch import nn
        >>> from sparsebench.accounting import report
        >>> held = report(nn.Linear(100, 10))
        >>> held.weights, held.zeros, held.other_parameters, held.bytes
        (1000, 0, 10, 4040)
    """

    layers: tuple[LayerReport, ...]
    other_parameters: int
    other_bytes: int
    buffer_bytes: int

    @property
    def weights(self) -> int:
        """Number of weights in all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of zero weights in all layers."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def nonzeros(self) -> int:
        """Number of weights other than zero in all layers."""
        return self.weights - self.zeros

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of all layers that are zero; 0.0 without layers."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def parameters(self) -> int:
        """Number of weights and other parameters."""
        return self.weights + self.other_parameters

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as held."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def compressed_weight_bytes(self) -> int:
        """Estimated size of the weights stored sparsely, see `LayerReport`."""
        return sum(layer.compressed_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Size of the whole model as held: weights, other parameters and buffers."""
        return self.weight_bytes + self.other_bytes + self.buffer_bytes

    @property
    def compressed_bytes(self) -> int:
        """Estimated size of the whole model with the weights stored sparsely and the rest as it is."""
        return self.compressed_weight_bytes + self.other_bytes + self.buffer_bytes

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of all layers for the example input; None without one."""
        return _sum_if_known(layer.multiply_adds for layer in self.layers)

    @property
    def sparse_multiply_adds(self) -> int | None:
        """Multiply-adds of the non-zero weights of all layers; theoretical, not a measured speed."""
        return _sum_if_known(layer.sparse_multiply_adds for layer in self.layers)

    def __str__(self) -> str:
        return report_table(self)

    def __repr__(self) -> str:
        return report_table(self)

    def to_dict(self) -> dict[str, Any]:
        """The rows and totals as plain Python values.

        Returns:
            A dictionary that `json` writes and reads back unchanged.

        Example:
            >>> from torch import nn
            >>> from sparsebench.accounting import report
            >>> report(nn.Linear(2, 1)).to_dict()["layers"][0]["shape"]
            [1, 2]
        """
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "weights": self.weights,
            "zeros": self.zeros,
            "sparsity": self.sparsity,
            "weight_bytes": self.weight_bytes,
            "compressed_weight_bytes": self.compressed_weight_bytes,
            "multiply_adds": self.multiply_adds,
            "sparse_multiply_adds": self.sparse_multiply_adds,
            "other_parameters": self.other_parameters,
            "other_bytes": self.other_bytes,
            "buffer_bytes": self.buffer_bytes,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "compressed_bytes": self.compressed_bytes,
        }

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON text.

        Args:
            indent: Spaces per level, None for one line.

        Returns:
            The text.

        Example:
            >>> import json
            >>> from torch import nn
            >>> from sparsebench.accounting import report
            >>> json.loads(report(nn.Linear(2, 1)).to_json())["weights"]
            2
        """
        return json.dumps(self.to_dict(), indent=indent)

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame, one per weight tensor, with the columns of `LayerReport`.

        Returns:
            The DataFrame. Multiply-adds are of the nullable type Int64.

        Raises:
            SparsebenchError: pandas is not installed.

        Example:
            >>> from torch import nn
            >>> from sparsebench.accounting import report
            >>> report(nn.Linear(2, 1)).to_dataframe()["weights"].tolist()
            [2]
        """
        try:
            import pandas as pd
        except ImportError:
            raise SparsebenchError("to_dataframe needs pandas: pip install sparsebench[results]") from None
        columns = list(LayerReport("", "", (), 0, 0, 0, 0).to_dict())
        frame = pd.DataFrame([layer.to_dict() for layer in self.layers], columns=columns)
        typed: pd.DataFrame = frame.astype({"multiply_adds": "Int64", "sparse_multiply_adds": "Int64"})
        return typed


def report(model: nn.Module, example_input: Any = None) -> Report:
    """Account for a model: weights, zeros, bytes and, for an example input, multiply-adds.

    There is one row per weight tensor of the linear, bilinear, convolution, embedding, recurrent and attention layers
    of `torch.nn` and their subclasses. A tensor that several layers share is one row. A weight that is computed from
    others (`torch.nn.utils.prune`, `parametrize`) is taken as the layer reads it. Weights that a module of your own
    holds in a bare `nn.Parameter` are among the other parameters, and products with them are not counted.

    Multiply-adds are counted where a weight is applied: the dense number is weights times positions, for the whole
    input (a batch of 1 gives the cost per example); the sparse number takes the non-zero weights only. The latter is
    theoretical (simulated): how much faster the model really runs must be measured.

    - Convolution: positions are those of the output, for a transposed convolution of the input. Products with padding
      are counted.
    - Recurrent layers: each matrix once per time step and sequence; packed sequences without their padding.
    - Attention: the projections, for the lengths of query, key and value. The products of queries, keys and values
      hold no weights and are not counted.
    - Embedding: a look-up costs nothing. Where the same tensor is also the softmax matrix, that use is counted, whether
      through a layer or as a matrix product in the model's own code.
    - A layer that does not run with this input costs 0. Inside `torch.vmap` a layer is seen, and counted, for one
      example.

    The model runs once, in eval mode and without gradients. Training flags, buffers, torch's random state and hooks are
    afterwards as they were before, also if the model raises.

    Args:
        model: Any module, on any device, of any dtype.
        example_input: What the model is called with: a tensor, a tuple or list of positional arguments, or a dict of
            keyword arguments. Without it, multiply-adds are None.

    Returns:
        The report.

    Raises:
        SparsebenchError: `model` is no module, or has parameters without values (lazy, or on the meta device).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sparsebench.accounting import report
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:12].zero_()
        >>> print(report(model, torch.ones(1, 8)))  # doctest: +NORMALIZE_WHITESPACE
        layer             type    shape   weights  zeros  sparsity  bytes  compressed  multiply-adds  simulated sparse
        --------------------------------------------------------------------------------------------------------------
        0.weight          Linear  16 x 8      128     96   75.00 %  512 B       144 B            128                32
        2.weight          Linear  4 x 16       64      0    0.00 %  256 B       256 B             64                64
        --------------------------------------------------------------------------------------------------------------
        all layers (2)                        192     96   50.00 %  768 B       400 B            192                96
        other parameters                       20                    80 B        80 B
        whole model                           212                   848 B       480 B
        compressed: estimated for one mask bit per weight and the non-zero values, or as held where that is smaller
        multiply-adds: for the example input as given; simulated sparse: of non-zero weights only, not a measured speed
    """
    if not isinstance(model, nn.Module):
        raise SparsebenchError(f"report needs a torch.nn.Module, not {type(model).__name__}")
    with undisturbed(model):
        inventory = take_inventory(model)
        counts: list[tuple[int, int]] | list[tuple[None, None]] = [(None, None)] * len(inventory.weights)
        if example_input is not None:
            counts = count_multiply_adds(model, inventory, example_input)
    layers = []
    for weight, (multiply_adds, sparse_multiply_adds) in zip(inventory.weights, counts, strict=True):
        number, element_size = weight.value.numel(), weight.value.element_size()
        held = number * element_size
        layers.append(
            LayerReport(
                name=weight.name,
                layer_type=" + ".join(weight.layer_types),
                shape=tuple(weight.value.shape),
                weights=number,
                zeros=number - weight.nonzeros,
                bytes=held,
                compressed_bytes=min(held, (number + 7) // 8 + weight.nonzeros * element_size),
                multiply_adds=multiply_adds,
                sparse_multiply_adds=sparse_multiply_adds,
            )
        )
    return Report(tuple(layers), inventory.other_parameters, inventory.other_bytes, inventory.buffer_bytes)


def _sum_if_known(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
