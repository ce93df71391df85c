"""The report's languages. English sentences are the keys; `locales/<language>.yaml` says what stands in their place.

Numbers, percentages and dates are written as the Unicode CLDR has them for the language, by Babel.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from babel.dates import format_datetime
from babel.numbers import format_decimal, format_percent
from markupsafe import Markup, escape

from ..results import Quantity, Sentence, format_value
from .bands import Band
from .rules import read_yaml

LANGUAGES = {"en": "English", "tr": "Türkçe"}
_LARGEST = 1e15  # number that is written out; Babel rounds to 28 digits at most, and infinity has none


class Word(str):
    """A term of this book's, such as an advice, that a sentence names and that has a translation."""


@dataclass(frozen=True)
class Language:
    """A language and its sentences. What has no translation stays English."""

    code: str
    sentences: dict[str, str]

    @classmethod
    def load(cls, code: str) -> "Language":
        """
        Raises:
            ValueError: the report is not written in this language.
        """
        if code not in LANGUAGES:
            raise ValueError(f"language {code!r}: expected one of {', '.join(map(repr, LANGUAGES))}")
        return cls(code, {} if code == "en" else read_yaml(f"locales/{code}.yaml"))

    def text(self, sentence: str, **values: Any) -> str:
        """The sentence in this language, with `{name}` replaced by values."""
        found = self.sentences.get(sentence, sentence)
        return found.format(**self._worded(values)) if values else found

    def html(self, sentence: str, **values: Any) -> Markup:
        """The same for a template, where all of it is text: sentence and values are escaped."""
        found = escape(self.sentences.get(sentence, sentence))
        return found.format(**self._worded(values)) if values else found

    def say(self, sentence: Sentence | str) -> str:
        """A sentence whose values are kept apart, or a text, which is translated where it is a known sentence."""
        return self.text(sentence.text, **sentence.values) if isinstance(sentence, Sentence) else self.text(sentence)

    def amount(self, value: float, unit: str) -> str:
        """A number with its unit, three significant digits: `1.37 s`, `1,37 sn`; a share as a percentage."""
        if unit == "share":
            return format_percent(round(value, 3), locale=self.code, decimal_quantization=False)
        return self._join(*self._split(value, unit))

    def band(self, band: Band | Quantity) -> str:
        """`2.1x to 2.4x`, `11 to 12 ms`; one number where both ends read the same, and a measured quantity's median."""
        if isinstance(band, Quantity):
            if band.value is not None:
                return self.amount(band.value, band.unit)
            band = Band.of(band)
        if band.unit == "share":
            low, high = (self.amount(end, band.unit) for end in (band.low, band.high))
        else:
            (number, symbol), (other, other_symbol) = (self._split(end, band.unit) for end in (band.low, band.high))
            low, high = self._join(number, symbol), self._join(other, other_symbol)
            if symbol == other_symbol and " " in low and low != high:
                low = number
        return low if low == high else self.text("{low} to {high}", low=low, high=high)

    def integer(self, value: int) -> str:
        return format_decimal(value, locale=self.code) if abs(value) < _LARGEST else str(value)

    def when(self, moment: datetime) -> str:
        return format_datetime(moment, "medium", locale=self.code)

    def _split(self, value: float, unit: str) -> tuple[str, str]:
        """Digits of a number in a readable multiple of its unit, and that unit's symbol."""
        if not abs(value) < _LARGEST:
            return f"{value:.3g}", unit
        digits, _, symbol = format_value(value, unit).partition(" ")
        if unit == "x":
            digits, symbol = digits.removesuffix("x"), "x"
        number = Decimal(digits.replace(",", ""))
        return format_decimal(number, locale=self.code, decimal_quantization=False), self.sentences.get(
            f"unit {symbol}", symbol
        )

    def _join(self, number: str, symbol: str) -> str:
        return f"{number}{symbol}" if symbol == "x" else f"{number} {symbol}".strip()

    def _worded(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self._word(name, value) for name, value in values.items()}

    def _word(self, name: str, value: Any) -> Any:
        if isinstance(value, Quantity | Band):
            return self.band(value)
        if isinstance(value, Sentence | Word):
            return self.say(value)
        if isinstance(value, datetime):
            return self.when(value)
        if name.endswith("_points") and value is not None:
            return format_decimal(round(100 * value, 1) + 0.0, "+#,##0.0;-#,##0.0", locale=self.code)
        if type(value) is int:
            return self.integer(value)
        return self.amount(value, "") if isinstance(value, float) else value
