"""Programs whose true split of time is known, and programs that misbehave."""

import copy
import cProfile
import importlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiling_helpers import QUICK, alive, notes, tools_used

from altlas_lib import profiling
from altlas_lib.profiling.record import sampling
from altlas_lib.profiling.record.folding import OWN_LINES, CallGraph, Project, Time, fold
from altlas_lib.profiling.run.targets import FunctionKey, prepare
from altlas_lib.workloads import segmentation


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module and returns its name, another one each time."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")

    def write(source: str, name: str | None = None, folder: str = "") -> str:
        name = name or f"user_{random.getrandbits(64):x}"
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return write


# The split of time ------------------------------------------------------------------------------------------------------

BURN = """
    import time

    def burn(seconds):  # processor time, so that a busy machine or a profiler does not change the split
        stop = time.process_time() + seconds
        while time.process_time() < stop:
            pass

    def apply(function):
        function()
"""


def test_the_true_split_of_time_is_found(module, py_spy_permitted):
    """Of 12 ms, 3 are spent in a library that `left` calls, 9 in the user's `work`, which the library calls back."""
    library = module(BURN, folder="site-packages")
    user = module(f"""
        import time
        import {library}

        def left():
            {library}.burn(0.003)

        def work():
            stop = time.process_time() + 0.009
            while time.process_time() < stop:
                pass

        def right():
            [{library}.apply(function) for function in [work]]

        def main():
            for _ in range(10):
                left()
                right()
    """)
    profile = profiling.profile(f"{user}:main", n_repeats=3, sampling_s=1.5, n_line_functions=2, trace_arrays=False)
    functions = {function.name: function for function in profile.functions}
    assert set(functions) == {"main", "left", "right", "work"}  # the library and the comprehension are folded
    assert functions["work"].file == f"{user}.py"
    assert functions["left"].n_calls == 10
    for share in (profile.cprofile_share, lambda function: function.sampled_own_share):
        assert share(functions["left"]) == pytest.approx(0.25, abs=0.1)
        assert share(functions["work"]) == pytest.approx(0.75, abs=0.1)
        assert share(functions["right"]) < 0.05
    assert functions["main"].sampled_share == pytest.approx(1, abs=0.05)
    assert functions["right"].sampled_share == pytest.approx(0.75, abs=0.1)
    assert functions["right"].cumulative.value == pytest.approx(functions["work"].own.value, rel=0.1)
    assert functions["left"].own_by_library[library] + functions["left"].own_by_library["time"] > 0.9
    assert sum(functions["left"].own_by_library.values()) == pytest.approx(1)
    assert profile.total.basis == "measured"
    assert profile.total.value > 0.1
    assert profile.n_samples > 50
    assert not notes(profile)
    assert [function.name for function in profile.functions[:2]] == ["work", "left"]
    assert functions["work"].lines[0].source == "while time.process_time() < stop:"
    assert functions["left"].lines[0].n_hits == 10
    assert functions["left"].lines[0].share == pytest.approx(1, abs=0.05)
    assert not functions["main"].lines
    assert tools_used(profile) == ["cProfile", "py-spy", "line_profiler"]


def test_setup_and_imports_are_not_charged(module, py_spy_permitted):
    user = module("""
        import time
        time.sleep(0.5)

        def prepare(n):
            time.sleep(0.5)
            return list(range(n))

        def run(numbers):
            return sum(number * number for number in numbers)
    """)
    profile = profiling.profile(f"{user}:run", setup=f"{user}:prepare", arguments={"n": 50_000}, **QUICK)
    assert [function.name for function in profile.functions] == ["run"]
    assert profile.functions[0].own.value < 0.4
    assert profile.functions[0].sampled_own_share == 1


def test_a_library_can_be_the_target():
    profile = profiling.profile(json.dumps, arguments={"obj": list(range(1000)), "indent": 1}, **QUICK)
    assert {function.file.split(os.sep)[0] for function in profile.functions} == {"json"}
    assert "JSONEncoder.encode" in {function.name for function in profile.functions}


def test_a_builtin_target_has_one_row():
    profile = profiling.profile(sorted, setup=lambda: list(range(1000)), **QUICK)
    assert [function.name for function in profile.functions] == ["builtins:sorted"]


class Service:
    def __init__(self):
        self.numbers = [i * i for i in range(1000)]

    def __call__(self):
        return sum(number * number for number in self.numbers)


@pytest.mark.parametrize(("target", "name"), [(Service, "Service.__init__"), (Service(), "Service.__call__")])
def test_a_class_and_an_instance_can_be_the_target(target, name):
    (function,) = profiling.profile(target, **QUICK).functions
    assert (function.name, function.n_calls) == (name, 1)


class Tree:
    """A made-up run, recorded as cProfile records, and with the truth: own time by the user's function that is above."""

    def __init__(self, seed: int, *, callbacks: bool):
        self.random = random.Random(seed)
        self.callbacks = callbacks
        self.functions, self.calls = {}, {}
        self.truth = defaultdict(float)
        self.active = Counter()
        self.root = key("user-0")
        self.call(self.root, None, self.root, depth=0)

    def call(self, function: FunctionKey, caller: FunctionKey | None, user: FunctionKey, depth: int) -> float:
        user = function if is_user(function) else user
        self.active[function] += 1
        self.active[caller, function] += 1
        own = cumulative = self.random.choice([0, 0.1, 1, 5])
        self.truth[user] += own
        for _ in range(self.random.randrange(4) if depth < 5 else 0):
            cumulative += self.call(self.choose(function), function, user, depth + 1)
        self.active[function] -= 1
        self.active[caller, function] -= 1
        self.add(self.functions, function, own, 0 if self.active[function] else cumulative)
        if caller:
            self.add(self.calls, (caller, function), own, 0 if self.active[caller, function] else cumulative)
        return cumulative

    def choose(self, caller: FunctionKey) -> FunctionKey:
        if self.callbacks:  # anything may call anything, itself included
            return key(self.random.choice(["user-0", "user-1", "user-2", "lib-0", "lib-1", "lib-2"]))
        kind, number = caller.name.split("-")
        libraries = [f"lib-{i}" for i in range(int(number) + 1 if kind == "lib" else 0, 8)]
        users = [f"user-{i}" for i in range(int(number) + 1, 4)] if kind == "user" else []
        return key(self.random.choice([*libraries, *users] or ["lib-8"]))

    @staticmethod
    def add(times: dict, name, own: float, cumulative: float) -> None:
        times[name] = times.get(name, Time(0, 0, 0)) + Time(1, own, cumulative)


def key(name: str) -> FunctionKey:
    return FunctionKey(f"{name}.py", 1, name)


def is_user(function: FunctionKey) -> bool:
    return function.name.startswith("user")


def folded(tree: Tree) -> dict[FunctionKey, float]:
    graph = CallGraph(functions=[*tree.functions.items()], calls=[(*pair, time) for pair, time in tree.calls.items()])
    own = fold(graph, lambda function: None if is_user(function) else function.name, tree.root)
    return {function: sum(by_library.values()) for function, (_, by_library) in own.items()}


@given(st.integers(0, 2**32))
def test_folding_is_exact_without_callbacks_and_recursion(seed):
    tree = Tree(seed, callbacks=False)
    assert folded(tree) == pytest.approx(dict(tree.truth), rel=1e-6, abs=1e-6)


@given(st.integers(0, 2**32))
def test_folding_loses_no_time(seed):
    tree = Tree(seed, callbacks=True)
    own = folded(tree)
    assert sum(own.values()) == pytest.approx(sum(tree.truth.values()), rel=1e-6)
    assert all(s >= -1e-9 for s in own.values())


def test_folding_loses_no_time_of_recursive_libraries():
    def encode():
        return json.dumps(copy.deepcopy([[{"a": [i]} for i in range(50)]] * 5), indent=1)

    profiler = cProfile.Profile()
    profiler.runcall(encode)
    graph = CallGraph.of(profiler.getstats())
    root = FunctionKey.of(encode.__code__)
    own = fold(graph, Project(__file__).library, root)
    assert set(own) == {root}
    assert sum(own[root][1].values()) == pytest.approx(sum(time.own_s for _, time in graph.functions))
    assert {"copy", "json", OWN_LINES} <= set(own[root][1])


@pytest.mark.parametrize(
    ("file", "name", "library"),
    [
        ("~", "<built-in method builtins.len>", "builtins"),
        ("~", "<method 'split' of 'str' objects>", "builtins"),
        ("~", "<method 'sub' of 're.Pattern' objects>", "re"),
        ("~", "<built-in method numpy.array>", "numpy"),
        ("~", "<method 'reduce' of 'numpy.ufunc' objects>", "numpy"),
        ("~", "<built-in method _json.make_encoder>", "json"),
        ("/home/me/.venv/lib/python3.11/site-packages/pandas/core/frame.py", "DataFrame.f", "pandas"),
        ("/home/me/.venv/lib/python3.11/site-packages/six.py", "f", "six"),
        (json.__file__, "dumps", "json"),
        ("<string>", "__init__", "generated code"),
        ("/home/me/project/.venv/../app.py", "f", None),
        ("/home/me/project/app.py", "f.<locals>.<listcomp>", OWN_LINES),
        ("/home/me/project/app.py", "f.<locals>.<lambda>", None),
    ],
)
def test_whose_function_it_is(file, name, library):
    assert Project("/home/me/project/main.py").library(FunctionKey(file, 1, name)) == library


# A profile changes nothing ----------------------------------------------------------------------------------------------


SERVICES = """
    import hashlib, json, pathlib, random, uuid
    from altlas_lib.workloads import inference, segmentation

    def prepare():
        words = [f"word{i}" for i in range(300)]
        choose = random.Random(0).choices
        texts = [". ".join(" ".join(choose(words, k=9)).capitalize() for _ in range(6)) + "." for _ in range(30)]
        return texts, [json.dumps({"id": i, "texts": texts[i : i + 4]}) for i in range(4)]

    def digest(inputs):
        texts, requests = inputs
        output = repr((segmentation.run(texts, threshold=0.5), inference.run(requests)))
        return hashlib.sha256(output.encode()).hexdigest()

    def run(folder):
        pathlib.Path(folder, uuid.uuid4().hex).write_text(digest(prepare()))
"""


def test_the_result_is_the_same_with_and_without_the_profilers(module, tmp_path, py_spy_permitted):
    user = module(SERVICES)
    outputs = tmp_path / "digests"
    outputs.mkdir()
    options = {**QUICK, "n_line_functions": 2, "trace_arrays": True}
    profile = profiling.profile(f"{user}:run", arguments={"folder": str(outputs)}, **options)
    assert tools_used(profile) == ["cProfile", "py-spy", "line_profiler", "array trace"], profile.notes
    services = importlib.import_module(user)
    plain = services.digest(services.prepare())
    digests = [path.read_text() for path in outputs.iterdir()]
    assert len(digests) >= 6  # each tool runs at least once, after one run to warm up
    assert set(digests) == {plain}


# Targets that misbehave -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "expected 'module:function'"),
        ("json", "expected 'module:function'"),
        ("os; rm -rf:x", "expected 'module:function'"),
        ("no_such_module_here:f", "raised ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("json.no_such:f", "raised ModuleNotFoundError: No module named 'json.no_such'"),
        ("json:dump_s", "json has no 'dump_s'; did you mean 'dumps'"),
        ("json:zzz", "name a function that it defines"),
        ("json:__name__", "is str, not callable"),
    ],
)
def test_a_name_that_leads_nowhere(target, message):
    with pytest.raises(profiling.ProfilingError, match=message):
        prepare(target, None, {})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def main(:", r"raised SyntaxError: invalid syntax \(user_.*\.py, line 1\)"),
        ("1 / 0", "raised ZeroDivisionError: division by zero at"),
        ("import sys; sys.exit('not as a module')", "raised SystemExit: not as a module"),
        ("import no_such_dependency", "raised ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("async def main(): yield", "is a generator"),
        ("def main(): yield", "is a generator"),
    ],
)
def test_a_module_that_misbehaves(module, source, message):
    with pytest.raises(profiling.ProfilingError, match=message):
        prepare(f"{module(source)}:main", None, {})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise KeyError('colour')", "raised KeyError: 'colour' at .*:2"),
        ("import sys; sys.exit(3)", r"ended by sys.exit\(3\)"),
        ("import os; os._exit(7)", "with status 7 before it returned"),
        ("import os; os.write(2, b'boom'); os.abort()", r"by signal 6 \(Aborted\) .*last on stderr: .*boom"),
    ],
)
def test_a_target_that_raises_or_ends_its_process(module, source, message):
    user = module(f"def main():\n    {source}")
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(f"{user}:main", **QUICK)


def test_a_callable_that_raises_or_needs_arguments():
    with pytest.raises(profiling.ProfilingError, match="raised ZeroDivisionError"):
        profiling.profile(lambda: 1 / 0)
    with pytest.raises(profiling.ProfilingError, match=r"missing 1 required positional argument: 'texts' .*with arguments"):
        profiling.profile(segmentation.run)
    with pytest.raises(profiling.ProfilingError, match=r"setup .* raised FileNotFoundError"):
        profiling.profile(segmentation.run, setup=lambda: os.stat("/no/such/file"))


def test_a_target_without_end_is_ended_with_all_that_it_started(module, tmp_path):
    user = module("""
        import os, pathlib, subprocess, sys, time

        def main(folder):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            pathlib.Path(folder, "pids").write_text(f"{os.getpid()} {child.pid}")
            while True:
                pass
    """)
    start = time.monotonic()
    with pytest.raises(profiling.ProfilingError, match=r"did not finish within time_limit_s=5; .*smaller input"):
        profiling.profile(f"{user}:main", arguments={"folder": str(tmp_path)}, time_limit_s=5)
    assert time.monotonic() - start < 15
    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_what_a_target_leaves_behind_is_ended_and_what_it_prints_is_dropped(module, tmp_path, capfd):
    user = module("""
        import pathlib, subprocess, sys

        def main(folder):
            print("x" * 3_000_000)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            with open(pathlib.Path(folder, "pids"), "a") as file:
                file.write(f"{child.pid} ")
    """)
    profile = profiling.profile(f"{user}:main", arguments={"folder": str(tmp_path)}, **QUICK)
    assert profile.total.value > 0
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) >= 3
    assert not any(alive(int(pid)) for pid in pids)
    assert capfd.readouterr() == ("", "")


def test_arguments_of_any_kind_reach_the_child_and_what_cannot_is_named():
    profile = profiling.profile("builtins:sorted", setup=lambda values: values, arguments={"values": {*range(50_000)}}, **QUICK)
    assert profile.n_samples > 0
    with pytest.raises(
        profiling.ProfilingError, match=r"'builtins:sorted', its set-up or its arguments cannot reach .*make them in"
    ):
        profiling.profile("builtins:sorted", arguments={"values": (each for each in "ab")})


@pytest.mark.parametrize("number", ["n_repeats", "sampling_s", "time_limit_s"])
def test_numbers_must_be_positive(number):
    with pytest.raises(ValueError, match="must be positive, got 0"):
        profiling.profile("json:dumps", **{number: 0})


@pytest.mark.parametrize("which", ["absent", "refused"])
def test_without_py_spy_the_profile_says_so(monkeypatch, tmp_path, which):
    refusing = tmp_path / "py-spy"
    refusing.write_text("#!/bin/sh\necho 'Error: Permission Denied: Try again with elevated permissions' >&2\nexit 1\n")
    refusing.chmod(0o755)
    found = None if which == "absent" else str(refusing)
    monkeypatch.setattr(sampling.shutil, "which", lambda *arguments, **options: found)
    profile = profiling.profile("json:dumps", arguments={"obj": [1, 2, 3]}, **QUICK)
    assert profile.n_samples == 0
    assert all(function.sampled_share is None and function.sampled_own_share is None for function in profile.functions)
    assert tools_used(profile) == ["cProfile"]
    assert profile.functions[0].own.value > 0
    (note,) = notes(profile)
    assert note.startswith("py-spy gave no shares")
    assert ("not installed" if which == "absent" else "Permission Denied") in note


def test_profiling_loads_no_framework():
    check = "import sys, altlas_lib.profiling; print({'tensorflow', 'cupy', 'sklearn', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "set()\n"
