"""Scores of a whole network before its training: SNIP, GraSP, SynFlow, and the controls. Higher is kept.

An initial score is one function from a network to the scores of its weights by parameter name. The network is a copy that the
score may do with as it likes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator

__all__ = ["GraSP", "InitialScore", "LossFunction", "Network", "magnitude", "random", "snip", "synflow"]

LossFunction: TypeAlias = Callable[[nn.Module, Any], torch.Tensor]
"""The loss of a model on a batch, a scalar."""


@dataclass(frozen=True)
class Network:
    """What an initial score may look at, and change.

    Attributes:
        model: A copy of the model, what was dropped in earlier rounds at zero; in training mode if the model is.
        weights: The weights that compete, by parameter name.
        loss_fn: The loss of a model on a batch.
        batches: Batches of training data.
        seed: Seed of scores that draw random numbers.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    loss_fn: LossFunction | None
    batches: Sequence[Any]
    seed: int


InitialScore: TypeAlias = Callable[[Network], Mapping[str, torch.Tensor]]


def snip(network: Network) -> dict[str, torch.Tensor]:
    """How much the loss depends on each connection: `|weight gradient|` (SNIP, Lee et al. 2019, arXiv 1810.02340, eq. 6).

    The gradient is the mean over the batches. The authors divide by the sum over all weights, which changes no ranking.
    """
    gradients = _mean_gradients(network)
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in network.weights.items()}


@dataclass(frozen=True)
class GraSP:
    """How much the gradient's norm grows with each weight: `weight (H g)` (Wang et al. 2020, arXiv 2002.07376, eq. 8).

    g is the mean gradient of the loss over the batches and H its Hessian, both with respect to the weights that compete; `H g`
    comes from a second backward pass. The authors drop the highest of `-weight (H g)`, which is the same.

    Args:
        temperature: What the model's output is divided by, above 0; the authors': 200. Other than 1 it needs a model whose
            output is a tensor.

    Raises:
        SparsebenchError: The temperature is out of range.
    """

    temperature: float = 200.0

    def __post_init__(self) -> None:
        if (
            isinstance(self.temperature, bool)
            or not isinstance(self.temperature, (int, float))
            or not 0 < self.temperature < 1e30
        ):
            raise SparsebenchError(f"temperature={self.temperature!r}: expected a number above 0, such as 200")

    def __call__(self, network: Network) -> dict[str, torch.Tensor]:
        """The scores."""
        weights = list(network.weights.values())
        # Fused attention has no second derivative.
        with self._cooled(network.model), sdpa_kernel(SDPBackend.MATH):
            gradient = list(_mean_gradients(network).values())
            products = [torch.zeros_like(weight) for weight in weights]
            for batch in network.batches:
                own = torch.autograd.grad(_loss(network, batch), weights, create_graph=True, allow_unused=True)
                along = sum((part * fixed).sum() for part, fixed in zip(own, gradient, strict=True) if part is not None)
                if not isinstance(along, torch.Tensor) or not along.requires_grad:
                    continue  # a loss that is linear in the weights has no curvature
                second = torch.autograd.grad(along, weights, allow_unused=True)
                for product, part in zip(products, second, strict=True):
                    if part is not None:
                        product += part / len(network.batches)
        named = zip(network.weights.items(), products, strict=True)
        return {name: weight.detach() * product for (name, weight), product in named}

    @contextlib.contextmanager
    def _cooled(self, model: nn.Module) -> Iterator[None]:
        def divide(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor):
                raise SparsebenchError(
                    f"temperature={self.temperature!r} divides the model's output, which is a {type(output).__name__}: "
                    "expected a model whose output is a tensor, or temperature=1"
                )
            return output / self.temperature

        if self.temperature == 1:
            yield
            return
        handle = model.register_forward_hook(divide)
        try:
            yield
        finally:
            handle.remove()


def synflow(network: Network) -> dict[str, torch.Tensor]:
    """The flow through each weight: `|dR/dw w|` with R the summed output of the network of absolute values on an input of ones.

    SynFlow (Tanaka et al. 2020, arXiv 2006.05467, eq. 3 and algorithm 1). No data is used but the inputs' shapes, of one example;
    normalization is in evaluation mode, arithmetic in float64. Biases and running means are zero, as in eq. 3 (the authors'
    program has their absolute values). Then all layers of a chain have the same sum of scores, so that dropping little at a time
    (100 rounds) never empties one as long as enough weights are kept; with biases this does not hold.
    """
    arguments, options = _inputs_of_ones(network)
    model = network.model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                own = name.rpartition(".")[2]
                tensor.mul_(0.0 if "bias" in own or own == "running_mean" else 1.0).abs_()
    flow = sum(output.sum() for output in _tensors(model(*arguments, **options)))
    if not isinstance(flow, torch.Tensor) or not flow.requires_grad:
        raise SparsebenchError("synflow: the model's output holds no tensor that depends on its weights")
    gradients = torch.autograd.grad(flow, list(network.weights.values()), allow_unused=True)
    named = zip(network.weights.items(), gradients, strict=True)
    return {name: torch.zeros_like(weight) if g is None else (g * weight.detach()).abs() for (name, weight), g in named}


def magnitude(network: Network) -> dict[str, torch.Tensor]:
    """The absolute value of each weight: one-shot magnitude pruning."""
    return {name: weight.detach().abs() for name, weight in network.weights.items()}


def random(network: Network) -> dict[str, torch.Tensor]:
    """Uniform random numbers: the control that every other score must beat."""
    return {
        name: torch.rand(weight.shape, generator=keyed_generator(network.seed, "initial", name)).to(weight.device)
        for name, weight in network.weights.items()
    }


def _mean_gradients(network: Network) -> dict[str, torch.Tensor]:
    weights, used = list(network.weights.values()), False
    totals = [torch.zeros_like(weight) for weight in weights]
    for batch in network.batches:
        for total, gradient in zip(totals, torch.autograd.grad(_loss(network, batch), weights, allow_unused=True), strict=True):
            if gradient is not None:
                used = True
                total += gradient / len(network.batches)
    if not used:
        raise SparsebenchError(
            "loss_fn: the loss does not depend on the weights of the model that loss_fn(model, batch) is given"
        )
    return dict(zip(network.weights, totals, strict=True))


def _loss(network: Network, batch: Any) -> torch.Tensor:
    assert network.loss_fn is not None
    loss = network.loss_fn(network.model, batch)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise SparsebenchError(f"loss_fn gave a {what}: expected loss_fn(model, batch) to give the loss, a scalar tensor")
    if not loss.requires_grad:
        raise SparsebenchError(
            "loss_fn: the loss does not depend on the weights of the model that loss_fn(model, batch) is given"
        )
    return loss


class _Seen(BaseException):
    pass


def _inputs_of_ones(network: Network) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Ones in the shape of the inputs that the loss gives the model, one example."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Seen

    assert network.loss_fn is not None
    handle = network.model.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    try:
        network.loss_fn(network.model, network.batches[0])
    except _Seen:
        args, kwargs = seen[0]
        return tuple(_ones(value) for value in args), {name: _ones(value) for name, value in kwargs.items()}
    finally:
        handle.remove()
    raise SparsebenchError("loss_fn: expected loss_fn(model, batch) to call the model that it is given")


def _ones(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_floating_point() or value.dim() == 0:
        raise SparsebenchError(
            f"synflow gives the model ones for inputs: expected floating-point tensors of examples, got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    return torch.ones((1, *value.shape[1:]), dtype=torch.float64, device=value.device)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
