"""Exact selection of the highest scores across shards, in two processes."""

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from two_processes import in_processes

from sparsebench import SparsebenchError
from sparsebench.sparsifiers.masked.masks import top_scores
from sparsebench.sparsifiers.masked.sharded import all_rows, local_rows, sharded_top_scores, shards_of

SHAPES = [[(5, 4)], [(1, 9), (7,), (2, 3, 3, 2)], [(40, 30), (3, 1), (1, 1)], [(2, 2), (64, 64)]]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float32]


def cases():
    """Scores of full tensors with few ties, with many, and with extreme values: (name, scores)."""
    generator = torch.Generator().manual_seed(0)
    for shapes, dtype in zip(SHAPES, DTYPES, strict=True):
        normal = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        yield "normal", normal
        yield "ties", [(score * 2).round() / 2 for score in normal]
        yield "equal", [torch.zeros_like(score) for score in normal]
        extreme = [score.clone() for score in normal]
        for score in extreme:
            score.view(-1)[::3] = -torch.inf
            score.view(-1)[1::5] = 0.0
            score.view(-1)[2::7] = -0.0
            score.view(-1)[:1] = torch.finfo(dtype).max
        yield "extreme", extreme


def oracle(scores, keep):
    """A stable sort of all scores, in order of tensors and of row-major index."""
    flat = np.concatenate([score.double().numpy().reshape(-1) for score in scores])
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    parts = np.split(mask, np.cumsum([score.numel() for score in scores])[:-1])
    return [torch.from_numpy(part).reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def selections(rank):
    """Whether each case comes out as the full tensors would, and the messages of misuse."""
    world = distributed.get_world_size()
    mesh = DeviceMesh("cpu", list(range(world)))
    wrong = []
    for name, scores in cases():
        weights = [distribute_tensor(score, mesh, [Shard(0)], src_data_rank=None) for score in scores]
        shards = shards_of("weight", weights[0])
        assert (shards.count, shards.position) == (world, rank)
        total = sum(score.numel() for score in scores)
        for keep in {1, total // 2, total - 1} | ({0, total} if name == "equal" else set()):
            parts = sharded_top_scores([weight.to_local() for weight in weights], keep, shards)
            whole = [all_rows(part, weight) for part, weight in zip(parts, weights, strict=True)]
            expected = oracle(scores, keep)
            agrees = all(
                torch.equal(mask, wanted) and mask.dtype == torch.bool for mask, wanted in zip(whole, expected, strict=True)
            )
            same_as_one = all(map(torch.equal, top_scores(scores, keep), expected))
            if not agrees or not same_as_one:
                wrong.append((name, [tuple(score.shape) for score in scores], str(scores[0].dtype), keep, same_as_one))
    messages = []
    for keep in (-1, total + 1):
        try:
            sharded_top_scores([weight.to_local() for weight in weights], keep, shards)
        except ValueError as error:
            messages.append(str(error))
    backwards = DeviceMesh("cpu", list(reversed(range(world))))
    for placement, where in ((Shard(1), mesh), (Replicate(), mesh), (Shard(0), backwards)):
        try:
            shards_of("head.weight", distribute_tensor(torch.ones(4, 4), where, [placement], src_data_rank=None))
        except SparsebenchError as error:
            messages.append(str(error))
    full = torch.arange(35.0).reshape(7, 5)
    weight = distribute_tensor(full, mesh, [Shard(0)], src_data_rank=None)
    assert torch.equal(local_rows(full, weight), weight.to_local())
    assert local_rows(weight, weight).data_ptr() == weight.to_local().data_ptr()
    assert torch.equal(all_rows(local_rows(full, weight), weight), full)
    return wrong, messages, hybrid(init_device_mesh("cpu", (world, 1), mesh_dim_names=("copies", "rows")))


def hybrid(mesh):
    """Copies on one mesh dimension, rows on the other."""
    scores = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    weight = distribute_tensor(scores, mesh, [Replicate(), Shard(0)], src_data_rank=None)
    shards = shards_of("weight", weight)
    assert shards.count == 1
    return all_rows(sharded_top_scores([weight.to_local()], 3, shards)[0], weight).tolist()


def test_peers_row_17_selection_across_shards_is_that_of_the_full_tensors(tmp_path):
    for wrong, messages, copies in in_processes(selections, tmp_path):
        assert wrong == []
        assert messages == [
            "keep=-1: expected between 0 and the 4100 scores",
            "keep=4101: expected between 0 and the 4100 scores",
            "'head.weight' is divided as (S(1)): expected rows over one mesh dimension, Shard(0), as fully_shard does by default",
            "'head.weight' is divided as (R): expected rows over one mesh dimension, Shard(0), as fully_shard does by default",
            "'head.weight' is spread over a mesh that lists processes out of order: expected ascending ranks",
        ]
        assert copies == [[True, True], [False, True]], "every copy of a hybrid mesh chooses alike"
