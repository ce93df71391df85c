"""What a stack's innermost native frames do: the class of its time.

From the leaf outwards, the first frame that says something decides. The C library and CPython's own object code say nothing:
they allocate, copy and count references for whoever called them. So a dict that the JSON scanner fills is parsing, and one that
the user's line fills, without a native frame that says more, is the interpreter. A wait is remembered on the way: it is
waiting, unless an array library or a framework waits for its own threads. Code without a file was compiled at run time: it is a
kernel of the library that called it, natively or from Python, else what a compiler of array code (Numba) made of a function.
"""

import contextlib
import platform
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...results import TimeClass
from ..run.targets import FunctionKey


class NativeFrame(NamedTuple):
    function: str
    file: str  # shared library or, with debugging information, source; may be empty, as of code compiled at run time


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
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
