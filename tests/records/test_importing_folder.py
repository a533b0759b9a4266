from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import ALL, MAGNITUDE, RANDOM, SCRATCH, TRANSFORMER_PRUNING, write_all, write_file

from sparsebench import cli
from sparsebench.analysis.frontiers import best_values
from sparsebench.analysis.page import write_page
from sparsebench.errors import SparsebenchError
from sparsebench.records.importing.results_folder import ImportSummary, import_files
from sparsebench.records.query import query
from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import PointRecord, RunRecord, short_hash

GOOD = "0.5,20000,76000,2000,0.1,0.7561"


def count(directory: Path) -> int:
    return int(query(directory, "select count(*) as n from results")["n"][0])


def own_run(directory: Path, workload: str) -> None:
    """A finished run of this package's making."""
    config = {"method": "magnitude", "seed": 0}
    record = RunRecord(
        run_id=short_hash(config),
        config=config,
        workload=workload,
        method="magnitude",
        seed=0,
        metric="accuracy",
        steps=10,
        seconds=1.0,
        peak_memory_bytes=None,
        weights_sha256="0" * 64,
        environment={},
        points=(
            PointRecord(
                target_sparsity=0.5,
                threshold=None,
                sparsity=0.5,
                metrics={"validation": {"accuracy": 90.0}, "test": {"accuracy": 89.0}},
                layers=(),
            ),
        ),
    )
    folder = RunFolder(directory / "runs" / record.run_id)
    folder.create(config)
    folder.write_result(record)


def test_all_files_at_once_become_one_table(tmp_path: Path) -> None:
    files = write_all(tmp_path / "files")
    runs = 3 + 2 + 1 + 1 + 2 + 2 + 3 + 1 + 9 + 1 + 2 + 1 + 1 + 1 + 2 + 1 + 1
    assert import_files(files, tmp_path / "out") == ImportSummary(runs=runs, rows=runs + 10, new_runs=runs)
    answer = query(
        tmp_path / "out",
        "select count(*) as rows, count(distinct run_id) as runs, count(seconds) + count(peak_memory_bytes) + count(study) "
        "+ count(inference_cost) + count(training_cost) as known, min(source) as source from results",
    )
    assert answer.to_numpy().tolist() == [[runs + 10, runs, 0, "gale2019"]]
    assert len(query(tmp_path / "out", "select * from layers")) == 0


def test_importing_again_adds_nothing(tmp_path: Path) -> None:
    files = write_all(tmp_path / "files", "rn50")
    first = import_files(files, tmp_path / "out")
    written = (tmp_path / "out" / "imported.parquet").stat()
    rows = count(tmp_path / "out")
    copy = write_file(tmp_path / "files", "copy.csv", *ALL["rn50_magnitude_pruning.csv"])
    assert import_files([*files, *reversed(files), copy], tmp_path / "out") == ImportSummary(first.runs, first.rows, 0)
    assert count(tmp_path / "out") == rows == first.rows
    after = (tmp_path / "out" / "imported.parquet").stat()
    assert (after.st_mtime_ns, after.st_ino) == (written.st_mtime_ns, written.st_ino)


def test_a_later_import_adds_to_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_files([write_file(tmp_path, "rn50_magnitude_pruning.csv")], out)
    assert count(out) == 2
    assert import_files([write_file(tmp_path, "rn50_random_pruning.csv")], out).new_runs == 1
    answer = query(out, "select method, value from results order by all")
    assert [(row.method, pytest.approx(row.value)) for row in answer.itertuples()] == [
        ("magnitude", 73.91),
        ("magnitude", 75.61),
        ("random", 74.01),
    ]


def test_imported_runs_stand_beside_own_ones(tmp_path: Path) -> None:
    own_run(tmp_path / "out", "imagenet/resnet50")
    assert count(tmp_path / "out") == 2
    import_files([write_file(tmp_path, "rn50_magnitude_pruning.csv")], tmp_path / "out")
    answer = query(tmp_path / "out", "select source, split, count(*) as n from results group by all order by all")
    assert answer.to_numpy().tolist() == [["gale2019", "test", 2], ["sparsebench", "test", 1], ["sparsebench", "validation", 1]]
    assert not (tmp_path / "out" / "study.json").exists()  # nobody's to write: the folder has runs of its own
    with pytest.raises(SparsebenchError, match=r"mixes the sources gale2019, sparsebench, which cannot be compared"):
        best_values(tmp_path / "out")


def test_two_workloads_are_one_table_but_no_comparison(tmp_path: Path) -> None:
    import_files(write_all(tmp_path / "files"), tmp_path / "out")
    with pytest.raises(SparsebenchError, match=r"mixes the workloads imagenet/resnet50, wmt14-ende/transformer-base"):
        best_values(tmp_path / "out")


ROWS = st.lists(
    st.tuples(
        st.sampled_from([RANDOM, MAGNITUDE]), st.sampled_from([0.4991, 0.4995, 0.5, 0.7, 0.8, 0.95, 0.98]), st.integers(0, 9999)
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25)
@given(ROWS)
def test_best_values_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float, int]]
) -> None:
    """Contract 22 on one split: the best accuracy at or above a sparsity, half a thousandth below counts."""
    directory = tmp_path_factory.mktemp("import")
    lines: dict[str, list[str]] = {}
    for index, (header, sparsity, accuracy) in enumerate(rows):
        lines.setdefault(header, []).append(f"{sparsity},{index},76000,2000,0,{accuracy / 10_000}")
    files = [write_file(directory, f"{index}.csv", *pair) for index, pair in enumerate((key, *own) for key, own in lines.items())]
    import_files(files, directory / "out")
    values = best_values(directory / "out")
    assert values.sparsities == (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
    for header, method in ((RANDOM, "random"), (MAGNITUDE, "magnitude")):
        own = [(sparsity, accuracy) for kind, sparsity, accuracy in rows if kind == header]
        for sparsity, cell in zip(values.sparsities, values.rows.get(method, ()), strict=False):
            reached = [accuracy / 100 for other, accuracy in own if other >= sparsity - 0.00050001]
            assert (None if cell is None else round(cell.mean, 6)) == (round(max(reached), 6) if reached else None)
    assert set(values.rows) == {"random" if header == RANDOM else "magnitude" for header, _, _ in rows}


def test_replicates_are_averaged(tmp_path: Path) -> None:
    import_files(write_all(tmp_path / "files", "rn50"), tmp_path / "out")
    values = best_values(tmp_path / "out")
    tickets = values.rows["lottery-ticket"][0]
    assert values.dense is not None
    assert tickets is not None
    assert (round(values.dense.mean, 6), values.dense.n) == (round((76.7 + 76.9 + 76.7) / 3, 6), 3)
    assert (round(tickets.mean, 6), tickets.n) == (74.595, 2)


@pytest.mark.parametrize("beginning", ["rn50", "transformer", "transformer_scratchb"])
def test_page_says_that_one_split_did_both(tmp_path: Path, beginning: str) -> None:
    import_files(write_all(tmp_path / "files", beginning), tmp_path / "out")
    page = write_page(tmp_path / "out").read_text(encoding="utf-8")
    assert "These results are imported (gale2019). They have one split, which both chose the values and reports them" in page
    assert "started one by one" not in page
    assert "arXiv:1902.09574" in page
    text = re.sub(r"<script.*?</script>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    if beginning == "transformer_scratchb":  # nobody knows how long these were trained
        assert "an unknown number of training steps" in page


def test_line_that_gives_another_result_of_the_same_run_is_refused(tmp_path: Path) -> None:
    one = write_file(tmp_path, "one.csv", MAGNITUDE, GOOD)
    other = write_file(tmp_path, "other.csv", MAGNITUDE, GOOD.replace("0.7561", "0.7562"))
    with pytest.raises(
        SparsebenchError, match=r"other\.csv line 2 and \S+one\.csv line 2 give different results of the same run"
    ):
        import_files([one, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_files([one], tmp_path / "out")
    with pytest.raises(SparsebenchError, match=r"other\.csv line 2 gives other results of a run than \S+imported\.parquet holds"):
        import_files([other], tmp_path / "out")
    assert count(tmp_path / "out") == 1


def test_files_that_only_their_names_tell_apart_are_kept_apart(tmp_path: Path) -> None:
    line = "sparse_transformer_magnitude_pruning,{},0.5,100000,400000,10000,none,0"
    names = ["transformer_magnitude_pruning.csv", "transformer_scratche.csv", "transformer_scratche_augmented_init.csv"]
    names += ["transformer_scratchb.csv", "transformer_scratchb_augmented_init.csv"]
    files = [write_file(tmp_path, name, TRANSFORMER_PRUNING, line.format(index)) for index, name in enumerate(names)]
    schedules = ["rn50_scratch_lr_scaled.csv", "rn50_scratch_lr_constant_final.csv", "rn50_scratch_lr_continual_decay.csv"]
    files += [write_file(tmp_path, name, SCRATCH, f"0.5,2,sparse,2,4,1,0,0.{index}") for index, name in enumerate(schedules)]
    assert import_files(files, tmp_path / "out").new_runs == 8
    answer = query(tmp_path / "out", "select method, count(distinct configuration) as n from results group by all order by all")
    assert answer.to_numpy().tolist() == [["magnitude", 1], ["scratch-b", 5], ["scratch-e", 2]]


def test_bad_file_among_good_ones_leaves_nothing(tmp_path: Path) -> None:
    good = write_file(tmp_path, "rn50_magnitude_pruning.csv")
    bad = write_file(tmp_path, "bad.csv", MAGNITUDE, "0.5,20000,76000,2000,0.1,high")
    with pytest.raises(SparsebenchError, match=r"bad\.csv line 2, column 'accuracy'"):
        import_files([good, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    sync = os.fsync

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+imported\.parquet: No space left on device$"):
        import_files([write_file(tmp_path, "rn50_magnitude_pruning.csv")], out)
    assert [path.name for path in out.iterdir()] == ["imported.parquet.lock"]
    monkeypatch.setattr(os, "fsync", sync)
    import_files([tmp_path / "rn50_magnitude_pruning.csv"], out)
    before = (out / "imported.parquet").read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SparsebenchError, match=r"No space left on device$"):
        import_files([write_file(tmp_path, "rn50_random_pruning.csv")], out)
    assert (out / "imported.parquet").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["imported.parquet", "imported.parquet.lock", "study.json"]


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = write_file(tmp_path, "rn50_magnitude_pruning.csv")
    with pytest.raises(SparsebenchError, match=r"^cannot create folder \S+: "):
        import_files([file], file / "below")
    (tmp_path / "out" / "imported.parquet.lock").mkdir(parents=True)
    with pytest.raises(SparsebenchError, match=r"^cannot write \S+imported\.parquet\.lock: "):
        import_files([file], tmp_path / "out")


def test_damaged_file_of_imported_runs_is_one_line(tmp_path: Path) -> None:
    file = write_file(tmp_path, "rn50_magnitude_pruning.csv")
    import_files([file], tmp_path)
    for damage in (b"", b"PAR1", b"x" * 1000):
        (tmp_path / "imported.parquet").write_bytes(damage)
        for act in (lambda: import_files([file], tmp_path), lambda: query(tmp_path, "select 1")):
            with pytest.raises(
                SparsebenchError, match=r"^\S+imported\.parquet cannot be read: .*; delete it and import again"
            ) as caught:
                act()
            assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "imported.parquet")
    with pytest.raises(SparsebenchError, match=r"^\S+imported\.parquet holds no imported runs: column 'run_id' lacks values"):
        query(tmp_path, "select 1")


def test_study_of_the_folder_stays_and_names_the_rows(tmp_path: Path) -> None:
    text = json.dumps({"name": "mine", "workload": "imagenet/resnet50", "sparsities": [0.5]})
    (tmp_path / "study.json").write_text(text)
    import_files([write_file(tmp_path, "rn50_magnitude_pruning.csv")], tmp_path)
    assert (tmp_path / "study.json").read_text() == text
    assert query(tmp_path, "select distinct study from results")["study"].tolist() == ["mine"]
    assert best_values(tmp_path).sparsities == (0.5,)


def _import(arguments: tuple[str, str]) -> int:
    file, out = arguments
    return import_files([Path(file)], Path(out)).new_runs


def test_imports_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    files = [write_file(tmp_path, f"{index}.csv", MAGNITUDE, f"0.5,{index},76000,2000,0.1,0.7") for index in range(12)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_import, [(str(file), str(tmp_path / "out")) for file in files], chunksize=1) == [1] * 12
    assert count(tmp_path / "out") == 12


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def ask(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsebench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    out = tmp_path / "out"
    files = write_all(tmp_path / "files", "rn50_l") + write_all(tmp_path / "files", "rn50_mag")
    assert ask("import", *files, "--out", out) == (0, f"6 runs (6 evaluations) read, 6 of them new; results: {out}\n", "")
    assert ask("import", *files, "--out", out) == (0, f"6 runs (6 evaluations) read, 0 of them new; results: {out}\n", "")
    status, printed, _ = ask("report", out)
    assert status == 0
    assert "75.61" in printed
    assert (out / "report.html").exists()
    status, printed, _ = ask("sql", out, "select count(*) as n from results")
    assert (status, printed.split()) == (0, ["n", "6"])
    assert ask("import", tmp_path / "none.csv", "--out", out) == (2, "", f"error: no such file: {tmp_path / 'none.csv'}\n")
    status, _, error = ask("import", "--out", out)
    assert (status, error) == (2, "error: Missing argument 'FILE...'. Try --help.\n")
