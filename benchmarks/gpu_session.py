"""All that this project wants to know from a GPU, in at most nine minutes and without a network: `make gpu-session`.

    python -m benchmarks.gpu_session              # on a machine with an NVIDIA GPU and CuPy, for CUDA 12 or 13
    python -m benchmarks.gpu_session --rehearse   # without one: every step on a small scale, CuPy's on the tests' stand-in

Each step is a process with its own time limit: one that fails or hangs loses nothing of the others. What a machine lacks
(TensorFlow, torch, Nsight) is said in the result. benchmarks/results/gpu-<name>.json is written after every step; a second
session on the same GPU replaces the steps that it finishes. A free T4 of Colab or Kaggle is enough.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from altlas_lib.paths import write_atomically

from .gpu_figure import figure, table
from .records import Record

_ROOT = Path(__file__).parents[1]
_SESSION_S = 540
_LAST_WORDS = 1500  # characters of a failed step
_STAND_IN = _ROOT / "tests" / "rehearsal"  # where Python finds CuPy in a rehearsal
_REHEARSED = {"sizes": "300 500", "tests": "tests/test_devices.py", "rows": "300", "rehearse": "--rehearse"}
_REAL = {"sizes": "10000 100000 1000000", "tests": "tests", "rows": "100000", "rehearse": ""}


@dataclass(frozen=True)
class Step:
    """One question to the GPU.

    Attributes:
        command: `{out}` is the file that it writes; other names are filled in from the scale of the session.
        limit_s: it is ended then, earlier where less is left of the session.
        read: what the session keeps of its file.
        program: what it needs beside Python.
    """

    command: str
    limit_s: float
    read: Callable[[Path], Any]
    program: str | None = None


def _read_tests(path: Path) -> dict[str, Any]:
    """Counts of a JUnit file, and which tests failed."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")} | {"failed": failed}


def _read_similarity(path: Path) -> list[dict[str, Any]]:
    """What each contestant took at every size, and how exact it was."""
    return [
        {
            **{"n": each.case.n, "contestant": each.contestant, "wall_s": each.wall_s, "skipped": each.skipped},
            **{"peak_gpu_bytes": each.peak_gpu_bytes, "exactness": each.exactness and each.exactness.model_dump()},
        }
        for each in Record.model_validate_json(path.read_bytes()).measurements
    ]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_csv(path: Path) -> list[str]:
    """The lines of Nsight Compute's table, without what it says of itself."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith('"')]


_ASK = "{python} -m benchmarks.gpu_steps {step} --out {out} {rehearse}"
_SEARCH = "{python} -m benchmarks.gpu_steps search --rows {rows} {rehearse}"
STEPS = {
    "similarity": Step(
        "{python} -m benchmarks.similarity --contestants GPU --inputs gaussian --k 10 --limit 20 --repeats 3 --sizes {sizes} "
        "--output {out}",
        150,
        _read_similarity,
    ),
    "tests": Step("{python} -m pytest -m gpu -q -p no:cacheprovider --junitxml {out} {tests}", 140, _read_tests),
    "calibration": Step(_ASK, 120, _read_json),
    "plans": Step(_ASK, 110, _read_json),
    "training": Step(_ASK, 90, _read_json),
    "torch": Step(_ASK, 150, _read_json),
    "timeline": Step(f"nsys profile --trace cuda,nvtx --force-overwrite true --output {{out}} {_SEARCH}", 60, str, "nsys"),
    "kernels": Step(
        "ncu --csv --log-file {out} --kernel-name regex:collect_pairs|update_best --launch-count 8 --set basic " + _SEARCH,
        60,
        _read_csv,
        "ncu",
    ),
}


def run_step(name: str, step: Step, folder: Path, scale: dict[str, str], limit_s: float) -> dict[str, Any]:
    """`result`, or `failed` with the reason and its last words; and how long it took."""
    began_s = time.monotonic()
    if step.program and not shutil.which(step.program):
        return {"failed": f"{step.program} is not installed", "took_s": 0.0}
    if limit_s <= 0:
        return {"failed": "no time was left of the session", "took_s": 0.0}
    out = folder / f"{name}.out"
    command = [
        part
        for word in step.command.split()
        for part in word.format(**scale, python=sys.executable, step=name, out=out).split()
    ]
    environment = dict(os.environ)
    if scale is _REHEARSED:
        environment["PYTHONPATH"] = os.pathsep.join([str(_STAND_IN), environment.get("PYTHONPATH", "")]).strip(os.pathsep)
    # A group of its own, which is ended as a whole: tests and contestants start processes.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST_WORDS))
        last_words = said.read().strip()
    found: dict[str, Any] = {"took_s": round(time.monotonic() - began_s, 1)}
    try:
        found["result"] = step.read(out)
    except Exception as error:  # whatever a step left half-written
        problem = "ran out of its time" if process.returncode == -signal.SIGKILL else f"ended with status {process.returncode}"
        found["failed"] = f"{problem}, and left no result ({type(error).__name__}): {last_words}"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_session", None, description, details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on a small scale; it measures nothing")
    steps = f"of {', '.join(STEPS)}"
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=steps)
    parser.add_argument("--folder", type=Path, default=_ROOT / "benchmarks" / "results", help="for the result (%(default)s)")
    options = parser.parse_args(arguments)
    began_s, scale = time.monotonic(), _REHEARSED if options.rehearse else _REAL
    gpu = "rehearsal" if options.rehearse else _name_of_gpu()
    file = options.folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    options.folder.mkdir(parents=True, exist_ok=True)
    record = _read_json(file) if file.exists() else {}
    record |= {"gpu": gpu, "measured_at": datetime.now(UTC).isoformat(timespec="seconds")}
    record.setdefault("steps", {})
    with tempfile.TemporaryDirectory() as folder:
        for name in options.steps:
            left_s = _SESSION_S - (time.monotonic() - began_s)
            found = run_step(name, STEPS[name], Path(folder), scale, min(STEPS[name].limit_s, left_s))
            print(f"{name}: {found.get('failed', 'done')[:200]} ({found['took_s']:.0f} s)", flush=True)
            if "result" in found or "result" not in record["steps"].get(name, {}):
                record["steps"][name] = found
            write_atomically(file, json.dumps(record, indent=1) + "\n")
    figure(record).savefig(file.with_suffix(".png"), dpi=100)
    print(table(record))


def _name_of_gpu() -> str:
    from altlas_lib.devices import describe_gpus, find_gpu

    gpus = describe_gpus()
    if not gpus:
        sys.exit("no NVIDIA GPU is seen here; run it on a machine with one, or rehearse it: --rehearse")
    try:
        return find_gpu(gpus[0].name).name
    except ValueError:  # the catalogue lacks it
        return gpus[0].name


if __name__ == "__main__":
    main()
