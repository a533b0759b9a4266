from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("babel")
pytest.importorskip("num2words")
pytest.importorskip("sentencepiece")

from sparsebench.workloads.translation.cldr_phrases import SENTENCES, Phrases, make_phrases

SIZES = (600, 50, 100)


@pytest.fixture(scope="module")
def made() -> Phrases:
    return make_phrases(*SIZES)


def test_test_phrases_are_unseen_and_no_phrase_comes_twice(made: Phrases) -> None:
    sources = [source for part in (made.training, made.validation, made.test) for source, _ in part]
    assert len(set(sources)) == len(sources)
    assert (len(made.validation), len(made.test)) == SIZES[1:]
    names = len(made.training) - SIZES[0]
    assert names > 800
    assert ("Germany", "Deutschland") in made.training[:names]
    assert ("German", "Deutsch") in made.training[:names]


def test_phrases_are_the_same_every_time(made: Phrases) -> None:
    assert make_phrases(*SIZES) == made


@pytest.mark.skipif((version("babel"), version("num2words")) != ("2.18.0", "0.5.14"), reason="other tables, other phrases")
def test_phrases_of_these_releases_never_change(made: Phrases) -> None:
    """The phrases are part of the workload: raise PHRASES_REVISION where they change on purpose."""
    digest = hashlib.sha256(repr((made.validation, made.test, made.training)).encode()).hexdigest()[:16]
    assert digest == "bd9b7c1e001544a6"


def test_numbers_are_the_same_in_both_languages(made: Phrases) -> None:
    """An oracle of its own: digits of amounts, measures, shares and lengths agree once separators are exchanged."""
    compared = 0
    for english, german in made.training:
        if re.search(r"[AP]M|\b(19|20)\d\d\b|[a-z]+-[a-z]+", english):
            continue  # times and dates are checked below
        found = [
            sorted(number.replace(thousands, "").replace(point, ".").strip(".") for number in re.findall(r"\d[\d.,]*", text))
            for text, thousands, point in ((english, ",", "."), (german, ".", ","))
        ]
        assert found[0] == found[1], (english, german)
        compared += bool(found[0])
    assert compared > 150


def test_times_are_the_same_in_both_languages(made: Phrases) -> None:
    compared = 0
    for english, german in made.training:
        twelve = re.findall(r"(\d+):(\d\d(?::\d\d)?) ([AP])M", english)
        hours = [f"{int(hour) % 12 + 12 * (half == 'P'):02}:{rest}" for hour, rest, half in twelve]
        assert hours == re.findall(r"\d\d:\d\d(?::\d\d)?", german), (english, german)
        compared += bool(hours)
    assert compared > 100


def test_every_form_of_sentence_occurs_and_its_slots_are_in_both_languages(made: Phrases) -> None:
    for english, german in SENTENCES:
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", german))
    forms = [
        re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(english)))
        for english, _ in SENTENCES
        if " " in english and english[0] != "{"
    ]
    assert all(any(form.fullmatch(source) for source, _ in made.training) for form in forms)
    assert not any(character in text for pair in made.training for text in pair for character in "\u00a0\u202f{}")


def test_corpus_is_prepared_once_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.workloads.translation import cldr_ende

    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(cldr_ende, "TRAINING", 600)
    cldr_ende.load_phrases.cache_clear()
    corpus = cldr_ende.load_phrases()
    assert corpus.counts.kept == corpus.counts.read > 1400
    assert len(corpus.test.sources) == cldr_ende.TEST
    monkeypatch.setattr(cldr_ende, "make_phrases", None)
    cldr_ende.load_phrases.cache_clear()
    assert cldr_ende.load_phrases().fingerprint == corpus.fingerprint
    cldr_ende.load_phrases.cache_clear()
