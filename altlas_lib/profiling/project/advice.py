"""From profiles to a decision: which functions to look at, every way out of them, and the cheapest one that is enough.

What decides, and the sentences that say why, stand in `advice.toml`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment

from ...devices import GpuSpec, find_gpu
from ...paths import shipped_toml
from ...results import ArrayTrace, Candidate, Ceilings, FunctionTime, Projection, Quantity, WorkloadProfile, format_value
from .calibrate import Calibration
from .gpu import Rates, gpu_rates
from .projection import PYTHON_CLASSES, project, set_up_seconds
from .routes import routes_of

_PAYS_THOUGH_IDLE = 3  # times as fast, where starting kernels bounds it, and the GPU has little to do
_PAYS = 1.5  # times as fast in the slow end: below, a port costs more than it brings
_ENOUGH_SEEN = 0.6  # coverage from which a projection is a basis to decide on
_MOST = 0.5  # share of the time that makes a way out the way out


def _shares(shares: Mapping[str, float], n: int = 5) -> str:
    """The `n` largest, of 5 % or more: 'numpy 55%, own lines 45%'."""
    largest = sorted(shares.items(), key=lambda item: -item[1])[:n]
    return ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.05)


JINJA = Environment(autoescape=False)
JINJA.filters |= {unit: functools.partial(format_value, unit=unit) for unit in ("s", "bytes")}
JINJA.filters |= {"shares": _shares, "percent": "{:.0%}".format, "count": "{:,.0f}".format}
evaluate = functools.cache(JINJA.compile_expression)  # of what TOML files hold: compiled once
_template = functools.cache(JINJA.from_string)


def rank_candidates(
    profiles: Sequence[WorkloadProfile],
    *,
    gpu: GpuSpec | str | None = None,
    ceilings: Ceilings | None = None,
    smallest_share: float = 0.1,
    least_saving_s: float = 0.01,
) -> list[Candidate]:
    """Every function that is worth a closer look with every way out of it, most seconds first.

    A function's share of the workload is its own time's, library code folded in (`WorkloadProfile.share`), so shares add up.
    Below `smallest_share` a function is no candidate: at 0.1 even one that took no time would make the workload 1.11 times as
    fast. That bound is Amdahl's (1967), 1 / (1 - share). What a GPU gains of the workload follows by the same law.

    Args:
        gpu: project onto this one, a row of the catalogue or its name; None: nothing is projected.
        ceilings: of chapter 00; taken in place of the data sheet where they were measured on such a GPU. What `altlas
            calibrate` measured there comes before both.
        least_saving_s: seconds that a change must save in one run to be worth its work.

    Raises:
        ValueError: `gpu` is not in the catalogue, or the calibration of that GPU is damaged.
    """
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    calibration = Calibration.load(gpu.name) if gpu else None
    rates = gpu_rates(gpu, ceilings, calibration and calibration.classes) if gpu else None
    functions = [(profile, function) for profile in profiles for function in profile.functions]
    functions = [each for each in functions if each[0].share(each[1]) >= smallest_share]
    functions.sort(key=lambda each: (-each[0].share(each[1]) * (each[0].quiet_s or 0), -each[0].share(each[1])))
    return [_candidate(profile, function, rates, least_saving_s) for profile, function in functions]


def _candidate(profile: WorkloadProfile, function: FunctionTime, rates: Rates | None, least_saving_s: float) -> Candidate:
    share, quiet_s, key = profile.share(function), profile.quiet_s, (function.name, function.file, function.line)
    trace = next((trace for trace in profile.traces if (trace.function, trace.file, trace.line) == key), None)
    found = routes_of(function, trace, profile, gpu=rates and rates.gpu)
    python = {name: function.own_by_class[name] for name in PYTHON_CLASSES if function.own_by_class.get(name)}
    projected = functools.partial(project, function, profile, trace, rates)
    projection = projected() if rates else None
    known = {
        **{"profile": profile, "function": function, "share": share},
        **{"trace": trace, "rates": rates, "projection": projection, "least_saving_s": least_saving_s},
        "seconds": None if quiet_s is None else share * quiet_s,  # of one run; None: no run was measured
        # By how it is decided on, the first way that takes the place of half the function's time.
        "ways": {each.decides: each for each in reversed(found) if each.covers >= _MOST and each.advice},
        "sampled_python": sum(python.values()),
        "python_classes": _shares(python) or "by its own lines and built-ins",
        **{"PAYS": _PAYS, "ENOUGH_SEEN": _ENOUGH_SEEN},
    }
    if projection:
        known |= _known_on_gpu(projection, trace) | {"batch": _paying_batch(projected, least_saving_s)}
    rules = shipped_toml(__package__, "advice.toml")
    rule = next(rule for rule in rules["rule"] if evaluate(rule["when"])(known))
    advice, reason, evidence = (_template(text).render(known) for text in (rule["advice"], rule["reason"], rules["evidence"]))
    is_priced = projection and not profile.is_too_busy
    workload_gain = _gain(projection, projection.on_gpu, share) if is_priced else None
    priced = {"standing": "projected", "gain": workload_gain}
    return Candidate(
        workload=profile.workload,
        function=function.name,
        share=share,
        tool="cProfile" if function.sampled_own_share is None else "py-spy",
        largest_gain=1 / (1 - share) if share < 1 else None,
        projection=projection,
        gain=known["moved"] if is_priced else None,
        workload_gain=workload_gain,
        advice=advice,
        reason=f"{reason} {evidence}".strip(),
        routes=[each.route.model_copy(update=priced if each.advice == "port it" and is_priced else {}) for each in found],
    )


def _known_on_gpu(projection: Projection, trace: ArrayTrace) -> dict[str, Any]:
    python_share = min(1.0, projection.by_cause["Python"] / projection.now.value)
    moved_bytes = sum(operation.moved_bytes or 0 for operation in trace.operations)
    unknown = sorted((o for o in trace.operations if o.kind == "unknown"), key=lambda operation: -operation.time_s)[:3]
    return {
        "moved": _gain(projection, projection.on_gpu),
        "resident": _gain(projection, projection.on_gpu_resident),
        "python_share": python_share,
        "is_projected": projection.coverage >= _ENOUGH_SEEN and python_share < _MOST,  # well enough, and not mostly Python
        "set_up_s": min(set_up_seconds(trace), projection.now.value),
        "reads_again": moved_bytes / ((trace.input_bytes + trace.output_bytes) or 1),
        "unknown_calls": ", ".join(f"{operation.name} ({format_value(operation.time_s, 's')})" for operation in unknown),
    }


def _gain(projection: Projection, on_gpu: Quantity, share: float = 1.0) -> Quantity:
    """Times as fast, of what the function is `share` of (Amdahl); 1.0: of the function itself."""
    low, high = (1 / (1 - share + share * seconds / projection.now.value) for seconds in (on_gpu.high, on_gpu.low))
    return Quantity.projected(low, high, "x", projection.gpu, on_gpu.bound_by)


def _paying_batch(projected: Callable[..., Projection], least_saving_s: float) -> int | None:
    """So many calls made as one pay, 1 if they do as they are: in the slow end of the band, and by enough seconds."""
    for batch in (2**k for k in range(17)):
        projection = projected(batch=batch)
        now_s, on_gpu_s = projection.now.value, projection.on_gpu.high
        least = _PAYS_THOUGH_IDLE if projection.bound_by == "launches" else _PAYS
        if now_s / on_gpu_s >= least and now_s - on_gpu_s >= least_saving_s:
            return batch
    return None
