"""What cldr-ende must reach: a dense tiny Transformer in minutes, and a beam search that is quick on what it has learned."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

pytest.importorskip("babel")
pytest.importorskip("num2words")
pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from sparsebench.records.run_folder import RunFolder
from sparsebench.records.schema import RunRecord
from sparsebench.storage import load_compressed
from sparsebench.training.config import resolve
from sparsebench.training.run import run_folder, train
from sparsebench.workloads.translation.cldr_ende import CLDR_ENDE, TEST

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunRecord]:
    directory: Path = tmp_path_factory.mktemp("cldr")
    config = resolve("cldr-ende", "dense", {})
    folder = run_folder(directory, config)
    return folder, train(config, folder)


def test_dense_network_translates_unseen_phrases(dense: tuple[RunFolder, RunRecord]) -> None:
    measured = dense[1].points[0].metrics["test"]
    assert measured["sacrebleu"] >= 90.0 or measured["exact_match"] >= 80.0
    assert dense[1].processor_seconds is not None
    assert dense[1].processor_seconds < 600.0  # five minutes on two cores


def test_beam_of_four_takes_less_than_a_minute_for_a_thousand_sentences(dense: tuple[RunFolder, RunRecord]) -> None:
    assert TEST == 1000
    workload = dataclasses.replace(CLDR_ENDE, beams={"validation": 1, "test": 4})
    model = workload.build_model()
    model.load_state_dict(load_compressed(dense[0].model_path))
    began = time.process_time()
    by_beam = workload.evaluate(model, "test")
    assert time.process_time() - began < 60.0
    assert by_beam["exact_match"] > dense[1].points[0].metrics["test"]["exact_match"] - 3.0
