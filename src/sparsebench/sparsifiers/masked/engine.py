"""The masked engine: keeps dropped weights at exactly zero, and chooses anew which they are when the schedule says so."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.attachment import Attachment, Optimizers, refuse_wrapped
from sparsebench.sparsifiers.distributed import several_processes, verify_same_masks
from sparsebench.sparsifiers.masked.allocation import Allocation, Group
from sparsebench.sparsifiers.masked.borrowed_momentum import BorrowedMomentum, movement_with, own_movement
from sparsebench.sparsifiers.masked.choice import choose_masks, scores_of
from sparsebench.sparsifiers.masked.masked_weights import MaskedWeights
from sparsebench.sparsifiers.masked.movement import Movement, Mover
from sparsebench.sparsifiers.masked.optimizer_state import kept_throughout, treats_weights_alone
from sparsebench.sparsifiers.masked.placement import refuse_meta, refuse_unshardable
from sparsebench.sparsifiers.masked.regrowth import Regrowth
from sparsebench.sparsifiers.masked.saved_masks import read_masks, write_masks
from sparsebench.sparsifiers.masked.schedules import Schedule
from sparsebench.sparsifiers.masked.scores import Score, of_weight_alone, random, show_network
from sparsebench.sparsifiers.masked.structures import Element, Structure, all_but, checked_groups
from sparsebench.sparsifiers.masked.trained_network import warn_of_random_masks
from sparsebench.sparsifiers.named_weights import dropped_fraction, zero_dropped
from sparsebench.sparsifiers.reminders import warn_of_unfinished
from sparsebench.sparsifiers.saved_state import check_saved_state, describe, full_name
from sparsebench.sparsifiers.selection import by_parameter, matrices_of, select_weights, shapes_of, warn_of_dense
from sparsebench.sparsifiers.sparsifier import EvaluationPoint, LayerChoice

__all__ = ["MaskedSparsifier", "Policy"]

Policy = Literal["gone", "returning"]

# Steps between two looks for weights that are not finite: after one that is not, hardly any is at the next step.
FINITE_EVERY = 8


class MaskedSparsifier:
    """A Sparsifier composed of a score, an allocation, a structure, a schedule and a policy.

    Parameters of the model stay ordinary parameters; nothing is added to its forward pass. Dropped weights are zero after
    `prepare` and after every step, and inside closures; their gradients reach no weight that is kept.

    Args:
        score: Which weights are worth keeping: a function from a LayerState to a tensor of scores, higher is kept.
        allocation: How much of the sparsity each layer bears.
        schedule: When masks are made anew, and how sparse they are by then.
        policy: "gone": a dropped weight never comes back. "returning": a dropped weight's value is kept aside and competes again
            at the next update (Zhu and Gupta 2017); what returns has its old value and no optimizer state.
        structure: The units that are kept or dropped together.
        layers: Which layers; see `Sparsifier.prepare`.
        seed: Seed of scores that draw random numbers.
        regrowth: How masks move after the schedule's only update, at step 0; None where they do not.

    Raises:
        SparsebenchError: An unknown policy, an allocation that the structure cannot have, or a regrowth that does not go with
            the rest.

    Example:
        >>> from sparsebench.sparsifiers.masked import allocation, schedules, scores
        >>> model = nn.Linear(10, 10)
        >>> sparsifier = MaskedSparsifier(scores.magnitude, allocation.Uniform(0.9), schedules.one_shot())
        >>> sparsifier.prepare(model)
        >>> int((model.weight != 0).sum())
        10
    """

    def __init__(
        self,
        score: Score,
        allocation: Allocation,
        schedule: Schedule,
        policy: Policy = "gone",
        structure: Structure | None = None,
        layers: LayerChoice = None,
        seed: int = 0,
        regrowth: Regrowth | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise SparsebenchError(f"policy={policy!r}: expected 'gone' or 'returning'")
        self._score = score
        self._allocation = allocation
        self._schedule = schedule
        self._policy = policy
        self._structure: Structure = structure or Element()
        self._structure.check_allocation(allocation)
        if regrowth is not None:
            regrowth.check_composition(policy, schedule, self._structure)
        self._regrowth = regrowth
        self._layers = layers
        self._seed = seed
        self._step = 0
        self._model: nn.Module | None = None
        self._as_bytes = False
        self._weights = MaskedWeights([], False, False)
        self._groups: list[Group] = []
        self._movement: Movement | BorrowedMomentum | None = None
        self._attachment: Attachment | None = None
        # Whether what an optimizer makes of the gradients of dropped weights stays with them.
        self._alone = False
        # Before this step nothing is to be done but to zero what is dropped; 0 where that is not known.
        self._busy_at = 0

    def __getstate__(self) -> dict[str, Any]:
        # A copy of an optimizer has no hooks, so a copy of its sparsifier is attached to nothing.
        return self.__dict__ | {"_attachment": None}

    @property
    def step(self) -> int:
        """Completed optimizer steps since `prepare`."""
        return self._step

    @property
    def sparsity(self) -> float:
        """Fraction in [0, 1] of the chosen weights that the masks drop now."""
        self._prepared()
        return dropped_fraction(self._weights.whole_masks())

    def keep_byte_masks(self) -> MaskedSparsifier:
        """Hold masks in a byte for each weight from here on, not in the weight's dtype: less memory, and slower products.

        Nothing else changes. Before or after `prepare`. Returns this sparsifier.

        Example:
            >>> from sparsebench import magnitude_pruning
            >>> sparsifier = magnitude_pruning(sparsity=0.9, begin=0, end=100, frequency=10).keep_byte_masks()
        """
        self._as_bytes = True
        self._weights.keep_bytes()
        return self

    def prepare(self, model: nn.Module) -> None:
        """Pick the layers of `model` and begin with full masks, or with the schedule's first where it updates at step 0.

        Raises:
            SparsebenchError: A pattern matches no layer, nothing can be made sparse, a layer cannot have the structure, or the
                model is wrapped already.
        """
        refuse_wrapped(model)
        self._detach()
        matrices = matrices_of(select_weights(model, self._layers))
        warn_of_dense(model, self._layers)
        self._groups = checked_groups(self._allocation, self._structure, matrices)
        self._model = model
        self._step = self._busy_at = 0
        self._weights = MaskedWeights(matrices, self._policy == "returning", self._as_bytes)
        self._movement = Movement(Mover(self._regrowth, self._structure, matrices, self._seed)) if self._regrowth else None
        if self._schedule.updates_at(0):
            refuse_meta(matrices)
            show_network(self._score, model)
            self._update()
            if self._score is random:
                warn_of_random_masks(model, self.sparsity)

    def attach(self, optimizer: Optimizers) -> None:
        """Follow the steps of an optimizer, or of several; earlier ones are let go of.

        Raises:
            SparsebenchError: A chosen weight is in none, or weights are spread over processes (FSDP2) and the method needs more
                than the rows of one, or processes have chosen different masks in `prepare`.
        """
        self._prepared()
        needed = {matrix.weight.name: matrix.weight.parameter for matrix in self._weights.matrices}
        plain = self._movement is None and isinstance(self._structure, Element)
        refuse_unshardable(self._weights.matrices, plain)
        attachment = Attachment(
            optimizer,
            needed,
            before=self._before_step,
            after=self._after_step,
            restore=self._weights.zero,
            evaluated=self._after_evaluation,
        )
        self._detach()
        self._attachment, self._alone = attachment, all(map(treats_weights_alone, attachment.optimizers))
        self._busy_at = 0
        if self._movement is not None:
            self._movement = movement_with(self._movement, attachment.optimizers)
        if several_processes() and self._step == 0 and self._schedule.updates_at(0) and not self._weights.spread:
            # Chosen before a wrapper made the weights the same everywhere; later ones are chosen from weights that are. Whole
            # here even where the weights are spread by now.
            verify_same_masks(self.masks())
        self._weights.place()

    def parameter_groups(self, lr: float, auxiliary_lr_scale: float = 1.0) -> list[dict[str, Any]]:
        """One group with all trainable parameters: masked methods have none of their own."""
        return [{"params": [p for p in self._prepared().parameters() if p.requires_grad], "lr": lr}]

    def penalty(self) -> torch.Tensor:
        """Zero: pruning adds nothing to the loss."""
        self._prepared()
        return torch.zeros((), device=self._weights.masks[0].device)

    def training_work(self) -> dict[str, float]:
        """For each weight, the multiply-adds of the next step as multiples of those of a dense forward pass; see Sparsifier.

        Three times the kept fraction; where the next step reads dense gradients, that of the weight counts in full.
        """
        self._prepared()
        dense_gradients = self._regrowth is not None and self._regrowth.reads_gradients(self._step + 1)
        work: dict[str, float] = {}
        for matrix, kept in zip(self._weights.matrices, self._weights.kept_fractions(), strict=True):
            own = (2.0 * kept + (1.0 if dense_gradients else kept)) / matrix.count
            work[matrix.weight.name] = work.get(matrix.weight.name, 0.0) + own
        return work

    def points(self) -> Iterator[EvaluationPoint]:
        """One point: the network as it is.

        Raises:
            SparsebenchError: A dropped weight is not zero, or a weight is not finite.
        """
        self._check_zeros()
        yield EvaluationPoint(self.sparsity, None, contextlib.nullcontext)

    def masks(self) -> dict[str, torch.Tensor]:
        """Copies of the masks, bool, by parameter name, True where a weight is kept; whole ones.

        Where weights are spread over processes (FSDP2) every process must call this, and all that reads masks.
        """
        self._prepared()
        return by_parameter(self._weights.matrices, [mask.bool() for mask in self._weights.whole_masks()])

    def apply_masks(self, other: nn.Module) -> None:
        """Zero in another model of the same parameter names what is dropped here.

        Raises:
            SparsebenchError: `other` lacks a parameter, or its shape differs.
        """
        zero_dropped(other, self.masks())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of dropped weights, as is useful where norms are clipped.

        What regrowth needs of the dense gradients is taken first: call it once the gradients of a step are complete, and after
        `GradScaler.unscale_`. Before every step it is done where it matters: for optimizers that mix what they know of weights,
        and scores that read gradients.
        """
        if isinstance(self._movement, BorrowedMomentum):
            # From here on the optimizer's momentum lacks dropped weights.
            self._movement, self._busy_at = own_movement(self._movement), 0
        if self._movement is not None:
            self._movement.before_step(self._weights.masks, self._step + 1, self._attachment)
        self._weights.mask_gradients()

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Let go of the optimizer and turn every zero into +0.0; the model is an ordinary sparse network from here on.

        It warns where the schedule is not at its end: `attach` was forgotten, or the training shorter than planned.

        Raises:
            SparsebenchError: A dropped weight is not zero, or a weight is not finite.
        """
        self._check_zeros()
        if any(self._schedule.sparsity(self._step, group.sparsity) < group.sparsity for group in self._groups):
            warn_of_unfinished(self._step, self._schedule.ramp.end, f"the sparsity is {self.sparsity:.3f}")
        self._detach()
        for weight in self._weights.weights():
            weight.add_(0.0)
        return self._prepared()

    def finalize_copy(self, other: nn.Module) -> nn.Module:
        """The same as `apply_masks`: layers are ordinary ones."""
        self.apply_masks(other)
        return other

    def state_dict(self) -> dict[str, Any]:
        """Step, masks (a bit for each weight), values kept aside, and a description of method, model and schedule.

        Random scores are drawn from generators made of the seed, the step and the layer's name, so there is no generator state.

        Raises:
            SparsebenchError: A dropped weight is not zero, or a weight is not finite.
        """
        self._check_zeros()
        saved = write_masks(self._weights.matrices, self._weights.whole_masks(), self._weights.whole_aside())
        moving = self._movement.state_dict() if self._movement else {}
        return {"description": self._description(), "step": self._step} | saved | moving

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state, and zero what it says is dropped.

        Raises:
            SparsebenchError: The state belongs to another model, method or schedule, or is damaged.
        """
        self._prepared()
        check_saved_state(state, self._description())
        masks, asides = read_masks(state, self._weights.matrices, self._policy == "returning")
        if self._movement is not None:
            if "momentum" in state:
                self._movement = own_movement(self._movement)
            self._movement.load_state_dict(state)
        self._step, self._busy_at = state["step"], 0
        self._weights.load(masks, asides or None)

    def _before_step(self) -> None:
        # What is here is paid for in every step, of small networks too, and by a processor that has just done something else.
        if self._alone and self._step + 1 < self._busy_at:
            return
        if isinstance(self._movement, BorrowedMomentum):
            return
        if self._movement is not None:
            self._movement.before_step(self._weights.masks, self._step + 1, self._attachment)
        if not self._alone or self._moves_at(self._step + 1):
            self._weights.mask_gradients()

    def _after_evaluation(self) -> None:
        if not isinstance(self._movement, BorrowedMomentum):
            self.mask_gradients()

    def _moves_at(self, step: int) -> bool:
        return self._schedule.updates_at(step) or (self._regrowth is not None and self._regrowth.updates_at(step))

    def _after_step(self) -> None:
        self._step += 1
        self._weights.zero()
        if self._step < self._busy_at:
            return
        if self._schedule.updates_at(self._step):
            self._update()
        elif self._step % FINITE_EVERY == 0 and not self._weights.spread:  # there all processes would have to talk to each other
            self._weights.check_finite(self._step)
        if self._movement is not None and (moved := self._movement.finish(self._weights.masks, self._step, self._attachment)):
            self._install(moved)
        self._busy_at = self._next_busy_step()

    def _next_busy_step(self) -> int:
        step = self._step + 1
        if self._movement is None or not self._movement.every_step:
            while step % FINITE_EVERY and not self._moves_at(step):
                step += 1
        return step

    @torch.no_grad()
    def _update(self) -> None:
        """Choose masks anew from the weights, the dropped ones brought back to compete where the policy says so."""
        self._weights.bring_back()
        self._weights.check_finite(self._step)
        by_name = {matrix.name: position for position, matrix in enumerate(self._weights.matrices)}
        chosen: dict[str, torch.Tensor] = {}
        for group in self._groups:
            chosen.update(self._choose(group, [by_name[name] for name in group.names]))
        self._install([chosen[matrix.name] for matrix in self._weights.matrices])

    def _install(self, chosen: Sequence[torch.Tensor]) -> None:
        optimizers = self._attachment.optimizers if self._attachment else ()
        self._weights.install(chosen, optimizers, self._movement.remembered if self._movement else kept_throughout)

    def _choose(self, group: Group, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """Masks for the tensors that share a budget."""
        matrices = [self._weights.matrices[position] for position in positions]
        masks = [self._weights.masks[position] for position in positions]
        sparsity = self._schedule.sparsity(self._step, group.sparsity)
        candidates = masks if self._policy == "gone" else None
        key = of_weight_alone(self._score)
        scores = functools.partial(scores_of, self._score, matrices, masks, self._seed, self._step)
        if self._weights.spread:
            from sparsebench.sparsifiers.masked.sharded import choose_sharded_masks

            kept = choose_sharded_masks(matrices, scores(), candidates, sparsity)
        elif key is not None and isinstance(self._structure, Element):
            kept = all_but([matrix.tensor for matrix in matrices], candidates, sparsity, key)
        else:
            kept = choose_masks(self._structure, matrices, scores(), candidates, sparsity)
        return {matrix.name: mask for matrix, mask in zip(matrices, kept, strict=True)}

    def _check_zeros(self) -> None:
        self._weights.check_finite(self._step)
        self._weights.check_zeros(self._prepared())

    def _description(self) -> dict[str, Any]:
        """Plain values that say which method, model and schedule this is."""
        return {
            "method": "masked",
            "score": full_name(self._score),
            "allocation": describe(self._allocation),
            "structure": describe(self._structure),
            "schedule": describe(self._schedule),
            "policy": self._policy,
            "seed": self._seed,
            "shapes": {name: list(shape) for name, shape in shapes_of(self._weights.matrices).items()},
        } | ({"regrowth": self._regrowth.description()} if self._regrowth else {})

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def _prepared(self) -> nn.Module:
        if self._model is None:
            raise SparsebenchError("call prepare(model) first")
        return self._model
