"""Ends what a profile started. As a program it waits for the end of the process that started it, however that came about.

So `kill -9` of a profiler leaves neither the target nor its processes behind. A thread in the target's own process could not
promise that: a C function that keeps the interpreter's lock would hold it up, and `os.fork` would warn of it.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

MARK = "ALTLAS_PROFILING"  # in the environment of all that a child starts, by which what left its process group is found
TO_DIE_S = 5.0  # a killed process goes at once, unless it waits for a device that does not answer


def end_marked(mark: str) -> list[str]:
    """Kill every process that carries `mark`, and all that they started; the names of those that would not end."""
    stop = time.monotonic() + TO_DIE_S
    while left := dict(_find_marked(mark)):  # until none is found: one may have started another meanwhile
        if time.monotonic() > stop:
            return list(left.values())
        for process in left:
            with contextlib.suppress(Exception):  # psutil's, of one that has ended meanwhile or belongs to somebody else
                process.kill()
        time.sleep(0.01)
    return []


def _find_marked(mark: str) -> Iterator[tuple]:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                for each in (process, *process.children(recursive=True)):
                    if each.status() != psutil.STATUS_ZOMBIE:
                        yield each, f"{each.pid} ({each.name()})"


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_marked(sys.argv[1])
