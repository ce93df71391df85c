"""Work in a process of its own: another Keras backend, a compiler or a builder that prints, changes settings or crashes."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class InferenceError(RuntimeError):
    """A model that cannot be converted, built or run; the message says why and what to do."""


def run_child(module: str, request: Mapping[str, Any], time_limit_s: float, **environment: str) -> dict[str, Any]:
    """What `answer(request)` of a module of this package returns, called in a child process; both are JSON.

    Args:
        time_limit_s: then the child is ended.
        **environment: variables beside this process's own.

    Raises:
        InferenceError: it raised one, died, or took too long.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # the child imports what we can
    environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(request))
        command, how = [sys.executable, "-m", __name__, module, str(job)], {"capture_output": True, "timeout": time_limit_s}
        try:
            done = subprocess.run(command, env=environment, **how)
        except subprocess.TimeoutExpired:
            raise InferenceError(
                f"{module} took longer than {time_limit_s:g} s: give it more time, or a smaller model"
            ) from None
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:500] or "nothing"
            raise InferenceError(f"{module}: its process ended with status {done.returncode} (its last words: {last})")
        found = json.loads(job.read_text())
    if "error" in found:
        raise InferenceError(found["error"])
    return found


if __name__ == "__main__":
    from altlas_lib.inference import child  # as __main__ this module is another one, and so would be the error that it catches

    job = Path(sys.argv[2])
    try:
        answer = importlib.import_module(f"altlas_lib.inference.{sys.argv[1]}").answer(json.loads(job.read_text()))
    except child.InferenceError as error:
        answer = {"error": str(error)}
    job.write_text(json.dumps(answer))
