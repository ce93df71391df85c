"""What a call on arrays costs, from its description alone: arithmetic, bytes read and written, kernels, class of rate.

`operations.toml` has the formulas by name; here is what they are written in. Counts are of the passes that NumPy, SciPy and
CuPy make, each reading its operands and writing its result. Complex numbers count in real operations. Sources:
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
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from ...paths import shipped_toml
from ...results import ArrayOperation, ArrayTrace
from ..record.calls import Array, Call, RecordedFunction

RateClass = str  # a `class` of operations.toml: processors treat one kind of operation in several ways
_CACHE_LINE_BYTES = 64  # rows at least as long stream when they are gathered
_OWNERS = {"numpy", "scipy", "ndarray", "Series", "DataFrame", "Index", "Generator", "RandomState", "builtins"}


@functools.lru_cache(256)
def item_bytes(dtype: str) -> float:
    """Of one element: 'complex64' 8, 'bool' 1; 8, a pointer, where the name does not tell."""
    bits = re.match(r"(?:float|bfloat|u?int|complex|str|bytes)(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 1 if dtype == "bool" else 8


def array_bytes(array: Array) -> float:
    return item_bytes(array.dtype) * array.n if array.n_bytes is None else array.n_bytes


def _total_bytes(arrays: Iterable[Array]) -> float:
    return sum(map(array_bytes, arrays))


def price(call: Call, n_calls: int = 1, time_s: float = 0.0) -> ArrayOperation:
    """So many equal calls with what they cost; of kind "unknown" where no formula fits, never an error.

    Names are NumPy's and SciPy's ('numpy.matmul', 'ndarray.argsort'; CuPy's count as theirs) and scikit-learn's; a framework's
    call brings its own count as `model_work`. Of sorts `flops` are comparisons. `sizes` are what a rate depends on besides:
    product: stack, m, n, k; factorisations: stack, m, n; fft: passes over the array by what they meet (see `_fft`); sorts: n
    keys of `key_bytes` with `payload_bytes` each; convolution: m, n, k of the product that it amounts to, and channels.
    """
    about = {"name": call.name, "operands": list(map(str, call.operands)), "n_calls": n_calls, "time_s": time_s}
    about |= {"dtype": _dtype(call), "working_set_bytes": 0.0}
    try:
        about["working_set_bytes"] = min(max(0.0, float(_total_bytes([*call.operands, *call.results]))), 2.0**62)
        of = _Operands(call)
        row = of.row()
        rate = _table()["classes"].get(row["class"], {})
        flops = of.value(row.get("flops", "0")) * math.prod(of.quantities[each] for each in rate.get("times", "").split())
        amounts = {"flops": n_calls * flops, "moved_bytes": n_calls * of.value(row.get("moved", "read + written"))}
        amounts["sizes"] = {name: of.quantities[name] for name in rate.get("sizes", "").split() if name in of.quantities}
        amounts["n_kernels"] = int(of.value(row.get("kernels", "1")))
        return ArrayOperation(kind=rate.get("kind", row["class"]), rate=row["class"], **amounts, **about)
    except Exception:  # arguments that nobody foresaw, a negative or endless size; the time is known, the work is not
        return ArrayOperation(kind="unknown", rate="unknown", **about)


def price_trace(recorded: RecordedFunction) -> ArrayTrace:
    """What the tracer recorded of one function, with what each of its calls costs."""
    operations = [price(each.call, each.n_calls, each.time_s) for each in recorded.calls]
    return ArrayTrace(**recorded.model_dump(include=set(ArrayTrace.model_fields)), operations=operations)


def _dtype(call: Call) -> str:
    """That it computes in: the result's if that is inexact, else the operands', for what compares and counts."""
    results, operands = ([array.dtype for array in arrays] for arrays in (call.results, call.operands))
    inexact = [name for name in results + operands if name.startswith(("float", "complex", "bfloat"))]
    return (inexact or operands or results or ["float64"])[0]


# The table ---------------------------------------------------------------------------------------------------------------


@functools.cache
def _table() -> dict[str, Any]:
    """operations.toml: group of modules -> name -> row; `modules` and `classes` as they stand there."""
    content = shipped_toml(__package__, "operations.toml")
    groups = {group: rows for group, rows in content.items() if isinstance(rows, list)}
    return content | {group: {name: row for row in rows for name in row["names"].split()} for group, rows in groups.items()}


def grows(rate: RateClass) -> set[str]:
    """Sizes that are as many times larger where many calls are made as one."""
    return set(_table()["classes"].get(rate, {}).get("grow", "").split())


class _Operands:
    """One call, and the quantities that the formulas of operations.toml are written in. A method's array comes first."""

    def __init__(self, call: Call):
        self.call, self.name, self.kwargs = call, call.name, call.kwargs
        self.operands, self.results = call.operands, call.results
        read = [array for array in self.operands if array is not self.kwargs.get("out")]  # `out=` is only written
        written = self.results or self.operands[:1]  # `x.sort()` returns nothing
        elements = max((array.n for array in self.operands), default=0)
        outputs = max((array.n for array in written), default=1)
        found = {"elements": elements, "outputs": outputs, "kept": min(elements, outputs)}
        found |= {"read": _total_bytes(read), "written": _total_bytes(written)}
        found |= {"entries": sum(array.n for array in read), "parts": 4 if _dtype(call).startswith("complex") else 1}
        self.quantities: dict[str, float] = found
        if not self.operands:
            return
        first, *others = self.operands
        found |= {"axes": len(first.shape), "result": _total_bytes(self.results), "index": _total_bytes(others)}
        if others:
            found["taps"] = min(first.n, others[0].n)
        if len(first.shape) > 1:
            *stack, m, n = first.shape
            columns = others[-1].shape[-1:] if others and len(others[-1].shape) > 1 else (1,) if others else (n,)
            found |= {"stack": math.prod(stack), "m": m, "n": n, "p": max(m, n), "q": min(m, n), "k": columns[0]}

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.kwargs.get(name, self.call.args[position] if len(self.call.args) > position else default)

    def value(self, formula: str) -> float:
        """Of '2/3 n n n + 2 n n k'."""

        def factor(text: str) -> float:
            return self.quantities[text] if text in self.quantities else float(Fraction(text))

        return sum(math.prod(map(factor, term.split())) for term in formula.split(" + "))

    def row(self) -> dict:
        """That the call belongs to, with its quantities found; KeyError: nobody knows what it does."""
        table = _table()
        if self.call.is_view:
            return table["any"]["empty"]
        if self.call.model_work:
            return self.follow(table["own"], "model")
        if any(array.n_stored is not None and array.dtype != "bool" for array in self.operands):
            raise KeyError("a sparse matrix")
        module, _, last = self.name.replace("cupyx.scipy", "scipy").replace("cupy", "numpy").rpartition(".")
        group = table["modules"].get(module, "any" if module.split(".")[0] in _OWNERS else "none")
        besides = table["any"] if module == "numpy.linalg" else {}  # it has NumPy's products
        return self.follow(besides | table.get(group, {}), last)

    def follow(self, rows: dict[str, dict], name: str) -> dict:
        """The row of that name, or the one that its hook sends to."""
        row = rows[name]
        other = globals()[f"_{row['by']}"](self, **row.get("with", {})) if "by" in row else None
        return self.follow(rows, other) if other else row


# Hooks: each adds quantities, and may name another row ---------------------------------------------------------------------


def _power(of: _Operands) -> str | None:
    """NumPy squares, inverts and takes roots by the functions for it."""
    exponent = of.argument(1, "x2")
    known = {0: "positive", 1: "positive", 2: "square", -1: "reciprocal", 0.5: "sqrt"}
    return known.get(exponent) if isinstance(exponent, int | float) else None


def _index(of: _Operands) -> str | None:
    """Of `x[index]` and `x[index] = value`: bytes that the index takes, and its own.

    Single elements, what a mask leaves, or whole rows, which stream if they are long; without arrays in it, a region.
    """
    array, quantities, is_read = of.operands[0], of.quantities, of.name.endswith("__getitem__")
    _, index, _ = (array, of.operands[1:], None) if is_read else of.call.args
    parts = index if isinstance(index, list) else [index]
    indices = [part for part in parts if isinstance(part, Array)]
    if not indices:
        quantities["taken"] = quantities["result"] or array_bytes(array)  # the tracer gives the region as result
        return "copy" if is_read else "index-region"
    mask = next((part for part in indices if part.dtype == "bool"), None)
    n = (mask.n_stored or 0) if mask else max(part.n for part in indices)
    row_bytes = array_bytes(array) / max(array.shape[0], 1)
    each_bytes = row_bytes if len(parts) == 1 and not mask else item_bytes(array.dtype)
    quantities |= {"index": _total_bytes(indices), "taken": quantities["result"] if is_read else n * each_bytes}
    if mask:
        return "index-mask"
    takes_rows = len(indices) == 1 and math.isclose(quantities["taken"], row_bytes * n)
    return "index-rows" if takes_rows and row_bytes >= _CACHE_LINE_BYTES else None


def _search(of: _Operands) -> None:
    """Binary searches; each touches log2 n elements, together at most all."""
    searched = of.operands[1 if of.name.endswith("digitize") else 0]
    of.quantities["log"] = max(math.log2(max(searched.n, 2)), 1)


def _sort(of: _Operands, payload_bytes: float = 0, axis: int = 1) -> None:
    """Of all keys; an index (`payload_bytes`) may move with each. `axis`: position of that argument."""
    n, shape = of.quantities["entries"], of.operands[0].shape
    along = of.argument(axis, "axis", -1)
    length = shape[along] if isinstance(along, int) and -len(shape) <= along < len(shape) else n
    of.quantities |= {"n": n, "length": length, "log": max(math.log2(max(length, 2)), 1)}
    of.quantities |= {"key_bytes": item_bytes(of.operands[0].dtype), "payload_bytes": payload_bytes}


def _product(of: _Operands) -> None:
    """m x k by k x n, stacked or not; what is summed over is not always the last axis (tensordot, vdot, inner)."""
    a, b = of.operands[:2]
    outputs = of.quantities["outputs"] if of.results else 1
    if of.name.rpartition(".")[2] in ("dot", "inner", "tensordot", "vdot"):  # (m k) (k n) (m n) = (m k n)^2
        k = math.sqrt(a.n * b.n / max(outputs, 1))
        m, n = a.n / max(k, 1), b.n / max(k, 1)
    else:
        k, m, n = a.shape[-1], *((array.shape[axis] if len(array.shape) > 1 else 1) for array, axis in ((a, -2), (b, -1)))
    of.quantities |= {"stack": max(outputs / max(m * n, 1), 1), "m": m, "n": n, "k": k, "outputs": outputs}


def _einsum(of: _Operands) -> str | None:
    """NumPy's own count, on arrays without values, of the order of contraction that it takes (of "optimal", nearly)."""
    how = "greedy" if of.kwargs.get("optimize", False) else False  # looking for the best takes for ever
    empty = [np.broadcast_to(np.int8(0), each.shape) if isinstance(each, Array) else each for each in of.call.args]
    path, report = np.einsum_path(*empty, optimize=how)
    counted = float(re.search(rf"{'Optimized' if how else 'Naive'} FLOP count:\s*(\S+)", report)[1])
    k, side = max(counted / (2 * max(of.quantities["outputs"], 1)), 1), math.sqrt(of.quantities["outputs"])
    of.quantities |= {"counted": counted, "steps": max(len(path) - 1, 1), "stack": 1, "m": side, "n": side, "k": k}
    return "einsum-of-one" if len(of.operands) == 1 else None


def _norm(of: _Operands) -> str | None:
    order, axis = of.argument(1, "ord"), of.argument(2, "axis")
    if order in (2, -2, "nuc") and len(of.operands[0].shape) == 2 and axis is None:
        return "svdvals"
    return None if order is None and axis is None else "norm-by-axis"


def _svd(of: _Operands) -> str | None:
    if of.argument(2, "compute_uv", True) is False or len(of.results) == 1:
        return "svdvals"
    return None if of.argument(1, "full_matrices", True) else "svd-thin"


def _fft(of: _Operands, n_dimensions: int = 1) -> None:
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
    several = of.argument(2, "axes") or range(-(n_dimensions or len(longest)), 0)
    axes = [of.argument(2, "axis", -1)] if n_dimensions == 1 else several
    axes, moved = [axis % len(longest) for axis in axes], of.quantities["read"] + of.quantities["written"]
    lengths, passes = [longest[axis] for axis in axes], {"smooth": 0, "prime": 0}
    for n in lengths:
        prime = _largest_prime(n)
        passes["prime" if 13 < prime <= 127 else "smooth"] += 4 * _passes(2 * n) + 4 if prime > 127 else _passes(n)
    is_inverse = source.dtype.startswith("complex") and result.dtype.startswith("float")
    of.quantities |= {
        **{f"{kind}_bytes": moved * n for kind, n in passes.items()},
        "short_bytes": sum(moved / max(n, 1) for n in lengths),
        "strided_bytes": 0.0 if len(longest) - 1 in axes or axes == [0] else moved,
        "inverse_bytes": moved if is_inverse else 0.0,
        "axes": len(axes),
        "points": math.prod(longest),
        "log": math.log2(max(math.prod(lengths), 2)),
    }


def _passes(n: int) -> int:
    n_steps = max(math.ceil(math.log2(max(n, 2)) / 12), 1)
    return n_steps if n_steps == 1 else 2 * n_steps


def _largest_prime(n: int) -> int:
    """At most what is left after the primes up to 127."""
    for prime in range(2, 128):
        while n > prime and n % prime == 0:
            n //= prime
    return n


def _gaussian(of: _Operands) -> None:
    sigma, n_axes = of.argument(1, "sigma"), 1 if of.name.endswith("1d") else of.quantities["axes"]
    sigmas = sigma if isinstance(sigma, list) else [sigma] * n_axes
    of.quantities["taps"] = sum(2 * int(of.kwargs.get("truncate", 4.0) * each + 0.5) + 1 for each in sigmas)


def _window(of: _Operands) -> None:
    """Each element of a window is ranked."""
    size, footprint = of.argument(1, "size"), of.argument(2, "footprint")
    sizes = size if isinstance(size, list) else [size] * of.quantities["axes"]
    of.quantities["taps"] = (footprint.n_stored or footprint.n) if isinstance(footprint, Array) else math.prod(sizes)


def _pairwise(of: _Operands) -> str | None:
    """scikit-learn: a product, then some operations for each pair, in a few passes; unless the measure is no product."""
    metric = of.argument(2, "metric")
    if isinstance(metric, str) and metric not in ("euclidean", "l2", "cosine", "sqeuclidean"):
        return "manhattan_distances"
    (m, k), n = of.operands[0].shape, of.operands[min(1, len(of.operands) - 1)].shape[0]
    of.quantities |= {"stack": 1, "m": m, "n": n, "k": k}
    return None


def _model(of: _Operands) -> str | None:
    """As the framework states it; a convolution besides as the product that it amounts to, a row for each pixel."""
    flops, moved_bytes, n_kernels = of.call.model_work
    of.quantities |= {"stated_flops": flops, "stated_bytes": moved_bytes, "stated_kernels": n_kernels}
    shape = of.results[0].shape if of.results else ()
    if "conv" not in of.name.rpartition(".")[2].lower() or len(shape) < 3:
        return None
    n, m = shape[1], math.prod(shape) / max(shape[1], 1)
    k = flops / max(2 * m * n, 1)
    least_bytes = min(moved_bytes, item_bytes(_dtype(of.call)) * (m * k + k * n + m * n))
    of.quantities |= {"stack": 1, "m": m, "n": n, "k": k, "channels": of.operands[0].shape[1], "least_bytes": least_bytes}
    return "model-convolution"
