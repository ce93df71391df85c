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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...results import TimeClass


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


class CodeMaps:
    """Where code lies in the memory of processes: tells a call of the kernel where the C library has no symbols.

    A thread that sleeps does so in the kernel, so its innermost address is that after the instruction which enters it. Linux.
    """

    def __init__(self, pids: Iterable[int]):
        self._maps = []
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended; what it was forked from has the same addresses
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                    extent, mode, offset, _, _, *file = line.split(maxsplit=5)
                    if "x" in mode and file and _is("system", file[0]):
                        start, end = (int(address, 16) for address in extent.split("-"))
                        self._maps.append((range(start, end), int(offset, 16) - start, *file, f"/proc/{pid}/root{file[0]}"))

    def name_of(self, function: str, file: str) -> str:
        """'syscall' for a nameless address in the C library behind a call of the kernel; else `function` as it is."""
        instruction = _SYSCALLS.get(platform.machine())
        if instruction and function.startswith("0x") and _is("system", file):
            for extent, shift, mapped, readable in self._maps:
                if (address := int(function, 16)) in extent and mapped == file:
                    with contextlib.suppress(OSError), open(readable, "rb") as code:
                        code.seek(address + shift - len(instruction))
                        return "syscall" if code.read(len(instruction)) == instruction else function
        return function


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


def waits_in_python(file: str, function: str) -> bool:
    """Whether a function of the standard library, the innermost on a stack, waits."""
    return function in _TABLE["waits_in_python"].get(Path(file).name, ())


def waits_for_threads(frames: Sequence[NativeFrame]) -> bool:
    """Whether a thread waits until another one does something: for a lock, for the interpreter, in an event loop."""
    return any(_is("locks_and_loops", frame.function) for frame in frames)
