"""Series of numbers from files, each row checked before any is returned."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..results import DataSource
from .checks import ONE_NUMBER, BadCellError, BadRows, Cell, DataError, OnBad, existing_file, expect_name, load_array
from .columns import csv_cells, parquet_cells, sqlite_cells

_DATABASES = (".sqlite", ".sqlite3", ".db")


@dataclass(frozen=True, eq=False)
class Series:
    """Finite numbers in the order of their rows: `values` (n,) float64. `source.sha256` is of the values, not of the file."""

    values: np.ndarray
    source: DataSource


def series_source(values: np.ndarray, name: str, n_skipped: int = 0) -> DataSource:
    sha256 = hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()
    return DataSource(name=name, n_rows=len(values), n_skipped=n_skipped, sha256=sha256)


def load_series(
    source: str | Path,
    *,
    table: str | None = None,
    column: str | None = None,
    minimum: float | None = None,
    on_bad: OnBad = "raise",
) -> Series:
    """The numbers of one column of a file, in the order of its rows.

    Args:
        source: `.csv` (UTF-8, with a header), `.parquet`, `.npy` (one axis), or a SQLite database (`.sqlite`, `.sqlite3`,
            `.db`; opened read-only, rows in the order of `rowid`). A relative path is also looked for in the project's `data/`.
        table: of a SQLite database; may be left out where there is only one.
        column: may be left out where there is only one, or only one of numbers (that is no primary key).
        minimum: the least number that a good row holds, such as 1.0 of multipliers.
        on_bad: what a row gets that holds no such number: NULL, an empty cell, NaN, an infinity, a truth value, text that is
            not exactly one number (`1.23`, `-4e5`: many exports keep numbers as text), two numbers glued to one text, a CSV
            line with another number of fields than the header. Nothing is guessed from such a row.
            `"raise"`, or `"skip"`: left out and counted in `source.n_skipped`.

    Raises:
        DataError: no such file, table or column, a file that is not what its suffix says, a bad row, or no number at all.
    """
    if minimum is not None and not (isinstance(minimum, int | float) and math.isfinite(minimum)):
        raise DataError(f"minimum={minimum!r}: expected a finite number, or None for no bound")
    path, cells = _open(source, table, column)
    bad = BadRows(repr(path.name), "finite number" + ("" if minimum is None else f" of {minimum:g} or more"), on_bad)
    numbers = bad.good(cells, partial(_as_number, minimum=minimum))
    values = np.fromiter(numbers, np.float64)  # 8 bytes a row, where a list of floats takes 32
    return Series(values, series_source(values, path.name, bad.settle(len(values))))


def check_series(source: str | Path, *, table: str | None = None, column: str | None = None) -> None:
    """Look whether `load_series` finds the file, the table and the column; reads its first row.

    Raises:
        DataError: it does not.
    """
    _, cells = _open(source, table, column)
    next(cells, None)


def _open(source: str | Path, table: str | None, column: str | None) -> tuple[Path, Iterator[Cell]]:
    path = existing_file(source, (".csv", ".parquet", ".npy", *_DATABASES))
    suffix, column, table = path.suffix.lower(), expect_name("column", column), expect_name("table", table)
    if table is not None and suffix not in _DATABASES:
        raise DataError(f"{path.name!r} is no SQLite database and has no table {table!r}: leave table out")
    if column is not None and suffix == ".npy":
        raise DataError(f"{path.name!r} is a single array and has no column {column!r}: leave column out")
    if suffix == ".npy":
        return path, enumerate(map(float, load_array(path, n_axes=1)), 1)
    if suffix in _DATABASES:
        return path, sqlite_cells(path, table, column)
    return path, (csv_cells if suffix == ".csv" else parquet_cells)(path, column, numeric=True)


def _as_number(cell: object, minimum: float | None) -> float:
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "surrogateescape")
    if cell is None or cell == "":
        raise BadCellError("no value")
    if isinstance(cell, str) and not ONE_NUMBER.fullmatch(cell):
        raise BadCellError("not one number")
    if isinstance(cell, bool):
        raise BadCellError("a truth value")
    try:
        number = float(cell)
    except TypeError:
        raise BadCellError(f"{type(cell).__name__}, not a number") from None
    if not math.isfinite(number):
        raise BadCellError("not finite")
    if minimum is not None and number < minimum:
        raise BadCellError(f"below {minimum:g}")
    return number
