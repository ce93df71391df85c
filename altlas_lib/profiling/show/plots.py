"""Figures of chapter 10: where the time goes, and what a GPU would gain.

Each function draws into an Axes and returns it; the title states the message, the axes carry units.
"""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
from matplotlib.axes import Axes

from ...devices import GpuSpec
from ...figures import COLOURS, name_rows
from ...results import Candidate, TimeClass, WorkloadProfile

_COLOURS = ("orange", "red", "blue", "sky", "purple", "grey", "green")
_CLASS_COLOURS = {**dict(zip(get_args(TimeClass), map(COLOURS.get, _COLOURS), strict=True)), "not known": "lightgrey"}


def time_classes(ax: Axes, profiles: Sequence[WorkloadProfile], *, n_functions: int = 4) -> Axes:
    """One stacked bar for each of the first functions: its share of the workload, by what the innermost native frame did."""
    first = [(profile, each) for profile in profiles for each in profile.functions[:n_functions]]
    rows = [{name: 100 * p.share(f) * part for name, part in (f.own_by_class or {"not known": 1}).items()} for p, f in first]
    shares = pd.DataFrame(rows, columns=list(_CLASS_COLOURS)).dropna(axis=1, how="all")
    ax.set_title("py-spy saw no native frames")
    if shares.empty:
        return ax
    shares.plot.barh(ax=ax, stacked=True, width=0.7, color=_CLASS_COLOURS)
    name_rows(ax, range(len(first)), [f"{profile.workload}: {function.name}" for profile, function in first])
    ax.set_xlabel("own share of the workload's time (%), library code included, by py-spy's native frames")
    for kind, share in shares.sum().drop("not known", errors="ignore").nlargest(1).items():
        ax.set_title(f"Most of the time goes into {kind}: {share / len(profiles):.0f}%")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=4, fontsize=9)
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
    name_rows(ax, range(len(rows)), [f"{candidate.workload}: {candidate.function}" for candidate in rows])
    ax.axvline(1, color=COLOURS["grey"], linewidth=1)
    ax.set(xscale="log", xlabel=f"projected gain of the function on {target_gpu.name}, not run\npale: data already on the GPU")
    ax.xaxis.set_major_formatter("{x:g}x")
    ax.margins(x=0.3)
    best = max(rows, key=lambda candidate: candidate.gain.low, default=None)
    ax.set_title(f"No candidate is sure to gain on {target_gpu.name}")
    if best and best.gain.low > 1:
        ax.set_title(f"{best.function}: {best.gain} as fast on {target_gpu.name}, projected")
    return ax
