"""Figures: each function draws into an Axes and returns it; the title states the message, the axes carry units."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .paths import RunFolder, write_atomically
from .results import FigureFile

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#6B6B6B",
}

_STYLE = {
    "figure.figsize": (8, 4.5),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": mpl.cycler(color=list(COLOURS.values())),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 11,
    "legend.frameon": False,
}


@contextmanager
def figure(**subplots_arguments) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the book's style: `with figure() as (fig, ax): ...`; shown and closed at the end of the block."""
    with mpl.rc_context(_STYLE):
        fig, axes = plt.subplots(**subplots_arguments)
        try:
            yield fig, axes
            plt.show()
        finally:
            plt.close(fig)


def save_figure(fig: Figure, run: RunFolder, name: str, *, alt: str) -> FigureFile:
    """Write `figures/<name>.png` of the run atomically; the title is the first Axes' one.

    Raises:
        ValueError: the figure has no title, or `alt` is empty.
    """
    title = fig.axes[0].get_title("left") if fig.axes else ""
    if not title or not alt:
        raise ValueError(f"figure {name!r}: expected a title on its first Axes and an alt text, got {title!r} and {alt!r}")
    picture = io.BytesIO()
    fig.savefig(picture, format="png", metadata={"Software": None})
    record = FigureFile(file=f"{name}.png", title=title, alt=alt)
    write_atomically(run.figures / record.file, picture.getvalue())
    return record
