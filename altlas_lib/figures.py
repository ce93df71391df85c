"""Figures in one style, saved with a title and an alt text; each package draws its own in its `plots` module."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

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

STYLE = {
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
def figure(*, shown: bool = True, **subplots_arguments) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the book's style: `with figure() as (fig, ax): ...`; shown and closed at the end of the block."""
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(**subplots_arguments)
        try:
            yield fig, axes
            if shown:
                plt.show()
        finally:
            plt.close(fig)


def save_figure(fig: Figure, run: RunFolder, name: str, *, alt: str) -> FigureFile:
    """Write `figures/<name>-<hash>.png` of the run without its titles: a report says them in its reader's language.

    The hash of the content in the name keeps the picture of a valid result when a later execution fails half-way.

    Raises:
        ValueError: no Axes has a title, or `alt` is empty.
    """
    titles = {ax: title for ax in fig.axes if (title := ax.get_title("left"))}
    if not titles or not alt:
        raise ValueError(f"figure {name!r}: expected a title on one of its Axes and an alt text, got {alt!r}")
    for ax in titles:
        ax.set_title("", loc="left")
    drawn, picture = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png")
    for ax, title in titles.items():
        ax.set_title(title, loc="left", wrap=True)  # beside long names of rows there is little space
    # 256 colours are what a figure has, shades of its edges aside: a third of the size, in a report that holds fifteen.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, "PNG", optimize=True)
    digest = hashlib.sha256(picture.getvalue()).hexdigest()
    record = FigureFile(file=f"{name}-{digest[:8]}.png", title="; ".join(titles.values()), alt=alt)
    write_atomically(run.figures / record.file, picture.getvalue())
    return record
