"""What the tests of profiling share: questions about profiles."""

import os
import signal
import time

import psutil

from altlas_lib.profiling.profiler import BUSY_NOTE
from altlas_lib.results import FunctionTime, WorkloadProfile

QUICK = {"n_repeats": 1, "sampling_s": 0.3, "time_limit_s": 60, "n_line_functions": 0, "trace_arrays": False}


def by_name(profile: WorkloadProfile) -> dict[str, FunctionTime]:
    return {function.name: function for function in profile.functions}


def notes(profile: WorkloadProfile) -> list[str]:
    """Without the one that says that the machine is busy."""
    return [note for note in profile.notes if not note.startswith(BUSY_NOTE)]


def tools_used(profile: WorkloadProfile) -> list[str]:
    """By what only they can have seen."""
    saw = {
        "cProfile": any(function.own for function in profile.functions),
        "py-spy": profile.n_samples,
        "line_profiler": any(function.lines for function in profile.functions),
        "array trace": profile.traces,
    }
    return [tool for tool, seen in saw.items() if seen]


def alive(pid: int) -> bool:
    for _ in range(50):  # who has been killed takes a moment to go
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return True
