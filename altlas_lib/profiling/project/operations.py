"""What an operation on arrays costs, from shapes and dtypes alone: arithmetic, bytes read and written, kernels.

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

import math
import re
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ...results import OperationKind


class Cost(NamedTuple):
    """Of one call. `flops` are comparisons for sorts; None where nobody knows."""

    kind: OperationKind
    flops: float | None
    moved_bytes: float | None
    working_set_bytes: float
    n_kernels: int
    dtype: str


# Arrays ------------------------------------------------------------------------------------------------------------------

_HOMOGENEOUS = 8  # a list without an array among its first elements is taken to hold none


def is_array_type(kind: type) -> bool:
    """Whether values of a type are arrays: they have a shape and a dtype, values, and are no NumPy scalars."""
    if issubclass(kind, np.ndarray | np.generic):
        return not issubclass(kind, np.generic)
    if re.search("Symbolic|Tracer|KerasTensor|TensorSpec|ShapeDtype", kind.__name__):
        return False
    attributes = {name for base in kind.__mro__ for name in vars(base)}  # `hasattr` could run somebody's code
    sparse = "sparse" in str(kind.__module__) and "tocsr" in attributes
    return sparse or ("shape" in attributes and bool(attributes & {"dtype", "dtypes"}))


def arrays_in(values: Iterable[Any], is_array: Callable[[Any], bool] = lambda value: is_array_type(type(value))) -> list[Any]:
    """The arrays among `values` and, one level down, in lists, tuples and dictionaries."""
    found = []
    for value in values:
        if is_array(value):
            found.append(value)
        elif issubclass(type(value), list | tuple | dict):  # `isinstance` would ask the value for its class
            inner = value.values() if issubclass(type(value), dict) else value
            if any(is_array(element) for element in islice(inner, _HOMOGENEOUS)):
                found += [element for element in inner if is_array(element)]
    return found


def shape(array: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in array.shape)


def dtype_name(array: Any) -> str:
    """'float32', also of TensorFlow's and PyTorch's types; 'mixed' for a table."""
    dtype = getattr(array, "dtype", "mixed")
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def describe(array: Any) -> str:
    """'float32[4000, 384]'"""
    return f"{dtype_name(array)}{list(shape(array))}"


def array_bytes(array: Any) -> int:
    """Bytes of its elements; of a sparse matrix those of its values and indices."""
    if isinstance(n_bytes := getattr(array, "nbytes", None), int | np.integer):
        return int(n_bytes)
    if hasattr(array, "nnz"):
        parts = [part for part in vars(array).values() if isinstance(part, np.ndarray)]
        return sum(part.nbytes for part in parts)
    itemsize = getattr(getattr(array, "dtype", None), "itemsize", None) or getattr(getattr(array, "dtype", None), "size", 8)
    return math.prod(shape(array)) * (itemsize if isinstance(itemsize, int) else 8)


# Calls -------------------------------------------------------------------------------------------------------------------


class _Call:
    """One call, and what every formula asks of it. A method's array is its first argument."""

    def __init__(self, name: str, args: tuple, kwargs: dict[str, Any], result: Any):
        self.name, self.args, self.kwargs, self.result = name, args, kwargs, result
        self.operands = arrays_in([*args, *kwargs.values()])
        self.results = arrays_in([result])
        first = args[0] if args else None
        self.written = self.results or self.operands[:1]  # `x.sort()` returns nothing
        out = [array for array in self.results if array is not first]  # `out=` is only written
        self.read = [array for array in {id(a): a for a in self.operands}.values() if not any(array is o for o in out)]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.kwargs.get(name, self.args[position] if len(self.args) > position else default)

    @cached_property
    def read_bytes(self) -> int:
        return sum(map(array_bytes, self.read))

    @cached_property
    def written_bytes(self) -> int:
        return sum(map(array_bytes, self.written))

    @cached_property
    def n(self) -> int:
        """Elements of the largest operand."""
        return max((math.prod(shape(array)) for array in self.operands), default=0)

    @cached_property
    def n_written(self) -> int:
        return max((math.prod(shape(array)) for array in self.written), default=1)

    @cached_property
    def dtype(self) -> str:
        """That it computes in: the result's if that is inexact, else the operands', for what compares and counts."""
        results = [dtype_name(array) for array in self.results]
        names = [dtype_name(array) for array in self.operands] or results
        inexact = [name for name in [*results, *names] if name.startswith(("float", "complex", "bfloat"))]
        return (inexact or names or ["float64"])[0]

    @property
    def parts(self) -> int:
        """Real operations that a complex one takes: a multiplication and an addition take 8 instead of 2."""
        return 4 if self.dtype.startswith("complex") else 1

    def axis_length(self, position: int = 1) -> int:
        axis = self.argument(position, "axis", -1)
        of = shape(self.args[0]) if hasattr(self.args[0], "shape") else (self.n,)
        return of[axis] if isinstance(axis, int) and of else self.n


Work = tuple[OperationKind, float | None, float | None, int]  # kind, flops, moved bytes, kernels
Formula = Callable[[_Call], Work]


def cost(name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> Cost:
    """Cost of one call; of kind "unknown" where no formula fits, never an error.

    Args:
        name: as the tracer writes it: 'numpy.matmul', 'ndarray.argsort'; the first argument of a method is its array.
    """
    call = _Call(name, args, kwargs, result)
    working_set = sum(map(array_bytes, {id(array): array for array in [*call.operands, *call.results]}.values()))
    try:
        kind, flops, moved_bytes, n_kernels = _formula(call)(call)
    except Exception:  # arguments that nobody foresaw; the time is known, the work is not
        kind, flops, moved_bytes, n_kernels = _unknown(call)
    return Cost(kind, flops, moved_bytes, float(working_set), n_kernels, call.dtype)


def _formula(call: _Call) -> Formula:
    *home, function = call.name.split(".")
    if any(hasattr(array, "nnz") for array in call.operands):
        return _sparse if function in ("matmul", "dot", "__matmul__", "_matmul_dispatch") else _unknown
    module = ".".join(home).replace("cupyx.scipy", "scipy").replace("cupy", "numpy")  # CuPy's names are NumPy's and SciPy's
    if module in _BY_HOME:
        return _BY_HOME[module].get(function, _unknown)
    return _BY_NAME.get(function, _unknown) if home and home[0] in _HOMES else _unknown


_HOMES = {"numpy", "scipy", "cupy", "cupyx", "ndarray", "Series", "DataFrame", "Index", "Generator", "RandomState", "builtins"}


def _unknown(call: _Call) -> Work:
    return "unknown", None, None, 1


def _view(call: _Call) -> Work:
    return "view", 0, 0, 0


def _elementwise(call: _Call, weight: float = 1, n_passes: int = 1) -> Work:
    """`weight` operations per element; passes after the first read and write what the first wrote."""
    moved = call.read_bytes + call.written_bytes * (2 * n_passes - 1)
    return "elementwise", weight * call.parts * max(call.n_written, 1), moved, n_passes


def _power(call: _Call) -> Work:
    exponent = call.argument(1, "x2")  # NumPy squares, inverts and takes roots by the functions for it
    easy = isinstance(exponent, int | float) and exponent in (-1, 0, 0.5, 1, 2)
    return _elementwise(call, 8 if easy and exponent in (-1, 0.5) else 1 if easy else 50)


def _reduction(call: _Call, weight: float = 1, n_reads: int = 1, n_kernels: int = 1) -> Work:
    moved = call.read_bytes * n_reads + sum(map(array_bytes, call.results))
    return "reduction", weight * call.parts * call.n, moved, n_kernels


def _norm(call: _Call) -> Work:
    order, axis = call.argument(1, "ord"), call.argument(2, "axis")
    if order in (2, -2, "nuc") and len(shape(call.args[0])) == 2 and axis is None:
        return _factorisation(call, _singular_values)
    return _reduction(call, 2) if order is None and axis is None else _reduction(call, 2, n_reads=3, n_kernels=3)


def _copy(call: _Call) -> Work:
    """Two bytes for each written; nothing where the result is a view."""
    if call.results and all(any(_shares(result, operand) for operand in call.operands) for result in call.results):
        return _view(call)
    if not call.operands and call.name.endswith((".array", ".asarray", ".asanyarray", "array")):
        return _unknown(call)  # made of Python's objects
    return "copy", 0, sum(map(array_bytes, call.results)) * 2, 1


def _shares(result: Any, operand: Any) -> bool:
    if isinstance(result, np.ndarray) and isinstance(operand, np.ndarray):
        return np.may_share_memory(result, operand)
    return result is operand


def _create(call: _Call, weight: float = 0) -> Work:
    return "elementwise" if weight else "copy", weight * call.n_written, call.written_bytes, 1


def _get(call: _Call) -> Work:
    if any(_shares(result, call.args[0]) for result in call.results):
        return _view(call)
    indices = sum(map(array_bytes, call.operands[1:]))
    return "gather", 0, indices + 2 * call.written_bytes, 1 + any(dtype_name(array) == "bool" for array in call.operands[1:])


def _set(call: _Call) -> Work:
    """`array[index] = value`, arguments in this order."""
    array, index, value = call.args
    indices = [np.asarray(part) for part in (index if isinstance(index, tuple) else [index]) if _is_fancy(part)]
    itemsize = array_bytes(array) / max(math.prod(shape(array)), 1)
    if not indices:
        written = array_bytes(array[index]) if isinstance(array[index], np.ndarray) else array_bytes(value)
        return "copy", 0, written + (array_bytes(value) if arrays_in([value]) else 0), 1
    mask = [i for i in indices if dtype_name(i) == "bool"]
    written = itemsize * (np.count_nonzero(mask[0]) if mask else max(math.prod(shape(i)) for i in indices))
    if len(indices) == 1 and not mask and not isinstance(index, tuple):
        written *= math.prod(shape(array)[1:])  # whole rows
    return "gather", 0, sum(map(array_bytes, indices)) + 2 * written, 1 + bool(mask)


def _is_fancy(index: Any) -> bool:
    return isinstance(index, list) or is_array_type(type(index))


def _gather(call: _Call, n_kernels: int = 1) -> Work:
    indices = sum(map(array_bytes, call.operands[1:]))
    return "gather", 0, indices + 2 * call.written_bytes, n_kernels


def _scan_and_gather(call: _Call) -> Work:
    """nonzero and its like: a count of what is there, then its places."""
    return "gather", call.n, 2 * call.read_bytes + sum(map(array_bytes, call.results)), 2


def _scatter(call: _Call, weight: float = 1) -> Work:
    """bincount, histogram, np.add.at: each element is added to a place of its own."""
    return "gather", weight * call.n, call.read_bytes + 2 * sum(map(array_bytes, call.results)), 2


def _search(call: _Call) -> Work:
    """Binary searches; each touches log2 n elements, together at most all."""
    sizes = [math.prod(shape(array)) for array in call.operands[:2]]
    haystack, needles = (sizes[1], sizes[0]) if call.name.endswith("digitize") else (sizes[0], call.n_written)
    steps = needles * max(math.log2(max(haystack, 2)), 1)
    return "gather", steps, call.read_bytes + call.written_bytes, 1


def _where(call: _Call) -> Work:
    return _elementwise(call) if len(call.args) + len(call.kwargs) > 1 else _scan_and_gather(call)


def _sort(call: _Call, n_times: int = 1) -> Work:
    comparisons = n_times * call.n * max(math.log2(max(call.axis_length(), 2)), 1)
    return "sort", comparisons, call.read_bytes + call.written_bytes, n_times


def _set_operation(call: _Call) -> Work:
    """unique, isin and their like: a sort of all, then a pass over it."""
    n = sum(math.prod(shape(array)) for array in call.operands)
    return "sort", n * math.log2(max(n, 2)), 3 * call.read_bytes + call.written_bytes, 4


def _partition(call: _Call) -> Work:
    return "sort", 3.4 * call.n, call.read_bytes + call.written_bytes, 1


# Products, factorisations, transforms ------------------------------------------------------------------------------------


def _product(call: _Call, inner: int | None = None) -> Work:
    a, b = (shape(array) for array in call.operands[:2])
    inner = inner or (a[-1] if a else 1)
    if "tensordot" in call.name:  # (rows inner) (inner columns) (rows columns) = (rows inner columns)^2
        inner = math.sqrt(math.prod(a) * math.prod(b) / call.n_written)
    if "vdot" in call.name:
        inner = math.prod(a)
    n_results = call.n_written if call.results else 1
    return "product", 2 * call.parts * inner * n_results, call.read_bytes + sum(map(array_bytes, call.results)), 1


def _einsum(call: _Call) -> Work:
    """NumPy's own count, of the order of contraction that it takes."""
    how = call.kwargs.get("optimize", False)
    path, report = np.einsum_path(*call.args, optimize=how)
    count = re.search(rf"{'Optimized' if how else 'Naive'} FLOP count:\s*(\S+)", report)
    kind = "product" if len(call.operands) > 1 else "reduction"
    return kind, float(count[1]) * call.parts, call.read_bytes + call.written_bytes, max(len(path) - 1, 1)


def _sparse(call: _Call) -> Work:
    """A sparse matrix times a dense one: each stored value reads a row of the dense one."""
    sparse = [array for array in call.operands if hasattr(array, "nnz")]
    dense = [array for array in call.operands if not hasattr(array, "nnz")]
    if len(sparse) != 1 or not dense:
        return _unknown(call)  # how much of two sparse ones meets is in their values
    n_columns = math.prod(shape(dense[0])) / sparse[0].shape[1 if call.operands[0] is sparse[0] else 0]
    gathered = sparse[0].nnz * n_columns * array_bytes(dense[0]) / max(math.prod(shape(dense[0])), 1)
    return "gather", 2 * sparse[0].nnz * n_columns, array_bytes(sparse[0]) + gathered + call.written_bytes, 1


def _factorisation(call: _Call, flops: Callable[[int, int, int], float], n_kernels: int = 1) -> Work:
    """`flops(m, n, right-hand sides)` of each matrix of a stack."""
    factors = call.args[0] if arrays_in([call.args[0]]) and hasattr(call.args[0], "shape") else call.args[0][0]
    *stack, m, n = shape(factors)
    if len(call.operands) > 1:
        b = shape(call.operands[-1])
        n_sides = b[-1] if len(b) >= 2 else 1
    else:
        n_sides = n
    moved = call.read_bytes + call.written_bytes
    return "factorisation", call.parts * math.prod(stack) * flops(m, n, n_sides), moved, n_kernels


def _singular_values(m: int, n: int, _: int = 0) -> float:
    long, short = max(m, n), min(m, n)
    return 4 * long * short**2 - 4 / 3 * short**3


def _svd(call: _Call) -> Work:
    if call.kwargs.get("compute_uv", call.argument(2, "compute_uv", True)) is False or len(call.results) == 1:
        return _factorisation(call, _singular_values)
    if call.argument(1, "full_matrices", True):
        return _factorisation(call, lambda m, n, _: 4 * max(m, n) ** 2 * min(m, n) + 22 * min(m, n) ** 3)
    return _factorisation(call, lambda m, n, _: 14 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3)


def _qr(call: _Call) -> Work:
    form_q = len(call.results) > 1
    return _factorisation(call, lambda m, n, _: (2 if form_q else 1) * 2 * min(m, n) ** 2 * (max(m, n) - min(m, n) / 3))


def _fft(call: _Call, factor: float = 5, n_dimensions: int | None = 1) -> Work:
    """`n_dimensions`: that it transforms; None: all, or those of `axes`."""
    source, result = shape(call.args[0]), shape(call.results[0])
    longest = [max(pair) for pair in zip(source, result, strict=True)]
    axes = call.kwargs.get("axes") or (range(-n_dimensions, 0) if n_dimensions else range(len(source)))
    if n_dimensions == 1 and isinstance(axis := call.argument(2, "axis", -1), int):
        axes = [axis]
    lengths = [longest[axis] for axis in axes]
    flops = factor * math.prod(longest) * math.log2(max(math.prod(lengths), 2))
    return "fft", flops, (call.read_bytes + call.written_bytes) * len(lengths), len(lengths)


def _convolution(call: _Call) -> Work:
    """Every element of the one with every element of the other, unless only a part is kept."""
    a, b = (math.prod(shape(array)) for array in call.operands[:2])
    pairs = a * b if call.n_written >= max(a, b) and call.argument(2, "mode", "full") == "full" else call.n_written * min(a, b)
    return "elementwise", 2 * call.parts * pairs, call.read_bytes + call.written_bytes, 1


def _fft_convolution(call: _Call) -> Work:
    """Two transforms, a product, and one back."""
    n = math.prod(i + j - 1 for i, j in zip(*(shape(array) for array in call.operands[:2]), strict=True))
    flops = 3 * (5 if call.parts > 1 else 2.5) * n * math.log2(max(n, 2)) + 3 * n
    return "fft", flops, call.read_bytes + 6 * n * 8 + call.written_bytes, 5


def _cheaper_convolution(call: _Call) -> Work:
    """scipy.signal.convolve: directly or by FFT, whatever is faster, unless told."""
    ways = {"direct": _convolution(call), "fft": _fft_convolution(call)}
    return ways.get(call.argument(3, "method", "auto")) or min(ways.values(), key=lambda work: work[1])


def _filter(call: _Call, taps: Callable[[_Call], float]) -> Work:
    """scipy.ndimage: `taps` operations for each element."""
    return "elementwise", taps(call) * call.n_written, call.read_bytes + call.written_bytes, 1


def _gaussian_taps(call: _Call) -> float:
    sigma, n_axes = call.argument(1, "sigma"), 1 if call.name.endswith("1d") else len(shape(call.args[0]))
    sigmas = [sigma] * n_axes if np.isscalar(sigma) else sigma
    return sum(2 * (2 * int(call.kwargs.get("truncate", 4.0) * s + 0.5) + 1) for s in sigmas)


def _window(call: _Call) -> int:
    size, footprint = call.argument(1, "size"), call.argument(2, "footprint")
    if footprint is not None:
        return int(np.count_nonzero(footprint))
    return int(size ** len(shape(call.args[0])) if np.isscalar(size) else math.prod(size))


def _distances(call: _Call) -> Work:
    """A subtraction, a multiplication and an addition for each coordinate of each pair."""
    n_coordinates = shape(call.operands[0])[1]
    return "elementwise", 3 * n_coordinates * call.n_written, call.read_bytes + call.written_bytes, 1


def _pairwise(call: _Call, weight: float = 1) -> Work:
    """scikit-learn: a product, then `weight` operations for each pair, in a few passes."""
    n_coordinates = shape(call.operands[0])[1]
    y = call.operands[1] if len(call.operands) > 1 else call.operands[0]
    n_pairs = shape(call.operands[0])[0] * shape(y)[0]
    flops = (2 * n_coordinates + weight) * n_pairs + 3 * sum(math.prod(shape(array)) for array in call.read)
    return "product", flops, 3 * call.read_bytes + 3 * call.written_bytes, 6


def _any_pairwise(call: _Call) -> Work:
    metric = call.argument(2, "metric", "euclidean")
    return _pairwise(call) if metric in ("euclidean", "l2", "cosine", "sqeuclidean") else _distances(call)


# The table ---------------------------------------------------------------------------------------------------------------


def _named(names: str, formula: Formula, **options: Any) -> dict[str, Formula]:
    return dict.fromkeys(names.split(), partial(formula, **options))


_BY_NAME: dict[str, Formula] = {
    **_named(
        """add subtract multiply negative positive absolute abs fabs sign conjugate conj real imag maximum minimum fmax fmin
        clip round rint floor ceil trunc around fix greater greater_equal less less_equal equal not_equal logical_and
        logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_xor invert left_shift right_shift isnan isinf
        isfinite signbit copysign square heaviside triu tril outer kron select piecewise copyto putmask nan_to_num isclose
        diff ediff1d sub mul neg fillna isna notna isnull notnull between""",
        _elementwise,
    ),
    **_named("divide true_divide truediv reciprocal sqrt hypot spacing ldexp modf gradient interp", _elementwise, weight=8),
    **_named("remainder mod fmod floor_divide floordiv divmod gcd lcm cross cbrt rsqrt", _elementwise, weight=10),
    **_named(
        """exp exp2 expm1 log log2 log10 log1p sin cos tan arcsin arccos arctan arctan2 sinh cosh tanh arcsinh arccosh
        arctanh logaddexp logaddexp2 sinc i0 angle erf erfc erfinv expit logit ndtr gammaln gamma digamma xlogy entr""",
        _elementwise,
        weight=20,
    ),
    **_named("softmax log_softmax", _elementwise, weight=25, n_passes=4),
    **_named("power pow float_power", _power),
    **_named("where", _where),
    **_named(
        """sum nansum prod nanprod max min amax amin nanmax nanmin mean nanmean average all any argmax argmin nanargmax
        nanargmin ptp count_nonzero trace reduce reduceat cumsum cumprod nancumsum nancumprod cumulative_sum
        cumulative_prod accumulate array_equal idxmax idxmin count""",
        _reduction,
    ),
    **_named("var std nanvar nanstd", _reduction, weight=4, n_reads=6, n_kernels=4),
    **_named("logsumexp", _reduction, weight=25, n_reads=5, n_kernels=4),
    **_named("allclose cov corrcoef", _reduction, weight=5, n_reads=5, n_kernels=5),
    **_named("norm", _norm),
    **_named(
        """reshape ravel transpose swapaxes squeeze expand_dims broadcast_to broadcast_arrays atleast_1d atleast_2d
        atleast_3d asarray asanyarray array ascontiguousarray asfortranarray astype moveaxis rollaxis flip fliplr flipud
        rot90 diagonal diag view split array_split hsplit vsplit require copy flatten concatenate concat stack vstack
        hstack column_stack dstack block tile repeat pad roll append insert delete resize meshgrid byteswap
        matrix_transpose permute_dims to_numpy asarray_chkfinite fftshift ifftshift sliding_window_view as_strided""",
        _copy,
    ),
    **_named("empty empty_like len __len__ shape ndim size may_share_memory shares_memory result_type", _view),
    **_named("zeros zeros_like ones ones_like full full_like eye identity fill indices tri arange linspace", _create),
    **_named("logspace geomspace hanning hamming blackman kaiser fftfreq rfftfreq", _create, weight=20),
    # A counter-based generator takes about ten operations, a normal number a logarithm, a root and a cosine besides.
    **_named("random rand random_sample integers randint uniform bytes", _create, weight=10),
    **_named("normal standard_normal randn exponential lognormal laplace gumbel", _create, weight=50),
    **_named("__getitem__", _get),
    **_named("__setitem__", _set),
    **_named("take take_along_axis compress extract choose choice permutation shuffle put put_along_axis permuted", _gather),
    **_named("nonzero flatnonzero argwhere", _scan_and_gather),
    **_named("bincount at", _scatter),
    **_named("histogram histogram2d histogramdd", _scatter, weight=10),
    **_named("searchsorted digitize", _search),
    **_named("sort argsort msort sort_values", _sort),
    **_named("lexsort", lambda call: _sort(call, len(call.operands))),
    **_named("unique isin in1d intersect1d union1d setdiff1d setxor1d unique_values unique_counts", _set_operation),
    **_named("partition argpartition median nanmedian percentile nanpercentile quantile nanquantile", _partition),
    **_named("matmul dot vdot inner tensordot vecdot matvec vecmat", _product),
    **_named("einsum", _einsum),
    **_named("convolve correlate", _convolution),
}

_INVERSE_SOLVE = {  # of square matrices of n rows, unless m is named
    **_named("solve", _factorisation, flops=lambda m, n, k: 2 / 3 * n**3 + 2 * n**2 * k, n_kernels=2),
    **_named("lu_solve cho_solve", _factorisation, flops=lambda m, n, k: 2 * n**2 * k, n_kernels=2),
    **_named("solve_triangular", _factorisation, flops=lambda m, n, k: n**2 * k),
    **_named("inv", _factorisation, flops=lambda m, n, k: 2 * n**3, n_kernels=2),
    **_named(
        "lu lu_factor det slogdet", _factorisation, flops=lambda m, n, k: 2 * min(m, n) ** 2 * (max(m, n) - min(m, n) / 3)
    ),
    **_named("cholesky cho_factor", _factorisation, flops=lambda m, n, k: n**3 / 3),
    **_named("eigh", _factorisation, flops=lambda m, n, k: 9 * n**3),
    **_named("eigvalsh", _factorisation, flops=lambda m, n, k: 4 / 3 * n**3),
    **_named("eig", _factorisation, flops=lambda m, n, k: 25 * n**3),
    **_named("eigvals", _factorisation, flops=lambda m, n, k: 10 * n**3),
    **_named("svdvals matrix_rank cond", _factorisation, flops=_singular_values),
    **_named(
        "lstsq", _factorisation, flops=lambda m, n, k: 4 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3 + 4 * m * n * k
    ),
    **_named("pinv", _factorisation, flops=lambda m, n, k: 14 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3 + 2 * m * n**2),
    **_named("svd", _svd),
    **_named("qr", _qr),
    **_named("norm", _norm),
}
_FFT = {
    **_named("fft ifft hfft ihfft", _fft),
    **_named("rfft irfft dct idct dst idst", _fft, factor=2.5),
    **_named("fft2 ifft2", _fft, n_dimensions=2),
    **_named("rfft2 irfft2", _fft, factor=2.5, n_dimensions=2),
    **_named("fftn ifftn", _fft, n_dimensions=None),
    **_named("rfftn irfftn dctn idctn", _fft, factor=2.5, n_dimensions=None),
    **{name: _BY_NAME[name] for name in ("fftshift", "ifftshift", "fftfreq", "rfftfreq")},
}
_BY_HOME: dict[str, dict[str, Formula]] = {
    "numpy.linalg": {**_BY_NAME, **_INVERSE_SOLVE},
    "scipy.linalg": {**_INVERSE_SOLVE, "block_diag": _copy, "toeplitz": _create},
    "numpy.fft": _FFT,
    "scipy.fft": _FFT,
    "scipy.signal": {
        **_named("fftconvolve oaconvolve", _fft_convolution),
        **_named("convolve correlate", _cheaper_convolution),
        **_named("convolve2d correlate2d", _convolution),
    },
    "scipy.ndimage": {
        **_named(
            "convolve correlate convolve1d correlate1d", _filter, taps=lambda call: 2 * math.prod(shape(call.operands[1]))
        ),
        **_named("gaussian_filter gaussian_filter1d", _filter, taps=_gaussian_taps),
        **_named("uniform_filter maximum_filter minimum_filter", _filter, taps=lambda call: 3 * len(shape(call.args[0]))),
        **_named("median_filter rank_filter percentile_filter", _filter, taps=lambda call: 3.4 * _window(call)),
        **_named("sobel prewitt laplace", _filter, taps=lambda call: 6 * len(shape(call.args[0]))),
    },
    "scipy.spatial.distance": _named("cdist pdist", _distances),
    "scipy.stats": {},
    "scipy.cluster.vq": {},
    "sklearn.metrics.pairwise": {
        **_named("cosine_similarity cosine_distances linear_kernel polynomial_kernel sigmoid_kernel", _pairwise),
        **_named("euclidean_distances pairwise_distances_argmin pairwise_distances_argmin_min", _pairwise, weight=4),
        **_named("rbf_kernel", _pairwise, weight=24),
        **_named("manhattan_distances laplacian_kernel", _distances),
        **_named("pairwise_distances", _any_pairwise),
    },
    "sklearn.preprocessing": _named("normalize", _elementwise, weight=3, n_passes=2),
}
