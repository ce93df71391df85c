"""Ask XLA, in a child process of its own, what training steps need."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence

from .request import XLA_FLAGS, PlanError, StepCost, StepRequest


def has_compiler() -> bool:
    """Whether JAX's CUDA plug-in is installed, which compiles for GPUs."""
    try:
        return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))
    except ModuleNotFoundError:
        return False


def xla_flags() -> str:
    """For the compiling process. Besides JAX's plug-in XLA needs two files of CUDA's toolkit, libdevice and ptxas, which
    are in the wheel nvidia-cuda-nvcc-cu12; its own are preferred to a toolkit's of whatever version is on the machine.
    """
    try:
        wheel = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        wheel = None
    return f'{XLA_FLAGS} --xla_gpu_cuda_data_dir="{wheel.submodule_search_locations[0]}"' if wheel else XLA_FLAGS


def compile_steps(
    requests: Sequence[StepRequest], *, time_limit_s: float, loaded: Callable[[], None] = lambda: None
) -> Iterator[StepCost]:
    """The answers of a child process, one by one; it is ended with all that it started after the time limit.

    Args:
        loaded: called when the first model has been built, so that compiling begins.

    Raises:
        PlanError: it took too long, or died; the answers before that have been given.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # the child imports what we can
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",  # weights are made on the CPU, and a GPU that is here is not touched
        "XLA_FLAGS": xla_flags(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    timed_out, n_answers = threading.Event(), 0
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.step"],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": messages, "env": environment},
            start_new_session=True,  # a process group of its own, so that all that it starts can be ended with it
        )

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(time_limit_s, lambda: (timed_out.set(), end()))
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps([request.model_dump(mode="json") for request in requests]).encode())
            for line in process.stdout:
                if line == b"loaded\n":
                    loaded()
                else:
                    yield StepCost.model_validate_json(line)
                    n_answers += 1
        finally:
            timer.cancel()
            end()
            process.wait()
            process.stdout.close()
        if n_answers == len(requests):
            return
        if timed_out.is_set():
            problem = f"compiling the step took longer than time_limit_s={time_limit_s:g}"
            raise PlanError(f"{problem}: give it more time, or plan a smaller model")
        messages.seek(0)
        last_message = messages.read()[-2000:].decode(errors="replace").strip().rpartition("\n")[2] or "nothing"
        hint = "; it was killed, likely for want of host memory: close other programs" if process.returncode == -9 else ""
        raise PlanError(f"the compiling process ended with status {process.returncode}{hint} (its last words: {last_message})")
