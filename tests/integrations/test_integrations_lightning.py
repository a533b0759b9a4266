"""The callback for Lightning, with the real package on a tiny module."""

import warnings

import pytest
import torch
from integration_methods import METHODS, STOCHASTIC
from torch import nn

import sparsebench
from sparsebench import SparsebenchError

pytest.importorskip("lightning", reason="needs pip install 'sparsebench[lightning]'")
with warnings.catch_warnings():
    # Some releases use what newer releases of others deprecate.
    warnings.simplefilter("ignore")
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

from sparsebench.integrations.lightning import SparsebenchCallback

every_method = pytest.mark.parametrize("method", METHODS)
# What Lightning says of workers, loggers and of a loop as short as this one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|logging interval|LeafSpec|_pytree|callbacks used to create)"
)


class Tiny(LightningModule):
    """Two layers; in training noise is a function of the step, so that resumed trainings see the same."""

    def __init__(self, kind="adamw", penalty_of=None, noisy=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
        self.kind, self.penalty_of, self.noisy = kind, penalty_of, noisy

    def training_step(self, batch, index):
        torch.manual_seed(1000 * self.trainer.current_epoch + index)
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        return loss if self.penalty_of is None else loss + self.penalty_of.penalty()

    def configure_optimizers(self):
        if self.kind == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.0)
        if self.penalty_of is not None:
            self.penalty_of.attach(optimizer)
        return optimizer

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(20, 5, generator=generator)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=5)


def trainer_for(folder, callbacks, steps=10, **changes):
    return Trainer(
        **{
            "default_root_dir": str(folder),
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": steps,
            "callbacks": callbacks,
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        }
        | changes
    )


def dropped_are_zero(model, sparsifier):
    parameters = dict(model.named_parameters())
    return all(bool((parameters[name].detach()[~mask] == 0).all()) for name, mask in sparsifier.masks().items())


@every_method
def test_peers_row_20_one_line_makes_a_lightning_module_sparse(method, tmp_path):
    model, callback = Tiny(), SparsebenchCallback(METHODS[method]())
    trainer = trainer_for(tmp_path, [callback])
    trainer.fit(model)
    assert callback.sparsifier.step == trainer.global_step == 10
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(callback.sparsifier.sparsity)
    if method not in STOCHASTIC:
        assert callback.sparsifier.sparsity == pytest.approx(0.8, abs=0.01)
        assert dropped_are_zero(model, callback.sparsifier)
    assert callback.sparsifier.finalize() is model
    assert {type(layer) for layer in model.net} == {nn.Linear, nn.Tanh}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", STOCHASTIC)
def test_the_penalty_is_as_if_in_the_loss(method, accumulation, tmp_path):
    model, callback = Tiny(), SparsebenchCallback(METHODS[method]())
    trainer_for(tmp_path, [callback], accumulate_grad_batches=accumulation).fit(model)
    sparsifier = METHODS[method]()
    expected = Tiny(penalty_of=sparsifier)
    sparsifier.prepare(expected)
    trainer_for(tmp_path, [], accumulate_grad_batches=accumulation).fit(expected)
    assert callback.sparsifier.step == sparsifier.step == 10
    plain = Tiny()
    METHODS[method]().prepare(plain)
    trainer_for(tmp_path, [], accumulate_grad_batches=accumulation).fit(plain)
    for (name, parameter), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    difference = max(float((p - q).detach().abs().max()) for p, q in zip(plain.parameters(), expected.parameters(), strict=True))
    assert difference > 1e-3, "the penalty is too weak for this test to see it"


def test_clipping_bounds_the_gradient_of_the_loss_alone(tmp_path):
    """With the loss's gradient clipped to almost nothing the penalty moves log alpha still."""
    sparsifier = sparsebench.l0_regularization(penalty=0.5)
    model = Tiny()
    sparsifier.prepare(model)
    before = [layer.log_alpha.detach().clone() for layer in (model.net[0], model.net[2])]
    gradients = torch.autograd.grad(sparsifier.penalty(), [model.net[0].log_alpha, model.net[2].log_alpha])
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=1.0)
    trainer_for(tmp_path, [SparsebenchCallback(sparsifier)], steps=1, gradient_clip_val=1e-12).fit(model)
    for layer, old, gradient in zip((model.net[0], model.net[2]), before, gradients, strict=True):
        torch.testing.assert_close(layer.log_alpha.detach(), old - gradient)


def test_dropped_weights_do_not_count_in_the_norm_that_is_clipped(tmp_path):
    sparsifier = sparsebench.static_sparse_training(sparsity=0.9, allocation="uniform")
    model = Tiny()
    sparsifier.prepare(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=1.0)
    trainer_for(tmp_path, [SparsebenchCallback(sparsifier)], steps=1, gradient_clip_val=1e-3).fit(model)
    moved = sum(float((p.detach() - old).square().sum()) for p, old in zip(model.parameters(), before, strict=True)) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-3)


@every_method
def test_peers_row_7_a_resumed_training_goes_on_bit_for_bit(method, tmp_path):
    """PEERS 4 and 7: masks, schedule and counters are in ModelCheckpoint's own files."""
    whole, callback = Tiny(), SparsebenchCallback(METHODS[method]())
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer_for(tmp_path, [callback, saving]).fit(whole)
    resumed, other = Tiny(), SparsebenchCallback(METHODS[method]())
    trainer_for(tmp_path, [other]).fit(resumed, ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert other.sparsifier.step == callback.sparsifier.step == 10
    for (name, parameter), wanted in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, wanted), name
    for name, mask in callback.sparsifier.masks().items():
        assert torch.equal(other.sparsifier.masks()[name], mask)


def test_a_checkpoint_is_sparse_when_it_is_tested(tmp_path):
    """PEERS 5."""
    model, callback = Tiny(), SparsebenchCallback(METHODS["l0"]())
    trainer = trainer_for(tmp_path, [callback])
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    seen = []

    class Tested(Tiny):
        def test_step(self, batch, index):
            seen.append(self.net(batch[0]))

    other = Tested()
    trainer_for(tmp_path, [SparsebenchCallback(METHODS["l0"]())]).test(
        other, other.train_dataloader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    model.eval()
    assert torch.equal(seen[0], model.net(next(iter(model.train_dataloader()))[0]))


def test_a_checkpoint_without_masks_is_refused(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4)
    trainer_for(tmp_path, [saving]).fit(Tiny())
    with pytest.raises(SparsebenchError, match="the checkpoint holds no state of a sparsifier"):
        trainer_for(tmp_path, [SparsebenchCallback(METHODS["magnitude"]())]).fit(
            Tiny(), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True
        )


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4)
    trainer_for(tmp_path, [SparsebenchCallback(METHODS["magnitude"]()), saving]).fit(Tiny())
    with pytest.raises(SparsebenchError, match="belongs to another model, method or schedule: score"):
        trainer_for(tmp_path, [SparsebenchCallback(METHODS["random"]())]).fit(
            Tiny(), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True
        )


@pytest.mark.parametrize("method", ["magnitude", "l0"])
def test_a_finalized_network_can_be_saved_and_tested_with_the_same_trainer(method, tmp_path):
    model, callback = Tiny(), SparsebenchCallback(METHODS[method]())
    model.test_step = lambda batch, *index: None
    trainer = trainer_for(tmp_path, [callback])
    trainer.fit(model)
    callback.sparsifier.finalize()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    trainer.test(model, model.train_dataloader())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys() == {f"net.{n}.{p}" for n in (0, 2) for p in ("weight", "bias")}


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_peers_row_8_closures_of_lbfgs_see_masked_weights(method, tmp_path):
    model, callback = Tiny(kind="lbfgs"), SparsebenchCallback(METHODS[method]())
    trainer_for(tmp_path, [callback]).fit(model)
    assert callback.sparsifier.step == 10
    assert dropped_are_zero(model, callback.sparsifier)


def test_several_optimizers_of_manual_optimization(tmp_path):
    class TwoOptimizers(Tiny):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.shift = nn.Parameter(torch.zeros(2))

        def training_step(self, batch, index):
            inputs, targets = batch
            loss = nn.functional.cross_entropy(self.net(inputs) + self.shift, targets)
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD([self.shift], lr=0.1), torch.optim.Adam(self.net.parameters(), lr=0.02)]

    model, callback = TwoOptimizers(), SparsebenchCallback(METHODS["magnitude"]())
    trainer_for(tmp_path, [callback], steps=20).fit(model)
    assert callback.sparsifier.step == 10
    assert callback.sparsifier.sparsity == pytest.approx(0.8, abs=0.01)
    assert dropped_are_zero(model, callback.sparsifier)


class Deaf(torch.optim.SGD):
    """An optimizer that calls no hooks, as DeepSpeed's."""

    def step(self, closure=None):
        """torch gives hooks to every step() that is not marked as having them."""
        closure()

    step.hooked = True


def test_an_optimizer_that_calls_no_hooks_is_refused(tmp_path):
    model = Tiny()
    model.configure_optimizers = lambda: Deaf(model.parameters(), lr=0.1)
    with pytest.raises(SparsebenchError, match="the optimizer makes steps without calling its hooks"):
        trainer_for(tmp_path, [SparsebenchCallback(METHODS["magnitude"]())]).fit(model)


def test_bfloat16_autocast_keeps_float32_weights(tmp_path):
    """PEERS 18."""
    for method in METHODS:
        model, callback = Tiny(), SparsebenchCallback(METHODS[method]())
        trainer_for(tmp_path, [callback], precision="bf16-mixed").fit(model)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert callback.sparsifier.step == 10
