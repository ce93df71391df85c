"""A misspelled name gets the one that was probably meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], n: int = 1) -> str:
    """`"; did you mean 'x'?"` (of up to `n` names, whatever their case), or nothing where no known name is close."""
    spelling = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), spelling, n=n)
    return f"; did you mean {' or '.join(repr(spelling[entry]) for entry in close)}?" if close else ""
