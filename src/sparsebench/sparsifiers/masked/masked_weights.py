"""The weights of a model with their masks and what is kept aside of them, wherever the weights are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sparsebench.sparsifiers.masked.masking import check_dropped_are_zero, mask_gradients, multiply, set_aside
from sparsebench.sparsifiers.masked.masks import count_kept
from sparsebench.sparsifiers.masked.optimizer_state import clean_optimizer_state, kept_throughout
from sparsebench.sparsifiers.masked.placement import agree, any_sharded, local, place, whole
from sparsebench.sparsifiers.named_weights import check_finite
from sparsebench.sparsifiers.selection import WeightMatrix, by_parameter, check_still_there

__all__ = ["MaskedWeights"]


class MaskedWeights:
    """Weights whose dropped entries are zero; it knows nothing of why they were dropped.

    Weights are looked up anew each time: wrappers and loading may replace parameters.

    Args:
        matrices: The weights.
        returning: Whether values of dropped weights are kept aside.
        as_bytes: Whether masks take a byte for each weight, or what the weight takes. A product with bytes takes longer.

    Attributes:
        matrices: The weights.
        masks: Nonzero where a weight is kept, in its memory format, of the rows that this process holds.
        aside: Values of dropped weights, zero elsewhere, likewise; None where nothing was kept aside yet.
        spread: Whether masks are those of this process's rows: not before they were placed, even where weights already are.
    """

    def __init__(self, matrices: Sequence[WeightMatrix], returning: bool, as_bytes: bool) -> None:
        self.matrices, self._returning, self._as_bytes = list(matrices), returning, as_bytes
        self.masks = [self._mask_like(weight).fill_(1) for weight in self.weights()]
        self.aside: list[torch.Tensor] | None = None
        self.spread = False
        # What `zero` needs where a product for each weight is all there is to do: the parameters among which it is, its name
        # there, where its numbers lay, those numbers, its mask.
        self._products: list[tuple[dict[str, nn.Parameter | None], str, int, torch.Tensor, torch.Tensor]] = []
        # Kept fractions of the masks, counted when they are first asked for.
        self._kept: list[float] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Addresses mean nothing in a copy.
        return self.__dict__ | {"_products": []}

    def weights(self) -> list[torch.Tensor]:
        """The weights, or the rows of them that this process holds."""
        return [local(matrix.tensor) for matrix in self.matrices]

    def keep_bytes(self) -> None:
        """Masks take a byte for each weight from here on."""
        self._as_bytes = True
        self.place()

    def place(self) -> None:
        """Masks, and values kept aside, go where the weights have gone since."""
        tensors = [matrix.tensor for matrix in self.matrices]
        # Masks of a network that was prepared without memory (the meta device) are full.
        self.masks = [
            torch.ones_like(local(weight), dtype=mask.dtype, requires_grad=False) if mask.is_meta and not weight.is_meta else mask
            for mask, weight in zip(self.masks, tensors, strict=True)
        ]
        dtypes = [torch.uint8 if self._as_bytes else weight.dtype for weight in tensors]
        self.masks = [place(*each) for each in zip(self.masks, tensors, dtypes, strict=True)]
        if self.aside is not None:
            self.aside = [place(aside, weight, weight.dtype) for aside, weight in zip(self.aside, tensors, strict=True)]
        self.spread = any_sharded(self.matrices)
        whole_and_alike = not self.spread and all(
            matrix.count == 1 and mask.device.type == "cpu" and mask.dtype == weight.dtype
            for matrix, weight, mask in zip(self.matrices, tensors, self.masks, strict=True)
        )
        self._products = []
        if whole_and_alike:
            for matrix, weight, mask in zip(self.matrices, tensors, self.masks, strict=True):
                holder, numbers = matrix.weight.holders[0], weight.detach()
                self._products.append((holder.layer._parameters, holder.weight, numbers.data_ptr(), numbers, mask))

    def load(self, masks: Sequence[torch.Tensor], aside: list[torch.Tensor] | None) -> None:
        """Go over to whole masks and values that were saved."""
        self.masks, self.aside, self._kept = list(masks), aside, None
        self.place()
        self.zero()

    def zero(self) -> None:
        """Zero the dropped weights."""
        # Every step of every network comes here. A small one's is over in two milliseconds, and has left the processor's caches
        # full of other things: each object that is touched on the way costs more than it seems to alone.
        try:
            for parameters, name, address, numbers, mask in self._products:
                if parameters[name].data_ptr() != address:  # type: ignore[union-attr]
                    self.place()
                    break
                numbers.mul_(mask)
            else:
                if self._products:
                    return
        except KeyError:  # the layer has it no more, of which this complains
            self.place()
        with torch.no_grad():
            multiply(self.weights(), self.masks)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of dropped weights."""
        mask_gradients(self.matrices, self.masks)

    @torch.no_grad()
    def bring_back(self) -> None:
        """Give dropped weights the values that were kept aside, to compete."""
        if self.aside is not None:
            torch._foreach_add_(self.weights(), self.aside)

    @torch.no_grad()
    def install(
        self,
        chosen: Sequence[torch.Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        remembered: Callable[[torch.Tensor, torch.Tensor], None] = kept_throughout,
    ) -> None:
        """Go over to other masks, bool: zero what they drop, and let the optimizers forget all but what is `remembered`."""
        # In place wherever the weights are as they were: new memory costs more than the arithmetic.
        self.place()
        # Bytes convert ten times faster than bools.
        news = [new.view(torch.uint8) for new in chosen]
        if optimizers:
            for mask, new in zip(self.masks, news, strict=True):
                remembered(mask, new)
            stays = by_parameter(self.matrices, self.masks)
            parameters = {matrix.weight.name: matrix.weight.parameter for matrix in self.matrices}
            for optimizer in optimizers:
                clean_optimizer_state(optimizer, list(parameters.values()), list(stays.values()))
        for mask, new in zip(self.masks, news, strict=True):
            mask.copy_(new)
        self._kept = None
        if self._returning:
            weights = self.weights()
            self.aside = self.aside or [torch.empty_like(weight) for weight in weights]
            set_aside(weights, self.masks, self.aside)
        else:
            self.zero()

    def whole_masks(self) -> list[torch.Tensor]:
        """The masks, whole where weights are spread over processes: every process must call this."""
        return self._whole(self.masks)

    def whole_aside(self) -> list[torch.Tensor] | None:
        """The values kept aside, likewise."""
        return None if self.aside is None else self._whole(self.aside)

    def kept_fractions(self) -> list[float]:
        """Of each weight, the fraction that its mask keeps."""
        if self._kept is None:
            self._kept = [count_kept(mask) / max(mask.numel(), 1) for mask in self.whole_masks()]
        return self._kept

    def check_finite(self, step: int) -> None:
        """Stop a training whose weights are not finite; all are looked at.

        Raises:
            SparsebenchError: A weight holds a NaN or an infinity.
        """
        self._agree(lambda: check_finite(((matrix.name, local(matrix.tensor)) for matrix in self.matrices), step))

    def check_zeros(self, model: nn.Module) -> None:
        """Find dropped weights that came back, and weights that are no longer those of the model.

        Raises:
            SparsebenchError: There are some.
        """
        check_still_there(model, (matrix.weight for matrix in self.matrices))
        self._agree(lambda: check_dropped_are_zero(self.matrices, self.masks))

    def _mask_like(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(weight, dtype=torch.uint8 if self._as_bytes else weight.dtype, requires_grad=False)

    def _whole(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not self.spread:
            return list(parts)
        return [whole(part, matrix.tensor) for part, matrix in zip(parts, self.matrices, strict=True)]

    def _agree(self, check: Callable[[], None]) -> None:
        """Make a check that raises in all processes of a sharded training or in none."""
        if self.spread:
            agree(check, self.matrices)
        else:
            check()
