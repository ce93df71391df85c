"""Figures of chapter 00: ceilings of this machine beside the data sheet of the target GPU.

Each function draws into an Axes and returns it; the title states the message, the axes carry units.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from ..devices import GpuSpec
from ..figures import COLOURS
from ..results import Ceilings, format_value
from .tables import CEILINGS


def matrix_rates(ax: Axes, ceilings: Ceilings, target_gpu: GpuSpec) -> Axes:
    """Matrix product rates: as measured on this machine, beside the peak that the target GPU's data sheet states."""
    tflops = {"float32": target_gpu.float32_tflops, "float16 (tensor cores)": target_gpu.float16_tensor_tflops}
    peaks = {f"{target_gpu.name}, {dtype}": 1000 * peak for dtype, peak in tflops.items()}
    _measured_beside_peaks(ax, "matrix product", ceilings, peaks)
    ratio = _short_number(1000 * target_gpu.float32_tflops / ceilings.cpu_matmul_float32.value)
    ax.set_title(f"{target_gpu.name} on paper: {ratio}x this CPU's float32 rate")
    return ax


def copy_bandwidths(ax: Axes, ceilings: Ceilings, target_gpu: GpuSpec) -> Axes:
    """Memory bandwidths, bytes read and written: as measured on this machine, beside the target GPU's data-sheet peak."""
    _measured_beside_peaks(ax, "copy", ceilings, {f"{target_gpu.name}, memory": target_gpu.memory_bandwidth_gb_per_s})
    ratio = _short_number(target_gpu.memory_bandwidth_gb_per_s / ceilings.cpu_copy_bandwidth.value)
    ax.set_title(f"{target_gpu.name} on paper: {ratio}x this CPU's memory bandwidth")
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


def _measured_beside_peaks(ax: Axes, kind: str, ceilings: Ceilings, peaks: Mapping[str, float]) -> None:
    """One row per rate, on a logarithmic axis: a dot with its spread for a measurement, a hollow diamond for a data sheet."""
    named = {CEILINGS[field]: rate for field, rate in ceilings if rate}
    rates = {f"{where}, {what}": rate for (of, where, what), rate in named.items() if of == kind}
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
    ax.set_xlabel(f"{kind} ({unit})\ndots: measured on {where}")
    ax.legend(loc="upper right", fontsize=9, ncols=2)


def _draw_roofs(ax: Axes, ceilings: Ceilings, target_gpu: GpuSpec) -> None:
    intensity = np.logspace(-1, 4, 200)  # operations per byte moved
    own = (
        ("this CPU, float32", "cpu_copy_bandwidth", "cpu_matmul_float32", "blue"),
        ("this GPU, float32", "gpu_copy_bandwidth", "gpu_matmul_float32", "green"),
        ("this GPU, float16", "gpu_copy_bandwidth", "gpu_matmul_float16", "sky"),
    )
    rates = [(label, getattr(ceilings, copy), getattr(ceilings, product), c) for label, copy, product, c in own]
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
    ax.set_ylabel("highest possible rate (GFLOP/s)")


def _short_number(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
