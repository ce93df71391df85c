"""Profiles and candidates as tables, the same for notebook and terminal, and the finding in words."""

import textwrap
from collections.abc import Sequence

from ... import tables
from ...results import ArrayOperation, Candidate, Quantity, WorkloadProfile, format_value
from ..project.gpu_libraries import cupy_coverage

_STAYS = ("leave it", "unknown")  # a gain beside these would be quoted, and is none


def function_table(profile: WorkloadProfile, *, n_rows: int = 8) -> tables.Table:
    """The `n_rows` first functions: ms of one run under cProfile, percent of the workload's time."""
    rows = [
        {
            "function": function.name,
            "where": f"{function.file}:{function.line}",
            "calls": function.n_calls,
            "own (ms)": _milliseconds(function.own),
            "cumulative (ms)": _milliseconds(function.cumulative),
            "own (%)": _percent(profile.cprofile_share(function)),
            "own, py-spy (%)": _percent(function.sampled_own_share),
            "on the stack, py-spy (%)": _percent(function.sampled_share),
            "most of own is in": _largest(function.own_by_library),
            "what ran": _largest(function.own_by_class),
        }
        for function in profile.functions[:n_rows]
    ]
    numbers = ("own (ms)", "cumulative (ms)", "own (%)", "own, py-spy (%)", "on the stack, py-spy (%)")
    return tables.show(rows, formats={"calls": "{:,.0f}", **dict.fromkeys(numbers, "{:,.1f}")}, missing="not seen")


def _milliseconds(time: Quantity | None) -> float | None:
    return None if time is None else 1e3 * time.value


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _largest(shares: dict[str, float]) -> str:
    largest = sorted(shares.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.05)


def line_table(profile: WorkloadProfile, *, n_rows: int = 8) -> tables.Table:
    """The most expensive lines of the hottest functions, under line_profiler."""
    lines = [
        (profile.share(function) * line.share, function, line) for function in profile.functions for line in function.lines
    ]
    lines.sort(key=lambda item: -item[0])
    rows = [
        {
            "function": function.name,
            "line": line.line,
            "source": line.source.strip(),
            "hits": line.n_hits,
            "of the function (%)": 100 * line.share,
        }
        for _, function, line in lines[:n_rows]
    ]
    return tables.show(rows, formats={"hits": "{:,}", "of the function (%)": "{:.0f}"})


def operation_table(profile: WorkloadProfile, *, n_rows: int = 10) -> tables.Table:
    """The operations on arrays that took most time: what they computed on, and the rates that they reached on this CPU."""
    seen = [(trace.function, operation) for trace in profile.traces for operation in trace.operations]
    seen.sort(key=lambda item: -item[1].time_s)
    rows = [{"function": function, **_operation_row(operation)} for function, operation in seen[:n_rows]]
    return tables.show(rows, formats={"calls": "{:,}", "GFLOP/s": "{:.3g}", "GB/s": "{:.3g}"}, missing="not known")


def _operation_row(operation: ArrayOperation) -> dict:
    def rate(amount: float | None) -> float | None:
        return None if amount is None or not operation.time_s else amount / operation.time_s / 1e9

    return {
        "operation": operation.name,
        "kind": operation.kind,
        "on": ", ".join(operation.operands),
        "calls": operation.n_calls,
        "time": format_value(operation.time_s, "s"),
        "GFLOP/s": rate(operation.flops),
        "GB/s": rate(operation.moved_bytes),
    }


def tool_table(profiles: Sequence[WorkloadProfile]) -> tables.Table:
    """Which tool gave which figures, and how many times as long the workload took under it."""
    rows = [
        {
            "workload": profile.workload,
            "tool": f"{tool.tool} {tool.version}",
            "gave": tool.gave,
            "its runs, times as long": None if tool.factor is None else f"{tool.factor:.2f}x",
        }
        for profile in profiles
        for tool in profile.tools
    ]
    return tables.show(rows, missing="not comparable")


def baseline_table(profiles: Sequence[WorkloadProfile]) -> tables.Table:
    """One run of each workload without a profiler, with the number of BLAS threads that suits it best."""
    rows = [
        {
            "workload": profile.workload,
            "one run": str(profile.total),
            "fastest to slowest": f"{format_value(profile.total.low, 's')} to {format_value(profile.total.high, 's')}",
            "runs": profile.total.n_runs,
            "fastest, by BLAS threads": ", ".join(
                f"{n}: {format_value(seconds, 's')}" for n, seconds in sorted(profile.seconds_by_n_threads.items())
            ),
            "peak memory": str(profile.peak_memory) if profile.peak_memory else None,
        }
        for profile in profiles
        if profile.total
    ]
    return tables.show(rows, missing="not measured")


def candidate_table(candidates: Sequence[Candidate]) -> tables.Table:
    """The candidates with the greatest share first: projected gains, and the advice with its reason."""
    rows = [
        {
            "workload": candidate.workload,
            "function": candidate.function,
            "share": f"{candidate.share:.0%}",
            "advice": candidate.advice,
            "function, projected": _gain(candidate, candidate.gain),
            "workload, projected": _gain(candidate, candidate.workload_gain),
            "bound by": candidate.projection.bound_by if candidate.projection else None,
            "such projections": candidate.projection and candidate.projection.accuracy and str(candidate.projection.accuracy),
            "why": candidate.reason,
        }
        for candidate in candidates
    ]
    return tables.show(rows, missing="not projected")


def _gain(candidate: Candidate, gain: Quantity | None) -> str | None:
    return "no gain in sight" if gain and candidate.advice == "leave it" else gain and str(gain)


def route_table(candidates: Sequence[Candidate]) -> tables.Table:
    """Every way out of each candidate, the cheapest first: what is measured, projected or only offered."""
    answers = {True: "same", False: "DIFFERS", None: "not compared"}
    rows = [
        {
            "function": candidate.function,
            "way": route.kind,
            "by": route.name,
            "known": route.standing,
            "whole workload": route.gain and str(route.gain),
            "answer": answers[route.same_answer],
            "what it takes": route.why,
        }
        for candidate in candidates
        for route in candidate.routes
    ]
    return tables.show(rows, missing="not timed")


def port_table(profile: WorkloadProfile) -> tables.Table:
    """Of each traced function: which operations CuPy has, and where a port would copy to the host, if that was looked for."""
    rows = []
    for trace in profile.traces:
        coverage = cupy_coverage(operation.name for operation in trace.operations if operation.kind != "view")
        copies = (f"line {each.line}: {each.what} ({each.n_times:,} times)" for each in trace.hidden_transfers)
        rows.append(
            {
                "function": trace.function,
                **{f"CuPy: {standing}": ", ".join(names) for standing, names in coverage._asdict().items()},
                "would copy to the host": ", ".join(copies),
            }
        )
    return tables.show(rows)


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


def answers(profiles: Sequence[WorkloadProfile], candidates: Sequence[Candidate]) -> str:
    """For each workload a line per candidate: what to do with it first, and why."""
    lines = []
    for profile in profiles:
        lines.append(f"{profile.workload}:")
        of_profile = [candidate for candidate in candidates if candidate.workload == profile.workload]
        lines += [f"  {i}. {c.function}: {_verdict(c)}. {c.reason}" for i, c in enumerate(of_profile, start=1)]
        if not of_profile:
            lines.append("  no function owns a tenth of its time: nothing to change")
    return "\n".join(textwrap.fill(line, 110, subsequent_indent="     ") for line in lines)


def _verdict(candidate: Candidate) -> str:
    measured = next((route.gain for route in candidate.routes if route.standing == "measured" and route.same_answer), None)
    if candidate.advice == "change the call" and measured:
        return f"{candidate.advice}, {measured} for the whole, measured"
    gain = f", {candidate.gain}" if candidate.gain and candidate.advice not in _STAYS else ""
    return f"{candidate.advice}{gain}"
