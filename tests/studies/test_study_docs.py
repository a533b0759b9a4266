"""Every example of docs/studies.md is a study that can be planned, and the page leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pretended_runs import stages_of

from sparsebench.sparsifiers.registry import METHODS
from sparsebench.studies import study_file
from sparsebench.studies.plan import plan_runs
from sparsebench.studies.search import settings
from sparsebench.studies.study_file import each_workload, read_study
from sparsebench.studies.study_runs import StudyRuns
from sparsebench.training.child_config import goes_on
from sparsebench.training.longer_training import VARIANTS

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
# The runs of each example, counted by hand: those of its grid, and with its stages where results are made up.
RUNS = {
    "mine": 3 * (1 + 3 * 2 + 3),
    "grids": 2 * (2 * 2 * (4 + 1) + 3 * 3 + 2),
    "same-chances": 3 * (20 + 20),
    "searched": 2 * 40,
    "several": 2,
    "tickets": 1 + 3 * 4,
}


def name_of(example: str) -> str:
    return example.partition("\n")[0].removeprefix("study: ")


def test_every_example_is_counted() -> None:
    assert [name_of(example) for example in EXAMPLES] == list(RUNS)


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_can_be_planned(example: str, tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    for study in each_workload(read_study(str(tmp_path / "example.yaml"))):
        if study.search is not None:
            pytest.importorskip("optuna")
        runs = StudyRuns(study, tmp_path / "results", plan_runs(study))
        assert len(runs.planned) + sum(runs.unproposed.values()) == RUNS[name_of(example)]


def test_stages_of_the_example_are_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(EXAMPLES[-1], encoding="utf-8")
    found = stages_of(read_study(str(tmp_path / "example.yaml")), tmp_path / "results")
    tickets = sum(config.method == "lottery-ticket" for config in found["from-masks"])
    assert len(found["from-masks"]) == tickets * (1 + 2 + 2 + 3)
    assert (len(found["early"]), len(found["iterative"])) == (5, 5 * 3)


def test_page_names_every_field_method_and_schedule() -> None:
    for field in study_file._KNOWN:
        assert re.search(rf"^\|.*`{field}`.*\|", PAGE, flags=re.MULTILINE), field
    for field in study_file._STAGE:
        assert re.search(rf"^\| `{field}` \|", PAGE, flags=re.MULTILINE), field
    for field in settings._FIELDS:
        assert re.search(rf"^\| `{field}` \|", PAGE, flags=re.MULTILINE), field
    for sampler in settings.SAMPLERS:
        assert f"- `{sampler}`" in PAGE
    for method in METHODS:
        if goes_on(method):
            assert f"| `{method.name}` |" in PAGE
    for variant in VARIANTS:
        assert f"- `{variant}`:" in PAGE


def test_commands_of_the_page_exist() -> None:
    for name, workload in re.findall(r"^sparsebench study run (\S+) --workload (\S+)$", PAGE, flags=re.MULTILINE):
        (study,) = each_workload(read_study(name), workload)
        assert plan_runs(study)
