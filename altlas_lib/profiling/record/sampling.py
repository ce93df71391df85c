"""Which functions were on the stacks that py-spy took of the target, and in what kind of code they were."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from ...results import TimeClass
from ..run.process import Child, Request
from ..run.runnable import FunctionKey, ProfilingError
from .folding import OWN_LINES, Project
from .native import NativeFrame, is_native, time_class, waits_for_threads
from .py_spy import FellBehind, PySpy

_FEWER, _LONGEST = 10, 5  # times fewer samples a second, for at most so many times as long, where py-spy cannot keep up
_LARGEST_N_STACKS = 300
_WAITS_IN_PYTHON = {"threading.py": ("wait", "join", "acquire", "_wait_for_tstate_lock"), "selectors.py": ("select",)}


class Stack(NamedTuple):
    functions: tuple[FunctionKey, ...]  # Python frames, outermost call first
    time_class: TimeClass | None  # None: sampled without native frames
    waits_for_threads: bool


@dataclass
class FunctionSamples:
    """The stacks that a user's function is on; and those where it is the innermost of the user's, by class: its own."""

    own: Counter[TimeClass | None] = field(default_factory=Counter)
    n_on_stack: int = 0


@dataclass(frozen=True)
class Samples:
    """Stacks of the thread that called the target, below the call; and of the other threads, whole."""

    calling: Counter[Stack]
    others: Counter[Stack] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of each run of the target, while it was sampled
    notes: list[str] = field(default_factory=list)
    classified: "Samples | None" = None  # others, taken for the classes of time only, where these have none

    def counted(self, project: Project) -> Counter[Stack]:
        """The stacks that shares are taken of.

        Those of another thread count that hold a function of the user, unless it waits for other threads in its turn. Those of
        the calling thread count, except that of its own waits for other threads (at a lock, in an event loop without work)
        as many are left out as the others' stacks are: while it waited for them, the time was theirs.
        """
        others = Counter(
            {
                stack: n
                for stack, n in self.others.items()
                if not stack.waits_for_threads and any(project.library(function) is None for function in stack.functions)
            }
        )
        n_waits = sum(n for stack, n in self.calling.items() if stack.waits_for_threads)
        kept = max(1 - others.total() / n_waits, 0) if n_waits else 1
        calling = Counter({stack: round(n * kept) if stack.waits_for_threads else n for stack, n in self.calling.items()})
        return +(calling + others)


def by_function(stacks: Counter[Stack], project: Project, root: FunctionKey) -> dict[FunctionKey, FunctionSamples]:
    """Samples of each of the user's functions, library code folded into it. A stack without any is the root's."""
    samples: dict[FunctionKey, FunctionSamples] = {}
    for stack, n in stacks.items():
        users = [function for function in stack.functions if project.library(function) is None] or [root]
        for function in dict.fromkeys(users):  # once per stack, also in recursion
            samples.setdefault(function, FunctionSamples()).n_on_stack += n
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


def sample(request: Request, *, rate_hz: int, time_limit_s: float) -> Samples:
    """Stacks of the target while a child process repeats it for `request.sample_for_s` seconds.

    py-spy attaches once the target is warm, so that it reads the symbols of all libraries once.

    Raises:
        ProfilingError: the target did not run, or py-spy saw nothing of it.
    """
    stop = time.monotonic() + time_limit_s

    def record(way: _Way) -> Samples:
        with Child(request.model_copy(update={"sample_for_s": way.for_s})) as child:
            while not child.is_ready() and not child.has_ended() and time.monotonic() < stop:
                time.sleep(0.01)
            if not child.is_ready():
                child.wait(stop - time.monotonic())
            with PySpy(child.pid, way.rate_hz, way.native) as py_spy:
                child.go()
                left_s = stop - time.monotonic()
                try:
                    answer = child.wait(min(left_s, _LONGEST * way.for_s) if way.is_slow else left_s, lambda: way.check(py_spy))
                    seconds, notes = answer.seconds, []
                except ProfilingError as error:
                    seconds, notes = [], [f"not finished: {error}"]
                samples = _samples(py_spy.recording(), None, way.native)
        if not samples.calling:
            raise ProfilingError(notes[0] if notes else f"it saw nothing of the target at {way.rate_hz} Hz; raise sampling_s")
        return Samples(samples.calling, samples.others, seconds, notes)

    return _native_if_possible(record, rate_hz, request.sample_for_s)


def sample_process(pid: int, *, rate_hz: int, for_s: float) -> Samples:
    """Stacks of a running Python process; its main thread takes the place of the one that calls the target.

    Raises:
        ProfilingError: there is none, py-spy may not look into it, or it is no Python process.
    """

    def record(way: _Way) -> Samples:
        with PySpy(pid, way.rate_hz, way.native) as py_spy:
            stop = time.monotonic() + way.for_s
            while time.monotonic() < stop and py_spy.is_recording():
                way.check(py_spy)
                time.sleep(0.02)
            samples = _samples(py_spy.recording(), pid, way.native)
        if not samples.calling and not samples.others:
            raise ProfilingError(f"it saw no stack at {way.rate_hz} Hz in {way.for_s:g} s; sample for longer")
        return samples

    return _native_if_possible(record, rate_hz, for_s)


@dataclass(frozen=True)
class _Way:
    """How py-spy is used."""

    rate_hz: int
    for_s: float
    native: bool
    is_slow: bool = False  # it may be late, however slowly the process runs then

    def check(self, py_spy: PySpy) -> None:
        if self.native and not self.is_slow:
            py_spy.check()


def _native_if_possible(record: Callable[[_Way], Samples], rate_hz: int, for_s: float) -> Samples:
    """With native frames where py-spy can follow them.

    It stops every thread for each sample. In a process with many threads and large libraries that takes longer than the time
    between samples, and then waits look longer than they are. So the shares come from samples without native frames there, and
    only the classes of each function's time from fewer samples with them.
    """
    without = _Way(rate_hz, for_s, native=False)
    try:
        return record(_Way(rate_hz, for_s, native=True))
    except FellBehind:
        samples = record(without)
        slower_hz = max(rate_hz // _FEWER, 1)
        try:
            classified = record(_Way(slower_hz, for_s, native=True, is_slow=True))
        except ProfilingError as error:
            samples.notes.append(f"no classes of time: {error}")
            return samples
        samples.notes.append(
            f"classes of time are from {classified.calling.total()} samples of their own, {slower_hz} a second: "
            f"py-spy cannot follow native frames here {rate_hz} times a second"
        )
        return replace(samples, classified=classified)
    except ProfilingError as error:
        samples = record(without)
        samples.notes.append(f"no classes of time: py-spy cannot follow native frames here ({error})")
        return samples


def _samples(recording: dict, main_thread: int | None, native: bool) -> Samples:
    """From a speedscope file: the calling thread is the one below `child.sampled_call`, else that of the process' number."""
    frames = [
        FunctionKey("" if frame["file"] in (None, "?") else frame["file"], frame["line"] or 0, frame["name"])
        for frame in recording["shared"]["frames"]
    ]
    marker = {i for i, frame in enumerate(frames) if frame.name == "sampled_call" and Path(frame.file).name == "child.py"}
    calling, others = Counter(), Counter()
    for thread in recording["profiles"]:
        indices = [tuple(each) for each in thread["samples"]]
        if main_thread is not None:
            is_main = f"Thread {main_thread} " in thread["name"] or "MainThread" in thread["name"]
            (calling if is_main else others).update(indices)
        elif any(not marker.isdisjoint(each) for each in indices):
            depths = ((each, next((depth for depth, i in enumerate(each) if i in marker), None)) for each in indices)
            calling.update(each[depth + 1 :] for each, depth in depths if depth is not None)
        else:
            others.update(indices)
    is_native_frame = [native and is_native(frame.file) for frame in frames]
    return Samples(*(_stacks(counts, frames, is_native_frame, native) for counts in (calling, others)))


def _stacks(counts: Counter[tuple[int, ...]], frames: list[FunctionKey], is_native: list[bool], native: bool) -> Counter[Stack]:
    stacks = Counter()
    for indices, n in counts.items():
        functions = tuple(frames[i] for i in indices if not is_native[i])
        innermost = [NativeFrame(frames[i].name, frames[i].file) for i in takewhile(is_native.__getitem__, reversed(indices))]
        kind = time_class(innermost) if native else None
        waits = kind in ("waiting", None) and (_waits_in_python(functions) or waits_for_threads(innermost))
        stacks[Stack(functions, kind, waits)] += n
    return stacks


def _waits_in_python(functions: Sequence[FunctionKey]) -> bool:
    return bool(functions) and functions[-1].name.rpartition(".")[2] in _WAITS_IN_PYTHON.get(Path(functions[-1].file).name, ())
