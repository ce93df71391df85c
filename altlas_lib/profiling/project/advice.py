"""From profiles to a decision: which functions to look at first, what a GPU would gain from each, and what to do about it."""

from collections.abc import Callable, Sequence

from ...devices import GpuSpec, find_gpu
from ...results import (
    Advice,
    ArrayTrace,
    Candidate,
    Ceilings,
    FunctionTime,
    Projection,
    Quantity,
    WorkloadProfile,
    format_value,
)
from ..record.folding import OWN_LINES
from .gpu import Rates, gpu_rates
from .projection import ELEMENT_ACCESS_S, PYTHON_CLASSES, middle, project, set_up_seconds
from .residuals import Correction, Residuals

PAYS = 1.5  # times as fast in the slow end: below, a port costs more than it brings
_PAYS_THOUGH_IDLE = 3  # the same where starting kernels bounds it, and the GPU has little to do
_NOTHING = 1.2  # times as fast in the fast end: not worth a trial
_SEEN = 0.6  # coverage from which a projection is a basis to decide on
_MOST = 0.5  # share of the time that makes a cause the cause
_BATCHES = tuple(2**k for k in range(1, 17))
_TINY_BYTES = 2**13  # an operation on less is the call more than the work
# The Python code that commonly surrounds an element read or written in a loop, and an operation on a tiny array.
_ELEMENT_STEP_S, _TINY_STEP_S = 0.4e-6, 3e-6


def rank_candidates(
    profiles: Sequence[WorkloadProfile],
    *,
    gpu: GpuSpec | str | None = None,
    ceilings: Ceilings | None = None,
    residuals: Residuals | None = None,
    per_workload: int = 2,
    smallest_share: float = 0.1,
) -> list[Candidate]:
    """The functions that are worth a closer look, at most `per_workload` of each workload, largest projected gain first.

    A function's share of the workload is its own time's, library code folded in (`WorkloadProfile.share`), so shares add up.
    Below `smallest_share` a function is no candidate: at 0.1 even one that took no time would make the workload 1.11 times as
    fast. That bound is Amdahl's (1967), 1 / (1 - share). What a GPU gains of the workload follows by the same law. Where
    nothing is projected, the largest share comes first.

    Args:
        gpu: project onto this one, a row of the catalogue or its name; None: nothing is projected.
        ceilings: of chapter 00; taken in place of the data sheet where they were measured on such a GPU.
        residuals: what was learned of GPUs that ran; corrects the projection where such a GPU is among them.

    Raises:
        ValueError: `gpu` is not in the catalogue.
    """
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    rates = gpu_rates(gpu, ceilings) if gpu else None
    correction = residuals.correction(gpu.name) if residuals and gpu else None
    candidates = []
    for profile in profiles:
        of_profile = [
            _candidate(profile, function, share, rates, correction)
            for function in profile.functions
            if (share := profile.share(function) or 0.0) >= smallest_share
        ]
        candidates += sorted(of_profile, key=_rank, reverse=True)[:per_workload]
    return sorted(candidates, key=_rank, reverse=True)


def _rank(candidate: Candidate) -> tuple[float, float]:
    return middle(candidate.workload_gain) if candidate.workload_gain else 1.0, candidate.share


def _candidate(
    profile: WorkloadProfile, function: FunctionTime, share: float, rates: Rates | None, correction: Correction | None
) -> Candidate:
    key = (function.name, function.file, function.line)
    trace = next((trace for trace in profile.traces if (trace.function, trace.file, trace.line) == key), None)
    projection = project(function, profile, trace, rates, correction) if rates else None
    gain = workload_gain = None
    if projection:
        gain = _gain(projection, projection.on_gpu, 1.0)
        workload_gain = _gain(projection, projection.on_gpu, share)

    def pays_in_batches_of(batch: int) -> bool:
        batched = project(function, profile, trace, rates, correction, batch=batch)
        return _pays(batched, _gain(batched, batched.on_gpu, 1.0))

    advice, reason = _advice(function, trace, projection, rates, pays_in_batches_of)
    return Candidate(
        workload=profile.workload,
        function=function.name,
        share=share,
        tool="cProfile" if function.sampled_own_share is None else "py-spy",
        largest_gain=1 / (1 - share) if share < 1 else None,
        projection=projection,
        gain=gain,
        workload_gain=workload_gain,
        advice=advice,
        reason=f"{reason} {_seen(profile, function, share)}".strip(),
    )


def _pays(projection: Projection, gain: Quantity) -> bool:
    return gain.low >= (_PAYS_THOUGH_IDLE if projection.bound_by == "launches" else PAYS)


def _gain(projection: Projection, on_gpu: Quantity, share: float) -> Quantity:
    """Times as fast, of what the function is `share` of (Amdahl); 1.0: of the function itself."""
    now_s = projection.now.value
    low, high = (1 / (1 - share + share * seconds / now_s) for seconds in (on_gpu.high, on_gpu.low))
    return Quantity.projected(low, high, "x", projection.gpu, on_gpu.bound_by)


# Advice ------------------------------------------------------------------------------------------------------------------


def _advice(
    function: FunctionTime,
    trace: ArrayTrace | None,
    projection: Projection | None,
    rates: Rates | None,
    pays_in_batches_of: Callable[[int], bool],
) -> tuple[Advice, str]:
    """What to do, and why, in a sentence or two that name the numbers."""
    python = {name: share for name in PYTHON_CLASSES if (share := function.own_by_class.get(name, 0.0))}
    python_share = sum(python.values())
    if projection is None:
        if python_share >= _MOST and not trace:
            return "leave it", f"{_named(python)} of its own time: no GPU takes that over, and no arrays were seen."
        return "unknown", "" if rates is None else "Its time or its arrays were not seen, so nothing is projected."
    now_s, causes = projection.now.value, projection.by_cause
    gain, resident = _gain(projection, projection.on_gpu, 1.0), _gain(projection, projection.on_gpu_resident, 1.0)
    on_gpu = f"{projection.now} here, {projection.on_gpu} on {projection.gpu}"
    if causes["Python"] >= _MOST * now_s:
        named = f"Python takes {min(1, causes['Python'] / now_s):.0%} of its own time" + (
            f" ({_named(python)})" if python else ""
        )
        set_up_s = set_up_seconds(trace)
        if set_up_s >= _MOST * causes["Python"]:
            return "batch first", (
                f"Of {projection.now} here at least {format_value(min(set_up_s, now_s), 's')} is the framework's own set-up, "
                "which no GPU takes over: larger batches share it; a call of the model itself, not `predict`, is without it."
            )
        steps, step_s = _loop(trace)
        if step_s >= _MOST * causes["Python"]:
            return "vectorise first", (
                f"{named}, in a loop of {steps:,} steps over arrays: whole-array operations "
                "of NumPy on this CPU come before any GPU."
            )
        return "leave it", f"{named} and stays on the CPU: at best {format_value(gain.high, 'x')} on {projection.gpu}."
    if _pays(projection, gain):
        return "port it", f"{on_gpu}, transfers included: {gain}{_bound(trace, projection, resident)}."
    if projection.coverage < _SEEN:
        return "unknown", (
            f"Only {projection.coverage:.0%} of its own time was seen as array operations of known cost or Python; "
            f"with the rest unknown {projection.gpu} would give {gain}.{_unknown(trace)}"
        )
    if batch := next(filter(pays_in_batches_of, _BATCHES), None):  # so it is the starts that keep it from paying
        n_calls = sum(operation.n_calls for operation in trace.operations if operation.kind != "view")
        return "batch first", (
            f"Starting kernels for {n_calls:,} operations would take {format_value(causes['launches'], 's')} of {on_gpu}: "
            f"with about {batch:,} times as many rows in each call it would be sure to pay."
        )
    if resident.low >= PAYS:
        return (
            "keep the data on the GPU",
            f"{on_gpu}: {gain}, for transfers take {_transfers(trace, projection)}; {resident} without.",
        )
    if resident.high < _NOTHING:
        return (
            "leave it",
            f"{on_gpu}: {gain}, bound by {projection.bound_by}; {resident} with the data already there.",
        )
    return (
        "unknown",
        f"{on_gpu}: {gain}, bound by {projection.bound_by}; the band holds no decision, so measure before a port.",
    )


def _unknown(trace: ArrayTrace) -> str:
    """Which calls nobody knows the cost of, the longest first."""
    longest = sorted((o for o in trace.operations if o.kind == "unknown"), key=lambda o: -o.time_s)[:3]
    names = ", ".join(f"{o.name} ({format_value(o.time_s, 's')})" for o in longest)
    return f" Of unknown cost: {names}; what they do on a GPU only a trial there says." if longest else ""


def _named(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))


def _loop(trace: ArrayTrace) -> tuple[int, float]:
    """Elements accessed one by one and operations on tiny arrays, and the seconds that a Python loop over them explains."""
    tiny = [o for o in trace.operations if o.kind != "view" and o.working_set_bytes < _TINY_BYTES]
    n_tiny = sum(operation.n_calls for operation in tiny)
    return trace.n_element_accesses + n_tiny, (
        trace.n_element_accesses * (ELEMENT_ACCESS_S + _ELEMENT_STEP_S) + n_tiny * _TINY_STEP_S
    )


def _transfers(trace: ArrayTrace, projection: Projection) -> str:
    bytes_in, bytes_out = (format_value(n, "bytes") for n in (trace.input_bytes, trace.output_bytes))
    return f"{format_value(projection.by_cause['transfers'], 's')} ({bytes_in} in, {bytes_out} out)"


def _bound(trace: ArrayTrace, projection: Projection, resident: Quantity) -> str:
    if projection.bound_by != "transfers":
        return f"; bound by {projection.bound_by}"
    back = trace.output_bytes > trace.input_bytes
    way, better = (
        ("the result's way back", "keep it on the GPU or reduce it there") if back else ("the way in", "keep the data there")
    )
    return f"; bound by {way} ({_transfers(trace, projection)}): {better}, and it is {resident}"


def _seen(profile: WorkloadProfile, function: FunctionTime, share: float) -> str:
    if function.sampled_own_share is not None:
        seen = f"{share:.0%} of {profile.n_samples:,} samples"
    else:
        seen = f"{share:.0%} of the time under cProfile"
    calls = "" if function.n_calls is None else f", {function.n_calls:,} call{'s' if function.n_calls != 1 else ''} per run"
    own_lines = "its own lines" + (", NumPy operators (@, +) included" if function.own_by_class.get("arrays") else "")
    parts = [
        f"{part:.0%} in {own_lines if name == OWN_LINES else name}"
        for name, part in function.own_by_library.items()
        if part >= 0.05
    ]
    return f"{seen}{calls}{'; ' if parts else ''}{', '.join(parts)}"
