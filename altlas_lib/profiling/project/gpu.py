"""How long a call takes on a GPU: a few laws of its hardware, with constants fitted on published timings.

Work and bytes overlap as in the roofline (Williams, Waterman, Patterson 2009), smoothly: sqrt(compute^2 + memory^2). Half of a
rate is reached where work = fill (Hockney and Jesshope, Parallel Computers, 1981), which grows with the number of
multiprocessors. A rate is bounded by the data sheet's peak and by the board's power. What is fitted, on how many points and
with which error stands in devices/gpu_efficiencies.toml; a GPU's own ceilings (chapter 00) or calibration take the place of
what they measured.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ...devices import GpuSpec, find_multiprocessor
from ...devices.efficiencies import PCIE_BYTES_PER_S, Accuracy, load_efficiencies, sustained_flops
from ...results import ArrayOperation, Ceilings
from .operations import grows, item_bytes

Band = tuple[float, float]  # low, high
Calibration = Mapping[str, tuple[float, float]]  # class -> measured / projected, and the factor by which runs differed
_PAGEABLE, _PINNED = 0.2, 0.85  # of PCIe's rate in one direction: copied through a staging buffer; straight from memory
_TILE = 32  # rows and columns that a product's smallest tiles have; fewer take as long
_CHANNELS = 8  # that tensor cores take at once (cuDNN's developer guide)
_LARGEST_STACKED = 32  # cuSOLVER's batched SVD (gesvdjBatched) takes matrices up to 32 x 32; larger ones go one by one
_SECTOR_BYTES = 32  # that the memory moves at least: each step of a binary search waits for one


class Calls(NamedTuple):
    """Seconds of one call, centres of bands: kernels' starts; arithmetic and waiting; memory."""

    launches: float = 0.0
    compute: float = 0.0
    memory: float = 0.0

    @property
    def busy(self) -> float:
        return math.hypot(self.compute, self.memory)


@dataclass(frozen=True)
class Rates:
    """What programs reach on one GPU.

    Attributes:
        values: constants by 'class.name', as `Efficiencies.values` has them.
        accuracy: by class; its `factor` is half of a band.
        to_device, to_host: bytes per second over PCIe, pageable to pinned memory.
        peaks: measured in place of the data sheet: 'float32' and 'float16' products in FLOP/s, 'bytes' of copies in B/s.
        calibration: measured on such a GPU by `altlas calibrate`.
    """

    gpu: GpuSpec
    basis: Literal["data sheet", "measured ceilings", "calibration"]
    values: Mapping[str, float]
    accuracy: Mapping[str, Accuracy]
    to_device: Band
    to_host: Band
    peaks: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=dict)

    def start(self, cost: ArrayOperation, law: str = "launch") -> float:
        return cost.n_kernels * self.values[f"{law}.start_us"] * 1e-6

    def memory(self, moved_bytes: float, law: str, working_set_bytes: float) -> float:
        """Seconds; the more of a working set fits the second-level cache, the more of its bytes come from there."""
        of_sheet = self.gpu.memory_bandwidth_gb_per_s * 1e9
        peak = self.peaks.get("bytes", of_sheet * self.values["stream.memory_share"]) / self.values["stream.memory_share"]
        cached = max(0.0, 1 - working_set_bytes / (self.gpu.l2_cache_mib * 2**20))
        return moved_bytes / (peak * self.values[f"{law}.memory_share"] * (1 + (self.values["cache.speed_up"] - 1) * cached))

    def flops(self, dtype: str) -> float:
        """The data sheet's operations per second, outside of tensor cores."""
        cores = find_multiprocessor(self.gpu.compute_capability)
        return 1e12 * self.gpu.float32_tflops * (cores.float64_ratio if dtype == "float64" else 1)

    def product_flops(self, dtype: str) -> float:
        """Operations per second of a large product: bounded by the multiprocessors and by the board's power."""
        if measured := self.peaks.get(dtype):
            return measured
        if dtype == "integer":
            return self.values["product integer.share"] * self.flops("float32")
        law, cores = law_of("product", dtype), find_multiprocessor(self.gpu.compute_capability)
        share = "wide_share" if dtype != "float16" and cores.float32_cores > 64 else "share"  # they share ports and bandwidth
        of_sheet = 1e12 * self.gpu.float16_tensor_tflops if dtype == "float16" else self.flops(dtype)
        by_tensor_cores, bits = (cores.float64_tensor_factor, 2) if dtype == "float64" else (1, 1)
        peak = self.values[f"{law}.{share}"] * of_sheet * by_tensor_cores
        return sustained_flops(self.gpu, peak, self.values[f"{law}.pj_per_nm"] * bits)


def dtype_class(name: str, *, of_product: bool = False) -> str:
    """float16, float32, float64, integer: complex numbers are counted in real operations, so they go by their parts."""
    n_bytes = item_bytes(name) / (2 if name.startswith("complex") else 1)
    if not name.startswith(("float", "complex", "bfloat")):
        return "integer" if of_product else "float64" if n_bytes > 4 else "float32"
    return "float16" if n_bytes <= 2 else "float64" if n_bytes > 4 else "float32"


def law_of(rate: str, dtype: str) -> str:
    """Whose constants a product or a convolution takes: those of float32 stand for all but half precision."""
    return f"{rate} {'float16' if dtype == 'float16' else 'float32'}"


# Laws --------------------------------------------------------------------------------------------------------------------


def _product(cost: ArrayOperation, rates: Rates) -> Calls:
    """Tiles at the rate of a large product, and a part of a tile's time until all multiprocessors are busy.

    A convolution is the product that it amounts to, whose inner loop nothing splits; 3 x 3 filters of float32 go by Winograd's
    algorithm.
    """
    dtype = dtype_class(cost.dtype, of_product=cost.rate == "product")
    law, k, channels = law_of(cost.rate, dtype), cost.sizes["k"], cost.sizes.get("channels", 0)
    flops = cost.flops * _padded(cost.sizes["m"], _TILE) * _padded(cost.sizes["n"], _TILE)
    if cost.rate == "product":
        fill = rates.values[f"{law}.fill_mflop"] * 1e6
        fill *= rates.flops("float64") / rates.flops("float32") if dtype == "float64" else 1  # less keeps slower units busy
    else:
        flops *= _padded(channels, _CHANNELS) if dtype == "float16" else 1
        is_winograd = dtype != "float16" and round(k / max(channels, 1)) == 9 and channels >= 2 * _CHANNELS
        flops /= rates.values[f"{law}.product_share"] * (rates.values[f"{law}.winograd"] if is_winograd else 1)
        fill = rates.values[f"{law}.fill_tiles"] * 2 * 64 * 64 * k
    compute = (flops + fill * rates.gpu.multiprocessors) / rates.product_flops(dtype)
    memory = rates.memory(cost.moved_bytes, law, cost.working_set_bytes)
    return Calls(rates.start(cost, law_of("product", dtype)), compute, memory)


def _padded(n: float, multiple: int) -> float:
    return math.ceil(n / multiple) * multiple / n if n else 1.0


def _model(cost: ArrayOperation, rates: Rates) -> Calls:
    """Layers at the rate of convolutions, then what lies between them; the CPU starts layers while the GPU computes."""
    dtype = dtype_class(cost.dtype)
    compute = cost.flops / (rates.values[f"{law_of('convolution', dtype)}.product_share"] * rates.product_flops(dtype))
    between = cost.flops * 1e-3 * rates.values["model.elements_per_kflop"] * item_bytes(cost.dtype)
    memory = rates.memory(cost.moved_bytes + between, "stream", cost.working_set_bytes + between)
    causes = {"launches": rates.start(cost, "model"), "compute": compute, "memory": memory}
    total = ((compute + memory) ** 3 + causes["launches"] ** 3) ** (1 / 3)
    return Calls(**{max(causes, key=causes.get): total})


def _fft(cost: ArrayOperation, rates: Rates) -> Calls:
    """Passes over the array, and as many more as lengths and layout ask for."""
    others = ("prime", "short", "strided", "inverse")
    more = sum(rates.values[f"fft.{name}"] * cost.sizes.get(f"{name}_bytes", 0) for name in others)
    memory = rates.memory(cost.sizes["smooth_bytes"] + more, "fft", cost.working_set_bytes)
    return _stream(cost, rates)._replace(memory=memory)


def _spectral(cost: ArrayOperation, rates: Rates) -> Calls:
    """Columns one after the other, in each all pairs with it; large matrices by their arithmetic."""
    stack, n, values = cost.sizes["stack"], min(cost.sizes["m"], cost.sizes["n"]), rates.values
    arithmetic = cost.flops / max(stack, 1) / (rates.flops(dtype_class(cost.dtype)) * values["spectral large.share"])
    one = n * values["spectral.column_us"] * 1e-6 + n * n * values["spectral.pair_ns"] * 1e-9 + arithmetic
    return Calls(rates.values["spectral.start_us"] * 1e-6, one * (1 if n <= _LARGEST_STACKED else stack))


def _factorisation(cost: ArrayOperation, rates: Rates) -> Calls:
    """Columns one after the other; behind them products, the better the larger the matrix."""
    n, values = min(cost.sizes["m"], cost.sizes["n"]), rates.values
    column_us = values["cholesky.column_us" if cost.rate == "cholesky" else "factorisation.column_us"] * cost.n_kernels
    rate = rates.flops(dtype_class(cost.dtype)) * values["cholesky.share"] / (1 + values["cholesky.half_n"] / max(n, 1))
    return Calls(values["cholesky.start_us"] * 1e-6, n * column_us * 1e-6 + cost.flops / rate)


def _sort(cost: ArrayOperation, rates: Rates) -> Calls:
    """A radix sort (Adinets and Merrill, Onesweep, 2022): keys are counted once, then move with theirs once for each byte.

    Many rows are sorted by row and key, as CuPy does: more bytes to compare, and an index to move.
    """
    n, key, payload = (cost.sizes[size] for size in ("n", "key_bytes", "payload_bytes"))
    if 0 < cost.sizes["length"] < n:
        key, payload = key + math.ceil(math.log2(n / cost.sizes["length"]) / 8), payload + 8
    memory = rates.memory(n * (key + 2 * key * (key + payload)), "sort", cost.working_set_bytes)
    return Calls(rates.start(cost), memory=memory)


def _scatter(cost: ArrayOperation, rates: Rates) -> Calls:
    """Updates of shared memory, so many in each clock of a multiprocessor."""
    clocks_per_s = rates.gpu.multiprocessors * rates.gpu.boost_clock_ghz * 1e9
    return _stream(cost, rates)._replace(compute=cost.flops / (rates.values["scatter.updates_per_clock"] * clocks_per_s))


def _stream(cost: ArrayOperation, rates: Rates) -> Calls:
    compute = cost.flops / (rates.flops(dtype_class(cost.dtype)) * rates.values["arithmetic.share"])
    moved_bytes = cost.flops * _SECTOR_BYTES if cost.rate == "search" else cost.moved_bytes
    memory = rates.memory(moved_bytes, _STREAMS.get(cost.rate, "stream"), cost.working_set_bytes)
    return Calls(rates.start(cost), compute, memory)


_LAWS: dict[str, Callable[[ArrayOperation, Rates], Calls]] = {
    **{"model": _model, "fft": _fft, "spectral": _spectral, "scatter": _scatter},
    **dict.fromkeys(("product", "convolution"), _product),
    **dict.fromkeys(("cholesky", "factorisation"), _factorisation),
    **dict.fromkeys(("sort", "argsort", "partition", "quantile"), _sort),
}
_STREAMS = {"cumulative": "cumulative", "gather": "gather", "mask": "gather", "search": "gather"}  # that do worse than a copy


def call_seconds(cost: ArrayOperation, rates: Rates) -> Calls:
    """Centres of the bands of one call whose cost is known."""
    return _LAWS.get(cost.rate, _stream)(cost, rates)


def accuracy_class(cost: ArrayOperation, calls: Calls) -> str:
    """The class of gpu_efficiencies.toml that says how good a projection is: by what was published, not by names."""
    if cost.rate in ("product", "convolution", "model"):
        return f"{cost.rate} {dtype_class(cost.dtype, of_product=cost.rate == 'product')}"
    if law := _LAWS.get(cost.rate):
        return "sort" if law is _sort else cost.rate
    return "arithmetic" if calls.compute > calls.memory else _STREAMS.get(cost.rate, "stream")


def call_bands(cost: ArrayOperation, calls: Calls, rates: Rates) -> dict[str, Band]:
    """Of one call by cause ("compute", "memory", "launches"): as far below as above the centre, in times.

    Of compute and memory the longer hides the other.
    """
    of = accuracy_class(cost, calls)
    factor, spread = rates.calibration.get(of, (1.0, rates.accuracy[of].factor))
    start_spread = spread if of in rates.calibration else rates.accuracy["launch"].factor
    busy, launches = factor * calls.busy, factor * calls.launches
    bound = "compute" if calls.compute >= calls.memory else "memory"
    bands = {"compute": (0.0, 0.0), "memory": (0.0, 0.0), "launches": (launches / start_spread, launches * start_spread)}
    return bands | {bound: (busy / spread, busy * spread)}


def operation_seconds(operation: ArrayOperation, rates: Rates, batch: int = 1) -> tuple[dict[str, Band], str | None]:
    """Bands of all its calls by cause, and the class that says how good they are; none of a view or an unknown cost.

    Args:
        batch: so many calls made as one, of as many times the rows, matrices or keys. What it saves besides, such as weights
            that are read once, is not counted.
    """
    if operation.kind in ("view", "unknown"):
        return {}, None
    n, rate, sizes = operation.n_calls / batch, operation.rate or operation.kind, operation.sizes
    amounts = {"flops": (operation.flops or 0) / n, "moved_bytes": (operation.moved_bytes or 0) / n}
    amounts["working_set_bytes"] = batch * operation.working_set_bytes
    amounts["sizes"] = sizes | {name: batch * sizes[name] for name in grows(rate) & sizes.keys()}
    cost = operation.model_copy(update={"rate": rate, **amounts})
    calls = call_seconds(cost, rates)
    bands = {cause: (n * low, n * high) for cause, (low, high) in call_bands(cost, calls, rates).items()}
    return bands, accuracy_class(cost, calls)


# A GPU -------------------------------------------------------------------------------------------------------------------


def gpu_rates(gpu: GpuSpec, ceilings: Ceilings | None = None, calibration: Calibration | None = None) -> Rates:
    """What programs reach on `gpu`, by its data sheet and the fitted efficiencies; what was measured on such a GPU comes first.

    TF32 is not assumed: CuPy and NumPy's users ask for float32 and get it.
    """
    on_it = {name: found for name, found in ceilings or () if found and gpu.is_called(found.device)}
    efficiencies = load_efficiencies()
    names = {"float32": "gpu_matmul_float32", "float16": "gpu_matmul_float16", "bytes": "gpu_copy_bandwidth"}

    def transfer(direction: str) -> Band:
        bus = PCIE_BYTES_PER_S.get(gpu.pcie_generation, max(PCIE_BYTES_PER_S.values()))
        pageable, pinned = on_it.get(f"{direction}_pageable"), on_it.get(f"{direction}_pinned")
        slow = pageable.low * 1e9 if pageable else _PAGEABLE * bus
        return slow, max(slow, pinned.high * 1e9 if pinned else _PINNED * bus)

    peaks = {name: 1e9 * on_it[quantity].value for name, quantity in names.items() if quantity in on_it}
    basis = "calibration" if calibration else "measured ceilings" if peaks else "data sheet"
    to_device, to_host = transfer("host_to_device"), transfer("device_to_host")
    return Rates(gpu, basis, efficiencies.values, efficiencies.accuracy, to_device, to_host, peaks, calibration or {})
