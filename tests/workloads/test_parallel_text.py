"""parallel:PATH with one file, two files of one stem, missing splits, and sizes of the Transformer."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from parallel_toys import TOY, Pairs, ToyTexts, write_folder
from pyarrow import parquet

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.registry import WORKLOADS
from sparsebench.workloads.translation.holding_out import GivenTexts
from sparsebench.workloads.translation.parallel_text import parallel_text
from sparsebench.workloads.translation.transformer import SIZES


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    parallel_text.cache_clear()


DISTINCT = sorted(set(TOY.training))


def write_corpus(path: Path, kind: str) -> str:
    """All pairs in one file or two, and what names them."""
    if kind == "stem":
        for side, language in enumerate(("en", "de")):
            (path / f"corpus.{language}.gz").write_bytes(gzip.compress("".join(f"{pair[side]}\n" for pair in DISTINCT).encode()))
        return f"parallel:{path / 'corpus'}:en-de"
    if kind == "parquet":
        table = pyarrow.table({"en": [pair[0] for pair in DISTINCT], "de": [pair[1] for pair in DISTINCT]})
        parquet.write_table(table, path / "corpus.parquet")
        return f"parallel:{path / 'corpus.parquet'}:en-de"
    data = "".join("\t".join(pair) + "\n" for pair in DISTINCT).encode()
    (path / f"corpus.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return f"parallel:{path / f'corpus.{kind}'}"


@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "parquet", "stem"])
def test_one_corpus_in_any_kind_of_file_is_split_alike(kind: str, tmp_path: Path) -> None:
    corpus: Any = WORKLOADS.get(write_corpus(tmp_path, kind)).load()  # type: ignore[attr-defined]
    held_out = [*zip(corpus.validation.sources, corpus.validation.references, strict=True)]
    held_out += zip(corpus.test.sources, corpus.test.references, strict=True)
    expected = GivenTexts(DISTINCT, None, None, "toy")
    assert held_out == [*expected.validation, *expected.test]
    assert corpus.counts.read == len(DISTINCT) - len(held_out)
    assert len(corpus.test.sources) == len(DISTINCT) // 10


def test_missing_split_of_a_folder_is_held_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "words", ToyTexts(DISTINCT, [], TOY.test))
    corpus = WORKLOADS.get(f"parallel:{folder}:en-de").load()  # type: ignore[attr-defined]
    assert len(corpus.validation.sources) == len(DISTINCT) // 10
    assert corpus.counts.read == len(DISTINCT) - len(DISTINCT) // 10
    assert corpus.test.sources == tuple(source for source, _ in TOY.test)


def test_held_out_sentences_are_unseen_whatever_the_order() -> None:
    repeated: Pairs = [(f"sentence  {number % 200}", f"Satz {number}") for number in range(1000)] + [("", "leer")]
    texts = GivenTexts(repeated, None, None, "toy")
    parts = [list(texts.training), list(texts.validation), list(texts.test)]
    sources = [{source for source, _ in part} for part in parts]
    assert [len(part) for part in parts] == [801, 20, 20]
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    assert not sources[1] & sources[2]
    assert all(int(target.split()[1]) < 200 for part in parts[1:] for _, target in part)  # the first of each
    other = GivenTexts(repeated[::-1], None, None, "toy")
    assert {source for source, _ in other.test} == sources[2]
    assert len(list(GivenTexts([(str(n), "x") for n in range(12_000)], None, None, "toy").test)) == 1000


def test_too_few_pairs_to_hold_some_out() -> None:
    with pytest.raises(
        SparsebenchError, match=r"^toy: 2 different sentences are too few to hold some out for validation and test$"
    ):
        list(GivenTexts([("one", "eins"), ("two", "zwei"), ("one", "ein")], None, None, "toy").training)


def test_mistaken_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "corpus.en").write_text("one\n")
    with pytest.raises(SparsebenchError, match=r"corpus\.en is neither TSV .*: of two text files give what their names have in"):
        WORKLOADS.get(f"parallel:{tmp_path / 'corpus.en'}:en-de")
    with pytest.raises(SparsebenchError, match=r"and there are no files corpus\.en and corpus\.de: expected a folder"):
        WORKLOADS.get(f"parallel:{tmp_path / 'corpus'}:en-de")


def test_size_is_chosen_by_name(tmp_path: Path) -> None:
    own, big = WORKLOADS.get("multi30k"), WORKLOADS.get("multi30k/big")
    assert WORKLOADS.get("multi30k/small") is own
    assert WORKLOADS.get("multi30k/big") is big
    assert (big.name, big.size) == ("multi30k/big", SIZES["big"])  # type: ignore[attr-defined]
    assert big.recipe == own.recipe.model_copy(update={"learning_rate": own.recipe.learning_rate * math.sqrt(128 / 1024)})
    assert WORKLOADS.get("cldr-ende/small").name == "cldr-ende/small"
    folder = write_folder(tmp_path / "words")
    plain, tiny = WORKLOADS.get(f"parallel:{folder}:en-de"), WORKLOADS.get(f"parallel:tiny@{folder}:en-de")
    assert tiny.name == f"parallel:tiny@{folder}:en-de"
    assert tiny.revision == plain.revision  # the same text
    assert WORKLOADS.get(f"parallel:small@{folder}:en-de").name == plain.name
    assert sum(p.numel() for p in tiny.build_model().parameters()) < sum(p.numel() for p in plain.build_model().parameters())
    for wrong in ("multi30k/large", "wmt14-ende/", f"parallel:large@{folder}:en-de"):
        with pytest.raises(SparsebenchError, match=r"unknown size '(large)?'.*; expected tiny, small, base, big$"):
            WORKLOADS.get(wrong)


def test_recipes_of_wmt14_are_those_of_the_papers() -> None:
    base, big = WORKLOADS.get("wmt14-ende").recipe, WORKLOADS.get("wmt14-ende/big").recipe
    assert base.learning_rate == 2.0 * 512**-0.5 * 8000**-0.5
    assert big.learning_rate == 1024**-0.5 * 4000**-0.5
    assert (big.steps, big.warmup_steps, big.dropout) == (300_000, 4000, 0.3)
    assert WORKLOADS.get("wmt14-ende/tiny").recipe.learning_rate == pytest.approx(2.0 * 64**-0.5 * 8000**-0.5)
