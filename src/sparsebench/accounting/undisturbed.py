"""Looking at a model without leaving a trace."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode, without gradients, uncompiled; afterwards all is as it was.

    Put back are every module's training flag, every buffer, torch's default generators (those of the CPU and of the
    model's CUDA or XPU devices) and torch's switches for fused attention and the autocast cache. State that a forward
    method keeps in other attributes is not.

    Args:
        model: Any module.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with undisturbed(model):
        ...     model.training, torch.is_grad_enabled()
        (False, False)
        >>> model.training, torch.is_grad_enabled()
        (True, True)
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_generators(model))
        # A weight cast earlier and cached would not be recognised; one cast and cached here, without gradients, might be
        # used in training later in the same region.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        # In eval mode the transformer layers have a fused path that never calls the layers inside them.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # Compiled code ignores hooks added later. Nothing is compiled where dynamo, slow to import, never was.
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(_put_back_buffers, _copy_buffers(model))
        stack.callback(_put_back_flags, [(module, module.training) for module in model.modules()])
        # The flag itself rather than eval(), which models override to do more than can be undone.
        for module in model.modules():
            module.training = False
        yield


@contextmanager
def _generators(model: nn.Module) -> Iterator[None]:
    devices: dict[str, set[int]] = defaultdict(set)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type in ("cuda", "xpu"):
            devices[tensor.device.type].add(tensor.get_device())
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device_type, indices in devices.items():
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=device_type))
        yield


def _put_back_flags(flags: list[tuple[nn.Module, bool]]) -> None:
    for module, training in flags:
        module.training = training


_Buffer = tuple[nn.Module, str, "Tensor | None", "Tensor | None"]


def _copy_buffers(model: nn.Module) -> list[_Buffer]:
    return [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]


def _put_back_buffers(buffers: list[_Buffer]) -> None:
    for module, name, buffer, copy in buffers:
        module._buffers[name] = buffer
        # Only what changed is written, so that no graph built before is invalidated for nothing.
        if buffer is not None and copy is not None and not torch.equal(buffer, copy):
            buffer.copy_(copy)
