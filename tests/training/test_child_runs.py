"""Runs that go on from a finished run: what they begin with, what they keep, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import InterruptedRunError, left_over, short, stop_at, what_must_be_equal

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.storage import load_compressed
from sparsebench.training import run as training_run
from sparsebench.training.checkpoint import load_checkpoint
from sparsebench.training.child_config import keeping_weights, resolve_child
from sparsebench.training.config import RunConfig, resolve
from sparsebench.training.run import run_folder, train
from sparsebench.workloads.registry import WORKLOADS

State = dict[str, torch.Tensor]

WEIGHTS = ("0.weight", "2.weight", "5.weight", "7.weight")
KEPT_STEP = 6
ROUNDS = (0.5, 0.8)


def dense_parent(**settings: Any) -> RunConfig:
    return keeping_weights(short("dense", **settings), f"{KEPT_STEP} steps")


def pruned_parent() -> RunConfig:
    return short("magnitude, gone")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both parents in it."""
    directory = tmp_path_factory.mktemp("results")
    for config in (dense_parent(), pruned_parent()):
        train(config, run_folder(directory, config))
    return directory


def final_weights(directory: Path, config: RunConfig) -> State:
    return load_compressed(run_folder(directory, config).model_path)


def beginning(config: RunConfig, directory: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """The weights with which a run begins its first step."""
    seen: State = {}

    def look(_: RunConfig, __: object, state: Any, *___: object) -> None:
        seen.update({name: value.detach().clone() for name, value in state.model.state_dict().items()})
        raise InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(training_run, "run_steps", look)
        with pytest.raises(InterruptedRunError):
            train(config, run_folder(directory, config))
    return seen


def first_weights(seed: int) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(WORKLOADS.get("digits").build_model().state_dict())


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def masked(state: State, by: State) -> State:
    """A state with zeros where the weights of another are zero."""
    return {name: torch.where(by[name] == 0, 0.0, value) if name in WEIGHTS else value for name, value in state.items()}


def test_lottery_ticket_begins_with_the_first_weights_of_its_parent(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEERS 14."""
    parent = pruned_parent()
    ticket = resolve_child(parent, "lottery-ticket", {})
    begun = beginning(ticket, results, monkeypatch)
    trained = final_weights(results, parent)
    assert same(begun, masked(first_weights(parent.seed), trained))
    assert not torch.equal(begun["5.weight"], trained["5.weight"])


def test_lottery_ticket_goes_back_to_the_weights_of_an_early_step(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEERS 14: the weights of that step are those that a run interrupted there holds."""
    parent = dense_parent()
    interrupted = run_folder(tmp_path, parent)
    with pytest.raises(InterruptedRunError):
        train(parent, interrupted, checkpoint_seconds=0.0, observe=stop_at(KEPT_STEP + 1))
    saved = load_checkpoint(interrupted.checkpoint_path)
    assert saved is not None
    assert saved["step"] == KEPT_STEP
    ticket = resolve_child(parent, "lottery-ticket", {"rewind_to": f"{KEPT_STEP} steps"})
    assert same(beginning(ticket, results, monkeypatch), saved["model"])


def test_keeping_weights_changes_nothing_of_the_training(results: Path) -> None:
    folder = run_folder(results, dense_parent())
    plain = run_folder(results, short("dense"))
    assert train(short("dense"), plain).weights_sha256 == folder.read_result().weights_sha256
    assert folder.kept_weights_path.exists()
    assert not plain.kept_weights_path.exists()


def test_weights_of_a_killed_run_are_kept_all_the_same(results: Path, tmp_path: Path) -> None:
    parent = dense_parent()
    folder = run_folder(tmp_path, parent)
    for step in (KEPT_STEP, KEPT_STEP + 1):
        with pytest.raises(InterruptedRunError):
            train(parent, folder, checkpoint_seconds=0.0, observe=stop_at(step))
    train(parent, folder)
    kept = load_compressed(folder.kept_weights_path)
    assert same(kept, load_compressed(run_folder(results, parent).kept_weights_path))


def test_network_from_scratch_has_new_weights_under_the_masks(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = pruned_parent()
    child = resolve_child(parent, "scratch-e", {})
    begun, trained, first = beginning(child, results, monkeypatch), final_weights(results, parent), first_weights(parent.seed)
    modules = dict(WORKLOADS.get("digits").build_model().named_modules())
    for name in WEIGHTS:
        kept = trained[name] != 0
        assert torch.equal(begun[name] != 0, kept)
        assert not (begun[name] == first[name])[kept].any()
        assert not (begun[name] == trained[name])[kept].any()
        # Torch's own initialization: uniform between plus and minus one over the root of the inputs.
        fan_in = modules[name.removesuffix(".weight")].weight[0].numel()
        assert 0.9 / math.sqrt(fan_in) < begun[name].abs().max() <= 1.0 / math.sqrt(fan_in)
    assert not torch.equal(begun["5.bias"], first["5.bias"])


def test_initialization_for_sparse_networks_goes_by_the_inputs_that_are_left(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = pruned_parent()
    ordinary, sparse = (
        beginning(resolve_child(parent, "scratch-e", {"initialization": kind}), results, monkeypatch)
        for kind in ("ordinary", "sparse")
    )
    scaled = []
    for name in WEIGHTS:
        kept = final_weights(results, parent)[name] != 0
        assert torch.equal(sparse[name] != 0, kept)
        inputs = kept.flatten(1).sum(1).clamp(min=1).reshape(-1, *[1] * (kept.dim() - 1))
        scaled.append((sparse[name] * (inputs / 2.0).sqrt())[kept])
    values = torch.cat(scaled)
    assert abs(float(values.mean())) < 5 / math.sqrt(len(values))
    assert abs(float(values.var()) - 1.0) < 5 * math.sqrt(2.0 / len(values))
    assert torch.equal(sparse["5.bias"], ordinary["5.bias"])


@pytest.mark.parametrize("method", ["lottery-ticket", "scratch-e", "scratch-b"])
def test_masks_are_those_of_the_parent_to_the_end(results: Path, method: str) -> None:
    parent = pruned_parent()
    child = resolve_child(parent, method, {}, steps=30 if method == "scratch-b" else None)
    record = train(child, run_folder(results, child))
    trained, own = final_weights(results, parent), final_weights(results, child)
    for name in WEIGHTS:
        assert torch.equal(own[name] != 0, trained[name] != 0)
        assert not torch.equal(own[name], trained[name])
    (theirs,) = run_folder(results, parent).read_result().points
    assert record.points[0].sparsity == theirs.sparsity
    assert record.points[0].target_sparsity is None
    assert record.steps == child.recipe.steps == (30 if method == "scratch-b" else parent.recipe.steps)
    # The masks are there from the first step on: a training costs what its sparse network costs.
    assert record.dense_multiply_adds is not None
    assert theirs.multiply_adds is not None
    assert record.training_multiply_adds == pytest.approx(3.0 * 16 * record.steps * theirs.multiply_adds)


def test_iterative_pruning_drops_the_smallest_round_by_round_and_goes_back(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEERS 14; a NumPy ranking of all weights together is the oracle."""
    parent = dense = dense_parent()
    early = load_compressed(run_folder(results, dense).kept_weights_path)
    kept_before = None
    for sparsity in ROUNDS:
        child = resolve_child(parent, "iterative-magnitude", {"sparsity": sparsity, "rewind_to": f"{KEPT_STEP} steps"})
        begun, before = beginning(child, results, monkeypatch), final_weights(results, parent)
        values = np.concatenate([before[name].abs().numpy().ravel() for name in WEIGHTS])
        dropped = math.floor(sparsity * len(values) + 0.5)
        kept = np.ones(len(values), bool)
        kept[np.argsort(values, kind="stable")[:dropped]] = False
        found = np.concatenate([(begun[name] != 0).numpy().ravel() for name in WEIGHTS])
        assert np.array_equal(found, kept)
        assert kept_before is None or not (kept & ~kept_before).any()
        for name in WEIGHTS:
            assert torch.equal(begun[name], torch.where(begun[name] != 0, early[name], 0.0))
        record = train(child, run_folder(results, child))
        assert record.points[0].target_sparsity == sparsity
        assert record.points[0].sparsity == dropped / len(values)
        parent, kept_before = child, kept


def test_interrupted_child_goes_on_to_the_same_bits(results: Path, tmp_path: Path) -> None:
    parent = pruned_parent()
    child = resolve_child(parent, "scratch-e", {"initialization": "sparse"})
    for directory in (tmp_path / "calm", tmp_path / "harried"):
        directory.mkdir()
        (directory / "runs").symlink_to(tmp_path / directory.name / "real")
        (directory / "real").mkdir()
        (directory / "runs" / parent.run_id).symlink_to(run_folder(results, parent).path)
    calm, harried = (run_folder(tmp_path / name, child) for name in ("calm", "harried"))
    for step in (5, 17):
        with pytest.raises(InterruptedRunError):
            train(child, harried, checkpoint_seconds=0.0, observe=stop_at(step))
    one, other = what_must_be_equal(calm, train(child, calm)), what_must_be_equal(harried, train(child, harried))
    assert one == other
    assert left_over(harried.path) == []


def test_tied_weights_of_a_transformer_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 2, "batch_size": 256, "warmup_steps": 1}
    parent = resolve("cldr-ende", "magnitude", {"sparsity": 0.5, "begin": 0, "end": 1.0, "frequency": "1 steps"}, settings)
    train(parent, run_folder(tmp_path, parent))
    trained = final_weights(tmp_path, parent)
    ticket = beginning(resolve_child(parent, "lottery-ticket", {}), tmp_path, monkeypatch)
    pruned = [name for name, value in trained.items() if (value == 0).float().mean() > 0.4 and value.dim() > 1]
    assert len(pruned) > 10
    assert all(torch.equal(ticket[name] != 0, trained[name] != 0) for name in pruned)
    further = resolve_child(parent, "iterative-magnitude", {"sparsity": 0.7})
    begun = beginning(further, tmp_path, monkeypatch)
    assert all((begun[name][trained[name] == 0] == 0).all() for name in pruned)


# What can be wrong with the run that is gone on from.


def alone(tmp_path: Path, results: Path, parent: RunConfig, *without: str) -> Path:
    """A folder that holds a parent, less some of its files."""
    own = run_folder(tmp_path, parent)
    own.path.mkdir()
    for file in run_folder(results, parent).path.iterdir():
        if file.name not in without:
            (own.path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(child: RunConfig, directory: Path, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        train(child, run_folder(directory, child))
    assert "\n" not in str(caught.value)
    assert not run_folder(directory, child).result_path.exists()


def test_parent_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    child = resolve_child(pruned_parent(), "lottery-ticket", {})
    where = rf"^{child.run_id} goes on from the run {pruned_parent().run_id}, which is not finished in {tmp_path}/runs$"
    refused(child, tmp_path, where)


def test_parent_that_is_not_finished_is_one_line(tmp_path: Path, results: Path) -> None:
    child = resolve_child(pruned_parent(), "scratch-e", {})
    refused(
        child, alone(tmp_path, results, pruned_parent(), "result.json"), r"goes on from the run \w+, which is not finished in"
    )


def test_parent_whose_network_was_removed_is_one_line(tmp_path: Path, results: Path) -> None:
    child = resolve_child(pruned_parent(), "scratch-e", {})
    refused(child, alone(tmp_path, results, pruned_parent(), "model.safetensors"), r"model\.safetensors")


def test_parent_whose_network_is_damaged_is_one_line(tmp_path: Path, results: Path) -> None:
    directory = alone(tmp_path, results, pruned_parent())
    file = run_folder(directory, pruned_parent()).model_path
    file.write_bytes(file.read_bytes()[:-100])
    refused(resolve_child(pruned_parent(), "lottery-ticket", {}), directory, r"model\.safetensors")


def test_early_weights_that_were_removed_are_one_line(tmp_path: Path, results: Path) -> None:
    child = resolve_child(dense_parent(), "lottery-ticket", {"rewind_to": f"{KEPT_STEP} steps"})
    refused(child, alone(tmp_path, results, dense_parent(), "kept_weights.safetensors"), r"kept_weights\.safetensors")


def test_step_whose_weights_were_not_kept_is_one_line(results: Path) -> None:
    child = resolve_child(dense_parent(), "lottery-ticket", {"rewind_to": "7 steps"})
    refused(child, results, rf"^run {dense_parent().run_id} kept no weights of step 7; its keep_weights_at is 6$")


def test_folder_of_a_child_says_where_it_comes_from(results: Path) -> None:
    child = resolve_child(pruned_parent(), "lottery-ticket", {})
    train(child, run_folder(results, child))
    config = RunFolder(results / "runs" / child.run_id).read_result().config
    assert config["parent"] == {"run_id": pruned_parent().run_id, "configuration": pruned_parent().configuration}
