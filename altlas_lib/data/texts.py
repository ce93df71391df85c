"""Texts from files, one per row, each checked to be text before any is returned."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..results import DataSource
from .checks import BadCellError, BadRows, Cell, DataError, OnBad, Unreadable, choose_name, existing_file, expect_name
from .columns import bounded_lines, csv_cells, parquet_cells
from .corpus import builtin_texts


@dataclass(frozen=True)
class Texts:
    """Texts in the order of their rows, and where they come from. `source.sha256` is of the texts, not of the file."""

    texts: list[str]
    source: DataSource


def load_texts(
    source: str | Path = "builtin", *, column: str | None = None, limit: int | None = None, on_bad: OnBad = "raise"
) -> Texts:
    """The texts of a file, unchanged and in its order, or of the built-in corpus.

    The corpus is distinct docstrings of 40 characters or more, of the standard library and of the packages that this project
    needs, read from the installed source files, which are parsed and not run. The same installation gives the same texts in the
    same order, a small sample of them from hundreds of files. There are some 38,000; where `limit` asks for more, the texts are
    the distinct paragraphs of the docstrings, over 100,000. 10,000 texts take about 4 s, 100,000 about 15 s.

    Args:
        source: `"builtin"`, the corpus, or a UTF-8 file: `.txt` (a text per line), `.csv`, `.jsonl` or `.ndjson` (an object
            per line), `.parquet`. A relative path is also looked for in the project's `data/` folder.
        column: the column, or JSON key, that holds the texts; may be left out where there is only one.
        limit: stop after so many texts; None: all texts, or all docstrings.
        on_bad: what a row without a text gets: one that is blank, NULL, a number, without the key, not UTF-8, not JSON, or
            a CSV line with another number of fields than the header. `"raise"`, or `"skip"`: counted in `source.n_skipped`.

    Raises:
        DataError: no such file or column, a file that is not what its suffix says, a bad row, or no text at all.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise DataError(f"limit={limit!r}: expected a whole number of at least 1, or None for all texts")
    path, cells = _open(source, column)
    bad = BadRows(repr(path.name), "text", on_bad)
    if source == "builtin":
        name, texts, n_skipped = source, builtin_texts(limit), 0
    else:
        texts = list(itertools.islice(bad.good(cells, _as_text), limit))
        name, n_skipped = path.name, bad.settle(len(texts))
    # 0xff is in no UTF-8, so that no two lists of texts run together to the same bytes.
    sha256 = hashlib.sha256(b"".join(text.encode() + b"\xff" for text in texts)).hexdigest()
    return Texts(texts, DataSource(name=name, n_rows=len(texts), n_skipped=n_skipped, sha256=sha256))


def check_texts(source: str | Path, *, column: str | None = None) -> None:
    """Look whether `load_texts` finds the file and the column; reads its first row.

    Raises:
        DataError: it does not.
    """
    _, cells = _open(source, column)
    next(cells, None)


def _open(source: str | Path, column: str | None) -> tuple[Path, Iterator[Cell]]:
    if source == "builtin":
        if column is not None:
            raise DataError(f"the built-in corpus has no column {column!r}: leave column out, or give a file")
        return Path(source), iter(())
    path = existing_file(source, _READERS)
    return path, _READERS[path.suffix.lower()](path, expect_name("column", column))


def _as_text(cell: object) -> str:
    try:
        text = cell.decode() if isinstance(cell, bytes) else cell
        if not isinstance(text, str):
            raise BadCellError("no value" if text is None else f"{type(text).__name__}, not text")
        text.encode()  # JSON's escapes can spell half a character
    except UnicodeError:
        raise BadCellError("not UTF-8") from None
    if not text.strip():
        raise BadCellError("blank")
    return text


def _lines(path: Path, column: str | None) -> Iterator[Cell]:
    if column is not None:
        raise DataError(f"{path.name!r} is plain text, a text per line: it has no column {column!r}; leave column out")
    with open(path, "rb") as file:
        for row, line in enumerate(bounded_lines(file, path), 1):
            yield row, (line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line).rstrip(b"\r\n")


def _json_lines(path: Path, column: str | None) -> Iterator[Cell]:
    keys: list[str] = []
    found = False
    for row, line in _lines(path, None):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield row, Unreadable(line, f"not JSON: {error}")
            continue
        if not isinstance(item, dict):
            yield row, Unreadable(line, "not a JSON object")
            continue
        keys = keys or list(item)
        column = column if column is not None else choose_name("column", None, keys, keys, where=repr(path.name))
        found = found or column in item
        yield row, item.get(column)
    if keys and not found:
        choose_name("column", column, keys, keys, where=repr(path.name))


_READERS: dict[str, Callable[[Path, str | None], Iterator[Cell]]] = {
    ".txt": _lines,
    ".csv": csv_cells,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": parquet_cells,
}
