"""py-spy, attached to a process: it asks for the stacks at a fixed rate, from outside, without a cost for each call."""

import contextlib
import ctypes
import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from ..run.runnable import ProfilingError

_TO_ATTACH_S = 30.0
_TO_WRITE_S = 30.0
_TOO_FAR_BEHIND_S = 2.0
_ON_TIME_S, _N_ON_TIME, _NEVER_ON_TIME_S = 0.05, 20, 3.0
_PR_SET_PTRACER, _ANY_PROCESS = 0x59616D61, -1


def allow_sampling() -> None:
    """In the process to be sampled: where only its ancestors may look into a process, let the sampler, its sibling, do so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY_PROCESS), 0, 0, 0)


def settle() -> None:
    """In the process to be sampled: wait until sleeps end on time, or for some seconds.

    A sampler reads symbols at first, and takes the samples that it missed at once.
    """
    stop, n_on_time = time.perf_counter() + _NEVER_ON_TIME_S, 0
    while n_on_time < _N_ON_TIME and (start := time.perf_counter()) < stop:
        time.sleep(0.01)
        n_on_time = n_on_time + 1 if time.perf_counter() - start < _ON_TIME_S else 0


class PySpy:
    """`py-spy record`, to be attached to a process, which may end meanwhile."""

    def __init__(self, rate_hz: int, native: bool):
        program = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
        if program is None:
            raise ProfilingError("it is not installed; pip install py-spy")
        # Idle stacks too: waiting is part of the time, and a thread that waits for BLAS's own threads passes for idle.
        options = ["--format", "speedscope", "--full-filenames", "--function", "--idle", "--subprocesses"]
        self._command = [program, "record", *options, *(["--native"] if native else []), "--rate", str(rate_hz)]
        self.native = native

    def __enter__(self) -> "PySpy":
        self._folder = tempfile.TemporaryDirectory(prefix="altlas-")
        self._recording, self._messages = (Path(self._folder.name, name) for name in ("recording.json", "messages.txt"))
        self._process: subprocess.Popen | None = None
        return self

    def attach(self, pid: int) -> None:
        """Begin to sample a process, and those that it starts."""
        command = [*self._command, "--pid", str(pid), "--output", str(self._recording)]
        with open(self._messages, "wb") as messages:
            streams = {"stdin": subprocess.DEVNULL, "stdout": messages, "stderr": messages}
            # Ctrl-C reaches this process only, which ends it.
            self._process = subprocess.Popen(command, **streams, start_new_session=True)
        stop = time.monotonic() + _TO_ATTACH_S
        while "Sampling process" not in self._said():
            if self._process.poll() is not None or time.monotonic() > stop:
                raise ProfilingError(self._error())
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def is_behind(self) -> bool:
        """Whether it takes samples later than it should, one directly after the other: the process hardly runs then."""
        behind = re.findall(r"([\d.]+)s behind in sampling", self._said())
        return bool(behind) and float(behind[-1]) > _TOO_FAR_BEHIND_S

    def recording(self) -> dict:
        """End the sampling; what was recorded, in speedscope's format."""
        self._process.send_signal(signal.SIGINT)
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
