"""Workloads over text in files: multi30k, wmt14-ende, and any folder as parallel:PATH."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.data_folders import cache_folder, data_folder
from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.files import ParallelFiles, find_split
from sparsebench.workloads.translation.preparation import Preparation, prepare_corpus
from sparsebench.workloads.translation.transformer import SIZES
from sparsebench.workloads.translation.translation import Translation
from sparsebench.workloads.workload import Recipe

__all__ = ["MULTI30K", "WMT14_ENDE", "parallel_text"]

TRAINING, VALIDATION, TEST = ("train",), ("validation", "valid", "val", "dev"), ("test",)


@dataclass(frozen=True)
class _SplitFiles:
    training: ParallelFiles
    validation: ParallelFiles
    test: ParallelFiles


def _load(
    name: str, folder: Callable[[], Path], languages: tuple[str, str], test: Sequence[str], preparation: Preparation
) -> Callable[[], Corpus]:
    """What reads a corpus, once a process."""

    @functools.cache
    def load() -> Corpus:
        path = folder()
        found = _SplitFiles(*(find_split(path, stems, languages) for stems in (TRAINING, VALIDATION, test)))
        identity = {
            "languages": list(languages),
            "splits": [found.training.digest(), found.validation.digest(), found.test.digest()],
        }
        return prepare_corpus(name, identity, preparation, found, cache_folder() / "corpora")

    return load


_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
_WMT14 = "https://huggingface.co/datasets/wmt/wmt14/resolve/main/de-en"

_SMALL = Recipe(
    steps=8000,
    batch_size=4096,
    optimizer="adamw",
    learning_rate=2e-3,
    learning_rate_schedule="inverse-square-root",
    warmup_steps=1000,
    label_smoothing=0.1,
    adam_beta2=0.98,
    adam_epsilon=1e-9,
    auxiliary_lr_scale=5.0,
)

MULTI30K = Translation(
    name="multi30k",
    summary="Multi30k, 29,000 image descriptions English-German, test_2016_flickr, a small Transformer; tens of minutes a run",
    code_revision=1,
    recipe=Recipe(
        steps=4000,
        batch_size=2048,
        optimizer="adamw",
        learning_rate=3e-3,
        learning_rate_schedule="trapezoid",
        warmup_steps=500,
        label_smoothing=0.1,
        adam_beta2=0.98,
        adam_epsilon=1e-9,
        auxiliary_lr_scale=5.0,
    ),
    load=_load(
        "multi30k",
        lambda: data_folder(
            "multi30k",
            {
                f"{part}.{side}.gz": f"{_MULTI30K}/{part}.{side}.gz"
                for part in ("train", "val", "test_2016_flickr")
                for side in ("en", "de")
            },
        ),
        ("en", "de"),
        ("test_2016_flickr",),
        Preparation(vocabulary_size=4000),
    ),
    size=SIZES["small"],
    dropout=0.1,
    language="de",
    scores=("sacrebleu", "chrf"),
    beams={"validation": 1, "test": 4},
)

WMT14_ENDE = Translation(
    name="wmt14-ende",
    summary="WMT14 English-German, 4.5 million pairs, newstest2014, Transformer base; days on a GPU",
    code_revision=1,
    recipe=Recipe(
        steps=500_000,
        batch_size=16_384,
        optimizer="adamw",
        learning_rate=2.0 * 512**-0.5 * 8000**-0.5,
        learning_rate_schedule="inverse-square-root",
        warmup_steps=8000,
        label_smoothing=0.1,
        adam_beta2=0.997,
        adam_epsilon=1e-9,
        auxiliary_lr_scale=1.0,
    ),
    load=_load(
        "wmt14-ende",
        lambda: data_folder(
            "wmt14-ende",
            {f"train-{n:05}-of-00003.parquet": f"{_WMT14}/train-{n:05}-of-00003.parquet" for n in range(3)}
            | {f"{part}-00000-of-00001.parquet": f"{_WMT14}/{part}-00000-of-00001.parquet" for part in ("validation", "test")},
        ),
        ("en", "de"),
        TEST,
        Preparation(vocabulary_size=32_000, max_length=64),
    ),
    size=SIZES["base"],
    dropout=0.1,
    language="de",
    scores=("tokenized_bleu", "sacrebleu", "chrf"),
    beams={"validation": 1, "test": 4},
)


@functools.cache
def parallel_text(argument: str) -> Translation:
    """The workload `parallel:PATH`, or `parallel:PATH:en-de` where files are named by language.

    Args:
        argument: The folder, with the languages of source and target; without them files end in `.source` and `.target`, or
            columns of Parquet files have these names.

    Raises:
        SparsebenchError: The folder does not exist.
    """
    match = re.fullmatch(r"(?P<path>.+):(?P<source>[A-Za-z]{2,3})-(?P<target>[A-Za-z]{2,3})", argument)
    path, languages = Path(argument), ("source", "target")
    if match:
        path, languages = Path(match["path"]), (match["source"], match["target"])
    if not path.is_dir():
        raise SparsebenchError(
            f"parallel:{argument}: {path} is no folder; expected one with train, validation and test, and parallel:PATH:en-de "
            "where files are named by language"
        )
    name = f"parallel:{argument}"
    return Translation(
        name=name,
        summary=f"parallel text in {path}, a small Transformer",
        code_revision=1,
        recipe=_SMALL,
        load=_load(name, lambda: path, languages, TEST, Preparation(vocabulary_size=8000)),
        size=SIZES["small"],
        dropout=0.1,
        language=languages[1],
        scores=("sacrebleu", "chrf"),
        beams={"validation": 1, "test": 4},
    )
