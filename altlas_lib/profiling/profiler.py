"""One profile out of the tools: a baseline without any of them, cProfile's times, py-spy's shares, and what each tool costs."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..devices import describe_cpu
from ..results import FunctionTime, Quantity, WorkloadProfile
from .folding import Project
from .measure import FunctionRow, Measurement, measure
from .process import Request, run_child
from .sampling import Samples, sample
from .targets import FunctionKey, ProfilingError, Target, prepare, target_name


def profile(
    target: Target,
    *,
    setup: Target | None = None,
    arguments: Mapping[str, Any] | None = None,
    workload: str | None = None,
    n_repeats: int = 3,
    sampling_rate_hz: int = 200,
    sampling_s: float = 2.0,
    time_limit_s: float = 120.0,
) -> WorkloadProfile:
    """Where the time of `target(**arguments)` goes, or of `target(setup(**arguments))`, whose set-up is not timed.

    The target runs once to warm up, then `n_repeats` times without a profiler and as often under cProfile, in turns; then
    for `sampling_s` seconds under py-spy. It must bear being called repeatedly with the same input. Only the thread that
    calls it is seen. Code outside the user's project is folded into the function that called it: see `folding`.

    Args:
        target: `"module:function"`, run in a child process; or a callable, run in this one, where it is not sampled and
            `time_limit_s` is looked at between runs only.
        setup: as `target`; what it returns is the target's one argument.
        arguments: by name; JSON values where the target is a name.
        workload: what results call it; the module's last name by default.

    Raises:
        ProfilingError: the target cannot be found, called or finished; the message says why and what to do.
        ValueError: a number that is not positive.
    """
    for number in (n_repeats, sampling_rate_hz, sampling_s, time_limit_s):
        if number <= 0:
            raise ValueError(f"n_repeats, sampling_rate_hz, sampling_s and time_limit_s must be positive, got {number!r}")
    name = target_name(target)
    stop = time.monotonic() + time_limit_s
    samples, notes = None, []
    if isinstance(target, str):
        request = _request(target, setup, arguments or {}, n_repeats, time_limit_s)
        measurement = run_child(request, time_limit_s=time_limit_s).measurement
        try:
            sampled_request = request.model_copy(update={"sample_for_s": sampling_s})
            samples = sample(sampled_request, rate_hz=sampling_rate_hz, time_limit_s=stop - time.monotonic())
        except ProfilingError as error:
            notes.append(f"py-spy gave no shares: {error}")
    else:
        measurement = measure(prepare(target, setup, arguments or {}), name, n_repeats, time_limit_s)
        notes.append("py-spy gave no shares: a callable runs in this process; name it as 'module:function' to have it sampled")
    overhead = {"cProfile": _ratio(measurement.profiled_s, measurement.plain_s)}
    if samples:
        overhead["py-spy"] = _ratio(samples.durations_s, measurement.plain_s)
    return WorkloadProfile(
        workload=workload or name.partition(":")[0].rpartition(".")[2],
        target=name,
        total=Quantity.measured(measurement.plain_s, "s", str(describe_cpu())),
        functions=_function_times(measurement, samples),
        overhead=overhead,
        n_samples=samples.n_samples if samples else 0,
        notes=notes,
    )


def _request(target: str, setup: Target | None, arguments: Mapping, n_repeats: int, time_limit_s: float) -> Request:
    if callable(setup):
        raise ProfilingError(
            f"setup {target_name(setup)!r} is a callable but target {target!r} a name; name both, or pass both"
        )
    try:
        json.dumps(dict(arguments), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ProfilingError(
            f"arguments {dict(arguments)!r} cannot reach the child process ({error}); use JSON values, or make them in setup"
        ) from None
    return Request(target=target, setup=setup, arguments=dict(arguments), n_repeats=n_repeats, time_limit_s=time_limit_s)


def _ratio(with_tool_s: list[float], without_s: list[float]) -> float:
    return min(with_tool_s) / min(without_s)  # the fastest runs: what else the machine does only ever adds time


def _function_times(measurement: Measurement, samples: Samples | None) -> list[FunctionTime]:
    """Every user's function, greatest share first; medians over the runs, 0 for a run in which it was not called."""
    project = Project(measurement.root.file)
    shares = samples.shares(project, measurement.root) if samples else {}
    unseen = (0.0, 0.0) if samples else (None, None)
    runs = [{row.key: row for row in rows} for rows in measurement.functions]
    keys = dict.fromkeys(key for run in runs for key in run)
    times = [_function_time(key, [run.get(key) for run in runs], project, shares.get(key, unseen)) for key in keys]
    return sorted(times, key=lambda time: (-(time.sampled_own_share or 0), -time.own.value))


def _function_time(
    key: FunctionKey, rows: list[FunctionRow | None], project: Project, shares: tuple[float | None, float | None]
) -> FunctionTime:
    called = [row for row in rows if row]
    by_library = Counter()
    for row in called:
        by_library.update(row.own_s_by_library)
    device = str(describe_cpu())
    return FunctionTime(
        name=key.name.replace(".<locals>", ""),
        file=project.relative(key.file),
        line=key.line,
        n_calls=statistics.median_high(row.n_calls if row else 0 for row in rows),
        own=Quantity.measured([sum(row.own_s_by_library.values()) if row else 0 for row in rows], "s", device),
        cumulative=Quantity.measured([row.cumulative_s if row else 0 for row in rows], "s", device),
        own_by_library={name: s / by_library.total() for name, s in by_library.most_common() if s > 0},
        sampled_own_share=shares[0],
        sampled_share=shares[1],
    )
