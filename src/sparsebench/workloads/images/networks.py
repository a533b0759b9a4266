"""The networks: LeNets, residual networks of the CIFAR type, torchvision's ResNets, and whatever timm has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest

__all__ = ["NETWORKS", "check_network_name", "make_network", "takes_any_shape", "takes_photographs"]

PHOTOGRAPH_DEPTHS = (18, 50)


def lenet_300_100(channels: int, size: int, classes: int) -> nn.Module:
    """Three linear layers (LeCun et al. 1998); 266,200 weights on MNIST."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size * size, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, classes)
    )


def lenet_5(channels: int, size: int, classes: int) -> nn.Module:
    """LeNet-5 as pruning papers have it (Caffe's): 20 and 50 filters of 5x5, 500 units; 430,500 weights on MNIST."""
    left = ((size - 4) // 2 - 4) // 2
    if left < 1:
        raise SparsebenchError(f"lenet-5 needs images of at least 16x16 pixels, these have {size}x{size}")
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * left * left, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters: every other pixel, new channels zero (He et al. 2016, A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        y = self.norm2(self.convolution2(F.relu(self.norm1(self.convolution1(x)))))
        return F.relu(y + shortcut)


class PreActivationBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions; a 1x1 convolution where the shape changes (Zagoruyko 2016).

    Between the convolutions there is dropout, of probability 0 until a recipe says another.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(0.0)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        y: torch.Tensor = self.convolution2(self.dropout(F.relu(self.norm2(self.convolution1(active)))))
        return y + kept


def _initialized(network: nn.Module) -> nn.Module:
    """Convolutions drawn as He et al. 2015 do, by the fan-out."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def cifar_resnet(depth: int) -> Callable[[int, int, int], nn.Module]:
    """ResNet of 6 n + 2 layers with 16, 32 and 64 channels (He et al. 2016, section 4.2); ResNet-20 has 268,336 weights."""

    def make(channels: int, size: int, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        inputs = 16
        for outputs in (16, 32, 64):
            for position in range((depth - 2) // 6):
                layers.append(BasicBlock(inputs, outputs, 2 if position == 0 and outputs > 16 else 1))
                inputs = outputs
        return _initialized(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)))

    return make


def wide_resnet(depth: int, width: int) -> Callable[[int, int, int], nn.Module]:
    """Wide ResNet of 6 n + 4 layers with 16, 32 and 64 channels times `width` (Zagoruyko and Komodakis 2016)."""

    def make(channels: int, size: int, classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
        inputs = 16
        for outputs in (16 * width, 32 * width, 64 * width):
            for position in range((depth - 4) // 6):
                layers.append(PreActivationBlock(inputs, outputs, 2 if position == 0 and outputs > 16 * width else 1))
                inputs = outputs
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        return _initialized(nn.Sequential(*layers))

    return make


def torchvision_resnet(depth: int) -> Callable[[int, int, int], nn.Module]:
    """A ResNet of torchvision's for large images, v1.5: the stride is in the 3x3 convolution.

    Batch norm's scales begin at 1. Where the last one of a block begins at 0 (Goyal et al. 2017, 5.1), nothing flows through the
    block at first, and pruning at initialization cannot tell its weights apart.
    """

    def make(channels: int, size: int, classes: int) -> nn.Module:
        try:
            from torchvision import models
        except ImportError as error:
            raise SparsebenchError(f"resnet-{depth} needs torchvision: pip install 'sparsebench[images]'") from error
        if channels != 3:
            raise SparsebenchError(f"resnet-{depth} takes images of 3 channels, these have {channels}")
        network: nn.Module = getattr(models, f"resnet{depth}")(num_classes=classes)
        return network

    return make


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    **{f"resnet-{depth}": cifar_resnet(depth) for depth in (8, 14, 20, 32, 56)},
    **{f"wrn-{depth}-{width}": wide_resnet(depth, width) for depth, width in ((16, 2), (22, 2), (28, 10))},
    **{f"resnet-{depth}": torchvision_resnet(depth) for depth in PHOTOGRAPH_DEPTHS},
}
"""Networks by name: each is made from the channels, height (= width) and classes of its images."""


def make_network(name: str, channels: int, size: int, classes: int) -> nn.Module:
    """A new network, its weights drawn from torch's default generator.

    Args:
        name: One of `NETWORKS`, or "timm." and the name of one of timm's.
        channels: Channels of its images.
        size: Their height and width.
        classes: Outputs.

    Raises:
        SparsebenchError: There is none of that name, or a package is missing.

    Example:
        >>> sum(p.numel() for p in make_network("lenet-300-100", 1, 28, 10).parameters() if p.ndim > 1)
        266200
    """
    if not name.startswith("timm."):
        check_network_name(name)
        return NETWORKS[name](channels, size, classes)
    try:
        import timm
    except ImportError as error:
        raise SparsebenchError(f"{name} needs timm: pip install 'sparsebench[timm]'") from error
    known = name[len("timm.") :]
    try:
        # Networks that are made for one size of image must be told it.
        own = timm.models.get_pretrained_cfg(known)
        sizes: dict[str, Any] = {"img_size": size} if own is not None and own.fixed_input_size else {}
        network: nn.Module = timm.create_model(known, pretrained=False, num_classes=classes, in_chans=channels, **sizes)
    except RuntimeError as error:
        raise SparsebenchError(f"timm {timm.__version__} has no model {known!r} ({error})") from error
    return network


def check_network_name(name: str) -> None:
    """Refuse a name that no network has; those of timm are checked when one is made."""
    if name not in NETWORKS and not name.startswith("timm."):
        raise SparsebenchError(f"unknown model {name!r}{nearest(name, NETWORKS)}; known: {', '.join(NETWORKS)}, timm.NAME")


def takes_any_shape(name: str) -> bool:
    """Whether a network averages over all places, so that images need not be square."""
    return name.startswith(("resnet-", "wrn-"))


def takes_photographs(name: str) -> bool:
    """Whether a network is for images of some 224 pixels: torchvision's and timm's are."""
    return name in {f"resnet-{depth}" for depth in PHOTOGRAPH_DEPTHS} or name.startswith("timm.")
