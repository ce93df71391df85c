"""Fit `altlas_lib/devices/gpu_efficiencies.toml` on published timings, and judge it on those that a fit has not seen.

    python -m benchmarks.fit_efficiencies [--check]

Each constant has a prior with a source: what one would take without these timings, and how sure one would be. Those that are
called estimates were written down by somebody who had seen the file, so what priors alone reach is no test of them.

The fit maximises the posterior: squared errors of log times, robust beyond 15 %, against squared distances from the priors in
standard deviations. A group of source and GPU weighs as the root of its number of points in a class, for points of one
benchmark agree with each other.
"""

import argparse
import bisect
import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from altlas_lib.devices.efficiencies import Accuracy, Efficiencies, Efficiency
from altlas_lib.paths import write_atomically
from altlas_lib.profiling.project.gpu import Calls, Rates, accuracy_class, call_seconds, gpu_rates
from benchmarks.published import FILE, Point, Verdict, judge, read_points, score, summary, table, worst

TABLE = Path(__file__).parent.parent / "altlas_lib" / "devices" / "gpu_efficiencies.toml"
_ROBUST = 0.15  # errors of logarithms beyond this count linearly
_SOURCES_DIFFER = 1.3  # of one operation on one GPU: clocks, drivers, heat (8192^3 in float16 on a T4: 25 to 42 TFLOP/s)
_GPUS_DIFFER, _FEW_POINTS = 1.5, 1.6  # what one GPU, and one point, leave open
_N_BLOCKS = 5  # of sizes, where one group is all there is


class Prior(NamedTuple):
    value: float
    spread: float  # factor of one standard deviation
    source: str


_PEAK = "cuBLAS reaches 0.8 to 0.95 of the peak on large matrices: NVIDIA, Volta and Ampere architecture papers"
_START = "a kernel starts in 3 to 10 us: NVIDIA, Getting started with CUDA graphs, 2019"
_STREAM = "BabelStream and STREAM reach 0.8 to 0.95 of a GPU's peak: Deakin et al., 2018"
_POWER = "estimate: board power / rate of boards that throttle; energy in proportion to the process"
# Order matters: what comes later stands on what comes before.
PRIORS: dict[str, dict[str, Prior]] = {
    "stream": {"memory_share": Prior(0.87, 1.1, _STREAM)},
    "product float32": {
        "share": Prior(0.85, 1.15, _PEAK),
        "wide_share": Prior(
            0.7, 1.15, "estimate: half of 128 cores share their ports with integers (NVIDIA, Ampere GA102 architecture paper)"
        ),
        "pj_per_nm": Prior(1.1, 1.5, _POWER),
        "fill_mflop": Prior(2.0, 2.0, "one tile of 64 x 64 x 256: NVIDIA, Matrix Multiplication Background User's Guide"),
        "memory_share": Prior(0.7, 1.25, _STREAM + "; tiles of narrow matrices use less of each line"),
        "start_us": Prior(8.0, 1.6, _START),
    },
    "product float16": {
        "share": Prior(0.85, 1.15, _PEAK),
        "pj_per_nm": Prior(0.2, 1.5, _POWER),
        "fill_mflop": Prior(8.0, 2.0, "estimate: four times float32's, as tensor cores are faster"),
        "memory_share": Prior(0.7, 1.25, _STREAM + "; tiles of narrow matrices use less of each line"),
        "start_us": Prior(8.0, 1.6, _START),
    },
    "convolution float32": {
        "product_share": Prior(
            0.9, 1.3, "estimate: implicit products (Chetlur et al., cuDNN, 2014) are nearly as fast as products"
        ),
        "winograd": Prior(1.6, 1.3, "between 1 and the 2.25 of Lavin and Gray, 2015"),
        "fill_tiles": Prior(0.5, 2.0, "estimate: half of the last wave of tiles idles"),
        "memory_share": Prior(0.6, 1.4, _STREAM + "; windows overlap"),
    },
    "convolution float16": {
        "product_share": Prior(0.8, 1.3, "estimate: as in float32, with layouts to convert"),
        "fill_tiles": Prior(0.5, 2.0, "estimate: as in float32"),
        "memory_share": Prior(0.6, 1.4, _STREAM + "; windows overlap"),
    },
    "model": {
        "elements_per_kflop": Prior(8.1, 1.6, "ResNet-50: 11.1M outputs of convolutions in 8.2 GFLOP, each moved six times"),
        "start_us": Prior(60.0, 1.8, "estimate: PyTorch and TensorFlow take 30 to 100 us of Python and dispatch for a layer"),
    },
    "fft": {
        "memory_share": Prior(0.8, 1.2, _STREAM),
        "prime": Prior(4.0, 1.8, "estimate: lengths of other primes than 2, 3, 5 and 7 are slower (cuFFT documentation)"),
        "short": Prior(20.0, 2.0, "estimate: a transform of fewer points than a warp's 32 lanes leaves some idle"),
        "strided": Prior(1.0, 1.3, "one copy"),
        "inverse": Prior(1.5, 1.5, "estimate: a copy, and output in another layout"),
    },
    "spectral": {
        "column_us": Prior(25.0, 1.6, "estimate: a column is five small kernels, each a start and a reduction"),
        "pair_ns": Prior(50.0, 2.0, "estimate: 2 us for the rotation of 40 rows"),
        "start_us": Prior(100.0, 2.0, "estimate: work space and status of cuSOLVER"),
    },
    "cholesky": {
        "column_us": Prior(1.0, 1.6, "estimate: a square root, a division and a barrier for each column of a panel"),
        "share": Prior(0.6, 1.3, "estimate: large matrices come near products (Tomov, Dongarra, Baboulin, 2010)"),
        "half_n": Prior(1000.0, 1.8, "estimate: half of the rate is reached near 1,000 rows"),
        "start_us": Prior(40.0, 1.6, "estimate: work space and status of cuSOLVER"),
    },
    "sort": {
        "memory_share": Prior(
            0.6, 1.4, "estimate: radix sorts are bound by memory (Merrill and Grimshaw, 2011; Stehle and Jacobsen, 2017)"
        )
    },
    "scatter": {
        "updates_per_clock": Prior(0.25, 1.8, "estimate: four clocks for an update in shared memory, where several often meet")
    },
    "cumulative": {"memory_share": Prior(0.5, 1.5, "estimate: a scan reads twice or looks back (Merrill and Garland, 2016)")},
}
UNPUBLISHED: dict[str, dict[str, Prior]] = {
    "launch": {
        "start_us": Prior(
            10.0, 1.6, "estimate: CuPy takes 5 us to start a kernel to 20 us with Python, dispatch and allocation"
        )
    },
    "spectral large": {
        "share": Prior(0.2, 2.0, "estimate: half of the work is matrix-vector products (Golub and Van Loan 8.6)")
    },
    "cache": {
        "speed_up": Prior(
            3.0,
            1.5,
            "NVIDIA, A100 architecture paper: second-level cache / memory 4.6; less is reached",
        )
    },
    "arithmetic": {
        "share": Prior(
            0.3, 2.0, "special units have a quarter of the rate, half of it in practice: NVIDIA, CUDA C++ Programming Guide"
        )
    },
    "gather": {
        "memory_share": Prior(
            0.3, 1.7, "4 or 8 bytes used of sectors of 32, with neighbours in the cache: NVIDIA, CUDA C++ Best Practices Guide"
        )
    },
    "factorisation": {
        "column_us": Prior(
            1.5, 1.8, "estimate: Cholesky's column, and a pivot to search and rows to swap, or a second reduction"
        )
    },
    "product integer": {"share": Prior(0.06, 2.0, "estimate: CuPy's own kernel for integers, without tensor cores or tuning")},
}
# Bands of classes without points: a factor that covers what their sources say.
_WITHOUT_POINTS = {"launch": 2.0, "arithmetic": 2.5, "gather": 2.5, "search": 3.0, "factorisation": 2.2, "product integer": 2.5}
# What is fitted anew where a group's points are left out of the class before the colon.
_STAND_ON = {
    "stream": ("model", "scatter"),
    "product float32": ("convolution float32", "model"),
    "product float16": ("convolution float16", "model"),
    "convolution float32": ("model",),
    "convolution float16": ("model",),
}
_LIKE = {"product float64": "product float32", "convolution float64": "convolution float32", "model float64": "model float32"}
Values = dict[str, float]
Group = tuple[str, str]


def group_of(point: Point) -> Group:
    """Source, a repository or an address, and GPU."""
    source = point.source if "://" in point.source else re.split("[@ ]", point.source)[0]
    return source.split(" ")[0], point.gpu.name


@functools.cache
def priors() -> Values:
    return {
        f"{group}.{name}": prior.value
        for groups in (PRIORS, UNPUBLISHED)
        for group, all_of in groups.items()
        for name, prior in all_of.items()
    }


def _model_of(point: Point) -> str:
    """The group of `PRIORS` that a point teaches."""
    of = _class_of(point)
    return of.replace("float64", "float32") if of in PRIORS or of in _LIKE else of.partition(" ")[0]


def _class_of(point: Point) -> str:
    return accuracy_class(point.cost, Calls(0, 0, 0))  # what streams is taken to be bound by memory


def _rates(point: Point, values: Mapping[str, float], accuracy: Mapping[str, Accuracy] | None = None) -> Rates:
    return Rates(point.gpu, "data sheet", values, accuracy or {}, (1e9, 1e10), (1e9, 1e10))


def _seconds(point: Point, values: Mapping[str, float]) -> float:
    calls = call_seconds(point.cost, _rates(point, values))
    return calls.launches + calls.busy


def _errors(points: Sequence[Point], values: Mapping[str, float]) -> np.ndarray:
    """Logarithms of published / projected."""
    return np.array([math.log(p.time_s / _seconds(p, values)) for p in points])


def _weights(points: Sequence[Point]) -> np.ndarray:
    """Of each point, so that a group weighs as the root of its number."""
    groups = [(*group_of(point), point.op) for point in points]
    counts = Counter(groups)
    return np.array([counts[group] ** -0.5 for group in groups])


def fit_group(name: str, points: Sequence[Point], values: Values) -> tuple[Values, Values]:
    """Values of one group of `PRIORS` from its points, and the factors of one standard deviation; the priors without points."""
    keys, prior = [f"{name}.{key}" for key in PRIORS[name]], list(PRIORS[name].values())
    centre, deviation = np.log([each.value for each in prior]), np.log([each.spread for each in prior])
    weights = np.sqrt(_weights(points)) if points else np.array([])

    def residuals(logs: np.ndarray) -> np.ndarray:
        errors = _errors(points, values | dict(zip(keys, np.exp(logs), strict=True))) / _ROBUST
        robust = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))  # Charbonnier
        return np.concatenate([weights * robust, (logs - centre) / deviation])

    found = least_squares(residuals, centre)
    errors = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    return dict(zip(keys, map(float, np.exp(found.x)), strict=True)), dict(zip(keys, map(float, np.exp(errors)), strict=True))


def fit(points: Sequence[Point], only: Iterable[str] | None = None, start: Values | None = None) -> tuple[Values, Values]:
    """All values and their errors; with `only`, those groups anew and the others as in `start`."""
    values, errors = dict(start or priors()), {}
    for name in PRIORS:
        if only is None or name in only:
            found, deviations = fit_group(name, [point for point in points if _model_of(point) == name], values)
            values, errors = values | found, errors | deviations
    return values, errors


def accuracies(points: Sequence[Point], values: Values) -> dict[str, Accuracy]:
    """Bands by class: nine tenths of the weight of the errors, and what few sources, GPUs and points leave open."""
    classes: dict[str, list[Point]] = {}
    for point in points:
        classes.setdefault(_class_of(point), []).append(point)
    found = {name: Accuracy(factor=factor, n_points=0, n_sources=0) for name, factor in _WITHOUT_POINTS.items()}
    names = {"stream", "fft", "spectral", "cholesky", "sort", "scatter", "cumulative"}
    names |= {f"{kind} {dtype}" for kind in ("product", "convolution", "model") for dtype in ("float16", "float32")}
    for name in sorted(names):
        of = classes.get(name, [])
        errors, weights = np.abs(_errors(of, values)), _weights(of)
        order = np.argsort(errors)
        reached = np.searchsorted(np.cumsum(weights[order]), 0.9 * weights.sum()) if of else 0
        ninth = errors[order][min(reached, len(of) - 1)] if of else math.log(1.5)
        gpus = sorted({point.gpu.name for point in of})
        open_ = math.log(_SOURCES_DIFFER) ** 2 + math.log(_GPUS_DIFFER) ** 2 / max(len(gpus), 1)
        half = math.sqrt(ninth**2 + open_ + math.log(_FEW_POINTS) ** 2 / max(len(of), 1))
        n_sources = len({group_of(point)[0] for point in of})
        found[name] = Accuracy(factor=math.exp(half), n_points=len(of), n_sources=n_sources, gpus=tuple(gpus))
    for name, like in _LIKE.items():
        found[name] = Accuracy(factor=found[like].factor * 1.2, n_points=0, n_sources=0)
    return found


# Left out ----------------------------------------------------------------------------------------------------------------


def held_out(points: Sequence[Point]) -> tuple[list[Verdict], list[Verdict], set[str]]:
    """Each point judged by a fit that has not seen its group; strictly so; and the classes that have one group only.

    Points that the committed file does not hold are judged by the shipped table. Where a class has no other group, blocks of
    sizes are left out within the group; strictly, its priors stand alone.
    """
    committed = read_points()[0]
    known = {(point.gpu.name, point.op, point.time_s) for point in committed}
    learned = [point for point in committed if point.fitted]
    whole, _ = fit(learned)
    by_model: dict[str, list[Point]] = {}
    for point in learned:
        by_model.setdefault(_model_of(point), []).append(point)

    @functools.cache
    def without(group: Group) -> Values:
        touched = {_model_of(point) for point in learned if group_of(point) == group}
        anew = touched.union(*(_STAND_ON.get(model, ()) for model in touched))
        return fit([point for point in learned if group_of(point) != group], anew, whole)[0]

    @functools.cache
    def fold(model: str, group: Group, block: int | None) -> tuple[Values, dict[str, Accuracy]]:
        of_model = by_model.get(model, [])
        if block is None:
            return without(group), accuracies([point for point in of_model if group_of(point) != group], without(group))
        rest = [point for point in of_model if _block(point, of_model) != block]
        values = fit(rest, [model], without(group))[0]
        return values, accuracies(rest, values)

    def verdict(point: Point, *, strictly: bool) -> Verdict:
        if (point.gpu.name, point.op, point.time_s) not in known:
            return judge(point, gpu_rates(point.gpu))
        model, group = _model_of(point), group_of(point)
        of_model = by_model.get(model, [])
        alone = of_model and not strictly and all(group_of(each) == group for each in of_model)
        values, accuracy = fold(model, group, _block(point, of_model) if alone else None)
        return judge(point, dataclasses.replace(gpu_rates(point.gpu), values=values, accuracy=accuracy))

    verdicts = [verdict(point, strictly=False) for point in points]
    strict = [verdict(point, strictly=True) for point in points]
    alone = {point.op for point in points if len({group_of(each) for each in by_model.get(_model_of(point), ())}) == 1}
    return verdicts, strict, alone


def _size(point: Point) -> float:
    return point.cost.flops or point.cost.moved_bytes or 0.0


def _block(point: Point, of_model: Sequence[Point]) -> int:
    """In which fifth of the sizes of all points it lies."""
    sizes = sorted(map(_size, of_model))
    return bisect.bisect_right([sizes[len(sizes) * i // _N_BLOCKS] for i in range(1, _N_BLOCKS)], _size(point))


# Writing -----------------------------------------------------------------------------------------------------------------


def efficiencies(points: Sequence[Point], verdicts: Sequence[Verdict]) -> Efficiencies:
    """The table, with the errors that `verdicts` of left-out points show."""
    learned = [point for point in points if point.fitted]
    values, errors = fit(learned)
    accuracy = accuracies(learned, values)
    for name, of in accuracy.items():
        found = score(v for v in verdicts if v.point.fitted and _class_of(v.point) == name)
        if of.n_points:
            accuracy[name] = of.model_copy(update={"median_error": found["median_error"], "inside": found["inside"]})

    def entries(groups: dict[str, dict[str, Prior]]) -> dict[str, dict[str, Efficiency]]:
        n = {group: sum(_model_of(point) == group for point in learned) for group in groups}
        return {
            group: {
                name: Efficiency(
                    value=values[f"{group}.{name}"],
                    error=errors.get(f"{group}.{name}", prior.spread),
                    n_points=n[group] if groups is PRIORS else 0,
                    prior=prior.value,
                    source=prior.source,
                )
                for name, prior in all_of.items()
            }
            for group, all_of in groups.items()
        }

    return Efficiencies(published=entries(PRIORS), unpublished=entries(UNPUBLISHED), accuracy=accuracy)


def as_toml(found: Efficiencies) -> str:
    lines = [
        "# Written by `python -m benchmarks.fit_efficiencies` from benchmarks/published/gpu_timings.csv: change the script.",
        "# value: the constant; error: a standard deviation as a factor; n_points: published timings behind it; prior, source:",
        "# what it would be without them, and why. What the names mean stands in altlas_lib/profiling/project/gpu.py.",
    ]
    for section in ("published", "unpublished"):
        if section == "unpublished":
            lines += ["", "# No published timings: the sources alone stand behind these."]
        for group, entries in getattr(found, section).items():
            lines += ["", f'[{section}."{group}"]']
            lines += [f"{name} = {_inline(entry.model_dump())}" for name, entry in entries.items()]
    lines += [
        "",
        "# Bands reach `factor` times below and above their centres; errors and shares inside are of points left out.",
        "[accuracy]",
    ]
    lines += [f'"{name}" = {_inline(of.model_dump(exclude_none=True))}' for name, of in sorted(found.accuracy.items())]
    return "\n".join(lines) + "\n"


def _inline(fields: dict[str, object]) -> str:
    def shown(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return (
            "[" + ", ".join(map(shown, value)) + "]"
            if isinstance(value, tuple)
            else f'"{value}"'
            if isinstance(value, str)
            else str(value)
        )

    return "{ " + ", ".join(f"{name} = {shown(value)}" for name, value in fields.items()) + " }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="print, and leave the table as it is")
    options = parser.parse_args()
    points, _ = read_points(FILE)
    verdicts, _, _ = held_out(points)
    found = efficiencies(points, verdicts)
    for group, entries in found.published.items():
        for name, entry in entries.items():
            shown = f"{entry.value:10.4g}  /x {entry.error:5.2f}  prior {entry.prior:g}  {entry.n_points} points"
            print(f"{group + '.' + name:40}{shown}")
    print(table(summary(verdicts)), worst(verdicts), sep="\n\n")
    if not options.check:
        write_atomically(TABLE, as_toml(found))


if __name__ == "__main__":
    main()
