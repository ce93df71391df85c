"""Figures of chapter 20: time and memory of a search against the number of texts.

Each function draws into an Axes and returns it; the title states the message, the axes carry units.
"""

from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes

from ..figures import COLOURS
from ..results import Timing, format_value


def similarity_times(ax: Axes, timings: Sequence[Timing], expectations: Sequence[Timing] = ()) -> Axes:
    """Time against the number of texts, both logarithmic, one line per method, bars from the fastest run to the slowest.

    Bands are what arithmetic expects of each device.
    """
    for (method, device), of_method in _by_method(timings).items():
        times = [timing.time for timing in of_method]
        bars = [[time.value - time.low for time in times], [time.high - time.value for time in times]]
        sizes = [timing.n_texts for timing in of_method]
        ax.errorbar(sizes, [time.value for time in times], yerr=bars, marker="o", capsize=3, label=f"{method}\n{device}")
    sizes = sorted({timing.n_texts for timing in timings})
    for on_gpu, colour, what in ((False, "grey", "float32 products alone"), (True, "sky", "projected, not run")):
        band = sorted((each for each in expectations if each.on_gpu == on_gpu), key=lambda each: each.n_texts)
        if band:
            bounds = [[getattr(each.time, bound) for each in band] for bound in ("low", "high")]
            label = f"{what}\n{band[0].time.device}"
            ax.fill_between([each.n_texts for each in band], *bounds, color=COLOURS[colour], alpha=0.4, label=label)
    ax.set(xscale="log", yscale="log", xlabel="texts", ylabel="time (s)")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    ax.set_xticks([], minor=True)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_title(_times_title(timings))
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.15), ncols=2, fontsize=8)
    return ax


def _times_title(timings: Sequence[Timing]) -> str:
    """The medians at the largest size: of the fastest method on the CPU and, where there is one, on the GPU."""
    n = max(timing.n_texts for timing in timings)
    at_largest = [timing for timing in timings if timing.n_texts == n and timing.with_transfers]
    at_largest.sort(key=lambda timing: timing.time.value)
    fastest = {timing.on_gpu: timing for timing in reversed(at_largest)}.values()
    return f"{n:,} texts: median " + ", ".join(f"{each.time} ({each.method})" for each in fastest)


def similarity_memory(ax: Axes, timings: Sequence[Timing], *, memory_bytes: int) -> Axes:
    """Peak memory against the number of texts, as measured, beside the size of an n x n matrix of float32.

    Args:
        memory_bytes: the host memory of this machine.
    """
    sizes = sorted({timing.n_texts for timing in timings})
    beyond = [*sizes, 100_000, 1_000_000]
    matrix_bytes = [4 * n**2 for n in beyond]
    ax.plot(beyond, matrix_bytes, "--", color=COLOURS["grey"], label="the n × n matrix itself: 4 n² bytes, by arithmetic")
    of_machine = f"memory of this machine: {format_value(memory_bytes, 'bytes')}"
    ax.axhline(memory_bytes, color=COLOURS["red"], linewidth=1, label=of_machine)
    for (method, device), of_method in _by_method(timing for timing in timings if timing.peak_memory).items():
        peaks = [timing.peak_memory.value for timing in of_method]
        ax.plot([timing.n_texts for timing in of_method], peaks, marker="o", label=f"{method}, measured\n{device}")
    ax.set(xscale="log", xlabel="texts", ylabel="memory beyond the vectors")
    ax.set_yscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_locator(mpl.ticker.LogLocator(base=32))
    ax.yaxis.set_major_formatter(lambda value, _: format_value(value, "bytes"))
    n = 100_000
    ax.set_title(f"{n:,} texts: the matrix alone would take {format_value(4 * n**2, 'bytes')}")
    ax.legend(loc="lower right", fontsize=8)
    return ax


def _by_method(timings: Iterable[Timing]) -> dict[tuple[str, str], list[Timing]]:
    """Timings of each method and device, by size."""
    methods: dict[tuple[str, str], list[Timing]] = {}
    for timing in sorted(timings, key=lambda timing: timing.n_texts):
        methods.setdefault((timing.method, timing.time.device), []).append(timing)
    return methods
