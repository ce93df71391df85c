"""A profile and its candidates as plain text, the answer first, for a terminal of up to 120 columns."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from ...results import Candidate, WorkloadProfile
from ...tables import plain
from . import tables

_WIDEST = 120
_N_FUNCTIONS = 12


def format_profile(profile: WorkloadProfile, candidates: Sequence[Candidate] = (), *, check_port: bool = False) -> str:
    """What to do and why with every way out, the cheapest first; then the evidence: functions, lines, tools and notes."""
    width = max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))

    def wrapped(text: str, indent: str = "  ") -> str:
        return textwrap.fill(plain(text), width, initial_indent=indent, subsequent_indent=indent)

    functions = tables.function_table(profile, n_rows=_N_FUNCTIONS)
    share = "own, py-spy" if profile.n_samples else "own"
    columns = ("function", "where", "calls", "own (ms)", "cumulative (ms)", share, "what ran")
    sections = [
        "\n".join(wrapped(line, "") for line in _header(profile)),
        "\n\n".join("\n".join(map(wrapped, _answer(candidate))) for candidate in candidates),
        tables.port_table(profile).text(width, title="what a CuPy port would meet") if check_port else "",
        functions.text(width, title="where the time goes", columns=columns),
        tables.line_table(profile).text(width, title="hottest lines"),
        tables.tool_table([profile]).text(width, title="tools", columns=("tool", "gave", "its runs, times as long")),
        "\n".join(wrapped(f"note: {note}") for note in profile.notes),
    ]
    left_out = len(profile.functions) - _N_FUNCTIONS
    if left_out > 0:
        sections[3] += f"\n  and {left_out} more with smaller shares, which --json has"
    return "\n\n".join(section for section in sections if section)


def _header(profile: WorkloadProfile) -> Iterator[str]:
    yield profile.target
    for row in tables.baseline_table([profile]).rows:
        yield f"one run: {row['one run']} ({row['fastest to slowest']} in {row['runs']} runs) on {profile.total.device}"
        yield f"fastest run by BLAS threads: {row['fastest, by BLAS threads']}"
    if profile.peak_memory:
        yield f"peak memory beyond what the process held at first: {profile.peak_memory}"


def _answer(candidate: Candidate) -> Iterator[str]:
    """What to do with a function and why, then every way out, then how far such projections were from reality."""
    on_gpu = candidate.gain and candidate.advice in tables.ON_GPU
    projected = f", {candidate.gain} as fast; the whole {candidate.workload_gain}, projected" if on_gpu else ""
    yield f"{candidate.function}: {candidate.advice.upper()}  ({candidate.share:.0%} of the time{projected})"
    yield candidate.reason
    for number, row in enumerate(tables.route_table([candidate]).rows, 1):
        how = f"{row['whole workload']} for the whole, {row['known']}" if row["whole workload"] else row["known"]
        answer = f", answer {row['answer']}" if row["known"] == "measured" else ""
        why = "" if row["what it takes"] in candidate.reason else f": {row['what it takes']}"
        yield f"way {number}, {row['way']}: {row['by']} ({how}{answer}){why}"
    if candidate.projection and candidate.projection.accuracy:
        yield str(candidate.projection.accuracy)
