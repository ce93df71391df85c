"""Figures: each function draws into an Axes and returns it; the title states the message, the axes carry units."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from .devices import GpuSpec
from .paths import RunFolder, write_atomically
from .results import (
    Candidate,
    Ceilings,
    Epoch,
    Expectation,
    FigureFile,
    Metric,
    Quality,
    Quantity,
    Remedy,
    Timing,
    WorkloadProfile,
    format_value,
)

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
    """Write `figures/<name>-<hash>.png` of the run; the title is the first Axes' one.

    The hash of the content in the name keeps the picture of a valid result when a later execution fails half-way.

    Raises:
        ValueError: the figure has no title, or `alt` is empty.
    """
    title = fig.axes[0].get_title("left") if fig.axes else ""
    if not title or not alt:
        raise ValueError(f"figure {name!r}: expected a title on its first Axes and an alt text, got {title!r} and {alt!r}")
    _keep_titles_inside(fig)
    drawn, picture = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png")
    # 256 colours are what a figure has, shades of its edges aside: a third of the size, in a report that holds fifteen.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, "PNG", optimize=True)
    digest = hashlib.sha256(picture.getvalue()).hexdigest()
    record = FigureFile(file=f"{name}-{digest[:8]}.png", title=title, alt=alt)
    write_atomically(run.figures / record.file, picture.getvalue())
    return record


def _keep_titles_inside(fig: Figure) -> None:
    """Begin a title that would be cut off at the right further left, beside long names of rows."""
    fig.draw_without_rendering()
    for ax in fig.axes:
        for text in ax.get_children():
            if isinstance(text, Text) and text.get_text() and text.get_text() == ax.get_title("left"):
                beyond = text.get_window_extent().x1 - fig.bbox.x1 + 5
                if beyond > 0:
                    text.set_x(text.get_position()[0] - beyond / ax.bbox.width)


# Chapter 00 ----------------------------------------------------------------------------------------------------------


def matrix_rates(ax: Axes, ceilings: Ceilings, target_gpu: GpuSpec) -> Axes:
    """Matrix product rates: as measured on this machine, beside the peak that the target GPU's data sheet states."""
    measured = {
        "this CPU\nfloat32": ceilings.cpu_matmul_float32,
        "this GPU\nfloat32": ceilings.gpu_matmul_float32,
        "this GPU\nfloat16 tensor cores": ceilings.gpu_matmul_float16,
    }
    peaks = {
        f"{target_gpu.name}\nfloat32": 1000 * target_gpu.float32_tflops,
        f"{target_gpu.name}\nfloat16 tensor cores": 1000 * target_gpu.float16_tensor_tflops,
    }
    _measured_beside_peaks(ax, "matrix product rate", measured, peaks)
    ratio = 1000 * target_gpu.float32_tflops / ceilings.cpu_matmul_float32.value
    ax.set_title(f"{target_gpu.name} on paper: {_times(ratio)} this CPU's float32 rate")
    return ax


def copy_bandwidths(ax: Axes, ceilings: Ceilings, target_gpu: GpuSpec) -> Axes:
    """Memory bandwidths, bytes read and written: as measured on this machine, beside the target GPU's data-sheet peak."""
    measured = {
        "this CPU\nmemory": ceilings.cpu_copy_bandwidth,
        "this GPU\nmemory": ceilings.gpu_copy_bandwidth,
        "host to GPU\npageable": ceilings.host_to_device_pageable,
        "host to GPU\npinned": ceilings.host_to_device_pinned,
    }
    _measured_beside_peaks(ax, "bandwidth", measured, {f"{target_gpu.name}\nmemory": target_gpu.memory_bandwidth_gb_per_s})
    ratio = target_gpu.memory_bandwidth_gb_per_s / ceilings.cpu_copy_bandwidth.value
    ax.set_title(f"{target_gpu.name} on paper: {_times(ratio)} this CPU's memory bandwidth")
    return ax


def roofline(ax: Axes, ceilings: Ceilings, target_gpu: GpuSpec) -> Axes:
    """The rate that memory and arithmetic allow at each arithmetic intensity (Williams, Waterman and Patterson 2009).

    Solid: measured on this machine, with the band from the slowest to the fastest run. Dashed: the data sheet of the target.
    """
    _draw_roofs(ax, ceilings, target_gpu)
    ratio = ceilings.cpu_matmul_float32.value / ceilings.cpu_copy_bandwidth.value
    ax.set_title(f"Memory sets this CPU's pace below {ratio:.2g} operations per byte")
    ax.legend(loc="upper left", fontsize=9)
    return ax


def _draw_roofs(ax: Axes, ceilings: Ceilings | None, target_gpu: GpuSpec) -> None:
    intensity = np.logspace(-1, 4, 200)  # operations per byte moved
    measured = []
    if ceilings:
        on_cpu = ("this CPU, float32, measured", ceilings.cpu_copy_bandwidth, ceilings.cpu_matmul_float32, "blue")
        measured.append(on_cpu)
    if ceilings and ceilings.gpu_copy_bandwidth:
        on_gpu = (("float32", ceilings.gpu_matmul_float32, "green"), ("float16", ceilings.gpu_matmul_float16, "sky"))
        measured += [(f"this GPU, {dtype}, measured", ceilings.gpu_copy_bandwidth, rate, c) for dtype, rate, c in on_gpu]
    for label, bandwidth, rate, colour in measured:
        low, roof, high = (np.minimum(intensity * getattr(bandwidth, v), getattr(rate, v)) for v in ("low", "value", "high"))
        ax.plot(intensity, roof, color=COLOURS[colour], label=label)
        ax.fill_between(intensity, low, high, color=COLOURS[colour], alpha=0.2, linewidth=0)
    tflops = (("float32", target_gpu.float32_tflops, "orange"), ("float16", target_gpu.float16_tensor_tflops, "red"))
    for dtype, peak, colour in tflops:
        roof = np.minimum(intensity * target_gpu.memory_bandwidth_gb_per_s, 1000 * peak)
        ax.plot(intensity, roof, "--", color=COLOURS[colour], label=f"{target_gpu.name}, {dtype}, data sheet peak")
    ax.set(xscale="log", yscale="log", xlim=(intensity[0], intensity[-1]))
    where = " and ".join(dict.fromkeys(rate.device for _, _, rate, _ in measured))
    ax.set_xlabel("arithmetic intensity (operations per byte moved)" + (f"\nsolid: measured on {where}" if where else ""))
    ax.set_ylabel("rate (GFLOP/s)" if not ceilings else "highest possible rate (GFLOP/s)")


def _measured_beside_peaks(
    ax: Axes, quantity: str, measured: Mapping[str, Quantity | None], peaks: Mapping[str, float]
) -> None:
    """One row per rate, on a logarithmic axis: a dot with its spread for a measurement, a hollow diamond for a data sheet."""
    rates = {label: rate for label, rate in measured.items() if rate is not None}
    values, lows, highs = ([getattr(rate, name) for rate in rates.values()] for name in ("value", "low", "high"))
    unit = next(iter(rates.values())).unit
    rows = range(len(rates) + len(peaks))

    spread = np.abs(np.array([lows, highs]) - values)
    ax.errorbar(values, rows[: len(rates)], xerr=spread, fmt="o", color=COLOURS["blue"], capsize=4, label="measured")
    ax.plot([*peaks.values()], rows[len(rates) :], "D", color=COLOURS["orange"], fillstyle="none", label="data sheet peak")
    texts = [*map(str, rates.values()), *(format_value(peak, unit) for peak in peaks.values())]
    for row, right_end, text in zip(rows, [*highs, *peaks.values()], texts, strict=True):
        ax.annotate(text, (right_end, row), (8, 0), textcoords="offset points", va="center")

    ax.set(xscale="log", yticks=rows, yticklabels=[*rates, *peaks], ylim=(rows[-1] + 0.6, -1.2))
    least, most = min(*lows, *peaks.values()), max(*highs, *peaks.values())
    ax.set_xlim(10 ** np.floor(np.log10(least)), 10 ** (np.ceil(np.log10(most)) + 1))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    where = " and ".join(dict.fromkeys(rate.device for rate in rates.values()))
    ax.set_xlabel(f"{quantity} ({unit})\ndots: measured on {where}")
    ax.legend(loc="upper right", fontsize=9, ncols=2)


def _times(ratio: float) -> str:
    return f"{_short(ratio)}x"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


# Chapter 10 ----------------------------------------------------------------------------------------------------------


def function_shares(ax: Axes, profile: WorkloadProfile, *, n_functions: int = 6) -> Axes:
    """Horizontal bars: the own share of the `n_functions` first functions of a profile, as each tool saw it."""
    functions = profile.functions[:n_functions]
    bars = {"under cProfile": (COLOURS["orange"], [100 * (profile.cprofile_share(function) or 0) for function in functions])}
    if profile.n_samples:
        sampled = [100 * function.sampled_own_share for function in functions]
        bars = {f"py-spy, {profile.n_samples:,} samples": (COLOURS["blue"], sampled), **bars}
    height = 0.8 / len(bars)
    for i, (label, (colour, shares)) in enumerate(bars.items()):
        drawn = ax.barh([row + i * height for row in range(len(functions))], shares, height, label=label, color=colour)
        ax.bar_label(drawn, fmt="%.0f", padding=3)
    _rows(ax, [row + (len(bars) - 1) * height / 2 for row in range(len(functions))], [f.name for f in functions])
    ax.margins(x=0.08)
    ax.set_xlabel("own share of the workload's time, library code included (%)")
    ax.legend(loc="lower right")
    if functions:
        share = profile.share(functions[0])
        whole = f"{share:.0%} of {profile.total}" if profile.total else f"{share:.0%}"
        ax.set_title(f"{profile.workload}: {whole} is spent in {functions[0].name}")
    return ax


_CLASS_COLOURS = {
    "interpreter": "orange",
    "regex": "red",
    "parsing": "purple",
    "arrays": "blue",
    "framework": "sky",
    "other native": "green",
    "waiting": "grey",
}


def time_classes(ax: Axes, profiles: Sequence[WorkloadProfile], *, n_functions: int = 4) -> Axes:
    """One stacked bar for each of the first functions: its share of the workload, by what the innermost native frame did."""
    functions = [
        (profile.workload, function)
        for profile in profiles
        for function in profile.functions[:n_functions]
        if function.own_by_class
    ]
    left = np.zeros(len(functions))
    for name, colour in _CLASS_COLOURS.items():
        shares = np.array([100 * f.sampled_own_share * f.own_by_class.get(name, 0) for _, f in functions])
        if shares.any():
            ax.barh(range(len(functions)), shares, 0.7, left, label=name, color=COLOURS[colour])
        left += shares
    _rows(ax, range(len(functions)), [f"{workload}: {function.name}" for workload, function in functions])
    ax.set_xlabel("share of the workload's time (%), by py-spy's native frames")
    by_class = {
        name: sum(f.sampled_own_share * f.own_by_class.get(name, 0) for p in profiles for f in p.functions)
        / (len(profiles) or 1)
        for name in _CLASS_COLOURS
    }
    most = max(by_class, key=by_class.__getitem__)
    ax.set_title(f"Most of the time goes into {most}: {by_class[most]:.0%}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=4, fontsize=9)
    return ax


def candidate_roofline(
    ax: Axes, profiles: Sequence[WorkloadProfile], target_gpu: GpuSpec, ceilings: Ceilings | None = None, *, n_points: int = 6
) -> Axes:
    """The functions whose array operations take most time, each at its intensity and the rate that it reaches on this CPU.

    Only operations of known cost count; a function's other time is not in its rate.
    """
    _draw_roofs(ax, ceilings, target_gpu)
    points = []
    for profile in profiles:
        for trace in profile.traces:
            known = [operation for operation in trace.operations if operation.flops and operation.moved_bytes]
            flops, seconds = sum(o.flops for o in known), sum(o.time_s for o in known)
            if seconds:
                points.append((seconds, trace.function, flops / sum(o.moved_bytes for o in known), flops))
    points = sorted(points, reverse=True)[:n_points]
    for (seconds, name, intensity, flops), marker in zip(points, "osD^vP*X", strict=False):
        label = f"{_end_of(name)} ({format_value(seconds, 's')})"
        ax.plot(intensity, flops / seconds / 1e9, marker, color="black", markersize=8, markerfacecolor="white", label=label)
    if points:
        seconds, name, intensity, flops = points[0]
        ax.set_title(f"{_end_of(name)}: {_short(intensity)} operations per byte, {_short(flops / seconds / 1e9)} GFLOP/s here")
    else:
        ax.set_title("No array operations of known cost were seen")
    ax.set_ylabel("rate (GFLOP/s)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2, fontsize=8)
    return ax


def projected_gains(ax: Axes, candidates: Sequence[Candidate], target_gpu: GpuSpec) -> Axes:
    """A bar from the low to the high end of each candidate's projected gain; pale: with the data already on the GPU."""
    rows = [candidate for candidate in candidates if candidate.gain]
    for row, candidate in enumerate(rows):
        now, resident = candidate.projection.now.value, candidate.projection.on_gpu_resident
        ends = [(now / resident.high, now / resident.low, "sky", 0.7), (candidate.gain.low, candidate.gain.high, "blue", 0.35)]
        for low, high, colour, height in ends:
            ax.barh(row, high - low, height, low, color=COLOURS[colour])
        ax.annotate(candidate.advice, (max(ends[0][1], ends[1][1]), row), (6, 0), textcoords="offset points", va="center")
    _rows(ax, range(len(rows)), [f"{candidate.workload}: {candidate.function}" for candidate in rows])
    ax.axvline(1, color=COLOURS["grey"], linewidth=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}x")
    ax.margins(x=0.3)
    ax.set_xlabel(f"projected gain of the function on {target_gpu.name}, not run\npale: data already on the GPU")
    best = max(rows, key=lambda candidate: candidate.gain.low, default=None)
    if best and best.gain.low > 1:
        ax.set_title(f"{best.function}: {best.gain} as fast on {target_gpu.name}, projected")
    else:
        ax.set_title(f"No candidate is sure to gain on {target_gpu.name}")
    return ax


def _end_of(name: str) -> str:
    """The end of a long name, which tells functions apart."""
    return name if len(name) <= 40 else f"…{name[-39:]}"


def _rows(ax: Axes, positions: Sequence[float], names: Sequence[str]) -> None:
    """Names of horizontal bars, the first on top."""
    ax.set_yticks(list(positions), [_end_of(name) for name in names])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)


# Chapter 20 ----------------------------------------------------------------------------------------------------------


def similarity_times(ax: Axes, timings: Sequence[Timing], expectations: Sequence[Expectation] = ()) -> Axes:
    """Time against the number of texts, both logarithmic, one line per method, bars from the fastest run to the slowest.

    Bands are what arithmetic expects of each device; without any, a dashed line shows what growing with the square looks like.
    """
    largest = max(timing.n_texts for timing in timings)
    at_largest = sorted((timing for timing in timings if timing.n_texts == largest), key=lambda timing: timing.time.value)
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
    if not expectations:
        quadratic = [at_largest[0].time.value * (size / largest) ** 2 for size in sizes]
        ax.plot(sizes, quadratic, "--", color=COLOURS["grey"], label="four times as long for twice the texts")
    ax.set(xscale="log", yscale="log", xlabel="texts", ylabel="time (s)")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    ax.set_xticks([], minor=True)
    ax.yaxis.set_major_formatter("{x:g}")
    fastest = {timing.on_gpu: timing for timing in reversed(at_largest) if timing.with_transfers}  # of the CPU and of the GPU
    ax.set_title(f"{largest:,} texts: " + ", ".join(f"{timing.time} ({timing.method})" for timing in fastest.values()))
    ax.legend(loc="upper left", fontsize=8)
    return ax


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
    ax.set_title(f"100,000 texts: the matrix alone would take {format_value(4 * 100_000**2, 'bytes')}")
    ax.legend(loc="lower right", fontsize=8)
    return ax


def _by_method(timings: Iterable[Timing]) -> dict[tuple[str, str], list[Timing]]:
    """Timings of each method and device, by size."""
    methods: dict[tuple[str, str], list[Timing]] = {}
    for timing in sorted(timings, key=lambda timing: timing.n_texts):
        methods.setdefault((timing.method, timing.time.device), []).append(timing)
    return methods


# Chapter 30 ----------------------------------------------------------------------------------------------------------


def multiplier_survival(ax: Axes, values: np.ndarray, *, return_to_player: float = 0.97) -> Axes:
    """Share of the values that reach x, on logarithmic axes, beside the odds of a game that pays back `return_to_player`.

    Args:
        values: (n,) multipliers, 1.00 or more.
    """
    reached = np.sort(values)
    ax.step(reached, 1 - np.arange(len(reached)) / len(reached), where="pre", label=f"share of {len(reached):,} values")
    x = np.geomspace(1, reached[-1], 200)
    ax.plot(x, return_to_player / x, "--", color=COLOURS["grey"], label=f"{return_to_player} / x")
    ax.axvline(1.5, color=COLOURS["orange"], linewidth=1, label="1.5, the model's threshold")
    ax.set(xscale="log", yscale="log", xlabel="multiplier x", ylabel="P(value ≥ x)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    share, odds = np.mean(reached >= 1.5), return_to_player / 1.5
    ax.set_title(f"{share:.1%} of the values reach 1.5; {return_to_player} / x is {odds:.1%}")
    ax.legend()
    return ax


def memory_by_part(ax: Axes, remedies: Sequence[Remedy]) -> Axes:
    """What a training step holds on the GPU under each remedy, part by part, beside what the GPU has."""
    plans = [(remedy.name, remedy.plan) for remedy in remedies if remedy.plan]
    rows, left = np.arange(len(plans)), np.zeros(len(plans))
    parts = ("weights", "optimizer", "accumulators", "inputs", "temporaries", "beside the step")
    for part, colour in zip(parts, COLOURS.values(), strict=False):
        sizes = [plan.overhead_bytes if part == parts[-1] else plan.bytes_by_part.get(part, 0) for _, plan in plans]
        widths = np.array(sizes) / 2**30
        ax.barh(rows, widths, left=left, color=COLOURS["grey"] if part == parts[-1] else colour, label=part)
        left += widths
    for row, (end, (_, plan)) in enumerate(zip(left, plans, strict=True)):
        if plan.peak.basis == "projected":
            band = [(bound + plan.overhead_bytes) / 2**30 for bound in (plan.peak.low, plan.peak.high)]
            ax.plot(band, [row, row], color="black", linewidth=1)
            end = band[1]
        ax.annotate(f" {plan.verdict}", (end, row), va="center", fontsize=9)
    first = plans[0][1]
    usable_gib = first.usable_bytes / 2**30
    ax.axvline(
        usable_gib, color=COLOURS["red"], linestyle="--", label=f"what CUDA offers on a {first.gpu}: {usable_gib:.1f} GiB"
    )
    ax.set_yticks(rows, [name for name, _ in plans])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=f"memory of one training step, {first.peak.basis} (GiB)", xlim=(0, 1.2 * max(*left, usable_gib)))
    n_fit = sum(plan.verdict == "fits" for _, plan in plans)
    ax.set_title(f"{n_fit} of {len(plans)} fit a {first.gpu}; the {plans[0][0]} {_fits(first.verdict)}")
    ax.figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return ax


def _fits(verdict: str) -> str:
    return {"fits": "does", "tight": "barely does", "undecided": "may"}.get(verdict, "does not")


class LiveCurves:
    """Training curves under a notebook's cell, drawn anew after each epoch: `train(..., on_epoch=LiveCurves())`."""

    def __init__(self) -> None:
        self.shown = None

    def __call__(self, history: Sequence[Epoch]) -> None:
        from IPython.display import display

        with mpl.rc_context(_STYLE):
            fig, ax = plt.subplots()
            training_curves(ax, history)
            plt.close(fig)
        if self.shown is None:
            self.shown = display(fig, display_id=True)
        else:
            self.shown.update(fig)


def quality_kept(ax: Axes, qualities: Sequence[Quality]) -> Axes:
    """What the lighter models keep of the reference's gain over the base rate, or of its accuracy, beside the plan's claim."""
    for row, quality in enumerate(qualities):
        low, high = (100 * share for share in quality.claimed)
        ax.barh(row, high - low, left=low, height=0.7, color=COLOURS["orange"], alpha=0.4, label="claimed" if not row else None)
        for kept, label, colour, offset in (
            (quality.score_kept, "of the accuracy at 1.5", "grey", 0.15),
            (quality.gain_kept, "of its gain over the base rate", "blue", -0.15),
        ):
            if kept:
                ends = [100 * kept.low, 100 * kept.high]
                ax.plot(ends, [row + offset] * 2, color=COLOURS[colour], linewidth=4, alpha=0.4)
                ax.plot(100 * kept.value, row + offset, "o", color=COLOURS[colour], label=label)
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.figure.legend(unique.values(), unique, loc="outside lower center", ncols=3, fontsize=9)
    _rows(ax, range(len(qualities)), [f"{quality.option}, {quality.series}" for quality in qualities])
    ax.set(xlabel="kept of the reference's (%), 95 % interval")
    first = next((quality for quality in qualities if quality.gain_kept), None)
    if first:
        kept = first.gain_kept
        ax.set_title(f"{first.option.capitalize()} keeps {kept.value:.0%} ({kept.low:.0%} to {kept.high:.0%}) of the gain")
    else:
        ax.set_title("There is no gain over the base rate to keep")
    return ax


def training_curves(ax: Axes, history: Sequence[Epoch]) -> Axes:
    """Training and validation loss after each epoch."""
    epochs = range(1, len(history) + 1)
    for name, label, colour in (("loss", "training, with dropout", "blue"), ("val_loss", "validation", "orange")):
        ax.plot(epochs, [epoch.metrics[name] for epoch in history], "o-", color=COLOURS[colour], label=label)
    ax.set_xticks(epochs)
    ax.set(xlabel="epoch", ylabel="loss, weighted sum of the three heads")
    first, best = history[0].metrics["val_loss"], min(history, key=lambda epoch: epoch.metrics["val_loss"])
    at = history.index(best) + 1
    ax.set_title(f"Validation loss {first:.3f} after the first epoch, at best {best.metrics['val_loss']:.3f} (epoch {at})")
    ax.legend()
    return ax


def scores_beside_base_rate(ax: Axes, metrics: Sequence[Metric]) -> Axes:
    """One row per score that is a share: the model, the base rate and, where it is known, the best possible."""
    shares = [metric for metric in metrics if metric.unit == "share"]
    rows = range(len(shares))
    for row, metric in enumerate(shares):
        if metric.gain_low is not None:
            sign = 1 if metric.higher_is_better else -1
            ends = [100 * (metric.base_rate + sign * gain) for gain in (metric.gain_low, metric.gain_high)]
            ax.plot(ends, [row, row], color=COLOURS["blue"], linewidth=5, alpha=0.3, solid_capstyle="butt")
    for score, label, marker, size, colour in (
        ("base_rate", "base rate", "s", 11, "grey"),
        ("best_possible", "best possible", "D", 9, "orange"),
        ("model", "model, with the 95 % interval of its gain", "o", 6, "blue"),
    ):
        known = [(100 * getattr(metric, score), row) for row, metric in enumerate(shares) if getattr(metric, score) is not None]
        if known:
            fill = "full" if score == "model" else "none"
            ax.plot(*zip(*known, strict=True), marker, markersize=size, color=COLOURS[colour], fillstyle=fill, label=label)
    arrows = {True: "more is better", False: "less is better"}
    ax.set_yticks(rows, [f"{m.name}\n{arrows[m.higher_is_better]}, n = {m.n_samples:,}" for m in shares])
    ax.set(xlim=(-3, 103), ylim=(len(shares) - 0.5, -0.5), xlabel="share of n unseen values (%)")
    first = shares[0]
    ax.set_title(f"{first.name.capitalize()}: model {first.model:.1%}, base rate {first.base_rate:.1%}")
    ax.figure.legend(loc="outside lower center", ncols=3)
    return ax
