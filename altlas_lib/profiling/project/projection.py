"""What a function would take on another processor: each operation by its work and its bytes, transfers, and what stays.

Of a function's own time on this CPU
- operations on arrays whose cost is known move. Each takes its start, and in the fast end the longer of work / rate and bytes /
  bandwidth, for the two overlap: the roofline (Williams, Waterman, Patterson 2009). In the slow end nothing overlaps, and both
  count. Views cost nothing;
- Python (interpreter, regular expressions, parsing, waiting) stays on the CPU and takes as long as now;
- of a framework's call (Keras' `predict`) what its kernels cannot have taken on any CPU is its own set-up, which stays as well;
- the rest is unseen: nobody knows what it computes. In the slow end it stays as it is, in the fast end it takes a tenth, which
  is what porting array code commonly brings.
"""

import math
import sys
from collections.abc import Iterable

from ...results import ArrayOperation, ArrayTrace, FunctionTime, Projection, Quantity, WorkloadProfile
from ..record.folding import OWN_LINES
from .gpu import Band, Rates, n_items, operation_class

PYTHON_CLASSES = ("interpreter", "regex", "parsing", "waiting")  # of results.TimeClass: what no GPU takes over
_PYTHONS_OWN = frozenset({OWN_LINES, "builtins", "generated code", *sys.stdlib_module_names})  # in `own_by_library`
ELEMENT_ACCESS_S = 0.1e-6  # one element of an array read or written from Python: mostly making the object for it
_PYTHON_OF_A_CALL_S = 5e-6  # that np.linalg.norm, np.mean and their like run around their C code
_MORE_THAN_TRACED = 1.5
_UNSEEN_AT_BEST = 0.1
_CALL_S = 0.05e-6  # of the function itself, whatever it does
_TRANSFER_START_S = (10e-6, 30e-6)  # the call, the driver, and waiting for the end
# The least that one core of a CPU does: slower than that, a framework's call is not busy with its kernels.
_LEAST_FLOPS_PER_S, _LEAST_BYTES_PER_S = 10e9, 5e9
_PYTHON_SPREAD = 1.05  # from one run of the same code to the next; never faster than now


def operation_seconds(operation: ArrayOperation, rates: Rates) -> dict[str, Band]:
    """Seconds of all its calls by cause ("compute", "memory", "launches"); nothing for a view or where the cost is unknown."""
    if operation.kind in ("view", "unknown"):
        return {}
    of, n, items = operation_class(operation), operation.n_calls, n_items(operation)
    work, moved_bytes = operation.flops or 0.0, operation.moved_bytes or 0.0
    slow, fast = rates.work_rate(of, work / n / items)
    compute = work / fast, work / slow
    slow, fast = rates.bandwidth(of, operation.working_set_bytes)
    memory = moved_bytes / fast, moved_bytes / slow
    if compute[0] >= memory[0]:
        memory = 0.0, memory[1]  # hidden
    else:
        compute = 0.0, compute[1]
    starts = operation.n_kernels if rates.on_gpu else 1
    of_item = rates.item_s.get(of.name, (0.0, 0.0))
    launches = tuple(n * (starts * start + (items - 1) * item) for start, item in zip(rates.start(of), of_item, strict=True))
    return {"compute": compute, "memory": memory, "launches": launches}


def total(bands: Iterable[Band]) -> Band:
    lows, highs = zip((0.0, 0.0), *bands, strict=True)
    return sum(lows), sum(highs)


def middle(band: Band | Quantity) -> float:
    """Geometric: as far from one end as from the other, in times."""
    low, high = (band.low, band.high) if isinstance(band, Quantity) else band
    return math.sqrt(low * high)


def transfer_seconds(trace: ArrayTrace, rates: Rates, batch: int = 1) -> Band:
    """A function's arrays brought in and its results back, in each of its calls; pageable memory in the slow end, pinned in
    the fast one. What is resident, such as weights, is moved once and counts nowhere."""
    if not rates.on_gpu:
        return 0.0, 0.0
    n_times = trace.n_calls / batch
    ways = ((trace.input_bytes, rates.to_device), (trace.output_bytes, rates.to_host))
    return total(
        (n_bytes / fast + n_times * _TRANSFER_START_S[0], n_bytes / slow + n_times * _TRANSFER_START_S[1])
        for n_bytes, (slow, fast) in ways
        if n_bytes
    )


def split(function: FunctionTime, trace: ArrayTrace, now_s: float) -> tuple[float, float, float]:
    """`now_s`, the function's own seconds, as operations of known cost, Python, and what is unseen.

    Without classes of time, operations took what the tracer measured, at most everything; of the rest, what cProfile saw in
    the function's own lines, built-ins and the standard library is Python. Where py-spy saw native frames, its classes correct
    what one traced run says: Python is what they say, and reads and writes of single elements; but libraries run some of it
    inside of each operation, which is the operation's. Time in array libraries is the operations', for the tracer sees all that
    the lines ask for, though no more than half as much again as it measured.
    """
    at_most = min(1.0, now_s / trace.operations_s) if trace.operations_s else 1.0
    known_s, operations_s = at_most * trace.known_s, at_most * trace.operations_s
    rest_s = max(0.0, now_s - operations_s)
    python_s = rest_s * sum(share for name, share in function.own_by_library.items() if name in _PYTHONS_OWN)
    if function.own_by_class:
        sampled_s = now_s * sum(function.own_by_class.get(name, 0.0) for name in PYTHON_CLASSES)
        inside_s = sum(min(operation.time_s, operation.n_calls * _PYTHON_OF_A_CALL_S) for operation in trace.operations)
        python_s = min(rest_s, sampled_s + trace.n_element_accesses * ELEMENT_ACCESS_S)
        python_s = max(python_s, sampled_s - inside_s)
        arrays_s = now_s * function.own_by_class.get("arrays", 0.0)
        of_known = known_s / operations_s if operations_s else 0.0
        known_s = max(known_s, min(arrays_s * of_known, _MORE_THAN_TRACED * known_s))
    python_s = min(now_s, python_s + at_most * set_up_seconds(trace))
    known_s = max(0.0, min(known_s, now_s - python_s))
    return known_s, python_s, max(0.0, now_s - known_s - python_s)


def set_up_seconds(trace: ArrayTrace) -> float:
    """What calls of a framework spent on their own set-up, at least: their time without the most that the kernels can take."""
    return sum(
        max(0.0, o.time_s - (o.flops or 0) / _LEAST_FLOPS_PER_S - (o.moved_bytes or 0) / _LEAST_BYTES_PER_S)
        for o in trace.operations
        if o.kind == "model" and o.flops is not None
    )


def project(
    function: FunctionTime,
    profile: WorkloadProfile,
    trace: ArrayTrace | None,
    rates: Rates,
    correction: tuple[float, float, float] | None = None,
    *,
    batch: int = 1,
) -> Projection | None:
    """The function's own work on the device of `rates`; None where its arrays were not traced, or it was not timed.

    Args:
        correction: of `Residuals.correction`: the GPU's seconds are multiplied by its first number, and their band is made no
            narrower than from the second to the third, times its middle.
        batch: so many calls made as one: the same work and bytes, started once. Conservative, for what a larger batch saves
            besides, such as weights that are read once, is not counted.
    """
    share = profile.share(function)
    if trace is None or profile.total is None or not share:
        return None
    # The fastest run: else a busy machine, which slows the measured side only, would look like a gain.
    now = Quantity.measured([share * profile.total.low], profile.total.unit, profile.total.device)
    if not now.value:
        return None
    _, python_s, unseen_s = split(function, trace, now.value)
    python_s = max(python_s, min(now.value, trace.n_calls * _CALL_S))
    causes: dict[str, Band] = dict.fromkeys(("compute", "memory", "launches", "transfers"), (0.0, 0.0))
    for operation in trace.operations:
        for cause, band in operation_seconds(operation, rates).items():
            causes[cause] = total([causes[cause], band])
    causes["launches"] = causes["launches"][0] / batch, causes["launches"][1] / batch
    causes["transfers"] = transfer_seconds(trace, rates, batch)
    moved = corrected(total(causes.values()), correction)
    resident = corrected(total([causes["compute"], causes["memory"], causes["launches"]]), correction)
    if correction:
        causes = {cause: (low * correction[0], high * correction[0]) for cause, (low, high) in causes.items()}
    causes["Python"] = python_s, python_s * _PYTHON_SPREAD
    causes["unseen"] = _UNSEEN_AT_BEST * unseen_s, unseen_s
    by_cause = {cause: sum(band) / 2 for cause, band in causes.items()}
    stays = total([causes["Python"], causes["unseen"]])

    def projected(band: Band, *without: str) -> Quantity:
        low, high = total([band, stays])
        known = {cause: s for cause, s in by_cause.items() if cause not in ("unseen", *without)}
        bound_by = "unseen" if by_cause["unseen"] > sum(known.values()) else max(known, key=known.get)
        return Quantity.projected(low, max(high, low * _PYTHON_SPREAD), "s", rates.device, bound_by)

    return Projection(
        gpu=rates.device,
        basis=rates.basis,
        now=now,
        on_gpu=projected(moved),
        on_gpu_resident=projected(resident, "transfers"),
        by_cause=by_cause,
        coverage=min(1.0, max(0.0, 1 - unseen_s / now.value)),
    )


def corrected(band: Band, correction: tuple[float, float, float] | None) -> Band:
    if correction is None:
        return band
    factor, least, most = correction
    return min(band[0] * factor, middle(band) * least), max(band[1] * factor, middle(band) * most)
