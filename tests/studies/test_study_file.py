from __future__ import annotations

import hashlib
import re
import textwrap
from pathlib import Path

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.studies.plan import describe_methods, plan_runs
from sparsebench.studies.study_file import Study, each_workload, read_study, shipped_studies, with_settings
from sparsebench.training.config import RunConfig

STUDY_WITH_SETTINGS = """
study: changed
workload: digits
seeds: 1
settings: {}
methods:
  dense: {{}}
"""
COMPLETE = """\
study: mine
description: Two methods.
note: >
  On two
  lines.
workload: digits
seeds: [3, 5]
sparsities: [0.9, 0.5]
settings:
  steps: 100
methods:
  dense: {}
  magnitude:
    begin: [0.1, "20 steps"]
    learning_rate: [0.001, 0.01, 0.1]
  variational-dropout:
    penalty: [0.1, 1.0]
    thresholds: [3.0, 1.0]
"""


def read(path: Path, text: str) -> Study:
    file = path / "mine.yaml"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return read_study(str(file))


def plan(path: Path, text: str) -> list[RunConfig]:
    return plan_runs(read(path, text))


def test_study_is_read_as_written(tmp_path: Path) -> None:
    study = read(tmp_path, COMPLETE)
    assert (study.name, study.description, study.note, study.workload) == ("mine", "Two methods.", "On two lines.", "digits")
    assert (study.seeds, study.sparsities, study.settings) == ((3, 5), (0.5, 0.9), {"steps": 100})
    assert [(grid.method, grid.line) for grid in study.methods] == [("dense", 12), ("magnitude", 13), ("variational-dropout", 16)]


def test_plan_is_every_combination_at_every_sparsity_and_seed(tmp_path: Path) -> None:
    configs = plan(tmp_path, COMPLETE)
    counts = {method: sum(config.method == method for config in configs) for method in describe_methods(configs)}
    assert counts == {"dense": 2, "magnitude": 2 * 3 * 2 * 2, "variational-dropout": 2 * 2}
    assert len({config.run_id for config in configs}) == len(configs)
    assert {config.recipe.steps for config in configs} == {100}
    pruned = [config for config in configs if config.method == "magnitude"]
    combinations = {
        (config.seed, config.parameters["sparsity"], config.parameters["begin"], config.recipe.learning_rate) for config in pruned
    }
    assert len(combinations) == len(pruned)
    assert {config.parameters["begin"] for config in pruned} == {10, 20}
    # All of one seed before the next, so that an interrupted study has seen every configuration once.
    assert [config.seed for config in configs] == sorted(config.seed for config in configs)


def test_list_is_one_value_where_the_argument_is_a_sequence(tmp_path: Path) -> None:
    one = plan(tmp_path, COMPLETE.replace("penalty: [0.1, 1.0]", "penalty: 0.1"))
    assert [config.parameters["thresholds"] for config in one if config.method == "variational-dropout"] == [[3.0, 1.0]] * 2
    many = plan(tmp_path, COMPLETE.replace("[3.0, 1.0]", "[[3.0], [3.0, 1.0], [0.0]]"))
    found = [config.parameters["thresholds"] for config in many if config.method == "variational-dropout"]
    assert len(found) == 2 * 3 * 2
    assert {tuple(value) for value in found} == {(3.0,), (3.0, 1.0), (0.0,)}
    layers = plan(tmp_path, COMPLETE.replace('begin: [0.1, "20 steps"]', "layers: [['0', '7'], '!0']".replace("'!0'", "['!0']")))
    assert {tuple(c.parameters["layers"]) for c in layers if c.method == "magnitude"} == {("0", "7"), ("!0",)}


def test_map_is_one_value(tmp_path: Path) -> None:
    configs = plan(tmp_path, COMPLETE.replace('begin: [0.1, "20 steps"]', "allocation: {'7': 0.95}"))
    assert {str(config.parameters["allocation"]) for config in configs if config.method == "magnitude"} == {"{'7': 0.95}"}


def test_configuration_that_comes_out_twice_runs_once(tmp_path: Path) -> None:
    twice = COMPLETE.replace('begin: [0.1, "20 steps"]', 'begin: [0.1, "0.1", "10 steps"]')
    once = COMPLETE.replace('begin: [0.1, "20 steps"]', "begin: 0.1")
    assert [config.run_id for config in plan(tmp_path, twice)] == [config.run_id for config in plan(tmp_path, once)]


def test_sparsity_in_a_grid_replaces_those_of_the_study(tmp_path: Path) -> None:
    configs = plan(tmp_path, COMPLETE.replace('begin: [0.1, "20 steps"]', "sparsity: [0.7]"))
    assert {config.target_sparsity for config in configs if config.method == "magnitude"} == {0.7}


def test_setting_of_a_method_replaces_that_of_the_study(tmp_path: Path) -> None:
    configs = plan(tmp_path, COMPLETE.replace("dense: {}", "dense: {steps: 50}"))
    assert {config.method: config.recipe.steps for config in configs} == {
        "dense": 50,
        "magnitude": 100,
        "variational-dropout": 100,
    }


def test_number_of_seeds_counts_from_0_and_is_3_where_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, COMPLETE.replace("seeds: [3, 5]", "seeds: 4")).seeds == (0, 1, 2, 3)
    assert read(tmp_path, COMPLETE.replace("seeds: [3, 5]\n", "")).seeds == (0, 1, 2)


MISTAKES = [
    # what is written instead of what, the line that is named, what the message says
    ("seeds: [3, 5]", "sedes: [3, 5]", 7, r"unknown field 'sedes' \(did you mean 'seeds'\?\); known: study, description"),
    ("seeds: [3, 5]", "seeds: 0", 7, r"seeds=0: expected a number of seeds"),
    ("seeds: [3, 5]", "seeds: [3, 3]", 7, r"seeds=\[3, 3\]: expected .* different integers"),
    ("seeds: [3, 5]", "seeds: [3, -1]", 7, r"seeds=\[3, -1\]: expected"),
    ("seeds: [3, 5]", "seeds: []", 7, r"seeds=\[\]: expected"),
    ("seeds: [3, 5]", "seeds: true", 7, r"seeds=True: expected"),
    ("seeds: [3, 5]", "seeds: many", 7, r"seeds='many': expected"),
    ("seeds: [3, 5]", "seeds: 2024-13-45", 7, r"seeds: month must be in 1"),
    ("seeds: [3, 5]", "workload: digits", 7, r"'workload' stands here twice \(first on line 6\)"),
    ("study: mine", "study: [a]", 1, r"study=\['a'\]: expected a text"),
    ("study: mine", "study: 5", 1, r"study=5: expected a text"),
    ("study: mine", "study: ''", 1, r"study='': expected a text"),
    ("workload: digits", "workload: digts", 6, r"unknown workload 'digts' \(did you mean 'digits'\?\); known: digits"),
    ("[0.9, 0.5]", "[0.9, 1.2]", 8, r"sparsities=\[0\.9, 1\.2\]: expected a list of fractions in \[0, 1\)"),
    ("[0.9, 0.5]", "0.9", 8, r"sparsities=0\.9: expected a list"),
    ("[0.9, 0.5]", "[a]", 8, r"sparsities=\['a'\]: expected a list"),
    ("  steps: 100", "  stesp: 100", 9, r"unknown setting 'stesp' \(did you mean 'steps'\?\); known: steps, batch_size"),
    ("  steps: 100", "  begin: 0.1", 9, r"unknown setting 'begin'"),
    ("settings:\n  steps: 100", "settings: 100\n", 9, r"settings: expected a mapping"),
    ("  dense: {}", "  denes: {}", 12, r"unknown method 'denes' \(did you mean 'dense'\?\); known: dense, "),
    ("  dense: {}", "  dense: 5", 12, r"dense: expected a mapping"),
    ("  dense: {}", "  magnitude: {}", 13, r"'magnitude' stands here twice \(first on line 12\)"),
    ("  dense: {}", "  dense: {sparsity: 0.5}", 12, r"unknown field 'sparsity' of 'dense'"),
    ("  dense: {}", "  dense: {learning_rate: 0}", 12, r"dense: learning_rate=0: "),
    ("  dense: {}", "  dense: {learning_rate: []}", 12, r"learning_rate: expected at least one value"),
    ("  dense: {}", "  dense: {seed: 1}", 12, r"unknown field 'seed' of 'dense'"),
    (
        "begin: [0.1,",
        "begn: [0.1,",
        13,
        r"unknown field 'begn' of 'magnitude' \(did you mean 'begin'\?\); known: sparsity, begin",
    ),
    ("begin: [0.1,", "begin: 0.5\n    end: [0.05,", 13, r"magnitude: end=5 is before begin=50"),
    ("begin: [0.1,", "sparsity: [1.2,", 13, r"magnitude: sparsity=1\.2: expected a fraction"),
    ("begin: [0.1,", "begin: [yesterday,", 13, r"magnitude: begin='yesterday': expected a fraction of training"),
    ("begin: [0.1,", "policy: [came,", 13, r"magnitude: policy='came': input should be 'gone' or 'returning'"),
    ("penalty: [0.1, 1.0]", "penalty: [0.1, -1.0]", 16, r"variational-dropout: penalty=-1\.0: expected"),
    ("[3.0, 1.0]", "[]", 16, r"variational-dropout: thresholds="),
    ("[3.0, 1.0]", "3.0", 16, r"variational-dropout: thresholds=3\.0"),
    ("sparsities: [0.9, 0.5]\n", "", 12, r"magnitude needs sparsities; add the field 'sparsities'"),
    ("description: Two methods.", "description: [", 3, r"not YAML: "),
    ("description: Two methods.", "description: a: b", 2, r"not YAML: mapping values are not allowed here"),
    ("description: Two methods.", "description: !thing a", 2, r"description: could not determine a constructor"),
    ("description: Two methods.", "--- ", None, r"not YAML: "),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_mistake_is_one_line_with_file_line_and_field(tmp_path: Path, old: str, new: str, line: int | None, message: str) -> None:
    assert COMPLETE.count(old) == 1
    where = rf"^{tmp_path}/mine\.yaml" + ("" if line is None else rf", line {line}: ")
    with pytest.raises(SparsebenchError, match=where + ("" if line else ".*") + message) as caught:
        plan(tmp_path, COMPLETE.replace(old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a mapping with the fields study, workload, methods"),
        ("- a", r"expected a mapping with the fields"),
        ("study: a\nworkload: digits", r"field 'methods' is missing"),
        ("study: a\nmethods: {dense: }", r"field 'workload' is missing"),
        ("study: a\nworkload: digits\nmethods: {}", r"line 3: methods: expected at least one method"),
        ("study: a\nworkload: digits\nmethods:", r"line 3: methods: expected at least one method"),
        ("study: a\nworkload: digits\nmethods: [dense]", r"line 3: methods: expected a mapping"),
        ("study: \x00", r"not YAML: unacceptable character"),
    ],
)
def test_file_that_is_no_study_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SparsebenchError, match=r"^cannot read study file \S+: No such file or directory$"):
        read_study(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SparsebenchError, match=r"^cannot read study file \S+: Is a directory$"):
        read_study(str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes("study: é".encode("latin-1"))
    with pytest.raises(SparsebenchError, match=r"is not a text file in UTF-8$"):
        read_study(str(tmp_path / "latin.yaml"))
    with pytest.raises(
        SparsebenchError, match=r"^unknown study 'quikstart' \(did you mean 'quickstart'\?\); known: .*quickstart"
    ):
        read_study("quikstart")


OF_RESNET_50 = {"imagenet-extended", "gale2019-resnet50"}  # whose layers and steps they name


@pytest.mark.parametrize("name", [name for name in shipped_studies() if name not in OF_RESNET_50])
def test_shipped_studies_can_be_planned_and_treat_methods_alike(name: str) -> None:
    """On digits, whose data are always there."""
    (study,) = each_workload(shipped_studies()[name], "digits")
    configs = plan_runs(study)
    assert study.description
    assert {config.recipe.steps for config in configs} == {configs[0].recipe.steps}
    assert {config.recipe.batch_size for config in configs} == {configs[0].recipe.batch_size}
    assert {config.recipe.threads for config in configs} == {1}
    assert {config.seed for config in configs} == set(study.seeds)


def test_quickstart_is_what_the_issue_asks_for() -> None:
    configs = plan_runs(read_study("quickstart"))
    assert {config.method for config in configs} >= {
        "dense",
        "random",
        "magnitude",
        "magnitude-global",
        "variational-dropout",
        "l0",
    }
    for method in ("random", "magnitude", "magnitude-global"):
        assert {config.target_sparsity for config in configs if config.method == method} == {0.5, 0.8, 0.9, 0.95, 0.98}
    for method in ("variational-dropout", "l0"):
        assert len({config.parameters["penalty"] for config in configs if config.method == method}) > 1
    counts = {
        method: sum(config.method == method for config in configs) for method in describe_methods(configs) if method != "dense"
    }
    assert len(set(counts.values())) == 1, counts  # an equal budget for every method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workload: digits\nworkloads: [digits]", r"line 2: workload: expected either this field or 'workloads', not both"),
        ("workloads: []", r"line 2: workloads=\[\]: expected a name, or a list of different names"),
        ("workloads: [digits, digits]", r"line 2: workloads=.*: expected a name, or a list of different names"),
        ("workloads: [digits, 5]", r"line 2: workloads=.*: expected a name, or a list of different names"),
    ],
)
def test_workloads_are_named_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SparsebenchError, match=message):
        read(tmp_path, f"study: a\n{text}\nmethods: {{dense: }}")


def test_study_of_several_workloads_is_one_for_each(tmp_path: Path) -> None:
    several = read(tmp_path, "study: a\nworkloads: [digits, 'parallel:/x/y']\nmethods: {dense: }")
    assert [(study.name, study.workload) for study in each_workload(several)] == [
        ("a-digits", "digits"),
        ("a-parallel-x-y", "parallel:/x/y"),
    ]
    (other,) = each_workload(several, "cldr-ende")
    arguments = (str(tmp_path / "mine.yaml"), "--workload", "cldr-ende")
    assert (other.name, other.workload, other.arguments) == ("a-cldr-ende", "cldr-ende", arguments)
    one = read(tmp_path, "study: a\nworkload: digits\nmethods: {dense: }")
    assert each_workload(one) == [one]


def test_gale2019_on_digits_is_frozen() -> None:
    """Its results are published: the runs of its grid must stay the runs that they are."""
    (study,) = each_workload(read_study("gale2019"), "digits")
    configs = plan_runs(study)
    assert len(configs) == 2 + 4 * 7 * 18 * 2 + 6 * 2 * 8 * 2 + 5 * 2 * 8 * 2
    ids = " ".join(sorted(config.run_id for config in configs))
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == "a2c11289d3e20bf5"


def test_settings_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    """The same runs as of a file that says so; and the folder tells the command that made it."""
    text = STUDY_WITH_SETTINGS.format("{label_smoothing: [0.0, 0.1], steps: 20}")
    (tmp_path / "study.yaml").write_text(text)
    (tmp_path / "changed.yaml").write_text(STUDY_WITH_SETTINGS.format("{label_smoothing: 0.2, steps: 20, threads: 2}"))
    changed = with_settings(read_study(str(tmp_path / "study.yaml")), {"label_smoothing": 0.2, "threads": 2})
    assert plan_runs(changed) == plan_runs(read_study(str(tmp_path / "changed.yaml")))
    assert changed.arguments == (str(tmp_path / "study.yaml"), "--set", "label_smoothing=0.2", "--set", "threads=2")


def test_settings_of_the_command_line_are_those_of_a_recipe() -> None:
    with pytest.raises(SparsebenchError, match=re.escape("unknown setting 'stepps' (did you mean 'steps'?)")):
        with_settings(read_study("quickstart"), {"stepps": 3})
