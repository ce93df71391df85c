"""What every loader asks of a file, of a name in it and of its rows before anything is returned."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np

from ..names import nearest
from ..paths import data_dir

OnBad = Literal["raise", "skip"]
T = TypeVar("T")

# One number as text, in ASCII: `1.23`, `-4e5`. float() would also take 1_000, nan, infinity and other scripts' digits.
# A run of digits can be matched in one way only: \d+\.?\d* would take the square of its length to refuse it.
ONE_NUMBER = re.compile(r"[ \t]*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?[ \t]*", re.ASCII)

_N_ROWS_SHOWN = 5
_N_NAMES_SHOWN = 50
_N_CHARACTERS_SHOWN = 60


class DataError(ValueError):
    """Data that cannot be used as asked: the message says what was found, what was expected and what to do."""


class BadCellError(Exception):
    """Why a cell is not what its column is read for; never leaves this package."""


@dataclass(frozen=True)
class Unreadable:
    """A row in which the wanted cell could not even be found."""

    content: object
    problem: str


Cell = tuple[int, object]  # a row's number, from 1 and without the header, and what stands there


def existing_file(source: str | Path, suffixes: Iterable[str]) -> Path:
    """The file that `source` names: as given, else of that name in the project's `data/` folder.

    Raises:
        DataError: there is no such file, it is a folder or empty, or its suffix is none of `suffixes`.
    """
    expected = f"expected a file that ends with {', '.join(suffixes)}"
    if not isinstance(source, str | Path) or not str(source).strip():
        raise DataError(f"source is {source!r}: {expected}")
    try:
        given = Path(source).expanduser()
        path = given if given.exists() else data_dir() / given
        if not path.exists():
            near = nearest(given.name, [entry.name for entry in given.parent.iterdir()] if given.parent.is_dir() else [])
            raise DataError(f"there is no file {str(given)!r}, seen from {str(Path.cwd())!r}{near}; correct the path")
        if not path.is_file():
            raise DataError(f"{str(given)!r} is {'a folder' if path.is_dir() else 'no regular file'}: {expected}")
        if path.suffix.lower() not in suffixes:
            raise DataError(f"{path.name!r}: {expected}; convert it, or rename it if it is such a file")
        if not path.stat().st_size:
            raise DataError(f"{path.name!r} is empty (0 bytes): give a file with data")
        path.open("rb").close()  # may it be read?
        path.name.encode()  # a result will name it
    except (
        OSError,
        RuntimeError,
        UnicodeEncodeError,
    ) as error:  # too long, in a folder not to be entered, of nobody
        raise DataError(f"{shown(str(source))} cannot be opened ({getattr(error, 'strerror', error)}); {expected}") from None
    return path


def expect_name(kind: str, wanted: object) -> str | None:
    """`wanted` where it can be a name.

    Raises:
        DataError: it is neither text nor None.
    """
    if wanted is not None and not isinstance(wanted, str):
        raise DataError(f"{kind}={wanted!r}: expected a name as text, or None where there is only one {kind}")
    return wanted


def choose_name(kind: str, wanted: str | None, known: list[str], default: list[str], *, where: str) -> str:
    """`wanted`, if `known` has it; where nothing is wanted the only entry of `default`.

    Raises:
        DataError: no such name, or several to choose from; lists those there are. `kind`, `"column"` or `"table"`, is also
            the parameter that names one.
    """
    if not known:
        raise DataError(f"{where} has no {kind}: give a file with data")
    listed = ", ".join(map(shown, known[:_N_NAMES_SHOWN]))
    if len(known) > _N_NAMES_SHOWN:
        listed += f" and {len(known) - _N_NAMES_SHOWN} more"
    if wanted is None:
        if len(default) != 1:
            raise DataError(
                f"{where}: which {kind}? Pass {kind}= (in a run, -p text_{kind}= or series_{kind}=), one of: {listed}"
            )
        wanted = default[0]
    if wanted not in known:
        raise DataError(f"{where} has no {kind} {shown(wanted)}{nearest(str(wanted), known)}; its {kind}s: {listed}")
    if known.count(wanted) > 1:
        raise DataError(f"{where} has {known.count(wanted)} {kind}s called {shown(wanted)}: rename all but one")
    return wanted


def shown(value: object) -> str:
    """`value` as an error shows it: quoted, escaped and shortened."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        value = value[: 4 * _N_CHARACTERS_SHOWN].decode("utf-8", "surrogateescape")
    text = repr(value) if str(value).isprintable() else ascii(value)  # a terminal would obey or hide the rest
    return text if len(text) <= _N_CHARACTERS_SHOWN else f"{text[:_N_CHARACTERS_SHOWN]}..."


@dataclass
class BadRows:
    """The rows that cannot be used: the first few in words, and how many there are."""

    where: str
    expected: str
    on_bad: OnBad
    remedy: str = 'correct them, or pass on_bad="skip" (in a run, -p on_bad=skip) to leave them out and count them'
    count: int = 0
    first: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_bad not in get_args(OnBad):
            raise DataError(f"on_bad={self.on_bad!r}: expected 'raise' or 'skip'")

    def good(self, cells: Iterable[Cell], convert: Callable[[object], T]) -> Iterator[T]:
        """The cells that `convert` takes, converted; the others are noted."""
        for row, cell in cells:
            if isinstance(cell, Unreadable):
                self.add(row, cell.content, cell.problem)
                continue
            try:
                yield convert(cell)
            except BadCellError as error:
                self.add(row, cell, str(error))

    def add(self, row: int, value: object, problem: str) -> None:
        self.count += 1
        if len(self.first) < _N_ROWS_SHOWN:
            self.first.append(f"row {row}: {shown(value)} ({problem})")

    def settle(self, n_good: int) -> int:
        """How many rows were skipped.

        Raises:
            DataError: there are bad rows that are not to be skipped, or there is no good one.
        """
        if not n_good and not self.count:
            raise DataError(f"{self.where} has no rows: give a file with data")
        if self.count and (self.on_bad == "raise" or not n_good):
            remedy = self.remedy if n_good else "give a file, table or column with data, for no row is left"
            more = f"; and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            raise DataError(
                f"{self.where}: {self.count} of {self.count + n_good} rows hold no {self.expected}: "
                f"{'; '.join(self.first)}{more}. Next: {remedy}"
            )
        return self.count


def load_array(path: Path, n_axes: int) -> np.ndarray:
    """The numbers in a `.npy` file: mapped, not yet read, so that a header that lies about the size cannot fill the memory.

    Raises:
        DataError: it holds no array, pickled objects, or an array of another dtype or number of axes.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # unlike numpy.load it never unpickles, and opens no archive
    except Exception as error:  # of a hostile header NumPy raises nearly any kind, and quotes it
        raise DataError(f"{path.name!r} cannot be read as an array: {str(error)[:200]}; write one with numpy.save") from None
    if array.ndim != n_axes or array.dtype.kind not in "fiu":
        expected = f"numbers with {n_axes} ax{'i' if n_axes == 1 else 'e'}s"
        raise DataError(f"{path.name!r} holds {array.dtype} of shape {array.shape}: expected {expected}")
    return np.asarray(array)  # the same map without memmap's slow access to single elements
