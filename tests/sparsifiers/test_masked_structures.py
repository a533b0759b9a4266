"""Blocks, channels and n:m patterns against naive loops over the units of a layer's matrix."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_oracle import cubic, dropped_count, erdos_renyi_kernel, highest
from masked_toys import classifier, dropped_weights_are_zero, loss_of, magnitude, train
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked import allocation, schedules
from sparsebench.sparsifiers.masked.engine import MaskedSparsifier
from sparsebench.sparsifiers.masked.layout import from_matrix, to_matrix
from sparsebench.sparsifiers.masked.structures import Block, Channel, Element, NOfM, structure_by_name
from sparsebench.training.config import resolve


def coordinates(layer):
    """Row and column in the matrix [outputs, inputs] of every weight, by its index in the stored tensor; from the definition."""
    shape, places = tuple(layer.weight.shape), {}
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    inputs = shape[0] // layer.groups if transposed else shape[1]
    for index in itertools.product(*map(range, shape)):
        first, second, *kernel = index
        position = 0
        for place, size in zip(kernel, shape[2:], strict=True):
            position = position * size + place
        if transposed:
            group = first // inputs
            places[index] = (group * shape[1] + second, position * inputs + first % inputs)
        else:
            places[index] = (first, position * inputs + second)
    return places


def naive_units(layer, structure):
    """Lists of weight indices, a list for each unit, in the order in which ties are broken."""
    units = {}
    for index, (row, column) in coordinates(layer).items():
        key = {
            "Element": index,
            "Block": (row // getattr(structure, "rows", 1), column // getattr(structure, "columns", 1)),
            "Channel": (row,),
        }[type(structure).__name__]
        units.setdefault(key, []).append(index)
    return [units[key] for key in sorted(units)]


def naive_masks(layers, scores, structure, sparsity):
    """Masks of layers that share a budget: the units of highest mean score, the first of equal ones."""
    units = [naive_units(layer, structure) for layer in layers]
    means = [
        np.array([np.mean([np.float64(score[i]) for i in unit]) for unit in own])
        for own, score in zip(units, scores, strict=True)
    ]
    total = sum(map(len, units))
    kept = highest(means, total - dropped_count(sparsity, total))
    masks = [np.zeros(score.shape, dtype=bool) for score in scores]
    for mask, own, keep in zip(masks, units, kept, strict=True):
        for unit, kept_unit in zip(own, keep, strict=True):
            for index in unit:
                mask[index] = kept_unit
    return masks


def naive_n_of_m(layer, score, m, sparsity):
    places = {place: index for index, place in coordinates(layer).items()}
    rows, columns = max(r for r, _ in places) + 1, max(c for _, c in places) + 1
    mask = np.zeros(score.shape, dtype=bool)
    for row in range(rows):
        for begin in range(0, columns, m):
            members = [places[row, column] for column in range(begin, min(begin + m, columns))]
            best = sorted(members, key=lambda index: -float(score[index]))  # sorted() is stable
            for index in best[: len(members) - dropped_count(sparsity, len(members))]:
                mask[index] = True
    return mask


def layer_of(kind, out, into, kernel, groups, memory_format=torch.contiguous_format):
    if kind == "linear":
        return nn.Linear(into, out)
    if kind == "conv1d":
        return nn.Conv1d(into * groups, out * groups, kernel, groups=groups)
    if kind == "transposed1d":
        return nn.ConvTranspose1d(into * groups, out * groups, kernel, groups=groups)
    if kind == "transposed2d":
        return nn.ConvTranspose2d(into * groups, out * groups, (kernel, 2), groups=groups).to(memory_format=memory_format)
    return nn.Conv2d(into * groups, out * groups, (kernel, 2), groups=groups).to(memory_format=memory_format)


layers = st.builds(
    layer_of,
    st.sampled_from(["linear", "conv1d", "conv2d", "transposed1d", "transposed2d"]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
sparsities = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0.0, 1.0))


def with_weights(layer, seed, ties, dtype=torch.float32):
    generator = np.random.default_rng(seed)
    values = generator.integers(-2, 3, layer.weight.shape) / 2 if ties else generator.normal(size=tuple(layer.weight.shape))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(values))
    return layer.to(dtype)


def dropped_by(model, structure, chosen, **options):
    sparsifier = MaskedSparsifier(lambda layer: layer.weight.abs(), chosen, schedules.one_shot(), structure=structure, **options)
    sparsifier.prepare(model)
    return sparsifier


@settings(max_examples=150)
@given(layers)
def test_the_matrix_of_a_layer_has_the_documented_order_and_an_inverse(layer):
    numbers = torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
    matrix = to_matrix(numbers, layer)
    for index, place in coordinates(layer).items():
        assert matrix[place] == numbers[index]
    assert matrix.numel() == numbers.numel()
    assert torch.equal(from_matrix(matrix.contiguous(), numbers.shape, layer), numbers)


def test_the_matrix_of_a_convolution_multiplies_unfolded_channels_last_images():
    layer, images = nn.Conv2d(3, 5, (2, 3), bias=False), torch.randn(2, 3, 6, 7)
    patches = nn.functional.unfold(images, (2, 3)).unflatten(1, (3, 6)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close((to_matrix(layer.weight, layer) @ patches).view(2, 5, 5, 5), layer(images))


def test_rows_of_the_matrix_are_the_outputs_of_a_transposed_convolution():
    for groups in (1, 2):
        layer, images = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False), torch.randn(2, 4, 5, 5)
        for output in (0, 3, layer.out_channels - 1):
            changed = copy.deepcopy(layer)
            with torch.no_grad():
                matrix = to_matrix(changed.weight, changed).clone()
                matrix[output] = 0.0
                changed.weight.copy_(from_matrix(matrix, changed.weight.shape, changed))
            zero = (changed(images) == 0).all(dim=(0, 2, 3))
            assert zero.tolist() == [other == output for other in range(layer.out_channels)]


@settings(max_examples=150)
@given(
    st.lists(layers, min_size=1, max_size=3),
    st.one_of(st.just(Element()), st.just(Channel()), st.builds(Block, st.integers(1, 4), st.integers(1, 4))),
    sparsities,
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_masks_equal_those_of_a_loop_over_units(members, structure, sparsity, seed, ties, one_ranking, dtype):
    members = [with_weights(layer, seed + i, ties, dtype) for i, layer in enumerate(members)]
    if isinstance(structure, Block):
        fits = [to_matrix(layer.weight, layer).shape for layer in members]
        members = [
            m for m, (rows, columns) in zip(members, fits, strict=True) if structure.rows <= rows and structure.columns <= columns
        ]
    if not members:
        return
    model = nn.Sequential(*members)
    scores = [layer.weight.detach().abs().double().numpy().copy() for layer in members]
    chosen = allocation.Global(sparsity) if one_ranking else allocation.Uniform(sparsity)
    found = dropped_by(model, structure, chosen).masks()
    if one_ranking:
        expected = naive_masks(members, scores, structure, sparsity)
    else:
        expected = [naive_masks([m], [s], structure, sparsity)[0] for m, s in zip(members, scores, strict=True)]
    for mask, want, layer in zip(found.values(), expected, members, strict=True):
        np.testing.assert_array_equal(mask.numpy(), want)
        assert bool((layer.weight.detach()[~mask] == 0).all())


@settings(max_examples=150)
@given(layers, st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_n_of_m_keeps_the_best_of_every_m_inputs(layer, n, more, seed, ties):
    structure = NOfM(n, n + more)
    layer = with_weights(layer, seed, ties)
    if to_matrix(layer.weight, layer).shape[1] < structure.m:
        return
    score = layer.weight.detach().abs().numpy().copy()
    sparsity = 1 - n / structure.m
    mask = dropped_by(layer, structure, allocation.Uniform(sparsity)).masks()["weight"]
    np.testing.assert_array_equal(mask.numpy(), naive_n_of_m(layer, score, structure.m, sparsity))
    matrix = to_matrix(mask, layer)
    whole = matrix[:, : matrix.shape[1] // structure.m * structure.m].reshape(matrix.shape[0], -1, structure.m)
    assert bool((whole.sum(-1) == n).all())


@pytest.mark.parametrize("policy", ["returning", "gone"])
@pytest.mark.parametrize("structure", ["block:2x3", "channel", "element", "2:4"])
@pytest.mark.parametrize("allocation_name", ["uniform", "global", "erdos-renyi-kernel", {"convolution": 0.0, "head": 0.5}])
def test_counts_are_exact_at_every_update_of_a_training(structure, allocation_name, policy):
    if structure == "2:4" and allocation_name in ("global", "erdos-renyi-kernel"):
        return
    sparsity = 0.5 if structure == "2:4" else 0.8
    model = classifier(memory_format=torch.channels_last)
    kind = structure_by_name(structure)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    members = {"convolution.weight": model.convolution, "hidden.weight": model.hidden, "head.weight": model.head}
    final = erdos_renyi_kernel(shapes, sparsity) if allocation_name == "erdos-renyi-kernel" else dict.fromkeys(shapes, sparsity)
    if isinstance(allocation_name, dict):
        final |= {"convolution.weight": 0.0, "head.weight": 0.5}
    sparsifier = magnitude(sparsity=sparsity, structure=structure, allocation=allocation_name, policy=policy, begin=0)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=0.01)
    sparsifier.attach(optimizer)
    history = [sparsifier.masks()]

    def check(step):
        masks = sparsifier.masks()
        history.append(masks)
        assert dropped_weights_are_zero(model, sparsifier)
        if step + 1 not in (3, 6, 9, 10):
            return
        if structure == "2:4":
            for name, layer in members.items():
                matrix = to_matrix(masks[name], layer)
                for begin in range(0, matrix.shape[1], 4):
                    part = matrix[:, begin : begin + 4]
                    dropped = dropped_count(cubic(step + 1, 0, 10, final[name]), part.shape[1])
                    assert bool(((~part).sum(1) == dropped).all())
            return
        counts = {}
        for name, layer in members.items():
            units = [[bool(masks[name][index]) for index in unit] for unit in naive_units(layer, kind)]
            assert all(all(unit) or not any(unit) for unit in units), "a unit is kept or dropped as a whole"
            counts[name] = (sum(not any(unit) for unit in units), len(units))
        if allocation_name == "global":
            dropped, total = map(sum, zip(*counts.values(), strict=True))
            assert dropped == dropped_count(cubic(step + 1, 0, 10, sparsity), total)
        else:
            for name, (dropped, total) in counts.items():
                assert dropped == dropped_count(cubic(step + 1, 0, 10, final[name]), total)

    train(model, optimizer, range(12), after=check)
    grew = any(bool((later[name] & ~earlier[name]).any()) for earlier, later in itertools.pairwise(history) for name in earlier)
    assert not (grew and policy == "gone")
    again = magnitude(sparsity=sparsity, structure=structure, allocation=allocation_name, policy=policy, begin=0)
    again.prepare(classifier(seed=5))
    again.load_state_dict(sparsifier.state_dict())
    assert all(torch.equal(mask, again.masks()[name]) for name, mask in sparsifier.masks().items())


def test_units_that_are_gone_stay_gone_when_the_kept_score_as_low_as_can_be():
    def first_rank_then_worst(layer):
        position = torch.arange(layer.mask.numel(), dtype=torch.float32).reshape(layer.mask.shape)
        return position if layer.mask.all() else torch.full_like(position, torch.finfo(torch.float32).min)

    for structure, sparsity in [(Block(2, 2), 0.6), (Channel(), 0.6), (NOfM(1, 4), 0.75)]:
        model = nn.Linear(8, 10)
        sparsifier = MaskedSparsifier(
            first_rank_then_worst, allocation.Uniform(sparsity), schedules.linear(1, 5, 1), "gone", structure
        )
        sparsifier.prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sparsifier.attach(optimizer)
        masks = [sparsifier.masks()["weight"]]
        for _ in range(5):
            optimizer.step()
            masks.append(sparsifier.masks()["weight"])
        assert all(bool((later <= earlier).all()) for earlier, later in itertools.pairwise(masks))
        assert sparsifier.sparsity == sparsity


def test_random_blocks_are_drawn_like_random_weights():
    model = nn.Linear(40, 40)
    sparsifier = sparsebench.random_pruning(sparsity=0.75, begin=0, end=0, frequency=1, structure="block:4x4", seed=1)
    sparsifier.prepare(model)
    blocks = sparsifier.masks()["weight"].reshape(10, 4, 10, 4).transpose(1, 2).flatten(2)
    assert bool((blocks.all(-1) == blocks.any(-1)).all())
    assert int(blocks[..., 0].sum()) == 25
    again = sparsebench.random_pruning(sparsity=0.75, begin=0, end=0, frequency=1, structure="block:4x4", seed=2)
    again.prepare(nn.Linear(40, 40))
    assert not torch.equal(again.masks()["weight"], sparsifier.masks()["weight"])


def test_dropped_channels_are_zero_outputs():
    model = classifier()
    magnitude(sparsity=0.5, begin=0, end=0, structure="channel", layers="convolution").prepare(model)
    with torch.no_grad():
        model.convolution.bias.zero_()
        outputs = model.convolution(torch.randn(3, 2, 6, 6))
    assert int((outputs == 0).all(dim=(0, 2, 3)).sum()) == 2


def test_a_run_resumes_exactly_with_every_structure():
    for structure, sparsity in [("block:2x2", 0.8), ("channel", 0.6), ("1:2", 0.5)]:
        runs = []
        for split in (None, 7):
            model = classifier()
            sparsifier = magnitude(sparsity=sparsity, structure=structure)
            sparsifier.prepare(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            sparsifier.attach(optimizer)
            if split is not None:
                train(model, optimizer, range(split))
                saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()])
                model = classifier(seed=3)
                sparsifier = magnitude(sparsity=sparsity, structure=structure)
                sparsifier.prepare(model)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                sparsifier.attach(optimizer)
                for part, state in zip((model, optimizer, sparsifier), saved, strict=True):
                    part.load_state_dict(state)
            train(model, optimizer, range(split or 0, 12))
            runs.append(model.state_dict())
        assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_states_of_other_structures_are_refused():
    sparsifiers = [magnitude(begin=0, structure=structure) for structure in ("block:2x2", "block:2x3", "channel")]
    for sparsifier in sparsifiers:
        sparsifier.prepare(classifier())
    with pytest.raises(SparsebenchError, match=r"structure\.columns is 3 there and 2 here"):
        sparsifiers[0].load_state_dict(sparsifiers[1].state_dict())
    with pytest.raises(SparsebenchError, match=r"structure\.kind is 'Channel' there and 'Block' here"):
        sparsifiers[0].load_state_dict(sparsifiers[2].state_dict())


@pytest.mark.parametrize(
    ("text", "structure"),
    [("element", Element()), ("channel", Channel()), ("block:16x1", Block(16, 1)), ("2:4", NOfM(2, 4)), ("1:16", NOfM(1, 16))],
)
def test_structures_by_name(text, structure):
    assert structure_by_name(text) == structure


@pytest.mark.parametrize(
    "text", ["", "blocks", "block", "block:4", "block:0x4", "block:4x-1", "block:4 x 4", "row", None, 3.5, "4x4", " 2:4"]
)
def test_an_unknown_structure_is_an_error_that_says_what_there_is(text):
    with pytest.raises(
        SparsebenchError, match=r"^structure=.*: expected 'element', 'channel', 'block:4x4' .* or '2:4'"
    ) as caught:
        magnitude(structure=text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["4:4", "5:4", "0:4", "0:0"])
def test_an_impossible_pattern_is_an_error(text):
    with pytest.raises(SparsebenchError, match=rf"^structure='{text}': expected n of m with 0 < n < m"):
        magnitude(structure=text, sparsity=0.5)


def test_a_pattern_that_yaml_read_as_minutes_and_seconds_is_explained():
    with pytest.raises(SparsebenchError, match=r'^structure=124: .*\(YAML needs quotes around "2:4"\)$'):
        magnitude(structure=124)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.9}, "sparsity=0.9: structure='2:4' keeps 2 of 4 weights: expected 0.5, or 0 for layers that stay dense"),
        (
            {"allocation": "global"},
            "structure='2:4' fixes every layer's sparsity at 0.5: expected allocation='uniform', or a map",
        ),
        ({"allocation": "erdos-renyi-kernel"}, "structure='2:4' fixes every layer's sparsity"),
    ],
)
def test_a_pattern_fixes_its_sparsity_when_the_method_is_made(changes, message):
    with pytest.raises(SparsebenchError) as caught:
        magnitude(**{"structure": "2:4", "sparsity": 0.5} | changes)
    assert str(caught.value).startswith(message)


def test_a_pattern_fixes_the_sparsity_of_single_layers_too():
    with pytest.raises(SparsebenchError, match=r"^the sparsity of 'head.weight'=0.7: structure='2:4' keeps 2 of 4"):
        magnitude(structure="2:4", sparsity=0.5, allocation={"head": 0.7}).prepare(classifier())
    model = classifier()
    sparsifier = magnitude(structure="2:4", sparsity=0.5, allocation={"head": 0.0}, begin=0, end=0)
    sparsifier.prepare(model)
    assert bool(sparsifier.masks()["head.weight"].all())
    assert float(sparsifier.masks()["hidden.weight"].float().mean()) == 0.5


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("block:5x1", r"structure='block:5x1': 'convolution.weight' is smaller, a matrix of 4x18 \(outputs x inputs\)"),
        ("block:1x19", r"structure='block:1x19': 'convolution.weight' is smaller"),
        ("10:20", r"structure='10:20': 'convolution.weight' has only 18 inputs for each output: leave the layer out"),
    ],
)
def test_units_larger_than_a_layer_are_refused_before_anything_changes(structure, message):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    sparsifier = magnitude(structure=structure, sparsity=0.5, begin=0)
    with pytest.raises(SparsebenchError, match=message):
        sparsifier.prepare(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    magnitude(structure=structure, sparsity=0.5, begin=0, layers="hidden").prepare(model)


def test_scores_of_blocks_ignore_the_padding_of_partial_ones():
    # Two full columns of ones and a partial block of a single two: its mean is higher, its sum is not.
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 1.5], [1.0, 1.0, 1.5]]))
    sparsifier = dropped_by(model, Block(2, 2), allocation.Uniform(0.5))
    assert sparsifier.masks()["weight"].tolist() == [[False, False, True], [False, False, True]]


def test_structures_reach_studies_through_the_named_methods():
    config = resolve("digits", "magnitude-structured", {"sparsity": 0.5, "structure": "2:4"})
    assert config.parameters["structure"] == "2:4"
    assert resolve("digits", "random-structured", {"sparsity": 0.5}).parameters["structure"] == "block:4x4"
    with pytest.raises(SparsebenchError, match=r"^sparsity=0.9: structure='2:4' keeps 2 of 4"):
        resolve("digits", "magnitude-structured", {"sparsity": 0.9, "structure": "2:4"})
    with pytest.raises(SparsebenchError, match=r"structure=124: .*quotes"):
        resolve("digits", "magnitude-structured", {"sparsity": 0.5, "structure": 124})


def test_training_goes_on_learning_with_blocks():
    model = classifier()
    sparsifier = magnitude(structure="block:2x2", sparsity=0.5, begin=0, end=4, frequency=2)
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    units = math.prod(model.hidden.weight.shape) // 4
    assert int((model.hidden.weight == 0).sum()) == 4 * dropped_count(0.5, units)
