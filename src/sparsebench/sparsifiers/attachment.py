"""The tie between a sparsifier and its optimizers: hooks before and after every step, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsebench.errors import SparsebenchError

__all__ = ["Attachment", "Optimizers", "StepArguments", "refuse_wrapped", "unwrap", "with_closure"]

Closure: TypeAlias = Callable[[], Any]
Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
"""The optimizer of a network, or several that share its parameters among them."""
StepArguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of `optimizer.step`, as its hooks get and may change them."""


def _nothing() -> None:
    """What is done where nothing is asked for."""


class Attachment:
    """Hooks on one optimizer, or on several, of which a step is complete once each has made one.

    Args:
        optimizers: A torch optimizer, or a wrapper that holds one as `optimizer` (as Accelerate's does); or several.
        needed: Parameters that the optimizers must hold, by name, but for frozen ones.
        after: Called after each completed step; one that GradScaler skips does not count.
        before: Called before each step of each optimizer, after the gradients were computed.
        restore: Called before each evaluation of a closure that an optimizer makes inside its step, and after steps of an
            optimizer that others have yet to complete.
        evaluated: Called after each evaluation.

    Attributes:
        certain: True in `before` alone, and there only where the step will be made with the gradients that are there now: no
            closure computes others, no GradScaler may skip it, and no second optimizer has a part in it.

    Raises:
        SparsebenchError: Not an optimizer, or a needed parameter is in none.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        needed: Mapping[str, nn.Parameter],
        *,
        after: Callable[[], None],
        before: Callable[[], None] = _nothing,
        restore: Callable[[], None] = _nothing,
        evaluated: Callable[[], None] = _nothing,
    ) -> None:
        self.optimizers = tuple(map(unwrap, optimizers if isinstance(optimizers, Sequence) else [optimizers]))
        if not self.optimizers:
            raise SparsebenchError("attach() expects a torch.optim.Optimizer, got none")
        held = {id(p) for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, parameter in needed.items() if parameter.requires_grad and id(parameter) not in held]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SparsebenchError(
                f"the optimizer does not hold {missing[0]!r}{more}: make it after prepare(), from model.parameters() or "
                "parameter_groups(), attach to all where there are several, or leave the layer out with layers="
            )
        self._before, self._after, self._restore, self._evaluated = before, after, restore, evaluated
        self.certain = False
        self._stepped: set[int] = set()  # identities of those that have made their part of the next step
        self._handles: list[RemovableHandle] = []
        for optimizer in self.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._pre_hook))
            self._handles.append(optimizer.register_step_post_hook(self._post_hook))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _pre_hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments | None:
        # A closure evaluates the network inside the step (LBFGS does so many times): what it reads and the gradients that it
        # leaves must be masked too. A hook after the step alone would come too late.
        wrapped = None if len(args) == 1 and not kwargs else with_closure(args, kwargs, self._wrapped)  # one: the optimizer
        self.certain = wrapped is None and len(self.optimizers) == 1 and getattr(optimizer, "found_inf", None) is None
        try:
            self._before()
        finally:
            self.certain = False
        return wrapped

    def _post_hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # GradScaler calls fused optimizers even when it found an infinity; they then do nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        if len(self.optimizers) > 1:
            self._stepped.add(id(optimizer))
            if len(self._stepped) < len(self.optimizers):
                self._restore()
                return
            self._stepped.clear()
        self._after()

    def _wrapped(self, closure: Closure) -> Closure:
        def masked() -> Any:
            self._restore()
            loss = closure()
            self._evaluated()
            return loss

        return masked


def with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], wrap: Callable[[Closure], Closure]) -> StepArguments | None:
    """The arguments of an optimizer's step with its closure wrapped; None where there is no closure."""
    if callable(kwargs.get("closure")):
        return args, kwargs | {"closure": wrap(kwargs["closure"])}
    # The optimizer itself is among the positional arguments.
    closures = [callable(value) and not isinstance(value, torch.optim.Optimizer) for value in args]
    if not any(closures):
        return None
    return tuple(wrap(value) if closure else value for value, closure in zip(args, closures, strict=True)), kwargs


def unwrap(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer inside Accelerate's and similar wrappers.

    Raises:
        SparsebenchError: There is none.
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, torch.optim.Optimizer):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SparsebenchError(f"attach() expects a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that was wrapped for many devices before `prepare`, and what is no model.

    Raises:
        SparsebenchError: The model, or a part of it, is wrapped by DistributedDataParallel or FSDP.
    """
    if not isinstance(model, nn.Module):
        raise SparsebenchError(f"expected a torch.nn.Module to make sparse, got {type(model).__name__}")
    for name, module in model.named_modules():
        if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel") or hasattr(module, "unshard"):
            where = f"{name!r}" if name else "the model"
            raise SparsebenchError(f"{where} is wrapped already ({type(module).__name__}): call prepare() before wrapping")
