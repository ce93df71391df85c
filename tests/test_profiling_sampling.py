"""What py-spy saw: whose stacks count, in which kind of code they were, in which thread or process."""

import json
import platform
import selectors
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from profiling_helpers import QUICK, by_name, notes

from altlas_lib import profiling
from altlas_lib.profiling.profiler import Session
from altlas_lib.profiling.record import sampling
from altlas_lib.profiling.record.folding import Project
from altlas_lib.profiling.record.sampling import NativeFrame, is_native, name_kernel_calls, time_class
from altlas_lib.profiling.run.targets import FunctionKey

# Stacks ---------------------------------------------------------------------------------------------------------------------


def recorded(threads: dict[str, list[list[tuple[str, str]]]]) -> dict:
    """A speedscope file of stacks of (function, file), outermost first."""
    frames = list(dict.fromkeys(frame for stacks in threads.values() for stack in stacks for frame in stack))
    return {
        "shared": {"frames": [{"name": name, "file": file, "line": 1, "col": None} for name, file in frames]},
        "profiles": [
            {"name": f"Process 1 Thread {name}", "samples": [[frames.index(frame) for frame in stack] for stack in stacks]}
            for name, stacks in threads.items()
        ],
    }


CALL = [("<module>", "child.py"), ("sampled_call", "/x/altlas_lib/profiling/child.py")]
MAIN, LOADS, LOOP = ("main", "/app.py"), ("loads", json.__file__), ("EpollSelector.select", selectors.__file__)
ROOT = FunctionKey("/app.py", 9, "root")


def counted(recording: dict, native: bool) -> Counter[sampling.Stack]:
    return sampling.counted(sampling.read_stacks(recording, 1, native=native), Project("/app.py"))


def shares(recording: dict, native: bool = False) -> dict[str, tuple[int, int]]:
    project = Project("/app.py")
    own, holding = sampling.by_function(counted(recording, native), project, ROOT)
    return {function.name: (own[function].total(), each.total()) for function, each in holding.items()}


def test_only_stacks_below_the_call_of_the_target_count():
    comprehension = ("main.<locals>.<genexpr>", "/app.py")
    not_ours = [[("<module>", "child.py")], [("<module>", "child.py"), ("prepare", "app.py")], [("sampled_call", "/app.py")]]
    stacks = [CALL, [*CALL, MAIN], [*CALL, MAIN, comprehension, LOADS], [*CALL, MAIN, comprehension, MAIN]]
    assert shares(recorded({"main": [*not_ours, *stacks]})) == {"root": (1, 1), "main": (3, 3)}


def test_a_wait_for_other_threads_is_theirs():
    """The calling thread waits in 6 of 10 stacks, in 4 of them for the work of another: 10 stacks are counted, not 14."""
    thread = ("Thread.run", threading.__file__)
    work, lock = ("work", "/app.py"), ("Condition.wait", threading.__file__)
    threads = {
        "main": [[*CALL, LOOP]] * 6 + [[*CALL, MAIN]] * 4,
        "works": [[thread, work]] * 4 + [[thread]] * 6,
        "waits": [[thread, work, lock]] * 10,
    }
    assert shares(recorded(threads)) == {"main": (4, 4), "work": (4, 4), "root": (2, 2)}
    threads["works"] = [[thread, work]] * 10  # also while the calling thread works: nothing of that is left out
    assert shares(recorded(threads)) == {"main": (4, 4), "work": (10, 10)}


def test_a_flame_graph_has_the_users_functions_and_the_libraries_below_them():
    numpy = [("sum", "/x/site-packages/numpy/core.py"), ("wrap", "/x/site-packages/scipy/y.py")]
    leaf = ("DOUBLE_add", "/x/site-packages/numpy/_core/_multiarray_umath.cpython-311.so")
    stacks = [[*CALL, LOOP, MAIN, *numpy, leaf]] * 3 + [[*CALL, LOOP, MAIN, LOADS, ("a;b", "/app.py")], [*CALL, LOOP]]
    project = Project("/app.py")
    assert sampling.flame_stacks(counted(recorded({"main": stacks}), True), project, ROOT) == {
        "root;main;numpy;scipy;[arrays]": 3,
        "root;main;json;a,b;[interpreter]": 1,
        "root;selectors;[waiting]": 1,
    }


# Where py-spy cannot keep up ------------------------------------------------------------------------------------------------


class FakePySpy:
    """Falls behind with native frames, at its full rate or always."""

    attempts: list[tuple[int, bool]] = []  # noqa: RUF012
    keeps_up_hz = 0

    def __init__(self, pid: int, rate_hz: int, *, native: bool):
        self.attempts.append((rate_hz, native))
        self.rate_hz, self.native = rate_hz, native

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def is_behind(self) -> bool:
        return self.native and self.rate_hz > self.keeps_up_hz

    def recording(self) -> dict:
        leaf = [("sgemm", "/v/site-packages/numpy.libs/libopenblas.so")] if self.native else []
        return recorded({"main": [[*CALL, MAIN, *leaf]] * 10})


@pytest.mark.parametrize(
    ("keeps_up_hz", "attempts", "classes"),
    [(20, [(200, True), (20, True)], {"arrays": 1}), (0, [(200, True), (20, True), (200, False)], {})],
)
def test_of_a_process_that_is_too_large_fewer_samples_are_taken_or_no_native_frames(
    monkeypatch, keeps_up_hz, attempts, classes
):
    finished, notes = [], []

    def repeat():
        yield from [None] * 3
        finished.append(True)

    monkeypatch.setattr(sampling, "PySpy", FakePySpy)
    monkeypatch.setattr(FakePySpy, "keeps_up_hz", keeps_up_hz)
    FakePySpy.attempts.clear()
    stacks = sampling.sample(1, repeat, notes)
    assert FakePySpy.attempts == attempts
    assert finished == [True] * len(attempts)  # what the sampler leaves goes on to its end: the child is ready for the next job
    assert notes[0] == "py-spy with native frames, 200 times a second: it cannot keep up"
    assert len(notes) == len(attempts) - 1
    session = Session("app:main", b"", 60, lambda: None)
    session.keep(FunctionKey("/app.py", 1, "main"))
    session.stacks = stacks
    (function,) = session.functions().values()
    assert (function.sampled_own_share, function.own_by_class) == (1, classes)


def test_py_spy_that_cannot_follow_native_frames_goes_on_without(monkeypatch, py_spy_permitted):
    real = sampling.PySpy.__init__

    def without_native(self, pid: int, rate_hz: int, *, native: bool) -> None:
        if native:
            raise profiling.ProfilingError("--native is not supported on your platform")
        real(self, pid, rate_hz, native=native)

    monkeypatch.setattr(sampling.PySpy, "__init__", without_native)
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
        ([("0x7f00", "")], "arrays"),  # compiled at run time
        ([("0x7f00", ""), ("call", TORCH)], "framework"),
        ([("0x7f00", ""), ("0x1", "/opt/lib/libuser.so")], "other native"),
        ([("0x7f12", LIBC), ("PyThread_acquire_lock_timed", PYTHON), ("lock_acquire", PYTHON)], "waiting"),
        ([("syscall", LIBC), ("0x7f12", LIBC)], "waiting"),
        ([("syscall", LIBC), ("0x1", "/v/site-packages/torch/lib/libgomp-98b21ff3.so.1")], "framework"),
        ([("syscall", LIBC), ("0x1", "/usr/lib/libgomp.so.1")], "arrays"),
    ],
)
def test_the_class_of_innermost_native_frames(frames, expected):
    assert all(is_native(file) for _, file in frames)
    assert time_class([NativeFrame(*frame) for frame in frames]) == expected


def test_a_kernel_compiled_at_run_time_belongs_to_the_library_whose_python_called_it():
    compiled = [NativeFrame("0x7f00", "")]
    assert time_class(compiled, "/v/site-packages/torch/nn/modules/conv.py") == "framework"
    assert time_class(compiled, "/app/main.py") == "arrays"


@pytest.mark.parametrize("file", ["/app/main.py", "<string>", "<frozen os>", "/usr/bin/tool", "/tmp/ipykernel_1/2.py", "x.pyw"])
def test_a_python_file_is_not_native(file):
    assert not is_native(file)


@pytest.mark.parametrize("file", ["", "/usr/include/c++/12/bits/vector.tcc", "/b/kernel.cu", "/usr/lib/libc.so.6", "[vdso]"])
def test_compiled_code_is_native(file):
    assert is_native(file)


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


# Waits, threads and processes -----------------------------------------------------------------------------------------------

WAITS = """
    import queue, select, subprocess, sys, threading, time

    lock = threading.Lock()
    lock.acquire()

    def on_lock(): lock.acquire(timeout=0.03)
    def on_event(): threading.Event().wait(0.03)
    def on_simple_queue():
        try: queue.SimpleQueue().get(timeout=0.03)
        except queue.Empty: pass
    def on_thread():
        thread = threading.Thread(target=time.sleep, args=[0.03])
        thread.start()
        thread.join()
    def on_time(): time.sleep(0.03)
    def on_nothing(): select.select([], [], [], 0.03)
    def on_process(): subprocess.run(["sleep", "0.03"])
    def copies(data=bytes(10**7)):
        stop = time.perf_counter() + 0.03
        while time.perf_counter() < stop: bytearray(data)
    def loops():
        stop = time.perf_counter() + 0.03
        while time.perf_counter() < stop: sum(range(1000))

    def main():
        for function in (on_lock, on_event, on_simple_queue, on_thread, on_time, on_nothing, on_process, copies, loops):
            function()
"""


def test_a_wait_is_one_whatever_symbols_the_c_library_has(write, py_spy_permitted):
    """Where it has none (Debian's, or that of a Python that was built by itself), a lock is two nameless addresses."""
    functions = by_name(profiling.profile(f"{write(WAITS)}:main", **{**QUICK, "sampling_s": 1.5}))
    if not functions["on_lock"].own_by_class:
        pytest.skip("no native frames here")
    for name, function in functions.items():
        if name.startswith("on_"):
            assert function.own_by_class.get("waiting", 0) > 0.8, (name, function.own_by_class)
    for name in ("copies", "loops"):
        assert functions[name].own_by_class["interpreter"] > 0.8, (name, functions[name].own_by_class)


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="other machine code")
def test_an_address_behind_a_call_of_the_kernel_is_told_from_others():
    """The addresses are a sleeping thread's own, as the kernel gives them, and its neighbours."""
    with subprocess.Popen(["sleep", "600"]) as sleeping:
        try:
            while not (call := Path(f"/proc/{sleeping.pid}/syscall").read_text().split())[0].isdigit():
                pass
            address = int(call[-1], 16)
            maps = Path(f"/proc/{sleeping.pid}/maps").read_text().splitlines()
            file = next(line.split()[-1] for line in maps if in_extent(address, line.split()[0]))
            names = [
                (hex(address), file),
                (hex(address + 1), file),
                (hex(address), "/app/other.so"),
                ("0x10", file),
                ("read", file),
            ]
            pids = [4194000, sleeping.pid]  # the first one has ended
            named = [name_kernel_calls(NativeFrame(*each), pids).function for each in names]
            assert named == ["syscall", *(name for name, _ in names[1:])]
        finally:
            sleeping.kill()


def in_extent(address: int, extent: str) -> bool:
    start, end = (int(bound, 16) for bound in extent.split("-"))
    return start <= address < end


POOLS = """
    import multiprocessing, time
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    executor = None

    def burn(seconds):
        stop = time.thread_time() + seconds
        while time.thread_time() < stop:
            pass

    def kept_pool():
        global executor
        executor = executor or ProcessPoolExecutor(2)
        list(executor.map(burn, [0.05] * 4))

    def new_pool():
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            pool.map(burn, [0.1] * 4)

    def threads():
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(burn, [0.05] * 4))
"""


@pytest.mark.parametrize("pool", ["kept_pool", "new_pool", "threads"])
def test_workers_are_sampled_and_the_user_is_told_where_a_function_ran(write, py_spy_permitted, pool):
    profile = profiling.profile(f"{write(POOLS)}:{pool}", **{**QUICK, "sampling_s": 1})
    burn = by_name(profile)["burn"]
    assert burn.ran_in == ("another thread" if pool == "threads" else "another process")
    assert by_name(profile)[pool].ran_in == "the calling thread"
    assert (burn.own, burn.n_calls) == (None, None)
    assert burn.sampled_own_share > (0.4 if pool == "new_pool" else 0.7)  # a new pool costs as much as the work
    assert profile.is_parallel
    assert profile.cpu.low > 0.15  # the workers' too, whether they live on or not
    of_processes = [note for note in profile.notes if "processor time went to processes that the target started" in note]
    assert bool(of_processes) == (pool != "threads")
    assert all("py-spy took" in note and "took 0 samples" not in note for note in of_processes)


def test_processes_that_are_no_python_are_told_of_too(write, py_spy_permitted):
    user = write("""
        import subprocess

        def main(): subprocess.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
    """)
    profile = profiling.profile(f"{user}:main", **QUICK)
    assert any("py-spy took 0 samples of Python in them" in note for note in profile.notes)
    assert by_name(profile)["main"].own_by_class.get("waiting", 1) > 0.8


COMPILED = """
    import numba, numpy as np

    @numba.njit(cache=True)
    def total(x, n):
        s = 0.0
        for _ in range(n):
            for i in range(x.size):
                s += x[i] - 0.5 * s
        return s

    x = np.ones(50_000)

    def loop(): return total(x, 300)
    def other(): return sum(i * i for i in range(100_000))
    def main(): return loop() + other()
"""


def test_a_compiled_function_is_its_callers_under_every_tool(write, py_spy_permitted):
    profile = profiling.profile(f"{write(COMPILED)}:main", **{**QUICK, "sampling_s": 1})
    functions = by_name(profile)
    assert set(functions) == {"main", "loop", "other"}
    assert functions["loop"].sampled_own_share > 0.5
    assert profile.cprofile_share(functions["loop"]) > 0.5
    if sys.version_info < (3, 12):  # later ones do not show it
        assert functions["loop"].own_by_library["numba"] > 0.8
    if functions["loop"].own_by_class:
        assert functions["loop"].own_by_class["arrays"] > 0.9
    assert not notes(profile)
