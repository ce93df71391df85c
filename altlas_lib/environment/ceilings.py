"""The best rates that this machine reaches, measured: what later chapters' times are held against."""

import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .. import devices
from ..results import Ceilings, Quantity

_WARM_UPS = 2
_MIB = 2**20


def measure_ceilings(
    *, matrix_size: int = 2048, copy_mib: int | None = None, gpu_matrix_size: int = 8192, n_runs: int = 10
) -> Ceilings:
    """Measure matrix product and copy rates of the CPU and, where CuPy sees a GPU, of the GPU and of the way to it.

    Each rate comes from `n_runs` single runs after two that warm up. A product of two n x n matrices counts 2 n^3 operations.
    A copy within one memory counts the bytes read and the bytes written, as the STREAM benchmark does (McCalpin 1995), a copy
    between host and GPU the bytes that travel. GPU runs lie between CUDA events, which wait for the GPU to finish.

    Args:
        matrix_size: n of the CPU's float32 product.
        copy_mib: MiB of the array that the CPU copies, with all its threads. None: four times the last-level caches, as
            STREAM asks, but at least 256 MiB and at most an eighth of the available memory.
        gpu_matrix_size: n of the GPU's products, halved until three float32 matrices fit half of its free memory.
        n_runs: runs per rate.

    Raises:
        ValueError: a size or `n_runs` is below 1.
    """
    arguments = {"matrix_size": matrix_size, "copy_mib": copy_mib, "gpu_matrix_size": gpu_matrix_size, "n_runs": n_runs}
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value!r}: expected 1 or more")

    cpu = str(devices.describe_cpu())
    copy_bytes = _beyond_the_caches() if copy_mib is None else copy_mib * _MIB
    rates = {
        "cpu_matmul_float32": Quantity.measured(_cpu_matmul_rates(matrix_size, n_runs), "GFLOP/s", cpu),
        "cpu_copy_bandwidth": Quantity.measured(_cpu_copy_rates(copy_bytes, n_runs), "GB/s", cpu),
    }
    if devices.has_gpu():
        rates |= _gpu_rates(gpu_matrix_size, n_runs)
    return Ceilings(**rates)


def _beyond_the_caches() -> int:
    wanted = max(256 * _MIB, 4 * (devices.last_level_cache_bytes() or 0))
    return max(_MIB, min(wanted, devices.memory_available_bytes() // 8))


def _cpu_seconds(work: Callable[[], object], n_runs: int) -> list[float]:
    return timeit.repeat(work, number=1, repeat=_WARM_UPS + n_runs)[_WARM_UPS:]


def _cpu_matmul_rates(n: int, n_runs: int) -> list[float]:
    rng = np.random.default_rng(0)
    a, b, out = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(3))  # `out` in use: no page faults later
    return [2 * n**3 / s / 1e9 for s in _cpu_seconds(lambda: np.matmul(a, b, out=out), n_runs)]


def _cpu_copy_rates(n_bytes: int, n_runs: int) -> list[float]:
    n_threads = devices.describe_cpu().n_threads
    targets, sources = (np.array_split(np.empty(n_bytes, np.uint8), n_threads) for _ in range(2))
    with ThreadPoolExecutor(n_threads) as pool:  # one thread does not fill the memory bus; NumPy copies without the GIL
        list(pool.map(lambda part: part.fill(1), [*sources, *targets]))  # in memory now, on the memory nodes of the threads
        seconds = _cpu_seconds(lambda: list(pool.map(np.copyto, targets, sources)), n_runs)
    return [2 * n_bytes / s / 1e9 for s in seconds]


def _gpu_rates(n: int, n_runs: int) -> dict[str, Quantity]:
    """Rates of the current CUDA device, by CuPy."""
    import cupy
    from cupyx import empty_pinned
    from cupyx.profiler import benchmark

    free_bytes = devices.memory_stats("gpu").available_bytes
    runtime = cupy.cuda.runtime
    device = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    stream = cupy.cuda.get_current_stream()
    while n > 1 and 3 * 4 * n * n > free_bytes // 2:
        n //= 2
    copy_bytes, host_bytes = (min(size, free_bytes // 4) for size in (1024 * _MIB, 256 * _MIB))

    def rates(amount: float, unit: str, work: Callable[[], object]) -> Quantity:
        seconds = benchmark(work, n_repeat=n_runs, n_warmup=_WARM_UPS).gpu_times[0]
        return Quantity.measured([amount / s / 1e9 for s in seconds], unit, device)

    # Random values: a product of zeros or ones draws less power, and the GPU then clocks higher than it can in real work.
    operands = np.random.default_rng(0).standard_normal((2, n, n), dtype=np.float32)

    def matmul(dtype: str) -> Quantity:
        a, b = (cupy.asarray(operand, dtype) for operand in operands)
        out = cupy.empty_like(a)
        return rates(2 * n**3, "GFLOP/s", lambda: cupy.matmul(a, b, out=out))

    def copy(target: int, source: int, n_bytes: int, kind: int) -> Quantity:
        moved_bytes = 2 * n_bytes if kind == runtime.memcpyDeviceToDevice else n_bytes
        return rates(moved_bytes, "GB/s", lambda: runtime.memcpyAsync(target, source, n_bytes, kind, stream.ptr))

    found = {"gpu_matmul_float32": matmul("float32"), "gpu_matmul_float16": matmul("float16")}
    on_gpu, also_on_gpu = cupy.ones(copy_bytes, cupy.uint8), cupy.zeros(copy_bytes, cupy.uint8)
    found["gpu_copy_bandwidth"] = copy(also_on_gpu.data.ptr, on_gpu.data.ptr, copy_bytes, runtime.memcpyDeviceToDevice)
    for kind, host in (("pageable", np.empty(host_bytes, np.uint8)), ("pinned", empty_pinned(host_bytes, np.uint8))):
        host.fill(1)  # in memory before the first copy
        found[f"host_to_device_{kind}"] = copy(on_gpu.data.ptr, host.ctypes.data, host_bytes, runtime.memcpyHostToDevice)
        found[f"device_to_host_{kind}"] = copy(host.ctypes.data, on_gpu.data.ptr, host_bytes, runtime.memcpyDeviceToHost)
    del on_gpu, also_on_gpu, host
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    return found
