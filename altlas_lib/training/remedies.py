"""The ways to make the reference training fit a GPU, each alone and some together, beside what the plan claims of them."""

import contextlib
import json
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..devices import GpuSpec, find_gpu, memory_available_bytes
from ..results import MemoryPlan, Remedy
from .compiler import PlanError
from .model import ModelConfig, find_preset
from .planner import TENSORFLOW_NOTES, largest_batch, plan_memory

# One compile of the reference holds about 2 GiB of host memory and mostly one core.
COMPILE_BYTES = 3 * 2**30
N_PARALLEL = 2


@dataclass(frozen=True)
class _Row:
    name: str
    preset: str | None = None  # None: the model that the table is about
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    dtype_policy: str = "float32"
    recompute: bool = False
    memory_efficient_attention: bool = False
    claimed: str | None = None


# 8 x 8, 4 x 8 and 2 x 8 are one step to the compiler: how many micro-batches make an update is a number within it.
_ACCUMULATED = {"batch_size": 8, "gradient_accumulation_steps": 8}
_HALF = {"dtype_policy": "mixed_float16"}
_THRIFTY = {"recompute": True, "memory_efficient_attention": True}
_ROWS = (
    _Row("reference", claimed="15.90 GiB"),
    _Row("mixed_float16", **_HALF, claimed="about 8 GiB"),
    _Row("accumulation 8 x 8 (4 x 8, 2 x 8 alike)", **_ACCUMULATED),
    _Row("option 1: no 1000 window, no Transformer", preset="option1"),
    _Row("option 2: lighter Transformer", preset="option2", claimed="10 to 12 GiB"),
    _Row("recompute Transformer layers", recompute=True),
    _Row("memory-efficient attention", memory_efficient_attention=True),
    _Row("recompute + memory-efficient attention", **_THRIFTY),
    _Row("mixed_float16 + accumulation 8 x 8", **_HALF, **_ACCUMULATED),
    _Row("mixed_float16 + recompute + memory-efficient", **_HALF, **_THRIFTY),
    _Row("option 1 + mixed_float16 + accumulation 8 x 8", preset="option1", **_HALF, **_ACCUMULATED),
    _Row("option 2 + mixed_float16 + accumulation 8 x 8", preset="option2", **_HALF, **_ACCUMULATED),
)


def remedy_table(
    model: str | ModelConfig = "reference",
    gpu: str | GpuSpec = "T4",
    *,
    n_compiles: int = 2,
    time_limit_s: float = 480,
    use_cache: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Remedy]:
    """Every remedy's plan and largest batch.

    First all rows' plans are made, then their largest batches are looked for, two compiles at a time where host memory
    allows. What the time limit cuts off says so; what was compiled is kept, so that a second call goes on there.

    Args:
        model: the reference; where it is another configuration, options 1 and 2, which are presets, are left out.
        n_compiles: at most for the largest batch of a row, its plan included.
        time_limit_s: for the whole table.
        tell: takes a line of progress.

    Raises:
        ValueError: no such preset or GPU.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    config = find_preset(model) if isinstance(model, str) else model
    rows = [row for row in _ROWS if row.preset is None or config == find_preset("reference")]
    if config != find_preset("reference"):  # the plan's claims are about the reference
        rows = [replace(row, name=row.name.replace("reference", "as it is"), claimed=None) for row in rows]
    searched = [row for row in rows if row.gradient_accumulation_steps == 1]  # with accumulation the micro-batch is a choice
    stop, n_done = threading.Event(), 0

    def ask(row: _Row, question: Callable, **options) -> tuple[MemoryPlan | None, str | None]:
        """The plan that `question` finds, or why there is none."""
        names = ("batch_size", "gradient_accumulation_steps", "dtype_policy", "recompute", "memory_efficient_attention")
        options |= {name: getattr(row, name) for name in names} | {"use_cache": use_cache, "stop": stop}
        try:
            return question(row.preset or config, gpu, **options), None
        except PlanError as error:
            late = f"not compiled within {time_limit_s:g} s: call again, what is compiled is kept"
            return None, late if stop.is_set() else str(error)

    def finished(row: _Row, what: str) -> None:
        nonlocal n_done
        n_done += 1
        tell(f"[{n_done}/{len(rows) + len(searched)}] {row.name}: {what}")

    def plan(row: _Row) -> Remedy:
        found, problem = ask(row, plan_memory, before_rematerialisation=row is rows[0])
        finished(row, problem or f"{found.peak}, {found.verdict}")
        return Remedy(name=row.name, plan=found, claimed=row.claimed, problem=problem)

    def search(row: _Row, remedy: Remedy) -> Remedy:
        if remedy.plan is None or row not in searched:
            return remedy
        found, problem = ask(row, largest_batch, n_compiles=n_compiles)
        size = found.configuration["batch_size"] if found else None
        if problem and remedy.plan.verdict == "fits":
            size = row.batch_size
        finished(row, problem or f"largest batch {size or 'below any compiled'}")
        return remedy.model_copy(update={"largest_batch": size, "problem": problem and f"largest batch {problem}"})

    with _workers(stop, time_limit_s) as workers:
        remedies = list(workers.map(plan, rows))
        return list(workers.map(search, rows, remedies))


@contextlib.contextmanager
def _workers(stop: threading.Event, time_limit_s: float) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for compiling processes, which end at the time limit and on an interrupt."""
    workers = ThreadPoolExecutor(max(1, min(N_PARALLEL, memory_available_bytes() // COMPILE_BYTES)))
    timer = threading.Timer(time_limit_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield workers
    finally:
        timer.cancel()
        stop.set()
        workers.shutdown(cancel_futures=True)


# The terminal --------------------------------------------------------------------------------------------------------


def format_remedies(remedies: list[Remedy]) -> str:
    """The table for a terminal of 120 columns, and how to read it."""
    header = f"{'':45} {'batch':>5} {'peak':>9}  {'verdict':13} {'largest':>7}  {'time of one batch':17} plan's claim"
    lines = [header, "-" * len(header)]
    plans = [remedy.plan for remedy in remedies if remedy.plan]
    for remedy in remedies:
        if remedy.plan is None:
            lines.append(f"{remedy.name:45} {remedy.problem}")
            continue
        plan = remedy.plan
        lines.append(
            f"{remedy.name:45} {_batch(plan):>5} {plan.peak!s:>9}  {plan.verdict:13} {remedy.largest_batch or '-':>7}  "
            f"{plan.step_time or 'not projected'!s:17} {remedy.claimed or ''}".rstrip()
        )
    lines += [f"{remedy.name}: {remedy.problem}" for remedy in remedies if remedy.plan and remedy.problem]
    explained = [textwrap.fill(line, 120, subsequent_indent="  ") for line in (_explanation(plans) if plans else ())]
    return "\n".join([*lines, "", *explained])


def _batch(plan: MemoryPlan) -> str:
    batch_size, steps = (plan.configuration[name] for name in ("batch_size", "gradient_accumulation_steps"))
    return f"{batch_size} x {steps}" if steps > 1 else str(batch_size)


def _explanation(plans: list[MemoryPlan]) -> Iterator[str]:
    first = plans[0]
    how = "compiled by XLA for" if first.peak.basis == "compiled" else "projected for"
    yield f"Peak of one training step, {how} {first.gpu}; nothing ran. CUDA offers {first.usable_bytes / 2**30:.2f} GiB there."
    yield (
        f"Beside the peak {first.overhead_bytes / 2**30:.2f} GiB are needed (CUDA's context, prefetched batches). "
        '"fits": with 10 % of the peak in reserve; "tight": without.'
    )
    yield '"largest": the largest micro-batch that was compiled and fits. Times are bands, projected from flops and bytes.'
    if before := first.peak_before_rematerialisation:
        yield f"Without computing anything twice to save memory XLA would need {before} for the reference."
    yield from dict.fromkeys(note for plan in plans for note in plan.notes)
    yield from TENSORFLOW_NOTES


def plan_command(gpu: str = "T4", as_json: bool = False, preset: str = "reference", time_limit_s: float = 480) -> str:
    """What `altlas plan` prints; progress goes to stderr.

    Raises:
        ValueError: no such GPU or preset.
    """

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    remedies = remedy_table(preset, gpu, time_limit_s=time_limit_s, tell=tell)
    if as_json:
        return json.dumps([remedy.model_dump(mode="json") for remedy in remedies], indent=1)
    return format_remedies(remedies)
