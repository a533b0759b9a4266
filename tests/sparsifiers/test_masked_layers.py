"""Recurrent layers, attention and Hugging Face's Conv1D under the masked engine."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import sparsebench
from sparsebench.sparsifiers.masked.layout import from_matrix, to_matrix

PARTS = ("query", "key", "value")


def trained(model, loss, sparsifier, steps=12):
    sparsifier.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    sparsifier.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    return optimizer


def dropped(values, sparsity):
    """The mask that magnitude pruning gives one matrix, by a sort; ties by index."""
    flat = np.abs(values.reshape(-1))
    mask = np.ones(flat.size, bool)
    mask[np.lexsort((-np.arange(flat.size), flat))[: int(np.floor(sparsity * flat.size + 0.5))]] = False
    return mask.reshape(values.shape)


class Tagger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(3, 5, num_layers=2, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, sequences):
        packed = pack_padded_sequence(sequences, [6, 4])
        return self.head(self.rnn(packed)[0].data)


def tagger_loss(model, generator):
    return model(torch.randn(6, 2, 3, generator=generator)).square().mean()


@pytest.mark.parametrize("policy", ["gone", "returning"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_peers_row_15_recurrent_layers_train_sparse(kind, policy):
    model = Tagger(kind)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.7, begin=2, end=10, frequency=4, policy=policy)
    trained(model, tagger_loss, sparsifier)
    masks = sparsifier.masks()
    assert set(masks) == {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for name, parameter in model.named_parameters():
        if name in masks:
            assert int((parameter == 0).sum()) == int(np.floor(0.7 * parameter.numel() + 0.5))
            assert not parameter[~masks[name]].any()
    # The flattened weights that the kernels read are the parameters, and a copy works like the original.
    rnn = model.rnn
    assert all(one is getattr(rnn, name) for one, name in zip(rnn._flat_weights, rnn._flat_weights_names, strict=True))
    values = torch.randn(6, 2, 3)
    assert torch.equal(copy.deepcopy(sparsifier.finalize())(values), model(values))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_train_sparse(kind):
    model = nn.ModuleDict({"cell": kind(3, 5)})

    def loss(model, generator):
        state = None
        for values in torch.randn(4, 2, 3, generator=generator):
            state = model["cell"](values, state)
        return (state[0] if isinstance(state, tuple) else state).square().mean()

    trained(model, loss, sparsebench.magnitude_pruning(sparsity=0.6, begin=0, end=8, frequency=4))
    for name in ("weight_ih", "weight_hh"):
        weight = getattr(model["cell"], name)
        assert int((weight == 0).sum()) == int(np.floor(0.6 * weight.numel() + 0.5))


def attention_loss(model, generator):
    values = torch.randn(2, 5, 8, generator=generator)
    return model(values, values, values, need_weights=False)[0].square().mean()


def attention():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    # So that one ranking over the three would treat them very differently.
    with torch.no_grad():
        model.in_proj_weight[:8] *= 9.0
        model.in_proj_weight[8:16] *= 0.1
    return model


@pytest.mark.parametrize("policy", ["gone", "returning"])
def test_projections_of_attention_are_pruned_each_by_itself(policy):
    model = attention()
    before = model.in_proj_weight.detach().clone().numpy()
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.6, begin=0, end=0, frequency=1, policy=policy)
    sparsifier.prepare(model)
    mask = sparsifier.masks()["in_proj_weight"].numpy()
    for part in range(3):
        rows = slice(8 * part, 8 * part + 8)
        np.testing.assert_array_equal(mask[rows], dropped(before[rows], 0.6))
    trained(
        attention_model := attention(),
        attention_loss,
        sparsebench.magnitude_pruning(sparsity=0.6, begin=2, end=10, frequency=4, policy=policy),
    )
    weight = attention_model.in_proj_weight
    for part in weight.chunk(3):
        assert int((part == 0).sum()) == int(np.floor(0.6 * 64 + 0.5))


def test_global_ranks_the_projections_together():
    model = attention()
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.6, begin=0, end=0, frequency=1, allocation="global")
    sparsifier.prepare(model)
    kept = [int(part.sum()) for part in sparsifier.masks()["in_proj_weight"].chunk(3)]
    assert kept[0] > kept[2] > kept[1]


@pytest.mark.parametrize(
    ("allocation", "expected"),
    [
        ({"in_proj_weight": 0.25}, [16, 16, 16, 32]),
        ({"*.key": 0.25}, [32, 16, 32, 32]),
        ({"out_proj": 0.75, "in_proj_weight.value": 0.0}, [32, 32, 0, 48]),
    ],
)
def test_a_map_names_the_parameter_or_one_of_its_matrices(allocation, expected):
    model = attention()
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1, allocation=allocation)
    sparsifier.prepare(model)
    masks = sparsifier.masks()
    found = [*masks["in_proj_weight"].chunk(3), masks["out_proj.weight"]]
    assert [int((~mask).sum()) for mask in found] == expected


@pytest.mark.parametrize("method", ["rigl", "set_training"])
def test_regrowth_moves_within_each_projection(method):
    model = attention()
    sparsifier = getattr(sparsebench, method)(sparsity=0.5, begin=0, end=10, frequency=2, allocation="uniform")
    sparsifier.prepare(model)
    first = sparsifier.masks()["in_proj_weight"]
    trained(model, attention_loss, sparsifier)
    last = sparsifier.masks()["in_proj_weight"]
    assert not torch.equal(first, last)
    assert [int(part.sum()) for part in last.chunk(3)] == [32, 32, 32]


def test_blocks_do_not_reach_over_projections():
    model = nn.MultiheadAttention(6, 2)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1, structure="block:4x4")
    sparsifier.prepare(model)
    for part in sparsifier.masks()["in_proj_weight"].chunk(3):
        # 2 x 2 blocks of 4x4, 4x2, 2x4 and 2x2, two of them kept.
        blocks = [part[:4, :4], part[:4, 4:], part[4:, :4], part[4:, 4:]]
        assert sorted(int(block.float().mean()) for block in blocks) == [0, 0, 1, 1]


def test_attention_resumes_and_applies_its_masks_to_another_model():
    def method():
        return sparsebench.magnitude_pruning(sparsity=0.6, begin=2, end=10, frequency=4)

    model, sparsifier = attention(), method()
    trained(model, attention_loss, sparsifier)
    other, resumed = attention(), method()
    resumed.prepare(other)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(sparsifier.state_dict())
    assert all(torch.equal(mask, resumed.masks()[name]) for name, mask in sparsifier.masks().items())
    average = attention()
    sparsifier.apply_masks(average)
    assert torch.equal(average.in_proj_weight != 0, sparsifier.masks()["in_proj_weight"])


def test_given_masks_hold_for_attention_and_recurrent_layers():
    for model, loss in ((attention(), attention_loss), (Tagger(nn.LSTM), tagger_loss)):
        masks = {
            name: torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) > 0.7
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1
        }
        sparsifier = sparsebench.fixed_masks(masks)
        trained(model, loss, sparsifier)
        assert all(torch.equal(mask, sparsifier.masks()[name]) for name, mask in masks.items())
        assert all(torch.equal(parameter != 0, masks[name]) for name, parameter in model.named_parameters() if name in masks)


def test_snip_masks_have_a_share_for_each_projection():
    model = attention()

    def loss(model, values):
        return model(values, values, values)[0].square().mean()

    masks = sparsebench.initialize_masks(model, loss, [torch.randn(2, 5, 8)], sparsity=0.5, allocation="uniform")
    assert [int(part.sum()) for part in masks["in_proj_weight"].chunk(3)] == [32, 32, 32]


def test_transformer_layers_of_torch_are_sparse_in_their_fast_path_too():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1)
    sparsifier.prepare(model)
    assert len(sparsifier.masks()) == 4
    values = torch.randn(2, 5, 8)
    slow = model.train()(values)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(values), slow)


def test_hugging_face_conv1d_is_laid_out_by_its_outputs():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(4, 6)
    matrix = to_matrix(conv1d.weight.detach(), conv1d)
    assert matrix.shape == (4, 6)
    assert torch.equal(from_matrix(matrix, conv1d.weight.shape, conv1d), conv1d.weight)
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1, structure="channel")
    sparsifier.prepare(conv1d)
    assert sorted(int(output.sum()) for output in sparsifier.masks()["weight"].t()) == [0, 0, 6, 6]
    values = torch.randn(3, 6)
    torch.testing.assert_close(conv1d(values), F.linear(values, conv1d.weight.t(), conv1d.bias))
