"""This CPU's rates by micro-kernels of NumPy, in a few seconds: what a projection of this CPU onto itself is tested with."""

import functools
import math
import operator
import statistics
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, special
from scipy.spatial import distance

from altlas_lib.devices import describe_cpu
from altlas_lib.profiling.project.gpu import Band, dtype_class
from altlas_lib.profiling.project.operations import price
from altlas_lib.profiling.record.calls import Array, Call
from altlas_lib.results import ArrayOperation

_MICRO_KERNEL_S = 3e-3  # of each of the runs that the fastest is taken of
_N_RUNS = 7
_OTHERS = 1.25  # how far another operation of a class may lie beyond those that were measured, times
_WORKING_SETS = tuple(2**k for k in (14, 17, 19, 21, 23, 25, 27))  # from the first-level cache to the memory, bytes
Curve = tuple[tuple[float, Band], ...]  # by ascending size; between two interpolated on logarithmic axes, beyond them flat


class OperationClass(NamedTuple):
    name: str  # a class of operations.toml
    dtype: str  # by `dtype_class`


@dataclass(frozen=True)
class CpuRates:
    """Rates of this CPU.

    Attributes:
        work_per_s: operations per second, by the number of them in one call, or in one item of a stack. A class that is missing
            is bound by memory.
        bytes_per_s: bytes read and written per second, by the working set in bytes; "stream" serves every class not named.
        start_s: seconds before a call's work begins; "any" serves every class not named.
        item_s: seconds for each further matrix of a stack.
    """

    device: str
    work_per_s: Mapping[OperationClass, Curve]
    bytes_per_s: Mapping[str, Curve]
    start_s: Mapping[str, Band]
    item_s: Mapping[str, Band] = field(default_factory=dict)

    def seconds(self, cost: ArrayOperation, n_items: float) -> Band:
        """Of one call of known cost: in the fast end the longer of work and bytes hides the other, in the slow end neither."""
        of = operation_class(cost)
        work, moved_bytes = cost.flops or 0.0, cost.moved_bytes or 0.0
        curve = self.work_per_s.get(of) or self.work_per_s.get(of._replace(dtype="float32"))
        slow, fast = _interpolated(curve, work / n_items) if curve else (math.inf, math.inf)
        compute = work / fast, work / slow
        slow, fast = _interpolated(self.bytes_per_s.get(of.name) or self.bytes_per_s["stream"], cost.working_set_bytes)
        memory = moved_bytes / fast, moved_bytes / slow
        start, item = self.start_s.get(of.name) or self.start_s["any"], self.item_s.get(of.name, (0.0, 0.0))
        low, high = (start[end] + (n_items - 1) * item[end] for end in (0, 1))
        return low + max(compute[0], memory[0]), high + compute[1] + memory[1]


def _interpolated(curve: Curve, size: float) -> Band:
    sizes = np.log([at for at, _ in curve])
    slow, fast = (np.exp(np.interp(np.log(max(size, 1.0)), sizes, np.log([band[end] for _, band in curve]))) for end in (0, 1))
    return float(slow), float(fast)


def operation_class(cost: ArrayOperation) -> OperationClass:
    """`cholesky` is a class of its own on GPUs only."""
    name = "factorisation" if cost.rate == "cholesky" else cost.rate
    return OperationClass(name, dtype_class(cost.dtype, of_product=cost.rate == "product"))


def n_items(call: Call) -> int:
    """Matrices of a stack that are multiplied or factorised, rows that are transformed one by one; else 1."""
    n_inner = {"product": 2, "factorisation": 2, "fft": 1}.get(price(call).kind)
    if n_inner is None or call.name.endswith(("tensordot", "einsum")):
        return 1
    return max((math.prod(array.shape[:-n_inner]) for array in call.operands), default=1) or 1


def described(name: str, arguments: tuple, result: Any) -> Call:
    """A call of NumPy with arrays as values."""

    def each(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return Array(value.dtype.name, value.shape, None, int(np.count_nonzero(value)) if value.dtype == bool else None)
        return list(map(each, value)) if isinstance(value, list | tuple) else value if np.isscalar(value) else None

    results = result if isinstance(result, tuple) else (result,)
    arrays = tuple(each(array) for array in results if isinstance(array, np.ndarray))
    return Call(name=name, args=tuple(map(each, arguments)), results=arrays)


def measure_cpu_rates(n_threads: int = 1) -> CpuRates:
    """This CPU's own rates with `n_threads` of BLAS, by micro-kernels of NumPy; takes a few seconds.

    Nearly every class is measured by two operations or more of different cost; their slowest and fastest are its band, widened
    by a quarter. Work is counted as in a trace, so that it does not matter how many operations a formula gives a logarithm.

    Raises:
        ValueError: `n_threads` is less than 1.
    """
    if n_threads < 1:
        raise ValueError(f"n_threads={n_threads!r}: expected 1 or more")
    from threadpoolctl import threadpool_limits

    # One thread's CPU time knows nothing of the programs that it shares the CPU with; on Windows it comes in steps of 16 ms.
    fine = time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if n_threads == 1 and fine else time.perf_counter
    with threadpool_limits(n_threads):
        return _measured_cpu_rates(clock)


class _Kernel(NamedTuple):
    name: str  # as the tracer would call it
    call: Callable[..., Any]
    arguments: tuple

    def described(self) -> Call:
        """One call of it as the tracer would record it."""
        return described(self.name, self.arguments, self.call(*self.arguments))

    def seconds(self, clock: Callable[[], float]) -> float:
        """The fastest of several runs of a few milliseconds: what other programs take from it is no rate of this CPU."""
        timer = timeit.Timer(lambda: self.call(*self.arguments), timer=clock)
        n_calls = max(1, round(_MICRO_KERNEL_S / max(min(timer.repeat(2, 1)), 1e-7)))
        return min(timer.repeat(_N_RUNS, n_calls)) / n_calls


def _of(name: str, *arguments: Any) -> _Kernel:
    """The kernel of NumPy's function of that name."""
    return _Kernel(f"numpy.{name}", functools.reduce(getattr, name.split("."), np), arguments)


def _item(array: np.ndarray, index: np.ndarray) -> _Kernel:
    return _Kernel("ndarray.__getitem__", operator.getitem, (array, index))


def _of_scipy(function: Callable[..., Any], *arguments: Any) -> _Kernel:
    """The kernel of one of SciPy's functions, ufuncs included."""
    home = getattr(function, "__module__", None) or "scipy.special"
    return _Kernel(f"{home.replace('._', ' ').split()[0]}.{function.__name__}", function, arguments)


def _measured_cpu_rates(clock: Callable[[], float]) -> CpuRates:
    tiny = {name: [kernel.seconds(clock) for kernel in kernels] for name, kernels in _tiny_kernels().items()}
    start_s = {name: (min(seconds), _OTHERS * max(seconds)) for name, seconds in tiny.items()}
    stacks = {
        name: [kernel.seconds(clock) / len(kernel.arguments[0]) for kernel in kernels] for name, kernels in _stacks().items()
    }
    item_s = {name: (min(seconds) / _OTHERS, max(seconds) * _OTHERS) for name, seconds in stacks.items()}

    def point(kernels: list[_Kernel], start: Band, amount: str, size: str) -> tuple[float, Band]:
        calls = [kernel.described() for kernel in kernels]
        net_s = [max(s - sum(start) / 2, s / 2) for s in (kernel.seconds(clock) for kernel in kernels)]
        rates = [getattr(price(call), amount) / s for call, s in zip(calls, net_s, strict=True)]
        sizes = [getattr(price(call), size) / (n_items(call) if size == "flops" else 1) for call in calls]
        return statistics.geometric_mean(sizes), (min(rates) / _OTHERS, max(rates) * _OTHERS)

    work_per_s: dict[OperationClass, Curve] = {}
    for dtype in ("float32", "float64"):
        for name, groups in _working_kernels(dtype).items():
            start = start_s.get(name, start_s["any"])
            points = (point(kernels, start, "flops", "flops") for kernels in groups)
            work_per_s[OperationClass(name, dtype)] = tuple(sorted(points))
        products = work_per_s[OperationClass("product", dtype)]  # a model is mostly products, in between is what it is not
        work_per_s[OperationClass("model", dtype)] = tuple((at, (0.3 * low, high)) for at, (low, high) in products)
    integers = np.arange(6400).reshape(80, 80)
    work_per_s[OperationClass("product", "integer")] = (
        point([_of("matmul", integers, integers)], start_s["product"], "flops", "flops"),
    )
    bytes_per_s: dict[str, Curve] = {}
    for working_set_bytes in _WORKING_SETS:
        for name, kernels in _moving_kernels(working_set_bytes).items():
            start = start_s.get(name, start_s["any"])
            at = point(kernels, start, "moved_bytes", "working_set_bytes")
            bytes_per_s[name] = (*bytes_per_s.get(name, ()), at)
    return CpuRates(str(describe_cpu()), work_per_s, bytes_per_s, start_s, item_s)


def _tiny_kernels() -> dict[str, list[_Kernel]]:
    """What a call costs before its work begins."""
    x, at, matrix = np.ones(4), np.array([1, 0]), np.eye(2)
    index = [_item(x, at), _of("take", x, at)]
    return {
        "any": [_of("add", x, x), _of("copy", x), _of("concatenate", [x, x])],
        "where": [_of("where", x > 0, x, x)],
        "reduction": [_of("sum", x), _of("max", x), _of("mean", x)],
        "cumulative": [_of("cumsum", x)],
        "product": [_of("matmul", matrix, matrix), _of("dot", matrix, matrix)],
        "sort": [_of("sort", x)],
        "argsort": [_of("argsort", x)],
        "partition": [_of("partition", x, 2), _of("argpartition", x, 2)],
        "gather": index,
        "row gather": index,
        "mask": [_item(x, x > 0)],
        "fft": [_of("fft.fft", x), _of("fft.rfft", x)],
        "factorisation": [_of("linalg.cholesky", matrix), _of("linalg.solve", matrix, matrix)],
        "spectral": [_of("linalg.svd", matrix), _of("linalg.eigvalsh", matrix)],
    }


def _stacks() -> dict[str, list[_Kernel]]:
    """Many of the smallest matrices: what each of a stack costs."""
    stack = np.tile(np.eye(2), (500, 1, 1))
    return {
        "product": [_of("matmul", stack, stack)],
        "factorisation": [_of("linalg.cholesky", stack)],
        "spectral": [_of("linalg.eigvalsh", stack)],
    }


def _working_kernels(dtype: str) -> dict[str, list[list[_Kernel]]]:
    """By class, groups of kernels of about the same work: a point of the curve each."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=dtype)

    def products(n: int) -> list[_Kernel]:
        oblong = noise(n // 8, 2 * n), noise(2 * n, 4 * n)  # where packing the operands shows; square ones are the best case
        return [_of("matmul", *pair) for pair in ((noise(n, n), noise(n, n)), oblong)]

    def systems(n: int) -> list[_Kernel]:
        a = noise(n, n)
        return [_of("linalg.inv", a), _of("linalg.slogdet", a), _of("linalg.cholesky", a @ a.T + n * np.eye(n, dtype=dtype))]

    def spectra(n: int) -> list[_Kernel]:
        a = noise(n, n)
        return [_of("linalg.svd", a), _of("linalg.eigh", a + a.T)]

    def integers(n: int) -> np.ndarray:
        return rng.integers(-(10**6), 10**6, n).astype(f"int{8 * np.dtype(dtype).itemsize}")

    x, y = np.abs(noise(2, 30_000))
    rows, block, many = noise(60, 1_500), noise(200, 50), noise(400_000)  # so many that no branch predictor learns them
    places = rng.integers(0, 1_000, 30_000)
    lengths, signals = (2_000, 200_000), (noise(100, 128), noise(4, 2**13), noise(1, 2**19))
    return {
        "product": [products(n) for n in (24, 96, 400)],
        "elementwise": [[_of("divide", x, y)]],  # the one that is not bound by the nearest cache
        "transcendental": [[_of("log", x), _of("arctan", x), _of("arctan2", x, y)]],
        "special function": [[_of_scipy(special.erf, x), _of_scipy(special.gammaln, x)]],
        "filter": [[_of("convolve", x, x[:40]), _of_scipy(ndimage.convolve, block, block[:5, :5])]],
        "distances": [[_of_scipy(distance.pdist, block), _of_scipy(distance.cdist, block, block, "cityblock")]],
        "random": [[_Kernel(f"Generator.{name}", getattr(rng, name), (len(x),)) for name in ("standard_normal", "random")]],
        "where": [[_of("where", many > bound, many, many) for bound in (0.0, 1.3)]],  # half and a tenth, in no order
        "scalar loop": [[_of("remainder", x, y), _of("floor_divide", x, y), _of("hypot", x, y)]],
        "reduction": [[_of("sum", rows), _of("max", rows, 0)]],
        "cumulative": [[_of("cumsum", x), _of("cumprod", x)]],
        "search": [[_of("searchsorted", np.sort(noise(n)), noise(5_000)) for n in (1_000, 200_000)]],
        "scatter": [[_of("bincount", places), _Kernel("numpy.add.at", np.add.at, (np.zeros(1_000), places, 1.0))]],
        "sort": [[_of("sort", noise(n)), _of("sort", integers(n))] for n in lengths],
        "argsort": [[_of("argsort", noise(n)), _of("argsort", integers(n))] for n in lengths],
        "partition": [[_of("partition", noise(n), n // 3), _of("argpartition", noise(n), n // 3)] for n in lengths],
        "fft": [[_of("fft.rfft", a), _of("fft.fft", (1 + 1j) * a)] for a in signals],
        "factorisation": [systems(n) for n in (16, 80, 400)],
        "spectral": [spectra(n) for n in (16, 64, 200)],
    }


def _moving_kernels(working_set_bytes: int) -> dict[str, list[_Kernel]]:
    """What reads and writes and hardly computes, float64, on arrays of `working_set_bytes` together."""
    rng = np.random.default_rng(0)
    n = working_set_bytes // 24
    a, b, out = rng.random((3, n))
    single, tables = a.astype(np.float32), [a[: n // width * width].reshape(-1, width) for width in (16, 128)]
    places, side = rng.integers(0, n, n), math.isqrt(n)
    return {
        "stream": [
            _of("add", a, b),  # into fresh memory, which the system has to hand out
            _of("add", a, b, out),
            _of("copy", a),
        ],
        "gather": [_item(a, places), _item(single, places), _Kernel("ndarray.__setitem__", operator.setitem, (out, places, b))],
        "row gather": [_item(rows, rng.integers(0, len(rows), len(rows))) for rows in tables],
        "mask": [_item(a, b > 0.5), _item(single, b > 0.5), _item(a, b > 0.9)],
        "strided copy": [_of("ascontiguousarray", x[: side * side].reshape(side, side).T) for x in (a, single)],
    }
