"""What the masked engine promises beside its masks: dtypes, finalizing, fine-tuning, copies, errors."""

import copy
import math
import warnings

import pytest
import torch
from masked_toys import LanguageModel, batch, classifier, dropped_weights_are_zero, loss_of, magnitude, matrices, pruned, train
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked import allocation, schedules, scores
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.sparsifier import Sparsifier


def one_shot(score=scores.magnitude, sparsity=0.5, **options):
    return MaskedSparsifier(score, allocation.Uniform(sparsity), schedules.one_shot(), **options)


def test_it_is_a_sparsifier_with_one_point_and_no_penalty():
    model, _, sparsifier = pruned()
    assert isinstance(sparsifier, Sparsifier)
    (point,) = sparsifier.points()
    assert (point.sparsity, point.threshold) == (sparsifier.sparsity, None)
    before = copy.deepcopy(model.state_dict())
    with point as entered:
        assert entered is point
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sparsifier.penalty().shape == ()
    assert float(sparsifier.penalty()) == 0.0


def test_parameter_groups_hold_every_trainable_parameter_once():
    model = LanguageModel(tied=True)
    model.hidden.bias.requires_grad_(False)
    sparsifier = magnitude()
    sparsifier.prepare(model)
    (group,) = sparsifier.parameter_groups(lr=0.3, auxiliary_lr_scale=5.0)
    assert group["lr"] == 0.3
    assert [id(p) for p in group["params"]] == [id(model.embedding.weight), id(model.hidden.weight)]


class MyLinear(nn.Linear):
    pass


def test_layers_left_dense_by_default_are_warned_about_where_prepare_is_called():
    model = nn.ModuleDict({"known": nn.Linear(3, 3), "mine": MyLinear(3, 3)})
    with pytest.warns(UserWarning, match=r"stay dense, their types are not supported: mine \(MyLinear\)$") as caught:
        magnitude().prepare(model)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        magnitude(layers="known").prepare(model)


# Reading the weights


def test_peers_row_5_every_copy_of_the_weights_that_can_be_read_is_sparse(tmp_path):
    model, _, sparsifier = pruned()
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    sizes = {name: mask.numel() for name, mask in sparsifier.masks().items()}
    for state in (model.state_dict(), checkpoint, copy.deepcopy(model).state_dict(), sparsifier.finalize().state_dict()):
        for name, size in sizes.items():
            assert int((state[name] == 0).sum()) == math.floor(0.8 * size + 0.5)


def test_masks_are_copies():
    _, _, sparsifier = pruned()
    masks = sparsifier.masks()
    assert all(mask.dtype == torch.bool for mask in masks.values())
    for mask in masks.values():
        mask.fill_(True)
    assert sparsifier.sparsity > 0.79
    assert all(not bool(mask.all()) for mask in sparsifier.masks().values())


@pytest.mark.parametrize("policy", ["returning", "gone"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_peers_row_18_weights_and_optimizer_state_keep_their_dtype(dtype, policy):
    model = matrices().to(dtype)
    sparsifier = magnitude(policy=policy, allocation="global")
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-4)
    sparsifier.attach(optimizer)
    for step in range(12):
        inputs, targets = batch(step, (8, 8))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(dtype)).float(), targets).backward()
        optimizer.step()
        assert dropped_weights_are_zero(model, sparsifier)
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == optimizer.state[parameter]["exp_avg"].dtype == dtype
    assert all(mask.dtype == torch.bool for mask in sparsifier.masks().values())
    assert all(parameter.dtype == dtype for parameter in sparsifier.finalize().parameters())
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


def test_peers_row_18_autocast_keeps_float32_weights():
    model = classifier()
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    for step in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        assert dropped_weights_are_zero(model, sparsifier)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_layers_of_different_dtypes_compete_in_one_ranking():
    model = nn.Sequential(nn.Linear(8, 8).double(), nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8))
    expected = torch.cat([layer.weight.detach().abs().double().reshape(-1) for layer in model]).sort().values[96]
    wanted = [layer.weight.detach().abs().double() >= expected for layer in model]
    sparsifier = magnitude(begin=0, end=0, sparsity=0.5, allocation="global")
    sparsifier.prepare(model)
    assert len(list(sparsifier.points())) == 1
    assert [layer.weight.dtype for layer in model] == [torch.float64, torch.bfloat16, torch.float32]
    assert sum(int(mask.sum()) for mask in sparsifier.masks().values()) == 96
    assert all(bool((mask <= want).all()) for mask, want in zip(sparsifier.masks().values(), wanted, strict=True))


def test_a_model_converted_after_prepare_stays_as_converted():
    model = matrices()
    sparsifier = magnitude(begin=0)
    sparsifier.prepare(model)
    model.bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for step in range(10):
        inputs, targets = batch(step, (8, 8))
        nn.functional.cross_entropy(model(inputs.bfloat16()).float(), targets).backward()
        optimizer.step()
        assert dropped_weights_are_zero(model, sparsifier)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


# Loops


def test_peers_row_20_accumulated_and_clipped_gradients_in_a_loop_of_one_s_own():
    model = classifier()
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.attach(optimizer)
    for step in range(12):
        optimizer.zero_grad()
        for part in range(3):
            loss_of(model, 3 * step + part).backward()
        sparsifier.mask_gradients()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        masked = {name: p.grad[~sparsifier.masks()[name]] for name, p in model.named_parameters() if name in sparsifier.masks()}
        assert all(bool((gradient == 0).all()) for gradient in masked.values())
        clipped = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
        assert float(clipped) == pytest.approx(min(0.1, float(norm)), rel=1e-3)
        optimizer.step()
    assert sparsifier.step == 12
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


def test_masking_gradients_twice_is_masking_them_once():
    model, _, sparsifier = pruned()
    loss_of(model, 0).backward()
    expected = {name: dict(model.named_parameters())[name].grad * mask for name, mask in sparsifier.masks().items()}
    bias = model.head.bias.grad.clone()
    for _ in range(2):
        sparsifier.mask_gradients()
        for name, parameter in model.named_parameters():
            if name in expected:
                assert torch.equal(parameter.grad, expected[name])
    assert torch.equal(model.head.bias.grad, bias)
    assert any(bool((gradient != 0).any()) for gradient in expected.values())


def test_parameters_without_gradients_are_left_alone():
    model = classifier()
    sparsifier = magnitude(begin=0)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    sparsifier.attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    sparsifier.mask_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_peers_row_21_a_tied_weight_has_one_mask_and_is_counted_once():
    model = LanguageModel(tied=True)
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for step in range(12):
        words = torch.randint(11, (8, 2), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words[:, 0]), words[:, 1]).backward()
        optimizer.step()
    assert list(sparsifier.masks()) == ["embedding.weight", "hidden.weight"]
    assert int((model.embedding.weight == 0).sum()) == math.floor(0.8 * 66 + 0.5)
    assert sparsifier.sparsity == pytest.approx((53 + 29) / (66 + 36), abs=1e-12)
    assert model.head.weight is model.embedding.weight
    assert list(sparsifier.state_dict()["masks"]) == ["embedding.weight", "hidden.weight"]
    copied = copy.deepcopy(model)
    assert copied.head.weight is copied.embedding.weight


# The end


def test_finalize_gives_the_same_model_with_positive_zeros_and_no_hooks():
    """PEERS 1: masks are folded away, and nothing is left that costs time or memory."""
    model, optimizer, sparsifier = pruned()
    with torch.no_grad():
        weight = model.hidden.weight
        weight[weight == 0] = -0.0
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert bool((weight.signbit() & (weight == 0)).any())
    sparsity = sparsifier.sparsity
    assert sparsifier.finalize() is model
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), values[name])
        if name in sparsifier.masks():
            assert not bool(parameter.detach()[parameter == 0].signbit().any())
        assert parameter.requires_grad
        assert parameter.is_leaf
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert sparsifier.sparsity == sparsity
    train(model, optimizer, range(1))
    assert sparsifier.step == 12, "nobody follows any more"
    assert int((model.hidden.weight == 0).sum()) < 0.8 * model.hidden.weight.numel()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.5),
    ],
    ids=["SGD", "AdamW"],
)
def test_peers_row_6_frozen_masks_keep_the_zeros_through_fine_tuning(make):
    model = pruned()[2].finalize()
    with torch.no_grad():
        model.convolution.weight[0] = 0.0
    zeros = {name: parameter.detach() == 0 for name, parameter in model.named_parameters() if parameter.dim() > 1}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # Continued elsewhere: from a checkpoint, in a new model.
    again = classifier(seed=8)
    again.load_state_dict(model.state_dict())
    sparsifier = sparsebench.freeze_masks(again)
    assert all(torch.equal(mask, ~zeros[name]) for name, mask in sparsifier.masks().items())
    assert all(torch.equal(parameter.detach(), start[name]) for name, parameter in again.named_parameters())
    optimizer = make(again.parameters())
    sparsifier.attach(optimizer)
    train(again, optimizer, range(20))
    for name, parameter in again.named_parameters():
        if name in zeros:
            assert bool((parameter.detach()[zeros[name]] == 0).all())
            assert bool((parameter.detach()[~zeros[name]] != start[name][~zeros[name]]).any())
    assert sparsifier.finalize() is again


def test_freezing_keeps_what_is_left_of_the_packed_projections_of_attention():
    """PEERS 6: query, key and value hold different numbers of zeros."""
    attention = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        attention.in_proj_weight[:8, :4] = 0.0
        attention.out_proj.weight[3] = 0.0
    before = {name: parameter.detach().clone() for name, parameter in attention.named_parameters()}
    masks = sparsebench.freeze_masks(attention).masks()
    assert all(torch.equal(parameter, before[name]) for name, parameter in attention.named_parameters())
    assert masks.keys() == {"in_proj_weight", "out_proj.weight"}
    assert all(torch.equal(mask, before[name] != 0) for name, mask in masks.items())


def test_freezing_a_dense_model_drops_nothing_and_is_warned_of():
    with pytest.warns(UserWarning, match=r"^freeze_masks\(\): the network has no zeros to keep$"):
        assert sparsebench.freeze_masks(matrices()).sparsity == 0.0


@pytest.mark.parametrize("policy", ["returning", "gone"])
def test_masks_are_applied_to_an_averaged_copy(policy):
    model = classifier()
    sparsifier = magnitude(policy=policy)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    train(model, optimizer, range(12), after=lambda _: averaged.update_parameters(model))
    assert not dropped_weights_are_zero(averaged.module, sparsifier), "the average of a network that was dense is dense"
    before = copy.deepcopy(averaged.module.state_dict())
    sparsifier.apply_masks(averaged.module)
    masks = sparsifier.masks()
    for name, value in averaged.module.state_dict().items():
        assert torch.equal(value, before[name] * masks[name] if name in masks else before[name])
    assert dropped_weights_are_zero(averaged.module, sparsifier)


def test_masks_are_applied_in_the_other_model_s_dtype():
    _, _, sparsifier = pruned()
    other = classifier(seed=2).bfloat16()
    sparsifier.apply_masks(other)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}
    assert dropped_weights_are_zero(other, sparsifier)


@pytest.mark.parametrize("other", [nn.Linear(2, 2), matrices()])
def test_masks_do_not_fit_another_model(other):
    _, _, sparsifier = pruned()
    with pytest.raises(SparsebenchError, match=r"has no parameter 'convolution.weight' of shape \(4, 2, 3, 3\)"):
        sparsifier.apply_masks(other)


def test_peers_row_14_a_lottery_ticket_starts_from_the_saved_weights():
    model = classifier()
    initial = copy.deepcopy(model.state_dict())
    _, _, sparsifier = pruned(model=model)
    sparsifier.finalize()
    assert not torch.equal(model.hidden.weight, initial["hidden.weight"])
    model.load_state_dict(initial)
    sparsifier.apply_masks(model)
    ticket = sparsebench.freeze_masks(model)
    for name, mask in sparsifier.masks().items():
        assert torch.equal(ticket.masks()[name], mask)
        assert torch.equal(model.state_dict()[name], initial[name] * mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ticket.attach(optimizer)
    train(model, optimizer, range(3))
    assert dropped_weights_are_zero(model, sparsifier)


# What goes wrong


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("step", [2, 4, 8, 16])
def test_a_weight_that_is_not_finite_stops_the_run_with_its_name(value, step):
    model = classifier()
    sparsifier = magnitude(begin=2, end=4, frequency=2)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(step - 1))
    loss_of(model, 0).backward()
    model.hidden.weight.grad.view(-1)[model.hidden.weight.abs().argmax()] = value
    # At updates, and at every eighth step.
    with pytest.raises(SparsebenchError, match=rf"^'hidden.weight' holds a NaN or an infinity after step {step}: the training"):
        optimizer.step()


@pytest.mark.parametrize("read", [lambda s: next(s.points()), lambda s: s.state_dict(), lambda s: s.finalize()])
def test_a_weight_that_is_not_finite_is_found_by_whoever_reads(read):
    model = classifier()
    sparsifier = magnitude(begin=2, end=4, frequency=2)
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(4))
    with torch.no_grad():
        model.hidden.weight[model.hidden.weight != 0] = torch.nan
    with pytest.raises(SparsebenchError, match=r"^'hidden.weight' holds a NaN or an infinity after step 4: the training"):
        read(sparsifier)


def test_large_finite_weights_do_not_stop_the_run():
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.fill_(3e38)
    sparsifier = one_shot()
    sparsifier.prepare(model)
    assert len(list(sparsifier.points())) == 1


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda layer: layer.weight.abs()[:1], r"a torch.float32 tensor of shape \(1, 8\): expected .* of shape \(10, 8\)$"),
        (lambda layer: layer.weight.abs().sum(), r"a torch.float32 tensor of shape \(\): expected"),
        (
            lambda layer: layer.weight.abs().long(),
            r"a torch.int64 tensor of shape \(10, 8\): expected a tensor of floating-point",
        ),
        (lambda layer: layer.mask, r"a torch.bool tensor"),
        (lambda layer: layer.weight * torch.nan, r"is not finite at step 0$"),
        (lambda layer: layer.weight * torch.inf, r"is not finite at step 0$"),
        (lambda layer: None, r"is a None: expected a tensor"),
        (lambda layer: 3.0, r"is a 3.0: expected a tensor"),
    ],
)
@pytest.mark.parametrize("policy", ["returning", "gone"])
def test_a_score_that_cannot_be_ranked_is_refused_by_the_layer_s_name(score, message, policy):
    with pytest.raises(SparsebenchError, match="the score of '0.weight' " + r".*" + message) as caught:
        one_shot(score, policy=policy).prepare(matrices())
    assert "\n" not in str(caught.value)


def test_a_score_sees_the_layer_as_promised():
    seen, masks = [], []

    def score(layer):
        seen.append(layer)
        masks.append(layer.mask)
        assert layer.weight.shape == layer.mask.shape
        assert layer.mask.dtype == torch.bool
        assert not layer.weight.requires_grad
        return torch.rand(layer.weight.shape, generator=layer.generator)

    model = matrices()
    sparsifier = MaskedSparsifier(score, allocation.Uniform(0.5), schedules.constant(0, 2, 1), "returning")
    sparsifier.prepare(model)
    assert [layer.name for layer in seen] == ["0.weight", "2.weight"]
    assert all(layer.gradient is None and bool(mask.all()) for layer, mask in zip(seen, masks, strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    first = sparsifier.masks()
    train(model, optimizer, range(1), (8, 8))
    assert torch.equal(masks[2], first["0.weight"])
    assert bool((seen[2].gradient[~first["0.weight"]] == 0).all())
    assert bool((seen[2].gradient != 0).any())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end": 1}, r"end=1 is before begin=2: expected end >= begin"),
        ({"frequency": 0}, r"frequency=0: expected a number of steps, an integer of at least 1"),
        ({"frequency": -3}, r"frequency=-3: "),
        ({"frequency": 1.5}, r"frequency=1.5: "),
        ({"frequency": True}, r"frequency=True: "),
        ({"begin": -1}, r"begin=-1: expected a number of steps, an integer of at least 0"),
        ({"begin": 0.2}, r"begin=0.2: "),
        ({"begin": "2"}, r"begin='2': "),
        ({"end": 10.0}, r"end=10.0: "),
        ({"end": None}, r"end=None: "),
        ({"initial_sparsity": 1.01}, r"initial_sparsity=1.01: expected a fraction of the weights in \[0, 1\]"),
        ({"initial_sparsity": float("nan")}, r"initial_sparsity=nan: "),
        ({"initial_sparsity": "0.1"}, r"initial_sparsity='0.1': "),
    ],
)
@pytest.mark.parametrize("method", [sparsebench.magnitude_pruning, sparsebench.random_pruning])
def test_arguments_out_of_range_are_refused_by_name(method, changes, message):
    with pytest.raises(SparsebenchError, match="^" + message) as caught:
        method(**{"sparsity": 0.8, "begin": 2, "end": 10, "frequency": 3} | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("power", [0, -1.0, float("nan"), "3", None])
def test_a_power_that_is_not_positive_is_refused(power):
    with pytest.raises(SparsebenchError, match=r"^power=.*: expected a number above 0"):
        schedules.polynomial(0, 10, 1, power=power)


def test_a_constant_schedule_that_ends_before_it_begins_is_refused():
    with pytest.raises(SparsebenchError, match="end=4 is before begin=5: expected end >= begin"):
        schedules.constant(5, 4, 1)


@pytest.mark.parametrize("policy", ["returning", "gone"])
@pytest.mark.parametrize("allocation_name", ["uniform", "global", "erdos-renyi-kernel"])
@pytest.mark.parametrize("sparsity", [0.0, 1.0, 0, 1])
def test_nothing_and_everything_can_be_dropped(sparsity, allocation_name, policy):
    model, _, sparsifier = pruned(sparsity=sparsity, allocation=allocation_name, policy=policy)
    assert sparsifier.sparsity == sparsity
    assert next(sparsifier.points()).sparsity == sparsity
    for name in sparsifier.masks():
        assert bool((dict(model.named_parameters())[name] == 0).all()) == (sparsity == 1)


def test_weights_changed_behind_the_sparsifier_s_back_are_named():
    model, _, sparsifier = pruned()
    model.load_state_dict(classifier().state_dict())
    for call in (lambda: list(sparsifier.points()), sparsifier.state_dict, sparsifier.finalize):
        with pytest.raises(SparsebenchError, match=r"^dropped weights of 'convolution.weight' are not zero"):
            call()
