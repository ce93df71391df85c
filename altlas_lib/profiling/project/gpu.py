"""What a processor reaches, as bands: of a GPU by its data sheet or its measured ceilings (of this CPU: `cpu_rates`).

A call that does `work` takes start + work / rate (Hockney and Jesshope, Parallel Computers, 1981): half of the rate is reached
where work = start * rate, their n_1/2. Every figure is a band from the slow end to the fast one, for no program reaches a peak
and no two reach the same share of it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from ...devices import GpuSpec, find_gpu
from ...results import ArrayOperation, Ceilings, Quantity

Band = tuple[float, float]  # low, high
Curve = tuple[
    tuple[float, Band], ...
]  # by ascending size; between two sizes interpolated on logarithmic axes, beyond them flat


class OperationClass(NamedTuple):
    """What an operation's rate is looked up by; finer than its kind where processors treat one kind in several ways."""

    name: str
    dtype: str  # float16, float32, float64, integer: complex ones are counted in real operations, so they go by their parts


@dataclass(frozen=True)
class Rates:
    """Rates of one device.

    Attributes:
        work_per_s: operations per second, by the number of them in one call, or in one item of a stack. A class that is missing
            is bound by memory.
        bytes_per_s: bytes read and written per second, by the working set in bytes; "stream" serves every class not named.
        start_s: seconds before a call's work begins ("any" serves every class not named): of each kernel on a GPU, on a CPU
            of each call.
        item_s: CPU: seconds for each further matrix of a stack; a GPU takes a stack in one kernel.
        to_device, to_host: bytes per second over PCIe, pageable to pinned memory; None: there is no other side.
    """

    device: str
    basis: Literal["data sheet", "measured ceilings"]
    work_per_s: Mapping[OperationClass, Curve]
    bytes_per_s: Mapping[str, Curve]
    start_s: Mapping[str, Band]
    item_s: Mapping[str, Band] = field(default_factory=dict)
    to_device: Band | None = None
    to_host: Band | None = None

    @property
    def on_gpu(self) -> bool:
        return self.to_device is not None

    def work_rate(self, of: OperationClass, work: float) -> Band:
        """Operations per second of a call that does `work` of them; endless for a class that only memory binds."""
        curve = self.work_per_s.get(of) or self.work_per_s.get(of._replace(dtype="float32"))
        return _interpolated(curve, work) if curve else (math.inf, math.inf)

    def bandwidth(self, of: OperationClass, working_set_bytes: float) -> Band:
        return _interpolated(self.bytes_per_s.get(of.name) or self.bytes_per_s["stream"], working_set_bytes)

    def start(self, of: OperationClass) -> Band:
        return self.start_s.get(of.name) or self.start_s["any"]


def _interpolated(curve: Curve, size: float) -> Band:
    sizes = np.log([at for at, _ in curve])
    slow, fast = (np.exp(np.interp(np.log(max(size, 1.0)), sizes, np.log([band[end] for _, band in curve]))) for end in (0, 1))
    return float(slow), float(fast)


# Classes of operations ---------------------------------------------------------------------------------------------------

# Kind -> finer classes, ten times apart on a CPU, with what names match them; the first that matches counts.
_FINER_CLASSES = {
    "elementwise": (
        ("special function", r"^scipy\.special"),
        ("distances", r"dist$|distance|kernel$"),
        ("filter", r"^scipy\.(ndimage|signal)|convolve|correlate"),  # compiled loops around each element
        ("random", r"random|Generator|RandomState"),
        ("where", r"\.(where|select|piecewise)$"),  # a branch for each element, foreseen or not
        ("scalar loop", r"mod$|remainder|floor_?div|hypot|gcd|lcm|\.cross$"),  # without vector instructions in NumPy
        ("transcendental", r"exp|log|pow|sin|cos|tan|cbrt|softmax|sinc|i0$|angle"),
    ),
    "reduction": (
        ("cumulative", r"\.(nan)?cum|accumulate"),
        ("transcendental", r"logsumexp"),
    ),  # each result waits for the last
    "sort": (
        ("argsort", r"argsort|lexsort|rank"),
        ("quantile", r"median|percentile|quantile"),
        ("partition", r"partition|top_?k"),
    ),
    "gather": (("search", r"searchsorted|digitize"), ("scatter", r"bincount|histogram|\.at$")),
    "factorisation": (("spectral", r"svd|eig|pinv|lstsq|matrix_rank|cond$|norm$"),),  # iterative, not a fixed number of steps
    "copy": (("strided copy", r"ascontiguousarray|asfortranarray|ravel|reshape"),),  # they copy only what lies in another order
}
_OPERAND = re.compile(r"(\w+)\[([\d, ]*)\]")
_CACHE_LINE_BYTES = 64


def operation_class(operation: ArrayOperation) -> OperationClass:
    """Raises nothing: a name or dtype that nobody foresaw falls to the class of its kind, in float32."""
    kind = operation.kind
    finer = next((finer for finer, pattern in _FINER_CLASSES.get(kind, ()) if re.search(pattern, operation.name)), kind)
    return OperationClass(_gather_class(operation) if finer == "gather" else finer, _dtype_class(operation.dtype, kind))


def _dtype_class(name: str, kind: str) -> str:
    if name == "bfloat16":  # NumPy knows it only once ml_dtypes is loaded, and then not as a kind of float
        return "float16"
    try:
        dtype = np.dtype(name)
    except TypeError:  # string, category
        return "float32"
    if dtype.kind in "iub" and kind == "product":
        return "integer"
    itemsize = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return "float64" if itemsize > 4 else "float16" if dtype.kind == "f" and itemsize == 2 else "float32"


def _shapes(operation: ArrayOperation) -> list[tuple[str, tuple[int, ...]]]:
    found = (_OPERAND.fullmatch(operand) for operand in operation.operands)
    return [(match[1], tuple(int(n) for n in match[2].split(",") if n.strip())) for match in found if match]


def n_items(operation: ArrayOperation) -> int:
    """Matrices of a stack that are multiplied or factorised, rows that are transformed one by one; else 1."""
    n_inner = {"product": 2, "factorisation": 2, "fft": 1}.get(operation.kind)
    if n_inner is None or re.search("tensordot|einsum", operation.name):
        return 1
    return max((math.prod(shape[:-n_inner]) for _, shape in _shapes(operation)), default=1) or 1


def _gather_class(operation: ArrayOperation) -> str:
    """Single elements ("gather"), what a mask leaves ("mask"), or whole rows, which stream ("row gather")."""
    (_, rows), *indices = _shapes(operation) or [("", ())]
    if any(dtype == "bool" for dtype, _ in indices):
        return "mask"
    if len(rows) > 1 and len(indices) == 1:
        dtype, (_, index) = operation.operands[0].partition("[")[0], indices[0]
        row_bytes = math.prod(rows[1:]) * np.dtype(dtype).itemsize
        source_bytes, index_bytes = rows[0] * row_bytes, math.prod(index) * np.dtype(indices[0][0]).itemsize
        result_bytes = operation.working_set_bytes - source_bytes - index_bytes
        if row_bytes >= _CACHE_LINE_BYTES and result_bytes == row_bytes * math.prod(index):
            return "row gather"
    return "gather"


# A GPU -------------------------------------------------------------------------------------------------------------------

# Shares of a peak that programs reach, slow and fast. Of the data sheet's peak; a ceiling that was measured on the GPU takes
# the peak's place with shares of its own, for it has lost the unreachable part already.
_PRODUCT = {"data sheet": (0.5, 0.9), "measured ceilings": (0.6, 1.0)}  # cuBLAS, tiles and waves filled more or less well
_TENSOR_PRODUCT = {"data sheet": (0.3, 0.8), "measured ceilings": (0.5, 1.0)}  # float16; a T4 throttles to the low end
_STREAM = {"data sheet": (0.6, 0.9), "measured ceilings": (0.7, 1.0)}  # CuPy's element-wise kernels beside the memory's peak
_PAGEABLE, _PINNED = 0.2, 0.85  # of PCIe's rate in one direction: copied through a staging buffer; straight from memory
_PCIE_BYTES_PER_S = {3: 15.75e9, 4: 31.5e9, 5: 63.0e9, 6: 121e9}  # 16 lanes
# float64 rate / float32 rate by compute capability: NVIDIA, CUDA C++ Programming Guide, throughput of native arithmetic
# instructions. Tensor cores double it for products on 8.0 and 9.0.
_FLOAT64 = {"6.0": 1 / 2, "7.0": 1 / 2, "7.5": 1 / 32, "8.0": 1 / 2, "9.0": 1 / 2, "10.0": 1 / 2}
_FLOAT64_ELSEWHERE = 1 / 64
_FLOAT64_TENSOR_CORES = {"8.0", "9.0"}
# Shares of the float32 (float64) rate for what never reaches it. Transcendental functions go through special units at a quarter
# of the rate; cuFFT is bound by memory and comes to a tenth or a fifth; cuSOLVER's LU, Cholesky and QR wait for each panel of
# columns; its SVD and eigenvalues reduce to bands by matrix-vector products; a binary search waits for the memory at each step.
# Filters and distances compute without end on little data, with loads from shared memory in between.
_SHARES = {
    **dict.fromkeys(("elementwise", "transcendental", "special function", "random", "where", "scalar loop"), (0.15, 0.6)),
    **dict.fromkeys(("filter", "distances"), (0.15, 0.6)),
    "reduction": (0.1, 0.4),
    "cumulative": (0.02, 0.1),
    "search": (0.001, 0.02),
    "scatter": (0.001, 0.05),
    "fft": (0.05, 0.25),
    "factorisation": (0.05, 0.4),
    "spectral": (0.004, 0.06),
    "model": (0.3, 0.8),
}
_INTEGER_PRODUCT = (0.03, 0.15)
# Shares of the bandwidth. A gather of single elements uses 4 or 8 bytes of each sector of 32 that the memory moves; a mask is
# a scan and a gather; a scan or a reduction reads some things twice; a transposition goes through shared memory.
_BANDWIDTH = {
    "gather": (0.15, 0.9),
    "mask": (0.2, 0.6),
    "cumulative": (0.3, 0.7),
    "reduction": (0.4, 0.9),
    "strided copy": (0.4, 0.8),
    "fft": (0.3, 0.8),
}
# Comparisons per 2 * (key, index) bytes that the memory moves. A merge sort moves them once per comparison, with a comparator
# of its own at a fraction of the bandwidth; a radix sort of 32-bit keys needs 4 passes where n log2 n has about 20. CuPy
# partitions by a full sort: about 20 comparisons where selection counts 3.4.
_SORT = (0.15, 1.5)
_PARTITION = (0.15 * 3.4 / 25, 1.5 * 3.4 / 10)
_LAUNCH_S = (5e-6, 20e-6)  # CuPy: Python, dispatch, allocation, the kernel itself; about 15 us measured for the smallest arrays
# A product runs at least through one tile's whole inner loop, however few tiles there are: n_1/2 is this, times the rate.
_PRODUCT_START_S = (8e-6, 35e-6)
_SOLVER_START_S = (50e-6, 500e-6)  # cuSOLVER allocates work space and CuPy waits for its status


def gpu_rates(gpu: GpuSpec, ceilings: Ceilings | None = None) -> Rates:
    """What programs reach on `gpu`: shares of its data sheet, or of `ceilings` where they were measured on such a GPU.

    TF32 is not assumed: CuPy and NumPy's users ask for float32 and get it.
    """
    on_it = _measured_on(gpu, ceilings)
    basis = "measured ceilings" if "gpu_matmul_float32" in on_it or "gpu_copy_bandwidth" in on_it else "data sheet"

    def peak(quantity: str, data_sheet: float, shares: Mapping[str, Band]) -> Band:
        if measured := on_it.get(quantity):
            slow, fast = shares["measured ceilings"]
            return measured.low * 1e9 * slow, measured.high * 1e9 * fast
        return _times(shares["data sheet"], data_sheet * 1e9)

    float64 = _FLOAT64.get(gpu.compute_capability, _FLOAT64_ELSEWHERE)
    product = peak("gpu_matmul_float32", 1e3 * gpu.float32_tflops, _PRODUCT)
    stream = peak("gpu_copy_bandwidth", gpu.memory_bandwidth_gb_per_s, _STREAM)
    flops, bytes_ = 1e12 * gpu.float32_tflops, math.sqrt(stream[0] * stream[1])
    doubled = 2 if gpu.compute_capability in _FLOAT64_TENSOR_CORES else 1
    rates = {
        OperationClass("product", "float32"): product,
        OperationClass("product", "float64"): (product[0] * float64, product[1] * float64 * doubled),
        OperationClass("product", "float16"): peak("gpu_matmul_float16", 1e3 * gpu.float16_tensor_tflops, _TENSOR_PRODUCT),
        OperationClass("product", "integer"): _times(_INTEGER_PRODUCT, flops),
    }
    for name, share in _SHARES.items():
        rates[OperationClass(name, "float32")] = _times(share, flops)
        rates[OperationClass(name, "float64")] = _times(share, flops * float64)
    for dtype, key_bytes in (("float32", 4), ("float64", 8)):
        rates[OperationClass("sort", dtype)] = _times(_SORT, bytes_ / (2 * key_bytes))
        rates[OperationClass("argsort", dtype)] = _times(_SORT, bytes_ / (2 * (key_bytes + 8)))
        for name in ("partition", "quantile"):
            rates[OperationClass(name, dtype)] = _times(_PARTITION, bytes_ / (2 * key_bytes))
    bandwidths = {name: _times(share, gpu.memory_bandwidth_gb_per_s * 1e9) for name, share in _BANDWIDTH.items()}

    def transfer(direction: str) -> Band:
        bus = _PCIE_BYTES_PER_S.get(gpu.pcie_generation, max(_PCIE_BYTES_PER_S.values()))
        pageable, pinned = on_it.get(f"{direction}_pageable"), on_it.get(f"{direction}_pinned")
        slow = pageable.low * 1e9 if pageable else _PAGEABLE * bus
        fast = pinned.high * 1e9 if pinned else _PINNED * bus
        return slow, max(slow, fast)

    return Rates(
        device=gpu.name,
        basis=basis,
        work_per_s={of: ((1.0, band),) for of, band in rates.items()},
        bytes_per_s={name: ((1.0, band),) for name, band in {"stream": stream, **bandwidths}.items()},
        start_s={
            "any": _LAUNCH_S,
            "product": _PRODUCT_START_S,
            "factorisation": _SOLVER_START_S,
            "spectral": _SOLVER_START_S,
        },
        to_device=transfer("host_to_device"),
        to_host=transfer("device_to_host"),
    )


def _measured_on(gpu: GpuSpec, ceilings: Ceilings | None) -> dict[str, Quantity]:
    """The ceilings of the GPU and of the way to it, where they were measured on such a GPU; else none."""
    found = {}
    for name, quantity in ceilings or ():
        if quantity is not None and not name.startswith("cpu_"):
            try:
                if find_gpu(quantity.device).name == gpu.name:
                    found[name] = quantity
            except ValueError:  # measured on a GPU that the catalogue does not have
                continue
    return found


def _times(shares: Band, peak: float) -> Band:
    return shares[0] * peak, shares[1] * peak
