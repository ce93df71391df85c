"""Profiles and candidates as tables, the same for notebook and terminal, and the finding in words.

`tables.toml` says what the columns are; here is what rows are made of.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ... import tables
from ...paths import shipped_toml
from ...results import Candidate, WorkloadProfile
from ..project.advice import evaluate
from ..project.gpu_libraries import cupy_coverage

ON_GPU = ("port it", "keep the data on the GPU", "batch first")  # beside other advice a projected gain would mislead


def _table(name: str, rows: Iterable[Mapping[str, Any]]) -> tables.Table:
    """Laid out as tables.toml has it, of rows that are parts by name; numbers stay numbers."""
    layout = shipped_toml(__package__, "tables.toml")[name]
    cells = [{title: _cell(evaluate(shown)(row)) for title, shown in layout["columns"].items()} for row in rows]
    return tables.show(cells, formats=layout.get("formats"), missing=layout.get("missing", ""))


def _cell(value: Any) -> str | float | None:
    return value if value is None or isinstance(value, int | float) else str(value)


def function_table(profile: WorkloadProfile, *, n_rows: int = 8) -> tables.Table:
    """The `n_rows` first functions: ms of one run under cProfile, percent of the workload's time."""
    return _table("function_table", ({"profile": profile, "function": each} for each in profile.functions[:n_rows]))


def line_table(profile: WorkloadProfile, *, n_rows: int = 8) -> tables.Table:
    """The most expensive lines of the hottest functions: what line_profiler saw of them, where py-spy saw them on the stack."""
    lines = [{"profile": profile, "function": each, "line": line} for each in profile.functions for line in each.lines]
    lines.sort(key=lambda row: -(row["function"].sampled_share or 0) * row["line"].share)
    return _table("line_table", lines[:n_rows])


def operation_table(profile: WorkloadProfile, *, n_rows: int = 10) -> tables.Table:
    """The operations on arrays that took most time: what they computed on, and the rates that they reached on this CPU."""
    seen = [{"trace": trace, "operation": operation} for trace in profile.traces for operation in trace.operations]
    return _table("operation_table", sorted(seen, key=lambda row: -row["operation"].time_s)[:n_rows])


def candidate_table(candidates: Sequence[Candidate]) -> tables.Table:
    """The candidates with the greatest share first: projected gains, and the advice with its reason."""
    return _table("candidate_table", ({"candidate": each} for each in candidates))


def route_table(candidates: Sequence[Candidate]) -> tables.Table:
    """Every way out of each candidate, the cheapest first: what is measured, projected or only offered."""
    return _table("route_table", ({"candidate": each, "route": route} for each in candidates for route in each.routes))


def port_table(profile: WorkloadProfile) -> tables.Table:
    """Of each traced function: which operations CuPy has, and where a port would copy to the host, if that was looked for."""
    rows = []
    for trace in profile.traces:
        coverage = cupy_coverage(operation.name for operation in trace.operations if operation.kind != "view")
        copies = ", ".join(f"line {each.line}: {each.what} ({each.n_times:,} times)" for each in trace.hidden_transfers)
        rows.append({"trace": trace, "copies": copies, "cupy": coverage})
    return _table("port_table", rows)


# In words ----------------------------------------------------------------------------------------------------------------


def finding(profiles: Sequence[WorkloadProfile], candidates: Sequence[Candidate]) -> str:
    """Which functions of each workload own its time, and what to do about each, in a sentence."""
    parts = []
    for profile in profiles:
        own = [candidate for candidate in candidates if candidate.workload == profile.workload]
        where = " and ".join(f"{c.share:.0%} in {c.function} ({_verdict(c)})" for c in own)
        run = f" ({profile.total} per run)" if profile.total else ""
        parts.append(f"{profile.workload}{run} spends {where or 'no large part of its time in any one function'}")
    devices = sorted({profile.total.device for profile in profiles if profile.total})
    measured = f" Measured on {', '.join(devices)}." if devices else ""
    gpus = sorted({candidate.projection.gpu for candidate in candidates if candidate.projection})
    projected = f" Gains are projected for {', '.join(gpus)}; nothing ran there." if gpus else ""
    return f"{'; '.join(parts)}.{measured}{projected}"


def _verdict(candidate: Candidate) -> str:
    measured = next((route.gain for route in candidate.routes if route.standing == "measured" and route.same_answer), None)
    if candidate.advice == "change the call" and measured:
        return f"{candidate.advice}, {measured} for the whole, measured"
    gain = f", {candidate.gain}" if candidate.gain and candidate.advice in ON_GPU else ""
    return f"{candidate.advice}{gain}"
