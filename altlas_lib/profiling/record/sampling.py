"""What py-spy saw of the target, attached from outside: the functions on its stacks, and in what kind of code they were.

A class of time is what a stack's innermost native frames do. From the leaf outwards, the first frame that says something
decides. The C library and CPython's own object code say nothing: they allocate, copy and count references for whoever called
them. So a dict that the JSON scanner fills is parsing, and one that the user's line fills, without a native frame that says
more, is the interpreter. A wait is remembered on the way: it is waiting, unless an array library or a framework waits for its
own threads. Code without a file was compiled at run time: it is a kernel of the library that called it, natively or from
Python, else what a compiler of array code (Numba) made of a function.
"""

import contextlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ...paths import shipped_toml
from ...results import Origin, TimeClass
from ..run.targets import FunctionKey, ProfilingError
from .folding import OWN_LINES, Project

_TO_ATTACH_S = _TO_WRITE_S = 30.0
_TOO_FAR_BEHIND_S = 2.0
_ATTEMPTS = (200, True), (20, True), (200, False)  # samples a second, with native frames or without
_LARGEST_N_STACKS = 300


class Stack(NamedTuple):
    functions: tuple[FunctionKey, ...]  # Python frames, outermost call first
    time_class: TimeClass | None  # None: sampled without native frames
    waits_for_threads: bool  # or for processes that the target has started
    origin: Origin = "the calling thread"


@contextlib.contextmanager
def note_failure(what: str, notes: list[str]) -> Iterator[None]:
    try:
        yield
    except ProfilingError as error:
        notes.append(f"{what}: {error}")


# Classes of time: what a stack's innermost native frames do ------------------------------------------------------------------


class NativeFrame(NamedTuple):
    function: str
    file: str  # shared library or, with debugging information, source; may be empty, as of code compiled at run time


_TABLE = shipped_toml(__package__, "sampling.toml")
_PATTERNS = {name: re.compile(pattern, re.VERBOSE) for name, pattern in _TABLE.items() if isinstance(pattern, str)}
_SYSCALLS = {"x86_64": b"\x0f\x05", "aarch64": b"\x01\x00\x00\xd4"}  # the instruction that enters the kernel


def _compile_rule(entry: dict[str, str]) -> tuple[TimeClass, re.Pattern[str], re.Pattern[str]]:
    files = entry.get("files", _TABLE["cpython"])
    if "packages" in entry:
        files += rf"| /(?:{'|'.join(entry['packages'].split())})(?:\.libs)?[/.]"
    return entry["class"], re.compile(files, re.VERBOSE), re.compile(entry.get("functions", ""), re.VERBOSE)


_RULES = [*map(_compile_rule, _TABLE["rule"])]


def _is(what: str, text: str) -> bool:
    return bool(_PATTERNS[what].search(text))


def name_kernel_calls(frame: NativeFrame, pids: Collection[int]) -> NativeFrame:
    """Call it 'syscall' where the C library has no symbols and its code, in one of these processes, calls the kernel.

    A thread that sleeps does so in the kernel, so its innermost address is that after the instruction which enters it. Linux.
    """
    instruction = _SYSCALLS.get(platform.machine(), b"")
    if frame.function.startswith("0x") and _is("system", frame.file) and "vdso" not in frame.file:  # which reads clocks
        for pid in pids:  # those of a pool are forked, with the same addresses, and may have ended
            with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb") as memory:
                memory.seek(int(frame.function, 16) - len(instruction))
                if memory.read(len(instruction)) == instruction:
                    return frame._replace(function="syscall")
    return frame


def is_native(file: str) -> bool:
    """Whether a frame's file is that of compiled code: a script may have any other name."""
    return not file or _is("compiled", file) or _is("cpython", file)


def time_class(frames: Iterable[NativeFrame], python_file: str = "") -> TimeClass:
    """Of the native frames within the innermost Python frame, leaf first; without any it is the interpreter."""
    waits = is_unknown = is_compiled_at_run_time = False
    for frame in frames:
        if _is("system", frame.file):
            waits = waits or _is("wait", frame.function)
        elif found := _class_of(frame):
            return "waiting" if waits and found not in ("arrays", "framework") else found
        elif _is("cpython", frame.file):
            waits = waits or _is("locks_and_loops", frame.function)
        elif frame.file:
            is_unknown = True
        else:
            is_compiled_at_run_time = True
    if waits:
        return "waiting"
    if is_compiled_at_run_time and not is_unknown:
        return _class_of(NativeFrame("", python_file)) or "arrays"
    return "other native" if is_unknown else "interpreter"


def _class_of(frame: NativeFrame) -> TimeClass | None:
    holding = (kind for kind, files, functions in _RULES if files.search(frame.file) and functions.search(frame.function))
    return next(holding, None)


def waits_in_python(function: FunctionKey) -> bool:
    """Whether a function of the standard library, the innermost on a stack, waits."""
    return function.name.rpartition(".")[2] in _TABLE["waits_in_python"].get(Path(function.file).name, ())


def waits_for_threads(frames: Sequence[NativeFrame]) -> bool:
    """Whether a thread waits until another one does something: for a lock, for the interpreter, in an event loop."""
    return any(_is("locks_and_loops", frame.function) for frame in frames)


# py-spy ---------------------------------------------------------------------------------------------------------------------
# A process group of its own, by the system's name for it.
_APART = {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


class PySpy:
    """`py-spy record` of a process, which may end meanwhile, and of those that it starts, in a `with` block."""

    def __init__(self, pid: int, rate_hz: int, *, native: bool):
        program = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
        if program is None:
            raise ProfilingError("it is not installed; pip install py-spy")
        self._folder = tempfile.TemporaryDirectory(prefix="altlas-")
        self._recording, self._messages = (Path(self._folder.name, name) for name in ("recording.json", "messages.txt"))
        # Idle stacks too: waiting is part of the time, and a thread that waits for BLAS's own threads passes for idle.
        options = ["--format", "speedscope", "--full-filenames", "--function", "--idle", "--subprocesses"]
        options += [*(["--native"] if native else []), "--rate", str(rate_hz), "--pid", str(pid), "--output", self._recording]
        with open(self._messages, "wb") as messages:
            streams = {"stdin": subprocess.DEVNULL, "stdout": messages, "stderr": messages}
            # Ctrl-C reaches this process only, which ends it.
            self._process = subprocess.Popen([program, "record", *options], **streams, **_APART)

    def __enter__(self) -> "PySpy":
        """When it has attached itself."""
        stop = time.monotonic() + _TO_ATTACH_S
        while "Sampling process" not in self._said():
            if self._process.poll() is not None or time.monotonic() > stop:
                error = self._error()
                self.__exit__()
                raise ProfilingError(error)
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def is_behind(self) -> bool:
        """Whether it takes samples later than it should, one directly after the other: the process hardly runs then."""
        behind = re.findall(r"([\d.]+)s behind in sampling", self._said())
        return bool(behind) and float(behind[-1]) > _TOO_FAR_BEHIND_S

    def recording(self) -> dict:
        """End the sampling; what was recorded, in speedscope's format."""
        self._process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TO_WRITE_S)
        try:
            return json.loads(self._recording.read_bytes())
        except (OSError, ValueError):
            raise ProfilingError(self._error()) from None

    def _said(self) -> str:
        return self._messages.read_text(errors="replace")

    def _error(self) -> str:
        said = self._said().strip()
        return " ".join(said[max(said.find("Error:"), 0) :].split())[-1000:] or "it ended without a message"


def sample(pid: int, repeat: Callable[[], Iterator[Any]], notes: list[str]) -> Counter[Stack]:
    """Stacks of a process while it runs, with native frames where py-spy can follow them.

    Of the thread that called the target, below the call; of other threads, and processes that it started, whole.

    py-spy stops every thread for each sample. In a process with many threads and large libraries that takes longer than the
    time between samples, and then waits look longer than they are: so it takes fewer there, else those without native frames.

    Args:
        repeat: an iterator, as long as the target runs again and again.
        notes: get what py-spy could not do.

    Raises:
        ProfilingError: the target did not run, or py-spy saw nothing of it.
    """
    refused = []
    for rate_hz, native in _ATTEMPTS:
        try:
            stacks = _record(pid, repeat(), notes, rate_hz, native=native)
            notes += refused
            return stacks
        except ProfilingError as error:
            if not native or not psutil.pid_exists(pid):
                raise
            refused.append(f"py-spy with native frames, {rate_hz} times a second: {error}")


def _record(pid: int, running: Iterator, notes: list[str], rate_hz: int, *, native: bool) -> Counter[Stack]:
    is_behind, failures = False, []
    with PySpy(pid, rate_hz, native=native) as py_spy:
        with note_failure("not finished", failures):
            for _ in running:
                if is_behind := native and py_spy.is_behind():
                    break
        stacks = read_stacks(py_spy.recording(), pid, native=native)
    if is_behind:
        list(running)  # what is left of the job goes on without it
        raise ProfilingError("it cannot keep up")
    if not any(stack.origin == "the calling thread" for stack in stacks):
        raise ProfilingError("; ".join(failures) or "it saw nothing of the target; raise sampling_s")
    notes += failures
    return stacks


def read_stacks(recording: dict, pid: int, *, native: bool) -> Counter[Stack]:
    """From a speedscope file of a process and of those that it started."""
    frames = [
        FunctionKey("" if frame["file"] in (None, "?") else frame["file"], frame["line"] or 0, frame["name"])
        for frame in recording["shared"]["frames"]
    ]
    is_call = [frame.name == "sampled_call" and Path(frame.file).name == "child.py" for frame in frames]
    # Without a file: code compiled at run time, or py-spy's own outermost frame, 'process 12: python app.py'.
    is_native_frame = [is_native(frame.file) if native else not frame.file for frame in frames]
    pids = {pid, *map(int, re.findall(r"Process (\d+)", " ".join(each["name"] for each in recording["profiles"])))}
    native_frames = [name_kernel_calls(NativeFrame(frame.name, frame.file), pids) for frame in frames]
    stacks = Counter()
    for thread in recording["profiles"]:
        counts = Counter(map(tuple, thread["samples"]))
        is_calling = any(is_call[i] for indices in counts for i in indices)
        origin: Origin = "the calling thread" if is_calling else "another thread"
        origin = origin if f"Process {pid} " in thread["name"] else "another process"
        for indices, n in counts.items():
            depth = next((depth for depth, i in enumerate(indices) if is_call[i]), None)
            if depth is None and origin == "the calling thread":
                continue
            indices = indices[0 if depth is None else depth + 1 :]
            functions = tuple(frames[i] for i in indices if not is_native_frame[i])
            innermost = [native_frames[i] for i in takewhile(is_native_frame.__getitem__, reversed(indices))]
            python = functions[-1] if functions else FunctionKey("", 0, "")
            in_python = waits_in_python(python)
            kind = time_class(innermost, python.file) if native else None
            if kind == "interpreter" and in_python:
                kind = "waiting"
            waits = kind in ("waiting", None) and (in_python or waits_for_threads(innermost))
            stacks[Stack(functions, kind, waits, origin)] += n
    return stacks


# What the stacks say --------------------------------------------------------------------------------------------------------


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


def by_function(
    stacks: Counter[Stack], project: Project, root: FunctionKey
) -> tuple[dict[FunctionKey, Counter[TimeClass | None]], dict[FunctionKey, Counter[Origin]]]:
    """Samples of each of the user's functions, library code folded into it: its own by class, and those that hold it by origin.

    Its own are those where it is the innermost of the user's. A stack without any is the root's.
    """
    own, holding = defaultdict(Counter), defaultdict(Counter)
    for stack, n in stacks.items():
        users = [function for function in stack.functions if project.library(function) is None] or [root]
        own[users[-1]][stack.time_class] += n
        for function in dict.fromkeys(users):  # once per stack, also in recursion
            holding[function][stack.origin] += n
    return own, holding


def flame_stacks(stacks: Counter[Stack], project: Project, root: FunctionKey) -> dict[str, int]:
    """The most frequent stacks, 'outer;inner;[class]' -> samples: the user's functions, and the names of libraries below them.

    A function that calls itself is one frame. What called the user's code is the root's.
    """
    named = Counter()
    for stack, n in stacks.items():
        first = next((i for i, each in enumerate(stack.functions) if project.library(each) is None), -1)
        frames = [project.library(each) or display_name(each) for each in stack.functions[first:]]
        frames = [display_name(root), *(name for name in frames if name not in (OWN_LINES, "altlas"))]
        frames += [f"[{stack.time_class}]"] if stack.time_class else []
        named[";".join(name.replace(";", ",") for name, _ in groupby(frames))] += n
    return dict(named.most_common(_LARGEST_N_STACKS))


def display_name(function: FunctionKey) -> str:
    return function.name.replace(".<locals>", "")
