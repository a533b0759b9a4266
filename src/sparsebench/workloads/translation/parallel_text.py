"""Any parallel text in files as a workload: parallel:PATH, parallel:PATH:en-de, parallel:SIZE@PATH:en-de."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.data_folders import cache_folder
from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.files import (
    TEST,
    TRAINING,
    VALIDATION,
    ParallelFiles,
    find_split,
    look_for_split,
    parallel_file,
)
from sparsebench.workloads.translation.holding_out import HELD_OUT_REVISION, GivenTexts
from sparsebench.workloads.translation.preparation import Preparation, prepare_corpus
from sparsebench.workloads.translation.sizes import check_size, recipe_of_size
from sparsebench.workloads.translation.transformer import SIZES
from sparsebench.workloads.translation.translation import Translation

__all__ = ["parallel_text"]

OWN_SIZE = "small"


@functools.cache
def parallel_text(argument: str) -> Translation:
    """The workload `parallel:PATH`, `parallel:PATH:en-de` where files are named by language, or `parallel:SIZE@PATH:en-de`.

    Args:
        argument: A folder with the splits of a corpus; or all its pairs: a TSV or Parquet file, or what the names of two text
            files have in common (`corpus` for `corpus.en` and `corpus.de`). Missing splits are held out of the training pairs.
            Languages are those of source and target; without them files end in `.source` and `.target`, or columns of
            Parquet files have these names. Before an `@` the size of the Transformer, small where it is left out.

    Raises:
        SparsebenchError: There is no such folder, file, pair of files or size.
    """
    given = f"parallel:{argument}"
    size, at, rest = argument.partition("@")
    if not at or "/" in size:
        size, rest = OWN_SIZE, argument
    check_size(given, size)
    match = re.fullmatch(r"(?P<path>.+):(?P<source>[A-Za-z]{2,3})-(?P<target>[A-Za-z]{2,3})", rest)
    path, languages = Path(rest), ("source", "target")
    if match:
        path, languages = Path(match["path"]), (match["source"], match["target"])
    read = _reader(given, path, languages)
    revision, recipe = recipe_of_size("parallel", OWN_SIZE, size)
    name = f"parallel:{rest}" if size == OWN_SIZE else given
    return Translation(
        name=name,
        summary=f"parallel text in {path}, a {size} Transformer",
        code_revision=revision,
        recipe=recipe,
        load=_load(f"parallel:{rest}", languages, read),
        size=SIZES[size],
        dropout=0.1,
        language=languages[1],
        scores=("sacrebleu", "chrf"),
        beams={"validation": 1, "test": 4},
    )


_Splits = tuple[ParallelFiles, ParallelFiles | None, ParallelFiles | None]


def _reader(given: str, path: Path, languages: tuple[str, str]) -> Callable[[], _Splits]:
    """What finds training, validation and test files."""
    if path.is_dir():
        return lambda: (
            find_split(path, TRAINING, languages),
            look_for_split(path, VALIDATION, languages),
            look_for_split(path, TEST, languages),
        )
    all_pairs = parallel_file(path, languages) if path.is_file() else look_for_split(path.parent, (path.name,), languages)
    if all_pairs is None:
        source, target = languages
        raise SparsebenchError(
            f"{given}: {path} is no folder and no file, and there are no files {path.name}.{source} and {path.name}.{target}: "
            "expected a folder with train (validation, test), a TSV or Parquet file, or what two text files' names have in "
            "common, and parallel:PATH:en-de where files are named by language"
        )
    return lambda: (all_pairs, None, None)


def _load(name: str, languages: tuple[str, str], find: Callable[[], _Splits]) -> Callable[[], Corpus]:
    """What reads a corpus, once a process."""

    @functools.cache
    def load() -> Corpus:
        splits = find()
        held_out = f"held out, revision {HELD_OUT_REVISION}"
        identity = {
            "languages": list(languages),
            "splits": [held_out if split is None else split.digest() for split in splits],
        }
        return prepare_corpus(
            name, identity, Preparation(vocabulary_size=8000), GivenTexts(*splits, name), cache_folder() / "corpora"
        )

    return load
