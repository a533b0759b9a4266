"""How the sparsity is shared among layers."""

import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from masked_oracle import erdos_renyi_kernel
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked.allocation import (
    ErdosRenyiKernel,
    Global,
    LayerMap,
    Uniform,
    UniformDenseFirst,
    allocation_by_name,
)

shapes_of_models = st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=4), min_size=1, max_size=6).map(
    lambda shapes: {f"layer{i}.weight": tuple(shape) for i, shape in enumerate(shapes)}
)
sparsities = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.98, 1.0]), st.floats(0.0, 1.0))


def final(allocation, shapes):
    groups = allocation.groups(shapes)
    assert [name for group in groups for name in group.names] == list(shapes)
    return {group.names[0]: group.sparsity for group in groups}


@settings(max_examples=200)
@given(shapes_of_models, sparsities)
def test_erdos_renyi_kernel_equals_the_oracle_and_meets_the_target(shapes, sparsity):
    found = final(ErdosRenyiKernel(sparsity), shapes)
    assert found == pytest.approx(erdos_renyi_kernel(shapes, sparsity), abs=1e-9)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert all(0.0 <= value <= 1.0 for value in found.values())
    assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(sparsity * sum(sizes.values()), abs=1e-6)


@settings(max_examples=100)
@given(shapes_of_models, sparsities, sparsities)
def test_erdos_renyi_kernel_is_monotone_in_the_sparsity(shapes, first, second):
    assume(first < second)
    low, high = final(ErdosRenyiKernel(first), shapes), final(ErdosRenyiKernel(second), shapes)
    assert all(low[name] <= high[name] + 1e-9 for name in shapes)


def test_uniform_gives_each_layer_a_group_and_global_one_for_all():
    shapes = {"a.weight": (2, 3), "b.weight": (4, 5)}
    assert final(Uniform(0.7), shapes) == {"a.weight": 0.7, "b.weight": 0.7}
    (group,) = Global(0.7).groups(shapes)
    assert (group.names, group.sparsity) == (("a.weight", "b.weight"), 0.7)


@settings(max_examples=200)
@given(shapes_of_models, sparsities)
def test_uniform_with_a_dense_first_layer_meets_the_target_or_says_what_is_possible(shapes, sparsity):
    sizes = [math.prod(shape) for shape in shapes.values()]
    possible = sum(sizes[1:]) / sum(sizes)
    assume(abs(sparsity - possible) > 1e-9 or sparsity == 0.0)
    if sparsity > possible:
        with pytest.raises(SparsebenchError, match=r"^allocation='uniform-dense-first': .*'layer0.weight'") as caught:
            UniformDenseFirst(sparsity).groups(shapes)
        assert f"at most {possible:.4g} is possible" in str(caught.value)
        return
    first, *others = final(UniformDenseFirst(sparsity), shapes).values()
    assert first == 0.0
    assert others == [pytest.approx(sparsity * sum(sizes) / max(sum(sizes[1:]), 1))] * len(others)
    assert sum(map(math.prod, zip(sizes[1:], others, strict=True))) == pytest.approx(sparsity * sum(sizes), abs=1e-6)


def test_a_first_layer_that_takes_all_that_is_kept_stays_dense_and_the_others_are_empty():
    assert final(UniformDenseFirst(0.7), {"a": (3, 1), "b": (7, 1)}) == {"a": 0.0, "b": 1.0}


def test_the_first_matching_pattern_of_a_map_counts():
    shapes = {"stem.weight": (2, 2), "block.0.weight": (2, 2), "block.1.weight": (2, 2), "head.weight": (2, 2)}
    allocation = LayerMap(0.9, {"stem": 0.0, "block.1.weight": 0.3, "block.*": 0.5})
    assert final(allocation, shapes) == {
        "stem.weight": 0.0,
        "block.0.weight": 0.5,
        "block.1.weight": 0.3,
        "head.weight": 0.9,
    }


def test_a_map_pattern_that_matches_nothing_is_an_error_naming_it():
    with pytest.raises(SparsebenchError, match=r"allocation: pattern 'conv\*' matches no layer; the layers are head.weight"):
        LayerMap(0.9, {"conv*": 0.1}).groups({"head.weight": (2, 2)})


@pytest.mark.parametrize("sparsity", [1.2, -0.1, float("nan"), "0.9", True, None])
@pytest.mark.parametrize("allocation", ["uniform", "uniform-dense-first", "global", "erdos-renyi-kernel", {"head": 0.5}])
def test_a_sparsity_out_of_range_is_an_error_naming_it(sparsity, allocation):
    with pytest.raises(SparsebenchError, match=r"^sparsity=.*expected a fraction of the weights in \[0, 1\]") as caught:
        sparsebench.magnitude_pruning(sparsity=sparsity, begin=0, end=1, frequency=1, allocation=allocation)
    assert "\n" not in str(caught.value)


def test_a_sparsity_out_of_range_in_a_map_is_an_error_naming_its_pattern():
    with pytest.raises(SparsebenchError, match=r"allocation\['head'\]=1.5: expected a fraction"):
        allocation_by_name({"head": 1.5}, 0.9)


@pytest.mark.parametrize("allocation", ["erk", "", None, 3, ["uniform"]])
def test_an_unknown_allocation_is_an_error_that_lists_the_known_ones(allocation):
    known = "'uniform', 'uniform-dense-first', 'global', 'erdos-renyi-kernel', or a map"
    with pytest.raises(SparsebenchError, match=f"allocation=.*expected {known}"):
        sparsebench.magnitude_pruning(sparsity=0.9, begin=0, end=1, frequency=1, allocation=allocation)


@pytest.mark.parametrize(
    "method",
    [
        partial(sparsebench.magnitude_pruning, begin=0, end=2, frequency=1),
        partial(sparsebench.static_sparse_training, seed=3),
        partial(sparsebench.rigl, begin=1, end=2, frequency=1, seed=3),
    ],
    ids=["magnitude", "static", "rigl"],
)
def test_a_first_layer_that_stays_dense_is_dense_throughout_and_the_network_has_the_sparsity_asked_for(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    sparsifier = method(sparsity=0.6, allocation="uniform-dense-first")
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 9)).square().sum().backward()
        optimizer.step()
        assert sparsifier.masks()["0.weight"].all()
    dropped = {name: int((~mask).sum()) for name, mask in sparsifier.masks().items()}
    # 0.6 x 900 of all weights are 540 of the 720 that are not the first layer's: three quarters of each.
    assert dropped == {"0.weight": 0, "2.weight": 450, "4.weight": 90}
