"""The record of a benchmark as text and as a figure."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from altlas_lib.figures import COLOURS
from altlas_lib.results import format_value

from .records import Case, Measurement, Record, best, share_of_bound, speedup

_HEADINGS = (
    *("contestant", "CPU", "fastest", "slowest", "wall", "peak", "GPU peak", "x best peer", "of bound"),
    *("error", "wrong", "OpenBLAS"),
)
_BUSY = 0.1  # share of all CPUs


def table(record: Record) -> str:
    """All cases, each contestant with what it cost, sorted; then what was skipped, and the first calls."""
    origin = record.provenance
    state = f"{(origin.git_commit or 'unknown')[:12]}{' with uncommitted changes' if origin.git_dirty else ''}"
    parts = [
        f"{', '.join(origin.devices)}; {record.n_threads} threads each; {origin.created_at:%Y-%m-%d}; commit {state}\n"
        "Medians. Ratios are of CPU time, user and system of all threads; on a GPU, of wall time. 'of bound' is what\n"
        "multiplying the symmetric half in float32 takes, in % of the contestant's time. Memory is beyond the raw rows."
    ]
    for case in record.cases:
        measured = record.of(case)
        rows = [_HEADINGS, *(_row(measurement, measured) for measurement in measured)]
        n_rounds = max((len(m.wall_s) for m in measured), default=0)
        parts.append(f"{case} ({n_rounds} round{'s' if n_rounds != 1 else ''})\n{_aligned(rows)}")
        busy = statistics.median(m.others_busy for m in measured) if measured else 0
        if busy > _BUSY:
            parts[-1] += (
                f"\nCAUTION: other programs used {busy:.0%} of the CPUs, and threads that wait for a CPU spin: measure again"
            )
        if skipped := record.of(case, skipped=True):
            parts[-1] += "\n" + "\n".join(f"skipped: {m.contestant}: {m.skipped}" for m in skipped)
    if record.trials:
        parts.append(f"OpenBLAS's kernels, tried on {record.trials[0].n:,} rows\n{_trials(record)}")
    return "\n\n".join(parts)


def _row(measurement: Measurement, of_case: list[Measurement]) -> tuple[str, ...]:
    ratio, share, exact = speedup(measurement, of_case), share_of_bound(measurement, of_case), measurement.exactness
    costs, wall_s = measurement.costs_s, statistics.median(measurement.wall_s)
    return (
        measurement.contestant,
        "" if measurement.on_gpu else format_value(measurement.cost_s, "s"),
        format_value(min(costs), "s"),
        format_value(max(costs), "s"),
        format_value(wall_s, "s"),
        "" if measurement.peak_bytes is None else f"{measurement.peak_bytes / 2**20:,.0f} MiB",
        "" if measurement.peak_gpu_bytes is None else f"{measurement.peak_gpu_bytes / 2**20:,.0f} MiB",
        "" if ratio is None else f"{ratio:.2f}",
        "" if share is None else f"{share:.0%}",
        "" if exact is None else f"{exact.largest_error:.0e}",
        "" if exact is None else f"{exact.n_wrong:,}",
        measurement.setting,
    )


def _trials(record: Record) -> str:
    settings = list(dict.fromkeys(setting for trial in record.trials for setting in trial.cpu_s))
    rows = [("contestant", *settings, "chosen", "first call on this machine")]
    for trial in record.trials:
        times = [format_value(trial.cpu_s[setting], "s") if setting in trial.cpu_s else "" for setting in settings]
        rows.append((trial.contestant, *times, trial.chosen, format_value(trial.cold_first_call_s, "s")))
    return _aligned(rows)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right; without those that are empty."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    columns = [
        [cell.rjust(width) if i else cell.ljust(width) for cell in column]
        for i, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    return "\n".join("  ".join(line) for line in zip(*columns, strict=True))


def figure(record: Record, path: Path) -> None:
    """Write a PNG: time over the number of rows, both logarithmic, of the first input and k; bounds dashed.

    Raises:
        ValueError: nothing was measured.
    """
    measured = [m for m in record.measurements if not m.skipped]
    if not measured:
        raise ValueError("nothing was measured, so there is nothing to draw; the table says why each contestant was skipped")
    first = measured[0].case
    cases = [case for case in record.cases if (case.input, case.d, case.k) == (first.input, first.d, first.k)]
    fig = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")  # without pyplot: no window, no back end
    ax = fig.subplots()
    lines: dict[str, list[Measurement]] = {}
    for measurement in (m for case in cases for m in record.of(case)):
        lines.setdefault(measurement.contestant, []).append(measurement)
    colours = {"ours": ["blue", "sky", "green", "purple"], "peer": ["orange", "red"], "bound": ["grey"], "product": ["grey"]}
    n_drawn = dict.fromkeys(colours, 0)
    for contestant, of_contestant in sorted(lines.items(), key=lambda line: line[1][-1].cost_s, reverse=True):
        kind = of_contestant[0].kind
        colour = COLOURS[colours[kind][n_drawn[kind] % len(colours[kind])]]
        marker = "osv^D<>Px"[n_drawn[kind] % 9]
        n_drawn[kind] += 1
        times = [m.cost_s for m in of_contestant]
        bars = [[m.cost_s - min(m.costs_s) for m in of_contestant], [max(m.costs_s) - m.cost_s for m in of_contestant]]
        style = {
            "color": colour,
            "linestyle": {"bound": "--", "product": ":"}.get(kind, "-"),
            "marker": marker,
            "markersize": 4,
        }
        style |= {"linewidth": 2.5 if kind == "ours" else 1}
        ax.errorbar([m.case.n for m in of_contestant], times, yerr=bars, capsize=2, label=contestant, **style)
    sizes = [case.n for case in cases]
    ax.set(xscale="log", yscale="log", xlabel=f"rows of {first.d} values ({first.input})")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.set_xticks([], minor=True)
    on_gpu = "; GPU: wall time" if any(m.on_gpu for m in measured) else ""
    ax.set_ylabel(f"CPU time (s), measured, {record.n_threads} threads{on_gpu}")
    ax.set_title(_message(record, cases[-1]), loc="left", fontweight="bold")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title=", ".join(record.provenance.devices))
    fig.savefig(path, metadata={"Software": None})


def _message(record: Record, case: Case) -> str:
    measured = record.of(case)
    ours, peer = best(measured, "ours"), best(measured, "peer")
    if ours is None or peer is None:
        return f"The {case.k} nearest of each of {case.n:,} rows by cosine"
    times = f"{peer.cost_s / ours.cost_s:.1f}x the speed of the best peer ({peer.contestant})"
    return f"{case.n:,} rows: {ours.contestant}: {times}"
