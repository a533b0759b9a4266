"""Configurations of runs that go on from finished ones, and the learning rates of those that are longer."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.errors import SparsebenchError
from sparsebench.sparsifiers.registry import METHODS
from sparsebench.training.child_config import keeping_weights, resolve_child, steps_for_dense_arithmetic
from sparsebench.training.config import KeptSchedule, RunConfig, goes_on, resolve
from sparsebench.training.longer_training import VARIANTS, check_schedule, is_stretched, rate_factor
from sparsebench.training.loop import learning_rate_factor
from sparsebench.workloads.workload import Recipe


def parent(seed: int = 0, **settings: Any) -> RunConfig:
    return resolve("digits", "magnitude", {"sparsity": 0.9}, settings, seed)


# As those of test_training_config.py: results on disk are found again by these.
FROZEN = [
    ("lottery-ticket", {}, {}, "b356afb25e27f0f4"),
    ("scratch-e", {"initialization": "ordinary"}, {}, "b68663768e5d43cf"),
    ("scratch-e", {"initialization": "sparse"}, {}, "8744baef901272a2"),
    ("scratch-b", {"initialization": "ordinary"}, {"steps": 3000}, "7879820acad4aede"),
    ("scratch-b", {"initialization": "ordinary"}, {"steps": 3000, "schedule": "constant-final-rate"}, "c848e9e188f99b11"),
    ("iterative-magnitude", {"sparsity": 0.5}, {}, "1bb84fa90b6f63cc"),
]


@pytest.mark.parametrize(("method", "parameters", "other", "run_id"), FROZEN)
def test_ids_of_children_never_change(method: str, parameters: dict[str, Any], other: dict[str, Any], run_id: str) -> None:
    assert resolve_child(parent(), method, parameters, **other).run_id == run_id


def test_keeping_weights_is_another_configuration() -> None:
    kept = keeping_weights(parent(), 0.02)
    assert kept.keep_weights_at == 30
    assert kept.run_id not in (parent().run_id, keeping_weights(parent(), "31 steps").run_id)
    assert RunConfig.model_validate(kept.model_dump(mode="json")) == kept


@pytest.mark.parametrize("at", [0, "0 steps", "1501 steps", 1.5, "soon", True, None])
def test_time_of_kept_weights_lies_within_the_training(at: object) -> None:
    with pytest.raises(SparsebenchError, match=r"^keep_weights_at="):
        keeping_weights(parent(), at)


@pytest.mark.parametrize("method", [method.name for method in METHODS if goes_on(method)])
def test_children_of_replicates_are_replicates(method: str) -> None:
    parameters = {"sparsity": 0.5} if method == "iterative-magnitude" else {}
    one, other = (resolve_child(parent(seed), method, parameters) for seed in (0, 1))
    assert one.run_id != other.run_id
    assert (one.seed, other.seed) == (0, 1)
    assert one.configuration == other.configuration
    elsewhere = resolve_child(parent(learning_rate=0.01), method, parameters)
    assert elsewhere.configuration != one.configuration
    assert RunConfig.model_validate(one.model_dump(mode="json")).run_id == one.run_id


def test_child_has_the_recipe_of_its_parent_without_what_was_for_its_method_alone() -> None:
    learned = resolve("digits", "l0", {"penalty": 1.0}, {"label_smoothing": 0.1, "steps": 100})
    child = resolve_child(learned, "scratch-e", {})
    assert learned.recipe.auxiliary_lr_scale == 5.0
    assert child.recipe == learned.recipe.model_copy(update={"auxiliary_lr_scale": None})


@pytest.mark.parametrize("method", [method.name for method in METHODS if goes_on(method)])
def test_method_that_goes_on_is_no_method_by_itself(method: str) -> None:
    with pytest.raises(SparsebenchError, match=rf"^method '{method}' goes on from a finished run: a stage of a study trains it"):
        resolve("digits", method, {})


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("magnitude", {"sparsity": 0.5}, r"^method 'magnitude' does not go on from a finished run$"),
        ("scratch-e", {"initialization": "new"}, r"^initialization='new': input should be 'ordinary' or 'sparse'$"),
        (
            "scratch-e",
            {"initialisation": "sparse"},
            r"^unknown parameter 'initialisation' .* \(did you mean 'initialization'\?\)",
        ),
        ("scratch-e", {"inherited": 1}, r"^unknown parameter 'inherited'"),
        ("lottery-ticket", {"rewind_to": "1501 steps"}, r"^rewind_to='1501 steps' is 1501 steps, beyond the 1500 steps"),
        ("iterative-magnitude", {}, r"^method 'iterative-magnitude' needs a value for 'sparsity'$"),
    ],
)
def test_mistakes_are_one_line(method: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        resolve_child(parent(), method, parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["lottery-ticket", "iterative-magnitude"])
def test_nothing_goes_back_to_weights_that_a_network_from_scratch_began_with(method: str) -> None:
    child = resolve_child(parent(), "scratch-e", {})
    parameters = {"sparsity": 0.5} if method == "iterative-magnitude" else {}
    with pytest.raises(SparsebenchError, match=r"goes back to earlier weights, which a run of 'scratch-e' does not keep$"):
        resolve_child(child, method, parameters)
    resolve_child(resolve_child(parent(), "lottery-ticket", {}), method, parameters)


@given(steps=st.integers(1, 10**6), dense=st.integers(1, 10**12), sparse=st.integers(0, 10**12))
def test_steps_of_scratch_b(steps: int, dense: int, sparse: int) -> None:
    found = steps_for_dense_arithmetic(steps, dense, sparse)
    wanted = min(Fraction(dense, sparse), Fraction(2)) * steps if sparse else Fraction(2 * steps)
    assert abs(found - wanted) <= Fraction(1, 2) + Fraction(1, 10**6)
    assert found <= 2 * steps


# Learning rates of longer runs: S = 10 steps, T = 16, written out by hand.

FALLING = [1.0, 0.8, 0.6, 0.4, 0.2]  # of a trapezoid of ten steps, after five at the height
WRITTEN_OUT = {
    "stretched": [1.0] * 8 + [1 - k / 8 for k in range(8)],
    "constant-decay-points": [1.0] * 5 + [1 - k / 11 for k in range(11)],
    "constant-final-rate": [1.0] * 5 + FALLING + [0.2] * 6,
    "continued-decay": [1.0] * 5 + FALLING + [0.2] * 5 + [0.2],
}


def rates(variant: str, steps: int = 10, longer: int = 16, **settings: Any) -> list[float]:
    recipe = Recipe(
        steps=longer, batch_size=1, optimizer="sgd", learning_rate=1.0, **{"learning_rate_schedule": "trapezoid"} | settings
    )
    own = is_stretched(variant, recipe.learning_rate_schedule)
    kept = None if own else KeptSchedule.model_validate({"variant": variant, "steps": steps})
    factor = rate_factor(recipe, kept, learning_rate_factor)
    return [factor(step) for step in range(longer)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_rates_of_a_longer_training(variant: str) -> None:
    assert rates(variant) == pytest.approx(WRITTEN_OUT[variant])


def test_continued_decay_goes_through_the_decay_once_more_and_stays_there() -> None:
    assert rates("continued-decay", longer=23)[10:] == pytest.approx([0.2] * 5 + [0.2 * rate for rate in FALLING] + [0.04] * 3)


def test_warm_up_comes_once() -> None:
    assert rates("continued-decay", warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates("continued-decay", warmup_steps=4)[10] == pytest.approx(0.2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("schedule", ["trapezoid", "cosine", "inverse-square-root"])
def test_rates_are_those_of_the_parent_as_long_as_it_was_training_and_never_rise(variant: str, schedule: str) -> None:
    found = rates(variant, learning_rate_schedule=schedule)
    assert all(later <= sooner + 1e-12 for sooner, later in itertools.pairwise(found))
    if variant in ("constant-final-rate", "continued-decay"):
        assert found[:10] == rates("stretched", longer=10, learning_rate_schedule=schedule)


@pytest.mark.parametrize("schedule", ["cosine", "inverse-square-root"])
def test_schedule_that_decays_at_once_has_constant_decay_points_when_stretched(schedule: str) -> None:
    """It is the same run, and not trained twice."""
    long = parent(learning_rate_schedule=schedule)
    one, other = (
        resolve_child(long, "scratch-b", {}, steps=3000, schedule=variant) for variant in ("stretched", "constant-decay-points")
    )
    assert one == other
    assert one.kept_schedule is None


def test_run_that_is_not_longer_has_the_schedule_of_its_parent() -> None:
    assert len({resolve_child(parent(), "scratch-b", {}, steps=1500, schedule=variant).run_id for variant in VARIANTS}) == 1


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_constant_schedule_has_no_variants(variant: str) -> None:
    check_schedule("stretched", "constant")
    with pytest.raises(SparsebenchError, match=rf"^schedule='{variant}': the schedule 'constant' has no decay"):
        check_schedule(variant, "constant")


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(SparsebenchError, match=r"^schedule='stretch': expected one of stretched, constant-decay-points, "):
        resolve_child(parent(), "scratch-b", {}, steps=3000, schedule="stretch")
