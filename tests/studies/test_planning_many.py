"""Planning very many configurations: what they share is done once."""

import itertools
from unittest import mock

from sparsebench.studies.plan import plan_runs
from sparsebench.studies.study_file import read_study
from sparsebench.training import config as training_config
from sparsebench.training.config import resolve
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
