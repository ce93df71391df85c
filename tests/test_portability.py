"""The light core where fcntl, resource, pwd and POSIX signals do not exist, as on Windows: taken away here, on this system.

Third-party packages are loaded first: on this system they need what they would not ask for there.
"""

import subprocess
import sys

import pytest

from altlas_lib.paths import lock_exclusively

WITHOUT_POSIX = """
import builtins, os, signal, sys, types
import cloudpickle, httpx, jinja2, line_profiler, matplotlib.pyplot, multiprocessing.connection, nbformat, numba, pandas
import numpy as np
import onnxruntime, psutil, pyarrow.parquet, pynvml, rich.console, scipy.sparse, sklearn.preprocessing, starlette.exceptions
import threadpoolctl, typer, yaml, babel.numbers, nbclient, papermill, subprocess, sqlite3, tempfile
import sklearn.feature_extraction.text

TAKEN = {"fcntl", "resource", "pwd", "grp", "termios", "tty"}
for name in TAKEN:
    sys.modules.pop(name, None)
imported = builtins.__import__

def refuse(name, globals=None, *rest, **named):
    if name.split(".")[0] in TAKEN and (globals or {}).get("__name__", "").startswith("altlas_lib"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return imported(name, globals, *rest, **named)

builtins.__import__ = refuse
subprocess.signal = psutil.signal = types.SimpleNamespace(**vars(signal))  # there, they end processes in another way
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGSTOP", "SIGQUIT"):
    delattr(signal, name)
for name in ("killpg", "setsid", "getuid", "geteuid", "getpgid", "sched_getaffinity", "mkfifo", "O_NONBLOCK", "RTLD_NOLOAD"):
    if hasattr(os, name):
        delattr(os, name)
locked = set()

def locking(descriptor, mode, n_bytes):
    key = os.fstat(descriptor).st_ino
    if key in locked:
        raise PermissionError(13, "Permission denied")
    locked.add(key)

sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
"""


def run_without_posix(program: str, folder) -> str:
    command = [sys.executable, "-c", WITHOUT_POSIX + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "C: it's a {folder}"
    folder.mkdir()
    return folder


def test_the_light_core_works(folder):
    program = """
import altlas_lib, altlas_lib.cli, altlas_lib.runner as runner
for name in altlas_lib.PACKAGES:
    if name not in ("training", "inference"):
        getattr(altlas_lib, name)
from altlas_lib import data, environment, paths, report, similarity

print(similarity.top_k(np.eye(5, dtype=np.float32)[[0, 0, 1, 2, 3]], k=1).indices[:2, 0])
with open("x y.csv", "w") as file:
    file.write("a,b\\nhello,1.5\\n")
print(data.load_texts("x y.csv", column="a").texts, data.load_series("x y.csv").values)
run = paths.run_folder("mine")
with runner._lock(run):
    try:
        with runner._lock(run):
            pass
    except runner.RunError as error:
        print(error)
print(*(path.name for path in report.render_report(run)))
print(environment.facts._probe("numpy").computed_on, environment.facts._probe("driver").installed)
"""
    assert run_without_posix(program, folder).splitlines() == [
        "[1 0]",
        "['hello'] [1.5]",
        "run 'mine' is in progress elsewhere; wait for it, or choose another --run NAME",
        "index.html",
        "('CPU',) True",
    ]


def test_a_profile_is_made(folder):
    program = """
with open("work.py", "w") as file:
    file.write("def work():\\n    return sum(i * i for i in range(200_000))\\n")
from altlas_lib import profiling

print(profiling.profile("work:work", n_repeats=1, sampling_s=0.3, trace_arrays=False).functions[0].name)
"""
    assert run_without_posix(program, folder) == "work\n"


def test_a_lock_holds_between_processes(tmp_path):
    """With fcntl, on systems that have it."""
    program = (
        "import sys; from altlas_lib.paths import lock_exclusively; lock_exclusively(open(sys.argv[1], 'a+')); print('held')"
    )

    with open(tmp_path / "lock", "a+") as file:
        lock_exclusively(file)
        done = subprocess.run([sys.executable, "-c", program, tmp_path / "lock"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "BlockingIOError" in done.stderr
