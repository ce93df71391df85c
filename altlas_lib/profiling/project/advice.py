"""From profiles to a decision: which functions to look at, every way out of them, and the cheapest one that is enough.

What decides, and the sentences that say why, stand in `advice.toml`.
"""

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from jinja2 import Environment

from ...devices import GpuSpec, find_gpu
from ...results import ArrayTrace, Candidate, Ceilings, FunctionTime, Projection, Quantity, WorkloadProfile, format_value
from ..record.folding import OWN_LINES
from .calibrate import Calibration
from .gpu import Rates, gpu_rates
from .projection import PYTHON_CLASSES, project, set_up_seconds
from .routes import Found, routes_of

_PAYS_THOUGH_IDLE = 3  # times as fast, where starting kernels bounds it, and the GPU has little to do
_MOST = 0.5  # share of the time that makes a way out the way out
_BATCHES = tuple(2**k for k in range(17))
JINJA = Environment(autoescape=False)
JINJA.filters |= {unit: functools.partial(format_value, unit=unit) for unit in ("s", "bytes")}
JINJA.filters |= {"percent": "{:.0%}".format, "count": "{:,.0f}".format}


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
        _Case(profile, function, rates, least_saving_s)
        for profile in profiles
        for function in profile.functions
        if profile.share(function) >= smallest_share
    ]
    cases.sort(key=lambda case: (-(case.seconds or 0), -case.share))
    return [case.candidate() for case in cases]


@functools.cache
def _rules() -> list[dict]:
    rules = tomllib.loads(resources.files(__package__).joinpath("advice.toml").read_text("utf-8"))["rule"]
    sentences = [{key: JINJA.from_string(rule[key]) for key in ("advice", "reason")} for rule in rules]
    return [{"holds": JINJA.compile_expression(rule["when"]), **each} for rule, each in zip(rules, sentences, strict=True)]


@dataclass(frozen=True)
class _Case:
    """One function, and all that is known of it: what the conditions and sentences of advice.toml are about."""

    profile: WorkloadProfile
    function: FunctionTime
    rates: Rates | None
    least_saving_s: float

    PAYS = 1.5  # times as fast in the slow end: below, a port costs more than it brings
    ENOUGH_SEEN = 0.6  # coverage from which a projection is a basis to decide on

    def candidate(self) -> Candidate:
        rule = next(rule for rule in _rules() if rule["holds"](case=self))
        is_priced = self.projection and not self.profile.is_too_busy
        workload_gain = self._gain(self.projection.on_gpu, self.share) if is_priced else None
        projected = {"standing": "projected", "gain": workload_gain}
        return Candidate(
            workload=self.profile.workload,
            function=self.function.name,
            share=self.share,
            tool="cProfile" if self.function.sampled_own_share is None else "py-spy",
            largest_gain=1 / (1 - self.share) if self.share < 1 else None,
            projection=self.projection,
            gain=self.moved if is_priced else None,
            workload_gain=workload_gain,
            advice=rule["advice"].render(case=self),
            reason=f"{rule['reason'].render(case=self)} {self._evidence()}".strip(),
            routes=[
                each.route.model_copy(update=projected if each.advice == "port it" and is_priced else {}) for each in self.found
            ],
        )

    # Its time.

    @cached_property
    def share(self) -> float:
        return self.profile.share(self.function)

    @property
    def seconds(self) -> float | None:
        """Of one run; None: a process attached to."""
        quiet_s = self.profile.quiet_s
        return None if quiet_s is None else self.share * quiet_s

    @cached_property
    def trace(self) -> ArrayTrace | None:
        key = (self.function.name, self.function.file, self.function.line)
        return next((trace for trace in self.profile.traces if (trace.function, trace.file, trace.line) == key), None)

    @property
    def python_share(self) -> float:
        return min(1.0, self.projection.by_cause["Python"] / self.projection.now.value)

    @property
    def set_up_s(self) -> float:
        return min(set_up_seconds(self.trace), self.projection.now.value)

    @property
    def sampled_python(self) -> float:
        return sum(self.function.own_by_class.get(name, 0.0) for name in PYTHON_CLASSES)

    @property
    def python_classes(self) -> str:
        shares = {name: self.function.own_by_class.get(name, 0.0) for name in PYTHON_CLASSES}
        largest = sorted(shares, key=shares.get, reverse=True)
        return ", ".join(f"{name} {shares[name]:.0%}" for name in largest if shares[name]) or "by its own lines and built-ins"

    @property
    def unknown_calls(self) -> str:
        """Which calls nobody knows the cost of, the longest first."""
        unknown = (operation for operation in self.trace.operations if operation.kind == "unknown")
        longest = sorted(unknown, key=lambda operation: -operation.time_s)[:3]
        names = ", ".join(f"{operation.name} ({format_value(operation.time_s, 's')})" for operation in longest)
        return f" Of unknown cost: {names}; what they do on a GPU only a trial there says." if longest else ""

    def _evidence(self) -> str:
        n_samples, n_calls = self.profile.n_samples, self.function.n_calls
        of = "the time under cProfile" if self.function.sampled_own_share is None else f"{n_samples:,} samples"
        calls = "" if n_calls is None else f", {n_calls:,} call{'s' if n_calls != 1 else ''} per run"
        libraries = {name.replace(OWN_LINES, "its own lines"): part for name, part in self.function.own_by_library.items()}
        parts = [f"{part:.0%} in {name}" for name, part in libraries.items() if part >= 0.05]
        return f"{self.share:.0%} of {of}{calls}{'; ' if parts else ''}{', '.join(parts)}"

    # On the GPU.

    @cached_property
    def projection(self) -> Projection | None:
        return project(self.function, self.profile, self.trace, self.rates) if self.rates else None

    @property
    def is_projected(self) -> bool:
        """Well enough, and not mostly Python."""
        return bool(self.projection) and self.projection.coverage >= self.ENOUGH_SEEN and self.python_share < _MOST

    def _gain(self, on_gpu: Quantity, share: float = 1.0) -> Quantity:
        """Times as fast, of what the function is `share` of (Amdahl); 1.0: of the function itself."""
        now_s = self.projection.now.value
        low, high = (1 / (1 - share + share * seconds / now_s) for seconds in (on_gpu.high, on_gpu.low))
        return Quantity.projected(low, high, "x", self.projection.gpu, on_gpu.bound_by)

    @cached_property
    def moved(self) -> Quantity:
        return self._gain(self.projection.on_gpu)

    @cached_property
    def resident(self) -> Quantity:
        return self._gain(self.projection.on_gpu_resident)

    @property
    def reads_again(self) -> float:
        moved_bytes = sum(operation.moved_bytes or 0 for operation in self.trace.operations)
        return moved_bytes / ((self.trace.input_bytes + self.trace.output_bytes) or 1)

    @cached_property
    def batch(self) -> int | None:
        """So many calls made as one pay, 1 if they do as they are: in the slow end of the band, and by enough seconds."""
        for batch in _BATCHES:
            projection = project(self.function, self.profile, self.trace, self.rates, batch=batch)
            now_s, on_gpu_s = projection.now.value, projection.on_gpu.high
            least = _PAYS_THOUGH_IDLE if projection.bound_by == "launches" else self.PAYS
            if now_s / on_gpu_s >= least and now_s - on_gpu_s >= self.least_saving_s:
                return batch
        return None

    # Ways out.

    @cached_property
    def found(self) -> list[Found]:
        # An alternative takes the place of the whole workload: it stands with the function that owns most of that.
        alternatives = self.profile.alternatives if self.function == self.profile.functions[0] else ()
        gpu = self.rates and self.rates.gpu
        return routes_of(self.function, self.trace, self.profile, alternatives=alternatives, gpu=gpu)

    @cached_property
    def ways(self) -> dict[str, Found]:
        """By how it is decided on, the first that takes the place of half the function's time."""
        return {each.decides: each for each in reversed(self.found) if each.covers >= _MOST and each.advice}
