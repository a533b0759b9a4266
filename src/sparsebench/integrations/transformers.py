"""The callback for `transformers.Trainer`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsebench.errors import SparsebenchError
from sparsebench.integrations.connection import Connection
from sparsebench.sparsifiers.attachment import unwrap
from sparsebench.sparsifiers.sparsifier import Sparsifier

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("sparsebench.integrations.transformers needs: pip install 'sparsebench[transformers]'") from error

__all__ = ["SparsebenchCallback"]

# The sparsifier's state travels as an entry of the optimizer's first parameter group: the Trainer saves and loads the optimizer
# wherever its checkpoint lies, and tells no callback where that is.
STATE_ENTRY = "sparsebench"
OPTIMIZER_FILE = "optimizer.pt"


class SparsebenchCallback(TrainerCallback):
    """Makes the model of a `transformers.Trainer` sparse while it trains.

    What happens when:

    - `Trainer(...)`: `sparsifier.prepare(model)`, before the Trainer makes its optimizer. Who makes the optimizer
      (`optimizers=`, with `sparsifier.parameter_groups` say) calls `prepare` before that, as everywhere.
    - `train()` begins: `attach` to the optimizer, inside Accelerate's wrapper; a saved state is taken up.
    - Every optimizer step: the gradient of the penalty is added after gradients were accumulated, averaged over processes and
      clipped (`max_grad_norm` bounds the gradient of the loss alone, which counts dropped weights too: the Trainer calls nobody
      between the two), then the masks follow.
    - Every log: `sparsity` is added, in `trainer.state.log_history` too. Callbacks listed before this one have seen the log then.
    - Every checkpoint: masks, counters and all else that `sparsifier.state_dict()` holds is saved inside `optimizer.pt`, so
      `resume_from_checkpoint` goes on bit for bit.
    - `train()` ends: with `load_best_model_at_end` the state of the best checkpoint is taken up. Nothing is finalized:
      evaluate with `sparsifier.points()`, then `sparsifier.finalize()`, then `trainer.save_model()`.

    During training `trainer.evaluate()` sees the masked network, and for stochastic methods the means of the weights; call it
    inside `with point:` to evaluate a point.

    Args:
        sparsifier: Any Sparsifier; one that is prepared already is only attached.

    Raises:
        SparsebenchError: Not a sparsifier.

    Example:
        >>> import sparsebench
        >>> sparsifier = sparsebench.magnitude_pruning(sparsity=0.9, begin=100, end=800, frequency=50)
        >>> callback = SparsebenchCallback(sparsifier)  # Trainer(..., callbacks=[callback])
        >>> callback.sparsifier is sparsifier
        True
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        self._connection = Connection(sparsifier)
        self._model: nn.Module | None = None
        self._step = 0
        self._saving: RemovableHandle | None = None
        self._withdraw_names: Callable[[], None] | None = None

    @property
    def sparsifier(self) -> Sparsifier:
        """The sparsifier."""
        return self._connection.sparsifier

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Prepare the model.

        Raises:
            SparsebenchError: As `Sparsifier.prepare`; or a checkpoint of the best model would not hold the masks.
        """
        if args.load_best_model_at_end and args.save_only_model:
            raise SparsebenchError(
                "load_best_model_at_end=True with save_only_model=True: the masks of the best model would not be saved; "
                "set save_only_model=False"
            )
        self._connection.prepare(model)
        self._model = model

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Attach to the optimizer, and go on where the checkpoint left off.

        Raises:
            SparsebenchError: As `Sparsifier.attach`; the Trainer has made another model; or the checkpoint that is resumed holds
                no state of a sparsifier, or that of another.
        """
        if self._model is None:
            raise SparsebenchError("the callback came after the Trainer was made: hand it over as Trainer(..., callbacks=[...])")
        if model is not self._model:
            raise SparsebenchError("the Trainer trains another model than it was made with: use model=, not model_init=")
        self._connection.attach([optimizer])
        inner = unwrap(optimizer)
        # The loaded entry would be saved in place of the current one.
        saved = inner.param_groups[0].pop(STATE_ENTRY, None)
        if saved is not None:
            self.sparsifier.load_state_dict(saved)
        elif state.global_step > 0:
            raise SparsebenchError(
                "the checkpoint holds no state of a sparsifier: it was saved without SparsebenchCallback or without its "
                "optimizer; to make its network sparse from here on, load it as a model"
            )
        if self._saving is not None:
            self._saving.remove()
        self._saving = inner.register_state_dict_post_hook(self._save_into)
        # Still there where an earlier training ended in an error.
        self._withdraw_names = self._withdraw_names or _declare_shared(model)
        self._step = self.sparsifier.step

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Check that the optimizer called its hooks.

        Raises:
            SparsebenchError: It did not, as DeepSpeed's do not.
        """
        if self.sparsifier.step == self._step and not getattr(optimizer, "step_was_skipped", False):
            raise SparsebenchError(
                f"the optimizer ({type(unwrap(optimizer)).__name__}) made a step without calling its hooks: train without "
                "DeepSpeed, or with another optimizer"
            )
        self._step = self.sparsifier.step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the sparsity to what is logged."""
        if logs is not None and self._connection.is_prepared:
            logs["sparsity"] = self.sparsifier.sparsity
            if state.log_history:
                state.log_history[-1]["sparsity"] = logs["sparsity"]

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take up the masks of the best model where the Trainer has loaded it.

        Raises:
            SparsebenchError: They were not saved.
        """
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            path = Path(state.best_model_checkpoint) / OPTIMIZER_FILE
            self.sparsifier.load_state_dict(_read(path))
        if self._withdraw_names is not None:
            self._withdraw_names()
            self._withdraw_names = None

    def _save_into(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        # Finalized in the course of training, there is nothing to save.
        if self._connection.is_prepared:
            state_dict["param_groups"][0][STATE_ENTRY] = self.sparsifier.state_dict()


def _declare_shared(model: nn.Module) -> Callable[[], None] | None:
    """Tell transformers which parameters have a second name, so that it saves them once; it refuses those it is not told of.

    A tied weight has one auxiliary parameter, which sits in every layer that shares the weight.

    Returns:
        What withdraws the declaration: after `finalize` these parameters are no more. None where there is nothing to declare.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    declared = [
        f"{name}.{pattern}" if name else pattern
        for name, module in model.named_modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or ()
    ]
    unknown = {
        alias: first
        for first, *aliases in names.values()
        for alias in aliases
        if not any(re.search(pattern, name) for pattern in declared for name in (first, *aliases))
    }
    if not unknown:
        return None
    known, own = getattr(model, "_tied_weights_keys", None), "_tied_weights_keys" in vars(model)
    # Before transformers 5 a list of the second names, a map to the first ones since.
    added = [*known, *unknown] if isinstance(known, list) else {**(known or {}), **unknown}
    vars(model)["_tied_weights_keys"] = added

    def withdraw() -> None:
        del vars(model)["_tied_weights_keys"]
        # Otherwise it is the class's.
        if own:
            vars(model)["_tied_weights_keys"] = known

    return withdraw


def _read(path: Path) -> Mapping[str, Any]:
    """The sparsifier's state in an optimizer's file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state: Mapping[str, Any] = saved["param_groups"][0][STATE_ENTRY]
    except (OSError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise SparsebenchError(f"{path} holds no state of a sparsifier: the best model's masks are lost") from error
    return state
