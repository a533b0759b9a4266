"""Every method under gradient accumulation, clipping, GradScaler and autocast."""

import copy
import math

import numpy as np
import pytest
import torch
from everywhere_networks import (
    MASKED,
    METHODS,
    STOCHASTIC,
    adam,
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
from torch.nn.utils import clip_grad_norm_

every_method = pytest.mark.parametrize("method", METHODS)
every_masked = pytest.mark.parametrize("method", MASKED)


@every_method
def test_peers_row_20_accumulated_gradients_make_one_step(method):
    """The gradient at the step is that of the mean loss plus the penalty once, and masks follow steps, not batches."""
    model, sparsifier, optimizer = start(method, momentum)
    for step in range(9):
        images, targets = batch(step, examples=12)
        expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        for part in range(3):
            # A copy of its own for each part: nothing accumulates there.
            other = copy.deepcopy(model)
            loss_of(other, images[part::3], targets[part::3], seed=10 * step + part).backward()
            for name, parameter in other.named_parameters():
                if parameter.grad is not None:
                    expected[name] += parameter.grad / 3
        penalty = sparsifier.penalty()
        if penalty.requires_grad:
            gradients = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
            for name, gradient in zip(expected, gradients, strict=True):
                expected[name] += 0 if gradient is None else gradient
        optimizer.zero_grad()
        for part in range(3):
            (loss_of(model, images[part::3], targets[part::3], seed=10 * step + part) / 3).backward()
        if sparsifier.penalty().requires_grad:
            sparsifier.penalty().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)
        optimizer.step()
        assert sparsifier.step == step + 1
        assert dropped_are_zero(model, sparsifier) or method in STOCHASTIC
    if method in MASKED:
        assert counts_are_exact(sparsifier)


@every_masked
def test_peers_row_20_accumulation_equals_the_whole_batch(method):
    whole, parts = start(method, momentum), start(method, momentum)
    for step in range(9):
        images, targets = batch(step, examples=12)
        whole[2].zero_grad()
        loss_of(whole[0], images, targets, seed=0).backward()
        whole[2].step()
        parts[2].zero_grad()
        for part in range(4):
            (loss_of(parts[0], images[part::4], targets[part::4], seed=0) / 4).backward()
        parts[2].step()
    assert_same_weights(parts[0], whole[0], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(mask, whole[1].masks()[name]) for name, mask in parts[1].masks().items())


@every_masked
@pytest.mark.parametrize("masked_first", [False, True])
def test_peers_row_8_clipping_sees_the_gradients_it_is_shown(method, masked_first):
    """With `mask_gradients()` the norm is that of kept weights; without, that of the dense gradient. Zeros hold under both."""
    model, sparsifier, optimizer = start(method, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    train(model, sparsifier, optimizer, range(8))
    masks = sparsifier.masks()
    optimizer.zero_grad()
    loss_of(model, *batch(8), seed=8).backward()
    dense = {name: parameter.grad.numpy().astype(np.float64).copy() for name, parameter in model.named_parameters()}
    kept = {name: gradient * masks[name].numpy() if name in masks else gradient for name, gradient in dense.items()}
    before = {name: parameter.detach().numpy().astype(np.float64).copy() for name, parameter in model.named_parameters()}
    if masked_first:
        sparsifier.mask_gradients()
    norm = float(clip_grad_norm_(model.parameters(), max_norm=0.01))
    shown = kept if masked_first else dense
    expected = math.sqrt(sum(float((gradient**2).sum()) for gradient in shown.values()))
    assert norm == pytest.approx(expected, rel=1e-5)
    assert norm > 0.01
    assert math.sqrt(sum(float((gradient**2).sum()) for gradient in kept.values())) < 0.999 * math.sqrt(
        sum(float((gradient**2).sum()) for gradient in dense.values())
    )
    optimizer.step()
    for name, parameter in model.named_parameters():
        # torch adds 1e-6 to the norm it divides by.
        wanted = before[name] - 0.1 * kept[name] * 0.01 / (norm + 1e-6)
        np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-5, atol=1e-7)
    assert dropped_are_zero(model, sparsifier)


@pytest.mark.parametrize("method", STOCHASTIC)
def test_clipping_includes_the_auxiliary_parameters(method):
    model, sparsifier, optimizer = start(method, momentum)
    train(model, sparsifier, optimizer, range(2))
    optimizer.zero_grad()
    (loss_of(model, *batch(2), seed=2) + sparsifier.penalty()).backward()
    squares = {name: float(parameter.grad.double().square().sum()) for name, parameter in model.named_parameters()}
    norm = clip_grad_norm_(model.parameters(), max_norm=1e-3)
    assert float(norm) == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-5)
    assert sum(square for name, square in squares.items() if ".log_" in name) > 0
    clipped = sum(float(parameter.grad.double().square().sum()) for parameter in model.parameters())
    assert math.sqrt(clipped) == pytest.approx(1e-3, rel=1e-3)
    optimizer.step()
    assert sparsifier.step == 3


OPTIMIZERS = {
    "adam": adam,
    "adam-fused": lambda parameters: torch.optim.Adam(parameters, lr=0.02, fused=True),
    "sgd": momentum,
    "sgd-fused": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
}


@every_method
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled"])
def test_peers_row_18_steps_that_the_gradient_scaler_skips_never_happened(method, make_optimizer, unscaled):
    """The run ends where it would have ended without the batches that overflowed: counters, masks, weights."""
    plain = start(method, make_optimizer)
    train(*plain, [0, 1, 3, 4, 6, 7, 8, 9])
    model, sparsifier, optimizer = start(method, make_optimizer)
    # The scale stays a power of two, so that scaling rounds nothing.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for step in range(10):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, *batch(step), seed=step) + sparsifier.penalty()).backward()
        if step in (2, 5):
            model.head.bias.grad[0] = torch.inf if step == 2 else torch.nan
        if unscaled:
            scaler.unscale_(optimizer)
        counted, masks = sparsifier.step, sparsifier.masks()
        scaler.step(optimizer)
        scaler.update()
        if step in (2, 5):
            assert sparsifier.step == counted
            assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks().items())
        else:
            assert sparsifier.step == counted + 1
        assert dropped_are_zero(model, sparsifier) or method in STOCHASTIC
    assert sparsifier.step == plain[1].step == 8
    assert_same_weights(model, plain[0], rtol=1e-5, atol=1e-7)


@every_method
def test_peers_row_18_autocast_leaves_weights_masks_and_counts_alone(method):
    model, sparsifier, optimizer = start(method)
    for step in range(9):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images, targets = batch(step)
            torch.manual_seed(step)
            scores = model(images)
            loss = torch.nn.functional.cross_entropy(scores.float(), targets) + sparsifier.penalty()
        assert scores.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert {mask.dtype for mask in sparsifier.masks().values()} == {torch.bool}
    for state in optimizer.state.values():
        assert {value.dtype for value in state.values()} == {torch.float32}
    if method in MASKED:
        assert counts_are_exact(sparsifier)
        assert dropped_are_zero(model, sparsifier)
    for point in sparsifier.points():
        with point, torch.autocast("cpu", dtype=torch.bfloat16):
            model.eval()
            assert model(batch(0)[0]).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in sparsifier.finalize().parameters()} == {torch.float32}


@every_method
def test_peers_row_18_a_bfloat16_network_stays_bfloat16(method):
    model, sparsifier, optimizer = start(method, model=network().bfloat16())
    for step in range(9):
        images, targets = batch(step)
        optimizer.zero_grad()
        (loss_of(model, images.bfloat16(), targets, seed=step) + sparsifier.penalty()).backward()
        optimizer.step()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {mask.dtype for mask in sparsifier.masks().values()} == {torch.bool}
    if method in MASKED:
        assert counts_are_exact(sparsifier)
        assert dropped_are_zero(model, sparsifier)
    model.eval()
    assert model(batch(0)[0].bfloat16()).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in sparsifier.finalize().parameters()} == {torch.bfloat16}
