"""Every way out of a hotspot, the cheapest first: another call on this CPU, a drop-in GPU library, CuPy, a kernel of one's own.

    [route.name for route in routes_of(function, trace, profile)]  # ['numpy.argpartition', 'cupyx.scipy', 'CuPy']

What runs on this CPU comes from `cheaper_calls.toml`: each entry stands for a predicate below over what was seen.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ...devices import GpuSpec
from ...paths import shipped_toml
from ...results import Advice, Alternative, ArrayOperation, ArrayTrace, FunctionTime, Route, RouteStanding, WorkloadProfile
from ..record.calls import Array
from .gpu_libraries import GpuLibrary, Offer, gpu_libraries, public_parts
from .loops import has_parallel_loops
from .operations import array_bytes

_CHEAPER_PAYS = 1.2  # times as fast, measured, in the slow end: a change of a few lines on the same machine
LEAST_SHARE = 0.1  # of a function's time, below which a way out is not worth a line
_ON_GPU = {"drop-in library": "try the drop-in", "CuPy port": "port it", "kernel of your own": "write a kernel"}


class Found(NamedTuple):
    """A route, and what it is worth to a decision."""

    route: Route
    advice: Advice | None  # what it makes of the function where it is taken; None: it is not to be taken
    covers: float  # share of the function's own time that it takes the place of
    decides: str  # what stands for it in advice.toml: 'measured', 'on this CPU', 'on conditions', or its kind


def routes_of(
    function: FunctionTime, trace: ArrayTrace | None, profile: WorkloadProfile, *, gpu: GpuSpec | None = None
) -> list[Found]:
    """Every way out of a function that is worth a line, the cheapest kind first.

    Within a kind: what was measured, the fastest first, then the order of the tables. Of a CuPy port nothing is projected here.
    An alternative was timed in place of the whole workload: it stands with the function that owns most of that. One whose
    answer differs, or was not compared, is listed and never advised.

    Args:
        trace: None: its arrays were not seen; then its libraries say what it calls.
        gpu: a library that needs a newer one is absent.
    """
    evidence = _Evidence(function, trace, profile)
    alternatives = profile.alternatives if function == profile.functions[0] else ()
    by_kind = sorted(gpu_libraries().values(), key=lambda library: [*_ON_GPU].index(library.kind))
    on_gpu = (_on_gpu(evidence, library, gpu) for library in by_kind)
    return [*_measured(alternatives), *_cheaper_calls(evidence), *filter(None, on_gpu)]


def _measured(alternatives: Iterable[Alternative]) -> Iterator[Found]:
    says = {True: "the same answer", False: "another answer: not to be taken", None: "its answer was not compared"}
    for each in sorted(alternatives, key=lambda each: (not each.same_answer, -each.gain.value)):
        why = f"timed in place of the workload, on the same input: {says[each.same_answer]}"
        measured = {"standing": "measured", "gain": each.gain, "same_answer": each.same_answer}
        advice = "change the call" if each.same_answer and each.gain.low >= _CHEAPER_PAYS else None
        yield Found(Route(kind="algorithm", name=each.name, why=why, **measured), advice, 1.0, "measured")


# What was seen of a function ---------------------------------------------------------------------------------------------


class _Seen:
    """An operation, the first and the last part of its name, and its operands."""

    def __init__(self, operation: ArrayOperation):
        found = (re.fullmatch(r"(.*)\[([0-9, ]*)\]", text, re.DOTALL) for text in operation.operands)  # 'float32[4000, 384]'
        arrays = [Array(each[1], tuple(map(int, re.findall("[0-9]{1,18}", each[2])))) for each in found if each]
        parts = public_parts(operation.name)
        self.operation, self.library, self.last = operation, parts[0], parts[-1].strip("_")
        self.shapes = [array.shape for array in arrays]
        self.operand_bytes = min(sum(map(array_bytes, arrays)), 2**62)

    @property
    def is_long(self) -> bool:
        """Whether one call takes longer than any call of a GPU library."""
        least_s = _SHORT_CALL_ON_TINY_S if 0 < self.operand_bytes < _TINY_BYTES else _SHORT_CALL_S
        return self.operation.time_s >= least_s * self.operation.n_calls

    @property
    def result_bytes(self) -> float:
        """Of one call; 0 where it returns no array."""
        return max(0.0, self.operation.working_set_bytes - self.operand_bytes)


class _Evidence:
    """What was seen of a function; `of_workload`: of all functions, for a matrix may be made in one and searched in another."""

    def __init__(self, function: FunctionTime, trace: ArrayTrace | None, profile: WorkloadProfile):
        self.function, self.seen = function, list(map(_Seen, trace.operations)) if trace else []
        self.of_workload = self.seen + [_Seen(each) for other in profile.traces if other != trace for each in other.operations]
        self.n_calls, self.n_elements = (trace.n_calls, trace.n_element_accesses) if trace else (1, 0)
        now_s = profile.share(function) * profile.quiet_s if profile.total else function.own.value if function.own else 0.0
        self.now_s = max(now_s, sum(each.operation.time_s for each in self.seen))  # the traced run may have been the slower one

    def share(self, seen: Iterable[_Seen]) -> float:
        """Of the function's own time."""
        return min(1.0, sum(each.operation.time_s for each in seen) / self.now_s) if self.now_s else 0.0

    def kernel_of(self, seen: _Seen) -> RouteStanding:
        """Of a function that Numba has compiled: one is offered where its loops have independent steps."""
        numba, _, name = seen.operation.name.partition(":")
        is_parallel = has_parallel_loops(self.function.file, name) if numba == "numba" else None
        return {True: "offered", False: "absent", None: "unknown"}[is_parallel]

    def named(self, names: str) -> list[_Seen]:
        return [each for each in self.seen if each.last in names.split()]

    def library(self, *names: str) -> float:
        """Share of the function's time in libraries, by what says more: cProfile or the trace."""
        traced = (each for each in self.seen if each.library in names)
        return max(sum(self.function.own_by_library.get(name, 0.0) for name in names), self.share(traced))


# Cheaper calls on this CPU: predicates of cheaper_calls.toml, each the share of the function's time that one replaces ------

_PAIRWISE = re.compile("[cp]dist|linear_kernel|(cosine|euclidean|pairwise)_(similarity|distances)")
_LEAST_MATRIX_BYTES = 2**21  # of float64: more than the second-level cache of one core
_TINY_BYTES = 2**13  # an operation on less is the call more than the work
_ELEMENT_STEP_S = 0.3e-6  # an element in a loop: 0.1 us to make its object, and as much for each operation on a NumPy scalar
_AROUND_TINY_S = 1e-6  # of Python around an operation in a loop: some twenty bytecodes of 50 ns
_TABLE_VALUE_S = 2e-6  # a value of a table: the search for its label and checks in Python (pandas, Enhancing performance)
_MANY = 10  # calls of one operation in a run: it stands in a loop, here or around the function
# Estimates: transfers both ways, some dozen kernels and their own Python take a call of cuDF or cuML a millisecond; and a tiny
# array keeps a GPU as busy as a single core, unless much is computed of it.
_SHORT_CALL_S, _SHORT_CALL_ON_TINY_S = 1e-3, 10e-3


def _cheaper_calls(evidence: _Evidence) -> Iterator[Found]:
    for name, entry in shipped_toml(__package__, "cheaper_calls.toml").items():
        covers = globals()[f"_{entry.get('by', name)}"](evidence, **entry.get("with", {}))
        if covers >= entry.get("least", LEAST_SHARE):
            why = f"{entry['why']} ({covers:.0%} of its own time; not measured)"
            route = Route(kind="algorithm", name=entry["route"], standing="offered", why=why)
            yield Found(route, entry["advice"], covers, "on conditions" if entry.get("conditional") else "on this CPU")


def _all_with_all(each: _Seen) -> tuple[int, int] | None:
    """The shape of (n, d) times (d, n), or of a measure of all pairs of n rows."""
    match each.shapes:
        case [(n, d), (e, m)] if each.last in ("matmul", "dot") and (n, d) == (m, e) and n != d:
            return n, n
        case [(n, _), *rest] if _PAIRWISE.fullmatch(each.last) and rest in ([], each.shapes[:1]):
            return n, n
    return None


def _searched_matrix(evidence: _Evidence, searches: str) -> float:
    squares = filter(None, map(_all_with_all, evidence.of_workload))
    made = {square for square in squares if 8 * math.prod(square) >= _LEAST_MATRIX_BYTES}
    made &= {shape for each in evidence.of_workload if each.last in searches.split() for shape in each.shapes}
    return evidence.share(each for each in evidence.seen if made & {_all_with_all(each), *each.shapes})


def _sort_for_a_few(evidence: _Evidence) -> float:
    taken = [e for e in evidence.named("getitem head tail take iloc") if 0 < e.result_bytes <= e.operand_bytes / 20]
    few = {shape for each in taken for shape in each.shapes[:1]}
    return evidence.share(each for each in evidence.named("sort argsort sort_values") if few & {*each.shapes[:1]})


def _rows_of_a_table(evidence: _Evidence) -> float:
    by_row = evidence.named("apply applymap iterrows itertuples map_elements map_rows iter_rows")
    rows = [each for each in by_row if each.library in ("pandas", "polars")]
    lines = [line.share for line in evidence.function.lines if re.search(r"\.(apply(map)?|iter(rows|tuples))\(", line.source)]
    in_pandas = evidence.library("pandas")
    values = min(in_pandas, evidence.n_elements * _TABLE_VALUE_S / evidence.now_s) if evidence.now_s else 0.0
    return max(evidence.share(rows), min(1.0, sum(lines)) if in_pandas else 0.0, values)


def _loop_over_arrays(evidence: _Evidence) -> float:
    computed = (each.operation for each in evidence.seen if each.operation.kind not in ("view", "model", "unknown"))
    in_loop = (each for each in computed if each.n_calls >= _MANY)
    tiny_s = sum(each.time_s + each.n_calls * _AROUND_TINY_S for each in in_loop if each.working_set_bytes < _TINY_BYTES)
    loop_s = evidence.n_elements * _ELEMENT_STEP_S + tiny_s
    return min(1.0, loop_s / evidence.now_s) if evidence.now_s else 0.0


def _float64(evidence: _Evidence) -> float:
    """Where arithmetic takes the time, not the call."""
    wide = (each for each in evidence.seen if each.operation.dtype in ("float64", "complex128"))
    computed = (each for each in wide if each.operation.kind in ("product", "fft", "factorisation"))
    return evidence.share(each for each in computed if each.operation.working_set_bytes >= _TINY_BYTES)


def _small_calls(evidence: _Evidence, names: str, most_bytes: float, least_bytes: int = 0, least_calls: int = 1) -> float:
    """Calls of certain functions on little data."""
    named = (each for each in evidence.seen if {each.operation.name, each.last} & {*names.split()})
    small = (each for each in named if least_bytes <= each.operand_bytes < most_bytes)
    return evidence.share(each for each in small if each.operation.n_calls >= least_calls)


def _serial_loop(evidence: _Evidence) -> float:
    return evidence.share(each for each in evidence.seen if evidence.kernel_of(each) == "absent")


def _regular_expression(evidence: _Evidence) -> float:
    return max(evidence.function.own_by_class.get("regex", 0.0), evidence.library("re", "regex"))


def _parsing_json(evidence: _Evidence) -> float:
    return evidence.library("json") and max(evidence.library("json"), evidence.function.own_by_class.get("parsing", 0.0))


# GPU libraries -----------------------------------------------------------------------------------------------------------


def _on_gpu(evidence: _Evidence, library: GpuLibrary, gpu: GpuSpec | None) -> Found | None:
    """What a library has of the function; where that is too little, that it has nothing of it, or that nobody knows."""
    offers = _offers(evidence, library)
    of = {kind: [each for each in offers if each[0].standing.startswith(kind)] for kind in ("offered", "absent", "unknown")}
    shares = {kind: min(1.0, sum(share for _, share in some)) for kind, some in of.items()}
    standing = next((kind for kind, share in shares.items() if share >= LEAST_SHARE), None)
    if standing is None:
        return None
    conditions = [f"{offer.name} {offer.condition}" for offer, _ in offers if offer.condition]
    if standing == "offered" and (conditions or library.condition or shares["absent"] >= LEAST_SHARE):
        standing = "offered on conditions"
    if gpu and float(gpu.compute_capability) < float(library.least_compute_capability):
        standing, conditions = "absent", [f"not on {gpu.name}, of compute capability {gpu.compute_capability}"]
    says = {"offered": f"for {{}} ({shares['offered']:.0%} of its own time)", "absent": "absent: {}", "unknown": "unknown: {}"}
    seen = [says[kind].format(_some(offer.name for offer, _ in some)) for kind, some in of.items() if some]
    why = "; ".join(filter(None, (*seen, _some(conditions), library.describe())))
    route = Route(kind=library.kind, name=library.name, standing=standing, why=why)
    return Found(route, _ON_GPU[library.kind] if "offered" in standing else None, shares["offered"], library.kind)


def _offers(evidence: _Evidence, library: GpuLibrary) -> list[tuple[Offer, float]]:
    """What it has of a function's calls, and their shares: by the trace, else by the libraries called."""
    if library.kind == "kernel of your own":
        loops = [each for each in evidence.seen if library.offer(each.operation.name)]
        compiled = [(Offer(evidence.kernel_of(loop), f"numba.{loop.last}"), evidence.share([loop])) for loop in loops]
        return compiled or [(Offer("offered", "a loop over elements"), _loop_over_arrays(evidence))]
    tables = [library, gpu_libraries()["cupyx.scipy"]] if library.kind == "CuPy port" else [library]
    computed = (each for each in evidence.seen if each.operation.kind != "view")
    asked = [(each, offer) for each in computed for table in tables if (offer := table.offer(each.operation.name))]
    stays = library.kind == "CuPy port" or library.whole  # on the GPU, from call to call
    if library.kind == "CuPy port" or evidence.share(each for each, _ in asked) >= LEAST_SHARE:
        return [(offer, evidence.share([each])) for each, offer in asked if stays or each.is_long]
    of_hosts = {name: share for name in library.hosts if (share := evidence.library(name)) >= LEAST_SHARE}
    condition = "" if library.whole else "as far as it calls what the library has"
    is_long = stays or evidence.now_s >= _SHORT_CALL_S * evidence.n_calls
    return [(Offer("offered", name, condition), share) for name, share in of_hosts.items() if is_long]


def _some(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
