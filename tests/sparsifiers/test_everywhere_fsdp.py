"""Every method under FSDP2 in two processes, and the steps that the masked engine has to make there, written out."""

import copy

import pytest
import torch
from everywhere_networks import (
    AT_ONCE,
    MASKED,
    STOCHASTIC,
    assert_same_weights,
    batch,
    loss_of,
    momentum,
    network,
    start,
    train,
)
from two_processes import in_processes

import sparsebench
from sparsebench import SparsebenchError
from sparsebench.sparsifiers.keyed_generator import keyed_generator
from sparsebench.sparsifiers.masked.scores import LayerState
from sparsebench.sparsifiers.masked.sharded import all_rows, local_rows, sharded_top_scores, shards_of

fsdp = pytest.importorskip("torch.distributed.fsdp", reason="needs a torch with fully_shard")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("needs torch 2.6 for torch.distributed.fsdp.fully_shard", allow_module_level=True)

# What drops and keeps single weights by a schedule alone.
SHARDABLE = MASKED | {name: AT_ONCE[name] for name in ("one-shot", "static")}


class ShardedEngine:
    """The steps that the masked engine makes on sharded weights, written out: hooks, masks, updates."""

    def __init__(self, model, prepared):
        self.model = model
        self.score, self.seed = prepared._score, prepared._seed
        self.groups, self.schedule = prepared._groups, prepared._schedule
        self.returning = prepared._policy == "returning"
        self.masks = {name: torch.ones_like(self.local(name)) for name in prepared.masks()}
        self.aside = {name: torch.zeros_like(self.local(name)) for name in self.masks}
        self.step = 0

    def weight(self, name):
        module, _, attribute = name.rpartition(".")
        return getattr(self.model.get_submodule(module), attribute)

    def local(self, name):
        return self.weight(name).detach().to_local()

    def attach(self, optimizer):
        self.optimizer = optimizer
        optimizer.register_step_pre_hook(lambda *_: self.before())
        optimizer.register_step_post_hook(lambda *_: self.after())

    def before(self):
        for name, mask in self.masks.items():
            self.weight(name).grad.to_local().mul_(mask)

    def after(self):
        self.step += 1
        for name, mask in self.masks.items():
            self.local(name).mul_(mask)
        if self.schedule.updates_at(self.step):
            self.update()

    def update(self):
        old = self.masks
        for name in self.masks:
            self.local(name).add_(self.aside[name])
        new = {}
        for group in self.groups:
            shards = [shards_of(name, self.weight(name)) for name in group.names]
            assert all(other == shards[0] for other in shards)
            units = sum(self.weight(name).numel() for name in group.names)
            keep = units - int(self.schedule.sparsity(self.step, group.sparsity) * units + 0.5)
            scores = []
            for name in group.names:
                # A score sees the whole weight, spread over processes; what it draws at random is drawn whole everywhere.
                weight = self.weight(name).detach()
                generator = keyed_generator(self.seed, self.step, name)
                score = local_rows(self.score(LayerState(name, weight, old[name].bool(), weight.grad, generator)), weight)
                scores.append(score if self.returning else score.masked_fill(old[name] == 0, -torch.inf))
            new |= dict(zip(group.names, sharded_top_scores(scores, keep, shards[0]), strict=True))
        self.masks = {name: torch.empty_like(self.local(name)).copy_(mask) for name, mask in new.items()}
        for name, mask in self.masks.items():
            for value in self.optimizer.state[self.weight(name)].values():
                if torch.is_tensor(value) and value.shape == self.weight(name).shape:
                    value.to_local().mul_(old[name] * mask)
            if self.returning:
                self.aside[name] = self.local(name) * (1 - mask)
            self.local(name).mul_(mask)


def sharded_training(rank):
    """What the written-out engine ends with, gathered: weights and masks by method."""
    results = {}
    for method in MASKED:
        prepared = MASKED[method]()
        model = network()
        prepared.prepare(model)
        for part in (model.convolution, model.mixing, model):
            fsdp.fully_shard(part)
        sharded = ShardedEngine(model, prepared)
        optimizer = momentum(model.parameters())
        sharded.attach(optimizer)
        for step in range(9):
            images, targets = (part[rank::2] for part in batch(step))
            optimizer.zero_grad()
            loss_of(model, images, targets, seed=0).backward()
            optimizer.step()
        results[method] = (
            {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()},
            {name: all_rows(mask != 0, sharded.weight(name)) for name, mask in sharded.masks.items()},
        )
    return results


def fully_sharded(rank):
    """What comes of the methods themselves under `fully_shard`: a message, or sparsity, gathered weights and masks."""
    results = {}
    for method, make in (SHARDABLE | STOCHASTIC).items():
        model = network()
        sparsifier = make()
        try:
            sparsifier.prepare(model)
            fsdp.fully_shard(model)
            optimizer = momentum(model.parameters())
            sparsifier.attach(optimizer)
            for step in range(9):
                images, targets = (part[rank::2] for part in batch(step))
                optimizer.zero_grad()
                (loss_of(model, images, targets, seed=rank) + sparsifier.penalty()).backward()
                optimizer.step()
            state = sparsifier.state_dict()
            (point,) = sparsifier.points()
            # Another sparsifier of the same sharded model takes up the state, and says the same in turn.
            other = make()
            other.prepare(other_model := network())
            fsdp.fully_shard(other_model)
            other.attach(momentum(other_model.parameters()))
            other.load_state_dict(state)
            again = other.state_dict()
            same = all(
                torch.equal(value, again[part][name]) for part in ("masks", "aside") for name, value in state[part].items()
            )
            masks = sparsifier.masks()
            sparsifier.finalize()
            whole = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
            results[method] = (point.sparsity, whole, masks, same)
            if rank == 1:
                dict(other_model.named_parameters())["mixing.weight"].detach().to_local().view(-1)[0] = torch.nan
            try:
                other.finalize()
            except SparsebenchError as error:
                results[f"{method}, NaN"] = str(error)
        except SparsebenchError as error:
            results[method] = str(error)
        except RuntimeError as error:
            results[method] = error.__class__
    return results


def refusals(rank):
    once = {"sparsity": 0.5, "begin": 0, "end": 0, "frequency": 1}
    messages = []
    for layer, sparsifier in (
        (torch.nn.MultiheadAttention(4, 2), sparsebench.magnitude_pruning(**once)),
        (torch.nn.Linear(4, 4), sparsebench.magnitude_pruning(**once, structure="channel")),
        (torch.nn.Linear(4, 4), sparsebench.rigl(sparsity=0.5, begin=0, end=8, frequency=2)),
    ):
        model = torch.nn.Sequential(layer)
        sparsifier.prepare(model)
        fsdp.fully_shard(model)
        try:
            sparsifier.attach(momentum(model.parameters()))
        except SparsebenchError as error:
            messages.append(str(error))
    return messages


def differing(rank):
    torch.manual_seed(rank)  # what fully_shard makes of it is rank 0's rows of one network and rank 1's of another
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    sparsifier = sparsebench.magnitude_pruning(sparsity=0.5, begin=0, end=4, frequency=2, initial_sparsity=0.25)
    sparsifier.prepare(model)
    fsdp.fully_shard(model)
    try:
        sparsifier.attach(momentum(model.parameters()))
    except SparsebenchError as error:
        return str(error)
    return None


def everything(rank):
    return {part: part_of(rank) for part, part_of in PARTS.items()}


# In the same processes: to start them takes longer than any of it.
PARTS = {"by hand": sharded_training, "whole": fully_sharded, "refusals": refusals, "differing": differing}


@pytest.fixture(scope="module")
def under_fsdp(tmp_path_factory):
    return in_processes(everything, tmp_path_factory.mktemp("fsdp"))


def test_peers_row_12_sharded_training_equals_one_process(under_fsdp):
    """Uniform and global thresholds, both policies: the gathered weights and masks are those of the engine in one process."""
    for found in under_fsdp:
        for method in MASKED:
            model, sparsifier, optimizer = start(method, momentum)
            train(model, sparsifier, optimizer, range(9))
            gathered, masks = found["by hand"][method]
            for name, mask in sparsifier.masks().items():
                assert torch.equal(masks[name], mask), name
                assert not bool((gathered[name][~mask] != 0).any())
            other = copy.deepcopy(model)
            other.load_state_dict(gathered)
            assert_same_weights(other, model, rtol=1e-4, atol=1e-6)
            # An ordinary network from the gathered state: its zeros are its masks.
            assert sparsebench.freeze_masks(other).sparsity == pytest.approx(sparsifier.sparsity)


@pytest.mark.parametrize("method", SHARDABLE)
def test_peers_row_12_masked_methods_train_and_finalize_sharded_weights_as_whole_ones(method, under_fsdp):
    model, one, optimizer = start(method, momentum)
    train(model, one, optimizer, range(9))
    final = dict(one.finalize().named_parameters())
    for found in under_fsdp:
        sparsity, weights, masks, state_is_taken_up = found["whole"][method]
        assert state_is_taken_up
        assert sparsity == pytest.approx(one.sparsity, abs=1e-12)
        for name, mask in one.masks().items():
            assert torch.equal(masks[name], mask), name
            assert torch.equal(weights[name] != 0, mask), name
        assert weights.keys() == final.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, final[name].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", SHARDABLE)
def test_a_nan_in_one_process_stops_all(method, under_fsdp):
    here, there = (found["whole"][f"{method}, NaN"] for found in under_fsdp)
    assert "another process" in here
    assert "'mixing.weight' holds a NaN" in there


def test_what_needs_more_than_rows_is_refused_by_name(under_fsdp):
    for messages in (found["refusals"] for found in under_fsdp):
        assert len(messages) == 3
        assert "'0.in_proj_weight' is spread over processes (fully_shard), where packed projections" in messages[0]
        assert all("structures and regrowth are not supported" in message for message in messages[1:])


def test_peers_row_11_masks_chosen_before_sharding_are_compared(under_fsdp):
    for message in (found["differing"] for found in under_fsdp):
        assert message is not None
        assert message.startswith("process 1 has other masks of '0.weight' than process 0: prepare the same model")


@pytest.mark.parametrize("method", STOCHASTIC)
def test_peers_row_12_stochastic_methods_are_refused_on_sharded_weights(method, under_fsdp):
    for found in under_fsdp:
        message = found["whole"][method]
        assert isinstance(message, str), message
        assert "fully_shard" in message
