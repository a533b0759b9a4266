from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.files import ParallelFiles, find_split, read_lines

PAIRS = [("A dog runs.", "Ein Hund läuft."), ("", "leer"), ("two  spaces", "zwei\u2028Zeilen"), ("x", "ß")]
ENGLISH_GERMAN = ("en", "de")


def write_texts(folder: Path, stem: str, pairs: Iterable[tuple[str, str]], zipped: bool = False) -> None:
    for side, language in enumerate(ENGLISH_GERMAN):
        data = "".join(f"{pair[side]}\n" for pair in pairs).encode()
        path = folder / f"{stem}.{language}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data) if zipped else data)


def write(folder: Path, kind: str) -> None:
    if kind.startswith("text"):
        write_texts(folder, "train", PAIRS, kind.endswith("gz"))
    elif kind.startswith("tsv"):
        data = "".join(f"{source}\t{target}\n" for source, target in PAIRS).encode()
        (folder / f"train.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind == "parquet columns":
        table = pyarrow.table({"de": [pair[1] for pair in PAIRS], "en": [pair[0] for pair in PAIRS], "id": range(len(PAIRS))})
        parquet.write_table(table, folder / "train.parquet")
    else:
        for shard in range(2):
            rows = [{"translation": {"de": pair[1], "en": pair[0]}} for pair in PAIRS[2 * shard : 2 * shard + 2]]
            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"train-0000{shard}-of-00002.parquet")


@pytest.mark.parametrize("kind", ["text", "text.gz", "tsv", "tsv.gz", "parquet columns", "parquet shards"])
def test_every_kind_of_file_gives_the_same_pairs_as_often_as_wanted(kind: str, tmp_path: Path) -> None:
    write(tmp_path, kind)
    files = find_split(tmp_path, ["train"], ENGLISH_GERMAN)
    assert list(files) == PAIRS
    assert list(files) == PAIRS


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n\r\x00", exclude_categories=["Cs"]))),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_are_what_was_written(lines: list[str], end: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lines") / "text.gz"
    path.write_bytes(gzip.compress("".join(line + end for line in lines).encode()))
    assert list(read_lines(path)) == [line.removeprefix("\ufeff") if not number else line for number, line in enumerate(lines)]


def test_a_last_line_without_end_counts(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\ntwo")
    assert list(read_lines(tmp_path / "text")) == ["one", "two"]


@pytest.mark.parametrize(("missing", "lines"), [("de", (4, 2)), ("en", (2, 4))])
def test_unequal_line_counts_name_both_files_and_counts(missing: str, lines: tuple[int, int], tmp_path: Path) -> None:
    write_texts(tmp_path, "train", PAIRS)
    path = tmp_path / f"train.{missing}"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    message = (
        f"{tmp_path / 'train.en'} has {lines[0]} lines, {tmp_path / 'train.de'} has {lines[1]}: "
        "expected one translation for every line"
    )
    with pytest.raises(SparsebenchError) as caught:
        list(find_split(tmp_path, ["train"], ENGLISH_GERMAN))
    assert str(caught.value) == message


def refusal(files: ParallelFiles) -> str:
    with pytest.raises(SparsebenchError) as caught:
        list(files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_invalid_utf8_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"one\teins\ntwo\tzw\xe4i\n")
    assert refusal(ParallelFiles((path,), ENGLISH_GERMAN)) == f"{path}, line 2: not UTF-8 (byte 7 of the line)"


def test_damaged_gzip_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv.gz"
    whole = gzip.compress(b"one\teins\n" * 1000)
    for broken in (whole[: len(whole) // 2], whole[:20] + b"\xff" * 8 + whole[28:], b"one\teins\n"):
        path.write_bytes(broken)
        assert refusal(ParallelFiles((path,), ENGLISH_GERMAN)).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize("line", ["one", "one\teins\t1"])
def test_tsv_of_other_than_two_columns_names_the_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(f"zero\tnull\n{line}\n")
    columns = line.count("\t") + 1
    assert refusal(ParallelFiles((path,), ENGLISH_GERMAN)) == (
        f"{path}, line 2: {columns} columns; expected two, a sentence and its translation"
    )


def test_wrong_parquet_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    files = ParallelFiles((path,), ENGLISH_GERMAN)
    assert refusal(files).startswith(f"cannot read {path}: ")
    path.write_bytes(b"no parquet")
    assert refusal(files).startswith(f"cannot read {path}: ")
    parquet.write_table(pyarrow.table({"en": ["one"], "fr": ["un"]}), path)
    assert refusal(files) == f"{path} has no column 'de', only en, fr: name the languages of its columns"
    parquet.write_table(pyarrow.table({"en": ["one", "two"], "de": ["eins", None]}), path)
    assert refusal(files) == f"{path}, row 2: 'two', None; expected two texts"
    parquet.write_table(pyarrow.Table.from_pylist([{"translation": {"en": "one", "fr": "un"}}]), path)
    assert refusal(files) == f"{path}: a translation has en, fr; expected the languages en and de"


def test_split_that_is_nowhere_or_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SparsebenchError, match=r"has no 'val': expected val\.en and val\.de, val\.tsv or val\.en-de\.tsv \(text also"
    ):
        find_split(tmp_path, ["val", "dev"], ENGLISH_GERMAN)
    write_texts(tmp_path, "dev", PAIRS)
    assert list(find_split(tmp_path, ["val", "dev"], ENGLISH_GERMAN)) == PAIRS
    (tmp_path / "val.tsv").write_text("one\teins\n")
    with pytest.raises(SparsebenchError, match=r"several files for 'val' \(val\.tsv, dev\.en\): leave one"):
        find_split(tmp_path, ["val", "dev"], ENGLISH_GERMAN)


def test_digest_depends_on_every_byte_and_on_the_border_between_files(tmp_path: Path) -> None:
    digests = set()
    for source, target in [(b"ab\n", b"c\n"), (b"a\n", b"c\n"), (b"ab\n", b"d\n"), (b"", b"ab\nc\n")]:
        (tmp_path / "train.en").write_bytes(source)
        (tmp_path / "train.de").write_bytes(target)
        digests.add(find_split(tmp_path, ["train"], ENGLISH_GERMAN).digest())
    assert len(digests) == 4


@pytest.mark.parametrize("name", ["train.en-de.tsv", "train.en-de.tsv.gz", "train.de-en.tsv"])
def test_tsv_named_by_both_languages_has_the_columns_that_it_says(name: str, tmp_path: Path) -> None:
    turned = name.startswith("train.de")
    data = "".join("\t".join(pair[::-1] if turned else pair) + "\n" for pair in PAIRS).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert list(find_split(tmp_path, ["train"], ENGLISH_GERMAN)) == PAIRS
    assert list(find_split(tmp_path, ["train"], ("de", "en"))) == [pair[::-1] for pair in PAIRS]


def test_texts_named_by_both_languages(tmp_path: Path) -> None:
    write_texts(tmp_path, "train.de-en", PAIRS)
    assert list(find_split(tmp_path, ["train"], ENGLISH_GERMAN)) == PAIRS
