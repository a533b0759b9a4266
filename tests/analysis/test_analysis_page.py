from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from analysis_studies import fail, layers, point, run, small_study, write
from page_reader import Page

import sparsebench.analysis.page as page_module
from sparsebench.analysis.failures_page import nothing_but_failures
from sparsebench.analysis.frontiers import best_values
from sparsebench.analysis.page import render_page, write_page
from sparsebench.cli import app
from sparsebench.errors import SparsebenchError
from sparsebench.records.query import query

EN_DASH = "\N{EN DASH}"
BEST = "Test accuracy (%) at least this sparse"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write(tmp_path_factory.mktemp("study"), small_study(), [0.8, 0.9, 0.98], note="Digits are easy.\nMind that.")


@pytest.fixture(scope="module")
def page(study):
    return Page(render_page(study))


def test_the_page_is_one_file_of_modest_size_in_the_folder(study):
    path = write_page(study)
    assert path == study / "report.html"
    assert path.stat().st_size < 8_000_000
    assert write_page(study, study / "elsewhere.html").read_bytes() == path.read_bytes()
    assert not list(study.glob("*.part"))


def test_the_page_asks_no_other_machine_for_anything(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    policy = next(
        attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert not re.search(r"url\(|@import", Path(page_module.__file__).with_name("page.css").read_text())


def test_the_page_can_be_read_without_seeing_it(page):
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert tags.count("table") == tags.count("caption") == len(page.tables) >= 6
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert all("aria-label" in attributes for tag, attributes in page.tags if attributes.get("role") in ("img", "region"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_the_table_shows_the_best_values(study, page):
    found = best_values(study)
    rows = {row[0]: row[1:] for row in page.tables[BEST]}
    assert rows["method"] == ["≥ 80 %", "≥ 90 %", "≥ 98 %"]
    for method, values in found.rows.items():
        for value, cell in zip(values, rows[method], strict=True):
            if value is None:
                assert cell == EN_DASH
            else:
                number = f"{value.mean:.2f} ± {value.half_width:.2f}{value.n} seeds"
                assert cell.removeprefix("★ highest: ") == number
    assert [cell.startswith("★") for cell in rows["magnitude"]] == [True, False, False]
    assert [cell.startswith("★") for cell in rows["variational-dropout"]] == [False, True, False]
    assert rows["dense"] == [f"{found.dense.mean:.2f} ± {found.dense.half_width:.2f}3 seeds, no sparsity"]


def test_every_best_value_is_what_sql_gives_by_the_rule(study, page):
    rows = {row[0]: row[1:] for row in page.tables[BEST]}
    compared = 0
    for place, sparsity in enumerate((0.8, 0.9, 0.98)):
        said = query(
            study,
            "with points as (select method, configuration, threshold, avg(value) filter (split = 'validation') as validation, "
            "avg(value) filter (split = 'test') as test, avg(sparsity) filter (split = 'test') as sparsity from results "
            "where primary_metric and method != 'dense' group by all) "
            f"select method, arg_max(test, validation) as best from points where sparsity >= {sparsity} - 0.0005 group by method",
        )
        best = dict(zip(said["method"], said["best"], strict=True))
        for method in ("magnitude", "random", "variational-dropout"):
            cell = rows[method][place].removeprefix("★ highest: ")
            assert cell.startswith(f"{best[method]:.2f} ±") if method in best else cell == EN_DASH
            compared += method in best
    assert compared == 6


def test_the_chosen_settings_are_those_that_differ_within_the_method(page):
    chosen = {(row[0], row[1]): row for row in page.tables["Chosen points"]}
    assert chosen["magnitude", "80 %"][2:9] == ["80.00 %", "95.25", "94.75 ± 0.62", "4", "3", EN_DASH, "begin 0, sparsity 0.8"]
    assert chosen["variational-dropout", "90 %"][5:9] == ["1", "3", "1", "the only configuration"]
    assert ("magnitude", "98 %") not in chosen
    assert "recipe.steps=1500" in page.text


def test_the_cost_table_counts_runs_configurations_and_points(page):
    costs = {row[0]: row[1:] for row in page.tables["Tuning budget and training cost"]}
    assert costs["magnitude"] == ["4", "4", "3", "12", "0", "1,500", "2.0 min", "10.0 s", "1.0 MiB"]
    assert costs["variational-dropout"] == ["1", "2", "3", "3", "0", "1,500", "30.0 s", "10.0 s", "1.0 MiB"]


def test_the_page_says_what_was_compared_how_and_by_which_command(page):
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "compares 3 ways of making a network sparse (magnitude, random and variational-dropout)" in text
    assert "beside the dense network on digits: 30 finished runs" in text
    assert "30 finished runs of 1,500 training steps each, 10 configurations with 3 seeds each" in text
    assert "Digits are easy." in text
    assert "sparsebench study run synthetic" in text
    assert "Zhu & Gupta 2017" in text
    assert "highest mean on the validation split" in text
    assert "0.05 percentage points" in text
    assert "Methods did not try the same number of configurations (magnitude 4, random 4, variational-dropout 1)" in text


def test_the_figures_hold_the_same_numbers_as_the_table(study, page):
    found = best_values(study)
    lines = {trace["name"]: trace["y"] for trace in page.figures["tradeoff"]["data"] if trace["mode"] == "lines+markers"}
    assert lines == {method: [value and value.mean for value in values] for method, values in found.rows.items()}
    assert [sorted(trace["name"] for trace in figure["data"]) for figure in page.figures["panels"]["layers"]] == [
        ["magnitude", "random", "variational-dropout"],
        ["magnitude", "random", "variational-dropout"],
    ]


def test_failed_and_missing_runs_are_listed(tmp_path):
    directory = write(tmp_path, small_study(), [0.8], planned_runs=40)
    lost = run("magnitude", {"sparsity": 0.9, "begin": 600}, 7, point(0.9, 1.0, 1.0))
    fail(directory, lost, "weight 'conv.weight' became NaN at step 12")
    (directory / "runs" / "unreadable").mkdir()
    (directory / "runs" / "unreadable" / "failure.txt").write_text("killed")
    page = Page(render_page(directory))
    assert page.tables["Failed runs"][1:] == [
        [lost.run_id, "magnitude", "weight 'conv.weight' became NaN at step 12", "begin 600, sparsity 0.9, seed 7"],
        ["unreadable", "unknown", "killed", ""],
    ]
    costs = {row[0]: row for row in page.tables["Tuning budget and training cost"]}
    assert costs["magnitude"][5] == "1"
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "30 of 40 planned runs finished, 2 failed, 8 still missing" in text


def test_a_method_whose_runs_all_failed_is_not_forgotten(tmp_path):
    directory = write(tmp_path, small_study(), [0.8], methods={"rigl": {"summary": "Regrows weights."}})
    fail(directory, run("l0", {}, 0, point(0.9, 1.0, 1.0)), "out of memory")
    page = Page(render_page(directory))
    assert "No run of l0 and rigl finished" in page.text
    costs = {row[0]: row[1:] for row in page.tables["Tuning budget and training cost"]}
    assert costs["l0"] == ["0", "0", EN_DASH, "0", "1", *[EN_DASH] * 4]


def test_a_study_whose_runs_all_failed_has_a_page_of_its_own(tmp_path, capsys):
    directory = write(tmp_path, [], [0.8], planned_runs=5, command="sparsebench study run synthetic")
    for seed, reason in enumerate(("out of memory", "the loss is nan at step 3\n\nTraceback")):
        fail(directory, run("l0", {"penalty": float(seed)}, seed, point(0.9, 1.0, 1.0)), reason)
    (directory / "runs" / "begun").mkdir()
    with pytest.raises(SparsebenchError, match="holds no finished run yet"):
        render_page(directory)
    app(["report", str(directory)], standalone_mode=False)
    assert "no run has finished" in capsys.readouterr().out
    page = Page((directory / "report.html").read_text())
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "No run of this study has finished, so this page has no values" in text
    assert "2 runs failed, 1 more was begun and did not finish; 5 were planned." in text
    assert "sparsebench study run synthetic" in text
    rows = sorted(page.tables["Failed runs"][1:], key=lambda row: row[3])
    assert [row[1:] for row in rows] == [
        ["l0", "out of memory", "penalty 0, seed 0"],
        ["l0", "the loss is nan at step 3", "penalty 1, seed 1"],
    ]
    assert not nothing_but_failures(write(tmp_path / "fine", small_study(), [0.8]))


HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'><b>&amp;{{ 7 * 7 }}"


def test_texts_of_a_study_are_text_whatever_they_hold(tmp_path):
    records = [
        run(HOSTILE, {"trick": HOSTILE + str(number)}, 0, point(0.9, 80.0 + number, 81.0, layers=layers(0.9)))
        for number in range(2)
    ]
    hostile_layer = layers(0.9)[0].model_copy(update={"layer": HOSTILE})
    records.append(run("l0", {}, 0, point(0.9, 80.0, 81.0, layers=(hostile_layer,))))
    about = {HOSTILE: {"summary": HOSTILE, "paper": HOSTILE}}
    directory = write(
        tmp_path,
        records,
        [0.9],
        name=HOSTILE,
        workload="digits",
        description=HOSTILE,
        note=HOSTILE,
        command=HOSTILE,
        methods=about,
    )
    fail(directory, run("l0", {"trick": HOSTILE}, 5, point(0.9, 80.0, 81.0)), HOSTILE)
    html = render_page(directory)
    data = html.partition('<script type="application/json" id="figures">')[2].partition("</script>")[0]
    assert not set("<>&") & set(data)
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert "b" not in tags
    assert tags.count("script") == 4
    assert page.text.count("window.broken = 1") >= 10
    assert "49" not in page.text
    for figure in (page.figures["tradeoff"], *page.figures["panels"]["layers"]):
        for trace in figure["data"]:
            texts = [trace["name"], *(trace.get("text") or [])]
            assert not any(re.search(r"<(?!/?b>|br>)", text) for text in texts)


def only_dense():
    return [run("dense", {}, 0, point(0.0, 97.0, 96.0))]


def one_run():
    return [run("magnitude", {}, 0, point(0.9, 97.0, 96.0, target=0.9))]


def hopeless():
    return [run("l0", {}, seed, point(0.4, 97.0, 96.0)) for seed in (0, 1)] + only_dense()


def collapsed():
    return [run("l0", {}, seed, point(1.0, 10.0, 10.0, layers=layers(1.0, 1.0))) for seed in (0, 1)]


def no_test_split():
    return [run("l0", {}, 0, point(0.9, 97.0, None))]


def uneven_steps():
    return [run("l0", {}, 0, point(0.9, 97.0, 96.0), steps=100), run("magnitude", {}, 0, point(0.9, 97.0, 96.0), steps=200)]


def unknown_memory():
    return [run("l0", {}, 0, point(0.9, 97.0, 96.0), memory=None)]


def neglected():
    """The only configuration with several seeds is one for the highest sparsity."""
    tuned = [run("l0", {"penalty": 9}, seed, point(0.9, 70.0, 70.0)) for seed in range(3)]
    return [*tuned, run("l0", {"penalty": 1}, 0, point(0.5, 98.0, 98.0)), *only_dense()]


def single_seeds():
    methods = ("magnitude", "variational-dropout", "l0", "random")
    return [run(method, {}, 0, point(0.9, 97.0, 96.0 + place)) for place, method in enumerate(methods)] + only_dense()


@pytest.mark.parametrize(
    ("records", "sparsities", "sentences"),
    [
        (only_dense, [0.9], ["Only dense networks were trained here", "There is no table", "The dense network reaches 96.00"]),
        (
            one_run,
            [0.9],
            ["nothing to compare it with", "No dense network was trained", "rests on one seed", "Only one sparsity"],
        ),
        (one_run, None, ["no study.json", "The command that made this folder is unknown", "Only one sparsity (90 %)"]),
        (one_run, [], ["No sparsity was asked about", "There is no table: no sparsity was asked about"]),
        (only_dense, None, ["Only dense networks were trained here"]),
        (
            hopeless,
            [0.5, 0.9],
            ["l0 has no point that is sparse enough", "sparsest point has 40.00 %", "Nothing was chosen|dense"],
        ),
        (collapsed, [0.9, 0.98], ["An interval from two seeds", "one configuration only, so nothing was tuned"]),
        (no_test_split, [0.9], ["1 evaluation was left out", "there is nothing to draw", "Nothing was chosen"]),
        (uneven_steps, [0.9], ["different numbers of steps (100\N{EN DASH}200)"]),
        (unknown_memory, [0.9], [EN_DASH, "No run tells what it cost"]),
        (one_run, [0.9], ["These runs can say nothing about any of the six", "No runs of dense.", "No runs of l0."]),
        (one_run, [0.9], ["The folder holds no training curves", "No method was tried with several values of a setting"]),
        (one_run, [0.9], ["recorded no distributions of their weights", "No chosen point has a table of its layers"]),
        (neglected, [0.5, 0.9], ["At 50 % single runs of l0 are more than 5 % better on the validation split"]),
        (single_seeds, [0.9], ["On digits: not shown: one seed", "Every value rests on one seed"]),
        (single_seeds, [0.9], ["No difference between any two methods is shown here and none could be"]),
        (hopeless, [0.9], ["No network of l0 is at least 50 % sparse."]),
    ],
)
def test_a_page_says_what_cannot_be_said(tmp_path, records, sparsities, sentences):
    page = Page(render_page(write(tmp_path, records(), sparsities)))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for sentence in sentences:
        assert any(part in text for part in sentence.split("|")), (sentence, text)
    assert "nan" not in json.dumps(page.figures).lower()
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_a_page_of_tables_alone_says_what_came_without_them(study, tmp_path):
    whole = Page(render_page(study))
    for name in ("results.parquet", "layers.parquet", "study.json"):
        shutil.copy(study / name, tmp_path / name)
    page = Page(render_page(tmp_path))
    assert "The tables of this folder came without its runs" in page.text
    assert "The tables of this folder came without its runs" not in whole.text
    assert "The folder holds no training curves" in page.text
    budgets = "Tuning budget and training cost"
    place = whole.tables[budgets][0].index("failed")
    unknown = [[*row[:place], EN_DASH, *row[place + 1 :]] for row in whole.tables[budgets][1:]]
    assert page.tables == whole.tables | {budgets: [whole.tables[budgets][0], *unknown]}
    assert page.figures["tradeoff"] == whole.figures["tradeoff"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.parquet", "results.parquet", "study.json"]


def test_runs_whose_loss_became_nan_are_named_and_leave_the_rest(tmp_path):
    directory = write(tmp_path, one_run(), [0.9], planned_runs=2)
    fail(
        directory,
        run("magnitude", {"rate": 9.0}, 1, point(0.9, 1.0, 1.0)),
        "the loss is nan at step 12 (digits, magnitude, seed 1)",
    )
    page = Page(render_page(directory))
    assert "1 of 2 planned runs finished, 1 failed, 0 still missing" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert page.tables["Failed runs"][1][2].startswith("the loss is nan at step 12")
    assert "96.00" in page.tables[BEST][1][1]


def test_losses_that_are_no_number_do_not_break_the_page(tmp_path):
    record = one_run()[0]
    directory = write(tmp_path, [record], [0.9])
    lines = [{"step": step, "loss": float("nan"), "metric": float("nan"), "sparsity": 0.1 * step} for step in (1, 2)]
    (directory / "runs" / record.run_id / "curve.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = Page(render_page(directory))
    metric, sparsity = page.figures["panels"]["training"][0]["data"]
    assert metric["y"] == [None, None]
    assert sparsity["y"] == [0.1, 0.2]


def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path):
    cases = {
        "workloads digits, moons": [one_run()[0], run("l0", {}, 0, point(0.9, 1.0, 1.0), workload="moons")],
        "primary metrics accuracy, bleu": [one_run()[0], run("l0", {}, 0, point(0.9, 1.0, 1.0, metric="bleu"), metric="bleu")],
    }
    for number, (message, records) in enumerate(cases.items()):
        with pytest.raises(SparsebenchError, match=message) as caught:
            render_page(write(tmp_path / str(number), records, [0.9]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"name": "x"}', '{"name": "x", "workload": "digits", "sparsities": [1.5]}', "[]"])
def test_a_broken_study_file_is_named(tmp_path, text):
    directory = write(tmp_path, one_run())
    (directory / "study.json").write_text(text)
    with pytest.raises(SparsebenchError, match=r"study\.json") as caught:
        render_page(directory)
    assert "\n" not in str(caught.value)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    directory = write(tmp_path / "study", one_run(), [0.9])
    with pytest.raises(SparsebenchError, match="cannot write"):
        write_page(directory, tmp_path / "nowhere" / "page.html")
    with pytest.raises(SparsebenchError, match="no such results folder"):
        write_page(tmp_path / "nothing")


def test_the_same_folder_gives_the_same_page(study):
    assert render_page(study) == render_page(study)


def test_the_analysis_stands_on_records_and_errors_alone():
    for file in Path(page_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.partition(".")[0] != "torch"
                if name.startswith("sparsebench"):
                    assert re.match(r"sparsebench\.(analysis|records|errors|atomic)(\.|$)", name), (file.name, name)
