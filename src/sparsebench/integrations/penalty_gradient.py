"""The penalty in a training loop whose loss cannot be changed: its gradient enters where the optimizer steps."""

from __future__ import annotations

from typing import Any

import torch

from sparsebench.sparsifiers.attachment import Closure, StepArguments, unwrap, with_closure
from sparsebench.sparsifiers.sparsifier import Sparsifier

__all__ = ["PenaltyGradient"]


class PenaltyGradient:
    """A hook that adds the gradient of `sparsifier.penalty()` to the gradients of the loss just before each optimizer step.

    The gradients are those of `loss + penalty`: once for each step, however many batches were accumulated (the loss being their
    mean), and once after each evaluation of a closure. Gradients that GradScaler has not unscaled yet (fused optimizers unscale
    inside their step) get the penalty at the same scale. Under DistributedDataParallel every process adds the same gradient after
    the others were averaged. Norms that the loop clips are those of the loss alone, since clipping comes before the step.

    Args:
        sparsifier: Prepared. Attach it after this hook was made: hooks run in that order, and what is dropped gets no gradient.
        optimizer: Holds the parameters; a wrapper such as Accelerate's is looked through.

    Raises:
        SparsebenchError: Not an optimizer.

    Example:
        >>> import sparsebench
        >>> model = torch.nn.Linear(4, 1)
        >>> sparsifier = sparsebench.l0_regularization(penalty=0.1)
        >>> sparsifier.prepare(model)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> hook = PenaltyGradient(sparsifier, optimizer)
        >>> sparsifier.attach(optimizer)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> of_the_loss = model.log_alpha.grad.clone()
        >>> optimizer.step()
        >>> bool((model.log_alpha.grad > of_the_loss).all())
        True
    """

    def __init__(self, sparsifier: Sparsifier, optimizer: torch.optim.Optimizer) -> None:
        self._sparsifier = sparsifier
        self._optimizer = unwrap(optimizer)
        self._handle = self._optimizer.register_step_pre_hook(self._pre_hook)

    def detach(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _pre_hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments | None:
        # A closure computes gradients anew inside the step: what is added before it would be lost, or counted twice.
        wrapped = with_closure(args, kwargs, self._followed)
        if wrapped is None:
            self._add()
        return wrapped

    def _followed(self, closure: Closure) -> Closure:
        def followed() -> Any:
            loss = closure()
            self._add()
            return loss

        return followed

    def _add(self) -> None:
        with torch.enable_grad():
            penalty = self._sparsifier.penalty()
        if not penalty.requires_grad:
            return
        # Set by GradScaler where gradients are still scaled.
        scale = getattr(self._optimizer, "grad_scale", None)
        if scale is not None:
            penalty = penalty * scale.to(penalty)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        # Not backward(): it would call the hooks with which DistributedDataParallel gathers gradients of the loss.
        gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(penalty, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
