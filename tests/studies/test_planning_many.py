"""Planning very many configurations: what they share is done once."""

import copy
import itertools
import json
import pickle
import subprocess
import sys
from unittest import mock

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.records.schema import short_hash
from sparsebench.studies import spaces
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import read_study
from sparsebench.training import config as training_config
from sparsebench.training.child_config import keeping_weights, resolve_child
from sparsebench.training.config import RunConfig, resolve
from sparsebench.workloads.registry import WORKLOADS

STUDY = """
study: many
workload: digits
seeds: {seeds}
sparsities: [0.5, 0.9]
methods:
  magnitude:
    begin: [0.0, 0.2]
    end: [0.6, "1400 steps"]
    frequency: [0.02, "30 steps"]
    layers: {layers}
    label_smoothing: [0.0, 0.1]
  variational-dropout: {{penalty: [0.1, 1.0], thresholds: [[0.0, 1.0], [3.0]]}}
"""


def study_of(folder, text):
    path = folder / "many.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study(str(path))


def layers_of_digits():
    return [name for name, module in WORKLOADS.get("digits").build_model().named_modules() if hasattr(module, "weight")]


def test_a_plan_is_every_combination_resolved_by_itself(tmp_path):
    first, *_, last = ([f"!{name}"] for name in layers_of_digits())
    text = STUDY.format(seeds="[3, 1]", layers=[first, last])
    planned = plan_runs(study_of(tmp_path, text))
    wanted = []
    for seed in (3, 1):
        for sparsity, begin, end, frequency, layers, smoothing in itertools.product(
            (0.5, 0.9), (0.0, 0.2), (0.6, "1400 steps"), (0.02, "30 steps"), (first, last), (0.0, 0.1)
        ):
            parameters = {"sparsity": sparsity, "begin": begin, "end": end, "frequency": frequency, "layers": layers}
            wanted.append(resolve("digits", "magnitude", parameters, {"label_smoothing": smoothing}, seed))
        for penalty, thresholds in itertools.product((0.1, 1.0), ([0.0, 1.0], [3.0])):
            wanted.append(resolve("digits", "variational-dropout", {"penalty": penalty, "thresholds": thresholds}, {}, seed))
    assert {config.run_id: config for config in planned} == {config.run_id: config for config in wanted}
    assert [config.seed for config in planned] == [3] * (len(planned) // 2) + [1] * (len(planned) // 2)


def test_a_network_is_built_once_for_configurations_that_choose_the_same_layers(tmp_path):
    study = study_of(tmp_path, STUDY.format(seeds=5, layers=[[f"!{layers_of_digits()[-1]}"]]))
    built = []
    workload = type(WORKLOADS.get("digits"))
    own = workload.build_model
    with (
        mock.patch.object(training_config, "_CHECKED_LAYERS", set()),
        mock.patch.object(workload, "build_model", lambda self: built.append(1) or own(self)),
    ):
        plan_runs(study)
    # One for each sparsity.
    assert len(built) == 2


def test_values_that_are_equal_and_written_differently_stay_what_they_are():
    """What was planned before must not decide an id: 1, 1.0 and true are equal, and so are 0.0 and -0.0."""
    parameters = {"sparsity": 0.5, "initial_sparsity": 0.0}
    plain = resolve("digits", "magnitude", parameters)
    assert str(plain.parameters["initial_sparsity"]) == "0.0"
    assert str(resolve("digits", "magnitude", parameters | {"initial_sparsity": -0.0}).parameters["initial_sparsity"]) == "-0.0"
    assert resolve("digits", "magnitude", parameters).run_id == plain.run_id
    resolve("digits", "l0", {"penalty": 1})
    with pytest.raises(SparsebenchError, match="penalty=True: expected a number"):
        resolve("digits", "l0", {"penalty": True})


def test_recipe_is_resolved_once_for_configurations_that_share_it(tmp_path):
    study = study_of(tmp_path, STUDY.format(seeds=1, layers="null"))
    with mock.patch.object(spaces, "resolve_recipe", wraps=spaces.resolve_recipe) as resolved:
        configs = plan_runs(study)
    assert len(configs) == 2 * 2 * 2 * 2 + 4  # 0.02 of 1,500 steps are 30 steps
    assert resolved.call_count == 2 + 1  # two of magnitude, one of variational dropout
    for config in configs:
        again = RunConfig.model_validate(config.model_dump(mode="json"))
        assert again.run_id == config.run_id


def kinds_of_configurations():
    pruning = resolve(
        "digits", "magnitude", {"sparsity": 0.5, "layers": ["!0"], "allocation": {"7": 0.95}}, {"weight_decay": 0.0}
    )
    yield pruning
    yield resolve(
        "digits", "magnitude", pruning.parameters | {"begin": 0.2, "end": 0.8, "frequency": 0.02}, {"weight_decay": -0.0}
    )
    yield resolve("digits", "l0", {"penalty": 1}, {"adam_beta1": 0.5, "label_smoothing": 0.1}, seed=3)
    kept = keeping_weights(resolve("digits", "magnitude", {"sparsity": 0.9}), 0.02)
    yield kept
    yield resolve_child(kept, "lottery-ticket", {"rewind_to": 0.02})
    yield resolve_child(kept, "scratch-b", {}, steps=2000, schedule="constant-final-rate")


@pytest.mark.parametrize("config", list(kinds_of_configurations()), ids=lambda config: config.method)
def test_id_is_the_hash_of_the_whole_configuration(config):
    assert config.run_id == short_hash(json.loads(config.model_dump_json()))
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again == config  # what was remembered of one of them is no difference
    for same in (again, copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.model_copy()):
        assert same.run_id == config.run_id
    assert "run_id" not in config.model_dump()
    for deep in (False, True):
        longer = config.recipe.model_copy(update={"steps": 1})
        for changes in ({"seed": 7}, {"recipe": longer}, {"parameters": {"sparsity": 0.1}}):
            changed = config.model_copy(update=changes, deep=deep)
            assert changed.run_id == short_hash(json.loads(changed.model_dump_json())) != config.run_id


def test_recipes_that_are_equal_and_written_differently_have_ids_of_their_own():
    zero, minus_zero = (resolve("digits", "dense", {}, {"weight_decay": value}) for value in (0.0, -0.0))
    assert zero == minus_zero
    assert zero.run_id != minus_zero.run_id


MANY = """
study: many
workload: digits
seeds: {seeds}
methods:
  variational-dropout:
    penalty: {{from: 0.01, to: 10, values: {penalties}, scale: log}}
    begin: {{from: 0.0, to: 0.4, by: 0.1}}
    ramp: [0.2, 0.4]
    thresholds: [[3.0], [1.0, 2.0, 3.0]]
"""

PLANNING = """
import json, sys, time
from sparsebench.training.memory import PeakMemory

# Not ru_maxrss: a process inherits the highest point of the one that started it, here that of all tests before.
memory = PeakMemory()

from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import read_study

begun = time.process_time()
ids = {config.run_id for config in plan_runs(read_study(sys.argv[1]))}
print(json.dumps([len(ids), time.process_time() - begun, memory.peak_bytes() / 1e9]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "penalties"), [(5, 1000), (1, 5000)])
def test_hundred_thousand_configurations_are_planned_in_seconds(tmp_path, seeds, penalties):
    """The limits are three times what is promised of a quiet machine: other programs make a processor slower."""
    (tmp_path / "many.yaml").write_text(MANY.format(seeds=seeds, penalties=penalties), encoding="utf-8")
    command = [sys.executable, "-c", PLANNING, str(tmp_path / "many.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    runs, seconds, gigabytes = json.loads(done.stdout)
    assert runs == 100_000
    assert seconds < 30.0
    assert gigabytes < 1.0
