"""Tables for a notebook: text on the left, numbers on the right, and what looks like markup in data stays text."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def show(
    rows: Any,
    columns: Sequence[str] | None = None,
    *,
    formats: Mapping[str, str | Callable[[Any], str]] | None = None,
    missing: str = "",
) -> "Styler":
    """A table without an index.

    Args:
        rows: whatever `pandas.DataFrame(rows, columns=columns)` takes.
        formats: column -> format, such as `"{:.3f}"`.
        missing: what stands for None and NaN.
    """
    import pandas as pd

    table = pd.DataFrame(rows, columns=columns)
    is_number = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    sides = [
        {"selector": f".col{i}", "props": f"text-align: {'right' if number else 'left'}; vertical-align: top"}
        for i, number in enumerate(is_number)
    ]
    return (
        table.style.hide(axis="index")
        .format(formats, escape="html", na_rep=missing)
        .set_table_styles(sides)
        .set_table_attributes('class="tex2jax_ignore"')  # a dollar sign in data is no formula
    )
