"""Pruning at initialization: masks from a few batches, before the first step of training."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.registry import nearest
from sparsebench.sparsifiers.attachment import refuse_wrapped
from sparsebench.sparsifiers.masked import initial_scores
from sparsebench.sparsifiers.masked.allocation import allocation_by_name
from sparsebench.sparsifiers.masked.choice import check_scores, choose_masks
from sparsebench.sparsifiers.masked.initial_scores import GraSP, InitialScore, LossFunction, Network
from sparsebench.sparsifiers.masked.structures import checked_groups, structure_by_name
from sparsebench.sparsifiers.selection import by_parameter, matrices_of, select_weights
from sparsebench.sparsifiers.sparsifier import LayerChoice

__all__ = ["check_at_least_one", "initialize_masks"]

NAMED: Mapping[str, InitialScore] = {
    "snip": initial_scores.snip,
    "grasp": GraSP(),
    "synflow": initial_scores.synflow,
    "magnitude": initial_scores.magnitude,
    "random": initial_scores.random,
}
WITHOUT_DATA = ("magnitude", "random")
SYNFLOW_ROUNDS = 100


def initialize_masks(
    model: nn.Module,
    loss_fn: LossFunction | None = None,
    batches: Iterable[object] = (),
    *,
    sparsity: float,
    score: str | InitialScore = "snip",
    rounds: int | None = None,
    allocation: str | Mapping[str, float] = "global",
    structure: str | int = "element",
    layers: LayerChoice = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Choose masks from a network as it is and a few batches; `fixed_masks` trains with them.

    In round k of n the sparsity is `1 - (1 - s)^(k / n)`, the scores are computed anew on the network that is left, and what was
    dropped stays dropped. All work is done on a copy: weights, gradients, buffers and mode of the model stay as they are, and so
    do torch's random generators, which begin at `seed` inside.

    Args:
        model: The model, in the mode (`train()` or `eval()`) in which its loss is to be looked at.
        loss_fn: Gives the loss, a scalar tensor, of (model, batch). Not needed by "magnitude" and "random".
        batches: Whatever loss_fn takes, read once: a few batches, not an endless loader.
        sparsity: Fraction of the weights to drop, in [0, 1].
        score: "snip" (Lee et al. 2019), "grasp" (Wang et al. 2020, temperature 200; `GraSP(temperature)` for another), "synflow"
            (Tanaka et al. 2020), the controls "magnitude" and "random", or a function from a `Network` to scores by name.
        rounds: At least 1; None for the authors': 100 for "synflow", 1 for all others.
        allocation: As in `magnitude_pruning`; "global" is the authors'.
        structure: As in `magnitude_pruning`.
        layers: As in `magnitude_pruning`.
        seed: Seed of dropout and other noise inside, and of the score "random".

    Returns:
        Bool masks by parameter name, True where kept.

    Raises:
        SparsebenchError: An argument is out of range, the loss does not depend on the model, or scores are not finite.

    Example:
        >>> model = nn.Linear(10, 2)
        >>> batch = torch.randn(8, 10), torch.randint(2, (8,))
        >>> def loss_fn(model, batch):
        ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> masks = initialize_masks(model, loss_fn, [batch], sparsity=0.5, score="snip")
        >>> int(masks["weight"].sum())
        10
    """
    refuse_wrapped(model)
    name, compute = _score(score)
    count = _rounds(rounds, name)
    chosen_structure, chosen_allocation = structure_by_name(structure), allocation_by_name(allocation, sparsity)
    chosen_structure.check_allocation(chosen_allocation)
    if name not in WITHOUT_DATA and loss_fn is None:
        raise SparsebenchError(f"loss_fn: the score {name!r} needs one, and batches")
    copied = copy.deepcopy(model)
    copied.zero_grad(set_to_none=True)
    selected = select_weights(copied, layers)
    matrices = {matrix.name: matrix for matrix in matrices_of(selected)}
    groups = checked_groups(chosen_allocation, chosen_structure, list(matrices.values()))
    masks = {key: torch.ones_like(matrix.tensor, dtype=torch.bool) for key, matrix in matrices.items()}
    with _own_random_state(copied, seed):
        held = list(batches)  # a loader that shuffles draws from torch's generator
        if not held and name not in WITHOUT_DATA:
            raise SparsebenchError(f"batches: the score {name!r} needs at least one")
        for done in range(1, count + 1):
            for weight in selected:
                weight.parameter.requires_grad_(True)
            with torch.enable_grad():
                weights = {weight.name: weight.parameter for weight in selected}
                scores = compute(Network(copied, weights, loss_fn, held, seed))
            for weight in selected:
                check_scores(weight.name, scores.get(weight.name), weight.parameter.shape, f"in round {done}")
            for group in groups:
                members = [matrices[key] for key in group.names]
                own = group.sparsity if done == count else 1.0 - (1.0 - group.sparsity) ** (done / count)
                parts = [matrix.part(scores[matrix.weight.name]) for matrix in members]
                if done == 1 and 0.0 < group.sparsity < 1.0 and len(members) > 1:
                    _warn_of_silence(group.names, parts)
                kept = choose_masks(chosen_structure, members, parts, [masks[key] for key in group.names], own)
                masks.update(zip(group.names, kept, strict=True))
            with torch.no_grad():
                for key, matrix in matrices.items():
                    matrix.tensor.mul_(masks[key])
    whole = by_parameter(list(matrices.values()), list(masks.values()))
    return {key: mask.clone(memory_format=torch.contiguous_format) for key, mask in whole.items()}


def _warn_of_silence(names: Sequence[str], scores: Sequence[torch.Tensor]) -> None:
    """Warn where all scores of a matrix are 0 in one ranking with others, which then drops or keeps it whole."""
    silent = [name for name, score in zip(names, scores, strict=True) if not score.any()]
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        warnings.warn(
            f"all scores of {', '.join(silent[:3])}{more} are 0, so that ties decide about them: nothing depends on these "
            "weights yet, as where they or the scale of a batch norm behind them begin at 0",
            UserWarning,
            stacklevel=3,
        )


def _score(score: str | InitialScore) -> tuple[str, InitialScore]:
    if callable(score):
        return getattr(score, "__name__", type(score).__name__), score
    if not isinstance(score, str) or score not in NAMED:
        question = nearest(score, NAMED) if isinstance(score, str) else ""
        names = ", ".join(repr(name) for name in NAMED)
        raise SparsebenchError(f"score={score!r}{question}: expected {names}, or a function from a Network to scores")
    return score, NAMED[score]


def _rounds(rounds: int | None, name: str) -> int:
    if rounds is None:
        return SYNFLOW_ROUNDS if name == "synflow" else 1
    check_at_least_one("rounds", rounds)
    return rounds


def check_at_least_one(name: str, value: int) -> None:
    """Refuse what is no number of rounds or batches.

    Raises:
        SparsebenchError: Not an integer of at least 1; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SparsebenchError(f"{name}={value!r}: expected an integer of at least 1")


@contextlib.contextmanager
def _own_random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Torch's generators begin at a seed inside, and are put back."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
