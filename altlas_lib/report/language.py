"""The report's languages. English sentences are the keys; `locales/<language>.yaml` says what stands in their place, and
`locales/<language>_chapters.yaml` in that of what the chapters wrote.

Numbers, percentages and dates are written as the Unicode CLDR has them for the language, by Babel.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from babel.dates import format_datetime
from babel.numbers import format_decimal, format_percent

from ..results import Quantity, format_value
from .bands import Band
from .rules import read_yaml

LANGUAGES = ("en", "tr")
_LARGEST = 1e15  # number that is written out; Babel rounds to 28 digits at most, and infinity has none
_LONGEST = 1000  # characters of a chapter's text that are looked at

_NUMBER = re.compile(
    r"([+-]?(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,9})?)(%|x| (?:ms|s|µs|min|bytes|KiB|MiB|GiB|GB|GB/s|GFLOP/s|TFLOP/s))?"
)
# Values of a pattern: what some of them are, where others are any text, and which are names that no translation touches.
_VALUES = {"share": _NUMBER.pattern, "n": _NUMBER.pattern, "library": "[^,]+", "percent": r"\d+%"}
_NAMES = ("function", "version", "way", "workload")


def _pattern(sentence: str) -> re.Pattern:
    """Texts that read as the sentence; a value goes on to where the next words first stand. All groups but the last are atomic,
    so that no text takes long.
    """
    first, *others = re.split(r"{(\w+)}", sentence)
    pairs = zip(others[::2], others[1::2], strict=True)
    *groups, last = [f"(?P<{name}>{_VALUES.get(name, '.+?')}){re.escape(after)}" for name, after in pairs]
    return re.compile(re.escape(first) + "".join(f"(?>{group})" for group in groups) + last, re.DOTALL)


class Sentence:
    """A sentence of the report's own, which its values are filled into in the reader's language; without any, a text of a
    chapter's, such as an advice, which is recognised there.
    """

    def __init__(self, text: str, /, **values: Any) -> None:
        self.text, self.values = str(text), values


@dataclass(frozen=True)
class Language:
    """A language and its sentences. What has no translation stays English."""

    code: str
    sentences: dict[str, str]
    patterns: list[tuple[re.Pattern, str]]

    @classmethod
    def load(cls, code: str) -> "Language":
        """
        Raises:
            ValueError: the report is not written in this language.
        """
        if code not in LANGUAGES:
            raise ValueError(f"language {code!r}: expected one of {', '.join(map(repr, LANGUAGES))}")
        if code == "en":
            return cls(code, {}, [])
        found = read_yaml(f"locales/{code}_chapters.yaml")
        patterns = [(_pattern(sentence), other) for sentence, other in found.items() if "{" in sentence]
        return cls(code, found | read_yaml(f"locales/{code}.yaml"), patterns)

    def text(self, sentence: str, wrap: Callable[[str], str] = str, /, **values: Any) -> str:
        """The sentence in this language, with `{name}` replaced by values; `wrap=escape`: for HTML, where all of it is text."""
        found = wrap(self.sentences.get(sentence, sentence))
        return found.format(**{name: self.write(value, name) for name, value in values.items()}) if values else found

    def say(self, sentence: Sentence | str) -> str:
        """A sentence, or a chapter's text: in this language, as far as that is known."""
        if isinstance(sentence, Sentence):
            return self.text(sentence.text, **sentence.values) if sentence.values else self.say(sentence.text)
        if self.code == "en":
            return sentence
        return self.recognise(sentence) or "; ".join(self.recognise(part) or part for part in sentence.split("; "))

    def recognise(self, text: str) -> str | None:
        """A chapter's finished text in this language: a known sentence, a number, a list of known texts, or a known pattern,
        whose values are recognised in turn; None where it is none of these.
        """
        if text in self.sentences or len(text) > _LONGEST:
            return self.sentences.get(text)
        # The last value of a pattern would swallow the next entry of a list, a list the halves of a pattern's interval.
        return (
            self._number(text)
            or self._list(text, "; ")
            or self._list(text, " and ")
            or self._match(text)
            or self._list(text, ", ")
            or self._list(re.sub(r"x to (?=[\d.,]+x$)", " to ", text), " to ")  # the unit once: 1.4 to 4.5x
        )

    def _list(self, text: str, separator: str) -> str | None:
        parts = [self.recognise(part) for part in text.split(separator)] if separator in text else [None]
        return None if None in parts else self.sentences.get(separator, separator).join(parts)

    def _match(self, text: str) -> str | None:
        for pattern, other in self.patterns:
            if found := pattern.fullmatch(text):
                values = found.groupdict()
                said = {name: self.recognise(value) or value for name, value in values.items() if name not in _NAMES}
                return other.format(**values | said)
        return None

    def _number(self, text: str) -> str | None:
        """An English number with its unit."""
        if not (found := _NUMBER.fullmatch(text)):
            return None
        digits, symbol = found.groups("")
        return text if digits.isdigit() and not symbol else self._localise(digits, symbol)  # 2024 may be the name of a file

    def _localise(self, digits: str, symbol: str) -> str:
        """English digits, with their sign, and a unit as this language writes them."""
        sign = digits[0].strip("0123456789")
        number = Decimal(digits.removeprefix(sign).replace(",", ""))
        pattern = "#,##0." + "0" * -number.as_tuple().exponent
        written = format_decimal(number, pattern.rstrip("."), locale=self.code)
        if symbol == "%":
            return sign + format_percent(0.01, locale=self.code).replace("1", written)
        unit = self.sentences.get(f"unit {symbol.strip()}", symbol.strip())
        return f"{sign}{written}{'' if unit == 'x' else ' '}{unit}".strip()

    def amount(self, value: float, unit: str) -> str:
        """A number with its unit, three significant digits: `1.37 s`, `1,37 sn`; a share as a percentage."""
        if not abs(value) < _LARGEST:
            return f"{value:.3g} {unit}".strip()
        if unit == "share":
            return self._localise(f"{round(100 * value, 1):.12g}", "%")
        digits, _, symbol = format_value(value, unit).partition(" ")
        return self._localise(digits.removesuffix("x"), "x" if unit == "x" else symbol)

    def band(self, band: Band | Quantity) -> str:
        """`2.1x to 2.4x`, `11 to 12 ms`; one number where both ends read the same, and a measured quantity's median."""
        if isinstance(band, Quantity) and band.value is not None:
            return self.amount(band.value, band.unit)
        low, high = (self.amount(end, band.unit) for end in (band.low, band.high))
        number, _, symbol = low.partition(" ")
        if low == high:
            return low
        return self.text("{low} to {high}", low=number if symbol == high.partition(" ")[2] else low, high=high)

    def write(self, value: Any, name: str = "") -> Any:
        """A value of a sentence in this language; by its name a difference in points. A text of others stays."""
        match value:
            case Quantity() | Band():
                return self.band(value)
            case Sentence():
                return self.say(value)
            case datetime():
                return format_datetime(value, "medium", locale=self.code)
            case int() | float() if name.endswith("_points"):
                return self._localise(f"{round(100 * value, 1) + 0.0:+.1f}", "")
            case int() | float() if not isinstance(value, bool):
                return self.amount(value, "")
        return value
