"""The ways to make the reference training fit a GPU, each alone and some together, beside what the plan claims of them."""

import contextlib
import json
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pydantic import JsonValue

from ...devices import GpuSpec, find_gpu, memory_available_bytes
from ...results import MemoryPlan, Remedy, format_value
from ..model.config import ModelConfig, find_preset
from .compiler import PlanError
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
    allows. What the time limit cuts off is projected from the step's graph, and says so; what was compiled is kept, so that
    a second call goes on there.

    Args:
        model: the reference; where it is another configuration, options 1 and 2, which are presets, are left out.
        n_compiles: at most for the largest batch of a row, its plan included.
        time_limit_s: for compiling; what it cuts off takes 3 s a row more.
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
    stop, interrupted, n_done = threading.Event(), threading.Event(), 0

    def ask(question: Callable, row: _Row, **options) -> MemoryPlan | None:
        """The plan that `question` finds; None after the time limit."""
        names = ("batch_size", "gradient_accumulation_steps", "dtype_policy", "recompute", "memory_efficient_attention")
        options |= {name: getattr(row, name) for name in names} | {"use_cache": use_cache}
        try:
            return question(row.preset or config, gpu, **options)
        except PlanError:
            if not stop.is_set():
                raise
            return None

    def tell_of(row: _Row, what: str) -> None:
        nonlocal n_done
        n_done += 1
        tell(f"[{n_done}/{len(rows) + len(searched)}] {row.name}: {what}")

    def plan(row: _Row) -> Remedy:
        found = problem = None
        try:
            found = ask(plan_memory, row, stop=stop)
            if found is None and interrupted.is_set():
                return Remedy(name=row.name, plan=None, claimed=row.claimed, problem="interrupted")
            if found is None:
                found = ask(plan_memory, row, compiled=False, stop=interrupted)
                note = f"what was not compiled within {time_limit_s:g} s is projected: call again, what is compiled is kept"
                found = found and found.model_copy(update={"notes": [*found.notes, note]})
        except PlanError as error:
            problem = str(error)
        tell_of(row, problem or f"{found.peak}, {found.verdict}")
        return Remedy(name=row.name, plan=found, claimed=row.claimed, problem=problem)

    def search(row: _Row, remedy: Remedy) -> Remedy:
        plan = remedy.plan
        if plan is None or row not in searched or (stop.is_set() and plan.peak.basis == "projected"):
            return remedy
        size, problem = (row.batch_size if plan.verdict == "fits" else None), None
        try:
            if row is rows[0]:
                plan = ask(plan_memory, row, before_rematerialisation=True, stop=stop) or plan
            if found := ask(largest_batch, row, n_compiles=n_compiles, stop=stop):
                size = found.configuration["batch_size"]
        except PlanError as error:
            problem = f"largest batch: {error}"
        tell_of(row, problem or f"largest batch {size or 'below any compiled'}")
        return remedy.model_copy(update={"plan": plan, "largest_batch": size, "problem": problem})

    with _workers(stop, interrupted, time_limit_s) as workers:
        remedies = list(workers.map(plan, rows))
        return list(workers.map(search, rows, remedies))


@contextlib.contextmanager
def _workers(stop: threading.Event, interrupted: threading.Event, time_limit_s: float) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for compiling processes, which end at the time limit and on an interrupt."""
    workers = ThreadPoolExecutor(max(1, min(N_PARALLEL, memory_available_bytes() // COMPILE_BYTES)))
    timer = threading.Timer(time_limit_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield workers
    except BaseException:
        interrupted.set()
        raise
    finally:
        timer.cancel()
        stop.set()
        workers.shutdown(cancel_futures=True)


# The terminal --------------------------------------------------------------------------------------------------------


def remedy_rows(remedies: Sequence[Remedy]) -> list[dict[str, str]]:
    """A row of a table for each remedy."""
    first = remedies[0].plan if remedies else None
    rows = []
    for remedy in remedies:
        plan = remedy.plan
        rows.append(
            {
                "remedy": remedy.name,
                "batch": _batch(plan) if plan else "-",
                "peak": str(plan.peak) if plan else "-",
                "verdict": plan.verdict if plan else "not planned",
                "largest": str(remedy.largest_batch or "-"),
                "time of one batch": str(plan.step_time or "-") if plan else "-",
                "per sample": _time_per_sample(plan, first) if plan and first else "-",
                "plan's claim": remedy.claimed or "",
            }
        )
    return rows


def _time_per_sample(plan: MemoryPlan, first: MemoryPlan) -> str:
    """Beside the first row: both bands rest on the same shares of the data sheet's rates, so their ratio is narrower."""
    if not plan.step_time or not first.step_time:
        return "-"
    sizes = first.configuration["batch_size"] / plan.configuration["batch_size"]
    low, high = sorted(sizes * getattr(plan.step_time, end) / getattr(first.step_time, end) for end in ("low", "high"))
    return f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}x"


def format_remedies(remedies: list[Remedy]) -> str:
    """The table for a terminal of 120 columns, and how to read it."""
    rows = remedy_rows(remedies)
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0] if name != "per sample"}
    header = "  ".join(f"{name:{width}}" for name, width in widths.items())
    lines = [header, "-" * len(header)]
    lines += ["  ".join(f"{row[name]:{width}}" for name, width in widths.items()).rstrip() for row in rows]
    lines += [f"{remedy.name}: {remedy.problem}" for remedy in remedies if remedy.problem]
    plans = [remedy.plan for remedy in remedies if remedy.plan]
    explained = [textwrap.fill(line, 120, subsequent_indent="  ") for line in (explanation(plans) if plans else ())]
    return "\n".join([*lines, "", *explained])


def _batch(plan: MemoryPlan) -> str:
    batch_size, steps = (plan.configuration[name] for name in ("batch_size", "gradient_accumulation_steps"))
    return f"{batch_size} x {steps}" if steps > 1 else str(batch_size)


def explanation(plans: list[MemoryPlan]) -> Iterator[str]:
    """How to read a table of these plans, sentence by sentence."""
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


def format_plan(plan: MemoryPlan) -> str:
    """One plan for a terminal of 120 columns."""
    configuration = plan.configuration
    rows = [
        (f"batch of {_batch(plan)}, {configuration['dtype_policy']}, {configuration['optimizer']}", plan.verdict),
        ("peak of one training step", f"{plan.peak} ({plan.peak.basis} for {plan.gpu})"),
        *((f"  {part}", format_value(size, "bytes")) for part, size in plan.bytes_by_part.items() if size),
        ("beside it (CUDA's context, batches)", format_value(plan.overhead_bytes, "bytes")),
        ("CUDA offers", format_value(plan.usable_bytes, "bytes")),
        ("time of one micro-batch", f"{plan.step_time} (projected)" if plan.step_time else "not projected"),
        ("parameters", f"{plan.n_parameters:,}"),
    ]
    notes = [textwrap.fill(note, 120, subsequent_indent="  ") for note in plan.notes]
    return "\n".join([*(f"{name:45} {value}" for name, value in rows), "", *notes])


def plan_command(
    model: str = "reference",
    gpu: str = "T4",
    *,
    batch_size: int | None = None,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
    as_json: bool = False,
    time_limit_s: float = 480,
) -> str:
    """What `altlas plan` prints: of a preset the remedies, else or with a batch size one plan; progress goes to stderr.

    Raises:
        ValueError: no such GPU or preset.
        PlanError: the model cannot be planned.
    """

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    is_preset = ":" not in model and not model.endswith(".keras")
    if is_preset and batch_size is None:
        remedies = remedy_table(model, gpu, time_limit_s=time_limit_s, tell=tell)
        return _json([each.model_dump(mode="json") for each in remedies]) if as_json else format_remedies(remedies)
    if batch_size is None:
        tell(f"compiling {model} for {gpu}, batch by batch, for the largest that fits")
        plan = largest_batch(model, gpu, input_shapes=input_shapes, time_limit_s=time_limit_s)
        if plan is None:
            raise PlanError(f"no batch of {model} that was compiled fits {gpu}; see one batch's need by --batch-size 1")
    else:
        tell(f"compiling one training step of {model} for {gpu}")
        plan = plan_memory(model, gpu, batch_size=batch_size, input_shapes=input_shapes, time_limit_s=time_limit_s)
    return _json(plan.model_dump(mode="json")) if as_json else format_plan(plan)


def _json(value: JsonValue) -> str:
    return json.dumps(value, indent=1)
