"""The named methods that are sparse from the first step on: static and dynamic sparse training."""

from __future__ import annotations

from collections.abc import Mapping

from sparsebench.sparsifiers.masked import schedules, scores
from sparsebench.sparsifiers.masked.allocation import allocation_by_name
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.regrowth import Regrowth, cosine, mean_momentum
from sparsebench.sparsifiers.masked.structures import structure_by_name
from sparsebench.sparsifiers.sparsifier import LayerChoice
from sparsebench.sparsifiers.units import Steps

__all__ = ["rigl", "set_training", "snfs", "static_sparse_training"]


def static_sparse_training(
    *,
    sparsity: float,
    allocation: str | Mapping[str, float] = "erdos-renyi-kernel",
    structure: str | int = "element",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """A random sparse network, trained as it is: the control of dynamic sparse training (Evci et al. 2020, arXiv 1911.11134).

    Args:
        sparsity: Fraction of the weights that are zero, in [0, 1], from `prepare` on.
        allocation: As in `magnitude_pruning`.
        structure: As in `magnitude_pruning`.
        layers: As in `magnitude_pruning`.
        seed: Seed of the draw.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> sparsifier = static_sparse_training(sparsity=0.8, allocation="uniform")
        >>> from torch import nn
        >>> sparsifier.prepare(nn.Linear(100, 10))
        >>> sparsifier.sparsity
        0.8
    """
    chosen = allocation_by_name(allocation, sparsity)
    return MaskedSparsifier(scores.random, chosen, schedules.one_shot(), "gone", structure_by_name(structure), layers, seed)


def set_training(
    *,
    sparsity: float,
    begin: Steps,
    end: Steps,
    frequency: Steps,
    drop_fraction: float = 0.3,
    allocation: str | Mapping[str, float] = "erdos-renyi-kernel",
    structure: str | int = "element",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """Sparse evolutionary training (SET, Mocanu et al. 2018, arXiv 1707.04780): the smallest weights move to random places.

    The network is sparse from the start, at random. At an update every layer drops the same fraction of its kept weights, those
    of smallest absolute value (the authors rank positive and negative ones apart), and grows as many, drawn by lot from all
    places that are free then. What is grown begins at zero (the authors': at random), without optimizer state.

    Args:
        sparsity: Fraction of the weights that are zero, in [0, 1], at every moment.
        begin: First update, in steps; at step 0 nothing moves.
        end: Last update, in steps, at least `begin`.
        frequency: Steps between updates, at least 1.
        drop_fraction: Fraction of a layer's kept weights that move at an update, in [0, 1].
        allocation: As in `magnitude_pruning`; the authors' is the Erdos-Renyi rule.
        structure: As in `magnitude_pruning`; no n:m.
        layers: As in `magnitude_pruning`.
        seed: Seed of the draws.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> sparsifier = set_training(sparsity=0.9, begin=100, end=7_500, frequency=100)
        >>> from torch import nn
        >>> sparsifier.prepare(nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)))
        >>> round(sparsifier.sparsity, 3)
        0.9
    """
    regrowth = Regrowth(schedules.constant(begin, end, frequency), scores.random, drop_fraction)
    return _dynamic(sparsity, regrowth, allocation, structure, layers, seed)


def rigl(
    *,
    sparsity: float,
    begin: Steps,
    end: Steps,
    frequency: Steps,
    drop_fraction: float = 0.3,
    allocation: str | Mapping[str, float] = "erdos-renyi-kernel",
    structure: str | int = "element",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """RigL (Evci et al. 2020, arXiv 1911.11134): the smallest weights move to where the gradient is largest.

    The network is sparse from the start, at random. At an update every layer drops a fraction of its kept weights, those of
    smallest absolute value, and grows as many where the dense gradient of that step is largest; the fraction falls along a cosine
    to 0 at `end`. What is grown begins at zero without optimizer state. Masks are chosen from the weights and gradients before
    the optimizer's step, which is then taken as at any other time (the authors skip it). No dense buffer is kept: backward
    computes dense gradients anyway, and they are read before they are masked.

    Args:
        sparsity: Fraction of the weights that are zero, in [0, 1], at every moment.
        begin: First update, in steps; at step 0 nothing moves.
        end: Last update, in steps, at least `begin`; the authors': three quarters of the training.
        frequency: Steps between updates, at least 1; the authors': 100.
        drop_fraction: Fraction of a layer's kept weights that move at an update, in [0, 1], before annealing (alpha).
        allocation: "erdos-renyi-kernel" or "uniform-dense-first" (their "uniform") are the authors'; also as in
            `magnitude_pruning`.
        structure: As in `magnitude_pruning`; no n:m.
        layers: As in `magnitude_pruning`.
        seed: Seed of the first masks.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> sparsifier = rigl(sparsity=0.9, begin=100, end=7_500, frequency=100)
        >>> from torch import nn
        >>> sparsifier.prepare(nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)))
        >>> round(sparsifier.sparsity, 3)
        0.9
    """
    times = schedules.constant(begin, end, frequency)
    regrowth = Regrowth(times, scores.gradient_magnitude, drop_fraction, cosine)
    return _dynamic(sparsity, regrowth, allocation, structure, layers, seed)


def snfs(
    *,
    sparsity: float,
    begin: Steps,
    end: Steps,
    frequency: Steps,
    drop_fraction: float = 0.3,
    momentum: float | None = None,
    allocation: str | Mapping[str, float] = "uniform",
    structure: str | int = "element",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """Sparse networks from scratch (SNFS, Dettmers and Zettlemoyer 2019, arXiv 1907.04840): weights move to large momentum.

    As `rigl`, with two differences: the score is the momentum, an average of the gradients of all weights, and what all layers
    dropped together is shared among them in proportion to the mean absolute momentum of their kept weights, so that layers
    change their sparsity while the whole keeps it. By its definition the method needs a dense momentum. It is the optimizer's,
    where that keeps one of every weight: SGD with momentum, Adam, AdamW, NAdam, RAdam and Adamax (their first moment) do, and
    then see the gradients of dropped weights too. Masks move after the step, and what an optimizer knows of a weight is
    forgotten when it comes back, not when it is dropped. Nothing is stored for it, and a step costs what RigL's does.

    With another optimizer, with a number for `momentum`, or once `mask_gradients()` was called (Lightning's callback does),
    after which the optimizer sees no gradients of dropped weights, the method keeps its own momentum, `m = momentum m +
    (1 - momentum) gradient`, zero at first: one more copy of the sparsified weights, updated at every step, and in saved states.
    For as long as a step may yet be undone (with a closure, with several optimizers, a fused one under GradScaler, or gradients
    masked by hand) there are two.

    Args:
        sparsity: Fraction of the weights that are zero, in [0, 1], at every moment.
        begin: First update, in steps; at step 0 nothing moves.
        end: Last update, in steps, at least `begin`.
        frequency: Steps between updates, at least 1.
        drop_fraction: Fraction of a layer's kept weights that move at an update, in [0, 1], before annealing.
        momentum: Coefficient of an average of its own, in [0, 1); None: the optimizer's average, or one of its own with 0.9 where
            that has none of dropped weights.
        allocation: Of the first masks, as in `magnitude_pruning`.
        structure: As in `magnitude_pruning`; no channels, which are not alike in different layers, and no n:m.
        layers: As in `magnitude_pruning`.
        seed: Seed of the first masks.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> sparsifier = snfs(sparsity=0.9, begin=100, end=7_500, frequency=100)
        >>> from torch import nn
        >>> sparsifier.prepare(nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)))
        >>> round(sparsifier.sparsity, 3)
        0.9
    """
    regrowth = Regrowth(
        schedules.constant(begin, end, frequency),
        scores.momentum_magnitude,
        drop_fraction,
        cosine,
        shares=mean_momentum,
        momentum=0.9 if momentum is None else momentum,
        borrows_momentum=momentum is None,
    )
    return _dynamic(sparsity, regrowth, allocation, structure, layers, seed)


def _dynamic(
    sparsity: float,
    regrowth: Regrowth,
    allocation: str | Mapping[str, float],
    structure: str | int,
    layers: LayerChoice,
    seed: int,
) -> MaskedSparsifier:
    """A network that is sparse at random from the start, and whose masks move."""
    chosen = allocation_by_name(allocation, sparsity)
    return MaskedSparsifier(
        scores.random, chosen, schedules.one_shot(), "gone", structure_by_name(structure), layers, seed, regrowth
    )
