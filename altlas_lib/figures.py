"""Figures in one style, saved with a title and an alt text; each package draws its own in its `plots` module."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .devices import GpuSpec
from .paths import RunFolder, write_atomically
from .results import Ceilings, FigureFile

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
def figure(**subplots_arguments) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the book's style: `with figure() as (fig, ax): ...`; shown and closed at the end of the block."""
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(**subplots_arguments)
        try:
            yield fig, axes
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


def draw_roofs(ax: Axes, ceilings: Ceilings | None, target_gpu: GpuSpec) -> None:
    intensity = np.logspace(-1, 4, 200)  # operations per byte moved
    own = (
        ("this CPU, float32", "cpu_copy_bandwidth", "cpu_matmul_float32", "blue"),
        ("this GPU, float32", "gpu_copy_bandwidth", "gpu_matmul_float32", "green"),
        ("this GPU, float16", "gpu_copy_bandwidth", "gpu_matmul_float16", "sky"),
    )
    rates = [(label, getattr(ceilings, copy), getattr(ceilings, product), c) for label, copy, product, c in own if ceilings]
    measured = [row for row in rates if row[1] and row[2]]
    for label, bandwidth, rate, colour in measured:
        low, roof, high = (np.minimum(intensity * getattr(bandwidth, v), getattr(rate, v)) for v in ("low", "value", "high"))
        ax.plot(intensity, roof, color=COLOURS[colour], label=f"{label}, measured")
        ax.fill_between(intensity, low, high, color=COLOURS[colour], alpha=0.2, linewidth=0)
    tflops = (("float32", target_gpu.float32_tflops, "orange"), ("float16", target_gpu.float16_tensor_tflops, "red"))
    for dtype, peak, colour in tflops:
        roof = np.minimum(intensity * target_gpu.memory_bandwidth_gb_per_s, 1000 * peak)
        ax.plot(intensity, roof, "--", color=COLOURS[colour], label=f"{target_gpu.name}, {dtype}, data sheet peak")
    ax.set(xscale="log", yscale="log", xlim=(intensity[0], intensity[-1]))
    where = " and ".join(dict.fromkeys(rate.device for _, _, rate, _ in measured))
    ax.set_xlabel("arithmetic intensity (operations per byte moved)" + (f"\nsolid: measured on {where}" if where else ""))
    ax.set_ylabel("rate (GFLOP/s)" if not ceilings else "highest possible rate (GFLOP/s)")


def short_number(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def end_of_name(name: str) -> str:
    """The end of a long name, which tells functions apart."""
    return name if len(name) <= 40 else f"…{name[-39:]}"


def name_rows(ax: Axes, positions: Sequence[float], names: Sequence[str]) -> None:
    """Names of horizontal bars, the first on top."""
    ax.set_yticks(list(positions), [end_of_name(name) for name in names])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
