"""Dropped weights are zero and what returns starts clean, whatever the optimizer."""

import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_toys import (
    LanguageModel,
    batch,
    case_name,
    classifier,
    dropped_weights_are_zero,
    loss_of,
    magnitude,
    matrices,
    optimizer_cases,
    train,
)
from torch import nn

import sparsebench
from sparsebench.sparsifiers.masked import allocation, schedules, scores
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.optimizer_state import EACH_ALONE, treats_weights_alone

CASES = optimizer_cases()
WITH_CLOSURE_ONLY = (torch.optim.LBFGS,)
FOR_SPARSE_GRADIENTS = (torch.optim.SparseAdam,)
DENSE_CASES = [case for case in CASES if case[0] not in FOR_SPARSE_GRADIENTS]
STEPWISE_CASES = [case for case in DENSE_CASES if case[0] not in WITH_CLOSURE_ONLY]


def model_for(kind, options):
    """The classifier, or matrices alone where the optimizer takes nothing else; and the shape of its inputs."""
    model = classifier()
    try:
        return model, kind(model.parameters(), **options), (8, 2, 6, 6)
    except ValueError:
        model = matrices()
        return model, kind(model.parameters(), **options), (8, 8)


def test_every_optimizer_of_torch_has_a_case():
    kinds = {k for k in vars(torch.optim).values() if inspect.isclass(k) and issubclass(k, torch.optim.Optimizer)}
    assert {kind for kind, _ in CASES} == kinds - {torch.optim.Optimizer}
    fused = {kind.__name__ for kind, options in CASES if options.get("fused")}
    assert fused >= {"SGD", "Adam", "AdamW", "Adagrad"}


@pytest.mark.parametrize("policy", ["returning", "gone"])
@pytest.mark.parametrize("case", STEPWISE_CASES, ids=case_name)
def test_peers_row_8_dropped_weights_are_zero_after_every_step_of_any_optimizer(case, policy):
    model, optimizer, shape = model_for(*case)
    sparsifier = magnitude(policy=policy)
    sparsifier.prepare(model)
    sparsifier.attach(optimizer)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def check(step):
        assert sparsifier.step == step + 1
        assert dropped_weights_are_zero(model, sparsifier)

    train(model, optimizer, range(14), shape, after=check)
    for name, mask in sparsifier.masks().items():
        assert int((~mask).sum()) == int(0.8 * mask.numel() + 0.5)
        kept = dict(model.named_parameters())[name].detach()[mask]
        assert bool((kept != start[name][mask]).any()), "what is kept goes on learning"


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("case", DENSE_CASES, ids=case_name)
def test_peers_row_8_closures_read_zeros_where_weights_are_dropped(case, keyword):
    model, optimizer, shape = model_for(*case)
    sparsifier = magnitude()
    sparsifier.prepare(model)
    sparsifier.attach(optimizer)
    evaluations = []

    def closure():
        evaluations.append(dropped_weights_are_zero(model, sparsifier))
        optimizer.zero_grad()
        loss = loss_of(model, 0, shape)
        loss.backward()
        return loss

    for step in range(14):
        before = len(evaluations)
        returned = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert float(returned.detach()) > 0
        assert len(evaluations) > before
        assert dropped_weights_are_zero(model, sparsifier)
        for name, mask in sparsifier.masks().items():
            gradient = dict(model.named_parameters())[name].grad
            if step not in (1, 4, 7, 9):  # A mask that was just made differs from the one that masked the gradient.
                assert bool((gradient[~mask] == 0).all())
        assert sparsifier.step == step + 1
    assert all(evaluations)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_still_minimizes_under_masks(line_search):
    model = matrices()
    inputs, targets = batch(0, (16, 8))
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.6, begin=0, end=4, frequency=2)
    sparsifier.prepare(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=8, line_search_fn=line_search)
    sparsifier.attach(optimizer)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    for _ in range(12):
        losses.append(float(optimizer.step(closure).detach()))
    after_last_update = losses[4:]
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(after_last_update))
    assert after_last_update[-1] < 0.5 * losses[4]
    # The loss that was minimized is that of the sparse network, not of one with the dropped weights back.
    assert float(closure().detach()) <= losses[-1] + 1e-5
    assert sparsifier.sparsity == pytest.approx(0.6, abs=0.01)


# torch's own Adagrad makes sparse tensors in a way that warns; masking must not.
ADAGRAD = pytest.param(torch.optim.Adagrad, marks=pytest.mark.filterwarnings("ignore:Sparse invariant checks"))


class Perturbing(torch.optim.Optimizer):
    """Moves all weights, whatever their gradients, before it evaluates the closure: as annealing and some others do."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(0.1)
        with torch.enable_grad():
            return closure()


def test_closures_read_zeros_even_where_the_optimizer_moved_dropped_weights_before():
    model = matrices()
    sparsifier = magnitude(begin=0, end=0)
    sparsifier.prepare(model)
    optimizer = Perturbing(model.parameters())
    sparsifier.attach(optimizer)
    read = []
    for _ in range(2):
        optimizer.step(lambda: read.append(dropped_weights_are_zero(model, sparsifier)))
        assert dropped_weights_are_zero(model, sparsifier)
    assert read == [True, True]
    assert bool((model[0].weight != 0).any())


def test_lbfgs_begins_its_history_anew_when_the_masks_change():
    model = matrices()
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.6, begin=3, end=3, frequency=1)
    sparsifier.prepare(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    sparsifier.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0, (8, 8))
        loss.backward()
        return loss

    remembered = []
    for _ in range(4):
        optimizer.step(closure)
        remembered.append(len(optimizer.state[model[0].weight].get("old_dirs", [])))
    assert remembered[1] > 0
    assert remembered[2] == 0
    assert remembered[3] > 0


@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.SGD, ADAGRAD])
@pytest.mark.parametrize("policy", ["returning", "gone"])
def test_a_named_embedding_with_sparse_gradients(kind, policy):
    torch.manual_seed(0)
    model = LanguageModel(tied=False, sparse=True)
    sparsifier = magnitude(layers="embedding", policy=policy)
    sparsifier.prepare(model)
    optimizer = kind([model.embedding.weight], lr=0.05)
    sparsifier.attach(optimizer)
    for step in range(14):
        words = torch.randint(11, (4, 2), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words[:, 0]), words[:, 1]).backward()
        optimizer.step()
        assert model.embedding.weight.grad.is_sparse
        assert dropped_weights_are_zero(model, sparsifier)
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


def test_sparse_gradients_are_masked():
    model = LanguageModel(tied=False, sparse=True)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1, layers="embedding")
    sparsifier.prepare(model)
    model(torch.tensor([3, 3, 5])).sum().backward()
    expected = model.embedding.weight.grad.to_dense() * sparsifier.masks()["embedding.weight"]
    for _ in range(2):
        sparsifier.mask_gradients()
        assert torch.equal(model.embedding.weight.grad.to_dense(), expected)
    assert bool((expected != 0).any())


def beginning(kind, options, entry):
    """The value at which an optimizer starts to remember something of a weight."""
    if (kind, entry) == (torch.optim.Rprop, "step_size"):
        return options["lr"]
    if (kind, entry) == (torch.optim.Adagrad, "sum"):
        return options.get("initial_accumulator_value", 0.0)
    return 0.0


def per_weight_state(optimizer, parameter):
    entries = optimizer.state[parameter].items()
    return {name: value for name, value in entries if isinstance(value, torch.Tensor) and value.shape == parameter.shape}


@pytest.mark.parametrize("case", STEPWISE_CASES, ids=case_name)
def test_what_is_dropped_or_returns_has_the_state_of_a_fresh_optimizer(case):
    model, optimizer, shape = model_for(*case)
    sparsifier = sparsebench.random_pruning(sparsity=0.5, begin=3, end=9, frequency=3, policy="returning")
    sparsifier.prepare(model)
    sparsifier.attach(optimizer)
    checked = {"returned": 0, "remembered": 0}
    masks = sparsifier.masks()

    def check(step):
        nonlocal masks
        before, masks = masks, sparsifier.masks()
        for name, parameter in model.named_parameters():
            if name not in masks or step + 1 not in (3, 6, 9):
                continue
            kept = before[name] & masks[name]
            for entry, value in per_weight_state(optimizer, parameter).items():
                begin = torch.full_like(value, beginning(*case, entry))
                assert torch.equal(value[~kept], begin[~kept]), f"{entry} of {name} after step {step + 1}"
                checked["remembered"] += int((value[kept] != begin[kept]).sum())
            checked["returned"] += int((masks[name] & ~before[name]).sum())

    train(model, optimizer, range(10), shape, after=check)
    assert checked["returned"] > 20
    assert (checked["remembered"] > 20) == any(
        per_weight_state(optimizer, parameter) for name, parameter in model.named_parameters() if name in masks
    )


def test_beginnings_that_are_not_zero():
    for kind, entry, options, beginning in [
        (torch.optim.Rprop, "step_size", {"lr": 0.07}, 0.07),
        (torch.optim.Adagrad, "sum", {"lr": 0.07, "initial_accumulator_value": 0.3}, 0.3),
    ]:
        # A subclass remembers as its parent does.
        for type_of_optimizer in (kind, type("Mine", (kind,), {})):
            model = matrices()
            optimizer = type_of_optimizer(model.parameters(), **options)
            sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=4, end=4, frequency=1)
            sparsifier.prepare(model)
            sparsifier.attach(optimizer)
            train(model, optimizer, range(4), (8, 8))
            state = optimizer.state[model[0].weight][entry]
            mask = sparsifier.masks()["0.weight"]
            torch.testing.assert_close(state[~mask], torch.full_like(state[~mask], beginning), rtol=0, atol=0)
            assert bool((state[mask] != beginning).all())


def test_returned_weights_have_exactly_their_old_value():
    model = matrices()
    turn = {"high": 0}

    def alternating(layer):
        position = torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
        return ((position + turn["high"]) % 2).float()

    sparsifier = MaskedSparsifier(alternating, allocation.Uniform(0.5), schedules.constant(1, 9, 1), "returning")
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    reached = {}
    optimizer.register_step_post_hook(lambda *_: reached.update(weight=model[0].weight.detach().clone()))
    sparsifier.attach(optimizer)
    train(model, optimizer, range(1), (8, 8))
    first = sparsifier.masks()["0.weight"]
    old = reached["weight"].clone()
    turn["high"] = 1
    train(model, optimizer, range(1, 2), (8, 8))
    second = sparsifier.masks()["0.weight"]
    assert torch.equal(second, ~first)
    assert torch.equal(model[0].weight.detach()[second], old[second])
    turn["high"] = 0
    old_again = reached["weight"].clone()
    train(model, optimizer, range(2, 3), (8, 8))
    assert torch.equal(model[0].weight.detach()[first], old_again[first])


def test_state_is_not_touched_between_updates_nor_by_attaching():
    model = matrices()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, range(3), (8, 8))
    before = {name: value.clone() for name, value in per_weight_state(optimizer, model[0].weight).items()}
    sparsifier = MaskedSparsifier(scores.magnitude, allocation.Uniform(0.5), schedules.one_shot())
    sparsifier.prepare(model)
    sparsifier.attach(optimizer)
    after = per_weight_state(optimizer, model[0].weight)
    assert all(torch.equal(before[name], after[name]) for name in before)


@settings(max_examples=40)
@given(
    case=st.sampled_from([case for case in STEPWISE_CASES if case[0] in EACH_ALONE]),
    policy=st.sampled_from(["gone", "returning"]),
    data_seed=st.integers(0, 1000),
)
def test_optimizers_that_treat_weights_alone_need_no_masked_gradients(case, policy, data_seed):
    """Training is the same, bit by bit, as with gradients masked before every step."""
    reached = []
    for masked in (False, True):
        model, optimizer, shape = model_for(*case)
        sparsifier = sparsebench.magnitude_pruning(sparsity=0.7, begin=2, end=8, frequency=3, policy=policy)
        sparsifier.prepare(model)
        if masked:
            optimizer.register_step_pre_hook(lambda *_, own=sparsifier: own.mask_gradients())
        sparsifier.attach(optimizer)
        train(model, optimizer, range(data_seed, data_seed + 10), shape)
        reached.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *reached))


def test_a_subclass_of_an_optimizer_may_mix_weights():
    class Centred(torch.optim.SGD):
        """Subtracts the mean gradient, as gradient centralization does."""

        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad -= parameter.grad.mean()
            return super().step(closure)

    assert not treats_weights_alone(Centred([nn.Parameter(torch.zeros(1))], lr=0.1))
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1)
    sparsifier.prepare(model)
    optimizer = Centred(model.parameters(), lr=1.0)
    sparsifier.attach(optimizer)
    model(torch.tensor([[100.0, 100.0, 4.0, 8.0]])).sum().backward()
    optimizer.step()
    # The dropped weights' 100 is not in the mean of (0, 0, 4, 8).
    assert model.weight.tolist() == [[0.0, 0.0, 2.0, -1.0]]
