"""Hold the projection of GPU times against published measurements: points inside the bands, error of the centres, widths.

    python -m benchmarks.published [FILE.csv] [--json]

FILE.csv has a row for each timing: `op` (its class, in any words), `gpu` (a name of the catalogue, else `gpu_said`), `dtype`,
`shapes` of the operands (JSON), `time_s`, and optionally `includes_transfer`, `trust` (3: doubtful), `core` (of a balanced
choice), `id`, `source`, `expression` (JSON: {"kind", "name", "args", "kwargs", "result"}; arrays as ["float32", [1760, 1760]];
of kind "model" flops, moved and kernels among kwargs; a name of null is one fused kernel). Without an expression the call
follows from op, shapes and dtype.

A point that the fit has seen is judged by a fit that has not seen its group of source and GPU; the shipped table's result
comes second. What cannot be priced, and GPUs that the catalogue lacks, are counted. Doubtful points (trust 3) count; the score
without them stands beside.
"""

import argparse
import csv
import json
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from altlas_lib.devices import GpuSpec, find_gpu
from altlas_lib.profiling.project.gpu import Rates, call_bands, call_seconds, gpu_rates
from altlas_lib.profiling.project.operations import array_bytes, price
from altlas_lib.profiling.project.projection import TRANSFER_START_S, total
from altlas_lib.profiling.record.calls import Array, Call, ModelWork
from altlas_lib.results import ArrayOperation, format_value

FILE = Path(__file__).parent / "published" / "gpu_timings.csv"
_MOST_ROWS, _LONGEST_LINE = 200_000, 2**16
_NEEDED = ("op", "dtype", "shapes", "time_s")


class Point(NamedTuple):
    """A published timing and what it is the timing of."""

    id: str
    op: str
    gpu: GpuSpec
    cost: ArrayOperation
    transferred_bytes: tuple[float, float]  # in and out; 0 where the timing is without
    time_s: float
    source: str
    trust: str
    core: bool
    fitted: bool  # not doubtful, and of what the call asks for: the committed file gives reasons in `not_fitted`


class Verdict(NamedTuple):
    """A published figure beside the band that was projected for it, in the same unit; `point` is what it is of."""

    point: Any
    published: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        return self.low <= self.published <= self.high

    @property
    def ratio(self) -> float:
        """Published / geometric mean of the band."""
        return self.published / math.sqrt(self.low * self.high)

    @property
    def width(self) -> float:
        return self.high / self.low


# Reading -----------------------------------------------------------------------------------------------------------------


def read_points(path: Path = FILE) -> tuple[list[Point], Counter[str]]:
    """The points of a file and, by reason, how many rows are none.

    Raises:
        ValueError: no such file, no CSV in UTF-8 with the columns, a line of more than 64 KiB, or more than 200,000 rows.
    """
    points: list[Point] = []
    left_out: Counter[str] = Counter()
    for row in read_rows(path, _NEEDED, ("gpu", "gpu_said")):
        try:
            points.append(_point(row))
        except LookupError as reason:
            left_out[str(reason.args[0])[:80]] += 1
    return points, left_out


def read_rows(path: Path, needed: Sequence[str], one_of: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of a CSV with the columns `needed` and one of `one_of`; raises as `read_points`."""
    if not path.is_file():  # a FIFO or a device would never end
        raise ValueError(f"{path}: no such file; expected a CSV of published figures")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(_lines(file, path))
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if one_of and not missing and not set(one_of) & set(reader.fieldnames):
                missing = [one_of[0]]
            if missing:
                raise ValueError(f"{path}: no column {', '.join(missing)}; expected {', '.join([*needed, *one_of[:1]])}")
            for number, row in enumerate(reader):
                if number >= _MOST_ROWS:
                    raise ValueError(f"{path}: more than {_MOST_ROWS:,} rows; split it")
                yield {name: value for name, value in row.items() if isinstance(name, str) and isinstance(value, str)}
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as CSV in UTF-8: {error}") from None


def _lines(file: Any, path: Path) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"{path}: a line of more than {_LONGEST_LINE:,} characters")
        yield line


def _point(row: dict[str, str]) -> Point:
    """LookupError: what is wrong with the row, in words that are the same for all such rows."""
    try:
        time_s = float(row.get("time_s", ""))
    except ValueError:
        time_s = math.nan
    if not 0 < time_s < math.inf:
        raise LookupError("time_s is no positive number")
    gpu, call = _gpu(row), _call(row)
    cost = price(call)
    if cost.kind in ("unknown", "view"):
        raise LookupError(f"no formula for op {row.get('op', '')!r}")
    moved = (call.operands, call.results) if _is_true(row.get("includes_transfer", "")) else ((), ())
    trust = row.get("trust", "")
    return Point(
        id=row.get("id", ""),
        op=row.get("op", ""),
        gpu=gpu,
        cost=cost,
        transferred_bytes=tuple(sum(map(array_bytes, arrays)) for arrays in moved),
        time_s=time_s,
        source=row.get("source", ""),
        trust=trust,
        core=_is_true(row.get("core", "")),
        fitted=not row.get("not_fitted"),
    )


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "yes")


def _gpu(row: dict[str, str]) -> GpuSpec:
    for name in filter(None, (row.get("gpu"), row.get("gpu_said"))):
        try:
            return find_gpu(name)
        except ValueError:
            continue
    raise LookupError(f"the catalogue lacks GPU {row.get('gpu') or row.get('gpu_said')!r}")


def _call(row: dict[str, str]) -> Call:
    try:
        return _of_expression(json.loads(row.get("expression") or "null"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # as if there were none
    try:
        shapes = [tuple(map(int, shape)) for shape in json.loads(row["shapes"])]
        return _derived(row["op"].lower(), row["dtype"], shapes)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError):
        raise LookupError(f"no call follows from op {row.get('op', '')!r} with its shapes and dtype") from None


def _of_expression(expression: dict[str, Any]) -> Call:
    kwargs, work = dict(expression.get("kwargs") or {}), None
    if expression.get("kind") == "model":
        work = ModelWork(*(float(kwargs.pop(name)) for name in ("flops", "moved")), int(kwargs.pop("kernels")))
    results = [Array(dtype, tuple(shape)) for dtype, shape in expression.get("result") or ()]
    name = expression["name"] or "cupy.fuse"  # one kernel that reads its operands and writes its results
    return Call(name=name, args=expression.get("args") or (), kwargs=kwargs, results=tuple(results), model_work=work)


Shape = tuple[int, ...]
# What op must hold -> name of the call, keywords, and the shapes of the results from those of the operands.
_DERIVED: tuple[tuple[str, str, dict[str, Any], Callable[..., list[Shape]]], ...] = (
    (r"gemm|matmul|\bmm\b", "numpy.matmul", {}, lambda a, b: [(*a[:-1], b[-1])]),
    (r"rfft", "numpy.fft.rfft", {}, lambda a: [(*a[:-1], a[-1] // 2 + 1)]),
    (r"fft", "numpy.fft.fft", {}, lambda a: [a]),
    (r"svd", "numpy.linalg.svd", {"full_matrices": False}, lambda a: [a, a[:-1], a]),
    (r"cholesky", "numpy.linalg.cholesky", {}, lambda a: [a]),
    (r"solve", "numpy.linalg.solve", {}, lambda a, b=None: [b or a[:-1]]),
    (r"\blu\b|getrf", "scipy.linalg.lu_factor", {}, lambda a: [a, a[:-1]]),
    (r"\bqr\b", "numpy.linalg.qr", {}, lambda a: [a, (*a[:-2], a[-1], a[-1])]),
    (r"\binv", "numpy.linalg.inv", {}, lambda a: [a]),
    (r"eigh", "numpy.linalg.eigh", {}, lambda a: [a[:-1], a]),
    (r"argsort|sort.*pairs", "numpy.argsort", {}, lambda a: [a]),
    (r"sort", "numpy.sort", {}, lambda a, *_: [a]),
    (r"cumsum|\bscan", "numpy.cumsum", {}, lambda a: [a]),
    (r"histogram", "numpy.histogram", {}, lambda a, b=(): [b]),
    (r"bincount", "numpy.bincount", {}, lambda a: [(256,)]),
    (r"copy", "ndarray.copy", {}, lambda a: [a]),
    (r"fill", "numpy.full", {}, lambda a: [a]),
    (r"reduc|\bsum\b", "numpy.sum", {}, lambda a: [()]),
    (r"\bexp\b", "numpy.exp", {}, lambda a: [a]),
    (r"element|fused|\badd\b|triad", "cupy.fuse", {}, lambda a, *_: [a]),
)


def _derived(op: str, dtype: str, shapes: list[Shape]) -> Call:
    for pattern, name, kwargs, result in _DERIVED:
        if re.search(pattern, op):
            results = tuple(Array(dtype, shape) for shape in result(*shapes))
            args = () if name == "numpy.full" else tuple(Array(dtype, shape) for shape in shapes)
            return Call(name=name, args=args, kwargs=kwargs, results=results)
    raise KeyError(op)


# Judging -----------------------------------------------------------------------------------------------------------------


def judge(point: Point, rates: Rates) -> Verdict:
    """The point beside the band that `rates`, of its GPU, give it."""
    slow, fast = 0, 1
    low, high = total(call_bands(point.cost, call_seconds(point.cost, rates), rates).values())
    for n_bytes, way in zip(point.transferred_bytes, (rates.to_device, rates.to_host), strict=True):
        if n_bytes:
            low, high = low + n_bytes / way[fast] + TRANSFER_START_S[0], high + n_bytes / way[slow] + TRANSFER_START_S[1]
    return Verdict(point, point.time_s, low, high)


def shipped(points: Sequence[Point]) -> list[Verdict]:
    """By the table that ships, which has seen what it was fitted on."""
    rates = {point.gpu.name: gpu_rates(point.gpu) for point in points}
    return [judge(point, rates[point.gpu.name]) for point in points]


def score(verdicts: Iterable[Verdict]) -> dict[str, float | int | None]:
    """Number, share inside, median error and width as factors; None of no points."""
    verdicts = list(verdicts)
    if not verdicts:
        return {"n": 0, "inside": None, "median_error": None, "median_width": None}
    return {
        "n": len(verdicts),
        "inside": statistics.mean(verdict.inside for verdict in verdicts),
        "median_error": math.exp(statistics.median(abs(math.log(verdict.ratio)) for verdict in verdicts)),
        "median_width": statistics.median(verdict.width for verdict in verdicts),
    }


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Scores of the core and of all points, by class and by GPU."""
    return {
        "core": score(v for v in verdicts if v.point.core),
        "all": score(verdicts),
        "without_doubtful": score(v for v in verdicts if v.point.trust != "3"),
        "by_class": {op: score(v for v in verdicts if v.point.op == op) for op in sorted({v.point.op for v in verdicts})},
        "by_gpu": {
            name: score(v for v in verdicts if v.point.gpu.name == name)
            for name in sorted({v.point.gpu.name for v in verdicts})
        },
    }


# Showing -----------------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """The summary as lines of text."""
    rows = [("core", found["core"]), ("all", found["all"])]
    rows += [("all but doubtful (trust 3)", found["without_doubtful"])] if "without_doubtful" in found else []
    rows += [*found["by_class"].items(), *((f"on {name}", scores) for name, scores in found["by_gpu"].items())]
    lines = [f"{'':34}{'points':>7}{'inside':>8}{'error':>8}{'width':>8}"]
    for name, scores in rows:
        inside, *factors = (scores[key] for key in ("inside", "median_error", "median_width"))
        shown = "" if inside is None else f"{inside:8.0%}" + "".join(f"{factor:7.2f}x" for factor in factors)
        lines.append(f"{name[:33]:34}{scores['n']:7,}{shown}")
    return "\n".join(lines)


def worst(verdicts: Sequence[Verdict], n: int = 10) -> str:
    """The `n` points furthest from the centres of their bands."""
    lines = ["furthest off (published / centre of the band):"]
    for verdict in sorted(verdicts, key=lambda v: -abs(math.log(v.ratio)))[:n]:
        low, high, time = (format_value(s, "s") for s in (verdict.low, verdict.high, verdict.published))
        point = verdict.point
        lines.append(f"  {verdict.ratio:6.2f}x  {point.op} on {point.gpu.name}: {time}, projected {low} to {high}  {point.id}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    from benchmarks.fit_efficiencies import held_out  # it reads points itself

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    parser.add_argument(
        "--json", action="store_true", help="one object: core, all, by_class, by_gpu; shipped and strict besides"
    )
    options = parser.parse_args(arguments)
    try:
        points, left_out = read_points(options.file)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    verdicts, strict, alone = held_out(points)
    seen = shipped(points)
    if options.json:
        found = summary(verdicts) | {"shipped": summary(seen), "strict": summary(strict), "not_priced": dict(left_out)}
        print(json.dumps(found | {"without_another_group": sorted(alone)}, indent=1))
        return 0
    print(f"{len(points):,} points; a point is never judged by a fit that saw its group of source and GPU")
    for reason, n in left_out.most_common(20):
        print(f"  not judged: {n:,} x {reason}")
    if alone:
        print(f"  one group only, so blocks of sizes are left out within it: {', '.join(sorted(alone))}")
    print(table(summary(verdicts)), worst(verdicts), sep="\n\n")
    if alone:
        print("\nstrictly: classes with one group by their priors alone, as if nothing had been published")
        print(table({**summary(strict), "by_gpu": {}}))
    print("\nthe shipped table, which has seen the points that it was fitted on")
    print(table(summary(seen)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
