"""Loops of one's own with Hugging Face Accelerate: its wrapped optimizer is attached to, before or after it is wrapped."""

import pytest
import torch
from torch import nn

import sparsebench

accelerate = pytest.importorskip("accelerate", reason="needs pip install 'sparsebench[transformers]'")


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps its settings for a whole process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_peers_row_20_a_step_is_a_step_of_the_optimizer_under_accelerate(wrapped, accumulation):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.8, begin=1, end=5, frequency=2)
    sparsifier.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    if not wrapped:
        sparsifier.attach(optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if wrapped:
        sparsifier.attach(optimizer)
    for batch in range(6 * accumulation):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.randn(4, 5)).square().mean() + sparsifier.penalty())
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.step == (batch + 1) // accumulation
        parameters = dict(model.named_parameters())
        assert not any(bool((parameters[name][~mask] != 0).any()) for name, mask in sparsifier.masks().items())
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


def test_the_counter_and_masks_are_saved_and_loaded_with_accelerate_s_own_checkpoint(tmp_path):
    """PEERS 4: a sparsifier has state_dict() and load_state_dict(), which is all that Accelerate asks for."""

    def started():
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
        sparsifier = sparsebench.magnitude_pruning(sparsity=0.8, begin=1, end=9, frequency=2)
        sparsifier.prepare(model)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.02))
        sparsifier.attach(optimizer)
        accelerator.register_for_checkpointing(sparsifier)
        return accelerator, model, sparsifier, optimizer

    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()

    accelerator, model, sparsifier, optimizer = started()
    train(model, optimizer, 5)
    accelerator.save_state(tmp_path)
    train(model, optimizer, 5)
    other_accelerator, other_model, other, other_optimizer = started()
    other_accelerator.load_state(tmp_path)
    assert other.step == 5
    train(other_model, other_optimizer, 5)
    assert other.step == sparsifier.step == 10
    for parameter, wanted in zip(other_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, wanted)
    assert other.sparsity == sparsifier.sparsity == pytest.approx(0.8, abs=0.01)
