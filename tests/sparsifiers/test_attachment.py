"""The tie between a sparsifier and an optimizer."""

import copy
import pickle

import pytest
import torch
from masked_toys import classifier, dropped_weights_are_zero, loss_of, magnitude, matrices, pruned, train
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.dense import DenseBaseline


def hooks_of(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_only_hooks_are_added():
    model = classifier()
    names = [name for name, _ in model.named_parameters()]
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters())
    keys = set(optimizer.state_dict())
    step = type(optimizer).step
    sparsifier.attach(optimizer)
    assert hooks_of(optimizer) == 2
    assert set(optimizer.state_dict()) == keys
    assert type(optimizer).step is step
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.is_leaf and type(parameter) is nn.Parameter for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("make", [magnitude, DenseBaseline], ids=["masked", "dense"])
@pytest.mark.parametrize("call", ["penalty", "finalize", "parameter_groups"])
def test_prepare_comes_first(make, call):
    with pytest.raises(SparsebenchError, match=r"^call prepare\(model\) first$"):
        getattr(make(), call)(*([0.1] if call == "parameter_groups" else []))


def test_prepare_comes_before_attach_and_all_else():
    optimizer = torch.optim.SGD(classifier().parameters(), lr=0.1)
    sparsifier = magnitude()
    for call in (
        lambda: sparsifier.attach(optimizer),
        lambda: sparsifier.sparsity,
        sparsifier.masks,
        lambda: list(sparsifier.points()),
        sparsifier.state_dict,
        lambda: sparsifier.load_state_dict({}),
        lambda: sparsifier.apply_masks(classifier()),
    ):
        with pytest.raises(SparsebenchError, match=r"^call prepare\(model\) first$"):
            call()
    assert hooks_of(optimizer) == 0


def test_an_optimizer_without_a_needed_parameter_is_refused_by_name():
    model = classifier()
    sparsifier = magnitude()
    sparsifier.prepare(model)
    with pytest.raises(SparsebenchError, match=r"the optimizer does not hold 'hidden.weight': make it after prepare\(\)"):
        sparsifier.attach(torch.optim.SGD([p for p in model.parameters() if p is not model.hidden.weight], lr=0.1))
    # Of a copy of the model, say.
    with pytest.raises(SparsebenchError, match=r"does not hold 'convolution.weight' and 2 more"):
        sparsifier.attach(torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))


@pytest.mark.parametrize("what", [None, "SGD", torch.optim.lr_scheduler.StepLR])
def test_something_else_than_an_optimizer_is_refused(what):
    sparsifier = magnitude()
    sparsifier.prepare(classifier())
    with pytest.raises(SparsebenchError, match=r"attach\(\) expects a torch.optim.Optimizer, got"):
        sparsifier.attach(what)


class Wrapper:
    """What Accelerate's and others' wrappers look like."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


def test_wrappers_are_looked_through():
    model = classifier()
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = Wrapper(Wrapper(optimizer))
    sparsifier.attach(wrapper.optimizer)
    assert hooks_of(optimizer) == 2
    loss_of(model, 0).backward()
    wrapper.step()
    assert sparsifier.step == 1


def test_a_scheduler_of_the_learning_rate_does_not_disturb():
    model = classifier()
    sparsifier = magnitude()
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(12), after=lambda _: scheduler.step())
    assert sparsifier.step == 12
    assert dropped_weights_are_zero(model, sparsifier)


def test_attaching_again_lets_go_of_the_old_optimizer():
    model, old, sparsifier = pruned(steps=5)
    new = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier.attach(new)
    assert hooks_of(old) == 0
    assert hooks_of(new) == 2
    old.step()
    assert sparsifier.step == 5
    train(model, new, range(5, 12))
    assert sparsifier.step == 12
    assert dropped_weights_are_zero(model, sparsifier)
    sparsifier.attach(new)
    assert hooks_of(new) == 2, "the same optimizer twice counts once"


def test_a_refused_optimizer_leaves_the_old_attachment():
    model, optimizer, sparsifier = pruned(steps=5)
    with pytest.raises(SparsebenchError):
        sparsifier.attach(torch.optim.SGD([model.head.weight], lr=0.1))
    train(model, optimizer, range(5, 7))
    assert sparsifier.step == 7


def test_preparing_another_model_lets_go_of_the_optimizer():
    _, optimizer, sparsifier = pruned(steps=5)
    sparsifier.prepare(matrices())
    assert hooks_of(optimizer) == 0
    optimizer.step()
    assert sparsifier.step == 0


def test_peers_row_13_a_model_is_copied_and_pickled_as_any_other():
    model, _, sparsifier = pruned()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(parameter.is_leaf and type(parameter) is nn.Parameter for parameter in other.parameters())
        assert dropped_weights_are_zero(other, sparsifier)
        before = model.hidden.weight.detach().clone()
        train(other, torch.optim.SGD(other.parameters(), lr=0.1), range(1))
        assert torch.equal(model.hidden.weight.detach(), before)
    fresh = classifier(seed=3)
    fresh.load_state_dict(model.state_dict())
    assert dropped_weights_are_zero(fresh, sparsifier)


def test_training_with_a_copied_optimizer_is_detected_and_attaching_to_the_copy_helps():
    model, optimizer, sparsifier = pruned()
    copied_model, copied_optimizer, copied = copy.deepcopy((model, optimizer, sparsifier))
    assert hooks_of(copied_optimizer) == 0
    train(copied_model, copied_optimizer, range(12, 14))
    for call in (lambda: list(copied.points()), copied.state_dict, copied.finalize):
        with pytest.raises(
            SparsebenchError, match=r"are not zero: .*a copied optimizer has no hooks: call attach\(\) on the copy"
        ):
            call()
    copied.attach(copied_optimizer)
    train(copied_model, copied_optimizer, range(14, 15))
    assert dropped_weights_are_zero(copied_model, copied)
    assert len(list(copied.points())) == 1
    assert copied.state_dict()["step"] == 13
    assert sparsifier.step == 12


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))], ids=["copy", "pickle"])
def test_peers_row_13_model_optimizer_and_sparsifier_are_copied_together(duplicate):
    original = pruned(steps=6)
    copied = duplicate(original)
    copied[2].attach(copied[1])
    for model, optimizer, _ in (original, copied):
        train(model, optimizer, range(6, 12))
    assert original[2].step == copied[2].step == 12
    for name, parameter in original[0].state_dict().items():
        assert torch.equal(parameter, copied[0].state_dict()[name])
    assert copied[2].sparsity == original[2].sparsity > 0.79
    assert all(
        not torch.is_tensor(p) or p is not q for p, q in zip(original[0].parameters(), copied[0].parameters(), strict=True)
    )


@pytest.mark.parametrize("fused", [False, True], ids=["ordinary", "fused"])
def test_a_step_that_the_gradient_scaler_skips_does_not_count(fused):
    model = classifier()
    sparsifier = magnitude(begin=1, end=3, frequency=1)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    sparsifier.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, overflows in enumerate([False, True, True, False, False]):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if overflows:
            model.head.bias.grad[0] = torch.inf
        before = [parameter.detach().clone() for parameter in model.parameters()]
        counted, sparsity = sparsifier.step, sparsifier.sparsity
        scaler.step(optimizer)
        scaler.update()
        assert sparsifier.step == counted + (not overflows)
        if overflows:
            assert sparsifier.sparsity == sparsity
            assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert sparsifier.step == 3
    assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)


def test_two_sparsifiers_share_an_optimizer():
    model = classifier()
    some, others = magnitude(layers="hidden"), magnitude(sparsity=0.5, layers="!hidden")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for sparsifier in (some, others):
        sparsifier.prepare(model)
        sparsifier.attach(optimizer)
    train(model, optimizer, range(12), after=lambda _: None)
    for sparsifier, sparsity in ((some, 0.8), (others, 0.5)):
        assert sparsifier.step == 12
        assert sparsifier.sparsity == pytest.approx(sparsity, abs=0.01)
        assert dropped_weights_are_zero(model, sparsifier)
    some.finalize()
    assert hooks_of(optimizer) == 2


def test_the_dense_baseline_counts_steps_and_changes_nothing():
    runs = []
    for sparsifier in (None, DenseBaseline()):
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if sparsifier is not None:
            sparsifier.prepare(model)
            sparsifier.attach(optimizer)
        train(model, optimizer, range(5))
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert sparsifier.step == 5
    copied = copy.deepcopy((model, optimizer, sparsifier))
    copied[2].attach(copied[1])
    train(copied[0], copied[1], range(1))
    assert (copied[2].step, sparsifier.step) == (6, 5)


def test_a_model_wrapped_for_many_devices_is_refused(tmp_path):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(classifier())
        for model, where in [(wrapped, "the model"), (nn.ModuleDict({"net": wrapped}), "'net'")]:
            with pytest.raises(
                SparsebenchError, match=rf"{where} is wrapped already \(DistributedDataParallel\): call prepare\(\) before"
            ):
                magnitude().prepare(model)
        model = classifier()
        sparsifier = sparsebench.magnitude_pruning(sparsity=0.8, begin=2, end=10, frequency=3)
        sparsifier.prepare(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer)
        train(wrapped, optimizer, range(12))
        assert dropped_weights_are_zero(model, sparsifier)
        assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)
    finally:
        distributed.destroy_process_group()
