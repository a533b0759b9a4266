"""The paper's Transformer, base with a vocabulary of 32,000, takes real optimizer steps under every method."""

from __future__ import annotations

import pytest
import torch
from method_arguments import LEARNING, arguments_of, every_method
from torch import nn

from sparsebench.accounting import report
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.workloads.translation.batches import TokenBatch
from sparsebench.workloads.translation.named_corpora import WMT14_ENDE
from sparsebench.workloads.translation.tokens import BEGIN
from sparsebench.workloads.translation.transformer import SIZES, Transformer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_threads")]

VOCABULARY = 32_000
STEPS = 2


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    source, expected = (torch.randint(4, VOCABULARY, (4, 16), generator=generator) for _ in range(2))
    return TokenBatch(source, torch.cat([torch.full((4, 1), BEGIN), expected[:, :-1]], 1), expected)


class FirstBatches:
    """What a method that looks at the first batches is given."""

    def loss(self, model: nn.Module, batch: TokenBatch) -> torch.Tensor:
        return WMT14_ENDE.loss(model, batch, 0.0)

    def batches(self, count: int) -> list[TokenBatch]:
        return [batch() for _ in range(count)]


@every_method
def test_base_takes_steps(method: str) -> None:
    if method == "synflow":
        pytest.skip("SynFlow gives a network ones for inputs, which tokens cannot be")
    torch.manual_seed(0)
    recipe = WMT14_ENDE.recipe
    model = Transformer(VOCABULARY, SIZES["base"], WMT14_ENDE.dropout)
    arguments = arguments_of(method, FirstBatches())
    sparsifier = METHODS.get(method).build(**arguments)
    sparsifier.prepare(model)
    groups = sparsifier.parameter_groups(3e-4)
    optimizer = torch.optim.AdamW(
        groups, betas=(recipe.adam_beta1, recipe.adam_beta2), eps=recipe.adam_epsilon, weight_decay=0.0, fused=True
    )
    sparsifier.attach(optimizer)
    losses = []
    for _ in range(STEPS):
        loss = WMT14_ENDE.loss(model, batch(), recipe.label_smoothing) + sparsifier.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sparsifier.step == STEPS
    if method not in LEARNING:  # theirs has a rising penalty in it
        assert losses[-1] < losses[0]
    finished = sparsifier.finalize()
    assert finished.softmax.weight is finished.embedding.weight
    rows = {row.name: row for row in report(finished).layers}
    assert len(rows) == 1 + 6 * 6 + 6 * 10
    if "sparsity" in arguments:
        assert sum(row.zeros for row in rows.values()) / sum(row.weights for row in rows.values()) == pytest.approx(0.8, abs=1e-3)
