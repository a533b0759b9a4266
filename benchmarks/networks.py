"""The networks that are measured, each with a batch of random data, an optimizer and a training step.

Times and sizes do not depend on what the data mean; accuracies are never measured here. Nothing but torch is imported: peers run
this file in environments of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Batch(NamedTuple):
    """Arguments of the network, and class indices as targets."""

    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor


class Network(NamedTuple):
    """A network that is measured.

    Attributes:
        title: Name and size, as the tables show it.
        build: Makes the network; random weights from torch's default generator.
        batch: Makes a batch of random data.
        optimizer: Makes the optimizer from parameters or parameter groups.
    """

    title: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    optimizer: Callable[[Any], torch.optim.Optimizer]


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over all targets."""
    return F.cross_entropy(model(*batch.inputs).flatten(0, -2), batch.targets.flatten())


class BasicBlock(nn.Module):
    """He et al. 2016 (arXiv:1512.03385), as for CIFAR, with a projection where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """He et al. 2016, as for ImageNet, the stride in the 3x3 convolution."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stages(block: type[BasicBlock] | type[Bottleneck], inputs: int, widths: list[int], blocks: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage, (width, number) in enumerate(zip(widths, blocks, strict=True)):
        for position in range(number):
            layers.append(block(inputs, width, 2 if stage > 0 and position == 0 else 1))
            inputs = width * block.expansion
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """Layers one after another. A class of its own: packages that add submodules to a network would break nn.Sequential."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def mlp() -> nn.Module:
    """LeNet-300-100."""
    return Classifier(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def resnet20() -> nn.Module:
    """ResNet-20 for 32x32 images."""
    return Classifier(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _stages(BasicBlock, 16, [16, 32, 64], [3, 3, 3]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).to(memory_format=torch.channels_last)


def resnet50() -> nn.Module:
    """ResNet-50 for 224x224 images and 1,000 classes."""
    return Classifier(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        _stages(Bottleneck, 64, [64, 128, 256, 512], [3, 4, 6, 3]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, 1000),
    ).to(memory_format=torch.channels_last)


class Attention(nn.Module):
    """Multi-head attention of separate linear layers: packed projections would hide their weights from most packages."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, memory: torch.Tensor, causal: bool = False) -> torch.Tensor:
        query, key, value = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, source in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """A layer of the encoder, or with `crossed` of the decoder; normalization before each part."""

    def __init__(self, width: int, heads: int, hidden: int, crossed: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        if crossed:
            self.norm2, self.cross_attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm3, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, causal=memory is not None)
        if memory is not None:
            x = x + self.cross_attention(self.norm2(x), memory)
        return x + self.down(F.relu(self.up(self.norm3(x))))


class Transformer(nn.Module):
    """Encoder and decoder (Vaswani et al. 2017, arXiv:1706.03762), one embedding shared by both and by the softmax."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.encoder = nn.ModuleList(TransformerLayer(width, heads, hidden, False) for _ in range(layers))
        self.decoder = nn.ModuleList(TransformerLayer(width, heads, hidden, True) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.softmax = nn.Linear(width, vocabulary, bias=False)
        self.softmax.weight = self.embedding.weight

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, x = (self.embedding(tokens) * self.scale + self.position[: tokens.shape[1]] for tokens in (source, target))
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.softmax(self.decoder_norm(x))


def _images(number: int, channels: int, size: int, classes: int) -> Batch:
    pixels = torch.randn(number, channels, size, size).to(memory_format=torch.channels_last)
    return Batch((pixels,), torch.randint(0, classes, (number,)))


def _sentences(vocabulary: int, number: int = 64) -> Batch:
    # Of 32 tokens each, the source and the target: 64 sentences are 2,048 target tokens.
    source, target, targets = (torch.randint(0, vocabulary, (number, 32)) for _ in range(3))
    return Batch((source, target), targets)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4)


NETWORKS = {
    "mlp": Network(
        "MLP 784-300-100-10, 0.27 M weights, batch 128",
        mlp,
        lambda: Batch((torch.randn(128, 784),), torch.randint(0, 10, (128,))),
        _sgd,
    ),
    "resnet20": Network(
        "ResNet-20, 0.27 M weights, 32 px, batch 128, channels_last", resnet20, lambda: _images(128, 3, 32, 10), _sgd
    ),
    "transformer-small": Network(
        "small Transformer, width 128, 3+3 layers, vocabulary 8,000, 2,048 target tokens",
        lambda: Transformer(128, 4, 512, 3, 8000, 64),
        lambda: _sentences(8000),
        _adam,
    ),
    "resnet50": Network(
        "ResNet-50, 25.6 M weights, 224 px, batch 16, channels_last", resnet50, lambda: _images(16, 3, 224, 1000), _sgd
    ),
    "transformer-base": Network(
        "Transformer base, 60 M weights, vocabulary 32,000, 2,048 target tokens",
        lambda: Transformer(512, 8, 2048, 6, 32000, 64),
        lambda: _sentences(32000),
        _adam,
    ),
}
# The same weights with little data, for measuring many packages within minutes: a dense step takes a second or less.
NETWORKS |= {
    "resnet50-short": NETWORKS["resnet50"]._replace(
        title="ResNet-50, 25.6 M weights, 64 px, batch 8", batch=lambda: _images(8, 3, 64, 1000)
    ),
    "transformer-base-short": NETWORKS["transformer-base"]._replace(
        title="Transformer base, 60 M weights, vocabulary 32,000, 128 target tokens", batch=lambda: _sentences(32000, 4)
    ),
}


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolution layers, by name: what peers that ask for layers are given."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
