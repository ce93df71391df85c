"""The child process in which a "module:function" runs: `python -m altlas_lib.profiling.child REQUEST ANSWER`.

What the target does to its process (exit, crash, never end, print megabytes) stays in the child.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..paths import write_atomically
from .measure import measure, timed_run
from .process import Answer, Request
from .targets import ProfilingError, prepare


def sampled_call(call: Callable[[], Any]) -> None:
    """Below this function's frame the target's own frames begin; `sampling` looks for it by name."""
    call()


def _answer(request: Request) -> Answer:
    try:
        call = prepare(request.target, request.setup, request.arguments)
        if request.sample_for_s is None:
            return Answer(measurement=measure(call, request.target, request.n_repeats, request.time_limit_s))
        timed_run(call, request.target)  # warm-up, outside of `sampled_call`: not counted
        stop = time.perf_counter() + request.sample_for_s
        durations_s = []
        while not durations_s or time.perf_counter() < stop:
            durations_s.append(timed_run(lambda: sampled_call(call), request.target))
        return Answer(sampled_s=durations_s)
    except ProfilingError as error:
        return Answer(error=str(error))


if __name__ == "__main__":
    request_file, answer_file = map(Path, sys.argv[1:])
    del sys.argv[1:]  # the target sees no arguments of ours
    write_atomically(answer_file, _answer(Request.model_validate_json(request_file.read_bytes())).model_dump_json())
