"""Start the child process, wait for its answer within a time limit, and leave no process behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue

from .measure import Measurement, time_limit_error
from .targets import ProfilingError


class Request(BaseModel, ser_json_inf_nan="constants"):
    """What the child shall do: measure the target, or (with `sample_for_s`) only repeat it while a sampler watches."""

    target: str
    setup: str | None
    arguments: dict[str, JsonValue]
    n_repeats: int
    time_limit_s: float
    sample_for_s: float | None = None


class Answer(BaseModel):
    """One of the three."""

    measurement: Measurement | None = None
    sampled_s: list[float] | None = None
    error: str | None = None


def run_child(request: Request, *, time_limit_s: float, sampler: Sequence[str] = ()) -> Answer:
    """The answer of a child process to `request`; `sampler` is a command line that takes the child's own as its end."""
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        request_file, answer_file, messages = (Path(folder, name) for name in ("request.json", "answer.json", "stderr.txt"))
        request_file.write_text(request.model_dump_json())
        child = [sys.executable, "-m", f"{__package__}.child", str(request_file), str(answer_file)]
        search_path = os.pathsep.join(path for path in sys.path if path)  # the child imports what this process can
        with open(messages, "wb") as stderr:
            process = subprocess.Popen(
                [*sampler, *child],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": search_path},
                start_new_session=True,  # a process group of its own, so that all that it starts can be ended with it
            )
        try:
            status = process.wait(timeout=max(time_limit_s, 0))
        except subprocess.TimeoutExpired:
            raise time_limit_error(request.target, request.time_limit_s) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not answer_file.exists():
            last_message = messages.read_text(errors="replace").strip()[-2000:].rpartition("\n")[2]
            if sampler:
                raise ProfilingError(last_message or "it ended without a message")
            raise ProfilingError(
                f"target {request.target!r} ended its process with status {status} before it returned "
                f"(last on stderr: {last_message or 'nothing'}); make it return without ending the interpreter"
            )
        answer = Answer.model_validate_json(answer_file.read_bytes())
    if answer.error:
        raise ProfilingError(answer.error)
    return answer
