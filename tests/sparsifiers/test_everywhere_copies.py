"""Every method: copies of model, optimizer and sparsifier; averaged copies; activation checkpointing."""

import copy
import pickle

import pytest
import torch
from everywhere_networks import (
    MASKED,
    METHODS,
    STOCHASTIC,
    Network,
    assert_same_weights,
    batch,
    counts_are_exact,
    dropped_are_zero,
    loss_of,
    momentum,
    network,
    start,
    train,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

every_method = pytest.mark.parametrize("method", METHODS)
DUPLICATES = {"deepcopy": copy.deepcopy, "pickle": lambda parts: pickle.loads(pickle.dumps(parts))}
every_duplicate = pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)


@every_method
@every_duplicate
@pytest.mark.parametrize("make_optimizer", [None, momentum], ids=["adam", "sgd"])
def test_peers_row_13_a_copied_training_goes_on_as_the_original(method, duplicate, make_optimizer):
    original = start(method, make_optimizer)
    train(*original, range(4))
    copied = duplicate(original)
    assert copied[1].step == 4
    copied[1].attach(copied[2])
    for parts in (original, copied):
        train(*parts, range(4, 9))
        assert parts[1].step == 9
    assert_same_weights(copied[0], original[0])
    assert not {id(p) for p in copied[0].parameters()} & {id(p) for p in original[0].parameters()}
    for name, mask in original[1].masks().items():
        assert torch.equal(copied[1].masks()[name], mask)


@every_method
@every_duplicate
def test_peers_row_13_a_copied_model_alone_is_a_model(method, duplicate):
    model, sparsifier, optimizer = start(method)
    train(model, sparsifier, optimizer, range(9))
    other = duplicate(model)
    assert_same_weights(other, model)
    before = copy.deepcopy(model.state_dict())
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    loss_of(other, *batch(9), seed=9).backward()
    plain.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(other.head.weight, model.head.weight)
    train(model, sparsifier, optimizer, range(9, 11))
    assert sparsifier.step == 11


@every_method
@pytest.mark.parametrize("averaging", ["swa", "ema"])
def test_an_averaged_copy_is_sparse_once_masks_are_applied(method, averaging):
    """An average over masks that differ is dense; `apply_masks` puts the last ones on it."""
    model, sparsifier, optimizer = start(method)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)) if averaging == "ema" else AveragedModel(model)
    sums: dict[str, torch.Tensor] = {}
    for step in range(9):
        train(model, sparsifier, optimizer, [step])
        averaged.update_parameters(model)
        for name, parameter in model.named_parameters():
            new = parameter.detach().double()
            if step == 0:
                sums[name] = new.clone()
            elif averaging == "swa":
                sums[name] += (new - sums[name]) / (step + 1)
            else:
                sums[name] = 0.5 * sums[name] + 0.5 * new
    if method in MASKED:
        assert any(bool((sums[name][~mask] != 0).any()) for name, mask in sparsifier.masks().items())
    before = copy.deepcopy(model.state_dict())
    sparsifier.apply_masks(averaged.module)
    masks = sparsifier.masks()
    for name, parameter in averaged.module.named_parameters():
        wanted = sums[name].masked_fill(~masks[name], 0.0) if name in masks else sums[name]
        torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-4, atol=1e-6)
        if name in masks:
            assert not bool((parameter.detach()[~masks[name]] != 0).any())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # What becomes of the copy is an ordinary network; of a copy of the model itself, what becomes of the model.
    ordinary = network(seed=5)
    assert sparsifier.finalize_copy(averaged.module) is averaged.module
    ordinary.load_state_dict(averaged.module.state_dict())
    assert_same_weights(ordinary, averaged.module)
    twin = sparsifier.finalize_copy(copy.deepcopy(model))
    (first, *_) = sparsifier.points()
    with first:
        torch.testing.assert_close(twin(batch(0)[0]), model.eval()(batch(0)[0]), rtol=0.0, atol=0.0)
    model.train()
    assert [type(layer) for layer in twin.modules()] == [type(layer) for layer in ordinary.modules()]
    # The original trains on.
    train(model, sparsifier, optimizer, range(9, 11))
    assert sparsifier.step == 11


class Checkpointed(Network):
    """The same network, two of whose parts are computed again in the backward pass."""

    reentrant = False

    def forward(self, images):
        # Reentrant checkpoints need an input that requires a gradient.
        images = images.requires_grad_()
        features = checkpoint(self.features, images, use_reentrant=self.reentrant)
        return checkpoint(lambda x: self.head(self.mixing(x).tanh().mean(1)), features, use_reentrant=self.reentrant)


@every_method
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_activation_checkpointing_gives_the_same_gradients(method, reentrant):
    """Noise is drawn from torch's default generator, which checkpointing sets back before it computes a part again (PEERS 20)."""
    plain = start(method, momentum)
    checkpointed = network()
    checkpointed.__class__ = Checkpointed
    checkpointed.reentrant = reentrant
    other = start(method, momentum, model=checkpointed)
    for step in range(9):
        for model, sparsifier, optimizer in (plain, other):
            optimizer.zero_grad()
            (loss_of(model, *batch(step), seed=step) + sparsifier.penalty()).backward()
        for (name, parameter), wanted in zip(other[0].named_parameters(), plain[0].parameters(), strict=True):
            # Terms may be summed in another order.
            torch.testing.assert_close(
                parameter.grad, wanted.grad, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
            )
        for _, _, optimizer in (plain, other):
            optimizer.step()
    assert_same_weights(other[0], plain[0], rtol=1e-4, atol=1e-6)
    assert other[1].step == 9
    if method in MASKED:
        assert counts_are_exact(other[1])
        assert dropped_are_zero(other[0], other[1])


@pytest.mark.parametrize("method", STOCHASTIC)
def test_noise_differs_from_step_to_step(method):
    """Otherwise equal gradients under checkpointing would say nothing."""
    model, _, _ = start(method)
    images = batch(0)[0]
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert isinstance(model.head, nn.Linear)
