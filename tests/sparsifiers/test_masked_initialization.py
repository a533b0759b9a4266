"""Pruning at initialization against finite differences, closed forms and naive loops; the model stays untouched."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_oracle import dropped_count, erdos_renyi_kernel, highest
from masked_toys import batch, classifier
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.masked import initial_scores
from sparsebench.sparsifiers.masked.initial_scores import GraSP, Network

# Through networks as small as those drawn here sometimes nothing flows.
pytestmark = pytest.mark.filterwarnings("ignore:all scores of")

seeds = st.integers(0, 2**31 - 1)
widths = st.lists(st.integers(1, 6), min_size=2, max_size=4)
SCORES = ["snip", "grasp", "synflow", "magnitude", "random"]


def cross_entropy(model, pair):
    return nn.functional.cross_entropy(model(pair[0]), pair[1])


def mlp(sizes, seed, activation=nn.Tanh, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = []
        for into, out in itertools.pairwise(sizes):
            layers += [nn.Linear(into, out, bias=bias), activation()]
        return nn.Sequential(*layers[:-1]).double()


def data(sizes, seed, count=2, size=5):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, sizes[0], generator=generator, dtype=torch.float64),
            torch.randint(sizes[-1], (size,), generator=generator),
        )
        for _ in range(count)
    ]


def network_of(model, batches=(), loss_fn=cross_entropy, seed=0):
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    return Network(model, weights, loss_fn, batches, seed)


def mean_loss(model, batches):
    return sum(float(cross_entropy(model, pair).detach()) for pair in batches) / len(batches)


@settings(max_examples=40)
@given(widths, seeds)
def test_snip_is_the_change_of_the_loss_as_a_connection_weakens(sizes, seed):
    model, batches = mlp(sizes, seed), data(sizes, seed)
    for name, scores in initial_scores.snip(network_of(model, batches)).items():
        weight = dict(model.named_parameters())[name]
        for index in np.ndindex(*weight.shape):
            losses = []
            for connection in (1 + 1e-5, 1 - 1e-5):
                changed = copy.deepcopy(model)
                with torch.no_grad():
                    dict(changed.named_parameters())[name][index] *= connection
                losses.append(mean_loss(changed, batches))
            assert float(scores[index]) == pytest.approx(abs(losses[0] - losses[1]) / 2e-5, abs=1e-7)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.floats(0.5, 100.0), seeds)
def test_grasp_equals_its_closed_form_for_linear_regression(into, out, count, temperature, seed):
    generator = np.random.default_rng(seed)
    model = nn.Linear(into, out, bias=False).double()
    batches = [tuple(torch.as_tensor(generator.normal(size=(7, size))) for size in (into, out)) for _ in range(count)]

    def squares(model, pair):
        return (model(pair[0]) - pair[1]).square().mean()

    weight = model.weight.detach().numpy()
    x, y = (np.concatenate([pair[i].numpy() for pair in batches]) for i in (0, 1))
    scale = 2 / (len(x) * out * temperature)
    gradient = scale * (weight @ x.T @ x / temperature - y.T @ x)
    expected = weight * (scale / temperature * gradient @ x.T @ x)
    found = GraSP(temperature)(network_of(model, batches, squares))["weight"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


@settings(max_examples=25)
@given(widths, seeds, st.sampled_from([1.0, 200.0]))
def test_grasp_equals_finite_differences_of_the_gradient(sizes, seed, temperature):
    model, batches = mlp(sizes, seed), data(sizes, seed)

    def gradients(model):
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        loss = sum(nn.functional.cross_entropy(model(x) / temperature, y) for x, y in batches) / len(batches)
        return torch.autograd.grad(loss, weights)

    gradient = gradients(model)
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradient)) or 1.0
    sides = []
    for step in (1e-4 / norm, -1e-4 / norm):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for weight, part in zip((p for p in changed.parameters() if p.dim() > 1), gradient, strict=True):
                weight += step * part
        sides.append(gradients(changed))
    found = GraSP(temperature)(network_of(model, batches))
    for (name, scores), plus, minus in zip(found.items(), *sides, strict=True):
        expected = dict(model.named_parameters())[name].detach() * (plus - minus) / (2e-4 / norm)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-7 * norm)


def test_grasp_keeps_the_weights_whose_loss_hurts_the_gradient_most():
    model, batches = mlp([4, 6, 3], 1), data([4, 6, 3], 1)
    masks = sparsebench.initialize_masks(model, cross_entropy, batches, sparsity=0.6, score="grasp")
    scores = GraSP(200.0)(network_of(copy.deepcopy(model), batches))
    expected = highest([score.numpy() for score in scores.values()], 42 - dropped_count(0.6, 42))
    for mask, want in zip(masks.values(), expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), want)


def synflow_loop(weights, sparsity, rounds):
    """Algorithm 1 of Tanaka et al. in NumPy, for a chain of matrices with ReLUs."""
    weights = [np.abs(w) for w in weights]
    total = sum(w.size for w in weights)
    masks = [np.ones(w.shape, bool) for w in weights]
    for done in range(1, rounds + 1):
        current = [w * m for w, m in zip(weights, masks, strict=True)]
        signals = [np.ones(current[0].shape[1])]
        for w in current:
            signals.append(w @ signals[-1])
        flow, scores = np.ones(current[-1].shape[0]), []
        for w, signal in reversed(list(zip(current, signals, strict=False))):
            scores.insert(0, np.outer(flow, signal) * w)
            flow = w.T @ flow
        keep = total - dropped_count(1 - (1 - sparsity) ** (done / rounds) if done < rounds else sparsity, total)
        masks = highest([np.where(m, s, -1) for m, s in zip(masks, scores, strict=True)], keep)
    return masks


@settings(max_examples=60)
@given(widths, seeds, st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.98, 1.0]), st.integers(1, 12), st.booleans())
def test_synflow_equals_a_loop_over_its_rounds(sizes, seed, sparsity, rounds, bias):
    generator = np.random.default_rng(seed)
    model = mlp(sizes, seed, nn.ReLU, bias)
    # Small whole numbers: the arithmetic is exact, equal scores are equal.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.as_tensor(generator.integers(-4, 5, size=tuple(parameter.shape))))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    expected = synflow_loop([layer.weight.detach().numpy() for layer in layers], sparsity, rounds)
    found = sparsebench.initialize_masks(
        model.float(), cross_entropy, data(sizes, 0), sparsity=sparsity, score="synflow", rounds=rounds
    )
    for mask, want in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), want)


class Chain(nn.Module):
    """A chain of convolutions and linear layers of very different sizes, with normalization."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))

    def forward(self, images):
        return self.head(self.features(images))


def chain(kind, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "convolutions":
            return Chain(), (2, 3, 8, 8)
        sizes = [100, 300, 10, 100, 20, 100, 10]
        model = mlp(sizes, seed, nn.ReLU).float()
        with torch.no_grad():  # layers whose weights are a hundred times smaller than the others'
            model[2].weight.mul_(0.01)
            model[8].weight.mul_(0.01)
        return model, (2, 100)


def emptied(masks):
    return [name for name, mask in masks.items() if not bool(mask.any())]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["convolutions", "matrices"])
def test_synflow_never_empties_a_layer_of_a_chain_at_999_per_mille(kind, seed):
    model, shape = chain(kind, seed)
    batches = [(torch.randn(shape), torch.tensor([1, 2]))]
    options = {"sparsity": 0.999, "seed": seed}
    masks = sparsebench.initialize_masks(model, cross_entropy, batches, score="synflow", **options)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - dropped_count(0.999, total)
    assert emptied(masks) == []
    # In the network of absolute values, without biases, every layer carries the whole flow still.
    sparse = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, parameter in sparse.named_parameters():
            parameter.mul_(masks[name]) if name in masks else None
    scores = initial_scores.synflow(network_of(sparse, batches))
    flows = [float(score.sum()) for score in scores.values()]
    assert min(flows) > 0
    assert flows == pytest.approx([flows[0]] * len(flows), rel=1e-9)
    if kind == "matrices":
        assert emptied(sparsebench.initialize_masks(model, sparsity=0.999, score="magnitude")), "the control must fail"


@settings(max_examples=25)
@given(st.lists(st.integers(1, 60), min_size=4, max_size=6), st.integers(0, 3), st.integers(0, 10_000))
def test_synflow_never_empties_a_layer_while_there_is_a_weight_for_each(widths, spare, seed):
    """Chains of any widths, as many weights kept as there are layers and hardly more; 99.9 % where they are wide."""
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    total = sum(layer.weight.numel() for layer in layers)
    kept = min(max(len(layers) + spare, total // 1000), total)
    batches = [(torch.randn(2, widths[0]), torch.tensor([0, 0]))]
    masks = sparsebench.initialize_masks(model, cross_entropy, batches, score="synflow", sparsity=1 - kept / total)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept
    assert emptied(masks) == []


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("allocation", ["global", "uniform", "erdos-renyi-kernel", {"head": 0.25}])
def test_counts_are_exact(score, allocation):
    model = classifier()
    masks = sparsebench.initialize_masks(
        model, cross_entropy, [batch(0), batch(1)], sparsity=0.7, score=score, allocation=allocation, rounds=3
    )
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    assert all(mask.dtype == torch.bool and mask.is_contiguous() for mask in masks.values())
    dropped = {name: int((~mask).sum()) for name, mask in masks.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if allocation == "global":
        assert sum(dropped.values()) == dropped_count(0.7, sum(sizes.values()))
        return
    final = dict.fromkeys(shapes, 0.7)
    if allocation == "erdos-renyi-kernel":
        final = erdos_renyi_kernel(shapes, 0.7)
    elif allocation != "uniform":
        final["head.weight"] = 0.25
    assert dropped == {name: dropped_count(final[name], size) for name, size in sizes.items()}


@pytest.mark.parametrize(("structure", "sparsity"), [("block:2x2", 0.6), ("channel", 0.5), ("2:4", 0.5)])
@pytest.mark.parametrize("score", SCORES)
def test_every_score_goes_with_every_structure(score, structure, sparsity):
    options = {"sparsity": sparsity, "structure": structure, "allocation": "uniform", "rounds": 2}
    masks = sparsebench.initialize_masks(classifier(), cross_entropy, [batch(0)], score=score, **options)
    hidden = masks["hidden.weight"]
    if structure == "channel":
        assert bool((hidden.all(1) == hidden.any(1)).all())
        assert int(hidden.any(1).sum()) == 6
    elif structure == "2:4":
        assert bool((hidden.reshape(12, 16, 4).sum(-1) == 2).all())
    else:
        blocks = hidden.reshape(6, 2, 32, 2).transpose(1, 2).flatten(2)
        assert bool((blocks.all(-1) == blocks.any(-1)).all())
        assert int(blocks.any(-1).sum()) == 192 - dropped_count(0.6, 192)


@pytest.mark.parametrize("score", SCORES)
def test_the_model_and_the_random_state_are_untouched(score):
    model, shape = chain("convolutions", 0)
    model.features[1].eval()
    model.features[0].weight.requires_grad_(False)
    cross_entropy(model, (torch.randn(shape), torch.tensor([1, 2]))).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {name: None if g is None else g.clone() for name, g in gradients.items()}
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    pairs = [(torch.randn(shape[1:]), torch.tensor(1)) for _ in range(6)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=2, shuffle=True)
    noise = torch.get_rng_state()
    masks = sparsebench.initialize_masks(model, cross_entropy, loader, sparsity=0.9, score=score, rounds=2, seed=4)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert parameter.grad is None or torch.equal(parameter.grad, values[name])
        assert parameter.requires_grad == (name != "features.0.weight")
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.manual_seed(77)
    again = sparsebench.initialize_masks(model, cross_entropy, loader, sparsity=0.9, score=score, rounds=2, seed=4)
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items()), "the seed alone decides"


def test_random_masks_differ_with_the_seed():
    first, second = (sparsebench.initialize_masks(classifier(), sparsity=0.5, score="random", seed=seed) for seed in (0, 1))
    assert not torch.equal(first["hidden.weight"], second["hidden.weight"])


def test_rounds_score_what_is_left():
    seen = []

    def score(network):
        seen.append({name: int(weight.count_nonzero()) for name, weight in network.weights.items()})
        return initial_scores.magnitude(network)

    sparsebench.initialize_masks(nn.Linear(20, 10), sparsity=0.75, score=score, rounds=2, loss_fn=cross_entropy, batches=[0])
    assert seen == [{"weight": 200}, {"weight": 100}]


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_layers_that_nothing_flows_through_are_told_of(score):
    class Block(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.inner, self.norm = nn.Linear(6, 6, bias=False), nn.LayerNorm(6)
            nn.init.constant_(self.norm.weight, scale)

        def forward(self, x):
            return x + self.norm(self.inner(x))

    def masks(scale):
        torch.manual_seed(0)
        model = nn.Sequential(Block(scale), nn.Linear(6, 2))
        return sparsebench.initialize_masks(model, loss_fn, [batch], sparsity=0.5, score=score)

    def loss_fn(model, given):
        return nn.functional.cross_entropy(model(given[0]), given[1])

    batch = torch.randn(8, 6), torch.randint(2, (8,))
    assert masks(1.0)["0.inner.weight"].any()
    with pytest.warns(UserWarning, match=r"all scores of 0\.inner\.weight are 0, so that ties decide"):
        masks(0.0)


def test_what_was_dropped_in_a_round_stays_dropped_whatever_it_scores_later():
    def zeros_first(network):
        seen.append(network.weights["weight"].detach() != 0)
        return {"weight": torch.rand(20, 10) + (network.weights["weight"].detach() == 0)}

    seen = []
    options = {"sparsity": 0.9, "score": zeros_first, "rounds": 4, "loss_fn": cross_entropy, "batches": [0]}
    masks = sparsebench.initialize_masks(nn.Linear(10, 20), **options)
    nested = [*seen, masks["weight"]]
    assert all(bool((later <= earlier).all()) for earlier, later in itertools.pairwise(nested))
    assert [int(mask.sum()) for mask in nested] == [200, 112, 63, 36, 20]


def test_networks_with_other_outputs_and_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x, *, scale=None):
            return {"first": self.first(x), "rest": (self.second(x * 1.0), torch.tensor([1]))}

    batches = [torch.randn(5, 4)]

    def loss_fn(model, x):
        out = model(x, scale=None)
        return out["first"].square().mean() + out["rest"][0].square().mean()

    model = Two()
    masks = sparsebench.initialize_masks(model, loss_fn, batches, sparsity=0.5, score="synflow", allocation="uniform")
    weight = model.first.weight.detach().abs().double().numpy()
    np.testing.assert_array_equal(masks["first.weight"].numpy(), highest([weight], 6)[0])
    with pytest.raises(
        SparsebenchError, match=r"^temperature=200.0 divides the model's output, which is a dict: expected a model"
    ):
        sparsebench.initialize_masks(model, loss_fn, batches, sparsity=0.5, score="grasp")
    masks = sparsebench.initialize_masks(model, loss_fn, batches, sparsity=0.5, score=GraSP(temperature=1))
    assert sum(int(mask.sum()) for mask in masks.values()) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"score": "snipp"},
            r"score='snipp' \(did you mean 'snip'\?\): expected 'snip', 'grasp', 'synflow', 'magnitude', 'random'",
        ),
        ({"score": 3}, "score=3: expected 'snip'"),
        ({"sparsity": 1.5}, "sparsity=1.5: expected a fraction"),
        ({"rounds": 0}, "rounds=0: expected an integer of at least 1"),
        ({"rounds": True}, "rounds=True: expected"),
        ({"loss_fn": None}, "loss_fn: the score 'snip' needs one, and batches"),
        ({"batches": []}, "batches: the score 'snip' needs at least one"),
        ({"loss_fn": lambda model, pair: 3.0}, "loss_fn gave a float: expected"),
        ({"loss_fn": lambda model, pair: model(pair[0])}, r"loss_fn gave a tensor of shape \(8, 3\): expected"),
        ({"loss_fn": lambda model, pair: torch.zeros(())}, "loss_fn: the loss does not depend on the weights of the model"),
        ({"loss_fn": lambda model, pair: torch.zeros((), requires_grad=True) * 1}, "loss_fn: the loss does not depend on"),
        (
            {"loss_fn": lambda model, pair: model(pair[0]).sum() * torch.nan},
            "the score of 'convolution.weight' is not finite in round 1",
        ),
        (
            {"loss_fn": lambda model, pair: 1.0, "score": "synflow"},
            r"loss_fn: expected loss_fn\(model, batch\) to call the model",
        ),
        (
            {"loss_fn": lambda model, pair: model(pair[1]), "score": "synflow"},
            "synflow gives the model ones for inputs: expected",
        ),
        ({"score": lambda network: {}}, "the score of 'convolution.weight' is a None: expected a tensor"),
        ({"structure": "blocks"}, "structure='blocks': expected"),
        ({"structure": "block:40x1"}, "structure='block:40x1': 'convolution.weight' is smaller"),
        ({"structure": "2:4"}, "structure='2:4' fixes every layer's sparsity"),
        ({"layers": "nothing"}, "layers: pattern 'nothing' matches no layer"),
    ],
)
def test_mistakes_are_named(changes, message):
    options = {"loss_fn": cross_entropy, "batches": [batch(0)], "sparsity": 0.5} | changes
    with pytest.raises(SparsebenchError, match="^" + message) as caught:
        sparsebench.initialize_masks(classifier(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "200", True])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(SparsebenchError, match=r"^temperature=.*: expected a number above 0"):
        GraSP(temperature)
