from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from short_runs import TECHNIQUES, short

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import canonical_json
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.config import RunConfig, build_sparsifier, resolve
from sparsebench.training.times import to_steps
from sparsebench.workloads.registry import WORKLOADS

RECIPE = {
    "steps": 1000,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "learning_rate_schedule": "cosine",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "threads": 1,
}
PRUNING = {
    "sparsity": 0.9,
    "begin": 0.2,
    "end": 0.8,
    "frequency": 0.02,
    "allocation": "uniform",
    "policy": "returning",
    "initial_sparsity": 0.0,
    "layers": None,
}
VARIATIONAL = {
    "penalty": 0.3,
    "begin": 0.0,
    "end": 0.4,
    "shape": "linear",
    "thresholds": [3.0, 2.0],
    "noise": "example",
    "initial_log_sigma2": -10.0,
    "layers": None,
}
GATES = {"penalty": 0.1, "begin": 0.0, "end": 0.4, "shape": "cubic", "initial_log_alpha": 2.197, "layers": None}
AUXILIARY = {"auxiliary_lr_scale": 5.0}

# Results on disk are found again by these: a change that makes one of them fail orphans everybody's runs. Raise the revision
# of the method or workload where that is meant.
FROZEN: list[tuple[str, dict[str, Any], dict[str, Any], int, str]] = [
    ("dense", {}, {}, 0, "abe124646b5dc1c8"),
    ("random", PRUNING | {"policy": "gone"}, {}, 0, "c5480e1df2603f77"),
    ("magnitude", PRUNING, {}, 0, "8173f8727906a144"),
    ("magnitude", PRUNING, {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0005}, 7, "100b61a44fd40166"),
    ("magnitude", PRUNING | {"layers": ["!0"], "allocation": {"7": 0.95}}, {}, 0, "71ba1ad1a769ad6b"),
    ("magnitude-global", PRUNING | {"allocation": "global"}, {}, 0, "95601abbf2172ff4"),
    ("magnitude-erk", PRUNING | {"allocation": "erdos-renyi-kernel"}, {}, 0, "83e77172ce298aa2"),
    ("variational-dropout", VARIATIONAL, AUXILIARY, 1, "d7e87382bb1f70ff"),
    ("l0", GATES, AUXILIARY, 2, "acb5dc3c262de953"),
]


@pytest.mark.parametrize(("method", "parameters", "settings", "seed", "run_id"), FROZEN)
def test_ids_of_configurations_never_change(
    method: str, parameters: dict[str, Any], settings: dict[str, Any], seed: int, run_id: str
) -> None:
    """PEERS 23: nothing that decides a result is left out of its configuration, or changes in silence."""
    config = resolve("digits", method, parameters, RECIPE | settings, seed)
    assert config.run_id == run_id, canonical_json(config.model_dump(mode="json"))


def magnitude(**changes: Any) -> RunConfig:
    return resolve("digits", "magnitude", PRUNING | changes, RECIPE)


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        (0.25, 250),
        ("0.25", 250),
        ("25e-2", 250),
        (0, 0),
        (1, 1000),
        (1.0, 1000),
        ("250 steps", 250),
        (" 250  Steps ", 250),
        ("1 step", 1),
        ("0 steps", 0),
        ("5 epochs", 165),
        ("1 epoch", 33),
        ("0.5 epochs", 17),
        (".5 epochs", 17),
        ("20000 steps", 20000),
        ("2e4 steps", 20000),
        (0.0004, 0),
        (0.0005, 1),
    ],
)
def test_times_become_steps(written: object, steps: int) -> None:
    assert to_steps("begin", written, 1000, 33) == steps


@pytest.mark.parametrize(
    "written",
    [
        -0.1,
        1.5,
        300,
        "300",
        "abc",
        "5 minutes",
        "-5 steps",
        "5 steps more",
        "",
        None,
        True,
        False,
        [],
        {"steps": 5},
        float("nan"),
        float("inf"),
        "nan",
        "inf",
        "inf steps",
        "1e400 steps",
        "1e300 epochs",
    ],
)
def test_other_times_are_refused_with_what_would_be_right(written: object) -> None:
    with pytest.raises(SparsebenchError, match=r'^begin=.*: expected a fraction of training in \[0, 1\], "20000 steps" or'):
        to_steps("begin", written, 1000, 33)


def test_length_of_training_is_no_fraction_of_itself() -> None:
    with pytest.raises(SparsebenchError, match=r"^steps='0\.5': expected \"20000 steps\" or \"5 epochs\"$"):
        resolve("digits", "dense", {}, {"steps": "0.5"})


def test_length_of_training_can_be_epochs_of_the_batch_size_that_is_given() -> None:
    assert resolve("digits", "dense", {}, {"steps": "3 epochs", "batch_size": 32}).recipe.steps == 99
    assert resolve("digits", "dense", {}, {"steps": "3 epochs", "batch_size": 100}).recipe.steps == 30
    assert resolve("digits", "dense", {}, {"steps": "70 steps"}).recipe.steps == 70


def test_fraction_refers_to_the_length_that_is_given() -> None:
    config = resolve("digits", "magnitude", {"sparsity": 0.9, "begin": 0.5, "end": "1.0"}, {"steps": 60})
    assert (config.parameters["begin"], config.parameters["end"]) == (30, 60)


def test_interval_of_less_than_a_step_is_every_step() -> None:
    assert resolve("digits", "magnitude", PRUNING | {"frequency": 0.02}, {"steps": 10}).parameters["frequency"] == 1


@pytest.mark.parametrize(("method", "argument"), [("variational-dropout", VARIATIONAL), ("l0", GATES)])
def test_penalty_reaches_the_sparsifier_divided_by_the_number_of_examples(method: str, argument: dict[str, Any]) -> None:
    config = resolve("digits", method, argument | {"penalty": 3.0}, RECIPE)
    assert config.parameters["penalty"] == 3.0
    assert build_sparsifier(config)._penalty == 3.0 / 1077  # type: ignore[attr-defined]


def test_seed_of_the_run_is_the_seed_of_the_method() -> None:
    for method, arguments in (("random", PRUNING), ("l0", GATES)):
        config = resolve("digits", method, arguments, RECIPE, 17)
        assert build_sparsifier(config)._seed == 17  # type: ignore[attr-defined]
        assert "seed" not in config.parameters


@pytest.mark.parametrize(
    "method", ["dense", "random", "magnitude", "magnitude-global", "magnitude-erk", "variational-dropout", "l0"]
)
def test_defaults_are_written_out(method: str) -> None:
    given = {"sparsity": 0.9} if "m" in method.split("-")[0] else {}
    config = resolve("digits", method, given)
    assert set(config.model_dump()["recipe"]) == set(type(config.recipe).model_fields) - config.recipe.LATER
    for name, value in METHODS.get(method).defaults.items():
        assert name in config.parameters, (name, value)
    if method == "magnitude-global":
        assert config.parameters["allocation"] == "global"
    # Writing out what is the default changes nothing.
    parameters = {
        name: f"{value} steps" if name in ("begin", "end", "frequency") else value for name, value in config.parameters.items()
    }
    settings = {name: value for name, value in config.recipe.model_dump().items() if value is not None}
    assert resolve("digits", method, parameters, settings).run_id == config.run_id


@pytest.mark.parametrize(
    "same",
    [
        {"begin": "0.2"},
        {"begin": "200 steps"},
        {"begin": 0.2, "end": "800 steps", "frequency": "20 steps"},
        {"sparsity": "0.9"},
        {"initial_sparsity": 0},
    ],
)
def test_spelling_of_a_value_does_not_change_the_id(same: dict[str, Any]) -> None:
    assert magnitude(**same).run_id == magnitude().run_id


def test_order_and_sequence_type_do_not_change_the_id() -> None:
    turned = resolve("digits", "magnitude", dict(reversed(PRUNING.items())), dict(reversed(RECIPE.items())))
    assert turned.run_id == magnitude().run_id
    one, other = (
        resolve("digits", "variational-dropout", VARIATIONAL | {"thresholds": thresholds}, RECIPE)
        for thresholds in ([3, 2], (3.0, 2.0))
    )
    assert one.run_id == other.run_id


CHANGES: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({}, {}, 0),
    ({}, {}, 1),
    *[
        ({name: value}, {}, 0)
        for name, value in {
            "sparsity": 0.91,
            "begin": "201 steps",
            "end": 0.81,
            "frequency": 0.03,
            "allocation": "global",
            "policy": "gone",
            "initial_sparsity": 0.1,
            "layers": ["0"],
        }.items()
    ],
    *[
        ({}, {name: value}, 0)
        for name, value in {
            "steps": 1001,
            "batch_size": 33,
            "optimizer": "sgd",
            "learning_rate": 0.0031,
            "learning_rate_schedule": "constant",
            "warmup_steps": 1,
            "weight_decay": 1e-9,
            "label_smoothing": 0.1,
            "threads": 2,
        }.items()
    ],
]


def test_any_change_gives_another_id() -> None:
    begin_end = {"begin": "200 steps", "end": "800 steps", "frequency": "20 steps"}
    ids = [
        resolve("digits", "magnitude", PRUNING | begin_end | parameters, RECIPE | settings, seed).run_id
        for parameters, settings, seed in CHANGES
    ]
    ids.append(resolve("digits", "random", PRUNING, RECIPE).run_id)
    ids.append(magnitude().model_copy(update={"workload_revision": 99}).run_id)
    ids.append(magnitude().model_copy(update={"method_revision": 99}).run_id)
    assert len(set(ids)) == len(ids)
    assert all(len(run_id) == 16 and set(run_id) <= set("0123456789abcdef") for run_id in ids)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_configuration_survives_json(technique: str) -> None:
    config = short(technique)
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.run_id == config.run_id
    assert RunConfig.model_validate(json.loads(canonical_json(config.model_dump(mode="json")))).run_id == config.run_id


def test_configuration_cannot_be_changed() -> None:
    config = magnitude()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.recipe.steps = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.parameters = {}


def test_configuration_does_not_follow_what_it_was_made_from() -> None:
    parameters, settings = VARIATIONAL | {"thresholds": [3.0, 2.0]}, dict(RECIPE)
    config = resolve("digits", "variational-dropout", parameters, settings)
    before = config.run_id
    parameters["thresholds"].append(1.0)
    settings["steps"] = 5
    assert config.run_id == before


def test_unknown_field_in_a_stored_configuration_is_refused() -> None:
    with pytest.raises(ValidationError, match="momentum"):
        RunConfig.model_validate(magnitude().model_dump(mode="json") | {"momentum": 0.9})


@pytest.mark.parametrize("which", ["workload_revision", "method_revision"])
def test_configuration_of_another_revision_is_refused(which: str) -> None:
    config = magnitude().model_copy(update={which: 99})
    with pytest.raises(SparsebenchError, match=r"has revision 1, the configuration is of revision 99: make it anew"):
        build_sparsifier(config)


@pytest.mark.parametrize(
    ("workload", "method", "parameters", "settings", "message"),
    [
        ("digts", "dense", {}, {}, r"^unknown workload 'digts' \(did you mean 'digits'\?\); known: digits"),
        ("digits", "magnitud", {}, {}, r"^unknown method 'magnitud' \(did you mean 'magnitude'\?\); known: dense, random"),
        ("digits", "zzz", {}, {}, r"^unknown method 'zzz'; known: "),
        ("digits", "magnitude", {"sparsty": 0.9}, {}, r"^unknown parameter 'sparsty' .*\(did you mean 'sparsity'\?\); known: "),
        ("digits", "magnitude", {"sparsity": 0.9, "seed": 3}, {}, r"^unknown parameter 'seed'"),
        ("digits", "dense", {"sparsity": 0.9}, {}, r"^unknown parameter 'sparsity' of method 'dense'; known: none"),
        ("digits", "magnitude", {}, {}, r"^method 'magnitude' needs a value for 'sparsity'"),
        ("digits", "dense", {}, {"learning_rat": 1}, r"^unknown setting 'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("digits", "magnitude", {"sparsity": 1.2}, {}, r"^sparsity=1\.2: expected a fraction"),
        ("digits", "magnitude", {"sparsity": -0.1}, {}, r"^sparsity=-0\.1: expected a fraction"),
        ("digits", "magnitude", {"sparsity": float("nan")}, {}, r"^sparsity=nan: expected"),
        ("digits", "magnitude", {"sparsity": True}, {}, r"^sparsity=True: expected a number"),
        ("digits", "magnitude", {"sparsity": "lots"}, {}, r"^sparsity='lots': input should be a valid number"),
        ("digits", "magnitude", {"sparsity": [0.9]}, {}, r"^sparsity=\[0\.9\]: input should be a valid number"),
        ("digits", "magnitude", {"sparsity": 0.9, "begin": 0.5, "end": 0.4}, {}, r"^end=600 is before begin=750"),
        ("digits", "magnitude", {"sparsity": 0.9, "policy": "gon"}, {}, r"^policy='gon': input should be 'gone' or 'returning'"),
        ("digits", "magnitude", {"sparsity": 0.9, "allocation": "unifrm"}, {}, r"^allocation='unifrm'"),
        ("digits", "magnitude", {"sparsity": 0.9, "allocation": {"0": 1.5}}, {}, r"1\.5"),
        ("digits", "magnitude", {"sparsity": 0.9, "layers": lambda name, module: True}, {}, r"^layers: expected name patterns"),
        ("digits", "magnitude", {"sparsity": 0.9, "layers": [3]}, {}, r"^layers="),
        ("digits", "magnitude", {"sparsity": 0.9, "initial_sparsity": 1.5}, {}, r"^initial_sparsity=1\.5"),
        ("digits", "variational-dropout", {"penalty": -1.0}, {}, r"^penalty=-1\.0: expected"),
        ("digits", "variational-dropout", {"penalty": float("inf")}, {}, r"^penalty=inf: expected"),
        ("digits", "variational-dropout", {"thresholds": []}, {}, r"^thresholds="),
        ("digits", "variational-dropout", {"thresholds": 3.0}, {}, r"^thresholds=3\.0"),
        ("digits", "variational-dropout", {"thresholds": [float("nan")]}, {}, r"^thresholds=\[nan\]: expected finite numbers"),
        ("digits", "variational-dropout", {"initial_log_sigma2": float("inf")}, {}, r"^initial_log_sigma2=inf: expected finite"),
        ("digits", "variational-dropout", {"shape": "square"}, {}, r"^shape='square'"),
        ("digits", "dense", {}, {"steps": 0}, r"^steps=0: input should be greater than or equal to 1"),
        ("digits", "dense", {}, {"steps": 1.5}, r"^steps=1\.5"),
        ("digits", "dense", {}, {"steps": True}, r"^steps=True: expected a number"),
        ("digits", "dense", {}, {"learning_rate": 0}, r"^learning_rate=0"),
        ("digits", "dense", {}, {"learning_rate": float("inf")}, r"^learning_rate=inf"),
        ("digits", "dense", {}, {"optimizer": "adam"}, r"^optimizer='adam': input should be 'adamw' or 'sgd'"),
        ("digits", "dense", {}, {"label_smoothing": 1.0}, r"^label_smoothing=1\.0"),
        ("digits", "dense", {}, {"batch_size": 5000}, r"^batch_size=5000: digits has only 1077 training examples"),
        ("digits", "dense", {}, {"auxiliary_lr_scale": 2.0}, r"^auxiliary_lr_scale: the method 'dense' has no parameters of its"),
        ("digits", "l0", {}, {"auxiliary_lr_scale": 0}, r"^auxiliary_lr_scale=0"),
    ],
)
def test_mistakes_are_one_line_that_names_field_and_value(
    workload: str, method: str, parameters: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        resolve(workload, method, parameters, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", None, 2**63])
def test_seed_is_an_integer_that_a_generator_takes(seed: Any) -> None:
    with pytest.raises(SparsebenchError, match=r"^seed=.*: expected an integer of at least 0"):
        resolve("digits", "dense", {}, seed=seed)


def test_largest_seed_is_accepted() -> None:
    assert resolve("digits", "dense", {}, seed=2**63 - 1).seed == 2**63 - 1


def test_every_shipped_method_and_workload_is_listed_once_with_a_line() -> None:
    for registry in (METHODS, WORKLOADS):
        names = [entry.name for entry in registry]
        assert len(set(names)) == len(names)
        assert all(entry.summary and "\n" not in entry.summary for entry in registry)


def test_a_time_beyond_the_training_is_refused() -> None:
    with pytest.raises(SparsebenchError, match=r"^end='300 steps' is 300 steps, beyond the 100 steps of the training$"):
        resolve("digits", "magnitude", {"sparsity": 0.9, "end": "300 steps"}, {"steps": 100})


@pytest.mark.parametrize("argument", [{"layers": "nope*"}, {"allocation": {"nope*": 0.5}}])
def test_a_pattern_that_matches_no_layer_is_refused_before_anything_is_written(argument: dict[str, object]) -> None:
    state = torch.get_rng_state()
    with pytest.raises(SparsebenchError, match=r"pattern 'nope\*' matches no layer"):
        resolve("digits", "magnitude", {"sparsity": 0.9, **argument})
    assert torch.equal(torch.get_rng_state(), state)
