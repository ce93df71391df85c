"""Whatever runs Python can be profiled: scripts, coroutines, applications, processes; and what goes wrong is said."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from altlas_lib import cli, profiling
from altlas_lib.profiling.record import py_spy, sampling
from altlas_lib.profiling.record.folding import Project
from altlas_lib.profiling.record.functions import function_times
from altlas_lib.profiling.record.lines import time_lines
from altlas_lib.profiling.record.measure import measure
from altlas_lib.profiling.record.native import NativeFrame, is_native, time_class
from altlas_lib.profiling.run.asgi import application, load_requests
from altlas_lib.profiling.run.process import Child, Request
from altlas_lib.profiling.run.runnable import FunctionKey, Runnable
from altlas_lib.profiling.run.targets import prepare, target_kind
from altlas_lib.profiling.show import terminal
from altlas_lib.results import FunctionTime, LineTime, Quantity, WorkloadProfile

QUICK = {"n_repeats": 1, "sampling_s": 0.3, "time_limit_s": 60, "n_line_functions": 0, "trace_arrays": False}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, where targets are written and found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder):
    """Writes a Python file and returns its module's name, another one each time."""

    def write_module(source: str, suffix: str = ".py") -> str:
        name = f"user_{random.getrandbits(64):x}"
        (folder / f"{name}{suffix}").write_text(textwrap.dedent(source))
        return name

    return write_module


def by_name(profile: WorkloadProfile) -> dict[str, FunctionTime]:
    return {function.name: function for function in profile.functions}


# Scripts ----------------------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys
    import json
    import os
    before = sorted({{"numpy", "scipy", "psutil", "pandas"}} & set(sys.modules))
    import {helper}

    def work(n):
        return [{helper}.square(i) for i in range(n)]

    if __name__ == "__main__":
        with open(sys.argv[1], "a") as file:
            environment = sorted(set(os.environ) - {{"ALTLAS_PROFILING"}})
            seen = [before, sys.argv, sys.path[0], __file__, __name__, environment, work(int(sys.argv[2]))]
            print(json.dumps(seen), file=file)
        sys.exit()
"""


def test_a_script_runs_as_python_would_run_it(write, folder, py_spy_permitted):
    """Same arguments, path, environment, modules and output as under `python script.py`, with every tool."""
    helper = write("def square(i): return i * i")
    (folder / "scripts").mkdir()
    (folder / f"{helper}.py").rename(folder / "scripts" / f"{helper}.py")
    script = folder / "scripts" / "tool.py"
    script.write_text(textwrap.dedent(SCRIPT.format(helper=helper)))
    subprocess.run([sys.executable, script, "plain.txt", "30000"], check=True, env=dict(os.environ))
    options = {**QUICK, "n_line_functions": 2, "trace_arrays": True}
    profile = profiling.profile(str(script), argv=["profiled.txt", 30000], **options)
    plain, *others = Path("plain.txt").read_text().splitlines()
    assert not others
    expected = json.loads(plain.replace("plain.txt", "profiled.txt"))
    runs = [json.loads(line) for line in Path("profiled.txt").read_text().splitlines()]
    for run in runs:
        assert run[1:] == expected[1:]
    assert expected[0] == []
    loaded_before = [bool(before) for before, *_ in runs]
    assert not any(loaded_before[:-3])  # the array tracer's own few runs, the last ones, find NumPy loaded
    assert profile.target == f"{script} profiled.txt 30000"
    assert profile.workload == "tool"
    functions = by_name(profile)
    assert {"<module>", "work", "square"} == set(functions)
    assert functions["work"].file == script.name
    assert functions["square"].n_calls == 30000
    assert {line.n_hits for line in functions["work"].lines} >= {1}
    assert [tool.tool for tool in profile.tools] == ["cProfile", "py-spy", "line_profiler", "array trace"]
    assert any("imports" in note for note in profile.notes)


HOSTILE_SCRIPT = """
    import os, pathlib, subprocess, sys

    pathlib.Path("pids").touch()
    os.mkdir("new")  # the next run starts in the folder that this one started in
    os.chdir("new")
    os.rmdir("../new")
    sys.stderr.write("x" * 3_000_000)
    print("y" * 3_000_000)
    sys.stdout.close()
    os.close(1)
    os.environ["CHANGED"] = "yes"
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    left = subprocess.Popen(sleep, start_new_session=True)  # no longer in our process group
    pid = os.fork()
    if pid == 0:
        sys.exit(3)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(os.path.join(os.path.dirname(__file__), "pids"), "a") as file:
        file.write(f"{status} {left.pid}\\n")
"""


def test_a_script_that_changes_its_process_forks_and_leaves_processes_behind(write, folder, capfd):
    before = dict(os.environ)
    source = "import os; assert 'CHANGED' not in os.environ\n" + textwrap.dedent(HOSTILE_SCRIPT)
    profile = profiling.profile(f"{write(source)}.py", **QUICK)
    runs = [line.split() for line in Path("pids").read_text().splitlines()]
    assert len(runs) >= 5
    assert {status for status, _ in runs} == {"3"}  # its own fork ends as it would, and does not go on with our work
    assert not any(alive(int(pid)) for _, pid in runs)
    assert profile.total.n_runs >= 1
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before
    assert Path.cwd() == folder


def alive(pid: int) -> bool:
    for _ in range(50):  # who has been killed takes a moment to go
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return True


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit(3)", r"ended by sys.exit\(3\): expected an end without a failure"),
        ("1 / 0", "raised ZeroDivisionError: division by zero at .*without the profiler first"),
        ("import os; os.mkdir('made')", "raised FileExistsError: .* in run 2; it must bear being run repeatedly"),
        ("input('name? ')", "raised EOFError: .*standard input is empty"),
        ("import os; os._exit(7)", "with status 7 before it returned"),
        ("def f(:\n    pass", r"invalid syntax in .*user_.*\.py, line 1"),
        ("x = 1\0", "no Python source"),
    ],
)
def test_a_script_that_fails(write, source, message):
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(f"{write(source)}.py", **QUICK)


def test_files_that_are_no_scripts(folder):
    (folder / "package").mkdir()
    (folder / "program").write_bytes(b"\x7fELF\x02\x01\xff\xfe" * 100)
    (folder / "latin.py").write_bytes(b"name = '\xe9'\n")
    for target, message in {
        "package": r"is a folder; name the script in it",
        "program": "no Python source .*pid:NUMBER",
        "latin.py": "no Python source",
        "lateen.py": r"no such file; did you mean 'latin\.py'",
        "no/such/file.py": "no such file; the current folder is",
    }.items():
        with pytest.raises(profiling.ProfilingError, match=message):
            profiling.profile(target, **QUICK)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("script.py", {"setup": "json:dumps"}, "is a script, for which setup mean"),
        ("script.py", {"arguments": {"n": 1}}, "it takes argv"),
        ("json:dumps", {"argv": ["1"]}, "is a function, for which argv mean"),
        ("json:dumps", {"requests": [], "arguments": {"n": 1}}, "gets requests: leave out setup and arguments"),
        ("pid:1", {"argv": ["1"]}, "it takes none of them"),
    ],
)
def test_options_that_do_not_fit_the_target(folder, target, options, message):
    (folder / "script.py").touch()
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(target, **options)


def test_a_target_that_hangs_in_a_later_run_keeps_what_was_found(write, py_spy_permitted):
    """1 run to warm up, 10 without a profiler, 1 under cProfile, 1 to warm up for py-spy; the next never ends."""
    source = """
        import pathlib

        def count():
            counter = pathlib.Path("runs")
            n = int(counter.read_text()) + 1 if counter.exists() else 1
            counter.write_text(str(n))
            return n

        def stuck():
            while True:
                pass

        def main():
            if count() > {last}:
                stuck()
    """
    options = {**QUICK, "n_line_functions": 1, "trace_arrays": True, "time_limit_s": 6}
    profile = profiling.profile(f"{write(source.format(last=13))}:main", **options)
    functions = by_name(profile)
    assert functions["stuck"].sampled_own_share > 0.9
    assert functions["stuck"].own is None
    assert functions["count"].n_calls == 1
    assert profile.total.value < 1
    assert [tool.tool for tool in profile.tools] == ["cProfile", "py-spy"]
    assert any(note.startswith("not finished:") for note in profile.notes)
    assert any(note.startswith("no trace of arrays: time_limit_s=6 is over") for note in profile.notes)

    Path("runs").unlink()
    profile = profiling.profile(f"{write(source.format(last=2))}:main", **{**options, "time_limit_s": 3})
    assert (profile.functions, profile.total.n_runs) == ([], 1)
    assert {note.partition(":")[0] for note in profile.notes} >= {"not finished", "py-spy gave no shares"}


def test_threads_and_exit_functions_that_never_end_do_not_hold_up_the_answer(write, monkeypatch):
    monkeypatch.setattr("altlas_lib.profiling.run.process._TO_END_S", 0.5)
    user = write("""
        import atexit, threading, time

        def main():
            atexit.register(time.sleep, 600)
            threading.Thread(target=time.sleep, args=[600]).start()
    """)
    with Child(Request(target=f"{user}:main", time_limit_s=60)) as child:
        assert child.wait(60).measurement.first_s < 1
    assert not alive(child.pid)


# Coroutines and applications ----------------------------------------------------------------------------------------------

APP = """
    import asyncio, json, pathlib, time

    def burn(seconds):
        stop = time.thread_time() + seconds
        while time.thread_time() < stop:
            pass

    def in_thread():
        burn(0.15)

    async def inner():
        burn(0.15)

    async def coroutine():
        await inner()
        await asyncio.sleep(0.01)

    async def answer(scope, body):
        assert scope["state"] == {"started": 1}
        match scope["path"]:
            case "/coroutine":
                await coroutine()
            case "/thread":
                await asyncio.to_thread(in_thread)
            case "/echo":
                return 200, body.decode()
            case "/raise":
                raise KeyError("boom")
            case "/fail":
                return 503, "down"
            case _:
                return 404, "what?"
        return 200, "done"

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["started"] = 1
            pathlib.Path("lifespan").open("a").write("started ")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            pathlib.Path("lifespan").open("a").write("stopped ")
            await send({"type": "lifespan.shutdown.complete"})
            return
        status, text = await answer(scope, (await receive())["body"])
        with pathlib.Path("answers").open("a") as file:
            file.write(json.dumps([scope["method"], scope["path"], status, text]) + "\\n")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    def create_app():
        return app

    async def broken_start(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def without_lifespan(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
"""


def test_a_coroutine_is_charged_and_not_the_event_loop(write, py_spy_permitted):
    profile = profiling.profile(f"{write(APP)}:coroutine", **QUICK)
    functions = by_name(profile)
    assert set(functions) == {"coroutine", "inner", "burn"}
    assert functions["burn"].sampled_own_share > 0.75
    assert functions["inner"].sampled_share == pytest.approx(functions["burn"].sampled_own_share, abs=0.1)
    assert functions["coroutine"].sampled_share == 1  # the root: its wait is its own
    assert profile.cprofile_share(functions["burn"]) > 0.75
    assert functions["inner"].n_calls == 1


def test_an_application_is_charged_by_coroutine_and_worker_thread(write, folder, py_spy_permitted):
    user = write(APP)
    requests = folder / "requests.jsonl"
    echo = {"method": "PUT", "path": "/echo", "json": {"a": [1]}, "headers": {"content-type": "application/json"}}
    lines = [{"path": "/coroutine"}, {"path": "/thread"}, {"path": "/none"}, echo]
    requests.write_text("\n\n".join(map(json.dumps, lines)))
    profile = profiling.profile(f"{user}:create_app()", requests=requests, **{**QUICK, "sampling_s": 1.5})
    functions = by_name(profile)
    assert functions["in_thread"].own is functions["in_thread"].n_calls is None  # cProfile sees the calling thread only
    shares = [functions[name].sampled_share for name in ("in_thread", "inner")]
    assert min(shares) > 0.2  # half of the time each; a busy machine may give one more of it
    assert sum(shares) > 0.65  # the loop's wait for the thread is the thread's, not the application's
    assert any(stack.endswith("in_thread;burn;[interpreter]") for stack in profile.stacks)
    assert profile.target == f"{user}:create_app() under 4 requests"
    assert "request 3 (GET /none) was answered with 404" in profile.notes
    answers = {tuple(json.loads(line)) for line in Path("answers").read_text().splitlines()}
    assert ("PUT", "/echo", 200, '{"a":[1]}') in answers
    assert len(answers) == 4
    assert Path("lifespan").read_text() == "started stopped " * 2  # once for each of the two tools, outside of their runs


@pytest.mark.parametrize(
    ("name", "requests", "message"),
    [
        ("app", [{"path": "/raise"}], r"request 1 \(GET /raise\) raised KeyError: 'boom' at .*; make it answer"),
        ("app", [{"path": "/echo"}, {"path": "/fail"}], r"request 2 \(GET /fail\) was answered with 503: 'down'"),
        ("broken_start", [{"path": "/"}], "its startup failed: no database"),
        ("no_app", [{"path": "/"}], "has no 'no_app'; did you mean"),
    ],
)
def test_an_application_that_fails(write, monkeypatch, folder, name, requests, message):
    monkeypatch.syspath_prepend(folder)
    with (
        pytest.raises(profiling.ProfilingError, match=message),
        application(f"{write(APP)}:{name}", load_requests(requests), 2) as runnable,
    ):
        runnable.timed()


def test_an_application_without_lifespan_and_a_callable_one(write, monkeypatch, folder):
    monkeypatch.syspath_prepend(folder)
    user = write(APP)
    with application(f"{user}:without_lifespan", load_requests([{"path": "/"}] * 5), 3) as runnable:
        assert runnable.timed() > 0
    module = __import__(user)
    profile = profiling.profile(module.app, requests=[{"path": "/echo", "body": "hello"}], **QUICK)
    assert "answer" in by_name(profile)
    with pytest.raises(profiling.ProfilingError, match="looks like an ASGI application, which takes requests"):
        profiling.profile(module.app)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is none in it"),
        ("{'path': '/'}", "line 1: Invalid JSON"),
        ('{"path": "/"}\n\n{"path": 7}', "line 3, path: Input should be a valid string"),
        ('{"path": "/", "verb": "GET"}', "line 1, verb: Unexpected keyword"),
        ('{"method": "GET"}', "line 1, path: "),
        ('{"path": "/", "json": 1, "body": "1"}', "json and body exclude each other"),
        ("[]", r'line 1: .*expected \{"method": "POST"'),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_request_scripts_that_cannot_be_read(folder, content, message):
    file = folder / "requests.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(profiling.ProfilingError, match=message):
        load_requests(file)
    with pytest.raises(profiling.ProfilingError, match="cannot be read"):
        load_requests(folder / "none.jsonl")


def test_a_coroutine_in_a_running_event_loop_is_refused():
    import asyncio

    async def target():
        await asyncio.sleep(0)

    async def notebook():
        profiling.profile(target)

    with pytest.raises(profiling.ProfilingError, match="an event loop runs here already"):
        asyncio.run(notebook())
    assert {function.name.rpartition(".")[2] for function in profiling.profile(target, n_repeats=1).functions} == {"target"}


# Processes ----------------------------------------------------------------------------------------------------------------


def test_a_running_process_is_sampled_and_left_alone(write, py_spy_permitted):
    script = f"{write(APP)}.py"
    Path(script).write_text(Path(script).read_text() + "\nwhile True:\n    burn(1)\n")
    with subprocess.Popen([sys.executable, script]) as process:
        try:
            time.sleep(0.5)
            profile = profiling.profile(f"pid:{process.pid}", sampling_s=0.5)
            assert process.poll() is None
        finally:
            process.kill()
    functions = by_name(profile)
    assert functions["burn"].sampled_own_share > 0.9
    assert functions["<module>"].sampled_share > 0.9
    assert functions["burn"].file == script
    assert (profile.total, functions["burn"].own, profile.peak_memory) == (None, None, None)
    assert profile.n_samples > 20
    assert profile.tools[0].factor is None


def test_processes_that_cannot_be_sampled(monkeypatch, tmp_path):
    for target, message in {
        "pid:x": "expected the number of a process",
        f"pid:{os.getpid()}": "is this process itself",
        "pid:4194304": "no such process",
    }.items():
        with pytest.raises(profiling.ProfilingError, match=message):
            profiling.profile(target)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(profiling.ProfilingError, match=r"could not look into it .*SYS_PTRACE"):
                profiling.profile(f"pid:{process.pid}", sampling_s=0.2)
            refusing = tmp_path / "py-spy"
            refusing.write_text("#!/bin/sh\necho 'Error: Permission Denied: try sudo' >&2\nexit 1\n")
            refusing.chmod(0o755)
            monkeypatch.setattr(py_spy.shutil, "which", lambda *_, **__: str(refusing))
            with pytest.raises(profiling.ProfilingError, match=r"Permission Denied: try sudo.*as root"):
                profiling.profile(f"pid:{process.pid}", sampling_s=0.2)
        finally:
            process.kill()


def test_py_spy_that_cannot_follow_native_frames_goes_on_without(monkeypatch, py_spy_permitted):
    """A process with many threads and large libraries takes too long for each sample; some systems offer none at all."""
    attempts = []

    def record(way: sampling._Way) -> sampling.Samples:
        attempts.append((way.rate_hz, way.native))
        if way.native and not way.is_slow:
            raise py_spy.FellBehind
        return sampling.Samples(Counter({stacks[way.native]: 10}))

    main = (FunctionKey("/app.py", 1, "main"),)
    stacks = {native: sampling.Stack(main, "arrays" if native else None, False) for native in (True, False)}
    samples = sampling._native_if_possible(record, 200, 2)
    assert attempts == [(200, True), (200, False), (20, True)]
    assert "from 10 samples of their own, 20 a second" in samples.notes[0]
    (function,) = function_times(Project("/app.py"), main[0], samples, [], [])
    assert (function.sampled_own_share, function.own_by_class) == (1, {"arrays": 1})

    real = py_spy.PySpy.__init__

    def without_native(self, pid: int, rate_hz: int, native: bool) -> None:
        if native:
            raise profiling.ProfilingError("--native is not supported on your platform")
        real(self, pid, rate_hz, native)

    monkeypatch.setattr(py_spy.PySpy, "__init__", without_native)
    profile = profiling.profile("json:dumps", arguments={"obj": list(range(300_000)), "indent": 1}, **QUICK)
    assert "not supported on your platform" in profile.notes[0]
    assert profile.n_samples > 10
    assert not any(function.own_by_class for function in profile.functions)
    assert not any("[" in stack for stack in profile.stacks)


# Classes of time ------------------------------------------------------------------------------------------------------------

LIBC, PYTHON = "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/libpython3.11.so.1.0"
NUMPY = "/v/site-packages/numpy/_core/_multiarray_umath.cpython-311-x86_64-linux-gnu.so"
BLAS = "/v/site-packages/numpy.libs/libscipy_openblas64_-32a4b2a6.so"
TORCH = "/v/site-packages/torch/lib/libtorch_cpu.so"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([], "interpreter"),
        ([("dict_insert", PYTHON)], "interpreter"),
        ([("malloc", LIBC), ("0x7f12", LIBC), ("PyObject_Malloc", PYTHON)], "interpreter"),
        ([("sre_ucs1_match", PYTHON), ("sre_search", PYTHON)], "regex"),
        ([("malloc", LIBC), ("sre_ucs1_match", PYTHON)], "regex"),
        ([("match_class", PYTHON)], "interpreter"),
        ([("0x1", "/v/site-packages/regex/_regex.cpython-311-x86_64-linux-gnu.so")], "regex"),
        ([("sgemm_kernel_SKYLAKEX", BLAS)], "arrays"),
        ([("0x7f12", LIBC), ("_contig_to_contig", NUMPY), ("array_subscript", NUMPY)], "arrays"),
        ([("double_richcompare", NUMPY)], "interpreter"),
        ([("DOUBLE_add_X86_V3", NUMPY)], "arrays"),
        ([("sched_yield", LIBC), ("exec_blas", BLAS)], "arrays"),
        ([("GOMP_parallel", "/v/scikit_learn.libs/libgomp-a49a47f9.so.1.0.0")], "arrays"),
        ([("__futex_abstimed_wait_common", LIBC), ("pthread_cond_wait", LIBC), ("at::launch", TORCH)], "framework"),
        ([("GOMP_barrier", "/v/site-packages/torch/lib/libgomp-98b21ff3.so.1")], "framework"),
        ([("0x1", "/v/site-packages/tensorflow/libtensorflow_cc.so.2")], "framework"),
        ([("gc_collect_main", PYTHON), ("parse_reset", "/b/Python-3.11.7/Modules/_csv.c")], "parsing"),
        ([("scan_once_unicode", "/b/Modules/_json.c")], "parsing"),
        ([("0x1", "/v/site-packages/orjson/orjson.cpython-311-x86_64-linux-gnu.so")], "parsing"),
        ([("tokenize", "/v/site-packages/pandas/_libs/parsers.cpython-311-x86_64-linux-gnu.so")], "parsing"),
        ([("deflate", "/usr/lib/libz.so.1.2.13")], "parsing"),
        ([("crc32_z", "/usr/lib/libz.so.1.2.13")], "other native"),
        ([("sha256_block", "/usr/lib/libcrypto.so.3")], "other native"),
        ([("clock_nanosleep", LIBC), ("time_sleep", PYTHON)], "waiting"),
        ([("epoll_wait", LIBC), ("select_epoll_poll", PYTHON)], "waiting"),
        ([("read", LIBC), ("_io_FileIO_readall", PYTHON)], "waiting"),
        ([("recv", LIBC), ("0x3", "/v/site-packages/psycopg2/_psycopg.so")], "waiting"),
        ([("0x7f00", "")], "other native"),
    ],
)
def test_the_class_of_innermost_native_frames(frames, expected):
    assert all(is_native(file) for _, file in frames)
    assert time_class([NativeFrame(*frame) for frame in frames]) == expected


@pytest.mark.parametrize("file", ["/app/main.py", "<string>", "<frozen os>", "/usr/bin/tool", "/tmp/ipykernel_1/2.py", "x.pyw"])
def test_a_python_file_is_not_native(file):
    assert not is_native(file)


def test_where_a_program_really_is(write, py_spy_permitted):
    """Eight functions of about the same time, each in another kind of code."""
    user = write("""
        import csv, hashlib, io, re, time, zlib
        import numpy as np

        def regex(): re.findall(r"(\\\\w+) (?=\\\\w)", "hello world foo bar " * 2000)
        def product(a=np.ones((300, 300))): a @ a
        def gather(a=np.ones(10**6), i=np.random.default_rng(0).integers(10**6, size=10**5)): a[i]
        def parse(text="a,b,1.5\\\\n" * 3000): list(csv.reader(io.StringIO(text)))
        def loop(): sum(i * i for i in range(10000))
        def boxes(numbers=list(np.random.default_rng(0).random(5000))): sorted(numbers)
        def wait(): time.sleep(0.005)
        def digest(data=bytes(10**6)): hashlib.sha256(data).digest()

        def repeat(function):
            stop = time.perf_counter() + 0.04
            while time.perf_counter() < stop:
                function()

        def main():
            for function in (regex, product, gather, parse, loop, boxes, wait, digest):
                repeat(function)
    """)
    profile = profiling.profile(f"{user}:main", **{**QUICK, "sampling_s": 2})
    expected = {
        **{"regex": "regex", "product": "arrays", "gather": "arrays", "parse": "parsing"},
        **{"loop": "interpreter", "boxes": "interpreter", "wait": "waiting", "digest": "other native"},
    }
    functions = by_name(profile)
    if not functions["regex"].own_by_class:
        pytest.skip(f"no native frames here: {profile.notes}")
    assert {name: max(functions[name].own_by_class, key=functions[name].own_by_class.get) for name in expected} == expected
    for name in expected:
        assert sum(functions[name].own_by_class.values()) == pytest.approx(1)
    assert any(stack.endswith("main;repeat;regex;re;[regex]") for stack in profile.stacks)
    assert sum(profile.stacks.values()) == profile.n_samples
    counts = sorted(profile.seconds_by_n_threads)
    assert counts[0] == 1  # the sweep over BLAS threads
    assert len(counts) == min(2, os.cpu_count())
    assert profile.total.low == min(profile.seconds_by_n_threads.values())


# Measurements ---------------------------------------------------------------------------------------------------------------


def test_peak_memory_is_what_each_run_adds(write):
    user = write("""
        sizes = iter([100 << 20, 40 << 20])

        def prepare(): return bytearray(b"x") * (150 << 20)  # held before the first run
        def main(held): return sum(bytearray(b"x") * next(sizes, 1) == held for _ in range(1))
    """)
    with Child(Request(target=f"{user}:main", setup=f"{user}:prepare", time_limit_s=60)) as child:
        first, second, *others = child.wait(60).measurement.peak_bytes
    assert first == pytest.approx(100 << 20, rel=0.2)
    if sys.platform == "linux":  # elsewhere the peak cannot be set back between runs
        assert second == pytest.approx(40 << 20, rel=0.4)
        assert max(others, default=0) < 20 << 20


def test_the_best_thread_count_is_the_baseline():
    """Two counts are tried in turns; the target says which of them is fast."""
    from threadpoolctl import threadpool_info

    def target():
        np.ones((8, 8)) @ np.ones((8, 8))
        seen.append(max(pool["num_threads"] for pool in threadpool_info()))
        time.sleep(0.01 if seen[-1] == 1 else 0.05)

    seen = []
    runnable = Runnable("target", target, FunctionKey.of(target.__code__))
    measurement = measure(runnable, 3, 60)
    own = os.cpu_count() if max(seen) > 1 else 1
    assert measurement.n_threads == 1
    assert set(measurement.plain_s) == {1, max(seen)}
    assert measurement.best_s == measurement.plain_s[1]
    if own > 1:
        assert seen[:4] == [max(seen), max(seen), 1, 1]  # warm-up, both counts, cProfile under the better one
    assert seen[-1] == 1 or seen.count(1) == seen.count(max(seen))


def test_lines_of_nested_decorated_and_recursive_functions_and_the_code_afterwards():
    @functools.cache
    def cached(n):
        return [i for i in range(n)]  # noqa: C416

    def outer(n):
        def inner(k):
            if k == 0:
                return 0
            return 1 + inner(k - 1)

        return inner(n)

    class Shape:
        @property
        def area(self):
            return outer(5)

    def main():
        cached(10), cached(10)
        return Shape().area

    inner = next(constant for constant in outer.__code__.co_consts if hasattr(constant, "co_code"))
    codes = [cached.__wrapped__.__code__, inner, Shape.area.fget.__code__]
    before = [each.__code__ for each in (outer, cached.__wrapped__, Shape.area.fget, main)]
    runnable = Runnable("main", main, FunctionKey.of(main.__code__))
    _, lines = time_lines(runnable, [FunctionKey.of(code) for code in codes])
    assert [each.__code__ for each in (outer, cached.__wrapped__, Shape.area.fget, main)] == before
    assert all(now is then for now, then in zip((outer.__code__, main.__code__), (before[0], before[-1]), strict=True))
    hits = {each.key.name.rpartition(".")[2]: list(each.hits.values()) for each in lines}
    assert hits == {"cached": [1], "inner": [6, 1, 5], "area": [1]}
    assert all(seconds >= 0 for each in lines for seconds in each.seconds.values())


# The terminal -----------------------------------------------------------------------------------------------------------------


def altlas(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_the_command_prints_tables_and_writes_the_profile(write, folder, py_spy_permitted):
    user = write("""
        import numpy as np

        def cosine(x): return (x @ x.T) / np.linalg.norm(x, axis=1)
        def main(n): return cosine(np.ones((n, 64)))
    """)
    result = altlas("--arg", "n=500", "--for", "0.3", "--gpu", "T4", "--json", "profile.json", f"{user}:main")
    assert result.returncode == 0, result.stderr
    assert all(len(line) <= 120 for line in result.stdout.splitlines())
    for expected in ("one run: ", "own time of", "arrays", "hottest lines of", "cosine: ", "py-spy 0", "array trace"):
        assert expected in result.stdout
    assert "cosine" in by_name(WorkloadProfile.model_validate_json(Path("profile.json").read_bytes()))
    assert [path.name for path in folder.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == ["profile.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_script.py"], "no such file"),
        (["json:dumps", "--gpu", "T4"], "is a function, for which argv mean"),
        (["--gpu", "T5000", "json:dumps"], "T5000"),
        (["--arg", "n", "json:dumps"], "expected NAME=JSON"),
        (["--arg", "n=x", "json:dumps"], "expected NAME=JSON, such as --arg n=100"),
        (["--json", "no/such/folder/x.json", "json:dumps"], "no folder"),
    ],
)
def test_what_the_user_can_mend_is_one_message(arguments, message):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(cli.app, ["profile", *arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_behind(write, folder, ending):
    user = write("""
        import os, pathlib, time

        def main():
            with open("pids", "a") as file:
                file.write(f"{os.getpid()} ")
            time.sleep(600)
    """)
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", "--json", "out.json", f"{user}:main"]
    reset = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # CI may ignore it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=reset) as process:
        while not Path("pids").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(ending)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not any(alive(int(pid)) for pid in Path("pids").read_text().split())
    assert not Path("out.json").exists()


@given(st.text(max_size=300), st.text(max_size=300), st.integers(0, 10**9))
def test_text_from_data_neither_steers_the_terminal_nor_widens_it(name, source, n_calls):
    time_ = Quantity.measured([1.0], "s", "a CPU")
    function = FunctionTime(
        name=name,
        file=name,
        line=1,
        n_calls=n_calls,
        own=time_,
        cumulative=time_,
        own_by_class={"regex": 1.0},
        lines=[LineTime(line=1, source=source, n_hits=1, share=1)],
    )
    profile = WorkloadProfile(workload="w", target=source, total=time_, functions=[function], notes=[source])
    text = terminal.format_profile(profile)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert all(len(line) <= 120 for line in text.splitlines()[1:])


# Names ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("a.b:c", "function"), ("a:b.c", "function"), ("a:create()", "function"), ("pid:1", "process")]
)
def test_what_a_name_means(name, kind):
    assert target_kind(name) == kind


def test_a_script_may_have_any_name(folder):
    (folder / "tool").write_text("#!/usr/bin/env python3\nprint('hello')\n")
    assert prepare("tool").root == FunctionKey(str(folder / "tool"), 1, "<module>")


def test_a_limit_of_no_time_is_refused_by_its_option():
    result = CliRunner().invoke(cli.app, ["profile", "--time-limit", "0", "json:dumps"])
    assert result.exit_code == 2
    assert "--time-limit" in result.stderr


def test_an_application_that_answers_nothing_is_no_profile(write, folder):
    user = write(APP)
    requests = [{"path": "/none"}, {"path": "/none?a=b"}]
    with pytest.raises(profiling.ProfilingError, match="answered no request: all 2 with 404; mend the paths"):
        profiling.profile(f"{user}:create_app()", requests=requests, **QUICK)


def test_what_is_piped_in_is_said_not_to_be_passed_on(write, folder):
    user = write("import sys\nprint(len(sys.stdin.read()))\nsum(range(10**5))")
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", "--for", "0.3", f"{user}.py"]
    done = subprocess.run(command, input="hello", capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "what is piped in is not passed on" in done.stderr
