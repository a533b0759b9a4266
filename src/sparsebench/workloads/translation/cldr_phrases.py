"""English-German phrases made from the Unicode CLDR tables of Babel and the number words of num2words."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sparsebench.errors import SparsebenchError
from sparsebench.workloads.translation.files import Pair

__all__ = ["Phrases", "make_phrases"]

LOCALES = ("en_US", "de_DE")
CURRENCIES = ("EUR", "USD", "GBP", "CHF", "JPY", "SEK", "PLN", "CZK", "AUD", "CAD", "INR", "BRL")
UNITS = (
    *("length-kilometer", "length-meter", "length-centimeter", "length-mile", "length-foot", "length-inch"),
    *("mass-kilogram", "mass-gram", "mass-tonne", "mass-pound", "volume-liter", "volume-milliliter", "area-square-meter"),
    *(
        "area-hectare",
        "speed-kilometer-per-hour",
        "temperature-celsius",
        "energy-kilowatt-hour",
        "power-watt",
        "digital-gigabyte",
    ),
    *("duration-second", "duration-minute", "duration-hour", "duration-day", "duration-week", "duration-month", "duration-year"),
)
# Seconds, and the largest number that is said in this unit.
SPANS = {
    "minute": (60, 40),
    "hour": (3600, 20),
    "day": (86_400, 6),
    "week": (604_800, 3),
    "month": (2_592_000, 10),
    "year": (31_536_000, 99),
}
# Unknown, made up for tests, and more than a country.
NO_COUNTRIES = ("EU", "EZ", "QO", "UN", "XA", "XB", "ZZ")
FIRST_DAY, DAYS = datetime.date(1950, 1, 1), 36_525

T = TypeVar("T")


class _Lot:
    """Choices that depend on a key alone: the same on every machine, under every release of Python."""

    def __init__(self, key: str) -> None:
        self._key, self._drawn = key, 0

    def below(self, bound: int) -> int:
        self._drawn += 1
        digest = hashlib.sha256(f"{self._key} {self._drawn}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % bound

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def magnitude(self, digits: int) -> int:
        """A number of one to so many digits, every length alike."""
        return self.below(10 ** (1 + self.below(digits)))


class _Tables:
    """What phrases are made of, in both languages at once."""

    def __init__(self) -> None:
        try:
            from babel import Locale, dates, lists, numbers, units
            from num2words import num2words
        except ImportError as error:
            raise SparsebenchError(
                "the workload 'cldr-ende' needs Babel and num2words: pip install 'sparsebench[translation]'"
            ) from error
        self._dates, self._lists, self._numbers, self._units, self._words = dates, lists, numbers, units, num2words
        english, german = (Locale.parse(locale) for locale in LOCALES)
        # Regions have numbers for codes, variants of a language longer ones.
        self.territories = _names(
            english.territories, german.territories, lambda code: code.isalpha() and code not in NO_COUNTRIES
        )
        self.languages = _names(english.languages, german.languages, str.isalpha)

    def date(self, lot: _Lot) -> Pair:
        day, length = FIRST_DAY + datetime.timedelta(lot.below(DAYS)), lot.of(("medium", "long", "full"))
        return self._both(lambda locale: self._dates.format_date(day, length, locale))

    def time(self, lot: _Lot) -> Pair:
        moment, length = datetime.time(lot.below(24), lot.below(60), lot.below(60)), lot.of(("short", "medium"))
        return self._both(lambda locale: self._dates.format_time(moment, length, locale=locale))

    def coming(self, lot: _Lot) -> Pair:
        """A time from now: "in 3 days"."""
        return self._from_now(lot, 1)

    def past(self, lot: _Lot) -> Pair:
        """A time before now: "2 weeks ago"."""
        return self._from_now(lot, -1)

    def _from_now(self, lot: _Lot, sign: int) -> Pair:
        unit = lot.of(tuple(SPANS))
        seconds, most = SPANS[unit]
        span = datetime.timedelta(seconds=sign * (1 + lot.below(most)) * seconds)
        return self._both(
            lambda locale: self._dates.format_timedelta(span, granularity=unit, threshold=99, add_direction=True, locale=locale)
        )

    def number(self, lot: _Lot) -> Pair:
        value = lot.magnitude(6)
        return self._words(value, lang="en"), self._words(value, lang="de")

    def decimal(self, lot: _Lot) -> Pair:
        value = lot.magnitude(7) / 100
        return self._both(lambda locale: self._numbers.format_decimal(value, locale=locale))

    def percentage(self, lot: _Lot) -> Pair:
        value = lot.below(1000)
        return self._both(
            lambda locale: self._numbers.format_percent(value / 1000, "#,##0.# %" if "de" in locale else "#,##0.#%", locale)
        )

    def amount(self, lot: _Lot) -> Pair:
        value, currency, kind = lot.magnitude(7) / 100, lot.of(CURRENCIES), lot.of(("standard", "name"))
        return self._both(lambda locale: self._numbers.format_currency(value, currency, locale=locale, format_type=kind))

    def measure(self, lot: _Lot) -> Pair:
        value, unit, length = lot.magnitude(4), lot.of(UNITS), lot.of(("long", "long", "short"))
        return self._both(lambda locale: self._units.format_unit(value, unit, length, locale=locale))

    def territory(self, lot: _Lot) -> Pair:
        return lot.of(self.territories)

    def language(self, lot: _Lot) -> Pair:
        return lot.of(self.languages)

    def territory_list(self, lot: _Lot) -> Pair:
        return self._list(lot, self.territories)

    def language_list(self, lot: _Lot) -> Pair:
        return self._list(lot, self.languages)

    def _list(self, lot: _Lot, names: Sequence[Pair]) -> Pair:
        chosen, style = [lot.of(names) for _ in range(2 + lot.below(2))], lot.of(("standard", "or"))
        english, german = (
            self._lists.format_list([name[side] for name in chosen], style, locale) for side, locale in enumerate(LOCALES)
        )
        return english, german

    def _both(self, form: Callable[[str], str]) -> Pair:
        return form(LOCALES[0]), form(LOCALES[1])


def _names(english: Any, german: Any, allowed: Callable[[str], bool]) -> list[Pair]:
    """Names that both languages have, in the order of their codes."""
    return [(str(english[code]), str(german[code])) for code in sorted(english) if allowed(code) and code in german]


# Nouns that do not change with what is put in, and names in the nominative only: every sentence is right.
SENTENCES: Sequence[Pair] = (
    ("{amount}", "{amount}"),
    ("{date}", "{date}"),
    ("{date}, {time}", "{date}, {time}"),
    ("{decimal}", "{decimal}"),
    ("{language_list}", "{language_list}"),
    ("{measure}", "{measure}"),
    ("{number}", "{number}"),
    ("{number}", "{number}"),
    ("{percentage}", "{percentage}"),
    ("{past}", "{past}"),
    ("{territory_list}", "{territory_list}"),
    ("{time}", "{time}"),
    ("The price is {amount}.", "Der Preis beträgt {amount}."),
    ("The length is {decimal}, not {decimal2}.", "Die Länge beträgt {decimal}, nicht {decimal2}."),
    ("The train leaves on {date} at {time}.", "Der Zug fährt am {date} um {time}."),
    ("Country: {territory}, language: {language}.", "Land: {territory}, Sprache: {language}."),
    ("Languages: {language_list}.", "Sprachen: {language_list}."),
    ("Countries: {territory_list}.", "Länder: {territory_list}."),
    ("In words: {number}.", "In Worten: {number}."),
    ("Exactly {measure}!", "Genau {measure}!"),
    ("We start {coming}, at {time}.", "Wir beginnen {coming}, um {time}."),
    ("We started {past}.", "Wir haben {past} begonnen."),
    ("{percentage} of {decimal}", "{percentage} von {decimal}"),
    (
        "Departure: {territory}, {time}. Arrival: {territory2}, {time2}.",
        "Abfahrt: {territory}, {time}. Ankunft: {territory2}, {time2}.",
    ),
    ("Open from {time} to {time2}?", "Geöffnet von {time} bis {time2}?"),
    ("Invoice of {date}: {amount}, payable {coming}.", "Rechnung vom {date}: {amount}, zahlbar {coming}."),
    ("{territory}: {percentage}, {territory2}: {percentage2}.", "{territory}: {percentage}, {territory2}: {percentage2}."),
)


@dataclass(frozen=True)
class Phrases:
    """Phrases and their translations; no source phrase is in two splits, or twice in one."""

    training: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


def make_phrases(training: int, validation: int, test: int) -> Phrases:
    """Make phrases: the same ones wherever Babel and num2words are of the same release.

    All names of territories and languages are among the training phrases, one by one; besides them there are so many phrases of
    the forms of `SENTENCES`, by lot.

    Args:
        training: Training phrases, names not counted.
        validation: Validation phrases.
        test: Test phrases.

    Raises:
        SparsebenchError: Babel or num2words is not installed.
    """
    tables = _Tables()
    names = dict(tables.territories) | dict(tables.languages)
    made: dict[str, str] = {}
    for english, german in _endless(tables):
        if english not in names:
            made.setdefault(english, german)
        if len(made) == training + validation + test:
            break
    phrases = list(made.items())
    rest = phrases[test + validation :]
    return Phrases((*names.items(), *rest), tuple(phrases[test : test + validation]), tuple(phrases[:test]))


def _endless(tables: _Tables) -> Iterator[Pair]:
    number = 0
    while True:
        lot = _Lot(f"cldr-ende {number}")
        english, german = lot.of(SENTENCES)
        slots = {slot for slot in _SLOTS if f"{{{slot}}}" in english}
        values = {slot: _SLOTS[slot](tables, lot) for slot in sorted(slots)}
        pair = [
            text.format_map({slot: value[side] for slot, value in values.items()}) for side, text in enumerate((english, german))
        ]
        # The tables have unbreakable spaces, narrow ones too.
        yield " ".join(pair[0].split()), " ".join(pair[1].split())
        number += 1


_KINDS: Mapping[str, Callable[[_Tables, _Lot], Pair]] = {
    "amount": _Tables.amount,
    "coming": _Tables.coming,
    "date": _Tables.date,
    "decimal": _Tables.decimal,
    "language": _Tables.language,
    "language_list": _Tables.language_list,
    "measure": _Tables.measure,
    "number": _Tables.number,
    "past": _Tables.past,
    "percentage": _Tables.percentage,
    "territory": _Tables.territory,
    "territory_list": _Tables.territory_list,
    "time": _Tables.time,
}
_SLOTS: Mapping[str, Callable[[_Tables, _Lot], Pair]] = {**_KINDS, **{f"{name}2": make for name, make in _KINDS.items()}}
