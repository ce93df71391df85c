"""One column of a CSV file, a Parquet file or a SQLite database, row by row; the other columns are never held in memory."""

import csv
import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .checks import ONE_NUMBER, Cell, DataError, Unreadable, choose_name

_CSV_FIELD_CHARACTERS = 16 * 2**20  # at most, so that a quote that is never closed does not read the rest of a huge file

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


def csv_cells(path: Path, column: str | None, *, numeric: bool = False) -> Iterator[Cell]:
    """A CSV column's cells as text; a line with too many or too few fields is `Unreadable`, invalid UTF-8 a lone surrogate.

    Fields lie between commas; where the header has none, between semicolons or tabs.
    Without `column` the only one is read or, with `numeric`, the only one that starts with a number.
    """
    csv.field_size_limit(_CSV_FIELD_CHARACTERS)
    with (
        _readable_as("UTF-8 CSV", path, csv.Error),
        open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        head = file.readline()
        if any("\udc80" <= character <= "\udcff" for character in head):
            raise DataError(f"the first line of {path.name!r} is not UTF-8: is it CSV? Save it as UTF-8")
        delimiter = next((mark for mark in ",;\t" if mark in head), ",")
        lines = _numbered(csv.reader(itertools.chain([head], file), delimiter=delimiter, strict=True))
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
        n_before = 0
        for batch in file.iter_batches(columns=[column]):
            cells = batch.column(column)
            if pa.types.is_dictionary(cells.type):
                cells = cells.dictionary_decode()
            if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                cells = cells.cast(pa.large_binary())
            yield from enumerate(cells.to_pylist(), n_before + 1)
            n_before += len(cells)


def sqlite_cells(path: Path, table: str | None, column: str | None) -> Iterator[Cell]:
    """The cells of a column of a SQLite table or view, in the order of `rowid` (of the primary key in a table without).

    The database is opened read-only. Without `table` the only one is read; without `column` the only one, or the only one
    that is declared as a number and is no primary key.
    """
    database = f"{path.resolve().as_uri()}?mode=ro"
    with _readable_as("a SQLite database", path, sqlite3.Error), closing(sqlite3.connect(database, uri=True)) as connection:
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
        yield from enumerate((cell for (cell,) in cells), 1)


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
