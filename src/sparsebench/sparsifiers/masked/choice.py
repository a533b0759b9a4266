"""Choosing masks: scores are asked for, checked, and the units of highest score are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked.masks import top_scores
from sparsebench.sparsifiers.masked.placement import as_spread
from sparsebench.sparsifiers.masked.scores import LayerState, Score
from sparsebench.sparsifiers.masked.structures import Element, Structure
from sparsebench.sparsifiers.selection import WeightMatrix

__all__ = ["best_units", "check_scores", "checked_score", "choose_masks", "kept_units", "scores_of"]


def checked_score(score: Score, layer: LayerState, step: int) -> torch.Tensor:
    """A layer's scores, refused where they cannot be ranked.

    Raises:
        SparsebenchError: As `check_scores`.
    """
    scores = score(layer)
    check_scores(layer.name, scores, layer.weight.shape, f"at step {step}")
    return scores


def scores_of(
    score: Score, matrices: Sequence[WeightMatrix], masks: Sequence[torch.Tensor], seed: int, step: int
) -> list[torch.Tensor]:
    """The scores of weights as they are, with their masks.

    Raises:
        SparsebenchError: As `check_scores`.
    """
    layers = [
        LayerState(
            matrix.name,
            matrix.tensor.detach(),
            as_spread(mask, matrix.tensor),
            matrix.gradient,
            keyed_generator(seed, step, matrix.name),
        )
        for matrix, mask in zip(matrices, masks, strict=True)
    ]
    return [checked_score(score, layer, step) for layer in layers]


def check_scores(name: str, scores: object, shape: Sequence[int], when: str) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        SparsebenchError: Not floating-point numbers of the weight's shape, or NaN or infinity among them; minus infinity, the
            lowest score, is allowed.
    """
    if not isinstance(scores, torch.Tensor) or scores.shape != tuple(shape) or not scores.is_floating_point():
        what = f"{scores.dtype} tensor of shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else repr(scores)
        raise SparsebenchError(
            f"the score of {name!r} is a {what}: expected a tensor of floating-point numbers of shape {tuple(shape)}"
        )
    if scores.numel() and not bool(scores.amax() < math.inf):
        raise SparsebenchError(f"the score of {name!r} is not finite {when}")


def choose_masks(
    structure: Structure,
    weights: Sequence[WeightMatrix],
    scores: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor] | None,
    sparsity: float,
) -> list[torch.Tensor]:
    """Masks of weights that share a budget.

    Args:
        structure: The units that are kept or dropped together.
        weights: The weights.
        scores: Their scores, highest kept.
        masks: Masks, bool or in the weights' dtypes, outside of which nothing may be kept; None where every weight competes.
        sparsity: Fraction of the units to drop, in [0, 1].

    Returns:
        Bool masks, True where kept.
    """
    layers = [matrix.layer for matrix in weights]
    units = [structure.reduce(score, layer) for score, layer in zip(scores, layers, strict=True)]
    candidates = None
    if masks is not None:
        candidates = [kept_units(structure, mask, matrix) for mask, matrix in zip(masks, weights, strict=True)]
    kept = structure.choose(units, candidates, sparsity)
    return [structure.expand(own, score.shape, layer) for own, score, layer in zip(kept, scores, layers, strict=True)]


def kept_units(structure: Structure, mask: torch.Tensor, matrix: WeightMatrix) -> torch.Tensor:
    """Over units, nonzero where a mask, bool or in the weight's dtype, keeps anything of them."""
    if isinstance(structure, Element):
        return mask
    units = structure.reduce(mask, matrix.layer)
    return units if units.dtype == torch.bool else units > 0


def best_units(scores: torch.Tensor, candidates: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` candidates of highest score, a bool tensor over units; of equal ones the first in row-major order."""
    return top_scores([scores], count, [candidates])[0]
