from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsebench import cli, terminal
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import Done, run_one
from sparsebench.studies.executors.local import LocalProcesses
from sparsebench.training.config import RunConfig

PROGRAM = str(Path(sys.executable).with_name("sparsebench"))

STUDY = """
study: tiny
description: For tests.
workload: digits
seeds: 2
sparsities: [0.5]
settings: {steps: 5}
methods:
  dense: {}
  magnitude: {begin: 0.2, end: 0.8, frequency: 0.2}
"""


@dataclass
class Answer:
    status: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """The command line in this process; studies train here too, because starting workers takes seconds."""

    def run(self: LocalProcesses, configs: Sequence[RunConfig], directory: Path, done: Done, pauses: object) -> None:
        for config in configs:
            done(run_one(config.model_dump(mode="json"), str(directory), self.checkpoint_seconds, self.claims))

    monkeypatch.setattr(LocalProcesses, "run", run)
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["sparsebench", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text = capfd.readouterr()
        return Answer(int(ended.value.code or 0), text.out, text.err)

    return ask


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def is_mistake(answer: Answer, *words: str) -> None:
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert answer.err.endswith("\n")
    assert "Traceback" not in answer.out + answer.err
    assert "\x1b" not in answer.err
    for word in words:
        assert word in answer.err


def test_train_prints_every_evaluation_point_and_does_not_train_twice(ask: Ask, tmp_path: Path) -> None:
    arguments = ["train", "digits", "--method", "magnitude", "--sparsity", 0.9, "--begin", "2 steps", "--end", 0.8]
    arguments += ["--frequency", "1 steps", "--steps", 10, "--seed", 4, "--set", "learning_rate=1e-3", "--out", "out"]
    answer = ask(*arguments)
    assert (answer.status, answer.err) == (0, "")
    (path,) = (tmp_path / "out" / "runs").glob("*/result.json")
    record = RunFolder(path.parent).read_result()
    assert (record.seed, record.steps, record.config["recipe"]["learning_rate"]) == (4, 10, 0.001)
    assert record.config["parameters"]["begin"] == 2
    point = record.points[0]
    for value in ("90.0", f"{point.metrics['test']['accuracy']:.2f}", f"{point.metrics['validation']['accuracy']:.2f}"):
        assert value in answer.out
    assert "files: out/runs/" in answer.out
    before = path.stat().st_mtime_ns
    again = ask(*arguments)
    assert (again.status, again.out) == (0, answer.out)
    assert path.stat().st_mtime_ns == before


def test_train_shows_every_threshold(ask: Ask) -> None:
    answer = ask(
        "train", "digits", "--method", "variational-dropout", "--penalty", 0.5, "--steps", 5, "--set", "thresholds=[3, 1.5]"
    )
    assert answer.status == 0
    assert "1.5" in answer.out


def test_layer_patterns_need_no_quotes_for_yaml(ask: Ask, tmp_path: Path) -> None:
    for pattern in ("!0", "*7*", "[79]"):
        answer = ask("train", "digits", "--method", "magnitude", "--sparsity", 0.5, "--steps", 3, "--set", f"layers={pattern}")
        if pattern == "[79]":  # a list of numbers to YAML
            is_mistake(answer, "layers=[79]")
        else:
            assert answer.status == 0


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def test_study_report_and_query(ask: Ask, study: Path, tmp_path: Path) -> None:
    answer = ask("study", "run", study, "--out", "out", "--workers", 1)
    assert answer == Answer(0, "4 runs planned: 4 finished now, 0 were done already; results: out\n", "")
    answer = ask("study", "run", study, "--out", "out", "--workers", 1)
    assert answer.status == 0
    assert answer.out == "4 runs planned: 0 finished now, 4 were done already; results: out\n"
    answer = ask("sql", "out", "select method, count(*) as n from results where split = 'test' group by method order by method")
    assert [line.split() for line in answer.out.splitlines()] == [["method", "n"], ["dense", "4"], ["magnitude", "4"]]
    assert ask("export", "out", "rows.csv") == Answer(0, "rows.csv: 16 rows\n", "")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 17
    answer = ask("report", "out")
    assert (answer.status, answer.err) == (0, "")
    assert "magnitude" in answer.out
    assert answer.out.splitlines()[-1] == "report: out/report.html"
    assert (tmp_path / "out" / "report.html").stat().st_size < 8_000_000
    answer = ask("report", "out", "--out", "elsewhere.html")
    assert (tmp_path / "elsewhere.html").exists()


def test_study_with_failed_runs_exits_with_1_after_its_summary(ask: Ask, study: Path) -> None:
    study.write_text(STUDY.replace("dense: {}", "dense: {learning_rate: [0.001, 1.0e+30]}"))
    answer = ask("study", "run", study, "--out", "out", "--workers", 1)
    assert answer.status == 1
    assert "4 finished now, 0 were done already, 2 failed (run them again with --retry-failed)" in answer.out
    lines = answer.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("run ") and "failed: the loss is nan" in line for line in lines)
    again = ask("study", "run", study, "--out", "out", "--workers", 1)
    assert again.status == 1
    assert "2 failed" in again.out


def test_study_goes_to_a_folder_of_its_name_where_none_is_given(ask: Ask, study: Path, tmp_path: Path) -> None:
    assert ask("study", "run", study, "--workers", 1).status == 0
    assert (tmp_path / "runs" / "tiny" / "study.json").exists()


@pytest.mark.parametrize(("what", "known"), [("methods", "magnitude"), ("workloads", "digits"), ("studies", "quickstart")])
def test_lists_have_a_line_each(ask: Ask, what: str, known: str) -> None:
    answer = ask("list", what)
    assert (answer.status, answer.err) == (0, "")
    names = [line.split()[0] for line in answer.out.splitlines()]
    assert known in names
    assert all(len(line.split()) > 2 for line in answer.out.splitlines())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train"], ["Train one network", "Example: sparsebench train digits", "--sparsity", "0.9"]),
        (
            ["study", "run"],
            ["Run all that a study has not run yet", "Example: sparsebench study run quickstart", "--retry-failed"],
        ),
        (["report"], ["Write the page", "Example: sparsebench report runs/quickstart"]),
        (["list"], ["Print what exists", "Example: sparsebench list methods"]),
        (["sql"], ["Query the table over all runs", "Example: sparsebench sql runs/quickstart", "results"]),
        (["export"], ["Write a table over all runs", "Example: sparsebench export runs/quickstart", "--table"]),
        (["study"], ["Studies: many runs from one file", "run"]),
        ([], ["Make neural networks sparse while they train", "train", "study", "report", "list", "sql"]),
    ],
)
def test_help_says_what_for_and_shows_an_example(ask: Ask, command: list[str], words: list[str]) -> None:
    answer = ask(*command, "--help")
    assert (answer.status, answer.err) == (0, "")
    text = " ".join(answer.out.split())
    for word in words:
        assert word in text


@pytest.mark.parametrize("arguments", [[], ["study"]])
def test_no_arguments_show_the_help(ask: Ask, arguments: list[str]) -> None:
    answer = ask(*arguments)
    assert "Usage: sparsebench" in answer.out + answer.err
    assert "error:" not in answer.err


MAGNITUDE = ["train", "digits", "--method", "magnitude", "--steps", "5", "--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MAGNITUDE, "--sparsity", "1.2"], ["sparsity=1.2", "[0, 1]"]),
        ([*MAGNITUDE, "--sparsity", "0.9", "--begin", "0.5", "--end", "0.4"], ["end=2 is before begin=3"]),
        ([*MAGNITUDE, "--sparsity", "0.9", "--begin", "soon"], ["begin='soon'", "a fraction of training"]),
        ([*MAGNITUDE], ["needs a value for 'sparsity'"]),
        ([*MAGNITUDE, "--penalty", "1"], ["unknown parameter 'penalty'"]),
        ([*MAGNITUDE, "--set", "sparsty=0.9"], ["unknown parameter 'sparsty'", "did you mean 'sparsity'?"]),
        ([*MAGNITUDE, "--set", "sparsity"], ["--set 'sparsity'", "expected NAME=VALUE"]),
        ([*MAGNITUDE, "--set", "=0.9"], ["expected NAME=VALUE"]),
        ([*MAGNITUDE, "--set", "sparsity=[0.9"], ["sparsity='[0.9'"]),
        ([*MAGNITUDE, "--set", "sparsity=2024-13-45"], ["sparsity='2024-13-45'"]),
        ([*MAGNITUDE, "--sparsity", "lots"], ["--sparsity"]),
        ([*MAGNITUDE, "--bogus", "1"], ["--bogus"]),
        ([*MAGNITUDE, "--seed", "-1"], ["seed=-1"]),
        ([*MAGNITUDE, "--seed", str(2**70)], ["seed="]),
        ([*MAGNITUDE, "--sparsity", "0.5", "--checkpoint-seconds", "-1"], ["--checkpoint-seconds"]),
        (["train", "digts", "--out", "out"], ["unknown workload 'digts'", "did you mean 'digits'?"]),
        (["train", "digits", "--method", "magnitud", "--out", "out"], ["unknown method 'magnitud'", "did you mean 'magnitude'?"]),
        (["train", "digits", "--steps", "0.5", "--out", "out"], ["steps=0.5"]),
        (["train", "digits", "--steps", "many", "--out", "out"], ["steps='many'", '"20000 steps" or "5 epochs"']),
        (["train"], ["workload"]),
        (["trian", "digits"], ["trian"]),
        (["list", "everything"], ["methods", "workloads", "studies"]),
        (["study", "run", "quikstart"], ["unknown study 'quikstart'", "did you mean 'quickstart'?"]),
        (["study", "run", "none.yaml"], ["none.yaml", "No such file"]),
        (["study", "run", "quickstart", "--workers", "0"], ["--workers"]),
        (["report", "none"], ["no such results folder: none"]),
        (["sql", "none", "select 1"], ["no such results folder: none"]),
        (["sql", "none"], ["statement"]),
        (["export", "none", "rows.csv"], ["no such results folder: none"]),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(ask: Ask, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    is_mistake(ask(*arguments), *words)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sparsities: [0.5]", "sparsties: [0.5]", ["tiny.yaml, line 6", "'sparsties'", "did you mean 'sparsities'?"]),
        ("sparsities: [0.5]", "sparsities: [1.2]", ["tiny.yaml, line 6", "sparsities=[1.2]"]),
        ("begin: 0.2", "begin: 0.9", ["tiny.yaml, line 10", "magnitude", "is before begin"]),
        ("workload: digits", "workload: digts", ["tiny.yaml, line 4", "unknown workload 'digts'"]),
        ("  magnitude:", "  magnitud:", ["tiny.yaml, line 10", "unknown method 'magnitud'"]),
        ("seeds: 2", "seeds: [", ["tiny.yaml, line", "not YAML"]),
    ],
)
def test_mistake_in_a_study_file_names_file_and_line(
    ask: Ask, study: Path, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    study.write_text(STUDY.replace(old, new))
    is_mistake(ask("study", "run", study, "--out", "out"), *words)
    assert files(tmp_path) == {"tiny.yaml"}


def only_configuration(tmp_path: Path) -> None:
    """A run that never got anywhere leaves what it would have been, and nothing half-written."""
    names = {Path(name).name for name in files(tmp_path)}
    assert {name for name in names if not name.endswith(".lock")} <= {"config.json"}


def test_pattern_that_matches_no_layer(ask: Ask, tmp_path: Path) -> None:
    is_mistake(
        ask(*MAGNITUDE, "--sparsity", 0.9, "--set", "layers=nope*"), "layers: pattern 'nope*' matches no layer", "'0', '2'"
    )
    only_configuration(tmp_path)


def test_loss_that_is_not_a_number(ask: Ask, tmp_path: Path) -> None:
    is_mistake(ask("train", "digits", "--steps", 20, "--set", "learning_rate=1e30", "--out", "out"), "the loss is", "step")
    only_configuration(tmp_path)


def test_unwritable_folder(ask: Ask, study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in (["train", "digits", "--steps", "5"], ["study", "run", str(study)]):
        is_mistake(ask(*command, "--out", "file/out"), "cannot create folder file/out/runs: Not a directory")
    assert files(tmp_path) == {"file", "tiny.yaml"}


def test_unwritable_page(ask: Ask, study: Path, tmp_path: Path) -> None:
    ask("study", "run", study, "--out", "out", "--workers", 1)
    is_mistake(ask("report", "out", "--out", "none/page.html"), "cannot write none/page.html: No such file or directory")
    assert not (tmp_path / "none").exists()


def test_corrupt_checkpoint(ask: Ask, tmp_path: Path) -> None:
    train = ["train", "digits", "--steps", "5", "--out", "out"]
    ask(*train)
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"PK\x03\x04 nonsense")
    is_mistake(ask(*train), "checkpoint.pt is damaged", "delete it")
    assert not (folder / "result.json").exists()
    (folder / "checkpoint.pt").unlink()
    assert ask(*train).status == 0


def test_corrupt_record(ask: Ask, study: Path, tmp_path: Path) -> None:
    ask("study", "run", study, "--out", "out", "--workers", 1)
    path = next(tmp_path.rglob("result.json"))
    path.write_text("{}")
    for command in (["sql", "out", "select 1"], ["report", "out"]):
        is_mistake(ask(*command), f"{path.relative_to(tmp_path)} is not a run record", "delete the file")
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("part", ["config.json", "checkpoint.pt", "model.safetensors", "result.json", "curve.jsonl"])
def test_full_disk_while_training(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if list(tmp_path.rglob(f".{part}.*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    seconds = 0 if part == "checkpoint.pt" else 60
    monkeypatch.setattr(os, "fsync", fail)
    answer = ask("train", "digits", "--steps", 5, "--out", "out", "--checkpoint-seconds", seconds)
    is_mistake(answer, "cannot write", f"{part}: No space left on device")
    assert not [name for name in files(tmp_path) if name.endswith((".part", part))]
    monkeypatch.setattr(os, "fsync", sync)
    assert ask("train", "digits", "--steps", 5, "--out", "out").status == 0


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("report", "report.html"),
        ("report", "results.parquet"),
        ("sql", "layers.parquet"),
        ("sql", "distributions.parquet"),
        ("study", "study.json"),
    ],
)
def test_full_disk_while_reading_out(
    ask: Ask, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, part: str
) -> None:
    run = ["study", "run", str(study), "--out", "out", "--workers", "1"]
    ask(*run)
    before = files(tmp_path)
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if list(tmp_path.rglob(f".{part}.*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    arguments = {"report": ["report", "out"], "sql": ["sql", "out", "select 1"], "study": run}[command]
    is_mistake(ask(*arguments), f"cannot write out/{part}: No space left on device")
    tables = {f"out/{name}.parquet" for name in ("results", "layers", "distributions", "run_states")}
    assert files(tmp_path) - before <= tables - {f"out/{part}"}


def test_long_lines_are_not_broken_and_texts_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    text = "[bold]a[/bold] :apple: 12:30:45 " + "x" * 5000
    terminal.say(text)
    terminal.say_error(f"{text}\n  second line")
    printed = capfd.readouterr()
    assert printed.out == f"{text}\n"
    assert printed.err == f"error: {text} second line\n"


def test_wide_tables_are_not_cut_where_nobody_watches(ask: Ask, study: Path) -> None:
    study.write_text(STUDY.replace("[0.5]", "[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]"))
    ask("study", "run", study, "--out", "out", "--workers", 1)
    answer = ask("report", "out")
    assert "…" not in answer.out
    (row,) = [line for line in answer.out.splitlines() if "magnitude" in line]
    assert row.count("±") == 9
    answer = ask("sql", "out", "select * from results limit 1")
    assert "..." not in answer.out
    assert len(answer.out.splitlines()) == 2


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def test_program_itself_is_quiet_and_meets_a_full_disk_in_a_line(tmp_path: Path) -> None:
    command = [PROGRAM, "train", "digits", "--steps", "5", "--out", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | {"COLUMNS": "40"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit_file_size, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    folder = next(path for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir())
    assert done.stderr == f"error: cannot write {folder}/model.safetensors: File too large\n"
    assert {file.name for file in folder.iterdir()} == {"config.json", "curve.jsonl"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert f"files: {folder}\n" in done.stdout
    assert json.loads((folder / "result.json").read_bytes())["steps"] == 5


def test_settings_of_a_study_are_changed_on_the_command_line(ask: Ask, study: Path) -> None:
    assert ask("study", "run", study, "--set", "steps=3", "--only", "method=dense", "--out", "out").status == 0
    assert {json.loads(path.read_text())["recipe"]["steps"] for path in Path("out/runs").glob("*/config.json")} == {3}
    assert "--set steps=3" in json.loads(Path("out/study.json").read_text())["command"]
    is_mistake(ask("study", "plan", study, "--set", "steps", "--out", "out"), "--set 'steps'", "expected NAME=VALUE")
    is_mistake(ask("study", "plan", study, "--set", "stepps=3", "--out", "out"), "unknown setting 'stepps'")
