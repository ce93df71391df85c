"""The figure of chapter 10: where the time goes. Its title states the message, its axes carry units."""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
from matplotlib.axes import Axes

from ...figures import COLOURS
from ...results import TimeClass, WorkloadProfile

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
    names = [f"{profile.workload}: {function.name}" for profile, function in first]
    ax.set_yticks(range(len(first)), [name if len(name) <= 40 else f"…{name[-39:]}" for name in names])  # ends tell them apart
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("own share of the workload's time (%), by py-spy's native frames")
    for kind, share in shares.sum().drop("not known", errors="ignore").nlargest(1).items():
        ax.set_title(f"Most of the time goes into {kind}: {share / len(profiles):.0f}%")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=4, fontsize=9)
    return ax
