"""What the recipes of translation brought: Adam's settings, the inverse square root, dropout, averaged checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import PRUNING, InterruptedRunError, stop_at, what_must_be_equal
from torch import nn

from sparsebench.errors import SparsebenchError
from sparsebench.storage import load_compressed
from sparsebench.training import preparation
from sparsebench.training.config import resolve
from sparsebench.training.loop import learning_rate_factor
from sparsebench.training.run import run_folder, train
from sparsebench.workloads.workload import Recipe

LATER = {
    "adam_beta1": 0.8,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-9,
    "dropout": 0.0,
    "averaged_checkpoints": 2,
    "averaging_interval": 7,
}


def test_later_fields_are_part_of_the_identity_only_where_they_are_used() -> None:
    plain = resolve("digits", "dense", {}, {})
    ids = {plain.run_id}
    for name, value in LATER.items():
        default = Recipe.model_fields[name].default
        assert resolve("digits", "dense", {}, {name: default}).run_id == plain.run_id
        ids.add(resolve("digits", "dense", {}, {name: value}).run_id)
    assert len(ids) == 1 + len(LATER)
    assert not LATER.keys() & plain.model_dump(mode="json")["recipe"].keys()
    assert type(plain).model_validate(plain.model_dump(mode="json")) == plain
    changed = resolve("digits", "dense", {}, LATER)
    assert type(plain).model_validate(changed.model_dump(mode="json")) == changed


def test_inverse_square_root_is_the_papers_schedule() -> None:
    """Gale et al. 2019: rate 2.0 * d^-0.5 * min(step^-0.5, step * 8000^-1.5), steps counted from 1."""
    width, warmup = 512, 8000
    recipe = Recipe(
        steps=500_000,
        batch_size=1,
        optimizer="adamw",
        learning_rate=2.0 * width**-0.5 * warmup**-0.5,
        learning_rate_schedule="inverse-square-root",
        warmup_steps=warmup,
    )
    for step in (1, 2, 4000, 7999, 8000, 8001, 20_000, 500_000):
        expected = 2.0 * width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert recipe.learning_rate * learning_rate_factor(recipe, step - 1) == pytest.approx(expected)
    cold = recipe.model_copy(update={"warmup_steps": 0})
    assert [learning_rate_factor(cold, step) for step in (0, 3, 99)] == pytest.approx([1.0, 0.5, 0.1])


def test_optimizer_gets_adams_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[torch.optim.Optimizer] = []
    original = preparation._optimizer

    def remember(*arguments: Any) -> torch.optim.Optimizer:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(preparation, "_optimizer", remember)
    config = resolve("digits", "dense", {}, {"steps": 2, "adam_beta1": 0.8, "adam_beta2": 0.98, "adam_epsilon": 1e-6})
    train(config, run_folder(tmp_path, config))
    assert (made[0].defaults["betas"], made[0].defaults["eps"]) == ((0.8, 0.98), 1e-6)


def test_dropout_of_a_network_without_any_is_refused(tmp_path: Path) -> None:
    config = resolve("digits", "dense", {}, {"steps": 2, "dropout": 0.1})
    with pytest.raises(SparsebenchError, match=r"^dropout=0\.1: the network has no dropout layers; leave it out$"):
        train(config, run_folder(tmp_path, config))


def test_dropout_reaches_every_layer() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.2)))
    preparation.set_dropout(model, None)
    assert (model[0].p, model[1][0].p) == (0.5, 0.2)
    preparation.set_dropout(model, 0.3)
    assert (model[0].p, model[1][0].p) == (0.3, 0.3)


CONSTANT = {"learning_rate_schedule": "constant", "learning_rate": 0.03}


def final_weights(folder: Path, method: str, parameters: dict[str, Any], settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    config = resolve("digits", method, parameters, CONSTANT | settings)
    place = run_folder(folder, config)
    train(config, place)
    return load_compressed(place.model_path)


def test_average_is_the_mean_of_shorter_trainings(tmp_path: Path) -> None:
    """At a constant rate a shorter training is the beginning of a longer one."""
    found = final_weights(tmp_path, "dense", {}, {"steps": 20, "averaged_checkpoints": 3, "averaging_interval": 4})
    parts = [final_weights(tmp_path, "dense", {}, {"steps": steps}) for steps in (12, 16, 20)]
    for name, value in found.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0))
        assert not torch.equal(value, parts[-1][name])


def test_averaged_network_has_the_last_masks(tmp_path: Path) -> None:
    """Masks change between the averaged checkpoints; the mean alone would be dense where only one of them was."""
    settings = {"steps": 24, "averaged_checkpoints": 4, "averaging_interval": 4}
    for method in ("magnitude", "random"):
        averaged = final_weights(tmp_path, method, PRUNING, settings)
        last = final_weights(tmp_path, method, PRUNING, {"steps": 24})
        for name, value in averaged.items():
            assert not (value[last[name] == 0.0] != 0.0).any(), name
            assert not torch.equal(value, last[name])
        weights = torch.cat([value.flatten() for value in averaged.values() if value.dim() > 1])
        assert float((weights == 0.0).float().mean()) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("method", ["variational-dropout", "l0"])
def test_learned_distributions_are_averaged_too(method: str, tmp_path: Path) -> None:
    parameters = {"penalty": 3.0, "begin": "2 steps", "end": "12 steps"}
    settings = {"steps": 16, "auxiliary_lr_scale": 5.0}
    averaged = final_weights(tmp_path, method, parameters, settings | {"averaged_checkpoints": 2, "averaging_interval": 5})
    last = final_weights(tmp_path, method, parameters, settings)
    assert averaged.keys() == last.keys()
    assert any(not torch.equal(averaged[name], last[name]) for name in last)


@pytest.mark.parametrize("step", [11, 13, 20])
def test_averaging_run_goes_on_to_the_same_bits(step: int, tmp_path: Path) -> None:
    config = resolve("digits", "magnitude", PRUNING, {"steps": 24, "averaged_checkpoints": 4, "averaging_interval": 4})
    whole, stopped = (run_folder(tmp_path / name, config) for name in ("whole", "stopped"))
    record = train(config, whole)
    with pytest.raises(InterruptedRunError):
        train(config, stopped, checkpoint_seconds=0.0, observe=stop_at(step))
    assert what_must_be_equal(stopped, train(config, stopped)) == what_must_be_equal(whole, record)


def test_more_checkpoints_than_steps_are_refused() -> None:
    """The field that was given is named, and what would be right."""
    with pytest.raises(SparsebenchError) as caught:
        resolve("digits", "dense", {}, {"steps": 20, "averaged_checkpoints": 5, "averaging_interval": 5})
    assert str(caught.value) == ("averaging_interval=5: 5 checkpoints so far apart do not fit into 20 steps; expected at most 4")
    resolve("digits", "dense", {}, {"steps": 21, "averaged_checkpoints": 5, "averaging_interval": 5})
    with pytest.raises(SparsebenchError) as caught:
        resolve("digits", "dense", {}, {"steps": 20, "averaged_checkpoints": 21})
    assert str(caught.value) == "averaged_checkpoints=21: so many checkpoints do not fit into 20 steps; expected at most 20"


def test_interval_that_is_left_out_is_a_hundredth_of_the_training_and_written_down() -> None:
    def interval(**settings: int) -> int:
        return resolve("digits", "dense", {}, settings).recipe.averaging_interval

    assert interval(steps=1000, averaged_checkpoints=5) == 10
    assert interval(steps=1000, averaged_checkpoints=5, averaging_interval=1) == 1
    assert interval(steps=50, averaged_checkpoints=5) == 1
    assert interval(steps=1000, averaged_checkpoints=201) == 4
    assert interval(steps=1000) == 1
    told = resolve("digits", "dense", {}, {"steps": 1000, "averaged_checkpoints": 5})
    assert (
        told.run_id == resolve("digits", "dense", {}, {"steps": 1000, "averaged_checkpoints": 5, "averaging_interval": 10}).run_id
    )
    assert (
        told.run_id != resolve("digits", "dense", {}, {"steps": 1000, "averaged_checkpoints": 5, "averaging_interval": 1}).run_id
    )
