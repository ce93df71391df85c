"""Does the advice agree with a GPU practitioner? Workloads of many packages, each with the answer that was written down first.

    python -m benchmarks.verdicts
    python -m benchmarks.verdicts --only kernel_name other_name --json FILE.json

Each workload is profiled in a child process of its own and projected onto one GPU. What is compared is the advice for the
function that owns most of the time. The expected answers come from what is known of the GPU and the libraries, and stood
here before any workload was profiled; where two answers are equally right, both are named. `dangerous` are answers that
would cost somebody weeks: usually to port what is no faster, or slower, on a GPU.
"""

import argparse
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from altlas_lib import profiling
from altlas_lib.paths import write_atomically
from altlas_lib.results import Advice, Candidate, Model, Provenance

Standing = Literal["right", "unknown", "wrong", "not run"]


class Workload(Model):
    """A workload, and what to do about it on a Tesla T4 (8.1 TFLOP/s float32, 0.25 float64, 320 GB/s, PCIe 3)."""

    name: str
    module: str = Field(description="of benchmarks.verdict_workloads")
    package: str = Field(description="whose calls take the time, as its distribution is called; 'Python': the standard library")
    expected: tuple[Advice, ...] = Field(min_length=1, max_length=2)
    dangerous: tuple[Advice, ...] = ()
    why: str = Field(description="the practitioner's reasoning")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if "unknown" in self.expected or set(self.expected) & set(self.dangerous):
            raise ValueError(f"{self.name}: expected must be an answer, and not a dangerous one, got {self.expected}")
        return self

    @property
    def target(self) -> str:
        return f"benchmarks.verdict_workloads.{self.module}:{self.name}"

    @property
    def version(self) -> str | None:
        """Of its package; None: not installed."""
        try:
            return "" if self.package == "Python" else metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


class Outcome(Model):
    """What was advised for one workload, beside what was expected."""

    workload: Workload
    standing: Standing
    got: Advice | None = Field(
        default=None, description="for the function with the greatest share; None: no candidate, or not run"
    )
    is_dangerous: bool = False
    function: str | None = None
    share: float | None = Field(default=None, description="of the workload's time, the function's own")
    reason: str = Field(description="of the advice; or why it did not run")
    run_s: float | None = Field(default=None, description="one run without a profiler")
    profile_s: float = Field(default=0, description="that the whole profile took")


class Record(Model):
    """A whole run of the benchmark."""

    provenance: Provenance
    gpu: str
    versions: dict[str, str] = Field(description="of the workloads' packages that are installed")
    counts: dict[Standing, int]
    n_dangerous: int
    outcomes: list[Outcome]


# The workloads ---------------------------------------------------------------------------------------------------------

_PORT, _KERNEL = ("port it",), ("port it", "write a kernel")

WORKLOADS = [
    Workload(
        name="cosine_top_k",
        module="numpy_search",
        package="numpy",
        expected=("change the call",),
        dangerous=_PORT,
        why="Ten of 1,500 are kept: a tiled top-k needs neither the full matrix nor a partition of it, half the product is "
        "redundant, a T4's float64 is no faster than two cores, and CuPy's argpartition is a full sort.",
    ),
    Workload(
        name="near_duplicates",
        module="numpy_search",
        package="numpy",
        expected=("change the call",),
        why="A few hundred pairs of 18 million are kept: the upper triangle in tiles with a threshold does it, on the CPU.",
    ),
    Workload(
        name="nearest_depot",
        module="numpy_search",
        package="numpy",
        expected=("change the call", "port it"),
        why="The three-dimensional temporary is what costs: |a|^2 + |b|^2 - 2ab, or cdist, is ten times cheaper on the CPU; "
        "a port as it stands would also pay, for little goes in or out.",
    ),
    Workload(
        name="best_sellers",
        module="numpy_search",
        package="numpy",
        expected=("change the call",),
        why="Twenty of two million: argpartition does it in one pass instead of a full sort.",
    ),
    Workload(
        name="double_svd",
        module="numpy_numerics",
        package="numpy",
        expected=("change the call", "leave it"),
        dangerous=_KERNEL,
        why="Float64 runs at 1/32 on a T4 and its SVD is bound by many small steps: no gain; a truncated or randomised SVD for "
        "20 of 700 components is the way, on the CPU.",
    ),
    Workload(
        name="power_iteration",
        module="numpy_numerics",
        package="numpy",
        expected=("port it",),
        why="The matrix crosses the bus once and is then read 100 times, at 320 GB/s instead of the CPU's 20 to 70.",
    ),
    Workload(
        name="filter_bank",
        module="numpy_numerics",
        package="numpy",
        expected=("port it",),
        why="Seventeen batched float32 FFTs for one transfer in and next to nothing out: cuFFT is bound by memory at 320 GB/s.",
    ),
    Workload(
        name="monte_carlo",
        module="numpy_numerics",
        package="numpy",
        expected=("port it",),
        why="500,000 independent paths, random numbers made on the GPU, one number out: the textbook case, even in float64.",
    ),
    Workload(
        name="calibrated_frames",
        module="numpy_numerics",
        package="numpy",
        expected=("leave it", "keep the data on the GPU"),
        dangerous=_PORT,
        why="One operation for each pixel read and written: the bus takes longer than the CPU. Only frames that are on the GPU "
        "anyhow should be calibrated there.",
    ),
    Workload(
        name="particle_steps",
        module="numpy_numerics",
        package="numpy",
        expected=("keep the data on the GPU",),
        why="A step alone would lose its gain on the bus; but the state is the same from step to step: brought over once, a "
        "T4 at 320 GB/s is several times as fast.",
    ),
    Workload(
        name="mlp_requests",
        module="numpy_models",
        package="numpy",
        expected=("batch first",),
        dangerous=_PORT,
        why="A request is 3 MFLOP in ten operations: starting ten kernels takes as long as the CPU's whole answer; requests "
        "stacked to thousands of rows would fill the GPU.",
    ),
    Workload(
        name="mlp_archive",
        module="numpy_models",
        package="numpy",
        expected=("port it",),
        why="70 GFLOP of float32 products on 206 MB of input: ten times as fast, transfers included.",
    ),
    Workload(
        name="element_loop",
        module="numpy_loops",
        package="numpy",
        expected=("vectorise first",),
        dangerous=_PORT,
        why="The interpreter visits each element; five slices do the same a hundred times faster, and each element access of a "
        "CuPy array would start a kernel or a transfer.",
    ),
    Workload(
        name="track_updates",
        module="numpy_loops",
        package="numpy",
        expected=("vectorise first",),
        dangerous=_PORT,
        why="Thousands of independent 4 x 4 problems one by one: NumPy's overhead is all there is; stacked matmul and inv take "
        "them at once, and a GPU would add 10 us to each of 100,000 operations.",
    ),
    Workload(
        name="group_summary",
        module="pandas_sales",
        package="pandas",
        expected=("try the drop-in",),
        why="groupby-agg and sort of three million numeric rows is what cudf.pandas speeds up, without a change of code.",
    ),
    Workload(
        name="row_rule",
        module="pandas_sales",
        package="pandas",
        expected=("vectorise first",),
        dangerous=_PORT,
        why="apply(axis=1) calls Python for each row, on cudf.pandas too, which falls back to the CPU; np.where on columns is "
        "hundreds of times faster.",
    ),
    Workload(
        name="lazy_query",
        module="polars_events",
        package="polars",
        expected=("try the drop-in",),
        why="Filter, join and group_by on numeric columns run in Polars' own GPU engine: collect(engine='gpu').",
    ),
    Workload(
        name="customer_segments",
        module="sklearn_models",
        package="scikit-learn",
        expected=("try the drop-in",),
        why="KMeans in float32 is one of cuml.accel's best cases; Lloyd's loop by hand in CuPy is not worth writing.",
    ),
    Workload(
        name="forest_fit",
        module="sklearn_models",
        package="scikit-learn",
        expected=("try the drop-in",),
        why="Trees are compiled code with no array operation to port; cuml.accel has RandomForestClassifier.",
    ),
    Workload(
        name="one_row_at_a_time",
        module="sklearn_models",
        package="scikit-learn",
        expected=("batch first", "leave it"),
        dangerous=("port it", "write a kernel", "try the drop-in"),
        why="Twelve multiplications within 100 us of checks: one predict_proba for all rows, or nothing; no GPU helps one row.",
    ),
    Workload(
        name="word_weights",
        module="sklearn_models",
        package="scikit-learn",
        expected=("leave it", "change the call"),
        dangerous=_KERNEL,
        why="Time goes into splitting text and counting n-grams in Python dictionaries; cuml.accel leaves TfidfVectorizer on "
        "the CPU. HashingVectorizer, or fewer n-grams, is the only lever.",
    ),
    Workload(
        name="page_rank",
        module="networkx_graphs",
        package="networkx",
        expected=("try the drop-in",),
        why="nx-cugraph is a back end of networkx and has pagerank; one environment variable.",
    ),
    Workload(
        name="brokers",
        module="networkx_graphs",
        package="networkx",
        expected=("try the drop-in",),
        why="Betweenness in Python dictionaries is nx-cugraph's show case: hundreds of times as fast on large graphs.",
    ),
    Workload(
        name="critical_path",
        module="networkx_graphs",
        package="networkx",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="A topological walk is sequential, in Python dictionaries, and nx-cugraph has no dag_longest_path.",
    ),
    Workload(
        name="clean_scans",
        module="scipy_filters",
        package="scipy",
        expected=("try the drop-in", "port it"),
        why="cupyx.scipy.ndimage has median_filter and gaussian_filter under the same names; each pixel is independent.",
    ),
    Workload(
        name="spectrograms",
        module="scipy_filters",
        package="scipy",
        expected=("try the drop-in", "port it"),
        why="Batches of short float32 FFTs; cupyx.scipy.signal.stft is the same call, and only means come back.",
    ),
    Workload(
        name="sharpened",
        module="scipy_filters",
        package="scipy",
        expected=("try the drop-in", "port it"),
        why="Two-dimensional float32 FFTs there and back, a variance out: cupyx.scipy.fft is a back end of scipy.fft.",
    ),
    Workload(
        name="double_solve",
        module="scipy_solvers",
        package="scipy",
        expected=("leave it", "change the call"),
        dangerous=_KERNEL,
        why="18 GFLOP in float64: a T4's 0.25 TFLOP/s is hardly more than two cores have; assume_a='pos' halves the work, so "
        "does float32 with refinement.",
    ),
    Workload(
        name="sparse_factor",
        module="scipy_solvers",
        package="scipy",
        expected=("leave it", "change the call"),
        dangerous=_KERNEL,
        why="Sparse LU is irregular and sequential, and CuPy's splu factorises on the CPU anyhow; the matrix is positive "
        "definite, so conjugate gradients are the alternative.",
    ),
    Workload(
        name="conjugate_gradient",
        module="scipy_solvers",
        package="scipy",
        expected=("try the drop-in", "port it"),
        why="The matrix goes over once and is read 400 times, bound by memory at 320 GB/s; cupyx.scipy.sparse.linalg.cg is the "
        "same call.",
    ),
    Workload(
        name="curve_fit",
        module="scipy_solvers",
        package="scipy",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="Nelder and Mead's steps follow from each other, each on 80 numbers: nothing is parallel.",
    ),
    Workload(
        name="orbit",
        module="scipy_solvers",
        package="scipy",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="One ordinary differential equation with four unknowns is sequential in time.",
    ),
    Workload(
        name="denoised_scan",
        module="skimage_denoising",
        package="scikit-image",
        expected=("try the drop-in", "port it"),
        why="cuCIM has the same function under cucim.skimage; it is array code, element by element, on data that stay.",
    ),
    Workload(
        name="training_batch",
        module="pillow_batches",
        package="pillow",
        expected=("try the drop-in",),
        dangerous=_PORT,
        why="Decoding, resizing, cropping and mirroring for training is what DALI does on the GPU, where the batch is needed; "
        "CuPy has no decoder.",
    ),
    Workload(
        name="bodies",
        module="numba_compiled",
        package="numba",
        expected=("write a kernel",),
        why="144 million independent interactions in float32 that no library offers: the same loop body under numba.cuda.jit, "
        "one thread for each star.",
    ),
    Workload(
        name="escape_times",
        module="numba_compiled",
        package="numba",
        expected=("write a kernel",),
        why="Each pixel loops on its own with its own end, in float32: a kernel's case, and no array expression's.",
    ),
    Workload(
        name="volatility",
        module="numba_compiled",
        package="numba",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="Each variance needs the one before: a single thread of a GPU is far slower than a CPU's core, and it is compiled.",
    ),
    Workload(
        name="image_classes",
        module="torch_images",
        package="torch",
        expected=("port it", "try the drop-in"),
        why="Convolutions on batches of 32 images: model.to('cuda') is all there is to change, and ten times or more follow.",
    ),
    Workload(
        name="log_lines",
        module="json_logs",
        package="Python",
        expected=("leave it", "change the call"),
        dangerous=_KERNEL,
        why="Parsing into Python objects is the CPU's; a faster parser is the lever.",
    ),
    Workload(
        name="price_list",
        module="jinja_pages",
        package="jinja2",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="String work in the interpreter, compiled to Python already.",
    ),
    Workload(
        name="slow_pattern",
        module="regex_logs",
        package="regex",
        expected=("change the call",),
        dangerous=_KERNEL,
        why="Greedy .* backtracks through each line; a pattern of classes without overlap, or split, is many times faster.",
    ),
    Workload(
        name="tidy_queries",
        module="sqlparse_reports",
        package="sqlparse",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="A parser in pure Python over objects; its regular expressions are the library's, not the user's.",
    ),
    Workload(
        name="order_totals",
        module="sqlalchemy_orders",
        package="sqlalchemy",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="Building Python objects from rows of a database; there is no arithmetic.",
    ),
    Workload(
        name="waiting_service",
        module="waiting_service",
        package="Python",
        expected=("leave it",),
        dangerous=_KERNEL,
        why="It waits for another service; the processor is idle.",
    ),
]


# Running them ----------------------------------------------------------------------------------------------------------


def judge(workload: Workload, candidates: Sequence[Candidate]) -> Outcome:
    """By the candidate with the greatest share; without any the answer is unknown."""
    if not candidates:
        return Outcome(workload=workload, standing="unknown", reason="no function is a candidate")
    owner = max(candidates, key=lambda candidate: candidate.share)
    return Outcome(
        workload=workload,
        standing="unknown" if owner.advice == "unknown" else "right" if owner.advice in workload.expected else "wrong",
        got=owner.advice,
        is_dangerous=owner.advice in workload.dangerous,
        function=owner.function,
        share=owner.share,
        reason=owner.reason,
    )


def run(workload: Workload, gpu: str) -> Outcome:
    """Profiles a workload and judges the advice; a missing package or a profile that fails is an outcome too."""
    if workload.version is None:
        return Outcome(workload=workload, standing="not run", reason=f"{workload.package} is not installed")
    start = time.perf_counter()
    try:
        profile = profiling.profile(workload.target, setup=f"{workload.target}_input", workload=workload.name)
        outcome = judge(workload, profiling.rank_candidates([profile], gpu=gpu))
    except profiling.ProfilingError as error:
        return Outcome(workload=workload, standing="not run", reason=str(error), profile_s=time.perf_counter() - start)
    run_s = profile.total.value if profile.total else None
    return outcome.model_copy(update={"run_s": run_s, "profile_s": time.perf_counter() - start})


def record(outcomes: Sequence[Outcome], gpu: str) -> Record:
    standings = Counter(outcome.standing for outcome in outcomes)
    workloads = [outcome.workload for outcome in outcomes]
    return Record(
        provenance=Provenance.now({"gpu": gpu, "only": [workload.name for workload in workloads]}),
        gpu=gpu,
        versions={workload.package: workload.version for workload in workloads if workload.version},
        counts={standing: standings[standing] for standing in Standing.__args__},
        n_dangerous=sum(outcome.is_dangerous for outcome in outcomes),
        outcomes=list(outcomes),
    )


_HEADER = f"{'workload':20}{'package':14}{'expected':36}{'got':26}{'':18}{'run':>8}{'profile':>9}"


def row(outcome: Outcome) -> str:
    workload, standing = outcome.workload, "wrong, DANGEROUS" if outcome.is_dangerous else outcome.standing
    run_s = "" if outcome.run_s is None else f"{outcome.run_s:.2f} s"
    return (
        f"{workload.name:20}{workload.package:14}{' or '.join(workload.expected):36}{outcome.got or '-':26}{standing:18}"
        f"{run_s:>8}{outcome.profile_s:7.1f} s"
    )


def summary(found: Record) -> str:
    """The counts, and the reason of every answer that is not right."""
    lines = [
        f"{len(found.outcomes)} workloads: " + ", ".join(f"{n} {standing}" for standing, n in found.counts.items()) + "; "
        f"{found.n_dangerous} dangerously wrong; {sum(outcome.profile_s for outcome in found.outcomes):.0f} s in all"
    ]
    for outcome in found.outcomes:
        if outcome.standing != "right":
            where = f" ({outcome.function}, {outcome.share:.0%})" if outcome.function else ""
            lines.append(f"\n{outcome.workload.name}: {outcome.got or outcome.standing}{where}: {outcome.reason}")
            lines.append(textwrap.indent(textwrap.fill(f"Expected: {outcome.workload.why}", 118), "    "))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.verdicts", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these workloads, in place of all")
    parser.add_argument("--gpu", default="T4", help="project onto this one; what is expected holds for a %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    options = parser.parse_args(arguments)
    known = [workload.name for workload in WORKLOADS]
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only {' '.join(sorted(unknown))}: no such workload; there are {', '.join(known)}")
    print(_HEADER)
    outcomes = []
    for workload in WORKLOADS:
        if not options.only or workload.name in options.only:
            outcomes.append(run(workload, options.gpu))
            print(row(outcomes[-1]), flush=True)
    found = record(outcomes, options.gpu)
    print(summary(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, found.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
