"""The callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.integrations.connection import Connection
from sparsebench.sparsifiers.sparsifier import Sparsifier

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("sparsebench.integrations.lightning needs: pip install 'sparsebench[lightning]'") from error

__all__ = ["SparsebenchCallback"]


class SparsebenchCallback(Callback):
    """Makes a LightningModule sparse while it trains.

    What happens when:

    - `setup`: `sparsifier.prepare(module)`, before `configure_optimizers` and before a checkpoint is loaded.
    - `fit` begins: `attach` to the optimizer that holds the weights.
    - Before gradients are clipped those of dropped weights become zero, so that norms are those of the sparse network.
    - Every optimizer step: the gradient of the penalty is added after gradients were accumulated, averaged over processes and
      clipped (`gradient_clip_val` bounds the gradient of the loss alone), then the masks follow.
    - Every `log_every_n_steps` steps `sparsity` is logged.
    - Every checkpoint holds `sparsifier.state_dict()`, so `fit(..., ckpt_path=...)` goes on bit for bit.
    - Nothing is finalized: evaluate with `sparsifier.points()`, then call `sparsifier.finalize()`.

    During training validation sees the masked network, and for stochastic methods the means of the weights.

    Args:
        sparsifier: Any Sparsifier; one that is prepared already is only attached.

    Raises:
        SparsebenchError: Not a sparsifier.

    Example:
        >>> import sparsebench
        >>> sparsifier = sparsebench.magnitude_pruning(sparsity=0.9, begin=100, end=800, frequency=50)
        >>> callback = SparsebenchCallback(sparsifier)  # Trainer(callbacks=[callback])
        >>> callback.sparsifier is sparsifier
        True
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        self._connection = Connection(sparsifier)
        self._trainer_step, self._step = 0, 0
        self._loaded = False

    @property
    def sparsifier(self) -> Sparsifier:
        """The sparsifier."""
        return self._connection.sparsifier

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the module, whatever the stage: a checkpoint holds the parameters that `prepare` adds."""
        self._connection.prepare(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer.

        Raises:
            SparsebenchError: As `Sparsifier.attach`.
        """
        self._connection.attach(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of where the training begins.

        Raises:
            SparsebenchError: The checkpoint that is resumed held no state of a sparsifier.
        """
        if trainer.ckpt_path is not None and not self._loaded:
            raise SparsebenchError(
                "the checkpoint holds no state of a sparsifier: it was saved without SparsebenchCallback; to make its network "
                "sparse from here on, load it with load_from_checkpoint"
            )
        self._trainer_step, self._step = trainer.global_step, self.sparsifier.step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Take dropped weights out of the gradients, before their norm is clipped."""
        self.sparsifier.mask_gradients()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the sparsity."""
        if trainer.global_step % trainer.log_every_n_steps == 0 and self._connection.is_prepared:
            pl_module.log("sparsity", self.sparsifier.sparsity)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the optimizer calls its hooks.

        Raises:
            SparsebenchError: It does not, as DeepSpeed's do not.
        """
        if trainer.global_step > self._trainer_step and self.sparsifier.step == self._step:
            raise SparsebenchError("the optimizer makes steps without calling its hooks: train with another strategy")

    def state_dict(self) -> dict[str, Any]:
        """The sparsifier's state."""
        # A finalized stochastic sparsifier has none.
        return self.sparsifier.state_dict() if self._connection.is_prepared else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            SparsebenchError: It belongs to another model, method or schedule.
        """
        self.sparsifier.load_state_dict(state_dict)
        self._loaded = True
