"""What is measured: warm runs, processor time beside the time that passes, other programs, and other functions."""

import contextlib
import dataclasses
import enum
import functools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from profiling_helpers import QUICK, by_name, tools_used
from scipy import sparse

from altlas_lib import devices, profiling
from altlas_lib.profiling.record.measure import compare_answers, measure, timed_run
from altlas_lib.profiling.run.targets import FunctionKey, Runnable
from altlas_lib.results import LARGEST_OTHER_LOAD, Quantity, WorkloadProfile

BURN = """
    import os, sys, time

    def burn(seconds=0.02):
        stop = time.thread_time() + seconds
        while time.thread_time() < stop:
            pass
"""


def runnable_of(target) -> Runnable:
    return Runnable("target", target, FunctionKey.of(target.__code__))


def burn(seconds: float) -> None:
    stop = time.thread_time() + seconds
    while time.thread_time() < stop:
        pass


# Warm runs ------------------------------------------------------------------------------------------------------------------


def test_a_slow_first_call_is_neither_timed_nor_sampled(write, py_spy_permitted):
    """Such as one that imports a framework: it takes longer than all that is sampled."""
    user = write(
        BURN
        + """
    is_warm = False

    def first():
        global is_warm
        burn(0 if is_warm else 2.2)
        is_warm = True

    def main():
        first()
        burn(0.05)
    """
    )
    profile = profiling.profile(f"{user}:main", **{**QUICK, "sampling_s": 0.5})
    assert profile.quiet_s < 0.2
    assert by_name(profile)["burn"].sampled_own_share > 0.8
    assert "first" not in by_name(profile) or by_name(profile)["first"].sampled_share < 0.1


@pytest.mark.parametrize(
    ("first_s", "warm_s", "limit_s", "plain", "under_cprofile"),
    [
        (0.01, 0.1, 60, 2, 1),  # each repeat
        (0.2, 0.2, 1.0, 1, 1),  # no repeat beyond half of the limit
        (0.2, 0.2, 0.7, 1, 0),  # only one more fits into half of the limit
        (0.2, 0.2, 0.3, 0, 0),  # none: the sampler gets the time that is left
    ],
)
def test_a_long_run_is_not_repeated_needlessly(first_s, warm_s, limit_s, plain, under_cprofile):
    found = list(measure(runnable_of(lambda: time.sleep(warm_s)), first_s, 2, limit_s))
    tools = [each.tool for each in found if not isinstance(each, str)]
    assert (tools.count("none"), tools.count("cProfile")) == (plain, under_cprofile)
    told = [each for each in found if isinstance(each, str)]
    assert any("too little of the time limit" in each for each in told) == (limit_s < 60)


def test_a_first_run_that_takes_most_of_the_time_leaves_a_warm_one_to_the_sampler(write, py_spy_permitted):
    user = write(
        BURN
        + """
    n_runs = 0

    def main():
        global n_runs
        n_runs += 1
        time.sleep(6 if n_runs == 1 else 0)
        burn(0.05)
    """
    )
    profile = profiling.profile(f"{user}:main", **{**QUICK, "time_limit_s": 10})
    assert profile.total.value < 1
    assert by_name(profile)["burn"].sampled_own_share > 0.8
    assert "the total is that of runs under py-spy: there was no time for another" in profile.notes


def test_a_target_that_hangs_in_a_later_run_keeps_what_was_found(write, py_spy_permitted):
    """1 run to warm up, 1 without a profiler, 1 under cProfile; the next never ends."""
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
    profile = profiling.profile(f"{write(source.format(last=3))}:main", **options)
    functions = by_name(profile)
    assert functions["stuck"].sampled_own_share > 0.9
    assert functions["stuck"].own is None
    assert functions["count"].n_calls == 1
    assert profile.total.value < 1
    assert tools_used(profile) == ["cProfile", "py-spy"]
    assert any(note.startswith("not finished:") for note in profile.notes)
    assert any(note.startswith("no trace of arrays: time_limit_s=6 is over") for note in profile.notes)

    Path("runs").unlink()
    profile = profiling.profile(f"{write(source.format(last=2))}:main", **{**options, "time_limit_s": 3})
    assert (profile.functions, profile.total.n_runs) == ([], 1)
    assert {note.partition(":")[0] for note in profile.notes} >= {"not finished", "py-spy gave no shares"}


# Processor time and other programs ------------------------------------------------------------------------------------------


def test_a_run_tells_work_from_waiting_and_threads_from_the_caller():
    def target():
        time.sleep(0.1)
        burn(0.1)
        thread = threading.Thread(target=burn, args=[0.1])
        thread.start()
        thread.join()

    run = timed_run(runnable_of(target), "none")
    assert run.cpu_s == pytest.approx(0.2, abs=0.05)
    assert run.calling_s == pytest.approx(0.1, abs=0.03)
    assert run.processes_s == 0
    assert run.wall_s >= 0.3
    assert run.is_parallel
    if run.quiet_s is not None:
        assert 0.19 <= run.quiet_s <= run.wall_s
    alone = timed_run(runnable_of(lambda: burn(0.1)), "none")
    assert not alone.is_parallel


def test_processor_time_of_processes_counts_whether_they_have_ended_or_not():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as lives_on:
        try:
            run = timed_run(runnable_of(lambda: time.sleep(0.5)), "none")
        finally:
            lives_on.kill()
    if sys.platform == "linux":
        assert run.processes_s > 0.05
    command = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    run = timed_run(runnable_of(lambda: subprocess.run(command, check=True)), "none")
    assert 0.28 < run.processes_s < 1
    assert run.is_parallel


@contextlib.contextmanager
def busy_machine(programs_per_processor: int = 2):
    """Other programs that want every processor."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    n = programs_per_processor * (os.cpu_count() or 1)
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) for _ in range(n)]
    try:
        for program in programs:
            program.stdout.readline()
        yield {program.pid for program in programs}
    finally:
        for program in programs:
            program.kill()
            program.communicate()


@pytest.fixture
def belongs_to_others(monkeypatch):
    """The busy programs are this process' own children, which would pass for its own work."""
    import psutil

    real, others = psutil.Process.children, set()
    monkeypatch.setattr(
        psutil.Process, "children", lambda self, recursive=False: [c for c in real(self, recursive) if c.pid not in others]
    )
    return others


def test_a_busy_machine_does_not_inflate_the_time_by_which_a_gain_is_judged(write, belongs_to_others):
    """The target wants 50 ms of one processor and sleeps 20 ms: 70 ms on a quiet machine, held to a factor of 1.4."""
    user = write(BURN + "\n    def main():\n        burn(0.05)\n        time.sleep(0.02)\n")
    with busy_machine() as pids:
        belongs_to_others |= pids
        profile = profiling.profile(f"{user}:main", **{**QUICK, "n_repeats": 3})
    assert profile.other_load > LARGEST_OTHER_LOAD
    assert 0.069 < profile.quiet_s < 1.4 * 0.07
    assert profile.total.value > 1.4 * 0.07  # what passed for the time of a run before
    assert profile.cpu.value == pytest.approx(0.05, rel=0.2)
    assert not profile.is_parallel
    assert not profile.is_too_busy
    assert any(note.startswith("other programs took") for note in profile.notes)


def test_a_parallel_target_on_a_busy_machine_is_not_priced(write, belongs_to_others):
    user = write("""
        import numpy as np

        x = np.ones((1500, 1500))

        def main(): return x @ x.copy()
    """)
    with busy_machine() as pids:
        belongs_to_others |= pids
        profile = profiling.profile(f"{user}:main", **QUICK)
    if os.cpu_count() == 1:
        pytest.skip("one processor: nothing is parallel here")
    assert profile.is_parallel
    assert profile.is_too_busy


@pytest.mark.parametrize(
    ("load", "is_parallel", "quiet", "is_too_busy"),
    [
        (None, True, True, False),
        (LARGEST_OTHER_LOAD, True, True, False),
        (0.5, True, True, True),
        (0.5, False, True, False),
        (0.5, False, False, True),  # this system does not tell waiting from other programs' turns
        (0.1, False, False, False),
    ],
)
def test_what_is_too_busy_to_be_priced(load, is_parallel, quiet, is_too_busy):
    total = Quantity.measured([2.0, 3.0], "s", "a CPU")
    of_quiet = Quantity.measured([1.5, 1.6], "s", "a CPU") if quiet else None
    profile = WorkloadProfile(
        workload="w", target="t", total=total, quiet=of_quiet, functions=[], other_load=load, is_parallel=is_parallel
    )
    assert profile.is_too_busy == is_too_busy
    assert profile.quiet_s == (1.5 if quiet else 2.0)
    unknown = WorkloadProfile(workload="w", target="t", total=None, functions=[])
    assert unknown.quiet_s is None
    assert not unknown.is_too_busy


def test_other_load_is_that_of_others(belongs_to_others):
    with devices.OtherLoad() as load, busy_machine() as pids:
        time.sleep(0.6)
    ours = load.share
    belongs_to_others |= pids
    with busy_machine() as pids:
        belongs_to_others |= pids
        with devices.OtherLoad() as load:
            time.sleep(0.6)
    assert load.share > 0.4
    assert 0 <= ours <= 1
    with devices.OtherLoad() as load:
        pass
    assert load.share is None  # nothing to go by


def test_a_callable_is_measured_in_the_same_way():
    profile = profiling.profile(functools.partial(burn, 0.02), n_repeats=2, trace_arrays=False)
    assert profile.cpu.low == pytest.approx(0.02, rel=0.3)
    assert profile.quiet_s == pytest.approx(0.02, rel=0.5)
    assert profile.n_runs > 5


# cProfile and threads -------------------------------------------------------------------------------------------------------

THREADED = (
    BURN
    + """
    import threading
    from concurrent.futures import ThreadPoolExecutor

    executor = None

    def inner(): burn(0.05)
    def elsewhere(): burn(0.05)

    def new_thread():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        inner()
        thread.join()

    def kept_thread():
        global executor
        executor = executor or ThreadPoolExecutor(1)
        future = executor.submit(elsewhere)
        inner()
        future.result()
"""
)


@pytest.mark.parametrize("name", ["new_thread", "kept_thread"])
def test_cprofile_records_the_calling_thread_on_every_python(write, py_spy_permitted, name):
    """From 3.12 on it is told of all threads and took theirs for its own; inner's 50 ms came out as 5."""
    functions = by_name(profiling.profile(f"{write(THREADED)}:{name}", **{**QUICK, "n_repeats": 2}))
    assert functions["burn"].n_calls == functions["inner"].n_calls == 1
    assert functions["burn"].own.low >= 0.049
    assert functions["inner"].cumulative.low >= functions["burn"].own.low * 0.99
    assert functions.get("elsewhere") is None or functions["elsewhere"].n_calls is None


# Alternatives -----------------------------------------------------------------------------------------------------------------

ALTERNATIVES = (
    BURN
    + """
    import numpy as np

    def load(n=1000):
        with open("loads", "a") as file:
            file.write("x")
        return np.arange(n, dtype=np.float64)

    def slow(x): burn(0.06); return x.sum(), x / 3
    def fast(x): burn(0.02); return float(x.sum()), (x.astype(np.float32) / 3).astype(np.float32)
    def wrong(x): return float(x.sum()) + 1, x / 3
    def fails(x): raise KeyError("colour")
    def fails_later(x, seen=[]):
        seen.append(1)
        if len(seen) > 1: raise KeyError("later")
        return slow(x)
    def hangs(x):
        while True: pass
    def exits(x): os._exit(3)
    def sorts(x): x[::-1].sort(); burn(0.01)
    def sorts_too(x): x[:] = np.sort(x)[::-1]
    def sorts_not(x): burn(0.01)
"""
)


def test_alternatives_are_measured_beside_the_target_and_their_answers_compared(write, folder):
    user = write(ALTERNATIVES)
    names = [f"{user}:{name}" for name in ("fast", "wrong", "fails", "fails_later", "exits", "no_such", "fast")]
    profile = profiling.profile(f"{user}:slow", setup=f"{user}:load", alternatives=names, **{**QUICK, "n_repeats": 3})
    fast, wrong, again = profile.alternatives
    assert fast.name == again.name == f"{user}:fast"
    assert (fast.same_answer, wrong.same_answer) == (True, False)
    assert 2 < fast.gain.value < 4.5
    assert fast.gain.low <= fast.gain.value <= fast.gain.high
    assert fast.time.value == pytest.approx(0.02, rel=0.4)
    assert fast.gain.n_runs >= 3
    told = {note.partition(": ")[0]: note for note in profile.notes if note.startswith("alternative")}
    assert "raised KeyError: 'colour'" in told[f"alternative '{user}:fails'"]
    assert "raised KeyError: 'later'" in told[f"alternative '{user}:fails_later'"]
    assert "with status 3" in told[f"alternative '{user}:exits'"]
    assert "has no 'no_such'" in told[f"alternative '{user}:no_such'"]
    assert profile.n_runs > 10


def test_an_alternative_that_never_ends_takes_no_more_than_half_of_the_time_that_is_left(write, folder):
    user = write(ALTERNATIVES)
    options = {**QUICK, "time_limit_s": 16, "alternatives": [f"{user}:hangs", f"{user}:fast"]}
    profile = profiling.profile(f"{user}:slow", setup=f"{user}:load", **options)
    assert [each.name for each in profile.alternatives] == [f"{user}:fast"]
    assert any(note.startswith(f"alternative '{user}:hangs'") for note in profile.notes)


def test_functions_that_change_their_input_get_one_each_and_are_compared_by_it(write, folder):
    user = write(ALTERNATIVES)
    names = [f"{user}:sorts_too", f"{user}:sorts_not"]
    profile = profiling.profile(f"{user}:sorts", setup=f"{user}:load", alternatives=names, **QUICK)
    assert [each.same_answer for each in profile.alternatives] == [True, False]
    assert Path("loads").read_text() == "x" * 5  # one for all tools, two for each race


def test_callables_can_race_too():
    def double(x):
        return [2 * each for each in x]

    def twice(x):
        return tuple(each + each for each in x)

    def broken(x):
        raise ValueError(x)

    profile = profiling.profile(double, arguments={"x": [1, 2]}, alternatives=[twice, broken], n_repeats=1, trace_arrays=False)
    (alternative,) = profile.alternatives
    assert alternative.same_answer
    assert alternative.name.endswith("twice")
    assert any("broken" in note and "ValueError" in note for note in profile.notes)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "json:dumps",
            {"requests": [{"path": "/"}], "alternatives": ["json:dumps"]},
            "is a web application, for which alternatives mean nothing",
        ),
    ],
)
def test_where_alternatives_mean_nothing(target, options, message):
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(target, **options)


@dataclasses.dataclass
class Answer:
    scores: np.ndarray
    name: str


class Colour(enum.Enum):
    RED = 1


class Opaque:
    pass


class Raises:
    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None


X = np.linspace(0, 1, 1000)
CYCLE = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        (X, X + 1e-12, True),
        (X, X + 1e-5, False),
        (X, X.astype(np.float32), True),
        (X.astype(np.float32), X.astype(np.float16), True),
        (X * 1e9, X * 1e9 + 1e-3, True),  # relative to the largest
        (X, X.reshape(10, 100), False),
        (X, X.tolist(), True),
        (np.array([1, np.nan, np.inf]), np.array([1, np.nan, np.inf]), True),
        (np.array([1, np.nan]), np.array([1, 2.0]), False),
        (np.array([1, np.inf]), np.array([1, -np.inf]), False),
        (np.array([1 + 1j]), np.array([1 + 2j]), False),
        (np.array([], dtype=np.float32), np.array([], dtype=np.float64), True),
        (np.arange(5), np.arange(5), True),
        (np.arange(5), np.arange(5) + 1, False),
        (np.array([2**63 - 1]), np.array([2**63 - 2]), False),
        (np.array(["a", "b"]), np.array(["a", "b"]), True),
        (np.array(["a", "b"]), np.array(["a", "c"]), False),
        (np.array([1, "a", None], dtype=object), np.array([1, "a", None], dtype=object), True),
        (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object), False),
        (sparse.csr_array(np.eye(5)), sparse.coo_array(np.eye(5)), True),
        (sparse.csr_array(np.eye(5)), sparse.csr_array(2 * np.eye(5)), False),
        (sparse.csr_array(np.eye(5)), np.eye(5), True),
        (sparse.csr_array(np.eye(5)), sparse.csr_array(np.eye(6)), False),
        ({"a": X, "b": [1, (2, X)]}, {"a": X, "b": (1, [2, X])}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1, 2, 3], [1, 2], False),
        ([(0, 1, 0.5)], [(0, 1, 0.5 + 1e-12)], True),
        ([(0, 1, 0.5)], [(0, 2, 0.5)], False),
        (Answer(X, "a"), Answer(X + 1e-13, "a"), True),
        (Answer(X, "a"), Answer(X, "b"), False),
        (0.1 + 0.2, 0.3, True),
        (0.0, 1e-300, True),
        (1, 2, False),
        (True, 1, True),
        (None, None, True),
        (None, 0, False),
        ("a", "a", True),
        ("a", b"a", False),
        ({1, 2}, {2, 1}, True),
        (Colour.RED, Colour.RED, True),
        (iter([1]), iter([1]), None),
        (Opaque(), Opaque(), None),
        ([1, Opaque()], [1, Opaque()], None),
        ([1, Opaque()], [2, Opaque()], False),
        (Raises(), Raises(), None),
        (CYCLE, CYCLE, None),
    ],
)
def test_when_answers_are_the_same(expected, given, same):
    assert compare_answers(expected, given) is same
    if same is not None:
        assert compare_answers(given, expected) is same


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children) | st.tuples(children, children),
)


@given(nested)
@example([[1, 2], [3]])
@example([10**400, 1])
def test_every_answer_agrees_with_itself(answer):
    assert compare_answers(answer, answer) is True


@given(st.lists(st.floats(-1e4, 1e4), min_size=1), st.integers(0, 10**9), st.floats(1e-3, 1e3))
def test_a_difference_is_found_wherever_it_is(numbers, where, difference):
    changed = [*numbers]
    changed[where % len(numbers)] += difference
    assert compare_answers(numbers, changed) is False
