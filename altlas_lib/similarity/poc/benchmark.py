"""How long each method takes, how much memory, and from which size on a GPU pays."""

import time
import tracemalloc
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from ...devices import OtherLoad, get_namespace, synchronize, to_gpu
from ...results import Quantity, Step, Timing, Validation
from ..engine import pairs_above, top_k
from ..inputs import check_k, check_vectors
from .methods import METHODS, Method, available_methods

_WARM_UP_ROWS = 4096  # enough that `method="auto"` uses all its methods
_LEAST_TIME_S = 0.2  # of repeating at one size: a median of three runs of a millisecond says little


def usable_sizes(sizes: Iterable[int], n_texts: int) -> list[int]:
    """`sizes` in ascending order, each above `n_texts` replaced by `n_texts`.

    Raises:
        ValueError: there are fewer than 2 texts, no sizes, or one below 2: neighbours need another text.
    """
    sizes = sorted({min(int(size), n_texts) for size in sizes})
    if n_texts < 2 or not sizes or sizes[0] < 2:
        raise ValueError(f"{n_texts} texts, sizes {sizes}: expected sizes of at least 2 and as many texts; give more texts")
    return sizes


def time_sizes(X: Any, sizes: Iterable[int], k: int = 10, *, n_repeats: int = 3) -> list[Timing]:
    """Time every method that can run here on the first rows of `X` (n, d), for each size.

    One warm-up per method and size, which also measures the peak memory; then at least `n_repeats` timed rounds, and more
    until 0.2 s have passed. A round runs all methods in turn, so that a machine that slows down slows them alike. The
    clock is read when the GPU has finished.
    """
    timings = []
    for size in sizes:
        placed = [(method, method.place(X[:size])) for method in available_methods(size)]
        peaks = [_peak_memory_bytes(method, x, k) for method, x in placed]
        times_s: list[list[float]] = [[] for _ in placed]
        started = time.perf_counter()
        with OtherLoad() as load:
            while len(times_s[0]) < n_repeats or time.perf_counter() - started < _LEAST_TIME_S:
                for (method, x), samples in zip(placed, times_s, strict=True):
                    synchronize()
                    began = time.perf_counter()
                    method.top_k(x, k)
                    synchronize()
                    samples.append(time.perf_counter() - began)
        timings += [
            Timing(
                method=method.name,
                on_gpu=method.on_gpu,
                with_transfers=not method.stays_on_gpu,
                n_texts=len(x),
                time=Quantity.measured(samples, "s", method.device_name),
                peak_memory=Quantity.measured([peak], "bytes", method.device_name),
                other_load=load.share,
            )
            for (method, x), samples, peak in zip(placed, times_s, peaks, strict=True)
        ]
    return timings


def _peak_memory_bytes(method: Method, x: Any, k: int) -> int:
    """Most memory held at once beyond the input: NumPy's arrays on the CPU, what CuPy's pool takes on the GPU."""
    if method.on_gpu:
        cuda = get_namespace(to_gpu([0.0])).cuda
        pool = cuda.MemoryPool()
        with cuda.using_allocator(pool.malloc):
            method.top_k(x, k)
            synchronize()
        return pool.total_bytes()
    tracemalloc.start()
    try:
        method.top_k(x, k)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def warm_up() -> float:
    """Load what `top_k` needs, compiling it where this machine has not yet; the seconds that took.

    Compiled code is kept beside the library, or in NUMBA_CACHE_DIR, and compiled again after an update of either.
    """
    started = time.perf_counter()
    rows = np.random.default_rng(0).standard_normal((_WARM_UP_ROWS, 16), dtype=np.float32)
    top_k(rows, 2, device="cpu")
    pairs_above(rows, 0.99)
    return time.perf_counter() - started


def time_steps(X: Any, k: int = 10, *, device: Literal["cpu", "gpu"] = "cpu", n_repeats: int = 3) -> list[Step]:
    """Where the time of `top_k` on all of `X` (n, d) goes, the first step first.

    On a CPU in CPU seconds of all threads: preparation (norms, int8 codes), products, selection (bounds, verification and the
    k best). On a GPU in seconds between events of its stream: transfer, products and selection.
    """
    X = check_vectors(X)
    k = max(0, min(check_k(k), len(X) - 1))
    clocks = []
    for _ in range(1 + n_repeats):
        clock: dict[str, float] = {}
        if device == "gpu":
            from .. import gpu

            gpu.top_k(X, None, k, clock=clock)
        else:
            from .. import cpu

            tiles: list[tuple[float, float]] = []
            started = time.process_time()
            cpu.top_k(X, None, k, cpu.Settings.choose("auto", (len(X), len(X)), clock=tiles), "raise")
            clock["products"], clock["selection"] = np.sum(tiles, axis=0)
            clock = {"preparation": max(0.0, time.process_time() - started - sum(clock.values()))} | clock
        clocks.append(clock)
    name = next(method for method in METHODS if method.on_gpu == (device == "gpu")).device_name
    times = {step: Quantity.measured([clock[step] for clock in clocks[1:]], "s", name) for step in clocks[0]}
    total = sum(time.value for time in times.values()) or 1.0
    return [Step(name=step, time=time, share=time.value / total) for step, time in times.items()]


def break_even(timings: Iterable[Timing]) -> int | None:
    """The smallest size from which on the GPU wins at every measured size: the slowest run of its fastest method, transfers
    included, against the fastest run of the CPU's. None if it does not at the largest size, or one of the two was not measured.
    """
    timings = list(timings)
    cpu = _fastest(timing for timing in timings if not timing.on_gpu and not timing.is_too_busy)
    gpu = _fastest(timing for timing in timings if timing.on_gpu and timing.with_transfers)
    smallest = None
    for size in sorted(cpu.keys() & gpu.keys(), reverse=True):
        if gpu[size].time.high >= cpu[size].time.low:
            break
        smallest = size
    return smallest


def _fastest(timings: Iterable[Timing]) -> dict[int, Timing]:
    """The fastest by size: of several, a dict keeps the last."""
    slowest_first = sorted(timings, key=lambda timing: timing.time.value, reverse=True)
    return {timing.n_texts: timing for timing in slowest_first}


def summarize(timings: Iterable[Timing], validations: Iterable[Validation], k: int) -> str:
    """The finding in one sentence: times at the largest size with device and basis, agreement with float64, the GPU."""
    timings, validations = list(timings), list(validations)
    n = max(timing.n_texts for timing in timings)
    cpu = _fastest(timing for timing in timings if not timing.on_gpu)[n]
    gpu = _fastest(timing for timing in timings if timing.on_gpu and timing.with_transfers).get(n)
    n_wrong = sum(not validation.passed for validation in validations)
    agreement = f"{n_wrong} of {len(validations)} methods DISAGREE with float64"
    if not validations:
        agreement = "nothing was compared with float64"
    elif not n_wrong:
        error = max(validation.largest_error for validation in validations)
        agreement = f"all methods agree with float64 (largest error {error:.1g})"
    on_gpu = "GPU not measured: no CUDA GPU"
    if gpu is not None:
        size = break_even(timings)
        pays = "does not pay at the measured sizes" if size is None else f"pays from {size:,} texts on"
        if cpu.is_too_busy:
            pays = "cannot be compared with a busy CPU"
        on_gpu = f"{gpu.time} on {gpu.time.device} with transfers ({gpu.method}, measured), which {pays}"
    busy = f" (other programs took {cpu.other_load:.0%} of the processors: too slow)" if cpu.is_too_busy else ""
    on_cpu = f"take {cpu.time} on {cpu.time.device} ({cpu.method}, measured){busy}"
    return f"The {min(k, n - 1):,} nearest of each of {n:,} texts {on_cpu}; {on_gpu}; {agreement}."
