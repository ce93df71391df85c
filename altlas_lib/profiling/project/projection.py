"""What a function would take on a GPU: each operation by its work and its bytes, transfers, and what stays.

Of a function's own time on this CPU
- operations on arrays whose cost is known move, each as `gpu.operation_seconds` has it. Views cost nothing;
- Python (interpreter, regular expressions, parsing, waiting) stays on the CPU and takes as long as now;
- of a framework's call (Keras' `predict`) what its kernels cannot have taken on any CPU is its own set-up, which stays as well;
- the rest is unseen: nobody knows what it computes. In the slow end it stays as it is, in the fast end it takes a tenth, which
  is what porting array code commonly brings.
"""

import math
import sys
from collections.abc import Iterable

from ...results import ArrayTrace, FunctionTime, Projection, ProjectionAccuracy, Quantity, WorkloadProfile
from ..record.folding import OWN_LINES
from .gpu import Band, Rates, operation_seconds

PYTHON_CLASSES = ("interpreter", "regex", "parsing", "waiting")  # of results.TimeClass: what no GPU takes over
_PYTHONS_OWN = frozenset({OWN_LINES, "builtins", "generated code", *sys.stdlib_module_names})  # in `own_by_library`
ELEMENT_ACCESS_S = 0.1e-6  # one element of an array read or written from Python: mostly making the object for it
_PYTHON_OF_A_CALL_S = 5e-6  # that np.linalg.norm, np.mean and their like run around their C code
_MORE_THAN_TRACED = 1.5
_UNSEEN_AT_BEST = 0.1
_CALL_S = 0.05e-6  # of the function itself, whatever it does: no projection is nothing
TRANSFER_START_S = (10e-6, 30e-6)  # the call, the driver, and waiting for the end
# At 1 GHz, below the clock of any CPU that TensorFlow and PyTorch run on, one operation a cycle on the eight float32 numbers of
# AVX, that their wheels ask for, and one load of 8 bytes: slower than that, a framework's call is not busy with its kernels.
_LEAST_PER_S = 8e9  # operations, and bytes
_PYTHON_SPREAD = 1.05  # from one run of the same code to the next; never faster than now


def total(bands: Iterable[Band]) -> Band:
    lows, highs = zip((0.0, 0.0), *bands, strict=True)
    return sum(lows), sum(highs)


def transfer_seconds(trace: ArrayTrace, rates: Rates, batch: int = 1) -> Band:
    """A function's arrays brought in and its results back, in each of its calls; pageable memory in the slow end, pinned in
    the fast one. Other arrays that it reads, such as weights, count once in a run."""
    least_s, most_s = (trace.n_calls / batch * start_s for start_s in TRANSFER_START_S)
    ways = ((trace.input_bytes, rates.to_device), (trace.output_bytes, rates.to_host))
    return total((n_bytes / fast + least_s, n_bytes / slow + most_s) for n_bytes, (slow, fast) in ways if n_bytes)


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
        python_s = max(min(rest_s, sampled_s + trace.n_element_accesses * ELEMENT_ACCESS_S), sampled_s - inside_s)
        arrays_s = now_s * function.own_by_class.get("arrays", 0.0)
        of_known = known_s / operations_s if operations_s else 0.0
        known_s = max(known_s, min(arrays_s * of_known, _MORE_THAN_TRACED * known_s))
    python_s = min(now_s, python_s + at_most * set_up_seconds(trace))
    known_s = max(0.0, min(known_s, now_s - python_s))
    return known_s, python_s, max(0.0, now_s - known_s - python_s)


def set_up_seconds(trace: ArrayTrace) -> float:
    """What calls of a framework spent on their own set-up, at least: their time without the most that the kernels can take."""
    stated = (operation for operation in trace.operations if operation.kind == "model" and operation.flops is not None)
    return sum(max(0.0, each.time_s - (each.flops + (each.moved_bytes or 0)) / _LEAST_PER_S) for each in stated)


def project(
    function: FunctionTime, profile: WorkloadProfile, trace: ArrayTrace | None, rates: Rates, *, batch: int = 1
) -> Projection | None:
    """The function's own work on the GPU of `rates`; None where its arrays were not traced, or it was not timed.

    Args:
        batch: so many calls made as one, by transfers as well; Python takes as long.
    """
    # On a quiet machine: else what other programs take, which slows the measured side only, would look like a gain.
    now_s = profile.share(function) * profile.quiet_s if profile.total else 0.0
    if trace is None or not now_s:
        return None
    _, python_s, unseen_s = split(function, trace, now_s)
    python_s = max(python_s, min(now_s, trace.n_calls * _CALL_S))
    each = [operation_seconds(operation, rates, batch) for operation in trace.operations]
    causes = {cause: total(bands[cause] for bands, _ in each if bands) for cause in ("compute", "memory", "launches")}
    causes["transfers"] = transfer_seconds(trace, rates, batch)
    causes["Python"] = python_s, python_s * _PYTHON_SPREAD
    causes["unseen"] = _UNSEEN_AT_BEST * unseen_s, unseen_s
    by_cause = {cause: sum(band) / 2 for cause, band in causes.items()}

    def projected(*without: str) -> Quantity:
        low, high = total(band for cause, band in causes.items() if cause not in without)
        known = {cause: s for cause, s in by_cause.items() if cause not in ("unseen", *without)}
        bound_by = "unseen" if by_cause["unseen"] > sum(known.values()) else max(known, key=known.get)
        return Quantity.projected(low, max(high, low * _PYTHON_SPREAD), "s", rates.gpu.name, bound_by)

    _, slowest = max(each, key=lambda pair: math.prod(total(pair[0].values())), default=({}, None))
    return Projection(
        gpu=rates.gpu.name,
        basis=rates.basis,
        now=Quantity.measured([now_s], profile.total.unit, profile.total.device),
        on_gpu=projected(),
        on_gpu_resident=projected("transfers"),
        by_cause=by_cause,
        coverage=min(1.0, max(0.0, 1 - unseen_s / now_s)),
        accuracy=slowest and ProjectionAccuracy(of=slowest, **rates.accuracy[slowest].model_dump()),
    )
