"""Profiles and candidates as plain text, for a terminal of 120 columns or, where it has fewer, as many as it has."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from ...results import Candidate, FunctionTime, Quantity, WorkloadProfile, format_value

_WIDEST = 120
_N_FUNCTIONS = 12
_SMALLEST_SHARE = 0.005


def _width() -> int:
    return max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))


def format_profile(profile: WorkloadProfile, candidates: Sequence[Candidate] = ()) -> str:
    """What was found, in sections: the run, functions, kinds of time, hottest lines, candidates, tools and notes."""
    shown = [each for each in profile.functions[:_N_FUNCTIONS] if profile.share(each) >= _SMALLEST_SHARE]
    shown = shown or profile.functions[:3]
    functions = _functions(profile, shown)
    if left_out := len(profile.functions) - len(shown):
        functions += f"\n  and {left_out} more with smaller shares, which --json has"
    sections = [_header(profile), functions, _classes(profile, shown), _lines(shown), _candidates(candidates), _tools(profile)]
    return "\n\n".join(section for section in sections if section)


def _header(profile: WorkloadProfile) -> str:
    lines = [profile.target]
    if profile.total:
        total = profile.total
        spread = f"{format_value(total.low, 's')} to {format_value(total.high, 's')} in {total.n_runs} runs"
        lines.append(f"one run: {total} ({spread}) on {total.device}")
    if len(profile.seconds_by_n_threads) > 1:
        sweep = ", ".join(f"{n}: {format_value(seconds, 's')}" for n, seconds in profile.seconds_by_n_threads.items())
        lines.append(f"fastest run by BLAS threads: {sweep}")
    if profile.peak_memory:
        lines.append(f"peak memory beyond what the process held at first: {profile.peak_memory}")
    return "\n".join(map(_plain, lines))


def _functions(profile: WorkloadProfile, functions: Sequence[FunctionTime]) -> str:
    rows = [
        (
            function.name,
            f"{function.file}:{function.line}",
            "" if function.n_calls is None else f"{function.n_calls:,}",
            _seconds(function.own),
            _seconds(function.cumulative),
            f"{profile.share(function):.1%}",
            "" if function.sampled_share is None else f"{function.sampled_share:.1%}",
        )
        for function in functions
    ]
    return _table(("function", "where", "calls", "own", "cumulative", "share", "on stack"), rows, n_text=2)


def _seconds(time: Quantity | None) -> str:
    return str(time) if time else ""


def _classes(profile: WorkloadProfile, functions: Sequence[FunctionTime]) -> str:
    classes = sorted({kind for function in functions for kind in function.own_by_class})
    rows = [
        (function.name, *(f"{function.own_by_class[kind]:.0%}" if kind in function.own_by_class else "" for kind in classes))
        for function in functions
        if function.own_by_class
    ]
    return _table(("own time of", *classes), rows, n_text=1) if rows else ""


def _lines(functions: Sequence[FunctionTime]) -> str:
    rows = [
        (function.name, str(line.line), f"{line.n_hits:,}", f"{line.share:.0%}", line.source)
        for function in functions
        for line in function.lines[:3]
        if line.share >= 0.05
    ]
    return _table(("hottest lines of", "line", "hits", "share", "source"), rows, n_text=1, last_is_text=True) if rows else ""


def _candidates(candidates: Sequence[Candidate]) -> str:
    paragraphs = []
    for candidate in candidates:
        gain = f", {_band(candidate.gain)}x as fast; the whole {_band(candidate.workload_gain)}x" if candidate.gain else ""
        bound = "" if candidate.largest_gain is None else f", at most {candidate.largest_gain:.2f}x for the whole"
        head = f"{candidate.function}: {candidate.advice.upper()}  ({candidate.share:.0%} of the time{bound}{gain})"
        paragraphs += [_wrapped(head, "  "), _wrapped(candidate.reason, "    ")]
    return "\n".join(["candidates for a GPU", *paragraphs]) if paragraphs else ""


def _band(gain: Quantity | None) -> str:
    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

    return f"{short(gain.low)} to {short(gain.high)}" if gain else "?"


def _tools(profile: WorkloadProfile) -> str:
    lines = [
        f"  {tool.tool} {tool.version}: {tool.gave}" + (f"; its runs took {tool.factor:.2f}x" if tool.factor else "")
        for tool in profile.tools
    ]
    lines += [_wrapped(f"note: {note}", "  ") for note in profile.notes]
    return "\n".join(["tools", *lines]) if lines else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, n_text: int, last_is_text: bool = False) -> str:
    """Columns as wide as their content; the first `n_text` (and the last) hold text, which is cut to what room there is."""
    rows = [header, *([_plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [*range(n_text), *([len(widths) - 1] if last_is_text else [])]
    while sum(widths) + 2 * len(widths) > _width() and max(widths[i] for i in texts) > 8:
        widths[max(texts, key=widths.__getitem__)] -= 1
    lines = []
    for row in rows:
        cells = (
            f"{_cut(cell, width):<{width}}" if i in texts else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(("  " + "  ".join(cells))[: _width()].rstrip())
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(_plain(text), _width(), initial_indent=indent, subsequent_indent=indent)


def _plain(text: str) -> str:
    """What comes from data must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
