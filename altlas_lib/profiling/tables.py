"""Profiles for the eye: tables for a notebook, and the finding in a sentence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import tables
from ..results import Candidate, FunctionTime, WorkloadProfile

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def function_table(profile: WorkloadProfile, *, n_rows: int = 8) -> "Styler":
    """The `n_rows` first functions: ms of one run under cProfile, percent of the workload's time."""
    rows = [
        {
            "function": function.name,
            "where": f"{function.file}:{function.line}",
            "calls": function.n_calls,
            "own (ms)": 1e3 * function.own.value,
            "cumulative (ms)": 1e3 * function.cumulative.value,
            "own (%)": 100 * profile.cprofile_share(function),
            "own, py-spy (%)": 100 * function.sampled_own_share if profile.n_samples else None,
            "on the stack, py-spy (%)": 100 * function.sampled_share if profile.n_samples else None,
            "most of own is in": _most_of_own(function),
        }
        for function in profile.functions[:n_rows]
    ]
    one_decimal = ("own (ms)", "cumulative (ms)", "own (%)", "own, py-spy (%)", "on the stack, py-spy (%)")
    return tables.show(rows, formats={"calls": "{:,}", **dict.fromkeys(one_decimal, "{:,.1f}")}, missing="not sampled")


def _most_of_own(function: FunctionTime) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in list(function.own_by_library.items())[:2] if share >= 0.05)


def overhead_table(profiles: Sequence[WorkloadProfile]) -> "Styler":
    """One run of each workload without a profiler, and how many times as long it took under each tool."""
    rows = [
        {
            "workload": profile.workload,
            "without a profiler": str(profile.total),
            "fastest to slowest (ms)": f"{1e3 * profile.total.low:.4g} to {1e3 * profile.total.high:.4g}",
            "runs": profile.total.n_runs,
            **{f"with {tool}": f"{factor:.2f}x" for tool, factor in profile.overhead.items()},
            "samples": profile.n_samples,
        }
        for profile in profiles
    ]
    return tables.show(rows, missing="not measured")


def candidate_table(candidates: Sequence[Candidate]) -> "Styler":
    """The candidates with their share, Amdahl's bound and the reason."""
    columns = ["workload", "function", "share of the time", "measured by", "gain at most", "what was seen"]
    rows = [(c.workload, c.function, f"{c.share:.0%}", c.tool, _gain(c), c.reason) for c in candidates]
    return tables.show(rows, columns)


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
