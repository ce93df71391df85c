"""What a call on arrays costs, from its description alone: arithmetic, bytes read and written, kernels, class of rate.

Counts are of the passes that NumPy, SciPy and CuPy make, each reading its operands and writing its result. Complex numbers
count in real operations. Sources:
- products 2 m n k; factorisations: Golub and Van Loan, Matrix Computations, 4th ed. (LU, Cholesky, QR and SVD: chapters 3, 4, 5
  and 8), as in the operation counts of LAPACK Working Note 41;
- FFT 5 n log2 n, half of it for real input: Cooley and Tukey as FFTW and cuFFT count it;
- sorts n log2 n comparisons (Knuth, The Art of Computer Programming 3, 5.3.1); selection 3.4 n (quickselect, 5.2.2);
- a transcendental function 20: range reduction and a polynomial of about ten fused multiply-adds, on GPUs one operation of a
  special unit at a quarter of the rate and its scaling; a power is a logarithm and an exponential in more digits, 50; a
  division or a square root 8: Newton steps on a GPU, as many cycles of an adder on a CPU.
"""

import functools
import math
import re
import tomllib
from collections.abc import Callable
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from ...results import ArrayOperation, ArrayTrace, OperationKind
from ..record.calls import Array, Call, RecordedFunction

RateClass = str  # a `class` of operations.toml: processors treat one kind of operation in several ways
_CACHE_LINE_BYTES = 64  # rows at least as long stream when they are gathered


class Cost(NamedTuple):
    """Of one call.

    Attributes:
        rate: its class of rate.
        flops: comparisons for sorts; None: not known.
        sizes: what a rate depends on besides. product: stack, m, n, k; factorisations: stack, m, n; fft: passes over the array
            by what they meet (see `_fft`); sorts: n keys of `key_bytes` with `payload_bytes` each; scatter: bins;
            convolution: m, n, k of the product that it amounts to, and taps.
    """

    kind: OperationKind
    rate: RateClass
    flops: float | None
    moved_bytes: float | None
    working_set_bytes: float
    n_kernels: int
    dtype: str
    sizes: dict[str, float] = {}  # noqa: RUF012, never changed


class Work(NamedTuple):
    """What a formula finds; `rate` where it is another class than the table's."""

    flops: float | None
    moved_bytes: float | None
    n_kernels: int = 1
    sizes: dict[str, float] = {}  # noqa: RUF012
    rate: RateClass | None = None


@functools.lru_cache(256)
def item_bytes(dtype: str) -> float:
    """Of one element: 'complex64' 8, 'bool' 1; 8, a pointer, where the name does not tell."""
    bits = re.match(r"(?:float|bfloat|u?int|complex|str|bytes)(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 1 if dtype == "bool" else 8


def array_bytes(array: Array) -> float:
    return item_bytes(array.dtype) * array.n if array.n_bytes is None else array.n_bytes


class _Operands:
    """One call, and what every formula asks of it. A method's array is its first argument."""

    def __init__(self, call: Call):
        self.call, self.name, self.args, self.kwargs = call, call.name, call.args, call.kwargs
        self.operands, self.results = call.operands, list(call.results)
        self.read = [array for array in self.operands if array is not self.kwargs.get("out")]  # `out=` is only written
        self.written = self.results or self.operands[:1]  # `x.sort()` returns nothing

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.kwargs.get(name, self.args[position] if len(self.args) > position else default)

    @cached_property
    def read_bytes(self) -> float:
        return sum(map(array_bytes, self.read))

    @cached_property
    def written_bytes(self) -> float:
        return sum(map(array_bytes, self.written))

    @cached_property
    def result_bytes(self) -> float:
        return sum(map(array_bytes, self.results))

    @cached_property
    def n(self) -> int:
        """Elements of the largest operand."""
        return max((array.n for array in self.operands), default=0)

    @cached_property
    def n_written(self) -> int:
        return max((array.n for array in self.written), default=1)

    @cached_property
    def dtype(self) -> str:
        """That it computes in: the result's if that is inexact, else the operands', for what compares and counts."""
        results = [array.dtype for array in self.results]
        names = [array.dtype for array in self.operands] or results
        inexact = [name for name in [*results, *names] if name.startswith(("float", "complex", "bfloat"))]
        return (inexact or names or ["float64"])[0]

    @property
    def parts(self) -> int:
        """Real operations that a complex one takes: a multiplication and an addition take 8 instead of 2."""
        return 4 if self.dtype.startswith("complex") else 1


Formula = Callable[..., Work]


def price(call: Call) -> Cost:
    """What a call costs; of kind "unknown" where no formula fits, never an error.

    Names are NumPy's and SciPy's ('numpy.matmul', 'ndarray.argsort'; CuPy's count as theirs) and scikit-learn's; a framework's
    call brings its own count as `model_work`.
    """
    of = _Operands(call)
    try:
        working_set_bytes = float(sum(map(array_bytes, [*of.operands, *of.results])))
        rate, work = ("view", _free(of)) if call.is_view else _priced(of)
        numbers = [each for each in (work.flops, work.moved_bytes, *work.sizes.values()) if each is not None]
        if not all(0 <= float(each) < math.inf for each in (*numbers, working_set_bytes)):
            raise ValueError("a negative or endless size")
    except Exception:  # arguments that nobody foresaw; the time is known, the work is not
        rate, work, working_set_bytes = "unknown", _unknown(of), 0.0
    flops, moved_bytes = (each if each is None else float(each) for each in work[:2])
    return Cost(
        _table()["kinds"].get(rate, rate), rate, flops, moved_bytes, working_set_bytes, work.n_kernels, of.dtype, work.sizes
    )


def _priced(of: _Operands) -> tuple[RateClass, Work]:
    rate, formula = ("model", _model) if of.call.model_work else _look_up(of.name)
    if any(array.n_stored is not None and array.dtype != "bool" for array in of.operands):  # sparse, of whatever class
        is_product = _look_up(f"numpy.{of.name.rpartition('.')[2]}")[0] == "product"
        rate, formula = ("gather", _sparse_product) if is_product else ("unknown", _unknown)
    work = formula(of)
    return work.rate or rate, work


def price_trace(recorded: RecordedFunction) -> ArrayTrace:
    """What the tracer recorded of one function, with what each of its calls costs."""
    return ArrayTrace(
        **recorded.model_dump(include=set(ArrayTrace.model_fields) - {"operations"}),
        operations=[_operation(each.call, each.n_calls, each.time_s) for each in recorded.calls],
    )


def _operation(call: Call, n_calls: int, time_s: float) -> ArrayOperation:
    cost = price(call)
    of_all = {name: total and total * n_calls for name, total in (("flops", cost.flops), ("moved_bytes", cost.moved_bytes))}
    operands = list(map(str, call.operands))
    return ArrayOperation(name=call.name, operands=operands, n_calls=n_calls, time_s=time_s, **cost._asdict() | of_all)


def _unknown(of: _Operands) -> Work:
    return Work(None, None, rate="unknown")


def _free(of: _Operands) -> Work:
    return Work(0, 0, 0, rate="view")


# Element by element, reductions, copies ----------------------------------------------------------------------------------


def _elementwise(of: _Operands, weight: float = 1, n_passes: int = 1) -> Work:
    """`weight` operations per element; passes after the first read and write what the first wrote."""
    moved = of.read_bytes + of.written_bytes * (2 * n_passes - 1)
    return Work(weight * of.parts * max(of.n_written, 1), moved, n_passes)


def _power(of: _Operands) -> Work:
    exponent = of.argument(1, "x2")  # NumPy squares, inverts and takes roots by the functions for it
    easy = isinstance(exponent, int | float) and exponent in (-1, 0, 0.5, 1, 2)
    work = _elementwise(of, 8 if easy and exponent in (-1, 0.5) else 1 if easy else 50)
    return work._replace(rate="elementwise" if easy else None)


def _reduction(of: _Operands, weight: float = 1, n_reads: int = 1, n_kernels: int = 1) -> Work:
    return Work(weight * of.parts * of.n, of.read_bytes * n_reads + of.result_bytes, n_kernels)


def _norm(of: _Operands) -> Work:
    order, axis = of.argument(1, "ord"), of.argument(2, "axis")
    if order in (2, -2, "nuc") and len(of.operands[0].shape) == 2 and axis is None:
        return _factorisation(of, "singular values")._replace(rate="spectral")
    return _reduction(of, 2) if order is None and axis is None else _reduction(of, 2, n_reads=3, n_kernels=3)


def _copy(of: _Operands) -> Work:
    """Two bytes for each written."""
    return Work(0, of.result_bytes * 2) if of.operands else _unknown(of)  # made of Python's objects


def _create(of: _Operands, weight: float = 0) -> Work:
    return Work(weight * of.n_written, of.written_bytes)


def _get(of: _Operands) -> Work:
    array, *indices = of.operands
    if not indices:
        return _copy(of)._replace(rate="copy")
    return _gathered(array, indices, of.result_bytes)


def _set(of: _Operands) -> Work:
    """`array[index] = value`, arguments in this order."""
    array, value = of.operands[0], of.args[2]
    index = of.args[1] if isinstance(of.args[1], list) else [of.args[1]]
    indices = [part for part in index if isinstance(part, Array)]
    taken = array_bytes(value) if isinstance(value, Array) else 0
    if not indices:
        return Work(0, (of.result_bytes or array_bytes(array)) + taken, rate="copy")  # the tracer gives the region as result
    mask = [part for part in indices if part.dtype == "bool"]
    n = mask[0].n_stored or 0 if mask else max(part.n for part in indices)
    rows = math.prod(array.shape[1:]) if len(index) == 1 and not mask else 1  # whole rows
    return _gathered(array, indices, item_bytes(array.dtype) * n * rows)


def _gathered(array: Array, indices: list[Array], moved_bytes: float) -> Work:
    """Single elements, what a mask leaves, or whole rows, which stream if they are long."""
    masked = any(index.dtype == "bool" for index in indices)
    row_bytes = array_bytes(array) / max(array.shape[0], 1) if len(array.shape) > 1 and len(indices) == 1 else 0
    streams = row_bytes >= _CACHE_LINE_BYTES and math.isclose(moved_bytes, row_bytes * indices[0].n)
    rate = "mask" if masked else "row gather" if streams else "gather"
    return Work(0, sum(map(array_bytes, indices)) + 2 * moved_bytes, 1 + masked, rate=rate)


def _gather(of: _Operands) -> Work:
    return Work(0, sum(map(array_bytes, of.operands[1:])) + 2 * of.written_bytes)


def _scan_and_gather(of: _Operands) -> Work:
    """nonzero and its like: a count of what is there, then its places."""
    return Work(of.n, 2 * of.read_bytes + of.result_bytes, 2)


def _scatter(of: _Operands, n_reads: int = 1) -> Work:
    """bincount, histogram, np.add.at: each element is added to a place of its own."""
    return Work(of.n, n_reads * of.read_bytes + 2 * of.result_bytes, 1 + n_reads)


def _search(of: _Operands) -> Work:
    """Binary searches; each touches log2 n elements, together at most all."""
    sizes = [array.n for array in of.operands[:2]]
    haystack, needles = (sizes[1], sizes[0]) if of.name.endswith("digitize") else (sizes[0], of.n_written)
    return Work(needles * max(math.log2(max(haystack, 2)), 1), of.read_bytes + of.written_bytes)


def _where(of: _Operands) -> Work:
    return _elementwise(of) if len(of.args) + len(of.kwargs) > 1 else _scan_and_gather(of)._replace(rate="gather")


def _sort(of: _Operands, payload_bytes: float = 0, per_key: float | None = None) -> Work:
    """`per_key` comparisons, else log2 n, for each of all keys; an index (`payload_bytes`) may move with each key."""
    n, shape = sum(array.n for array in of.read), of.operands[0].shape
    axis = of.argument(2 if per_key else 1, "axis", -1)
    length = shape[axis] if isinstance(axis, int) and -len(shape) <= axis < len(shape) else n
    comparisons = n * (per_key or max(math.log2(max(length, 2)), 1))
    sizes = {"n": n, "length": length, "key_bytes": item_bytes(of.operands[0].dtype), "payload_bytes": payload_bytes}
    return Work(comparisons, of.read_bytes + of.written_bytes, 4, sizes)


# Products, factorisations, transforms ------------------------------------------------------------------------------------


def _product(of: _Operands) -> Work:
    a, b = (array.shape for array in of.operands[:2])
    m, k, n = (a or (1,))[-2] if len(a) > 1 else 1, (a or (1,))[-1], b[-1] if len(b) > 1 else 1
    n_results = of.n_written if of.results else 1
    if "tensordot" in of.name:  # (rows inner) (inner columns) (rows columns) = (rows inner columns)^2
        k = math.sqrt(math.prod(a) * math.prod(b) / n_results)
        m, n = math.prod(a) / k, math.prod(b) / k
    elif "vdot" in of.name:
        k = math.prod(a)
    elif "inner" in of.name and len(b) > 1:
        n = b[-2]
    sizes = {"stack": max(n_results / max(m * n, 1), 1), "m": m, "n": n, "k": k}
    return Work(2 * of.parts * k * n_results, of.read_bytes + of.result_bytes, 1, sizes)


def _einsum(of: _Operands) -> Work:
    """NumPy's own count, on arrays without values, of the order of contraction that it takes (of "optimal", nearly)."""
    how = "greedy" if of.kwargs.get("optimize", False) else False  # looking for the best takes for ever
    empty = [np.broadcast_to(np.int8(0), each.shape) if isinstance(each, Array) else each for each in of.args]
    path, report = np.einsum_path(*empty, optimize=how)
    count = re.search(rf"{'Optimized' if how else 'Naive'} FLOP count:\s*(\S+)", report)
    flops, moved = float(count[1]) * of.parts, of.read_bytes + of.written_bytes
    if len(of.operands) == 1:
        return Work(flops, moved, rate="reduction")
    k = max(flops / (2 * of.parts * max(of.n_written, 1)), 1)
    sizes = {"stack": 1, "m": max(of.operands[0].n / k, 1), "n": max(of.n_written * k / max(of.operands[0].n, 1), 1), "k": k}
    return Work(flops, moved, max(len(path) - 1, 1), sizes)


def _sparse_product(of: _Operands) -> Work:
    """A sparse matrix times a dense one: each stored value reads a row of the dense one."""
    sparse = [array for array in of.operands if array.n_stored is not None]
    dense = [array for array in of.operands if array.n_stored is None]
    if len(sparse) != 1 or not dense:
        return _unknown(of)  # how much of two sparse ones meets is in their values
    n_columns = dense[0].n / sparse[0].shape[1 if of.operands[0] is sparse[0] else 0]
    gathered = sparse[0].n_stored * n_columns * item_bytes(dense[0].dtype)
    return Work(2 * sparse[0].n_stored * n_columns, array_bytes(sparse[0]) + gathered + of.written_bytes)


def _factorisation(of: _Operands, count: str, n_kernels: int = 1, factor: float = 1) -> Work:
    """Each matrix of a stack."""
    *stack, m, n = of.operands[0].shape
    b = of.operands[-1].shape if len(of.operands) > 1 else ()
    n_sides = (b[-1] if len(b) >= 2 else 1) if b else n
    flops = factor * of.parts * math.prod(stack) * _COUNTS[count](m, n, n_sides)
    return Work(flops, of.read_bytes + of.written_bytes, n_kernels, {"stack": math.prod(stack), "m": m, "n": n})


def _svd(of: _Operands) -> Work:
    if of.argument(2, "compute_uv", True) is False or len(of.results) == 1:
        return _factorisation(of, "singular values")
    return _factorisation(of, "svd" if of.argument(1, "full_matrices", True) else "thin svd")


def _qr(of: _Operands) -> Work:
    return _factorisation(of, "lu", factor=2 if len(of.results) > 1 else 1)  # Householder vectors, and Q of them if asked for


def _fft(of: _Operands, factor: float = 5, n_dimensions: int = 1) -> Work:
    """Along `n_dimensions` axes; 0: all, or those of `axes`. Its sizes are bytes, read and written, by what moves them.

    smooth_bytes, prime_bytes: once for each axis; 2^12 points of it fit a block's shared memory, and what is longer goes in
    several steps with a transposition after each (Bailey, FFTs in external or hierarchical memory, 1990). cuFFT (its
    documentation, "Accuracy and Performance") has kernels for lengths of small primes, slower ones for primes up to 127, and
    takes Bluestein's algorithm beyond: two transforms of twice the length, and as many passes for products. short_bytes: in
    inverse proportion to the lengths. strided_bytes: an array is copied first unless its last axis, or its first alone, is
    transformed. inverse_bytes: so is one of complex numbers that become real, for cuFFT would destroy it.
    """
    source, result = of.operands[0], of.results[0]
    longest = [max(pair) for pair in zip(source.shape, result.shape, strict=True)]
    n_axes = len(longest)
    axes = of.argument(2, "axes") or range(-(n_dimensions or n_axes), 0)
    if n_dimensions == 1 and isinstance(axis := of.argument(2, "axis", -1), int):
        axes = [axis]
    axes, moved = [axis % n_axes for axis in axes], of.read_bytes + of.written_bytes
    sizes = dict.fromkeys(("smooth_bytes", "prime_bytes", "short_bytes", "strided_bytes", "inverse_bytes"), 0.0)
    for n in (longest[axis] for axis in axes):
        prime = _largest_prime(n)
        if prime > 127:
            sizes["smooth_bytes"] += moved * (2 * 2 * _passes(2 * n) + 4)
        else:
            sizes["prime_bytes" if prime > 13 else "smooth_bytes"] += moved * _passes(n)
        sizes["short_bytes"] += moved / max(n, 1)
    sizes["strided_bytes"] = 0.0 if n_axes - 1 in axes or axes == [0] else moved
    is_inverse = source.dtype.startswith("complex") and result.dtype.startswith("float")
    sizes["inverse_bytes"] = moved if is_inverse else 0.0
    flops = factor * math.prod(longest) * math.log2(max(math.prod(longest[axis] for axis in axes), 2))
    return Work(flops, moved * len(axes), len(axes), sizes)


def _passes(n: int) -> int:
    n_steps = max(math.ceil(math.log2(max(n, 2)) / 12), 1)
    return n_steps if n_steps == 1 else 2 * n_steps


def _largest_prime(n: int) -> int:
    """At most what is left after the primes up to 127."""
    largest = 1
    for prime in range(2, 128):
        while n > 1 and n % prime == 0:
            n, largest = n // prime, prime
    return max(largest, n)


def _convolution(of: _Operands) -> Work:
    """Every element of the one with every element of the other, unless only a part is kept."""
    a, b = (array.n for array in of.operands[:2])
    pairs = a * b if of.n_written >= max(a, b) and of.argument(2, "mode", "full") == "full" else of.n_written * min(a, b)
    return Work(2 * of.parts * pairs, of.read_bytes + of.written_bytes)


def _fft_convolution(of: _Operands) -> Work:
    """Two transforms, a product, and one back."""
    n = math.prod(i + j - 1 for i, j in zip(*(array.shape for array in of.operands[:2]), strict=True))
    flops = 3 * (5 if of.parts > 1 else 2.5) * n * math.log2(max(n, 2)) + 3 * n
    moved = of.read_bytes + 6 * n * 8 + of.written_bytes
    return Work(flops, moved, 5, {"smooth_bytes": moved}, "fft")


def _cheaper_convolution(of: _Operands) -> Work:
    """scipy.signal.convolve: directly or by FFT, whatever is faster, unless told."""
    ways = {"direct": _convolution(of), "fft": _fft_convolution(of)}
    return ways.get(of.argument(3, "method", "auto")) or min(ways.values(), key=lambda work: work.flops)


def _filter(of: _Operands, taps: str) -> Work:
    """Operations per element: two for each tap that is multiplied and added, 3.4 for each that is ranked."""
    n_axes, size = len(of.operands[0].shape), of.argument(1, "size")
    if taps == "gaussian":
        sigma, n_axes = of.argument(1, "sigma"), 1 if of.name.endswith("1d") else n_axes
        sigmas = sigma if isinstance(sigma, list) else [sigma] * n_axes
        n_taps = sum(2 * (2 * int(of.kwargs.get("truncate", 4.0) * s + 0.5) + 1) for s in sigmas)
    elif taps == "weights":
        n_taps = 2 * of.operands[1].n
    elif taps == "window" and isinstance(footprint := of.argument(2, "footprint"), Array):
        n_taps = 3.4 * (footprint.n_stored or footprint.n)
    elif taps == "window":
        n_taps = 3.4 * (math.prod(size) if isinstance(size, list) else size**n_axes)
    else:
        n_taps = {"running": 3, "derivative": 6}[taps] * n_axes
    return Work(n_taps * of.n_written, of.read_bytes + of.written_bytes)


def _distances(of: _Operands) -> Work:
    """A subtraction, a multiplication and an addition for each coordinate of each pair."""
    return Work(3 * of.operands[0].shape[1] * of.n_written, of.read_bytes + of.written_bytes)


def _pairwise(of: _Operands, weight: float = 1) -> Work:
    """scikit-learn: a product, then `weight` operations for each pair, in a few passes."""
    x, y = of.operands[0], of.operands[min(1, len(of.operands) - 1)]
    (m, k), n = x.shape, y.shape[0]
    flops = (2 * k + weight) * m * n + 3 * sum(array.n for array in of.read)
    return Work(flops, 3 * of.read_bytes + 3 * of.written_bytes, 6, {"stack": 1, "m": m, "n": n, "k": k})


def _any_pairwise(of: _Operands) -> Work:
    metric = of.argument(2, "metric", "euclidean")
    return (
        _pairwise(of) if metric in ("euclidean", "l2", "cosine", "sqeuclidean") else _distances(of)._replace(rate="distances")
    )


def _model(of: _Operands) -> Work:
    """As the framework states it; a convolution besides as the product that it amounts to, a row for each pixel."""
    work = of.call.model_work
    shape = of.results[0].shape if of.results else ()
    if "conv" not in of.name.rpartition(".")[2].lower() or len(shape) < 3:
        return Work(work.flops, work.moved_bytes, work.n_kernels)
    n, m = shape[1], math.prod(shape) / max(shape[1], 1)
    k = work.flops / max(2 * m * n, 1)
    sizes = {"stack": 1, "m": m, "n": n, "k": k, "channels": of.operands[0].shape[1]}
    return Work(
        work.flops, min(work.moved_bytes, item_bytes(of.dtype) * (m * k + k * n + m * n)), work.n_kernels, sizes, "convolution"
    )


# The table ---------------------------------------------------------------------------------------------------------------

# Operations on each m x n matrix with k right-hand sides, by the `count` of operations.toml; square ones have n rows.
_COUNTS: dict[str, Callable[[int, int, int], float]] = {
    "solve": lambda m, n, k: 2 / 3 * n**3 + 2 * n**2 * k,
    "substitute": lambda m, n, k: 2 * n**2 * k,
    "substitute once": lambda m, n, k: n**2 * k,
    "invert": lambda m, n, k: 2 * n**3,
    "lu": lambda m, n, k: 2 * min(m, n) ** 2 * (max(m, n) - min(m, n) / 3),
    "cholesky": lambda m, n, k: n**3 / 3,
    "eigh": lambda m, n, k: 9 * n**3,
    "eigvalsh": lambda m, n, k: 4 / 3 * n**3,
    "eig": lambda m, n, k: 25 * n**3,
    "eigvals": lambda m, n, k: 10 * n**3,
    "singular values": lambda m, n, k: 4 * max(m, n) * min(m, n) ** 2 - 4 / 3 * min(m, n) ** 3,
    "svd": lambda m, n, k: 4 * max(m, n) ** 2 * min(m, n) + 22 * min(m, n) ** 3,
    "thin svd": lambda m, n, k: 14 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3,
    "pinv": lambda m, n, k: 14 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3 + 2 * m * n**2,
    "lstsq": lambda m, n, k: 4 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3 + 4 * m * n * k,
}
_HOMES = {"numpy", "scipy", "cupy", "cupyx", "ndarray", "Series", "DataFrame", "Index", "Generator", "RandomState", "builtins"}


@functools.cache
def _table() -> dict[str, Any]:
    """operations.toml: group of modules -> name -> class of rate and formula; `modules` and `kinds` as they stand there."""
    content = tomllib.loads(resources.files(__package__).joinpath("operations.toml").read_text())
    return {group: _by_name(rows) if isinstance(rows, list) else rows for group, rows in content.items()}


def _by_name(rows: list[dict[str, Any]]) -> dict[str, tuple[RateClass, Formula]]:
    found = {}
    for row in rows:
        rate, formula, names = (row.pop(key) for key in ("class", "formula", "names"))
        found |= dict.fromkeys(names.split(), (rate, functools.partial(globals()[f"_{formula}"], **row)))
    return found


def _look_up(name: str) -> tuple[RateClass, Formula]:
    *home, function = name.split(".")
    module = ".".join(home).replace("cupyx.scipy", "scipy").replace("cupy", "numpy")
    group = _table()["modules"].get(module, "any" if home and home[0] in _HOMES else None)
    known = _table().get(group, {})
    if module == "numpy.linalg":  # has NumPy's products besides
        known = _table()["any"] | known
    return known.get(function, ("unknown", _unknown))
