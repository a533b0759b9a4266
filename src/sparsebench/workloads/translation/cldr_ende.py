"""cldr-ende: dates, times, numbers, amounts, units and names, English to German, without a download; minutes a run."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.data_folders import cache_folder
from sparsebench.workloads.translation.cldr_phrases import Phrases, make_phrases
from sparsebench.workloads.translation.corpus import Corpus
from sparsebench.workloads.translation.files import Pair
from sparsebench.workloads.translation.preparation import Preparation, prepare_corpus
from sparsebench.workloads.translation.sizes import RECIPES
from sparsebench.workloads.translation.transformer import SIZES
from sparsebench.workloads.translation.translation import Translation

__all__ = ["CLDR_ENDE"]

# Raised when `make_phrases` makes others.
PHRASES_REVISION = 1
TRAINING, VALIDATION, TEST = 24_000, 500, 1000


class _OnDemand:
    """The phrases, made when they are first asked for: an earlier run has prepared them, as a rule."""

    @functools.cached_property
    def _phrases(self) -> Phrases:
        return make_phrases(TRAINING, VALIDATION, TEST)

    @property
    def training(self) -> tuple[Pair, ...]:
        return self._phrases.training

    @property
    def validation(self) -> tuple[Pair, ...]:
        return self._phrases.validation

    @property
    def test(self) -> tuple[Pair, ...]:
        return self._phrases.test


@functools.cache
def load_phrases() -> Corpus:
    """The corpus, the same for the same releases of Babel and num2words.

    Raises:
        SparsebenchError: A package is not installed.
    """
    try:
        releases = {package: version(package) for package in ("babel", "num2words")}
    except PackageNotFoundError as error:
        raise SparsebenchError(f"the workload 'cldr-ende' needs {error.name}: pip install 'sparsebench[translation]'") from error
    identity = {"revision": PHRASES_REVISION, "sizes": [TRAINING, VALIDATION, TEST], **releases}
    preparation = Preparation(vocabulary_size=1000, split_digits=True, max_length=96, max_ratio=8.0)
    return prepare_corpus("cldr-ende", identity, preparation, _OnDemand(), cache_folder() / "corpora")


CLDR_ENDE = Translation(
    name="cldr-ende",
    summary="English-German dates, numbers, amounts, units and names from CLDR, a tiny Transformer; minutes a run, no download",
    code_revision=RECIPES["cldr-ende"].revision,
    recipe=RECIPES["cldr-ende"].recipe(),
    load=load_phrases,
    size=SIZES["tiny"],
    dropout=0.0,
    language="de",
    scores=("sacrebleu", "exact_match", "chrf"),
    beams={"validation": 1, "test": 1},
)
