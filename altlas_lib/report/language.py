"""The report's languages. English sentences are the keys; `locales/<language>.yaml` says what stands in their place."""

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from markupsafe import Markup, escape

from ..results import Quantity, Sentence, format_value
from .bands import Band

LANGUAGES = {"en": "English", "tr": "Türkçe"}


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
        if code == "en":
            return cls(code, {})
        file = resources.files(__package__).joinpath(f"locales/{code}.yaml")
        return cls(code, yaml.safe_load(file.read_text(encoding="utf-8")))

    def text(self, sentence: str, **values: Any) -> str:
        """The sentence in this language, with `{name}` replaced by values."""
        found = self.sentences.get(sentence, sentence)
        return found.format(**self._worded(values)) if values else found

    def html(self, sentence: str, **values: Any) -> Markup:
        """The same for a template, where all of it is text: sentence and values are escaped."""
        found = escape(self.sentences.get(sentence, sentence))
        return found.format(**self._worded(values)) if values else found

    def number(self, number: Quantity | str) -> str:
        """A number or a band: `2.1x to 2.4x`, in other languages `2.1x – 2.4x`."""
        return str(number) if self.code == "en" else str(number).replace(" to ", " – ")

    def say(self, sentence: Sentence | str) -> str:
        """A sentence whose values are kept apart, or a text that is not translated."""
        return self.text(sentence.text, **sentence.values) if isinstance(sentence, Sentence) else sentence

    def band(self, band: Band) -> str:
        """`2.1x to 2.4x`, or one number where both ends read the same."""
        low, high = (self.amount(end, band.unit) for end in (band.low, band.high))
        return low if low == high else self.number(f"{low} to {high}")

    def amount(self, value: float, unit: str) -> str:
        """A number without a spread: `format_value`'s, or for a share a percentage."""
        return f"{value:.1%}" if unit == "share" else format_value(value, unit)

    def _worded(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self._word(name, value) for name, value in values.items()}

    def _word(self, name: str, value: Any) -> Any:
        if isinstance(value, Quantity):
            return self.number(value)
        if isinstance(value, Band):
            return self.band(value)
        if isinstance(value, Sentence):
            return self.say(value)
        if name.endswith("_points"):
            return f"{100 * value:+.1f}"
        if isinstance(value, float):
            return f"{value:.3g}"
        return f"{value:,}" if type(value) is int else value
