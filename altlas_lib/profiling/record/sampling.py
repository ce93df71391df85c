"""Which functions were on the stacks that py-spy took of the target, and in what kind of code they were."""

import contextlib
import functools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ...results import Origin, TimeClass
from ..run.runnable import FunctionKey, ProfilingError
from .folding import OWN_LINES, Project
from .native import CodeMaps, NativeFrame, is_native, time_class, waits_for_threads, waits_in_python
from .py_spy import PySpy

Repeat = Callable[[float], Iterator[Any]]  # so many seconds -> an iterator, as long as the target runs again and again

_FEWER, _LONGEST = 10, 2  # times fewer samples a second, for at most so many times as long, where py-spy cannot keep up
_LARGEST_N_STACKS = 300
_PROCESS = re.compile(r"process \d+:")
_WAITS_IN_PYTHON = {
    "threading.py": ("wait", "join", "acquire", "_wait_for_tstate_lock"),
    "selectors.py": ("select",),
    "connection.py": ("_recv", "wait"),  # of multiprocessing
    "popen_fork.py": ("poll",),
    "parallel.py": ("_retrieve", "retrieve"),  # of joblib, which sleeps until its workers are done
}


class Stack(NamedTuple):
    functions: tuple[FunctionKey, ...]  # Python frames, outermost call first
    time_class: TimeClass | None  # None: sampled without native frames
    waits_for_threads: bool  # or for processes that the target has started
    origin: Origin = "the calling thread"


@dataclass
class FunctionSamples:
    """The stacks that a user's function is on; and those where it is the innermost of the user's, by class: its own."""

    own: Counter[TimeClass | None] = field(default_factory=Counter)
    n_on_stack: int = 0
    origins: Counter[Origin] = field(default_factory=Counter)


def counted(stacks: Counter[Stack], project: Project) -> Counter[Stack]:
    """The stacks that shares are taken of.

    Those of another thread count that hold a function of the user, unless it waits for other threads in its turn. Those of
    the calling thread count, except that of its own waits for other threads (at a lock, in an event loop without work) as many
    are left out as the others' stacks are: while it waited for them, the time was theirs.
    """
    calling = Counter({stack: n for stack, n in stacks.items() if stack.origin == "the calling thread"})
    others = Counter()
    for stack in stacks.keys() - calling.keys():
        if not stack.waits_for_threads and any(project.library(function) is None for function in stack.functions):
            others[stack] = stacks[stack]
    n_waits = sum(n for stack, n in calling.items() if stack.waits_for_threads)
    for stack in calling:
        if stack.waits_for_threads:
            calling[stack] = round(calling[stack] * max(1 - others.total() / n_waits, 0))
    return +(calling + others)


def by_function(stacks: Counter[Stack], project: Project, root: FunctionKey) -> dict[FunctionKey, FunctionSamples]:
    """Samples of each of the user's functions, library code folded into it. A stack without any is the root's."""
    samples: dict[FunctionKey, FunctionSamples] = {}
    for stack, n in stacks.items():
        users = [function for function in stack.functions if project.library(function) is None] or [root]
        for function in dict.fromkeys(users):  # once per stack, also in recursion
            of_function = samples.setdefault(function, FunctionSamples())
            of_function.n_on_stack += n
            of_function.origins[stack.origin] += n
        samples[users[-1]].own[stack.time_class] += n
    return samples


def flame_stacks(stacks: Counter[Stack], project: Project, root: FunctionKey) -> dict[str, int]:
    """The most frequent stacks, 'outer;inner;[class]' -> samples: the user's functions, and the libraries that they enter."""
    named = Counter()
    for stack, n in stacks.items():
        named[";".join(name.replace(";", ",") for name in _names(stack, project, root))] += n
    return dict(named.most_common(_LARGEST_N_STACKS))


def _names(stack: Stack, project: Project, root: FunctionKey) -> Iterator[str]:
    frames = [(function, project.library(function)) for function in stack.functions]
    frames = [(function, library) for function, library in frames if library not in (OWN_LINES, "altlas")]
    first = next((depth for depth, (_, library) in enumerate(frames) if library is None), len(frames) - 1)  # else the innermost
    yield display_name(root)
    in_library = False
    for depth, (function, library) in enumerate(frames[max(first, 0) :]):
        if (function != root or depth) and not (library and in_library):  # of a library the function that enters it, by name
            yield library or display_name(function)
        in_library = library is not None
    if stack.time_class:
        yield f"[{stack.time_class}]"


def display_name(function: FunctionKey) -> str:
    return function.name.replace(".<locals>", "")


def sample(
    pid: int, repeat: Repeat, notes: list[str], *, rate_hz: int, for_s: float, below_call: bool = True
) -> tuple[Counter[Stack], Counter[Stack]]:
    """Stacks of a process while it runs, with native frames where py-spy can follow them; and those to take classes of.

    Of the thread that called the target, below the call; of other threads, and processes that it started, whole.

    py-spy stops every thread for each sample. In a process with many threads and large libraries that takes longer than the
    time between samples, and then waits look longer than they are. So the shares come from samples without native frames
    there, and only the classes of each function's time from fewer samples with them.

    Args:
        notes: get what py-spy could not do.
        below_call: of the thread that called the target count the frames below `child.sampled_call`; else the main thread
            takes its place.

    Raises:
        ProfilingError: the target did not run, or py-spy saw nothing of it.
    """
    record = functools.partial(_record, pid, notes=notes, below_call=below_call)
    try:
        if stacks := record(repeat(for_s), PySpy(rate_hz, native=True)):
            return stacks, stacks
    except ProfilingError as error:
        if not psutil.pid_exists(pid):
            raise
        stacks = record(repeat(for_s), PySpy(rate_hz, native=False))
        notes.append(f"no classes of time: py-spy cannot follow native frames here ({error})")
        return stacks, Counter()
    stacks, classified = record(repeat(for_s), PySpy(rate_hz, native=False)), Counter()
    with note_failure("no classes of time", notes):
        slower = PySpy(max(rate_hz // _FEWER, 1), native=True)
        classified = record(repeat(for_s), slower, longest_s=_LONGEST * for_s)
        why = f"py-spy cannot follow native frames here {rate_hz} times a second"
        notes.append(f"classes of time are from {classified.total()} samples of their own, fewer a second: {why}")
    return stacks, classified


def _record(
    pid: int, running: Iterator, py_spy: PySpy, notes: list[str], *, below_call: bool, longest_s: float = math.inf
) -> Counter[Stack] | None:
    """None: py-spy cannot keep up. With native frames it must, but for a record that may end after `longest_s`."""
    is_behind, failures, stop = False, [], time.monotonic() + longest_s
    with py_spy:
        py_spy.attach(pid)
        with note_failure("not finished", failures):
            for _ in running:
                is_behind = py_spy.native and longest_s == math.inf and py_spy.is_behind()
                if is_behind or time.monotonic() > stop:
                    break
        stacks = None if is_behind else _stacks(py_spy.recording(), pid, py_spy.native, below_call)
    with note_failure("not finished", failures):
        list(running)  # what is left of the job goes on without it
    if stacks is not None and not any(stack.origin == "the calling thread" for stack in stacks):
        raise ProfilingError("; ".join(failures) or "it saw nothing of the target; raise sampling_s")
    notes += failures
    return stacks


def sample_process(pid: int, notes: list[str], *, rate_hz: int, for_s: float) -> tuple[Counter[Stack], Counter[Stack]]:
    """Stacks of a running Python process; its main thread takes the place of the one that calls the target.

    Raises:
        ProfilingError: there is none, py-spy may not look into it, or it is no Python process.
    """

    def let_run(for_s: float) -> Iterator[None]:
        stop = time.monotonic() + for_s
        while time.monotonic() < stop and psutil.pid_exists(pid):
            time.sleep(0.02)
            yield

    return sample(pid, let_run, notes, rate_hz=rate_hz, for_s=for_s, below_call=False)


@contextlib.contextmanager
def note_failure(what: str, notes: list[str]) -> Iterator[None]:
    try:
        yield
    except ProfilingError as error:
        notes.append(f"{what}: {error}")


def _stacks(recording: dict, pid: int, native: bool, below_call: bool) -> Counter[Stack]:
    """From a speedscope file of a process and of those that it started."""
    frames = [
        FunctionKey("" if frame["file"] in (None, "?") else frame["file"], frame["line"] or 0, frame["name"])
        for frame in recording["shared"]["frames"]
    ]
    # py-spy's own, the outermost: 'process 12: python app.py'
    is_process = [not frame.file and bool(re.match(r"process \d+:", frame.name)) for frame in frames]
    is_call = [frame.name == "sampled_call" and Path(frame.file).name == "child.py" for frame in frames]
    is_native_frame = [native and is_native(frame.file) for frame in frames]
    maps = CodeMaps({pid, *map(int, re.findall(r"Process (\d+)", " ".join(each["name"] for each in recording["profiles"])))})
    native_frames = [NativeFrame(maps.name_of(frame.name, frame.file), frame.file) for frame in frames]
    stacks = Counter()
    for thread in recording["profiles"]:
        counts = Counter(map(tuple, thread["samples"]))
        is_main = f"Thread {pid} " in thread["name"] or "MainThread" in thread["name"]
        is_calling = any(is_call[i] for indices in counts for i in indices) if below_call else is_main
        here: Origin = "the calling thread" if is_calling else "another thread"
        origin: Origin = here if f"Process {pid} " in thread["name"] else "another process"
        for indices, n in counts.items():
            depth = next((depth for depth, i in enumerate(indices) if is_call[i]), None)
            if depth is None and below_call and origin == "the calling thread":
                continue
            indices = [i for i in indices[0 if depth is None else depth + 1 :] if not is_process[i]]
            functions = tuple(frames[i] for i in indices if not is_native_frame[i])
            innermost = [native_frames[i] for i in takewhile(is_native_frame.__getitem__, reversed(indices))]
            kind = time_class(innermost, functions[-1].file if functions else "") if native else None
            in_python = bool(functions) and waits_in_python(functions[-1].file, functions[-1].name.rpartition(".")[2])
            if kind == "interpreter" and in_python:
                kind = "waiting"
            waits = kind in ("waiting", None) and (in_python or waits_for_threads(innermost))
            stacks[Stack(functions, kind, waits, origin)] += n
    return stacks
