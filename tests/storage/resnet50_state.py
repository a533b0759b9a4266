"""The state dict of a ResNet-50 (He et al. 2015, arXiv:1512.03385), named as in torchvision, with random weights."""

from __future__ import annotations

import torch

PARAMETERS = 25_557_032
BLOCKS = (3, 4, 6, 3)


def resnet50_state(sparsity: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Convolutions and the classifier are zero at random places, each weight with probability `sparsity`."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def weight(name: str, *shape: int) -> None:
        values = torch.randn(shape, generator=generator) / shape[0] ** 0.5
        state[name] = values * (torch.rand(shape, generator=generator) >= sparsity) + 0.0

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels, generator=generator)
        state[f"{name}.bias"] = torch.randn(channels, generator=generator)
        state[f"{name}.running_mean"] = torch.randn(channels, generator=generator)
        state[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(450_000)

    weight("conv1.weight", 64, 3, 7, 7)
    norm("bn1", 64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS):
        width = 64 << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for number, (out, inner, size) in enumerate([(width, channels, 1), (width, width, 3), (4 * width, width, 1)], 1):
                weight(f"{name}.conv{number}.weight", out, inner, size, size)
                norm(f"{name}.bn{number}", out)
            if block == 0:
                weight(f"{name}.downsample.0.weight", 4 * width, channels, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            channels = 4 * width
    weight("fc.weight", 1000, 2048)
    state["fc.bias"] = torch.randn(1000, generator=generator)
    return state
