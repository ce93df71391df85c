"""py-spy: which functions were on the target's stack, asked from outside at a fixed rate, without a cost for each call."""

import json
import shutil
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .folding import Project
from .process import Request, run_child
from .targets import FunctionKey, ProfilingError

Stack = tuple[FunctionKey, ...]  # outermost call first


@dataclass(frozen=True)
class Samples:
    stacks: Counter[Stack]  # below the call of the target
    durations_s: list[float]  # of the target, while it was sampled

    @property
    def n_samples(self) -> int:
        return self.stacks.total()

    def shares(self, project: Project, root: FunctionKey) -> dict[FunctionKey, tuple[float, float]]:
        """Of all stacks: those in which a user's function is the innermost of the user's, and those that it is on.

        The first is the function's own share, library code folded into it; the second its cumulative share. A stack without
        a user's function is the root's.
        """
        own, cumulative = Counter(), Counter()
        for stack, n in self.stacks.items():
            users = [function for function in stack if project.library(function) is None] or [root]
            own[users[-1]] += n
            cumulative.update(dict.fromkeys(users, n))  # once per stack, also in recursion
        return {function: (own[function] / self.n_samples, n / self.n_samples) for function, n in cumulative.items()}


def sample(request: Request, *, rate_hz: int, time_limit_s: float) -> Samples:
    """Stacks of the target while a child process repeats it for `request.sample_for_s` seconds."""
    py_spy = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if py_spy is None:
        raise ProfilingError("it is not installed; pip install py-spy")
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        recording = Path(folder, "recording.json")
        command = [py_spy, "record", "--format", "speedscope", "--full-filenames", "--function", "--rate", str(rate_hz)]
        # Idle stacks too: waiting is part of the time, and a thread that waits for BLAS's own threads passes for idle.
        command += ["--idle", "--output", str(recording), "--"]
        answer = run_child(request, time_limit_s=time_limit_s, sampler=command)
        stacks = _stacks_below_the_call(json.loads(recording.read_bytes())) if recording.exists() else None
    if not stacks:
        raise ProfilingError(f"it saw nothing of the target at {rate_hz} Hz; raise sampling_s or the rate")
    return Samples(stacks, answer.sampled_s)


def _stacks_below_the_call(recording: dict) -> Counter[Stack]:
    """Stacks of the thread that calls the target, from a speedscope file; without imports, set-up and warm-up."""
    frames = [FunctionKey(frame["file"], frame["line"], frame["name"]) for frame in recording["shared"]["frames"]]
    marker = {i for i, frame in enumerate(frames) if frame.name == "sampled_call" and Path(frame.file).name == "child.py"}
    stacks = Counter()
    for thread in recording["profiles"]:
        for indices in thread["samples"]:
            start = next((depth for depth, i in enumerate(indices) if i in marker), None)
            if start is not None:
                stacks[tuple(frames[i] for i in indices[start + 1 :])] += 1
    return stacks
