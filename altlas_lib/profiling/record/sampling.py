"""Which functions were on the stacks that py-spy took of the target, and in what kind of code they were."""

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import psutil

from ...results import Origin, TimeClass
from ..run.runnable import FunctionKey, ProfilingError
from .folding import OWN_LINES, Project
from .native import CodeMaps, NativeFrame, is_native, time_class, waits_for_threads
from .py_spy import FellBehind, PySpy

# (for so many seconds, also if a sampler slows it down) -> the number of a process that waits for a sampler, then None as long
# as the target runs in it again and again.
Repeat = Callable[[float, bool], Iterator[int | None]]

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


@dataclass(frozen=True)
class Samples:
    """Stacks of the thread that called the target, below the call; of other threads, and processes that it started, whole."""

    stacks: Counter[Stack]
    notes: list[str] = field(default_factory=list)
    classified: "Samples | None" = None  # others, taken for the classes of time only, where these have none

    def counted(self, project: Project) -> Counter[Stack]:
        """The stacks that shares are taken of.

        Those of another thread count that hold a function of the user, unless it waits for other threads in its turn. Those of
        the calling thread count, except that of its own waits for other threads (at a lock, in an event loop without work)
        as many are left out as the others' stacks are: while it waited for them, the time was theirs.
        """
        calling, others = Counter(), Counter()
        for stack, n in self.stacks.items():
            if stack.origin == "the calling thread":
                calling[stack] = n
            elif not stack.waits_for_threads and any(project.library(function) is None for function in stack.functions):
                others[stack] = n
        n_waits = sum(n for stack, n in calling.items() if stack.waits_for_threads)
        kept = max(1 - others.total() / n_waits, 0) if n_waits else 1
        return +(others + Counter({stack: round(n * kept) if stack.waits_for_threads else n for stack, n in calling.items()}))


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


def _names(stack: Stack, project: Project, root: FunctionKey) -> list[str]:
    frames = [(function, project.library(function)) for function in stack.functions]
    frames = [(function, library) for function, library in frames if library not in (OWN_LINES, "altlas")]
    first = next((depth for depth, (_, library) in enumerate(frames) if library is None), None)
    names = [display_name(root)]
    if first is None:  # library code only: the innermost says most
        names += [library for _, library in frames[-1:]]
    else:
        entered = False  # a library, from the user's function before
        for function, library in frames[first + (frames[first][0] == root) :]:
            if library is None or not entered:
                names.append(library or display_name(function))
            entered = library is not None
    return [*names, f"[{stack.time_class}]"] if stack.time_class else names


def display_name(function: FunctionKey) -> str:
    return function.name.replace(".<locals>", "")


def sample(repeat: Repeat, *, rate_hz: int, for_s: float, below_call: bool = True) -> Samples:
    """Stacks of a process while it runs, with native frames where py-spy can follow them.

    py-spy stops every thread for each sample. In a process with many threads and large libraries that takes longer than the
    time between samples, and then waits look longer than they are. So the shares come from samples without native frames
    there, and only the classes of each function's time from fewer samples with them.

    Args:
        below_call: of the thread that called the target count the frames below `child.sampled_call`; else the main thread
            takes its place.

    Raises:
        ProfilingError: the target did not run, or py-spy saw nothing of it.
    """

    def record(at_hz: int, native: bool, is_slow: bool) -> Samples:
        notes, stop = [], time.monotonic() + _LONGEST * for_s
        py_spy = PySpy(at_hz, native)
        with _to_the_end(repeat(for_s, is_slow)) as running, py_spy:
            pid = next(filter(None, running))
            py_spy.attach(pid)
            with _noting("not finished", notes):
                for _ in running:
                    if native and not is_slow:
                        py_spy.check()
                    elif native and time.monotonic() > stop:
                        break
            stacks = _stacks(py_spy.recording(), pid, native, below_call)
        if not any(stack.origin == "the calling thread" for stack in stacks):
            raise ProfilingError(notes[0] if notes else f"it saw nothing of the target at {at_hz} Hz; raise sampling_s")
        return Samples(stacks, notes)

    try:
        return record(rate_hz, native=True, is_slow=False)
    except FellBehind:
        reason, slower_hz = f"{rate_hz} times a second", max(rate_hz // _FEWER, 1)
    except ProfilingError as error:
        reason, slower_hz = f"({error})", 0
    samples = record(rate_hz, native=False, is_slow=True)
    if not slower_hz:
        samples.notes.append(f"no classes of time: py-spy cannot follow native frames here {reason}")
        return samples
    with _noting("no classes of time", samples.notes):
        classified = record(slower_hz, native=True, is_slow=True)
        samples.notes.append(
            f"classes of time are from {classified.stacks.total()} samples of their own, {slower_hz} a second: "
            f"py-spy cannot follow native frames here {reason}"
        )
        return replace(samples, classified=classified)
    return samples


def sample_process(pid: int, *, rate_hz: int, for_s: float) -> Samples:
    """Stacks of a running Python process; its main thread takes the place of the one that calls the target.

    Raises:
        ProfilingError: there is none, py-spy may not look into it, or it is no Python process.
    """

    def let_run(for_s: float, is_slow: bool) -> Iterator[int | None]:
        yield pid
        stop = time.monotonic() + for_s
        while time.monotonic() < stop and psutil.pid_exists(pid):
            time.sleep(0.02)
            yield None

    return sample(let_run, rate_hz=rate_hz, for_s=for_s, below_call=False)


@contextlib.contextmanager
def _to_the_end(running: Iterator[int | None]) -> Iterator[Iterator[int | None]]:
    """What the sampler leaves of a job goes on without it."""
    try:
        yield running
    except (FellBehind, ProfilingError):
        with _noting("", []):
            list(running)
        raise
    with _noting("", []):
        list(running)


@contextlib.contextmanager
def _noting(what: str, notes: list[str]) -> Iterator[None]:
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
    is_call = [frame.name == "sampled_call" and Path(frame.file).name == "child.py" for frame in frames]
    is_process = [not frame.file and bool(_PROCESS.match(frame.name)) for frame in frames]  # py-spy's own, the outermost
    is_native_frame = [native and is_native(frame.file) for frame in frames]
    maps = CodeMaps({pid, *map(int, re.findall(r"Process (\d+)", " ".join(each["name"] for each in recording["profiles"])))})
    native_frames = [NativeFrame(maps.name_of(frame.name, frame.file), frame.file) for frame in frames]
    stacks = Counter()
    for thread in recording["profiles"]:
        counts = Counter(tuple(each) for each in thread["samples"])
        origin: Origin = "another thread" if f"Process {pid} " in thread["name"] else "another process"
        if below_call:
            is_calling = any(is_call[i] for indices in counts for i in indices)
        else:
            is_calling = f"Thread {pid} " in thread["name"] or "MainThread" in thread["name"]
        if origin == "another thread" and is_calling:
            origin = "the calling thread"
        for indices, n in counts.items():
            depth = next((depth for depth, i in enumerate(indices) if is_call[i]), None)
            if depth is None and origin == "the calling thread" and below_call:
                continue
            indices = [i for i in indices[0 if depth is None else depth + 1 :] if not is_process[i]]
            functions = tuple(frames[i] for i in indices if not is_native_frame[i])
            innermost = [native_frames[i] for i in takewhile(is_native_frame.__getitem__, reversed(indices))]
            kind = time_class(innermost, functions[-1].file if functions else "") if native else None
            in_python = _waits_in_python(functions)
            if kind == "interpreter" and in_python:
                kind = "waiting"
            waits = kind in ("waiting", None) and (in_python or waits_for_threads(innermost))
            stacks[Stack(functions, kind, waits, origin)] += n
    return stacks


def _waits_in_python(functions: Sequence[FunctionKey]) -> bool:
    return bool(functions) and functions[-1].name.rpartition(".")[2] in _WAITS_IN_PYTHON.get(Path(functions[-1].file).name, ())
