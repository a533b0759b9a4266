"""Every method under DistributedDataParallel, in two processes."""

import hashlib

import pytest
import torch
from everywhere_networks import (
    AT_ONCE,
    MASKED,
    METHODS,
    STOCHASTIC,
    batch,
    counts_are_exact,
    dropped_are_zero,
    loss_of,
    momentum,
    network,
    start,
    train,
)
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_processes

import sparsebench
from sparsebench import SparsebenchError
from sparsebench.integrations.connection import Connection
from sparsebench.sparsifiers.distributed import verify_same_masks

STEPS = 9


def hash_of(masks):
    """Independent of the package's own."""
    digest = hashlib.md5(usedforsecurity=False)
    for name in sorted(masks):
        digest.update(name.encode() + bytes(masks[name].flatten().tolist()))
    return digest.hexdigest()


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train_half(wrapped, sparsifier, optimizer, rank, steps, penalty=True, accumulation=1):
    """Every process takes its half of each batch, with noise of its own; returns a hash of the masks after every step."""
    hashes = []
    for step in steps:
        images, targets = (part[rank::2] for part in batch(step))
        optimizer.zero_grad()
        for part in range(accumulation):
            loss = loss_of(wrapped, images[part::accumulation], targets[part::accumulation], seed=100 * step + 10 * part + rank)
            if penalty:
                loss = loss + sparsifier.penalty()
            if part < accumulation - 1:
                with wrapped.no_sync():
                    (loss / accumulation).backward()
            else:
                (loss / accumulation).backward()
        optimizer.step()
        verify_same_masks(sparsifier.masks())
        hashes.append(hash_of(sparsifier.masks()))
    return hashes


def every_method_under_ddp(rank):
    """What each method ends with, by name."""
    results = {}
    for method in METHODS:
        # Other weights in the second process: DistributedDataParallel sends those of the first to all.
        model = network(seed=rank)
        sparsifier = METHODS[method]()
        sparsifier.prepare(model)
        wrapped = DistributedDataParallel(model)
        optimizer = momentum(wrapped.parameters())
        sparsifier.attach(optimizer)
        hashes = train_half(wrapped, sparsifier, optimizer, rank, range(STEPS))
        state = sparsifier.state_dict()
        results[method] = {
            "hashes": hashes,
            "weights": weights(model),
            "step": sparsifier.step,
            "state": state,
            "zeros": dropped_are_zero(model, sparsifier),
            "exact": method in STOCHASTIC or counts_are_exact(sparsifier),
        }
        if method in STOCHASTIC:
            # The same with the gradient of the penalty from the hook of the callbacks.
            model = network(seed=rank)
            sparsifier = METHODS[method]()
            sparsifier.prepare(model)
            wrapped = DistributedDataParallel(model)
            optimizer = momentum(wrapped.parameters())
            Connection(sparsifier).attach([optimizer])
            train_half(wrapped, sparsifier, optimizer, rank, range(STEPS), penalty=False)
            results[method]["hooked"] = weights(model)
        else:
            model, sparsifier, optimizer = start(method, momentum)
            wrapped = DistributedDataParallel(model)
            train_half(wrapped, sparsifier, optimizer, rank, range(STEPS), accumulation=2)
            results[method]["accumulated"] = weights(model)
    return results


def disagreements(rank):
    """The messages of comparisons that must fail, and of one that must not."""
    same = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False])}
    cases = {
        "same": same,
        "one bit": same | {"b": torch.tensor([rank == 1])},
        "shape": same | {"a": same["a"] if rank == 0 else same["a"].flatten()},
        "missing": same if rank == 0 else {"a": same["a"]},
        "additional": same if rank == 1 else {"a": same["a"]},
        "order": same if rank == 0 else dict(reversed(same.items())),
    }
    messages = {}
    for case, masks in cases.items():
        try:
            verify_same_masks(masks)
            messages[case] = None
        except SparsebenchError as error:
            messages[case] = str(error)
    # Different weights with a first update before they were made the same: the case that the comparison is for.
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=0, frequency=1)
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        sparsifier.prepare(nn.Linear(6, 6))
    try:
        sparsifier.attach(torch.optim.SGD(sparsifier.parameter_groups(lr=0.1)))
    except SparsebenchError as error:
        messages["prepared apart"] = str(error)
    # Frozen zeros are the same everywhere.
    model = network()
    with torch.no_grad():
        model.mixing.weight[:, 0] = 0.0
    frozen = sparsebench.freeze_masks(model)
    wrapped = DistributedDataParallel(model)
    optimizer = momentum(wrapped.parameters())
    frozen.attach(optimizer)
    train_half(wrapped, frozen, optimizer, rank, range(3))
    messages["frozen"] = int((model.mixing.weight == 0).sum())
    return messages


def with_zero_redundancy(rank):
    """Weights of a training whose optimizer state is spread over the processes, momentum of dropped weights with it."""
    found = {}
    for method in ("magnitude-returning", "rigl"):
        model = network(seed=rank)
        sparsifier = METHODS[method]()
        sparsifier.prepare(model)
        wrapped = DistributedDataParallel(model)
        optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer)
        train_half(wrapped, sparsifier, optimizer, rank, range(STEPS))
        found[method] = weights(model)
    return found


def with_flat_parameters(rank):
    """What `attach` says where FSDP1 has made one parameter of all."""
    messages = []
    for keep_names in (True, False):
        model = network()
        sparsifier = METHODS["magnitude-gone"]()
        sparsifier.prepare(model)
        wrapped = FullyShardedDataParallel(model, use_orig_params=keep_names, device_id=torch.device("cpu"))
        try:
            sparsifier.attach(momentum(wrapped.parameters()))
        except SparsebenchError as error:
            messages.append(str(error))
    return messages


def all_parts(rank):
    return every_method_under_ddp(rank), disagreements(rank), with_zero_redundancy(rank), with_flat_parameters(rank)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each process found; started once, since starting takes longer than all that they do."""
    return in_processes(all_parts, tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def under_ddp(two_ranks):
    return [trained for trained, *_ in two_ranks]


@pytest.mark.parametrize("method", METHODS)
def test_peers_row_11_processes_hold_the_same_masks_after_every_step(method, under_ddp):
    first, second = (results[method] for results in under_ddp)
    assert first["hashes"] == second["hashes"]
    assert len(set(first["hashes"])) > (3 if method in MASKED else 0), "the masks never changed"
    assert first["step"] == second["step"] == STEPS
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


@pytest.mark.parametrize("method", MASKED | AT_ONCE)
@pytest.mark.parametrize("kind", ["weights", "accumulated"])
def test_peers_row_11_two_processes_train_as_one_with_the_whole_batch(method, kind, under_ddp):
    model, sparsifier, optimizer = start(method, momentum)
    train(model, sparsifier, optimizer, range(STEPS))
    for results in under_ddp:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(results[method][kind][name], parameter.detach(), rtol=1e-4, atol=1e-6)
        assert results[method]["hashes"][-1] == hash_of(sparsifier.masks())
        assert results[method]["zeros"]
        assert results[method]["exact"]


@pytest.mark.parametrize("method", STOCHASTIC)
def test_the_penalty_from_the_hook_is_as_if_in_the_loss_of_every_process(method, under_ddp):
    for results in under_ddp:
        for name, value in results[method]["weights"].items():
            torch.testing.assert_close(results[method]["hooked"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", MASKED | AT_ONCE)
def test_a_state_saved_by_one_process_is_that_of_all(method, under_ddp):
    """PEERS 4 and 11: what the first process saves, a single process takes up."""
    first, second = (results[method]["state"] for results in under_ddp)
    assert first["masks"].keys() == second["masks"].keys()
    assert all(torch.equal(bits, second["masks"][name]) for name, bits in first["masks"].items())
    for key in {"aside", "momentum"} & first.keys():
        assert all(torch.equal(values, second[key][name]) for name, values in first[key].items())
    model, sparsifier, _ = start(method, momentum)
    model.load_state_dict(under_ddp[0][method]["weights"])
    sparsifier.load_state_dict(first)
    assert hash_of(sparsifier.masks()) == under_ddp[0][method]["hashes"][-1]
    assert dropped_are_zero(model, sparsifier)


def test_peers_row_11_masks_that_differ_are_named_in_every_process(two_ranks):
    """PEERS 6 too: zeros are frozen under DistributedDataParallel."""
    first, second = (messages for _, messages, *_ in two_ranks)
    assert first == second
    assert first["same"] is None
    for case, name in {"one bit": "b", "shape": "a", "missing": "b", "additional": "b", "prepared apart": "weight"}.items():
        assert first[case].startswith(f"process 1 has other masks of '{name}' than process 0: prepare the same model"), case
        assert "\n" not in first[case]
    assert first["order"].startswith("processes have the same masks in another order")
    assert first["frozen"] == 6


@pytest.mark.parametrize("method", ["magnitude-returning", "rigl"])
def test_what_a_spread_optimizer_remembers_of_dropped_weights_is_forgotten_where_it_is(method, two_ranks):
    for trained, _, spread, _ in two_ranks:
        for name, weight in trained[method]["weights"].items():
            torch.testing.assert_close(spread[method][name], weight, rtol=0.0, atol=0.0)


def test_flat_parameters_are_refused_by_name(two_ranks):
    for *_, (with_names, flat) in two_ranks:
        assert with_names.startswith(
            "'convolution.weight' is part of a flat parameter (FullyShardedDataParallel): use fully_shard"
        )
        assert flat.startswith("'convolution.weight' is no longer a parameter of its layer")


def test_one_process_has_nothing_to_compare():
    verify_same_masks({"weight": torch.tensor([True])})
