from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsebench.accounting import report
from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.arguments import BEGINNING
from sparsebench.training.config import goes_on, method_arguments
from sparsebench.workloads.translation.decoding import greedy
from sparsebench.workloads.translation.tokens import BEGIN, END, PADDING
from sparsebench.workloads.translation.transformer import SIZES, Size, Transformer, attend, sinusoidal_positions

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")

SIZE = Size(width=32, feed_forward=48, heads=4, layers=2)
VOCABULARY = 40


def network(dropout: float = 0.0, size: Size = SIZE) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, size, dropout)
    with torch.no_grad():  # biases and norms other than those of the start, so that a mistake in them shows
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
            elif name != "embedding.weight":
                parameter.mul_(2.5)
    return model.eval()


def sentences(lengths: list[int], seed: int = 0) -> torch.Tensor:
    """Random tokens with an end symbol, padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths)), PADDING)
    for row, length in enumerate(lengths):
        tokens[row, : length - 1] = torch.randint(4, VOCABULARY, (length - 1,), generator=generator)
        tokens[row, length - 1] = END
    return tokens


def m2m100(ours: Transformer) -> Any:
    """Hugging Face's network, configured alike, with the weights of ours."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    config = M2M100Config(
        vocab_size=VOCABULARY,
        d_model=SIZE.width,
        encoder_layers=SIZE.layers,
        decoder_layers=SIZE.layers,
        encoder_attention_heads=SIZE.heads,
        decoder_attention_heads=SIZE.heads,
        encoder_ffn_dim=SIZE.feed_forward,
        decoder_ffn_dim=SIZE.feed_forward,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=64,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        pad_token_id=PADDING,
        bos_token_id=BEGIN,
        eos_token_id=END,
        decoder_start_token_id=BEGIN,
        tie_word_embeddings=True,
    )
    theirs = M2M100ForConditionalGeneration(config).eval()
    names = {
        "attention_norm": "self_attn_layer_norm",
        "source_norm": "encoder_attn_layer_norm",
        "feed_forward_norm": "final_layer_norm",
        "source_attention.query": "encoder_attn.q_proj",
        "source_attention.key": "encoder_attn.k_proj",
        "source_attention.value": "encoder_attn.v_proj",
        "source_attention.output": "encoder_attn.out_proj",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "feed_forward.inner": "fc1",
        "feed_forward.outer": "fc2",
    }
    state = theirs.state_dict()
    copied = set()
    for side in ("encoder", "decoder"):
        for index, layer in enumerate(getattr(ours, side)):
            for name, value in layer.state_dict().items():
                part, _, kind = name.rpartition(".")
                key = f"model.{side}.layers.{index}.{names[part]}.{kind}"
                assert state[key].shape == value.shape
                state[key] = value
                copied.add(key)
        for kind in ("weight", "bias"):
            key = f"model.{side}.layer_norm.{kind}"
            state[key] = getattr(getattr(ours, f"{side}_norm"), kind)
            copied.add(key)
    embeddings = {key for key in state if key.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight"))}
    for key in embeddings:
        state[key] = ours.embedding.weight
    assert set(state) == copied | embeddings
    theirs.load_state_dict(state)
    assert theirs.lm_head.weight is theirs.model.shared.weight
    # Its positions are counted from the number after the padding symbol's, which is 1 there.
    for side in (theirs.model.encoder, theirs.model.decoder):
        table = side.embed_positions.weights
        torch.testing.assert_close(table[1:60], sinusoidal_positions(60, SIZE.width)[1:60], atol=1e-6, rtol=0.0)
        side.embed_positions.weights = torch.cat([torch.zeros(1, SIZE.width), sinusoidal_positions(len(table) - 1, SIZE.width)])
    return theirs


@needs_transformers
def test_forward_pass_equals_that_of_hugging_face_m2m100() -> None:
    ours = network()
    theirs = m2m100(ours)
    source = sentences([9, 4, 7])
    target = torch.cat([torch.full((3, 1), BEGIN), sentences([8, 3, 8], seed=1)[:, :-1]], 1)
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=source != PADDING, decoder_input_ids=target).logits
        found = ours(source, target)
    real = target != PADDING
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    assert float(expected[real].std()) > 0.5  # there is something to compare


@needs_transformers
def test_greedy_decoding_equals_that_of_hugging_face_m2m100() -> None:
    ours = network()
    theirs = m2m100(ours)
    source = sentences([9, 4, 7, 2, 12, 5])
    with torch.no_grad():
        generated = theirs.generate(
            input_ids=source,
            attention_mask=source != PADDING,
            max_new_tokens=12,
            num_beams=1,
            do_sample=False,
            forced_eos_token_id=None,
            suppress_tokens=[PADDING, BEGIN],
        )
    expected = []
    for row in generated[:, 1:].tolist():
        expected.append(row[: row.index(END)] if END in row else row)
    found = greedy(ours, source, 12)
    assert found == expected
    assert len({tuple(translation) for translation in found}) > 1


def naive_attention(layer: nn.Module, states: torch.Tensor, read: torch.Tensor, causal: bool) -> torch.Tensor:
    """One sentence, head by head and position by position."""
    query, key, value = layer.query(states), layer.key(read), layer.value(read)
    width = query.shape[-1] // layer.heads
    rows = []
    for position in range(len(states)):
        last = position + 1 if causal else len(read)
        heads = []
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[position, part] @ key[other, part] for other in range(last)]) / width**0.5
            heads.append(sum(weight * value[other, part] for other, weight in enumerate(scores.softmax(0))))
        rows.append(torch.cat(heads))
    return layer.output(torch.stack(rows))


def test_forward_pass_equals_the_formulas_on_one_sentence() -> None:
    model = network()
    source, target = sentences([6])[0], torch.tensor([BEGIN, 7, 9, 11])
    scale, signal = SIZE.width**0.5, sinusoidal_positions(16, SIZE.width)
    with torch.no_grad():
        memory = model.embedding.weight[source] * scale + signal[:6]
        for layer in model.encoder:
            normed = layer.attention_norm(memory)
            memory = memory + naive_attention(layer.attention, normed, normed, causal=False)
            memory = memory + layer.feed_forward.outer(layer.feed_forward.inner(layer.feed_forward_norm(memory)).clamp(min=0))
        memory = model.encoder_norm(memory)
        states = model.embedding.weight[target] * scale + signal[:4]
        for layer in model.decoder:
            normed = layer.attention_norm(states)
            states = states + naive_attention(layer.attention, normed, normed, causal=True)
            states = states + naive_attention(layer.source_attention, layer.source_norm(states), memory, causal=False)
            states = states + layer.feed_forward.outer(layer.feed_forward.inner(layer.feed_forward_norm(states)).clamp(min=0))
        expected = model.decoder_norm(states) @ model.embedding.weight.T
        torch.testing.assert_close(model(source[None], target[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_positions_are_sines_and_cosines_by_their_formula() -> None:
    table = sinusoidal_positions(50, 8)
    for position in (0, 1, 17, 49):
        for feature in range(4):
            angle = torch.tensor(position / 10_000 ** (feature / 3), dtype=torch.float64)
            assert float(table[position, feature]) == pytest.approx(float(angle.sin()), abs=1e-5)
            assert float(table[position, 4 + feature]) == pytest.approx(float(angle.cos()), abs=1e-5)


def test_padding_changes_nothing() -> None:
    model = network()
    source, target = sentences([5]), torch.tensor([[BEGIN, 8, 9]])
    padded_source = torch.cat([source, torch.full((1, 4), PADDING)], 1)
    padded_target = torch.cat([target, torch.full((1, 2), PADDING)], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded_source, padded_target)[:, :3], model(source, target), atol=1e-5, rtol=1e-5)


def test_cache_gives_what_the_whole_target_gives_beyond_the_first_positions_too() -> None:
    model = network(size=Size(width=16, feed_forward=16, heads=2, layers=2))
    source = sentences([5, 5])
    target = torch.cat([torch.full((2, 1), BEGIN), torch.randint(4, VOCABULARY, (2, 299))], 1)
    with torch.no_grad():
        whole = model(source, target)
        assert len(model.positions) >= 300
        fresh = network(size=Size(width=16, feed_forward=16, heads=2, layers=2))  # with a short table of positions
        memory, cache, steps = fresh.encode(source), None, []
        for position in range(300):
            logits, cache = fresh.decode(target[:, position : position + 1], memory, cache)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)
    with pytest.raises(SparsebenchError, match=r"^target has 2 positions: expected one where there is a cache$"):
        fresh.decode(target[:, :2], memory, cache)


@pytest.mark.parametrize("graded", [True, False])
def test_rows_go_on_from_other_rows_of_the_cache(graded: bool) -> None:
    model = network(size=Size(width=16, feed_forward=16, heads=2, layers=2))
    source, rows = sentences([5, 5]), torch.tensor([2, 2, 0, 3])
    target = torch.cat([torch.full((4, 1), BEGIN), torch.randint(4, VOCABULARY, (4, 3))], 1)
    with torch.set_grad_enabled(graded):
        memory = model.encode(source)
        _, cache = model.decode(target, memory, None)
        chosen = tuple(layer.chosen(rows) for layer in cache)
        expected, after = model.decode(target[:, :1], memory, chosen)
        found, kept = model.decode(target[:, :1], memory, cache, rows)
    torch.testing.assert_close(found, expected)
    for layer, other in zip(kept, after, strict=True):
        torch.testing.assert_close(layer, other)
    # What was there before is as it was.
    assert cache[0].keys.shape[2] == 4


def test_several_rows_may_share_one_source_sentence() -> None:
    model = network()
    source = sentences([5, 7])
    target = torch.cat([torch.full((6, 1), BEGIN), torch.randint(4, VOCABULARY, (6, 3))], 1)
    with torch.no_grad():
        shared, _ = model.decode(target, model.encode(source), None)
        apart = model(source.repeat_interleave(3, 0), target)
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("base", 60.5), ("big", 209.0)])
def test_sizes_have_the_parameters_that_their_paper_gives(name: str, millions: float) -> None:
    """Vaswani et al. 2017, table 3: 65 and 213 million with a vocabulary of 37,000."""
    with torch.device("meta"):
        model = Transformer(32_000, SIZES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_dropout_is_in_three_places_and_only_in_training() -> None:
    model = network(dropout=0.5)
    source, target = sentences([6]), torch.tensor([[BEGIN, 8, 9]])
    with torch.no_grad():
        assert torch.equal(model(source, target), model(source, target))
        for kept in ("attention", "relu", "residual"):
            model.train()
            for name, module in model.named_modules():
                if isinstance(module, nn.Dropout):
                    place = "relu" if "feed_forward" in name else "attention" if "attention" in name else "residual"
                    module.p = 0.5 if place == kept else 0.0
            assert not torch.equal(model(source, target), model(source, target)), kept
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert torch.equal(model(source, target), model(source, target))


def test_shared_matrix_is_one_parameter_and_counted_where_it_is_used() -> None:
    """PEERS 21: tied embeddings are counted once; a look-up costs nothing."""
    model = network()
    names = [name for name, _ in model.named_parameters()]
    assert "embedding.weight" in names
    assert "softmax.weight" not in names
    rows = {row.name: row for row in report(model, (sentences([5]), torch.tensor([[BEGIN, 8, 9]]))).layers}
    assert rows["embedding.weight"].multiply_adds == 3 * VOCABULARY * SIZE.width
    assert rows["encoder.0.attention.query.weight"].multiply_adds == 5 * SIZE.width**2
    assert rows["decoder.0.source_attention.key.weight"].multiply_adds == 5 * SIZE.width**2
    assert rows["decoder.1.source_attention.query.weight"].multiply_adds == 3 * SIZE.width**2
    assert len(rows) == 1 + 2 * 6 + 2 * 10


SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": {"sparsity": 0.8},
    "magnitude-one-shot": {"sparsity": 0.8, "step": 1},
    "variational-dropout": {"penalty": 1e-3, "end": 2, "thresholds": [0.0], "initial_log_sigma2": -4.0},
    "l0": {"penalty": 1e-3, "end": 2, "initial_log_alpha": -2.4},
}
GRADUAL = {"sparsity": 0.8, "begin": 0, "end": 2, "frequency": 1}


class FirstBatches:
    """What a method that looks at the first batches is given."""

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        source, target = batch
        return nn.functional.cross_entropy(model(source, target).flatten(0, 1), torch.arange(4, 10))

    def batches(self, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(sentences([6, 4]), torch.tensor([[BEGIN, 8, 9], [BEGIN, 5, END]]))] * count


@pytest.mark.parametrize("method", [method.name for method in METHODS if not goes_on(method)])
def test_every_method_makes_every_matrix_sparse_the_shared_one_once(method: str) -> None:
    """PEERS 21."""
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, SIZE, dropout=0.1)
    arguments = SETTINGS.get(method, GRADUAL | ({"structure": "block:4x4"} if method.endswith("structured") else {}))
    if BEGINNING in method_arguments(METHODS.get(method)):
        arguments = {"sparsity": 0.8, BEGINNING: FirstBatches()}
    sparsifier = METHODS.get(method).build(**arguments)
    if method == "synflow":
        with pytest.raises(SparsebenchError, match="synflow gives the model ones for inputs: expected floating-point tensors"):
            sparsifier.prepare(model)
        return
    sparsifier.prepare(model)
    optimizer = torch.optim.Adam(sparsifier.parameter_groups(1e-2, 5.0))
    sparsifier.attach(optimizer)
    source, target = sentences([6, 4]), torch.tensor([[BEGIN, 8, 9], [BEGIN, 5, END]])
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(source, target).flatten(0, 1), torch.arange(4, 10)) + sparsifier.penalty()
        loss.backward()
        optimizer.step()
    if method in ("variational-dropout", "l0"):
        name = "log_sigma2" if method == "variational-dropout" else "log_alpha"
        assert getattr(model.softmax, name) is getattr(model.embedding, name)
    for point in sparsifier.points():
        with point:
            greedy(model.eval(), source, 5)
            model.train()
    finished = sparsifier.finalize()
    assert finished.softmax.weight is finished.embedding.weight
    expected = {row.name for row in report(network()).layers}
    masks = sparsifier.masks() if method not in ("dense", "variational-dropout", "l0") else {}
    if masks:
        assert set(masks) == expected
        assert all(torch.count_nonzero(finished.get_parameter(name)) <= mask.sum() for name, mask in masks.items())
    if masks:
        assert report(finished).sparsity == pytest.approx(0.8, abs=0.005)
    else:
        assert (report(finished).sparsity == 0.0) == (method == "dense")


def test_network_of_another_vocabulary_is_refused() -> None:
    with torch.no_grad():
        one, other = Transformer(VOCABULARY, SIZE, fingerprint=0xABC), Transformer(VOCABULARY, SIZE, fingerprint=0xDEF)
    one.load_state_dict(Transformer(VOCABULARY, SIZE, fingerprint=0xABC).state_dict())
    with pytest.raises(SparsebenchError, match=r"^the saved network belongs to the vocabulary abc, this one to def: use the"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("vocabulary_fingerprint"),
            r"does not tell its vocabulary \(vocabulary_fingerprint is missing\)",
        ),
        (lambda state: state.pop("decoder_norm.bias"), r"^the saved network has no decoder_norm\.bias: load it into one of"),
        (lambda state: state.update(more=torch.zeros(1)), r"^the saved network also has more: load it into one of its size and"),
    ],
)
def test_incomplete_network_is_refused_in_one_line(change: Any, message: str) -> None:
    state = network().state_dict()
    change(state)
    with pytest.raises(SparsebenchError, match=message) as caught:
        network().load_state_dict(state)
    assert "\n" not in str(caught.value)
    network().load_state_dict(state, strict=False)


def test_network_of_another_size_is_refused_in_one_line() -> None:
    wider, deeper = (network(size=size) for size in (Size(64, 48, 4, 2), Size(32, 48, 4, 3)))
    for other, message in [
        (wider, r"^embedding\.weight is 40x64 in the saved network, 40x32 in this one: load it into one of its size$"),
        (deeper, r"^the saved network also has decoder\.2\.\S+: load it into one of its size and method$"),
    ]:
        with pytest.raises(SparsebenchError, match=message) as caught:
            network().load_state_dict(other.state_dict())
        assert "\n" not in str(caught.value)


@given(seed=st.integers(0, 10**6), sentences=st.integers(1, 12), positions=st.integers(1, 12), masked=st.booleans())
def test_attention_is_torchs_by_whichever_way_it_is_computed(seed: int, sentences: int, positions: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, keys, values = (torch.randn(sentences, 2, size, 4, generator=generator) for size in (positions, 5, 5))
    mask = torch.rand(sentences, 1, positions, 5, generator=generator) < 0.7
    mask[..., 0] = True
    given_mask = mask if masked else None
    expected = F.scaled_dot_product_attention(query, keys, values, given_mask)
    torch.testing.assert_close(attend(query, keys, values, given_mask, 0.0, False), expected)


def test_causal_attention_and_dropout_are_torchs() -> None:
    query, keys, values = (torch.randn(9, 2, 5, 4) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    torch.testing.assert_close(attend(query, keys, values, None, 0.0, True), expected)
    assert not attend(query, keys, values, None, 1.0, False).any()
