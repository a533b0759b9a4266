"""Every method under torch.compile: one graph without breaks, in training and in evaluation, with the eager results."""

import shutil

import pytest
import torch
from everywhere_networks import (
    MASKED,
    METHODS,
    STOCHASTIC,
    adam,
    assert_same_weights,
    batch,
    counts_are_exact,
    dropped_are_zero,
    loss_of,
    momentum,
    start,
    train,
)

every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class CountingBackend:
    """Runs the traced graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@every_method
def test_peers_row_16_training_and_evaluation_compile_into_one_graph_each(method):
    """`fullgraph=True` makes every graph break an error; updates of masks and ramps compile nothing anew."""
    plain = start(method, momentum)
    train(*plain, range(9))
    model, sparsifier, optimizer = start(method, momentum)
    backend = CountingBackend()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    train(compiled, sparsifier, optimizer, range(9))
    assert backend.graphs == 1
    assert sparsifier.step == 9
    assert_same_weights(model, plain[0], rtol=1e-4, atol=1e-6)
    if method in MASKED:
        assert counts_are_exact(sparsifier)
        assert dropped_are_zero(model, sparsifier)
    images, _ = batch(20)
    plain[0].eval()
    compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), plain[0](images), rtol=1e-4, atol=1e-6)
        for point, wanted in zip(sparsifier.points(), plain[1].points(), strict=True):
            with point, wanted:
                torch.testing.assert_close(compiled(images), plain[0](images), rtol=1e-4, atol=1e-6)
            with point:
                compiled(images)
    # Training, evaluation, and for stochastic layers evaluation of folded weights.
    assert backend.graphs <= (3 if method in STOCHASTIC else 2)
    compiled.train()
    train(compiled, sparsifier, optimizer, range(9, 11))
    assert backend.graphs <= (3 if method in STOCHASTIC else 2), "training again compiled anew"


@every_method
def test_peers_row_16_gradients_through_the_ahead_of_time_autograd(method):
    """The same under AOTAutograd, which traces the backward pass and makes in-place operations functional."""
    plain, other = start(method, momentum), start(method, momentum)
    compiled = torch.compile(other[0], fullgraph=True, backend="aot_eager")
    for step in range(4):
        for network, (_, sparsifier, optimizer) in ((plain[0], plain), (compiled, other)):
            optimizer.zero_grad()
            (loss_of(network, *batch(step), seed=step) + sparsifier.penalty()).backward()
            optimizer.step()
    assert_same_weights(other[0], plain[0], rtol=1e-4, atol=1e-6)


@every_method
def test_peers_row_16_a_module_compiled_in_place_and_its_penalty(method):
    model, sparsifier, optimizer = start(method)
    model.compile(fullgraph=True, backend="eager")
    penalty = torch.compile(sparsifier.penalty, backend="eager")
    for step in range(3):
        optimizer.zero_grad()
        torch.testing.assert_close(penalty(), sparsifier.penalty())
        (loss_of(model, *batch(step), seed=step) + penalty()).backward()
        optimizer.step()
    assert sparsifier.step == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler")
@every_method
def test_peers_row_16_inductor_trains_it(method):
    model, sparsifier, optimizer = start(method, adam)
    compiled = torch.compile(model, fullgraph=True)
    train(compiled, sparsifier, optimizer, range(9))
    assert sparsifier.step == 9
    if method in MASKED:
        plain = start(method, adam)
        train(*plain, range(9))
        assert_same_weights(model, plain[0], rtol=1e-2, atol=1e-3)
        assert counts_are_exact(sparsifier)
        assert dropped_are_zero(model, sparsifier)
    else:
        compiled.eval()
        for point in sparsifier.points():
            with point, torch.no_grad():
                images = batch(0)[0]
                torch.testing.assert_close(compiled(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", STOCHASTIC)
def test_transposed_linear_layers_compile_into_one_graph_with_the_eager_loss(method):
    layers = pytest.importorskip("transformers.pytorch_utils", reason="needs transformers")
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(layers.Conv1D(6, 4), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        sparsifier = STOCHASTIC[method]()
        sparsifier.prepare(model)
        backend = CountingBackend()
        called = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        torch.manual_seed(1)
        losses.append(called(torch.linspace(-1, 1, 12).reshape(3, 4)).square().sum())
        losses[-1].backward()
        assert backend.graphs == int(compiled)
    torch.testing.assert_close(*losses)
