"""One profile out of the tools: a baseline without any of them, cProfile's times, py-spy's shares, and what each tool costs."""

import reprlib
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..devices import describe_cpu
from ..results import FunctionTime, Quantity, WorkloadProfile
from .folding import Project
from .measure import FunctionRow, Measurement, measure
from .process import Request, run_child
from .sampling import Samples, sample
from .targets import ProfilingError, Target, prepare, target_name


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
        try:
            request = Request(
                target=target, setup=setup, arguments=arguments or {}, n_repeats=n_repeats, time_limit_s=time_limit_s
            )
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}={reprlib.repr(first['input'])}"
            raise ProfilingError(
                f"{what} cannot reach the child process that runs {target!r} ({first['msg']}); "
                "use JSON values as arguments, or make them in setup; name setup as 'module:function'"
            ) from None
        measurement = run_child(request, time_limit_s=time_limit_s).measurement
        try:
            sampled_request = request.model_copy(update={"sample_for_s": sampling_s})
            samples = sample(sampled_request, rate_hz=sampling_rate_hz, time_limit_s=stop - time.monotonic())
        except ProfilingError as error:
            notes.append(f"py-spy gave no shares: {error}")
    else:
        measurement = measure(prepare(target, setup, arguments or {}), name, n_repeats, time_limit_s)
        notes.append("py-spy gave no shares: a callable runs in this process; name it as 'module:function' to have it sampled")
    fastest_s = min(measurement.plain_s)  # fastest runs are compared: what else the machine does only ever adds time
    overhead = {"cProfile": min(measurement.profiled_s) / fastest_s}
    if samples:
        overhead["py-spy"] = min(samples.durations_s) / fastest_s
    return WorkloadProfile(
        workload=workload or name.partition(":")[0].rpartition(".")[2],
        target=name,
        total=Quantity.measured(measurement.plain_s, "s", str(describe_cpu())),
        functions=_function_times(measurement, samples),
        overhead=overhead,
        n_samples=samples.n_samples if samples else 0,
        notes=notes,
    )


def _function_times(measurement: Measurement, samples: Samples | None) -> list[FunctionTime]:
    """Every user's function, greatest share first; medians over the runs, 0 for a run in which it was not called."""
    project, device = Project(measurement.root.file), str(describe_cpu())
    shares = samples.shares(project, measurement.root) if samples else {}
    runs = [{row.key: row for row in rows} for rows in measurement.functions]
    functions = []
    for key in dict.fromkeys(key for run in runs for key in run):
        rows = [run.get(key, FunctionRow(key=key)) for run in runs]
        by_library = sum((Counter(row.own_s_by_library) for row in rows), Counter())
        own_share, share = shares.get(key, (0.0, 0.0)) if samples else (None, None)
        functions.append(
            FunctionTime(
                name=key.name.replace(".<locals>", ""),
                file=project.relative(key.file),
                line=key.line,
                n_calls=statistics.median_high(row.time.n_calls for row in rows),
                own=Quantity.measured([sum(row.own_s_by_library.values()) for row in rows], "s", device),
                cumulative=Quantity.measured([row.time.cumulative_s for row in rows], "s", device),
                own_by_library={name: s / by_library.total() for name, s in by_library.most_common()},
                sampled_own_share=own_share,
                sampled_share=share,
            )
        )
    return sorted(functions, key=lambda function: (-(function.sampled_own_share or 0), -function.own.value))
