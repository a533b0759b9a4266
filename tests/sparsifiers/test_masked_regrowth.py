"""Dynamic sparse training against naive NumPy loops, and what must hold around its updates."""

import copy
import functools
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_oracle import best, dropped_count, erdos_renyi_kernel
from masked_toys import (
    LanguageModel,
    batch,
    case_name,
    classifier,
    dropped_weights_are_zero,
    everything,
    loss_of,
    optimizer_cases,
    same,
    train,
)
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked import allocation, schedules, scores
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.regrowth import Regrowth, apportion, cosine
from sparsebench.training.config import resolve

NAMES = ("convolution.weight", "hidden.weight", "head.weight")
KINDS = ("set", "rigl", "snfs")
METHODS = {"set": sparsebench.set_training, "rigl": sparsebench.rigl, "snfs": functools.partial(sparsebench.snfs, momentum=0.9)}


def method(kind, **changes):
    return METHODS[kind](**{"sparsity": 0.8, "begin": 0, "end": 16, "frequency": 4} | changes)


def parts_of(total, shares, room):
    """Largest remainders, one unit too many never: by repeated filling, from the definition."""
    parts, active, left = [0] * len(shares), [i for i, r in enumerate(room) if r], total
    while True:
        weight = sum(shares[i] for i in active)
        quota = {i: left * shares[i] / weight if weight else left / len(active) for i in active}
        over = [i for i in active if quota[i] >= room[i]]
        if not over:
            break
        for i in over:
            parts[i], left = room[i], left - room[i]
        active = [i for i in active if i not in over]
    for i in active:
        parts[i] = int(quota[i])
    for i in sorted(active, key=lambda i: (-(quota[i] - int(quota[i])), i))[: total - sum(parts)]:
        parts[i] += 1
    return parts


class Oracle:
    """Dropping and growing as the three papers describe it, a layer at a time."""

    def __init__(self, kind, masks, updates, end, fraction, seed, beta=0.9):
        self.kind, self.masks, self.updates, self.end, self.fraction = kind, masks, updates, end, fraction
        self.seed, self.beta = seed, np.float32(beta)
        self.momentum = {name: np.zeros(mask.shape, np.float32) for name, mask in masks.items()}

    def before_step(self, step, weights, gradients):
        """Masks after the step that completes `step` steps, from the weights and dense gradients before it."""
        for name in self.masks:
            self.momentum[name] += np.float32(1 - 0.9) * (gradients[name] - self.momentum[name])
        if step not in self.updates:
            return
        annealed = self.fraction * (1 if self.kind == "set" else (1 + math.cos(math.pi * step / self.end)) / 2)
        left, lost = {}, {}
        for name, mask in self.masks.items():
            lost[name] = int(annealed * mask.sum() + 0.5)
            left[name] = best(np.abs(weights[name]), mask, int(mask.sum()) - lost[name])
        grown = lost
        if self.kind == "snfs":
            shares = [float(np.abs(self.momentum[name][mask].astype(np.float64)).mean()) for name, mask in self.masks.items()]
            room = [int((~left[name]).sum()) for name in self.masks]
            grown = dict(zip(self.masks, parts_of(sum(lost.values()), shares, room), strict=True))
        for name in self.masks:
            score = {
                "set": lambda name=name: torch.rand(left[name].shape, generator=keyed_generator(self.seed, step, name)).numpy(),
                "rigl": lambda name=name: np.abs(gradients[name]),
                "snfs": lambda name=name: np.abs(self.momentum[name]),
            }[self.kind]()
            self.masks[name] = left[name] | best(score, ~left[name], grown[name])


def arrays(model, gradients=False):
    found = dict(model.named_parameters())
    return {n: (found[n].grad if gradients else found[n].detach()).float().numpy().copy() for n in NAMES}


def numpy_masks(sparsifier):
    return {name: mask.numpy().copy() for name, mask in sparsifier.masks().items()}


@pytest.mark.parametrize("early", [False, True], ids=["in the step", "by the user, for clipping"])
@pytest.mark.parametrize("allocation_name", ["uniform", "erdos-renyi-kernel"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_equal_the_oracle_s_over_200_steps(kind, allocation_name, early):
    end, frequency, begin = 163, 20, 7
    model = classifier(memory_format=torch.channels_last)
    sparsifier = method(kind, begin=begin, end=end, frequency=frequency, allocation=allocation_name, drop_fraction=0.4, seed=5)
    sparsifier.prepare(model)
    updates = {*range(begin, end, frequency), end}
    oracle = Oracle(kind, numpy_masks(sparsifier), updates, end, 0.4, 5)
    shapes = {name: mask.shape for name, mask in oracle.masks.items()}
    final = erdos_renyi_kernel(shapes, 0.8) if allocation_name == "erdos-renyi-kernel" else dict.fromkeys(NAMES, 0.8)
    for name, mask in oracle.masks.items():
        assert (~mask).sum() == dropped_count(final[name], mask.size)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    total, grown, moved_share = int(sum(m.sum() for m in oracle.masks.values())), 0, 0
    for step in range(1, 201):
        optimizer.zero_grad()
        for part in range(2):
            loss_of(model, 2 * step + part).backward()
        before = {name: mask.copy() for name, mask in oracle.masks.items()}
        oracle.before_step(step, arrays(model), arrays(model, gradients=True))
        if early:
            sparsifier.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        found = numpy_masks(sparsifier)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], oracle.masks[name], err_msg=f"{name} after step {step}")
            new = oracle.masks[name] & ~before[name]
            grown += int(new.sum())
            weights, state = arrays(model)[name], optimizer.state[dict(model.named_parameters())[name]]
            assert (weights[new] == 0).all(), "what is grown begins at zero"
            for entry in ("exp_avg", "exp_avg_sq"):
                assert (state[entry].numpy()[new] == 0).all(), "and without optimizer state"
                stayed = state[entry].numpy()[before[name] & found[name]]
                assert stayed.size < 4 or (stayed != 0).any(), "what stays keeps its own"
            if kind != "snfs":
                assert found[name].sum() == before[name].sum()
            moved_share += int(found[name].sum() != before[name].sum())
        assert dropped_weights_are_zero(model, sparsifier)
        assert sum(mask.sum() for mask in found.values()) == total
    assert grown > 100
    assert (moved_share > 0) == (kind == "snfs")


shares_and_room = st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), st.integers(0, 50)), min_size=1, max_size=7)


@settings(max_examples=300)
@given(shares_and_room, st.floats(0.0, 1.0))
def test_apportioning_equals_the_oracle_and_meets_the_total(members, part):
    shares, room = [share for share, _ in members], [capacity for _, capacity in members]
    total = int(part * sum(room))
    found = apportion(total, shares, room)
    assert sum(found) == total
    assert all(0 <= value <= capacity for value, capacity in zip(found, room, strict=True))
    if any(room):
        assert found == parts_of(total, shares, room)


def test_static_sparse_training_never_moves():
    model = classifier()
    sparsifier = sparsebench.static_sparse_training(sparsity=0.8, allocation="uniform", seed=3)
    sparsifier.prepare(model)
    first = sparsifier.masks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(20), after=lambda _: dropped_weights_are_zero(model, sparsifier) or pytest.fail("not zero"))
    assert all(torch.equal(mask, first[name]) for name, mask in sparsifier.masks().items())
    assert all(int((~mask).sum()) == dropped_count(0.8, mask.numel()) for mask in first.values())


def test_what_is_dropped_and_grown_at_once_was_never_away():
    # The smallest weights have the largest gradients: RigL drops them and grows them again.
    model = nn.Linear(4, 1, bias=False)
    sparsifier = sparsebench.rigl(sparsity=0.5, begin=0, end=100, frequency=1, allocation="uniform", drop_fraction=0.5)
    sparsifier.prepare(model)
    kept = sparsifier.masks()["weight"][0]
    with torch.no_grad():
        model.weight[0, kept] = torch.tensor([1.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.9)
    sparsifier.attach(optimizer)
    model.weight.grad = torch.ones(1, 4) * 0.5
    model.weight.grad[0, kept] = torch.tensor([4.0, 0.0])
    optimizer.step()
    assert torch.equal(sparsifier.masks()["weight"][0], kept)
    assert model.weight.detach()[0, kept].tolist() == [0.5, 2.0]
    assert optimizer.state[model.weight]["momentum_buffer"][0, kept].tolist() == [4.0, 0.0]


STEPWISE = [case for case in optimizer_cases() if case[0] not in (torch.optim.LBFGS, torch.optim.SparseAdam)]


@pytest.mark.parametrize("case", STEPWISE, ids=case_name)
def test_grown_weights_have_the_state_of_a_fresh_optimizer_whatever_it_is(case):
    kind, options = case
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10, bias=False), nn.Tanh(), nn.Linear(10, 3, bias=False))
    sparsifier = method("rigl", allocation="uniform", sparsity=0.5, drop_fraction=0.5, frequency=3)
    sparsifier.prepare(model)
    optimizer = kind(model.parameters(), **options)
    sparsifier.attach(optimizer)
    grown, masks = 0, sparsifier.masks()
    for step in range(9):
        optimizer.zero_grad()
        inputs, targets = batch(step, (8, 8))
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        before, masks = masks, sparsifier.masks()
        for name, parameter in model.named_parameters():
            new = masks[name] & ~before[name]
            grown += int(new.sum())
            assert bool((parameter.detach()[new] == 0).all())
            for entry, value in optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    begin = options["lr"] if (kind, entry) == (torch.optim.Rprop, "step_size") else 0.0
                    if (kind, entry) == (torch.optim.Adagrad, "sum"):
                        begin = options.get("initial_accumulator_value", 0.0)
                    assert bool((value[new] == torch.tensor(begin, dtype=value.dtype)).all()), entry
        assert dropped_weights_are_zero(model, sparsifier)
    assert grown > 5


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
    "SGD-fused": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
}


def new_run(kind, optimizer_name, seed=0, **changes):
    model = classifier(seed=seed)
    sparsifier = method(kind, drop_fraction=0.4, **changes)
    sparsifier.prepare(model)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier.attach(optimizer)
    return model, optimizer, sparsifier


def run(model, optimizer, steps):
    for step in steps:

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bit_identical(kind, optimizer_name):
    uninterrupted = new_run(kind, optimizer_name)
    saved = {}
    for step in range(20):
        run(uninterrupted[0], uninterrupted[1], [step])
        if step + 1 in (3, 4, 9, 15):
            file = io.BytesIO()
            torch.save(everything(*uninterrupted), file)
            file.seek(0)
            saved[step + 1] = torch.load(file, weights_only=True)
    for split, states in saved.items():
        again = new_run(kind, optimizer_name, seed=9)
        for part, state in zip(again, states, strict=True):
            part.load_state_dict(state)
        run(again[0], again[1], range(split, 20))
        assert same(everything(*again), everything(*uninterrupted))


def test_momentum_is_part_of_the_state_and_of_snfs_alone():
    for kind in KINDS:
        _, _, sparsifier = new_run(kind, "SGD")
        assert ("momentum" in sparsifier.state_dict()) == (kind == "snfs")
    state = sparsifier.state_dict()
    for damaged in (
        {key: value for key, value in state.items() if key != "momentum"},
        state | {"momentum": state["momentum"] | {"head.weight": torch.zeros(2)}},
    ):
        with pytest.raises(SparsebenchError, match="the saved state is damaged: no momentum of shape"):
            sparsifier.load_state_dict(damaged)


def test_states_of_another_regrowth_are_refused():
    states = {kind: new_run(kind, "SGD")[2] for kind in KINDS}
    with pytest.raises(SparsebenchError, match=r"regrowth\.annealing is 'cosine' there and 'unchanged' here"):
        states["set"].load_state_dict(states["rigl"].state_dict())
    static = sparsebench.static_sparse_training(sparsity=0.8)
    static.prepare(classifier())
    with pytest.raises(SparsebenchError, match="regrowth is in the saved state and not here"):
        static.load_state_dict(states["rigl"].state_dict())


@pytest.mark.parametrize("early", [False, True], ids=["in the step", "by the user"])
@pytest.mark.parametrize("where", ["dropped", "kept", "bias"])
@pytest.mark.parametrize("optimizer_name", ["SGD", "SGD-fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_grad_scaler_skips_leaves_everything_as_it_was(kind, optimizer_name, where, early):
    runs = []
    for skipped in (False, True):
        model, optimizer, sparsifier = new_run(kind, optimizer_name)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000, backoff_factor=0.5)

        def step(index, poisoned=False, model=model, optimizer=optimizer, sparsifier=sparsifier, scaler=scaler):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, index)).backward()
            if poisoned:
                mask = sparsifier.masks()["hidden.weight"]
                if where == "bias":
                    model.hidden.bias.grad[0] = torch.inf
                else:
                    model.hidden.weight.grad[mask if where == "kept" else ~mask] = torch.inf
            if early:
                scaler.unscale_(optimizer)
                sparsifier.mask_gradients()
            scaler.step(optimizer)
            scaler.update()

        for index in range(12):
            if skipped and index in (2, 3, 7):  # 3 and 7 would complete updates
                before = everything(model, optimizer, sparsifier)
                step(100 + index, poisoned=True)
                assert same(everything(model, optimizer, sparsifier), before)
                assert sparsifier.step == index
            step(index)
        runs.append(everything(model, optimizer, sparsifier))
    if optimizer_name == "SGD" or early:
        assert same(*runs), "the run goes on as if the skipped steps had not been"
    # The fused kernel divides by a scale that the skipped steps halved: powers of two, but momentum may round elsewhere.
    assert same(runs[0][2]["masks"], runs[1][2]["masks"])


def test_momentum_does_not_depend_on_the_loss_scale():
    averages = []
    for scale in (1.0, 4096.0):
        model, optimizer, sparsifier = new_run("snfs", "SGD-fused")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for index in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, index)).backward()
            scaler.step(optimizer)
            scaler.update()
        averages.append(sparsifier.state_dict()["momentum"])
    for name in averages[0]:
        torch.testing.assert_close(averages[0][name], averages[1][name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("way", ["step()", "step(closure)", "two optimizers", "masked by the user"])
def test_momentum_is_averaged_in_its_own_memory_where_the_step_is_certain_and_is_the_same_everywhere(way):
    momenta, places = [], []
    for this in ("step()", way):
        model = classifier()
        sparsifier = method("snfs", frequency=3)
        sparsifier.prepare(model)
        parameters = list(model.parameters())
        parts = [parameters[:3], parameters[3:]] if this == "two optimizers" else [parameters]
        optimizers = [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in parts]
        sparsifier.attach(optimizers)
        places.append({tuple(value.data_ptr() for value in sparsifier._movement.momentum)})
        for index in range(8):

            def closure(model=model, index=index):
                model.zero_grad()
                loss = loss_of(model, index)
                loss.backward()
                return loss

            if this == "step(closure)":
                optimizers[0].step(closure)
            else:
                closure()
                if this == "masked by the user":
                    sparsifier.mask_gradients()
                for optimizer in optimizers:
                    optimizer.step()
            places[-1].add(tuple(value.data_ptr() for value in sparsifier._movement.momentum))
        momenta.append(sparsifier.state_dict()["momentum"])
    assert same(*momenta)
    assert [len(seen) == 1 for seen in places] == [True, way == "step()"]


def test_infinite_gradients_that_an_optimizer_takes_are_named_and_choose_nothing():
    # Rprop looks at signs only: the weights stay finite.
    model = classifier()
    sparsifier = method("rigl", frequency=1)
    sparsifier.prepare(model)
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    loss_of(model, 0).backward()
    mask = sparsifier.masks()["hidden.weight"]
    model.hidden.weight.grad[mask] = torch.inf
    with pytest.raises(SparsebenchError, match=r"^the score of 'hidden.weight' is not finite at step 1$"):
        optimizer.step()
    assert torch.equal(sparsifier.masks()["hidden.weight"], mask)


def test_an_infinite_momentum_is_neither_saved_nor_ranked():
    model = classifier()
    sparsifier = method("snfs", frequency=4)
    sparsifier.prepare(model)
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    loss_of(model, 0).backward()
    mask = sparsifier.masks()["hidden.weight"]
    sparsifier.state_dict()
    model.hidden.weight.grad[mask] = torch.inf
    optimizer.step()
    message = r"^the momentum of 'hidden.weight' is not finite: a gradient since the last update was not$"
    with pytest.raises(SparsebenchError, match=message):
        sparsifier.state_dict()
    model.hidden.weight.grad.nan_to_num_(posinf=0.0)
    optimizer.step()
    optimizer.step()
    with pytest.raises(SparsebenchError, match=message):
        optimizer.step()
    assert torch.equal(sparsifier.masks()["hidden.weight"], mask)


def test_a_later_evaluation_of_a_closure_counts_and_the_first_masking_does_not():
    model = nn.Linear(6, 1, bias=False)
    sparsifier = sparsebench.rigl(sparsity=0.5, begin=1, end=10, frequency=1, drop_fraction=0.34, allocation="uniform")
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    free = (~sparsifier.masks()["weight"][0]).nonzero().flatten().tolist()
    model.weight.grad = torch.zeros(1, 6)
    model.weight.grad[0, free[0]] = 5.0

    def closure():
        # Twice, as a line search would.
        model.weight.grad = torch.zeros(1, 6)
        model.weight.grad[0, free[2]] = 1.0
        return torch.zeros(())

    optimizer.step(closure)
    assert sparsifier.masks()["weight"][0].nonzero().flatten().tolist().count(free[2]) == 1
    assert not bool(sparsifier.masks()["weight"][0, free[0]])


def test_layers_without_gradients_keep_their_masks():
    model = classifier()
    sparsifier = method("rigl", frequency=1)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    first = sparsifier.masks()
    loss_of(model, 0).backward()
    model.head.weight.grad = None
    optimizer.step()
    masks = sparsifier.masks()
    assert torch.equal(masks["head.weight"], first["head.weight"])
    assert not torch.equal(masks["hidden.weight"], first["hidden.weight"])


def test_between_updates_nothing_is_kept_and_no_score_is_asked():
    asked = []

    def growth(layer):
        asked.append(layer.name)
        return layer.gradient.abs()

    model = classifier()
    regrowth = Regrowth(schedules.constant(0, 8, 4), growth, 0.3, cosine)
    sparsifier = MaskedSparsifier(scores.random, allocation.Uniform(0.8), schedules.one_shot(), regrowth=regrowth)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    counts = []
    train(model, optimizer, range(10), after=lambda _: counts.append(len(asked)))
    assert counts == [0, 0, 0, 3, 3, 3, 3, 6, 6, 6]
    assert all(value is None for name, value in vars(sparsifier._movement).items() if "momentum" in name or "chosen" in name)


@pytest.mark.parametrize("structure", ["block:2x3", "channel"])
@pytest.mark.parametrize("kind", ["set", "rigl"])
def test_units_move_as_wholes_and_their_number_stays(kind, structure):
    model = classifier()
    sparsifier = method(kind, structure=structure, sparsity=0.5, allocation="uniform", drop_fraction=0.5)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    first = sparsifier.masks()
    train(model, optimizer, range(16), after=lambda _: dropped_weights_are_zero(model, sparsifier) or pytest.fail("not zero"))
    masks = sparsifier.masks()
    rows = {name: mask.flatten(1) for name, mask in masks.items()}
    if structure == "channel":
        assert all(bool((mask.all(1) == mask.any(1)).all()) for mask in rows.values())
        assert all(int(mask.any(1).sum()) == len(mask) - dropped_count(0.5, len(mask)) for mask in rows.values())
    else:
        blocks = masks["hidden.weight"][:, :63].reshape(6, 2, 21, 3).transpose(1, 2).flatten(2)
        assert bool((blocks.all(-1) == blocks.any(-1)).all())
    assert any(not torch.equal(mask, first[name]) for name, mask in masks.items())


def test_sparse_gradients_of_an_embedding_grow_its_weights():
    torch.manual_seed(0)
    model = LanguageModel(tied=False, sparse=True)
    sparsifier = method("rigl", layers="embedding", allocation="uniform", sparsity=0.5, frequency=1)
    sparsifier.prepare(model)
    optimizer = torch.optim.SparseAdam([model.embedding.weight], lr=0.05)
    sparsifier.attach(optimizer)
    first = sparsifier.masks()["embedding.weight"]
    for step in range(6):
        words = torch.randint(11, (8, 2), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words[:, 0]), words[:, 1]).backward()
        optimizer.step()
        assert dropped_weights_are_zero(model, sparsifier)
        assert int(sparsifier.masks()["embedding.weight"].sum()) == 33
    assert not torch.equal(first, sparsifier.masks()["embedding.weight"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes_and_copies(kind, dtype):
    model = classifier().to(dtype)
    sparsifier = method(kind)
    sparsifier.prepare(model)
    model, sparsifier = copy.deepcopy((model, sparsifier))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    total = sum(int(mask.sum()) for mask in sparsifier.masks().values())
    for step in range(9):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(dtype)).float(), targets).backward()
        optimizer.step()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert sum(int(mask.sum()) for mask in sparsifier.masks().values()) == total
    assert dropped_weights_are_zero(model, sparsifier)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_fraction": 1.5}, r"drop_fraction=1.5: expected a fraction of the kept weights in \[0, 1\]"),
        ({"drop_fraction": True}, "drop_fraction=True: expected"),
        ({"drop_fraction": "0.3"}, "drop_fraction='0.3': expected"),
        ({"frequency": 0}, "frequency=0: expected"),
        ({"end": 2, "begin": 3}, "end=2 is before begin=3"),
        ({"sparsity": -1}, "sparsity=-1: expected"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_out_of_range_are_refused_by_name(kind, changes, message):
    with pytest.raises(SparsebenchError, match="^" + message):
        method(kind, **changes)


@pytest.mark.parametrize("momentum", [1.0, -0.1, "0.9"])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(SparsebenchError, match=r"^momentum=.*: expected a number in \[0, 1\)"):
        method("snfs", momentum=momentum)


def test_what_regrowth_cannot_be_composed_with_is_refused():
    regrowth = Regrowth(schedules.constant(0, 8, 4), scores.random, 0.3)

    def composed(schedule=schedules.one_shot(), policy="gone"):  # noqa: B008 - a frozen value
        return MaskedSparsifier(scores.random, allocation.Uniform(0.8), schedule, policy, regrowth=regrowth)

    with pytest.raises(SparsebenchError, match=r"^policy='returning': regrown weights begin at zero"):
        composed(policy="returning")
    with pytest.raises(
        SparsebenchError, match=r"^schedule: regrowth keeps the sparsity; expected one_shot\(\), not updates until 9"
    ):
        composed(schedules.linear(0, 9, 3))
    for kind in KINDS:
        with pytest.raises(SparsebenchError, match=r"^structure: masks of an n:m pattern do not move"):
            method(kind, structure="2:4", sparsity=0.5, allocation="uniform")
    with pytest.raises(SparsebenchError, match=r"^structure='channel': channels of different layers are not alike"):
        method("snfs", structure="channel")


@pytest.mark.parametrize("kind", ["static", *KINDS])
def test_they_are_named_methods_of_studies(kind):
    config = resolve("digits", kind, {"sparsity": 0.9})
    assert config.parameters["sparsity"] == 0.9
    if kind != "static":
        steps = config.recipe.steps
        assert (config.parameters["begin"], config.parameters["end"]) == (0, 3 * steps // 4)


def test_rigl_learns_what_a_static_network_of_the_same_size_cannot():
    # Only two of a hundred inputs matter; a static random network of 98 % sparsity does not see them in every row.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 100, generator=generator)
    targets = inputs[:, 17] - 2 * inputs[:, 61]
    losses = {}
    for name, sparsifier in {
        "static": sparsebench.static_sparse_training(sparsity=0.95, allocation="uniform", seed=1),
        "rigl": method("rigl", sparsity=0.95, allocation="uniform", end=200, frequency=5, seed=1),
    }.items():
        model = nn.Linear(100, 1)
        sparsifier.prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        sparsifier.attach(optimizer)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (model(inputs).squeeze(1) - targets).square().mean()
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["rigl"] < 1e-3
    assert losses["static"] > 0.5
