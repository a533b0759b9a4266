"""Semi-structured sparsity is refused in one line wherever it is not possible; on a GPU it computes what the network computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsebench
from sparsebench.errors import SparsebenchError
from sparsebench.inference.export import semi_structured, semi_structured_weights


def network(dtype: torch.dtype = torch.float16) -> nn.Module:
    """Two layers trained, or rather pruned, to 2:4, and a dense head."""
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    sparsifier = sparsebench.one_shot_pruning(sparsity=0.5, step=0, allocation="uniform", structure="2:4", layers=["0", "2"])
    sparsifier.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    model(torch.randn(2, 128)).sum().backward()
    optimizer.step()
    return sparsifier.finalize().to(dtype)


def test_weight_with_another_pattern_is_named_with_its_place() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[5, 8:12] = 1.0
    with pytest.raises(
        SparsebenchError, match=r"^2\.weight has more than two weights that are not zero in row 5, columns 8 to 11; "
    ):
        semi_structured(model, layers=("0", "2"))
    with pytest.raises(SparsebenchError, match=r"^4\.weight has more than two weights .* in row 0, columns 0 to 3; train with"):
        semi_structured(network(), layers=("*",))


def test_network_without_any_such_layer_is_refused() -> None:
    with pytest.raises(SparsebenchError, match=r"^no linear layer is 2:4 sparse: 0\.weight has more than two weights .*'2:4'$"):
        semi_structured(nn.Sequential(nn.Linear(8, 8)).half())
    with pytest.raises(SparsebenchError, match=r"^no linear layer is 2:4 sparse; train with structure='2:4'$"):
        semi_structured(nn.ReLU())


def test_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(SparsebenchError, match=r"^layers='encoder\.\*' matches no linear layer; there are: 0, 2, 4$"):
        semi_structured(network(), layers=("encoder.*",))


def test_wrong_type_of_numbers_is_refused() -> None:
    with pytest.raises(SparsebenchError, match=r"^0\.weight is torch\.float32: expected torch\.float16 or torch\.bfloat16 for"):
        semi_structured(network(torch.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_refused() -> None:
    with pytest.raises(
        SparsebenchError, match=r"^semi-structured sparsity needs an NVIDIA GPU, and torch finds none here; on the"
    ):
        semi_structured(network())


def test_network_on_the_cpu_of_a_machine_with_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SparsebenchError, match=r"^0\.weight is on cpu: expected a GPU; call model\.cuda\(\) first$"):
        semi_structured(network())


def test_layers_that_follow_the_pattern_are_converted_in_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what torch's conversion is given, and where its result goes."""
    model, given = network(), []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: given.append(weight) or weight + 1)
    monkeypatch.setattr(semi_structured_weights, "_check_device", lambda chosen: None)
    converted = semi_structured(model)
    assert len(given) == 2
    assert given[0].equal(model[0].weight)
    assert given[1].equal(model[2].weight)
    assert [converted[i].weight.equal(model[i].weight + (i != 4)) for i in (0, 2, 4)] == [True] * 3
    assert model.training
    assert not converted.training


def test_what_torch_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shape is not supported")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", refuse)
    monkeypatch.setattr(semi_structured_weights, "_check_device", lambda chosen: None)
    with pytest.raises(SparsebenchError, match=r"^0\.weight cannot be made semi-structured: shape is not supported$"):
        semi_structured(network())


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU with sparse tensor cores"
)
def test_outputs_on_a_gpu() -> None:
    model = network().cuda()
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        torch.testing.assert_close(semi_structured(model)(x), model.eval()(x), rtol=1e-2, atol=1e-2)
