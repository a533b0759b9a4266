from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_files import (
    ALL,
    L0,
    LOTTERY,
    MAGNITUDE,
    RANDOM,
    SCRATCH,
    THRESHOLDS,
    TRANSFORMER_DROPOUT,
    TRANSFORMER_PRUNING,
    write_file,
)

from sparsebench.errors import SparsebenchError
from sparsebench.records.importing import cells
from sparsebench.records.importing.layouts import LAYOUTS
from sparsebench.records.importing.result_file import read_result_file
from sparsebench.records.schema import short_hash


def read(directory: Path, name: str, *lines: str) -> list[dict[str, Any]]:
    """The rows of a file, each with its settings in place of its configuration's text."""
    rows = [row for run in read_result_file(write_file(directory, name, *lines)) for row in run.rows]
    return [row | {"parameters": json.loads(row["config"])["parameters"]} for row in rows]


# For every file: method, seed, target, sparsity, threshold, value, steps, settings, worked out by hand.
Expected = tuple[str, int, float | None, float, float | None, float, int | None, dict[str, Any]]


def pruned(begin: int, end: int, frequency: int, label_smoothing: float, **more: Any) -> dict[str, Any]:
    return {"begin": begin, "end": end, "frequency": frequency, "label_smoothing": label_smoothing, **more}


def transformer_pruned(begin: int, end: int, frequency: int, regularization: str, name: str, **more: Any) -> dict[str, Any]:
    ramp = {"begin": begin, "end": end, "frequency": frequency, "regularization": regularization, "threshold_decay": 0}
    return {**ramp, "hparams": f"sparse_transformer_{name}_pruning", **more}


BOTH = "dropout+label_smoothing"
TICKET = transformer_pruned(100000, 300000, 1000, BOTH, "magnitude", sparsity=0.7)
SCRATCH_SETTINGS = pruned(20000, 40000, 4000, 0.1, sparsity=0.5, learning_rate_schedule="constant_decay")
DENSE = {"steps": 128000, "batch_size": 1024}
EXPECTED: dict[str, list[Expected]] = {
    "rn50_baselines.csv": [
        ("dense", 0, None, 0.0, None, 76.7, 128000, DENSE),
        ("dense", 1, None, 0.0, None, 76.9, 128000, DENSE),
        ("dense", 2, None, 0.0, None, 76.7, 128000, DENSE),
    ],
    "rn50_magnitude_pruning.csv": [
        ("magnitude", 0, 0.5, 0.5, None, 75.61, 128000, pruned(20000, 76000, 2000, 0.1, sparsity=0.5)),
        ("magnitude", 0, 0.9, 0.9, None, 73.91, 128000, pruned(8000, 68000, 4000, 0, sparsity=0.9)),
    ],
    "rn50_random_pruning.csv": [("random", 0, 0.5, 0.5, None, 74.01, 128000, pruned(0, 76000, 4000, 0.1, sparsity=0.5))],
    "rn50_variational_dropout.csv": [
        (
            "variational-dropout",
            0,
            None,
            0.989484429359,
            0.5,
            59.88,
            128000,
            {"begin": 8000, "end": 76000, "dkl_weight": 7.80538368534e-06, "label_smoothing": 0.1},
        )
    ],
    "rn50_l0_regularization.csv": [
        (
            "l0",
            0,
            None,
            0.2199723721,
            None,
            0.53,
            128000,
            {"initial_log_alpha": 4.6, "l0_norm_weight": 0.0032, "label_smoothing": 0.1, "weight_decay": 0.0001010051836},
        ),
        (
            "l0",
            0,
            None,
            0.3,
            None,
            0.1,
            128000,
            {"initial_log_alpha": 2.197, "l0_norm_weight": 0.0032, "label_smoothing": 0, "weight_decay": 0},
        ),
    ],
    "rn50_lottery_ticket.csv": [
        ("lottery-ticket", 0, 0.5, 0.5, None, 74.57, 128000, pruned(40000, 100000, 2000, 0.1, sparsity=0.5)),
        ("lottery-ticket", 1, 0.5, 0.5, None, 74.62, 128000, pruned(40000, 100000, 2000, 0.1, sparsity=0.5)),
    ],
    "rn50_scratch_lr_constant_decay.csv": [
        ("scratch-b", 0, 0.5, 0.5, None, 72.5, 256000, SCRATCH_SETTINGS | {"time_multiplier": 2, "initialization": "sparse"}),
        ("scratch-b", 0, 0.5, 0.5, None, 70.9, 256000, SCRATCH_SETTINGS | {"time_multiplier": 2, "initialization": "baseline"}),
        ("scratch-e", 0, 0.5, 0.5, None, 70.1, 128000, SCRATCH_SETTINGS | {"time_multiplier": 1, "initialization": "baseline"}),
    ],
    "rn50_scratch_lr_continual_decay.csv": [
        (
            "scratch-b",
            0,
            0.7,
            0.7,
            None,
            66.88,
            256000,
            pruned(
                8000,
                40000,
                8000,
                0.1,
                sparsity=0.7,
                learning_rate_schedule="continual_decay",
                time_multiplier=2,
                initialization="sparse",
            ),
        )
    ],
    "rn50_scratch_lr_scaled.csv": [
        (
            "scratch-e",
            index,
            0.5,
            0.5,
            None,
            71.0 + index,
            128000,
            pruned(4, 10, 2, 0.1, sparsity=0.5, learning_rate_schedule="scaled", time_multiplier=1, initialization="baseline"),
        )
        for index in range(9)
    ],
    "transformer_baselines.csv": [
        (
            "dense",
            0,
            None,
            0.0,
            None,
            27.13,
            500000,
            {"hparams": "transformer_base", "steps": 500000, "batch_size": 2048, "dataset": "translate_ende_wmt32k_packed"},
        )
    ],
    "transformer_magnitude_pruning.csv": [
        (
            "magnitude",
            0,
            0.6,
            0.600001454353,
            None,
            25.86,
            500000,
            transformer_pruned(0, 500000, 1000, BOTH, "magnitude", sparsity=0.6),
        ),
        (
            "magnitude",
            0,
            0.5,
            0.499499440193,
            None,
            0.4,
            500000,
            transformer_pruned(0, 500000, 1000, "none", "magnitude", sparsity=0.5),
        ),
    ],
    "transformer_random_pruning.csv": [
        (
            "random",
            0,
            0.5,
            0.499999940395,
            None,
            24.15,
            500000,
            transformer_pruned(200000, 300000, 10000, "label_smoothing", "random", sparsity=0.5),
        )
    ],
    "transformer_scratche.csv": [
        (
            "scratch-e",
            0,
            0.5,
            0.5,
            None,
            24.5,
            500000,
            transformer_pruned(
                100000, 400000, 10000, BOTH, "magnitude", sparsity=0.5, initialization="baseline", time_multiplier=1
            ),
        )
    ],
    "transformer_scratchb_augmented_init.csv": [
        (
            "scratch-b",
            0,
            0.5,
            0.5,
            None,
            24.45,
            None,
            transformer_pruned(
                100000, 400000, 10000, BOTH, "magnitude", sparsity=0.5, initialization="sparse", time_multiplier=None
            ),
        )
    ],
    "transformer_lottery_ticket.csv": [
        ("lottery-ticket", 0, 0.7, 0.700000524521, None, 23.22, 500000, TICKET),
        ("lottery-ticket", 1, 0.7, 0.700000405312, None, 22.78, 500000, TICKET),
    ],
    "transformer_l0_regularization.csv": [
        (
            "l0",
            0,
            None,
            0.753008127213,
            None,
            24.17,
            500000,
            {
                "hparams": "sparse_transformer_l0_regularization",
                "l0_norm_weight": 2.2222222222222222e-7,
                "shape": "linear",
                "begin": 0,
                "ramp": 100000,
                "regularization": "none",
            },
        )
    ],
    "transformer_variational_dropout.csv": [
        (
            "variational-dropout",
            0,
            None,
            round(0.99 - 0.05 * index, 2),
            THRESHOLDS[index],
            10.0 + index,
            500000,
            {
                "hparams": "sparse_transformer_variational_dropout",
                "dkl_weight": 2.22222222222e-7,
                "shape": "cubic",
                "begin": 300000,
                "ramp": 100000,
                "regularization": "none",
            },
        )
        for index in range(11)
    ],
}


@pytest.mark.parametrize("name", ALL)
def test_every_layout_gives_the_rows_worked_out_by_hand(tmp_path: Path, name: str) -> None:
    rows = read(tmp_path, name)
    found = [
        (
            row["method"],
            row["seed"],
            row["target_sparsity"],
            row["sparsity"],
            row["threshold"],
            pytest.approx(row["value"], abs=1e-9),
            row["steps"],
            row["parameters"],
        )
        for row in rows
    ]
    assert found == EXPECTED[name]
    workload, metric = ("imagenet/resnet50", "accuracy") if name.startswith("rn50") else ("wmt14-ende/transformer-base", "bleu")
    for row in rows:
        assert (row["source"], row["workload"], row["metric"], row["split"]) == ("gale2019", workload, metric, "test")
        assert row["primary_metric"] is True
        config = json.loads(row["config"])
        assert row["run_id"] == short_hash(config)
        assert row["configuration"] == short_hash({key: value for key, value in config.items() if key != "seed"})


def test_every_layout_is_tested() -> None:
    headers = [tuple(column.casefold() for column in lines[0].split(",")) for lines in ALL.values()]
    assert {tuple(column.casefold() for column in layout.columns) for layout in LAYOUTS.values()} == set(headers)


def test_run_ids_stay_as_they_are(tmp_path: Path) -> None:
    """Results folders are filled again by these ids: a change of theirs would double the rows."""
    ids = {name: read_result_file(write_file(tmp_path, name))[0].run_id for name in ALL}
    assert ids == FROZEN


FROZEN = {
    "rn50_baselines.csv": "bb77607d15b5c5e9",
    "rn50_magnitude_pruning.csv": "fe812a06e2822587",
    "rn50_random_pruning.csv": "17ff4375ed061a81",
    "rn50_variational_dropout.csv": "6877ceef35b9afc1",
    "rn50_l0_regularization.csv": "d1f14b39a539a4b7",
    "rn50_lottery_ticket.csv": "08f553fa77b4c9c4",
    "rn50_scratch_lr_constant_decay.csv": "7dd79129fd143054",
    "rn50_scratch_lr_continual_decay.csv": "a45f5d5dcdf6a911",
    "rn50_scratch_lr_scaled.csv": "88e3d59c5bc040e4",
    "transformer_baselines.csv": "535e442916de6089",
    "transformer_magnitude_pruning.csv": "c589538debdd834d",
    "transformer_random_pruning.csv": "86d1d26d7b3ec105",
    "transformer_scratche.csv": "a869f69a1f1a145f",
    "transformer_scratchb_augmented_init.csv": "79e0272ebaa09ec4",
    "transformer_lottery_ticket.csv": "51d4127fb0b986d3",
    "transformer_l0_regularization.csv": "d8db85951dc3cdd7",
    "transformer_variational_dropout.csv": "e3fa30f46270b296",
}


def test_thresholds_of_one_network_are_one_run(tmp_path: Path) -> None:
    (run,) = read_result_file(write_file(tmp_path, "transformer_variational_dropout.csv"))
    assert len(run.rows) == 11
    assert {row["run_id"] for row in run.rows} == {run.run_id}


def test_the_value_of_a_run_is_no_part_of_its_id(tmp_path: Path) -> None:
    one = read(tmp_path, "a.csv", MAGNITUDE, "0.5,20000,76000,2000,0.1,0.7561")
    other = read(tmp_path, "b.csv", MAGNITUDE, "0.5,20000,76000,2000,0.10,0.1")
    assert one[0]["run_id"] == other[0]["run_id"]
    assert one[0]["run_id"] != read(tmp_path, "c.csv", MAGNITUDE, "0.5,20000,76000,2000,0,0.7561")[0]["run_id"]
    assert one[0]["run_id"] != read(tmp_path, "d.csv", RANDOM, "0.5,20000,76000,2000,0.1,0.7561")[0]["run_id"]


def test_spreadsheets_habits_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "saved.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f'{MAGNITUDE.upper()}\r\n"0.5", 20000 ,76000,2000,0.1,0.7561\r\n\r\n,,,,,\r\n'.encode())
    (run,) = read_result_file(path)
    assert run.rows[0]["value"] == pytest.approx(75.61)
    assert run.rows[0]["source"] == "gale2019"


def test_scratch_file_of_another_name_tells_no_schedule(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "renamed.csv", SCRATCH, "0.5,2,sparse,20000,40000,4000,0.1,0.725")
    assert row["parameters"]["learning_rate_schedule"] is None


def refused(path: Path) -> str:
    with pytest.raises(SparsebenchError) as caught:
        read_result_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GOOD = "0.5,20000,76000,2000,0.1,0.7561"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((MAGNITUDE, GOOD, "0.5,20000,76000,2000,0.1,high"), "{} line 3, column 'accuracy': 'high': expected a number"),
        ((MAGNITUDE, GOOD, "0.5,20000,76000,2000,0.1,nan"), "{} line 3, column 'accuracy': 'nan': expected a number"),
        ((MAGNITUDE, "0.5,20000,76000,2000,0.1,"), "{} line 2, column 'accuracy': '': expected a number"),
        ((MAGNITUDE, "0.5,20000,76000,2000,0.1,1e999"), "{} line 2, column 'accuracy': '1e999': expected a number"),
        ((MAGNITUDE, "0.5,2_000,76000,2000,0.1,0.7"), "{} line 2, column 'begin': '2_000': expected a number"),
        ((MAGNITUDE, "0.5,20000,76000,2000,0.1,75.6"), "{} line 2, column 'accuracy': '75.6': expected a number from 0 to 1"),
        ((MAGNITUDE, "50,20000,76000,2000,0.1,0.7"), "{} line 2, column 'Sparsity': '50': expected a number from 0 to 1"),
        ((MAGNITUDE, "", GOOD, "-0.5,2,7,2,0,0.7"), "{} line 4, column 'Sparsity': '-0.5': expected a number from 0 to 1"),
        ((MAGNITUDE, "0.5,20000,76000,2000,0.1"), "{} line 2 has 5 cells, its header 6 columns: expected as many"),
        ((MAGNITUDE, GOOD + ",9"), "{} line 2 has 7 cells, its header 6 columns: expected as many"),
        ((MAGNITUDE, '"0.5,2'), "{} line 2 is no CSV: unexpected end of data"),
        (
            (TRANSFORMER_PRUNING, "mine,24.5,0.5,1,4,1,none,0"),
            "{} line 2, column 'Tensor2Tensor HParams': 'mine': "
            "expected sparse_transformer_magnitude_pruning or sparse_transformer_random_pruning",
        ),
        (
            (TRANSFORMER_PRUNING, "sparse_transformer_random_pruning,24.5,0.5,1,4,1,some,0"),
            "{} line 2, column 'regularization': 'some': expected dropout+label_smoothing or label_smoothing or none",
        ),
        (
            (TRANSFORMER_PRUNING, "sparse_transformer_random_pruning,124.5,0.5,1,4,1,none,0"),
            "{} line 2, column 'MOSES BLEU': '124.5': expected a number from 0 to 100",
        ),
        (
            (TRANSFORMER_DROPOUT, "x,1e-7,cubic,0,1,none," + ",".join(["1,0.5"] * 10 + ["1,?"])),
            "{} line 2, column 'Sparsity:5.0': '?': expected a number",
        ),
        (
            (SCRATCH, "0.5,2,other,20000,40000,4000,0.1,0.725"),
            "{} line 2, column '': 'other': expected baseline or sparse",
        ),
        ((MAGNITUDE,), "{} holds no results: expected lines below the header"),
        (("",), "{} is empty: expected a CSV file of results"),
        (("", "", ""), "{} is empty: expected a CSV file of results"),
        (
            (MAGNITUDE.replace("freq", "often"), GOOD),
            "{}: unknown column 'often'; the layout most like it is ResNet-50 magnitude pruning: " + MAGNITUDE,
        ),
        (
            (L0.replace("weight_decay,", ""), GOOD),
            "{}: column 'weight_decay' is missing; the layout most like it is ResNet-50 L0 regularization: " + L0,
        ),
        (
            ("begin,Sparsity,end,freq,label smoothing,accuracy", GOOD),
            "{}: column 'begin' is not in its place; the layout most like it is ResNet-50 magnitude pruning: " + MAGNITUDE,
        ),
        (
            (SCRATCH + ",", "0.5,2,sparse,20000,40000,4000,0.1,0.725,"),
            "{}: column '' is not in its place; the layout most like it is ResNet-50 scratch: " + SCRATCH,
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = write_file(tmp_path, "results.csv", *lines)
    assert refused(path) == message.format(path)


def test_files_that_are_none_are_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.csv") == f"no such file: {tmp_path / 'none.csv'}"
    assert refused(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    (tmp_path / "empty.csv").touch()
    assert refused(tmp_path / "empty.csv") == f"{tmp_path / 'empty.csv'} is empty: expected a CSV file of results"
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00PAR1")
    assert refused(tmp_path / "binary.csv") == f"{tmp_path / 'binary.csv'} is no text file: expected CSV in UTF-8"
    (tmp_path / "page.csv").write_text("<html>" + "x" * 10_000)
    assert len(refused(tmp_path / "page.csv")) < 400 + len(str(tmp_path))


def test_lottery_tickets_are_told_from_magnitude_pruning_by_the_order_of_columns(tmp_path: Path) -> None:
    assert {column.casefold() for column in LOTTERY.split(",")} == {column.casefold() for column in MAGNITUDE.split(",")}
    assert read(tmp_path, "a.csv", LOTTERY, "1,2,3,0.1,0.5,0.7")[0]["method"] == "lottery-ticket"
    assert read(tmp_path, "a.csv", MAGNITUDE, "0.5,1,2,3,0.1,0.7")[0]["method"] == "magnitude"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_they_were_written(value: float) -> None:
    assert cells.number(repr(value)) == value


@given(st.text(alphabet="0123456789+-.eE_infa \u0661", max_size=8))
def test_texts_are_numbers_or_refused(cell: str) -> None:
    """What float() takes beyond plain decimal numbers is refused; what is taken is what float() says."""
    plain = set(cell) <= set("0123456789+-.eE")
    try:
        expected = float(cell) if plain else math.nan
    except ValueError:
        expected = math.nan
    if math.isfinite(expected):
        assert cells.number(cell) == expected
    else:
        with pytest.raises(ValueError, match=r"^expected a number$"):
            cells.number(cell)
