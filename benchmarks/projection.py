"""How far the projection is from the truth: this CPU projected with one thread from its own ceilings, beside measured times.

    python -m benchmarks.projection

The kernels are other functions, shapes and dtypes than the micro-kernels that `measure_cpu_rates` measures, and their
operations come from the array tracer, so tracer and costs are tried on a processor that can be measured. Its rates are
a model of CPUs that only this benchmark has; what the model of GPUs is worth says `benchmarks.published`.
"""

import argparse
import functools
import os
import statistics
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from altlas_lib.figures import COLOURS
from altlas_lib.paths import write_atomically
from altlas_lib.profiling.project.operations import price
from altlas_lib.profiling.project.projection import total
from altlas_lib.profiling.record.folding import Project
from altlas_lib.profiling.record.tracing import trace
from altlas_lib.profiling.run.targets import FunctionKey
from altlas_lib.results import Model, Provenance, Quantity, format_value
from benchmarks.cpu_rates import CpuRates, measure_cpu_rates, n_items

_ERROR_AT_MOST, _INSIDE_AT_LEAST = 0.3, 0.8  # what the chapter asks of the model


class KernelRecord(Model):
    """One kernel: its time as the model has it and as it was."""

    kernel: str
    character: str
    operations: list[str] = Field(description="name and operands of each, as traced")
    modelled: Quantity
    measured: Quantity

    @property
    def ratio(self) -> float:
        """Geometric mean of the band / measured median."""
        return statistics.geometric_mean((self.modelled.low, self.modelled.high)) / self.measured.value

    @property
    def inside(self) -> bool:
        return self.modelled.low <= self.measured.value <= self.modelled.high


class ProjectionRecord(Model):
    """A whole run of the benchmark, with the figures that it is about."""

    provenance: Provenance
    load_average: float = Field(description="programs that wanted a CPU in the minute before: from 1 on, measure again")
    calibration_s: float = Field(description="that `measure_cpu_rates(1)` took")
    median_error: float = Field(description="|geometric mean of the band / measured - 1|")
    share_inside: float = Field(description="of the kernels, those whose measured median lies in the band")
    median_width: float = Field(description="slow end / fast end of a band")
    kernels: list[KernelRecord]


# The kernels: what each is called with, and what it does ---------------------------------------------------------------------

_RNG = np.random.default_rng(1)


def _noise(*shape: int, dtype: str = "float64") -> np.ndarray:
    return _RNG.standard_normal(shape).astype(dtype)


def _indices(n: int, below: int) -> np.ndarray:
    return _RNG.integers(0, below, n)


def product(a, b):
    return a @ b


def gram(a):
    return np.dot(a.T, a)


def dense_layers(x, w1, w2):
    return np.tanh(np.maximum(x @ w1, 0) @ w2)


def chain(a, b):
    return (a * b + a) / (b * b + 2.0) - 0.5 * a


def exponentials(x):
    return np.exp(-x * x)


def hyperbolic(x):
    return np.tanh(x)


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def row_means(x):
    return x.mean(axis=1)


def column_sums(x):
    return np.sum(x, axis=0)


def running_sum(x):
    return np.cumsum(x, axis=1)


def sort_values(x):
    return np.sort(x)


def rank_rows(x):
    return x.argsort(axis=1)


def smallest_k(x):
    return np.argpartition(x, 10, axis=1)


def gather(table, at):
    return table[at]


def scatter(table, at, values):
    table[at] = values


def positive(x):
    return x[x > 0]


def clipped(x):
    return np.where(x > 0.5, 0.5, x)


def spectrum(x):
    return np.fft.fft(x)


def image_spectrum(x):
    return np.fft.rfft2(x)


def solution(a, b):
    return np.linalg.solve(a, b)


def triangular_factor(a):
    return np.linalg.qr(a)


def singular_values(a):
    return np.linalg.svd(a, compute_uv=False)


def distances(a, b):
    return cdist(a, b)


def narrowed(x):
    return x.astype(np.float32)


def transposed(x):
    return np.ascontiguousarray(x.T)


def joined(a, b):
    return np.concatenate([a, b])


def _kernels() -> dict[str, tuple[str, Callable, tuple]]:
    """Name -> character, function, arguments."""
    well_conditioned = _noise(350, 350) + 30 * np.eye(350)
    return {
        "product 900x333x1100 f32": ("product", product, (_noise(900, 333, dtype="f4"), _noise(333, 1100, dtype="f4"))),
        "product 2000x64x500 f64": ("product", product, (_noise(2000, 64), _noise(64, 500))),
        "gram 5000x200 f32": ("product", gram, (_noise(5000, 200, dtype="f4"),)),
        "2000 products 12x20x12 f64": ("small batch", product, (_noise(2000, 12, 20), _noise(2000, 20, 12))),
        "dense layers, 16 rows f32": (
            *("small batch", dense_layers),
            (_noise(16, 300, dtype="f4"), _noise(300, 200, dtype="f4"), _noise(200, 10, dtype="f4")),
        ),
        "chain of 7, 1.5M f64": ("element-wise", chain, (_noise(1_500_000), _noise(1_500_000))),
        "chain of 7, 20k f32": ("element-wise", chain, (_noise(20_000, dtype="f4"), _noise(20_000, dtype="f4"))),
        "chain of 7, 50 f64": ("small batch", chain, (_noise(50), _noise(50))),
        "exp(-x*x), 300k f64": ("transcendental", exponentials, (_noise(300_000),)),
        "tanh, 800k f32": ("transcendental", hyperbolic, (_noise(800_000, dtype="f4"),)),
        "softmax 2000x900 f32": ("transcendental", softmax, (_noise(2000, 900, dtype="f4"),)),
        "mean of rows 3000x700 f32": ("reduction", row_means, (_noise(3000, 700, dtype="f4"),)),
        "sum of columns 4000x500 f64": ("reduction", column_sums, (_noise(4000, 500),)),
        "cumulative sum 400x2500 f64": ("cumulative", running_sum, (_noise(400, 2500),)),
        "sort 700k f64": ("sort", sort_values, (_noise(700_000),)),
        "argsort of rows 300x1500 f32": ("sort", rank_rows, (_noise(300, 1500, dtype="f4"),)),
        "argpartition of rows 500x3000 f64": ("sort", smallest_k, (_noise(500, 3000),)),
        "gather 400k of 3k f32": ("gather", gather, (_noise(3_000, dtype="f4"), _indices(400_000, 3_000))),
        "gather 2M of 12M f64": ("gather", gather, (_noise(12_000_000), _indices(2_000_000, 12_000_000))),
        "gather rows 20k of 50kx128 f32": ("gather", gather, (_noise(50_000, 128, dtype="f4"), _indices(20_000, 50_000))),
        "scatter 500k into 1M f64": ("gather", scatter, (np.zeros(1_000_000), _indices(500_000, 1_000_000), _noise(500_000))),
        "mask 600k f32": ("gather", positive, (_noise(600_000, dtype="f4"),)),
        "where 250k f64": ("element-wise", clipped, (_noise(250_000),)),
        "FFT 60x5000 c128": ("FFT", spectrum, (_noise(60, 5000) + 1j,)),
        "FFT 2-D 600x500 f64": ("FFT", image_spectrum, (_noise(600, 500),)),
        "solve 350, 20 right sides f64": ("factorisation", solution, (well_conditioned, _noise(350, 20))),
        "QR 600x150 f64": ("factorisation", triangular_factor, (_noise(600, 150),)),
        "singular values 150x90 f64": ("factorisation", singular_values, (_noise(150, 90),)),
        "cdist 700x900x64 f64": ("distance", distances, (_noise(700, 64), _noise(900, 64))),
        "astype 3M f64 -> f32": ("copy", narrowed, (_noise(3_000_000),)),
        "transposed copy 2500x1700 f32": ("copy", transposed, (_noise(2500, 1700, dtype="f4"),)),
        "concatenate 2 x 400k f32": ("copy", joined, (_noise(400_000, dtype="f4"), _noise(400_000, dtype="f4"))),
    }


# Model beside measurement ----------------------------------------------------------------------------------------------------


def record(rates: CpuRates, kernel: str, character: str, function: Callable, arguments: tuple, n_runs: int) -> KernelRecord:
    call = functools.partial(function, *arguments)
    call()  # what is made in the first call belongs to no operation
    _, (recorded,), _ = trace(call, Project(__file__), FunctionKey.of(function.__code__))
    known = [each for each in recorded.calls if price(each.call).kind not in ("view", "unknown")]
    bands = [(each.n_calls, rates.seconds(price(each.call), n_items(each.call))) for each in known]
    return KernelRecord(
        kernel=kernel,
        character=character,
        operations=[f"{each.call.name}({', '.join(map(str, each.call.operands))}) x {each.n_calls}" for each in recorded.calls],
        modelled=Quantity.projected(
            *total((n * low, n * high) for n, (low, high) in bands), "s", rates.device, "its operations"
        ),
        measured=Quantity.measured(_seconds(call, n_runs), "s", rates.device),
    )


def _seconds(call: Callable[[], object], n_runs: int) -> list[float]:
    """CPU seconds of the thread in each of `n_runs` runs of 2 ms or more."""
    timer = timeit.Timer(call, timer=time.thread_time)
    n_calls = max(1, round(2e-3 / max(min(timer.repeat(2, 1)), 1e-7)))
    return [seconds / n_calls for seconds in timer.repeat(n_runs, n_calls)]


def figure(found: ProjectionRecord, path: Path) -> None:
    """Write a PNG: modelled against measured time, both logarithmic, bands as bars."""
    fig = Figure(figsize=(9, 6.5), dpi=120, layout="constrained")
    ax = fig.subplots()
    characters = list(dict.fromkeys(kernel.character for kernel in found.kernels))
    for i, character in enumerate(characters):
        kernels = [kernel for kernel in found.kernels if kernel.character == character]
        means = np.array([statistics.geometric_mean((kernel.modelled.low, kernel.modelled.high)) for kernel in kernels])
        ends = np.array([(kernel.modelled.low, kernel.modelled.high) for kernel in kernels]).T
        ax.errorbar(
            *([kernel.measured.value for kernel in kernels], means, np.abs(ends - means)),
            fmt="osv^D<>PX*hd"[i % 12],
            color=list(COLOURS.values())[i % len(COLOURS)],
            capsize=2,
            label=character,
        )
    ends = [f(kernel.measured.value for kernel in found.kernels) for f in (min, max)]
    ax.plot(ends, ends, color=COLOURS["grey"], linewidth=1)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="measured (s)",
        ylabel="modelled from this CPU's ceilings: band and geometric mean (s)",
    )
    ax.set_title(
        f"{len(found.kernels)} kernels, 1 thread: median error {found.median_error:.0%}, {found.share_inside:.0%} inside the "
        f"band, median width {found.median_width:.1f}x\n{', '.join(found.provenance.devices)}",
        fontsize=10,
    )
    ax.legend(fontsize=8)
    fig.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each kernel")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/projection.json"), help="and .png beside it")
    options = parser.parse_args()
    load_average, start = os.getloadavg()[0], time.perf_counter()
    rates = measure_cpu_rates(1)
    calibration_s = time.perf_counter() - start
    with threadpool_limits(1):
        kernels = [record(rates, name, *kernel, options.runs) for name, kernel in _kernels().items()]
    found = ProjectionRecord(
        provenance=Provenance.now({"runs": options.runs}),
        load_average=load_average,
        calibration_s=calibration_s,
        median_error=statistics.median(abs(kernel.ratio - 1) for kernel in kernels),
        share_inside=statistics.mean(kernel.inside for kernel in kernels),
        median_width=statistics.median(kernel.modelled.high / kernel.modelled.low for kernel in kernels),
        kernels=kernels,
    )
    for kernel in kernels:
        modelled = f"{format_value(kernel.modelled.low, 's')} to {format_value(kernel.modelled.high, 's')}"
        where = "" if kernel.inside else "  OUTSIDE"
        print(f"{kernel.kernel:36}{kernel.measured!s:>10}   {modelled:24} mean/measured {kernel.ratio:5.2f}{where}")
    print(
        f"median error {found.median_error:.0%} (wanted: {_ERROR_AT_MOST:.0%} at most), {found.share_inside:.0%} inside the "
        f"band (wanted: {_INSIDE_AT_LEAST:.0%} at least), median width {found.median_width:.2f}x; "
        f"calibrated in {calibration_s:.1f} s"
    )
    if load_average >= 1:
        print(f"CAUTION: a load average of {load_average:.1f}: other programs share the caches and the memory; measure again")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, found.model_dump_json(indent=1) + "\n")
    figure(found, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
