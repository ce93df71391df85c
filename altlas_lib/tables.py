"""Tables for notebook and terminal: text on the left, numbers on the right, and what looks like markup in data stays text."""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

_LEAST_TEXT = 10  # characters that a column of text keeps in a narrow terminal

_SHORT_TEXT = 18  # characters that a notebook does not break

_WIDTH = 120  # characters of a line of text in a notebook or a Python prompt

Format = str | Callable[[Any], str]


@dataclass(frozen=True)
class Table:
    """Rows without an index. A notebook shows it by pandas, a terminal by `text`.

    Attributes:
        rows: whatever `pandas.DataFrame(rows, columns=columns)` takes.
        formats: column -> format, such as `"{:.3f}"`.
        missing: what stands for None and NaN.
        folded: a line that a notebook shows instead, until it is clicked; "": the table itself.
    """

    rows: Any
    columns: Sequence[str] | None = None
    formats: Mapping[str, Format] | None = None
    missing: str = ""
    folded: str = ""

    def styler(self) -> "Styler":
        import pandas as pd

        table = pd.DataFrame(self.rows, columns=self.columns).convert_dtypes()  # whole numbers beside a missing one stay whole
        sides = []
        for i, kind in enumerate(table.dtypes):
            is_number = pd.api.types.is_numeric_dtype(kind)
            is_short = is_number or table.iloc[:, i].astype(str).str.len().max() <= _SHORT_TEXT
            side = "right" if is_number else "left"
            sides.append({"selector": f".col{i}", "props": f"text-align: {side}; vertical-align: top"})
            sides.append({"selector": f"td.col{i}", "props": f"white-space: {'nowrap' if is_short else 'normal'}"})
        return (
            table.style.hide(axis="index")
            .format(self.formats, escape="html", na_rep=self.missing)
            .format_index(lambda name: str(name).replace("_", " "), axis="columns", escape="html")
            .set_table_styles(sides)
            .set_table_attributes('class="tex2jax_ignore"')  # a dollar sign in data is no formula
        )

    def to_html(self) -> str:
        table = self.styler().to_html()
        return f"<details><summary>{html.escape(self.folded)}</summary>{table}</details>" if self.folded else table

    _repr_html_ = to_html

    def text(self, width: int, *, title: str = "", columns: Sequence[str] | None = None) -> str:
        """Of rows that are dictionaries: plain text of at most `width` characters a line; empty without rows.

        Args:
            columns: these only; None: all. What is too long for its column goes on in the next line.
        """
        if not self.rows:
            return ""
        import rich.box
        import rich.console
        import rich.table
        import rich.text

        shown = rich.table.Table(
            box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title or None, title_justify="left"
        )
        columns = list(columns or self.rows[0])
        for column in columns:
            values = [row[column] for row in self.rows if row[column] is not None]
            is_number = bool(values) and all(isinstance(value, int | float) for value in values)
            longest = max(len(self._cell(column, row[column])) for row in self.rows)
            shown.add_column(
                column,
                justify="right" if is_number else "left",
                min_width=longest if is_number else min(longest, _LEAST_TEXT),  # a long text must not squeeze the others out
                overflow="fold",
            )
        for row in self.rows:
            shown.add_row(*(rich.text.Text(self._cell(column, row[column])) for column in columns))
        console = rich.console.Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
        console.print(shown)
        return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines())

    def _cell(self, column: str, value: Any) -> str:
        if value is None:
            return self.missing
        how = (self.formats or {}).get(column, "{}")
        return plain(how(value) if callable(how) else how.format(value))


show = Table


def plain(text: str) -> str:
    """Text from data that must not steer the terminal: what is not printable is written as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ShownAsTable:
    """Mixin for results: `repr` and a notebook show what `_summary` gives, the answer in a sentence above a short table."""

    def _summary(self) -> tuple[str, Table]:
        raise NotImplementedError

    def __repr__(self) -> str:
        said, table = self._summary()
        return "\n".join(filter(None, [*map(plain, said.splitlines()), table.text(_WIDTH)]))

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        said, table = self._summary()
        try:
            return f"<p>{html.escape(said).replace(chr(10), '<br>')}</p>{table.to_html()}"
        except ModuleNotFoundError:  # pandas, which the light core does without: the notebook then shows the text
            return None
