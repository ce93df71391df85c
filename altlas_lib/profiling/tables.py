"""Profiles for the eye: tables for a notebook, and the finding in a sentence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..results import Candidate, FunctionTime, WorkloadProfile

if TYPE_CHECKING:
    import pandas as pd


def function_table(profile: WorkloadProfile, *, n_rows: int = 8) -> "pd.DataFrame":
    """The `n_rows` functions with the greatest own time: ms of one run under cProfile, percent of the workload's time."""
    import pandas as pd

    rows = [
        {
            "function": function.name,
            "where": f"{function.file}:{function.line}",
            "calls": function.n_calls,
            "own (ms)": 1e3 * function.own.value,
            "cumulative (ms)": 1e3 * function.cumulative.value,
            "own (%)": 100 * profile.cprofile_share(function),
            "own, py-spy (%)": _percent(function.sampled_own_share),
            "on the stack, py-spy (%)": _percent(function.sampled_share),
            "most of own is in": _most_of_own(function),
        }
        for function in profile.functions[:n_rows]
    ]
    return pd.DataFrame(rows).round(1)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _most_of_own(function: FunctionTime) -> str:
    parts = sorted(function.own_by_library.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in parts[:2] if share >= 0.05)


def overhead_table(profiles: Sequence[WorkloadProfile]) -> "pd.DataFrame":
    """One run of each workload without a profiler, and how many times as long it took under each tool."""
    import pandas as pd

    rows = {
        profile.workload: {
            "without a profiler": str(profile.total),
            "fastest to slowest (ms)": f"{1e3 * profile.total.low:.4g} to {1e3 * profile.total.high:.4g}",
            "runs": profile.total.n_runs,
            **{f"with {tool}": f"{factor:.2f}x" for tool, factor in profile.overhead.items()},
            "samples": profile.n_samples,
        }
        for profile in profiles
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def candidate_table(candidates: Sequence[Candidate]) -> "pd.DataFrame":
    """The candidates with their share, Amdahl's bound and the reason."""
    import pandas as pd

    columns = ["workload", "function", "share of the time", "measured by", "gain at most", "what was seen"]
    rows = [(c.workload, c.function, f"{c.share:.0%}", c.tool, _gain(c), c.reason) for c in candidates]
    return pd.DataFrame(rows, columns=columns)


def _gain(candidate: Candidate) -> str:
    return "unbounded" if candidate.largest_gain is None else f"{candidate.largest_gain:.2f}x"


def finding(profiles: Sequence[WorkloadProfile], candidates: Sequence[Candidate]) -> str:
    """Which functions of each workload own its time, in a sentence."""
    parts = []
    for profile in profiles:
        own = [c for c in candidates if c.workload == profile.workload]
        where = " and ".join(f"{c.share:.0%} in {c.function} (at most {_gain(c)} from it)" for c in own)
        parts.append(
            f"{profile.workload} ({profile.total} per run) spends {where or 'no large part of its time in any one function'}"
        )
    devices = sorted({profile.total.device for profile in profiles})
    return f"{'; '.join(parts)}. Measured on {', '.join(devices)}."
