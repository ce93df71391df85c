"""Real input and its checks: texts, their vectors, series, and a generated series whose best possible score is known.

    source = data.load_texts("tickets.csv", column="body")
    vectors = data.embed(source.texts).vectors

    series = data.load_series("game.sqlite", table="rounds", column="multiplier")

Whatever cannot be used is an error that names it (`DataError`), or, with `on_bad="skip"`, a count in the data's `source`.
"""

from .checks import DataError
from .crash import CrashSeries, crash_series
from .embedding import Embedding, embed, load_embedding
from .series import Series, check_series, load_series
from .texts import Texts, check_texts, load_texts

__all__ = [
    "CrashSeries",
    "DataError",
    "Embedding",
    "Series",
    "Texts",
    "check_series",
    "check_texts",
    "crash_series",
    "embed",
    "load_embedding",
    "load_series",
    "load_texts",
]
