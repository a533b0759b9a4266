"""Named parallel corpora in files: multi30k and wmt14-ende, from this machine or downloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparsebench.workloads.data_folders import cache_folder, data_folder
from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.files import TEST, TRAINING, VALIDATION, find_split, look_for_split
from sparsebench.workloads.translation.holding_out import GivenTexts
from sparsebench.workloads.translation.preparation import Preparation, prepare_corpus
from sparsebench.workloads.translation.sizes import RECIPES
from sparsebench.workloads.translation.transformer import SIZES
from sparsebench.workloads.translation.translation import Translation

__all__ = ["MULTI30K", "WMT14_ENDE"]

ENGLISH_GERMAN = ("en", "de")


def _load(name: str, downloads: Mapping[str, str], test: Sequence[str], preparation: Preparation) -> Callable[[], Corpus]:
    """What reads a corpus, once a process. Its folder is known by its three splits, so that it may be named itself."""
    stems = (TRAINING, VALIDATION, test)

    def holds_splits(folder: Path) -> bool:
        return all(look_for_split(folder, each, ENGLISH_GERMAN) for each in stems)

    @functools.cache
    def load() -> Corpus:
        folder = data_folder(name, downloads, is_it=holds_splits)
        training, validation, tested = (find_split(folder, each, ENGLISH_GERMAN) for each in stems)
        identity = {"languages": list(ENGLISH_GERMAN), "splits": [split.digest() for split in (training, validation, tested)]}
        texts = GivenTexts(training, validation, tested, name)
        return prepare_corpus(name, identity, preparation, texts, cache_folder() / "corpora")

    return load


_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
_WMT14 = "https://huggingface.co/datasets/wmt/wmt14/resolve/main/de-en"

MULTI30K = Translation(
    name="multi30k",
    summary="Multi30k, 29,000 image descriptions English-German, test_2016_flickr, a small Transformer; tens of minutes a run",
    code_revision=RECIPES["multi30k"].revision,
    recipe=RECIPES["multi30k"].recipe(),
    load=_load(
        "multi30k",
        {
            f"{part}.{side}.gz": f"{_MULTI30K}/{part}.{side}.gz"
            for part in ("train", "val", "test_2016_flickr")
            for side in ENGLISH_GERMAN
        },
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
    code_revision=RECIPES["wmt14-ende"].revision,
    recipe=RECIPES["wmt14-ende"].recipe(),
    load=_load(
        "wmt14-ende",
        {f"train-{n:05}-of-00003.parquet": f"{_WMT14}/train-{n:05}-of-00003.parquet" for n in range(3)}
        | {f"{part}-00000-of-00001.parquet": f"{_WMT14}/{part}-00000-of-00001.parquet" for part in ("validation", "test")},
        TEST,
        Preparation(vocabulary_size=32_000, max_length=64),
    ),
    size=SIZES["base"],
    dropout=0.1,
    language="de",
    scores=("tokenized_bleu", "sacrebleu", "chrf"),
    beams={"validation": 1, "test": 4},
)
