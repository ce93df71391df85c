"""From profiles to a decision: which functions to look at, every way out of them, and the cheapest one that is enough."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from .calibrate import Calibration
from .gpu import Rates, gpu_rates
from .projection import PYTHON_CLASSES, project, set_up_seconds
from .routes import Found, routes_of

PAYS = 1.5  # times as fast in the slow end: below, a port costs more than it brings
_PAYS_THOUGH_IDLE = 3  # the same where starting kernels bounds it, and the GPU has little to do
_CHEAPER_PAYS = 1.2  # times as fast, measured, in the slow end: a change of a few lines on the same machine
_NOTHING = 1.2  # times as fast in the fast end: not worth a trial
_SEEN = 0.6  # coverage from which a projection is a basis to decide on
_MOST = 0.5  # share of the time that makes a cause the cause
_BATCHES = tuple(2**k for k in range(1, 17))


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
    cases = [
        _Case.of(profile, function, rates, least_saving_s)
        for profile in profiles
        for function in profile.functions
        if profile.share(function) >= smallest_share
    ]
    cases.sort(key=lambda case: (-(case.seconds or 0), -case.share))
    return [case.candidate() for case in cases]


@dataclass(frozen=True)
class _Case:
    """One function, and all that is known of it."""

    profile: WorkloadProfile
    function: FunctionTime
    trace: ArrayTrace | None
    rates: Rates | None
    least_saving_s: float
    projection: Projection | None
    found: list[Found]

    @classmethod
    def of(cls, profile: WorkloadProfile, function: FunctionTime, rates: Rates | None, least_saving_s: float) -> "_Case":
        key = (function.name, function.file, function.line)
        trace = next((trace for trace in profile.traces if (trace.function, trace.file, trace.line) == key), None)
        projection = project(function, profile, trace, rates) if rates else None
        # An alternative takes the place of the whole workload: it stands with the function that owns most of that.
        alternatives = profile.alternatives if function == profile.functions[0] else ()
        found = routes_of(function, trace, profile, alternatives=alternatives, gpu=rates and rates.gpu)
        return cls(profile, function, trace, rates, least_saving_s, projection, found)

    @property
    def share(self) -> float:
        return self.profile.share(self.function)

    @property
    def seconds(self) -> float | None:
        """Of one run; None: a process attached to."""
        quiet_s = self.profile.quiet_s
        return None if quiet_s is None else self.share * quiet_s

    def gain(self, on_gpu: Quantity, share: float = 1.0) -> Quantity:
        """Times as fast, of what the function is `share` of (Amdahl); 1.0: of the function itself."""
        now_s = self.projection.now.value
        low, high = (1 / (1 - share + share * seconds / now_s) for seconds in (on_gpu.high, on_gpu.low))
        return Quantity.projected(low, high, "x", self.projection.gpu, on_gpu.bound_by)

    @functools.cached_property
    def moved(self) -> Quantity:
        return self.gain(self.projection.on_gpu)

    @functools.cached_property
    def resident(self) -> Quantity:
        return self.gain(self.projection.on_gpu_resident)

    def pays(self, projection: Projection) -> bool:
        """In the slow end of the band, and by enough seconds."""
        gain = projection.now.value / projection.on_gpu.high
        least = _PAYS_THOUGH_IDLE if projection.bound_by == "launches" else PAYS
        return gain >= least and projection.now.value - projection.on_gpu.high >= self.least_saving_s

    def way(self, *kinds: str, advice: Advice | None = None) -> Found | None:
        """The first way of these kinds that takes the place of half the function's time."""
        return next(
            (
                each
                for each in self.found
                if each.route.kind in kinds and each.covers >= _MOST and each.advice and advice in (None, each.advice)
            ),
            None,
        )

    @property
    def on_gpu(self) -> str:
        return f"{self.projection.now} here, {self.projection.on_gpu} on {self.projection.gpu}"

    def candidate(self) -> Candidate:
        advice, reason = next(answer for rule in _RULES if (answer := rule(self)))
        is_priced = self.projection and not self.profile.is_too_busy
        gain, workload_gain = (self.moved, self.gain(self.projection.on_gpu, self.share)) if is_priced else (None, None)
        routes = []
        for route in (each.route for each in self.found):
            is_port = route.kind == "CuPy port" and workload_gain and "offered" in route.standing
            routes.append(route.model_copy(update={"standing": "projected", "gain": workload_gain}) if is_port else route)
        return Candidate(
            workload=self.profile.workload,
            function=self.function.name,
            share=self.share,
            tool="cProfile" if self.function.sampled_own_share is None else "py-spy",
            largest_gain=1 / (1 - self.share) if self.share < 1 else None,
            projection=self.projection,
            gain=gain,
            workload_gain=workload_gain,
            advice=advice,
            reason=f"{reason} {_seen(self.profile, self.function, self.share)}".strip(),
            routes=routes,
        )


# Rules -------------------------------------------------------------------------------------------------------------------

_Answer = tuple[Advice, str] | None  # what to do, and why in a sentence or two that name the numbers; None: the next rule


def _by_measured_alternative(case: _Case) -> _Answer:
    for found in case.found:
        route = found.route
        if route.standing == "measured" and route.same_answer and route.gain.low >= _CHEAPER_PAYS:
            return (
                "change the call",
                f"{route.name} in its place makes the whole run {route.gain} as fast, measured, same answer.",
            )
    return None


def _too_short(case: _Case) -> _Answer:
    if case.seconds is None or case.seconds >= case.least_saving_s:
        return None
    now, least = (format_value(seconds, "s") for seconds in (case.seconds, case.least_saving_s))
    return "leave it", f"It takes {now} of a run: less than the {least} that a change must save to be worth its work."


def _by_cheaper_call(case: _Case) -> _Answer:
    found = next((each for each in case.found if each.comes_first and each.covers >= _MOST), None)
    return found and (found.advice, f"{found.route.name}: {found.route.why}.")


def _too_busy(case: _Case) -> _Answer:
    if not case.profile.is_too_busy:
        return None
    return "unknown", (
        f"Other programs used {case.profile.other_load:.0%} of the processors while it was measured: "
        "its times would invent a gain; profile again when the machine is quiet."
    )


def _by_drop_in(case: _Case) -> _Answer:
    """Where a library offers the very call, and what it computes cannot be projected."""
    found = case.way("drop-in library")
    if not found or (case.projection and case.projection.coverage >= _SEEN and not _python_s(case) >= _MOST * case.seconds):
        return None
    return "try the drop-in", f"{found.route.name}, {found.route.standing}, not projected: {found.route.why}."


def _unseen(case: _Case) -> _Answer:
    if case.projection:
        return None
    python = _python_classes(case)
    if sum(python.values()) >= _MOST and not case.trace:
        return "leave it", f"{_name_shares(python)} of its own time: no GPU takes that over, and no arrays were seen."
    return "unknown", "" if case.rates is None else "Its time or its arrays were not seen, so nothing is projected."


def _python_bound(case: _Case) -> _Answer:
    python_s, now_s = _python_s(case), case.projection.now.value
    if python_s < _MOST * now_s:
        return None
    if (set_up_s := set_up_seconds(case.trace)) >= _MOST * python_s:
        return "batch first", (
            f"Of {case.projection.now} here at least {format_value(min(set_up_s, now_s), 's')} is the framework's own set-up, "
            "which no GPU takes over: larger batches share it; a call of the model itself, not `predict`, is without it."
        )
    python = _python_classes(case)
    named = f"Python takes {min(1, python_s / now_s):.0%} of its own time" + (f" ({_name_shares(python)})" if python else "")
    return "leave it", f"{named} and stays on the CPU."


def _by_port(case: _Case) -> _Answer:
    if not case.pays(case.projection):
        return None
    return "port it", f"{case.on_gpu}, transfers included: {case.moved}{_bound(case)}."


def _by_kernel(case: _Case) -> _Answer:
    found = case.way("kernel of your own", advice="write a kernel")
    return found and ("write a kernel", f"{found.route.name}: {found.route.why}.")


def _too_little_seen(case: _Case) -> _Answer:
    coverage = case.projection.coverage
    if coverage >= _SEEN:
        return None
    return "unknown", (
        f"Only {coverage:.0%} of its own time was seen as array operations of known cost or Python; "
        f"with the rest unknown {case.projection.gpu} would give {case.moved}.{_unknown_calls(case.trace)}"
    )


def _by_batch(case: _Case) -> _Answer:
    def in_batches_of(batch: int) -> bool:
        return case.pays(project(case.function, case.profile, case.trace, case.rates, batch=batch))

    batch = next(filter(in_batches_of, _BATCHES), None)
    if batch is None:
        return None  # so it is not the starts that keep it from paying
    n_calls = sum(operation.n_calls for operation in case.trace.operations if operation.kind != "view")
    return "batch first", (
        f"Starting kernels for {n_calls:,} operations would take {format_value(case.projection.by_cause['launches'], 's')} of "
        f"{case.on_gpu}: with about {batch:,} times as many rows in each call it would be sure to pay."
    )


def _by_residence(case: _Case) -> _Answer:
    saved_s = case.projection.now.value - case.projection.on_gpu_resident.high
    if case.resident.low < PAYS or saved_s < case.least_saving_s:
        return None
    return (
        "keep the data on the GPU",
        f"{case.on_gpu}: {case.moved}, for transfers take {_transfers(case)}; {case.resident} without.",
    )


def _by_conditional_call(case: _Case) -> _Answer:
    found = case.way("algorithm")
    return found and (found.advice, f"{found.route.name}: {found.route.why}.")


def _no_gain(case: _Case) -> _Answer:
    if case.resident.high >= _NOTHING:
        return None
    return (
        "leave it",
        f"No gain: {case.on_gpu}, bound by {case.projection.bound_by}; no better with the data already there.",
    )


def _undecided(case: _Case) -> _Answer:
    return "unknown", (
        f"{case.on_gpu}: {case.moved}, bound by {case.projection.bound_by}; "
        "the band holds no decision, so measure before a port."
    )


_RULES: tuple[Callable[[_Case], _Answer], ...] = (  # the first that answers decides: what is cheaper comes first
    _by_measured_alternative,
    _too_short,
    _by_cheaper_call,
    _by_drop_in,
    _by_kernel,
    _unseen,
    _python_bound,
    _too_busy,
    _by_port,
    _too_little_seen,
    _by_batch,
    _by_residence,
    _by_conditional_call,
    _no_gain,
    _undecided,
)


# Words -------------------------------------------------------------------------------------------------------------------


def _python_s(case: _Case) -> float:
    return case.projection.by_cause["Python"] if case.projection else 0.0


def _python_classes(case: _Case) -> dict[str, float]:
    return {name: share for name in PYTHON_CLASSES if (share := case.function.own_by_class.get(name, 0.0))}


def _name_shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))


def _unknown_calls(trace: ArrayTrace) -> str:
    """Which calls nobody knows the cost of, the longest first."""
    longest = sorted((o for o in trace.operations if o.kind == "unknown"), key=lambda o: -o.time_s)[:3]
    names = ", ".join(f"{o.name} ({format_value(o.time_s, 's')})" for o in longest)
    return f" Of unknown cost: {names}; what they do on a GPU only a trial there says." if longest else ""


def _transfers(case: _Case) -> str:
    bytes_in, bytes_out = (format_value(n, "bytes") for n in (case.trace.input_bytes, case.trace.output_bytes))
    return f"{format_value(case.projection.by_cause['transfers'], 's')} ({bytes_in} in, {bytes_out} out)"


def _bound(case: _Case) -> str:
    if case.projection.bound_by != "transfers":
        return f"; bound by {case.projection.bound_by}"
    back = case.trace.output_bytes > case.trace.input_bytes
    way, better = (
        ("the result's way back", "keep it on the GPU or reduce it there") if back else ("the way in", "keep the data there")
    )
    return f"; bound by {way} ({_transfers(case)}): {better}, and it is {case.resident}"


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
