"""SNFS by the optimizer's momentum: against a naive loop, and what must hold where the optimizer keeps none."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from masked_oracle import best
from masked_toys import LanguageModel, batch, classifier, dropped_weights_are_zero, everything, loss_of, same, train
from torch import nn
from training_oracle import largest_remainders

import sparsebench
from sparsebench.sparsifiers.masked.borrowed_momentum import BorrowedMomentum, averages_gradients

NAMES = ("convolution.weight", "hidden.weight", "head.weight")
END, FREQUENCY, FRACTION = 33, 6, 0.4
MOMENTUM = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "SGD-nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.05}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.05}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "Adamax": (torch.optim.Adamax, {}),
}
NONE = {
    "SGD without": (torch.optim.SGD, {}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9}),  # an average of something else
    "Rprop": (torch.optim.Rprop, {}),
    "a subclass": (type("Other", (torch.optim.SGD,), {}), {"momentum": 0.9}),
}


def snfs(**changes):
    return sparsebench.snfs(
        **{"sparsity": 0.8, "begin": 0, "end": END, "frequency": FREQUENCY, "drop_fraction": FRACTION, "seed": 5} | changes
    )


def prepared(name, model=None, **changes):
    model = classifier().double() if model is None else model
    sparsifier = snfs(**changes)
    sparsifier.prepare(model)
    kind, options = (MOMENTUM | NONE)[name]
    return model, kind([p for p in model.parameters() if p.requires_grad], lr=0.01, **options), sparsifier


def new_run(*args, **changes):
    model, optimizer, sparsifier = prepared(*args, **changes)
    sparsifier.attach(optimizer)
    return model, optimizer, sparsifier


def images(step):
    inputs, targets = batch(step)
    return inputs.double(), targets


def loss(model, step):
    inputs, targets = images(step)
    return nn.functional.cross_entropy(model(inputs), targets)


def held(optimizer, parameter):
    state = optimizer.state[parameter]
    return state["momentum_buffer" if "momentum_buffer" in state else "exp_avg"]


class Oracle:
    """The method from its description, a layer at a time; what the optimizer averages is written out."""

    def __init__(self, name, masks):
        self.name, self.masks, self.momentum, self.moved = name, masks, {}, 0

    def average(self, options, before, gradients):
        for key in NAMES:
            seen = gradients[key] + (0.0 if self.name == "AdamW" else options["weight_decay"] * before[key])
            if self.name.startswith("SGD"):
                self.momentum[key] = options["momentum"] * self.momentum[key] + seen if key in self.momentum else seen
            else:
                self.momentum[key] = 0.9 * self.momentum.get(key, 0.0) + 0.1 * seen

    def move(self, step, weights):
        fraction = FRACTION * (1 + math.cos(math.pi * step / END)) / 2
        stay, lost, means = {}, [], []
        for key, mask in self.masks.items():
            lost.append(int(fraction * mask.sum() + 0.5))
            stay[key] = best(np.abs(weights[key]), mask, int(mask.sum()) - lost[-1])
            means.append(np.abs(self.momentum[key][mask]).mean())
        room = [int((~own).sum()) for own in stay.values()]
        for key, count in zip(NAMES, largest_remainders(sum(lost), means, room), strict=True):
            new = stay[key] | best(np.abs(self.momentum[key]), ~stay[key], count)
            grown = new & ~self.masks[key]
            self.momentum[key][grown] = 0.0
            self.moved += int(grown.sum())
            self.masks[key] = new


def arrays(model, read=lambda parameter: parameter.detach()):
    found = dict(model.named_parameters())
    return {key: read(found[key]).numpy().copy() for key in NAMES}


@pytest.mark.parametrize("clipping", ["none", "by norm", "in a closure"])
@pytest.mark.parametrize("name", MOMENTUM)
def test_masks_and_momentum_equal_a_naive_loop_s(name, clipping):
    model, optimizer, sparsifier = prepared(name)
    after, clipped = {}, []
    optimizer.register_step_post_hook(lambda *_: after.update(arrays(model)))  # before the sparsifier's
    sparsifier.attach(optimizer)
    oracle = Oracle(name, {key: mask.numpy().copy() for key, mask in sparsifier.masks().items()})
    updates = {*range(FREQUENCY, END, FREQUENCY), END}
    for step in range(1, 41):
        gradients = {}

        def closure(step=step, gradients=gradients):
            optimizer.zero_grad()
            value = loss(model, step)
            value.backward()
            if clipping != "none":
                norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
                clipped.append(norm > 0.1)
            gradients.update(arrays(model, lambda parameter: parameter.grad))
            return value

        before = arrays(model)
        if clipping == "in a closure":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        oracle.average(optimizer.param_groups[0], before, gradients)
        if step in updates:
            oracle.move(step, {key: after[key] * oracle.masks[key] for key in NAMES})
        assert dropped_weights_are_zero(model, sparsifier)
        found = dict(model.named_parameters())
        for key in NAMES:
            np.testing.assert_array_equal(sparsifier.masks()[key].numpy(), oracle.masks[key], err_msg=f"{key} after step {step}")
            np.testing.assert_allclose(held(optimizer, found[key]).numpy(), oracle.momentum[key], rtol=1e-9, atol=1e-14)
    assert oracle.moved > 20
    assert clipping == "none" or sum(clipped) > 20


def steps(run, numbers):
    model, optimizer, _ = run
    for number in numbers:
        optimizer.zero_grad()
        loss(model, number).backward()
        optimizer.step()


@pytest.mark.parametrize("attached", ["before", "after"], ids=["attach, load", "load, attach"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Rprop"])
def test_a_run_goes_on_bit_for_bit_from_any_step(name, attached):
    whole = new_run(name, end=16, frequency=4)
    saved = {}
    for step in range(20):
        steps(whole, [step])
        file = io.BytesIO()
        torch.save(everything(*whole), file)
        file.seek(0)
        saved[step + 1] = torch.load(file, weights_only=True)
    for split, (of_model, of_optimizer, of_sparsifier) in saved.items():
        model, optimizer, sparsifier = prepared(name, end=16, frequency=4)
        if attached == "before":
            sparsifier.attach(optimizer)
        model.load_state_dict(of_model)
        optimizer.load_state_dict(of_optimizer)
        sparsifier.load_state_dict(of_sparsifier)
        if attached == "after":
            sparsifier.attach(optimizer)
        steps((model, optimizer, sparsifier), range(split, 20))
        assert same(everything(model, optimizer, sparsifier), everything(*whole))


@pytest.mark.parametrize("name", MOMENTUM)
def test_nothing_is_kept_beside_the_optimizer_s(name):
    run = new_run(name)
    steps(run, range(14))
    sparsifier = run[2]
    assert isinstance(sparsifier._movement, BorrowedMomentum)
    assert "momentum" not in sparsifier.state_dict()
    assert list(vars(sparsifier._movement)) == ["mover"]
    # Between updates a step is left alone.
    assert sparsifier._busy_at == 16


@pytest.mark.parametrize("name", NONE)
def test_where_the_optimizer_keeps_none_the_method_keeps_its_own(name):
    runs = [new_run(name), new_run(name, momentum=0.9)]
    assert not averages_gradients(runs[0][1])
    for run in runs:
        steps(run, range(20))
    (model, _, sparsifier), (other, _, own) = runs
    assert same(model.state_dict(), other.state_dict())
    assert same(sparsifier.state_dict()["momentum"], own.state_dict()["momentum"])
    assert all(float(value.abs().max()) > 0 for value in own.state_dict()["momentum"].values())


def test_a_number_is_the_method_s_own_with_any_optimizer():
    run = new_run("Adam", momentum=0.7)
    steps(run, range(3))
    average = 0.0
    again = new_run("Adam", momentum=0.7)
    for step in range(3):
        again[1].zero_grad()
        loss(again[0], step).backward()
        average = 0.7 * average + 0.3 * again[0].head.weight.grad.clone()
        again[1].step()
    torch.testing.assert_close(run[2].state_dict()["momentum"]["head.weight"], average)


def test_another_optimizer_changes_whose_momentum_it_is():
    run = model, _, sparsifier = new_run("Adam")
    steps(run, range(3))
    rprop = torch.optim.Rprop(model.parameters(), lr=0.001)
    sparsifier.attach(rprop)
    steps((model, rprop, sparsifier), range(3, 7))
    assert "momentum" in sparsifier.state_dict()
    # What was begun goes on.
    adam = torch.optim.Adam(model.parameters(), lr=0.001)
    sparsifier.attach([adam])
    steps((model, adam, sparsifier), range(7, 20))
    assert "momentum" in sparsifier.state_dict()
    assert dropped_weights_are_zero(model, sparsifier)


@pytest.mark.parametrize("kinds", [("SGD", "AdamW"), ("SGD", "Rprop")], ids=" and ".join)
def test_several_optimizers_lend_theirs_where_all_keep_one(kinds):
    model = classifier().double()
    sparsifier = snfs()
    sparsifier.prepare(model)
    parameters = list(model.parameters())
    optimizers = []
    for name, part in zip(kinds, (parameters[:5], parameters[5:]), strict=True):
        kind, options = (MOMENTUM | NONE)[name]
        optimizers.append(kind(part, lr=0.01, **options))
    sparsifier.attach(optimizers)
    first, sizes = sparsifier.masks(), {}
    for step in range(20):
        model.zero_grad()
        loss(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()
        sizes[step] = sum(int(mask.sum()) for mask in sparsifier.masks().values())
        assert dropped_weights_are_zero(model, sparsifier)
    assert len(set(sizes.values())) == 1
    assert isinstance(sparsifier._movement, BorrowedMomentum) == ("Rprop" not in kinds)
    assert all(not torch.equal(mask, first[key]) for key, mask in sparsifier.masks().items())


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_loop_that_masks_gradients_has_a_momentum_of_the_method_s_own(name):
    runs = [new_run(name), new_run(name, momentum=0.9)]
    for model, optimizer, sparsifier in runs:
        for step in range(20):
            optimizer.zero_grad()
            loss(model, step).backward()
            sparsifier.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    (model, optimizer, sparsifier), (other, _, own) = runs
    assert same(model.state_dict(), other.state_dict())
    assert same(sparsifier.state_dict()["momentum"], own.state_dict()["momentum"])
    # It stays so, here and where the state is taken up.
    sparsifier.attach(optimizer)
    assert "momentum" in sparsifier.state_dict()
    again = new_run(name)[2]
    again.load_state_dict(sparsifier.state_dict())
    assert same(again.state_dict()["momentum"], sparsifier.state_dict()["momentum"])


def test_masking_that_begins_later_begins_a_momentum_at_zero():
    model, optimizer, sparsifier = run = new_run("SGD", frequency=100, end=200)
    steps(run, range(5))
    average = 0.0
    for step in range(5, 8):
        optimizer.zero_grad()
        loss(model, step).backward()
        average = 0.9 * average + 0.1 * model.head.weight.grad.clone()
        sparsifier.mask_gradients()
        optimizer.step()
    torch.testing.assert_close(sparsifier.state_dict()["momentum"]["head.weight"], average)


def test_gradients_may_be_gone_after_the_step():
    def cleared(optimizer, *_):
        optimizer.zero_grad()

    runs = []
    for clears in (False, True):
        model, optimizer, sparsifier = prepared("AdamW")
        if clears:
            optimizer.register_step_post_hook(cleared)
        sparsifier.attach(optimizer)
        steps((model, optimizer, sparsifier), range(20))
        runs.append(everything(model, optimizer, sparsifier))
    assert same(*runs)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weight: torch.optim.Adam([weight], betas=(0.0, 0.999)),
        lambda weight: torch.optim.SGD([weight], lr=0.1, momentum=0.9, dampening=1.0),
        lambda weight: torch.optim.SGD([{"params": [weight], "momentum": 0.0}], lr=0.1, momentum=0.9),
    ],
)
def test_what_averages_nothing_is_no_momentum(optimizer):
    assert not averages_gradients(optimizer(torch.zeros(2, requires_grad=True)))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_grad_scaler_skips_leave_no_trace(fused):
    runs = []
    for skips in (False, True):
        model = classifier()
        sparsifier = snfs(end=12, frequency=3)
        sparsifier.prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, fused=fused)
        sparsifier.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000, backoff_factor=1.0 - 1e-16)
        for step in range(14):
            for infinite in [True, False] if skips and step % 2 else [False]:
                optimizer.zero_grad()
                scaler.scale(loss_of(model, step)).backward()
                if infinite:
                    model.head.weight.grad[0, 0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
        runs.append(everything(model, optimizer, sparsifier))
    assert same(*runs)


def test_packed_projections_of_attention_move_apart():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    sparsifier = sparsebench.snfs(sparsity=0.5, begin=0, end=12, frequency=3, seed=1)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    first = sparsifier.masks()
    inputs = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
    for _ in range(12):
        optimizer.zero_grad()
        model(inputs, inputs, inputs)[0].square().sum().backward()
        optimizer.step()
        assert dropped_weights_are_zero(model, sparsifier)
    for name, mask in sparsifier.masks().items():
        assert not torch.equal(mask, first[name])
    assert isinstance(sparsifier._movement, BorrowedMomentum)


@pytest.mark.parametrize("by_hand", ["never", "always", "later"])
def test_sparse_gradients_of_an_embedding_count_as_dense_ones(by_hand):
    runs = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(tied=False, sparse=sparse)
        sparsifier = sparsebench.snfs(sparsity=0.5, begin=0, end=12, frequency=3, layers=["embedding", "hidden"], seed=1)
        sparsifier.prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer)
        words = torch.arange(11)
        for step in range(13):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(words), words).backward()
            if by_hand == "always" or (by_hand == "later" and step > 4):
                sparsifier.mask_gradients()
            optimizer.step()
        runs.append([sparsifier.masks(), model.state_dict()])
    assert same(runs[0][0], runs[1][0])
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name])


def test_blocks_move_as_wholes():
    model, _, sparsifier = run = new_run("AdamW", structure="block:2x4", sparsity=0.5)
    first = sparsifier.masks()
    steps(run, range(20))
    masks = sparsifier.masks()
    hidden = masks["hidden.weight"].reshape(6, 2, 16, 4).sum(dim=(1, 3))
    assert set(hidden.unique().tolist()) == {0, 8}
    assert not torch.equal(masks["hidden.weight"], first["hidden.weight"])
    assert dropped_weights_are_zero(model, sparsifier)


def test_a_frozen_layer_keeps_its_mask():
    model = classifier().double()
    model.hidden.requires_grad_(False)
    run = new_run("AdamW", model)
    first = run[2].masks()
    steps(run, range(20))
    moved = {name for name, mask in run[2].masks().items() if not torch.equal(mask, first[name])}
    assert moved == {"convolution.weight", "head.weight"}


def test_an_infinite_momentum_is_named_and_moves_nothing():
    # The step makes the weights infinite too; here they are mended, so that the momentum alone is.
    model, optimizer, sparsifier = run = new_run("SGD", frequency=3)
    steps(run, range(1))
    mask = sparsifier.masks()["head.weight"]
    held(optimizer, model.head.weight)[~mask] = torch.inf
    optimizer.zero_grad()
    loss(model, 1).backward()
    optimizer.step()
    with torch.no_grad():
        model.head.weight.nan_to_num_()
    loss(model, 2).backward()
    with pytest.raises(sparsebench.SparsebenchError, match=r"^the momentum of 'head.weight' is not finite"):
        optimizer.step()
    assert torch.equal(sparsifier.masks()["head.weight"], mask)


def test_a_copy_and_a_saved_state_of_the_other_kind():
    run = new_run("SGD")
    steps(run, range(8))
    model, optimizer, sparsifier = copy.deepcopy(run)
    sparsifier.attach(optimizer)
    for each in (run, (model, optimizer, sparsifier)):
        steps(each, range(8, 20))
    assert same(everything(*run), everything(model, optimizer, sparsifier))
    message = "the saved state belongs to another model, method or schedule: regrowth.borrows_momentum is in the saved state"
    with pytest.raises(sparsebench.SparsebenchError, match=message):
        new_run("SGD", momentum=0.9)[2].load_state_dict(sparsifier.state_dict())


def test_weights_come_back_at_zero_with_no_memory_and_what_is_dropped_is_remembered():
    model = classifier()
    sparsifier = snfs(frequency=4)
    sparsifier.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(3))
    before = sparsifier.masks()["hidden.weight"]
    train(model, optimizer, [3])
    after = sparsifier.masks()["hidden.weight"]
    state = optimizer.state[model.hidden.weight]
    for name in ("exp_avg", "exp_avg_sq"):
        assert not state[name][after & ~before].any()
        assert bool((state[name][before & ~after] != 0).any())
    assert not model.hidden.weight[after & ~before].any()
    assert bool((after & ~before).any())
