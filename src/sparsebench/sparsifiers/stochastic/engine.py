"""The stochastic engine: converts layers, ramps the penalty, folds a threshold into the weights for evaluation and for good."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.attachment import Attachment, Optimizers, refuse_wrapped
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.named_weights import check_finite, dropped_fraction, zero_dropped
from sparsebench.sparsifiers.ramp import Ramp
from sparsebench.sparsifiers.reminders import warn_of_missing_penalty, warn_of_unfinished
from sparsebench.sparsifiers.saved_state import check_saved_state, describe
from sparsebench.sparsifiers.selection import SelectedWeight, select_weights, warn_of_dense
from sparsebench.sparsifiers.sparsifier import EvaluationPoint, LayerChoice
from sparsebench.sparsifiers.stochastic.distribution import Distribution
from sparsebench.sparsifiers.stochastic.folding import fold, fold_copy
from sparsebench.sparsifiers.stochastic.layers import (
    Activity,
    auxiliary_name,
    convert,
    convertible_types,
    restore,
    samples_outputs,
)
from sparsebench.sparsifiers.stochastic.refusals import (
    refuse_foreign_users,
    refuse_sharded,
    refuse_unconvertible,
    refuse_weight_readers,
)
from sparsebench.sparsifiers.stochastic.summed_divergence import summed_divergence

__all__ = ["StochasticSparsifier"]

BYPASSED = (
    "something reads its weights without calling it, it is not used or not in every step (stochastic depth), or the model is in "
    "eval() mode; leave it out with layers="
)


class StochasticSparsifier:
    """A Sparsifier that learns a distribution over each weight and drops the weights that turn out to be noise.

    Sparsity is what the method finds: it is reported, never promised. Evaluated outside `points()`, the network uses the means of
    all weights (variational dropout) or all weights times their evaluation gates (L0).

    Args:
        distribution: The distribution over each weight.
        penalty: What multiplies the summed divergence once the ramp is done, at least 0.
        ramp: How the penalty rises from 0.
        thresholds: One evaluation point each; the first is the one that `masks`, `sparsity` and `finalize` use.
        layers: Which layers; see `Sparsifier.prepare`.
        seed: Seed of the auxiliary parameters' start.

    Raises:
        SparsebenchError: A penalty or threshold is out of range.
    """

    def __init__(
        self,
        distribution: Distribution,
        penalty: float,
        ramp: Ramp,
        thresholds: tuple[float | None, ...],
        layers: LayerChoice = None,
        seed: int = 0,
    ) -> None:
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not 0.0 <= penalty < math.inf:
            raise SparsebenchError(f"penalty={penalty!r}: expected a finite number of at least 0")
        if not thresholds or not all(_fits(threshold, distribution) for threshold in thresholds):
            raise SparsebenchError(f"thresholds={thresholds!r}: expected one or more finite numbers")
        self._distribution = distribution
        self._penalty = float(penalty)
        self._ramp = ramp
        self._thresholds = tuple(None if threshold is None else float(threshold) for threshold in thresholds)
        self._layers = layers
        self._seed = seed
        self._step = 0
        self._model: nn.Module | None = None
        self._selected: list[SelectedWeight] = []
        self._attachment: Attachment | None = None
        # Whether the penalty was asked for since the last step, and whether that was found missing once.
        self._asked = self._reminded = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy of an optimizer has no hooks, so a copy of its sparsifier is attached to nothing.
        return self.__dict__ | {"_attachment": None}

    @property
    def step(self) -> int:
        """Completed optimizer steps since `prepare`."""
        return self._step

    @property
    def sparsity(self) -> float:
        """Fraction in [0, 1] of the chosen weights that would be dropped now, at the first threshold."""
        return dropped_fraction(self.masks().values())

    def prepare(self, model: nn.Module) -> None:
        """Convert the chosen layers of `model` and add their auxiliary parameters.

        Raises:
            SparsebenchError: A pattern matches no layer, nothing can be converted, the model is wrapped already, or a chosen
                layer is part of one that reads weights without calling layers (`MultiheadAttention`, `nn.Transformer*`), shares
                its weight with a layer that cannot be converted, or is an embedding with `max_norm` or sparse gradients. The
                model is then as it was.
        """
        refuse_wrapped(model)
        self._detach()
        selected = select_weights(model, self._layers, convertible_types())
        refuse_weight_readers(model, selected, self._layers)
        refuse_foreign_users(model, selected)
        warn_of_dense(model, self._layers, convertible_types())
        for weight in selected:
            for holder in weight.holders:
                refuse_unconvertible(holder.name, holder.layer)
        for weight in selected:
            parameter = weight.parameter
            start = self._distribution.initial(parameter.detach(), keyed_generator(self._seed, weight.name))
            auxiliary = nn.Parameter(start, requires_grad=parameter.requires_grad)
            for holder in weight.holders:
                convert(holder.layer, self._distribution, holder.weight, auxiliary)
        self._selected, self._model, self._step = selected, model, 0

    def attach(self, optimizer: Optimizers) -> None:
        """Follow the steps of an optimizer, or of several; earlier ones are let go of.

        Raises:
            SparsebenchError: A chosen weight or its auxiliary parameter is in none, or weights are spread over processes (FSDP2).
        """
        self._prepared()
        needed = {selected.name: selected.parameter for selected in self._selected}
        auxiliary = {self._auxiliary_name(selected): self._auxiliary(selected) for selected in self._selected}
        refuse_sharded(needed)
        attachment = Attachment(optimizer, needed | auxiliary, after=self._after_step)
        self._detach()
        self._attachment = attachment
        identities = {id(parameter) for parameter in auxiliary.values()}
        groups = [group for own in attachment.optimizers for group in own.param_groups]
        if any(group.get("weight_decay") and any(id(p) in identities for p in group["params"]) for group in groups):
            warnings.warn(
                f"weight decay pulls {self._distribution.parameter} towards 0, which changes the method: make the optimizer from "
                "parameter_groups(), which leaves it out",
                UserWarning,
                stacklevel=2,
            )

    def parameter_groups(self, lr: float, auxiliary_lr_scale: float = 1.0) -> list[dict[str, Any]]:
        """The network's parameters at `lr`; the auxiliary ones at `lr * auxiliary_lr_scale`, without weight decay."""
        model = self._prepared()
        auxiliary = [self._auxiliary(selected) for selected in self._selected]
        identities = {id(parameter) for parameter in auxiliary}
        own = [p for p in model.parameters() if p.requires_grad and id(p) not in identities]
        return [
            {"params": own, "lr": lr},
            {"params": auxiliary, "lr": lr * auxiliary_lr_scale, "weight_decay": 0.0},
        ]

    def penalty(self) -> torch.Tensor:
        """The summed divergence times the penalty's weight at this step, a scalar to add to the loss."""
        self._prepared()
        self._asked = True
        weight = self._penalty * self._ramp.progress(self._step)
        if weight == 0.0:
            return torch.zeros((), device=self._selected[0].parameter.device)
        weights = [selected.parameter for selected in self._selected]
        auxiliaries = [self._auxiliary(selected) for selected in self._selected]
        return weight * summed_divergence(self._distribution, weights, auxiliaries)

    def training_work(self) -> dict[str, float]:
        """For each weight, the multiply-adds of the next step as multiples of those of a dense forward pass; see Sparsifier.

        Twice those of the dense training where means and variances of outputs are computed, as many where weights are sampled.
        """
        self._prepared()
        twice = {s.name for s in self._selected if self._distribution.sampled_outputs and samples_outputs(s.holders[0].layer)}
        return {s.name: 6.0 if s.name in twice else 3.0 for s in self._selected}

    def points(self) -> Iterator[EvaluationPoint]:
        """One point for each threshold.

        Raises:
            SparsebenchError: A weight or an auxiliary parameter is not finite.
        """
        self._prepared()
        self._check_finite()
        for threshold in self._thresholds:
            sparsity = dropped_fraction(self.masks(threshold).values())
            yield EvaluationPoint(sparsity, threshold, self._activation(threshold))

    @torch.no_grad()
    def masks(self, threshold: float | None = None) -> dict[str, torch.Tensor]:
        """Bool masks by parameter name at a threshold (the first of the thresholds where None), True where a weight is kept.

        Raises:
            SparsebenchError: The threshold is not finite, or the method has none.
        """
        self._prepared()
        at = self._threshold(threshold)
        return {s.name: self._distribution.kept(s.parameter, self._auxiliary(s), at) for s in self._selected}

    def mask_gradients(self) -> None:
        """Nothing: no weight is dropped while the network trains."""

    def apply_masks(self, other: nn.Module) -> None:
        """Zero in another model of the same parameter names what is dropped here, at the first threshold.

        Raises:
            SparsebenchError: `other` lacks a parameter, or its shape differs.
        """
        zero_dropped(other, self.masks())

    @torch.no_grad()
    def finalize(self, threshold: float | None = None) -> nn.Module:
        """Fold a threshold into the weights for good and make the layers ordinary ones again.

        Where the penalty has not its full weight yet it warns, as where `attach` was forgotten.

        Args:
            threshold: Log-alpha threshold; the first of the method's where None.

        Raises:
            SparsebenchError: A weight or an auxiliary parameter is not finite; the threshold is not, or the method has none; or
                an evaluation point is active.
        """
        model = self._prepared()
        at = self._threshold(threshold)
        self._refuse_inside_point("finalize()")
        self._check_finite()
        if self._penalty > 0.0 and self._ramp.remaining(self._step) > 0.0:
            warn_of_unfinished(self._step, self._ramp.end, f"the penalty has {self._ramp.progress(self._step):.3f} of its weight")
        self._fold(at)
        self._detach()
        for layer in list(self._layers_by_name().values()):
            restore(layer)
        self._selected, self._model = [], None
        return model

    @torch.no_grad()
    def finalize_copy(self, other: nn.Module) -> nn.Module:
        """Make of a copy of the model, an averaged one, say, what `finalize` makes of the model: ordinary layers, exact zeros.

        Its weights are its own, with its own auxiliary parameters; what is dropped is what the model drops now, at the first
        threshold. Call it before `finalize`.

        Args:
            other: A model with the same converted layers.

        Raises:
            SparsebenchError: It has other layers; nothing is changed then.
        """
        self._refuse_inside_point("finalize_copy()")
        fold_copy(other, self._distribution, self._selected, self.masks())
        return other

    def state_dict(self) -> dict[str, Any]:
        """The step, and a description of method, model and schedule; all else is in the model's own state."""
        self._prepared()
        self._check_finite()
        return {"description": self._description(), "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            SparsebenchError: The state belongs to another model, method or schedule.
        """
        self._prepared()
        check_saved_state(state, self._description())
        self._step = state["step"]

    def _after_step(self) -> None:
        self._refuse_inside_point("optimizer.step()")
        self._step += 1
        if not (self._asked or self._reminded) and self._penalty * self._ramp.progress(self._step - 1) > 0.0:
            self._reminded = True
            warn_of_missing_penalty(self._step)
        self._asked = False
        activities = list(self._activities())
        idle = [name for name, activity in activities if not activity.trained]
        if idle:
            raise SparsebenchError(f"layer {idle[0]!r} did not run in training step {self._step}: {BYPASSED}")
        for _, activity in activities:
            activity.trained = False
        self._check_finite()

    def _activation(self, threshold: float | None) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """What makes the model, for the length of a block, the network of a threshold."""

        @contextlib.contextmanager
        def active() -> Iterator[None]:
            self._refuse_inside_point("another evaluation point")
            # Folding in place keeps evaluation free of per-call work, and every reader of the weights sees the sparse ones.
            kept_aside = [selected.parameter.detach().clone() for selected in self._selected]
            try:
                self._fold(threshold)
                for _, activity in self._activities():
                    activity.folded, activity.evaluated = True, False
                yield
                ran = [activity.evaluated for _, activity in self._activities()]
                if any(ran) and not all(ran):
                    idle = next(name for name, activity in self._activities() if not activity.evaluated)
                    raise SparsebenchError(f"layer {idle!r} did not run in this evaluation: {BYPASSED}")
            finally:
                with torch.no_grad():
                    for selected, values in zip(self._selected, kept_aside, strict=True):
                        selected.parameter.copy_(values)
                for _, activity in self._activities():
                    activity.folded = False

        return active

    @torch.no_grad()
    def _fold(self, threshold: float | None) -> None:
        for selected in self._selected:
            weight, auxiliary = selected.parameter, self._auxiliary(selected)
            fold(self._distribution, weight, auxiliary, self._distribution.kept(weight, auxiliary, threshold))

    def _refuse_inside_point(self, what: str) -> None:
        if any(activity.folded for _, activity in self._activities()):
            raise SparsebenchError(f"{what} inside an active evaluation point: leave it first")

    def _threshold(self, threshold: float | None) -> float | None:
        """The threshold to use; the first of the method's where None."""
        if threshold is None:
            return self._thresholds[0]
        if not self._distribution.thresholded:
            raise SparsebenchError(f"threshold={threshold!r}: this method has no threshold to choose")
        if not _fits(threshold, self._distribution):
            raise SparsebenchError(f"threshold={threshold!r}: expected a finite number")
        return threshold

    def _layers_by_name(self) -> dict[str, nn.Module]:
        """The converted layers; one that holds several weights comes once."""
        return {holder.name: holder.layer for selected in self._selected for holder in selected.holders}

    def _activities(self) -> Iterator[tuple[str, Activity]]:
        for name, layer in self._layers_by_name().items():
            activity = layer.activity
            assert isinstance(activity, Activity)
            yield name, activity

    def _auxiliary(self, selected: SelectedWeight) -> nn.Parameter:
        auxiliary = getattr(selected.holders[0].layer, auxiliary_name(self._distribution, selected.holders[0].weight))
        assert isinstance(auxiliary, nn.Parameter)
        return auxiliary

    def _auxiliary_name(self, selected: SelectedWeight) -> str:
        layer, _, weight = selected.holders[0]
        return f"{layer}.{auxiliary_name(self._distribution, weight)}".lstrip(".")

    def _check_finite(self) -> None:
        named: list[tuple[str, torch.Tensor]] = []
        for selected in self._selected:
            named += [(selected.name, selected.parameter), (self._auxiliary_name(selected), self._auxiliary(selected))]
        check_finite(named, self._step)

    def _description(self) -> dict[str, Any]:
        return {
            "method": "stochastic",
            "distribution": describe(self._distribution),
            "penalty": self._penalty,
            "ramp": describe(self._ramp),
            "thresholds": list(self._thresholds),
            "seed": self._seed,
            "shapes": {selected.name: list(selected.parameter.shape) for selected in self._selected},
        }

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def _prepared(self) -> nn.Module:
        if self._model is None:
            raise SparsebenchError("call prepare(model) first; finalize() has ended it, where it was called")
        return self._model


def _fits(threshold: object, distribution: Distribution) -> bool:
    """Whether this can be a threshold of the distribution."""
    if not distribution.thresholded:
        return threshold is None
    return not isinstance(threshold, bool) and isinstance(threshold, Real) and math.isfinite(threshold)
