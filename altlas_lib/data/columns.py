"""One column of a CSV file, a Parquet file or a SQLite database, row by row; the other columns are never held in memory."""

import csv
import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from .checks import ONE_NUMBER, Cell, DataError, Unreadable, choose_name

# Of a line, and of what stands in a row: so that a quote that is never closed, or a file without line ends, is not read whole.
MAX_LENGTH = 16 * 2**20
# A file of a few bytes can say that a value stands there a billion times, and a view can make rows without end.
MAX_ROWS = 10**8
ROW_TIME_LIMIT_S = 60.0  # for SQLite to come to the next row

_SQLITE_TABLES = (
    r"SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
)
_SQLITE_NUMBERS = ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC")  # in a declared type


@contextmanager
def _readable_as(kind: str, path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (*errors, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path.name!r} cannot be read as {kind}: {reason}; give a complete file of that format") from None


def bounded_lines(file: IO, path: Path) -> Iterator:
    """The lines of an open file.

    Raises:
        DataError: one is longer than `MAX_LENGTH`.
    """
    for row, line in enumerate(iter(lambda: file.readline(MAX_LENGTH), file.read(0)), 1):
        if len(line) == MAX_LENGTH:
            raise DataError(f"line {row} of {path.name!r} is {MAX_LENGTH:,} characters or longer: is it a text file?")
        yield line


def csv_cells(path: Path, column: str | None, *, numeric: bool = False) -> Iterator[Cell]:
    """A CSV column's cells as text; a line with too many or too few fields is `Unreadable`, invalid UTF-8 a lone surrogate.

    Fields lie between commas; where the header has none, between semicolons or tabs.
    Without `column` the only one is read or, with `numeric`, the only one that starts with a number.
    """
    csv.field_size_limit(MAX_LENGTH)
    with (
        _readable_as("UTF-8 CSV", path, csv.Error),
        open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        rest = bounded_lines(file, path)
        head = next(rest, "")
        if any("\udc80" <= character <= "\udcff" for character in head):
            raise DataError(f"the first line of {path.name!r} is not UTF-8: is it CSV? Save it as UTF-8")
        delimiter = next((mark for mark in ",;\t" if mark in head), ",")
        lines = _numbered(csv.reader(itertools.chain([head], rest), delimiter=delimiter, strict=True))
        names = next(lines)
        first = list(itertools.islice(lines, 1))
        numbers = [name for fields in first for name, cell in zip(names, fields, strict=False) if ONE_NUMBER.fullmatch(cell)]
        index = names.index(choose_name("column", column, names, numbers if numeric else names, where=repr(path.name)))
        for row, fields in enumerate(itertools.chain(first, lines), 1):
            if len(fields) == len(names):
                yield row, fields[index]
            else:
                problem = f"{len(fields)} field{'s' * (len(fields) != 1)}, expected {len(names)}"
                yield row, Unreadable(delimiter.join(fields), problem)


def _numbered(reader) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise csv.Error(f"{error} at line {reader.line_num}") from None


def parquet_cells(path: Path, column: str | None, *, numeric: bool = False) -> Iterator[Cell]:
    """A Parquet column's cells as Python objects; text as bytes, which the file need not have checked to be UTF-8.

    Without `column` the only one is read or, with `numeric`, the only one of a numeric type.
    """
    import pyarrow as pa
    from pyarrow import parquet

    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    with _readable_as("Parquet", path, pa.ArrowException), parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        numbers = [field.name for field in file.schema_arrow if any(is_kind(field.type) for is_kind in is_number)]
        column = choose_name("column", column, names, numbers if numeric else names, where=repr(path.name))
        if file.metadata.num_rows > MAX_ROWS:
            raise DataError(
                f"{path.name!r} has {file.metadata.num_rows:,} rows: expected at most {MAX_ROWS:,}; give a part of it"
            )
        n_before = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            cells = batch.column(column)
            if pa.types.is_dictionary(cells.type):
                cells = cells.dictionary_decode()
            if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                cells = cells.cast(pa.large_binary())
            yield from enumerate(_as_python(cells), n_before + 1)
            n_before += len(cells)


def _as_python(cells) -> list[object]:
    try:
        return cells.to_pylist()
    except (OverflowError, ValueError):  # a date that Arrow knows and Python does not
        return [_one_as_python(cell) for cell in cells]


def _one_as_python(cell) -> object:
    try:
        return cell.as_py()
    except (OverflowError, ValueError) as error:
        return Unreadable(str(cell.type), f"beyond what Python has: {error}")


def sqlite_cells(path: Path, table: str | None, column: str | None) -> Iterator[Cell]:
    """The cells of a column of a SQLite table or view, in the order of `rowid` (of the primary key in a table without).

    The database is opened read-only. Without `table` the only one is read; without `column` the only one, or the only one
    that is declared as a number and is no primary key.
    """
    database = f"{path.resolve().as_uri()}?mode=ro"
    with _readable_as("a SQLite database", path, sqlite3.Error), closing(sqlite3.connect(database, uri=True)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_LENGTH)
        started = time.monotonic()
        connection.set_progress_handler(lambda: time.monotonic() - started > ROW_TIME_LIMIT_S, 100_000)  # each 100,000 steps
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")  # so that bad text reaches the checks
        kinds = dict(connection.execute(_SQLITE_TABLES))
        table = choose_name("table", table, list(kinds), list(kinds), where=repr(path.name))
        columns = connection.execute("SELECT name, type, pk FROM pragma_table_info(?)", (table,)).fetchall()
        names = [name for name, _, _ in columns]
        numbers = [name for name, declared, key in columns if not key and any(w in declared.upper() for w in _SQLITE_NUMBERS)]
        where = f"table {table!r} of {path.name!r}"
        column = choose_name("column", column, names, names if len(names) == 1 else numbers, where=where)
        order = _row_order(connection, table, columns) if kinds[table] == "table" else ""
        cells = connection.execute(f"SELECT {_quoted(column)} FROM {_quoted(table)} {order}")
        for row, (cell,) in enumerate(cells, 1):
            if row > MAX_ROWS:
                raise DataError(f"{where} has more than {MAX_ROWS:,} rows; give a table with fewer")
            yield row, cell
            started = time.monotonic()


def _row_order(connection: sqlite3.Connection, table: str, columns: list[tuple[str, str, int]]) -> str:
    """An ORDER BY clause: left to itself, SQLite reads a single column from an index on it, in the order of its values."""
    taken = {name.lower() for name, _, _ in columns}
    rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)
    if rowid is None:
        return "NOT INDEXED"
    try:
        connection.execute(f"SELECT {rowid} FROM {_quoted(table)} LIMIT 0")
        return f"ORDER BY {rowid}"
    except sqlite3.OperationalError:  # a WITHOUT ROWID table, which has a primary key
        keys = sorted((position, name) for name, _, position in columns if position)
        return f"ORDER BY {', '.join(_quoted(name) for _, name in keys)}"


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
