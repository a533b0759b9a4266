"""The named methods, each a short composition with its paper."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.attachment import refuse_wrapped
from sparsebench.sparsifiers.dense import DenseBaseline
from sparsebench.sparsifiers.masked import schedules, scores
from sparsebench.sparsifiers.masked.allocation import allocation_by_name
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier, Policy
from sparsebench.sparsifiers.masked.held_masks import HeldAllocation, HeldLayers, HeldScore, by_matrix, check_masks
from sparsebench.sparsifiers.masked.structures import structure_by_name
from sparsebench.sparsifiers.ramp import Ramp
from sparsebench.sparsifiers.selection import select_weights, warn_of_dense
from sparsebench.sparsifiers.sparsifier import LayerChoice
from sparsebench.sparsifiers.stochastic.engine import StochasticSparsifier
from sparsebench.sparsifiers.stochastic.l0 import HardConcrete
from sparsebench.sparsifiers.stochastic.variational_dropout import Noise, VariationalDropout
from sparsebench.sparsifiers.units import Penalty, Steps

__all__ = [
    "dense",
    "fixed_masks",
    "freeze_masks",
    "l0_regularization",
    "magnitude_pruning",
    "one_shot_pruning",
    "random_pruning",
    "variational_dropout",
]

Shape = Literal["linear", "cubic"]
POWERS: Mapping[str, float] = {"linear": 1.0, "cubic": 3.0}


def dense() -> DenseBaseline:
    """No sparsity: the baseline, trained by the same loop."""
    return DenseBaseline()


def magnitude_pruning(
    *,
    sparsity: float,
    begin: Steps,
    end: Steps,
    frequency: Steps,
    allocation: str | Mapping[str, float] = "uniform",
    policy: Policy = "returning",
    initial_sparsity: float = 0.0,
    structure: str | int = "element",
    layers: LayerChoice = None,
) -> MaskedSparsifier:
    """Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878), as in Gale et al. (2019).

    From step `begin` to step `end` the sparsity rises as `s_f + (s_i - s_f) (1 - p)^3`; every `frequency` steps, and at `end`,
    the weights of smallest absolute value are dropped. Dropped weights keep their value until the next update and may come back.

    Args:
        sparsity: Final fraction of the weights that are zero, in [0, 1]; per layer exactly
            `floor(sparsity * weights + 0.5)` of them.
        begin: First update, in steps.
        end: Last update, in steps, at least `begin`.
        frequency: Steps between updates, at least 1.
        allocation: "uniform" (every layer alike), "uniform-dense-first" (every layer alike except the first one, which stays
            dense), "global" (one ranking over all layers), "erdos-renyi-kernel", or a map from layer pattern to sparsity,
            `sparsity` holding for the rest.
        policy: "returning" (the paper's) or "gone" (a dropped weight is lost; needs no memory for dropped values).
        initial_sparsity: Sparsity at `begin`, from 0 to `sparsity`; of layers that end with less, what they end with.
        structure: What is kept or dropped together, by its mean score: "element" (single weights), "block:4x4" (outputs x
            inputs, any size), "channel" (whole outputs), or "2:4" (any n:m of consecutive inputs, which fixes `sparsity` at
            1 - n / m). Counts are then of such units. In the matrix of a convolution input channels run fastest.
        layers: Which layers: None for all of a type that can be sparse (embeddings only where they are tied), name patterns, or a
            function of (name, module).

    Returns:
        The sparsifier, to be prepared and attached.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> sparsifier = magnitude_pruning(sparsity=0.9, begin=20_000, end=76_000, frequency=2_000)
        >>> sparsifier.prepare(nn.Linear(100, 10))
        >>> sparsifier.sparsity
        0.0
    """
    chosen = allocation_by_name(allocation, sparsity)
    schedule = _rising(sparsity, begin, end, frequency, initial_sparsity)
    return MaskedSparsifier(scores.magnitude, chosen, schedule, policy, structure_by_name(structure), layers)


def random_pruning(
    *,
    sparsity: float,
    begin: Steps,
    end: Steps,
    frequency: Steps,
    allocation: str | Mapping[str, float] = "uniform",
    policy: Policy = "gone",
    initial_sparsity: float = 0.0,
    structure: str | int = "element",
    layers: LayerChoice = None,
    seed: int = 0,
) -> MaskedSparsifier:
    """Random pruning, the control of Gale et al. (2019): the schedule of `magnitude_pruning`, weights drawn by lot.

    Args:
        sparsity: Final fraction of the weights that are zero, in [0, 1].
        begin: First update, in steps.
        end: Last update, in steps.
        frequency: Steps between updates.
        allocation: As in `magnitude_pruning`.
        policy: "gone" (cumulative: what was dropped stays dropped), or "returning" (drawn anew at every update).
        initial_sparsity: As in `magnitude_pruning`.
        structure: As in `magnitude_pruning`.
        layers: As in `magnitude_pruning`.
        seed: Seed of the draw.

    Example:
        >>> sparsifier = random_pruning(sparsity=0.5, begin=0, end=0, frequency=1)
        >>> sparsifier.prepare(nn.Linear(100, 10))
        >>> sparsifier.sparsity
        0.5
    """
    chosen = allocation_by_name(allocation, sparsity)
    schedule = _rising(sparsity, begin, end, frequency, initial_sparsity)
    return MaskedSparsifier(scores.random, chosen, schedule, policy, structure_by_name(structure), layers, seed)


def one_shot_pruning(
    *,
    sparsity: float,
    step: Steps = 0,
    allocation: str | Mapping[str, float] = "global",
    structure: str | int = "element",
    layers: LayerChoice = None,
) -> MaskedSparsifier:
    """Magnitude pruning at once, then fine-tuning: train, prune, train on (Han et al. 2015, arXiv 1506.02626, one round).

    Args:
        sparsity: Fraction of the weights that are zero from then on, in [0, 1].
        step: When, in steps; 0 is the moment of `prepare`: for a network that is trained already.
        allocation: As in `magnitude_pruning`.
        structure: As in `magnitude_pruning`.
        layers: As in `magnitude_pruning`.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> trained = nn.Linear(100, 10)
        >>> sparsifier = one_shot_pruning(sparsity=0.9)
        >>> sparsifier.prepare(trained)
        >>> int((trained.weight != 0).sum())
        100
    """
    chosen = allocation_by_name(allocation, sparsity)
    schedule = schedules.one_shot(step)
    return MaskedSparsifier(scores.magnitude, chosen, schedule, "gone", structure_by_name(structure), layers)


def fixed_masks(masks: Mapping[str, torch.Tensor]) -> MaskedSparsifier:
    """Hold given masks: of `initialize_masks`, of another training (a lottery ticket, with `rewind`), or of one's own.

    Args:
        masks: Bool masks by parameter name, True where a weight is kept, as `masks()` gives them. Other weights stay dense.

    Raises:
        SparsebenchError: They are no masks; `prepare` refuses those that do not fit the model.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> fixed_masks({"weight": torch.eye(2, dtype=torch.bool)}).prepare(model)
        >>> (model.weight != 0).tolist()
        [[True, False], [False, True]]
    """
    check_masks(masks)
    held = by_matrix({name: mask.clone() for name, mask in masks.items()})
    layers = HeldLayers(frozenset(masks))
    return MaskedSparsifier(HeldScore(held), HeldAllocation.of(held), schedules.one_shot(), "gone", layers=layers)


def freeze_masks(model: nn.Module, layers: LayerChoice = None) -> MaskedSparsifier:
    """Keep the zeros of an already sparse model through fine-tuning.

    Args:
        model: A model whose weights hold exact zeros; it is prepared here.
        layers: Which layers, as in `magnitude_pruning`.

    Returns:
        A sparsifier that is prepared: make the optimizer and call `attach`. A network without zeros is warned of.

    Example:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight[:, :2].detach())
        >>> freeze_masks(model).masks()["weight"]
        tensor([[False, False,  True,  True]])
    """
    refuse_wrapped(model)
    sparsifier = fixed_masks({selected.name: selected.parameter.detach() != 0 for selected in select_weights(model, layers)})
    warn_of_dense(model, layers)
    sparsifier.prepare(model)
    if sparsifier.sparsity == 0.0:
        warnings.warn("freeze_masks(): the network has no zeros to keep", UserWarning, stacklevel=2)
    return sparsifier


def variational_dropout(
    *,
    penalty: Penalty,
    begin: Steps = 0,
    end: Steps = 0,
    shape: Shape = "linear",
    thresholds: Sequence[float] = (3.0,),
    noise: Noise = "example",
    initial_log_sigma2: float = -10.0,
    layers: LayerChoice = None,
) -> StochasticSparsifier:
    """Sparse variational dropout (Molchanov et al. 2017, arXiv 1701.05369), with the ramps of Gale et al. (2019).

    Each weight gets a variance of its own; the KL term rewards variances so large that the weight carries nothing. Weights whose
    log alpha is at or above a threshold are dropped.

    Args:
        penalty: What multiplies the summed KL term once the ramp is done: 1/N with N training examples is the full bound.
        begin: Step at which the KL term's weight begins to rise from 0.
        end: Step at which it reaches `penalty`, at least `begin`.
        shape: "linear" or "cubic" rise.
        thresholds: Log-alpha thresholds, one evaluation point each; the first is the one that `masks`, `sparsity` and `finalize`
            use. 3.0 is Molchanov et al.'s.
        noise: "example": one draw per example and output unit, shared over the positions of a sequence [batch, ..., features],
            as in Gale et al.; "position": one per position; "weight": one per weight for the whole batch, the cheap mode (1.1 to
            1.4 times a dense step on networks where others take 2.2 to 2.8). Measured, test accuracy of "example" and of
            "weight": digits, three seeds, 97.9 and 97.7 % at 96 % sparsity; Fashion-MNIST with 784-300-100-10 units, two seeds,
            6,000 steps of 100 images, 86.7 and 88.0 % at 94 %, 85.1 and 86.6 % at 98 %. At the same penalty "weight" drops
            more.
        initial_log_sigma2: Log variance of every weight at the start.
        layers: Which layers: None for all of a type that can be sparse (embeddings only where they are tied), name patterns, or a
            function of (name, module).

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> model = nn.Linear(100, 10)
        >>> sparsifier = variational_dropout(penalty=1 / 60_000, begin=0, end=10_000)
        >>> sparsifier.prepare(model)
        >>> [name for name, _ in model.named_parameters()]
        ['weight', 'bias', 'log_sigma2']
    """
    distribution = VariationalDropout(initial_log_sigma2, noise)
    return StochasticSparsifier(distribution, penalty, _ramp(begin, end, shape), _as_tuple(thresholds), layers)


def l0_regularization(
    *,
    penalty: Penalty,
    begin: Steps = 0,
    end: Steps = 0,
    shape: Shape = "linear",
    initial_log_alpha: float = 2.197,
    layers: LayerChoice = None,
    seed: int = 0,
) -> StochasticSparsifier:
    """L0 regularization by hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312), with the ramps of Gale et al. (2019).

    Stochastic gradient descent needs a high rate of the gates' own (`parameter_groups(auxiliary_lr_scale=...)`): at the full
    penalty a gate that begins at 2.197 and that the loss does not hold open closes in about
    55 * (1 - momentum) / (penalty * rate of the gates) steps, which must be fewer than those before the rate falls. Adam's steps
    do not depend on the gradient's size.

    Args:
        penalty: What multiplies the expected number of open gates once the ramp is done.
        begin: Step at which the penalty begins to rise from 0.
        end: Step at which it reaches `penalty`, at least `begin`.
        shape: "linear" or "cubic" rise.
        initial_log_alpha: Mean of the gates' log alpha at the start (standard deviation 0.01): 2.197 is a dropout rate of 0.1.
        layers: As in `variational_dropout`.
        seed: Seed of the gates' start.

    Raises:
        SparsebenchError: An argument is out of range; the message names it.

    Example:
        >>> model = nn.Linear(100, 10)
        >>> sparsifier = l0_regularization(penalty=1 / 60_000)
        >>> sparsifier.prepare(model)
        >>> [name for name, _ in model.named_parameters()]
        ['weight', 'bias', 'log_alpha']
    """
    distribution = HardConcrete(initial_log_alpha)
    return StochasticSparsifier(distribution, penalty, _ramp(begin, end, shape), (None,), layers, seed)


def _ramp(begin: int, end: int, shape: str) -> Ramp:
    if shape not in POWERS:
        raise SparsebenchError(f"shape={shape!r}: expected 'linear' or 'cubic'")
    return Ramp(begin, end, POWERS[shape])


def _as_tuple(thresholds: Any) -> tuple[float, ...]:
    if isinstance(thresholds, str) or not isinstance(thresholds, Iterable):
        raise SparsebenchError(f"thresholds={thresholds!r}: expected a sequence of numbers, such as [3.0]")
    return tuple(thresholds)


def _rising(sparsity: float, begin: Steps, end: Steps, frequency: Steps, initial: float) -> schedules.Schedule:
    """A cubic from an initial sparsity that is not above the final one."""
    schedule = schedules.polynomial(begin, end, frequency, initial=initial)
    if initial > sparsity:
        raise SparsebenchError(f"initial_sparsity={initial!r}: expected at most the final sparsity, {sparsity!r}")
    return schedule
