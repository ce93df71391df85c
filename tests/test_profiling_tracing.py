"""The array tracer: what it describes of programs, and programs that run with it and without it."""

import colorsys
import difflib
import fractions
import functools
import gc
import importlib
import itertools
import json
import json.decoder
import json.encoder
import linecache
import math
import random
import statistics
import subprocess
import sys
import textwrap
import time
from collections import Counter
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_lib.profiling.record import tracing
from altlas_lib.profiling.record.calls import Array, Call
from altlas_lib.profiling.record.describing import describe
from altlas_lib.profiling.record.folding import Project
from altlas_lib.profiling.run.targets import FunctionKey, prepare

RNG = np.random.default_rng(0)
X = Array("float64", (5, 6))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a module of the user's and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str):
        name = f"user_{random.getrandbits(64):x}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return importlib.import_module(name)

    return write


def traced(module, call="main", *args, **options) -> SimpleNamespace:
    """`module.call(*args)` under the tracer."""
    function = getattr(module, call)
    root = FunctionKey.of(function.__code__)
    result, traces, notes = tracing.trace(functools.partial(function, *args), Project(module.__file__), root, **options)
    notes = [
        note for note in notes if "test_" not in note
    ]  # pytest rewrites test modules, they are not what stands in the file
    return SimpleNamespace(result=result, of={trace.function: trace for trace in traces}, notes=notes)


def names(trace) -> list[str]:
    return [each.call.name for each in trace.calls]


def seconds(trace) -> float:
    return sum(each.time_s for each in trace.calls)


# What is seen ------------------------------------------------------------------------------------------------------------


SEEN = [
    ("x.dot(y)", "ndarray.dot"),
    ("x @ y", "numpy.matmul"),
    ("np.dot(x, y)", "numpy.dot"),
    ("x.argsort(axis=0)", "ndarray.argsort"),
    ("x[i]", "ndarray.__getitem__"),
    ("x[x > 0]", "ndarray.__getitem__"),
    ("x[:, 3:7]", "ndarray.__getitem__", True),
    ("x.astype('f8')", "ndarray.astype"),
    ("x.reshape(-1)", "ndarray.reshape", True),
    ("x.T.reshape(-1)", "ndarray.reshape"),
    ("-x", "numpy.negative"),
    ("2 ** x", "numpy.power"),
    ("x != y.T", "numpy.not_equal"),
    ("np.linalg.solve(y @ y.T + 9, x.T[:20])", "numpy.linalg.solve"),
    ("np.linalg.norm(x, axis=1)", "numpy.linalg.norm"),
    ("linalg.svd(x)[1]", "scipy.linalg.svd"),
    ("np.einsum('ij,kj->ik', x, x)", "numpy.einsum"),
    ("np.fft.rfft(x)", "numpy.fft.rfft"),
    ("fft.fft(x)", "scipy.fft.fft"),
    ("distance.cdist(x, x)", "scipy.spatial.distance.cdist"),
    ("cosine_similarity(x)", "sklearn.metrics.pairwise.cosine_similarity"),
    ("signal.fftconvolve(x, y.T)", "scipy.signal.fftconvolve"),
    ("ndimage.gaussian_filter(x, 2)", "scipy.ndimage.gaussian_filter"),
    ("special.expit(x)", "scipy.special.expit"),
    ("np.add.reduce(x)", "numpy.add.reduce"),
    ("functools.partial(np.maximum, 0)(x)", "numpy.maximum"),
    ("sum([x, x])", "builtins.sum"),
    ("abs(x)", "builtins.abs"),
    ("csr @ y", "scipy.sparse.csr_array.matmul"),
    ("rng.normal(size=50)", "numpy.random.Generator.normal"),
    ("np.zeros(50)", "numpy.zeros"),
    ("pd.Series(x[0]).sum()", "pandas.Series.sum"),
    ("[np.exp(row) for row in x]", "numpy.exp"),
    ("(lambda a: np.sqrt(a))(abs(x))", "numpy.sqrt"),
    ("next(np.cumsum(a) for a in [x])", "numpy.cumsum"),
    ("KMeans(2, n_init=1, random_state=0).fit(x).labels_", "sklearn.cluster.KMeans.fit"),
    ("np.array([1.0, 2.0])", "numpy.array"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Each expression of `SEEN` in a function of its own, all traced in one run, and evaluated without the tracer."""
    source = textwrap.dedent("""
        import functools
        import numpy as np, pandas as pd
        from scipy import fft, linalg, ndimage, signal, sparse, special
        from scipy.spatial import distance
        from sklearn.cluster import KMeans
        from sklearn.metrics.pairwise import cosine_similarity

        rng = np.random.default_rng(0)
        x, y, i = rng.normal(size=(30, 20)).astype("f4"), rng.normal(size=(20, 30)).astype("f4"), rng.integers(0, 30, 100)
        csr = sparse.csr_array(x * (x > 1))

        def main():
            return [function() for function in FUNCTIONS]
    """)
    source += "".join(f"\ndef function_{i}():\n    return {expression}\n" for i, (expression, *_) in enumerate(SEEN))
    source += f"\nFUNCTIONS = [{', '.join(f'function_{i}' for i in range(len(SEEN)))}]\n"
    path = tmp_path_factory.mktemp("seen") / f"user_{random.getrandbits(64):x}.py"
    path.write_text(source)
    sys.path.insert(0, str(path.parent))
    user = importlib.import_module(path.stem)
    sys.path.remove(str(path.parent))
    return traced(user), user.main()


@pytest.mark.parametrize("i", range(len(SEEN)), ids=[expression for expression, *_ in SEEN])
def test_an_operation_is_seen(seen, i):
    _, name, *is_view = SEEN[i]
    run, plain = seen
    inside = (f"function_{i}", f"function_{i}.<lambda>", f"function_{i}.<genexpr>")
    calls = [each.call for trace in run.of.values() if trace.function in inside for each in trace.calls]
    assert (name, bool(is_view)) in [(call.name, call.is_view) for call in calls]
    assert run.notes == []
    if "rng" not in SEEN[i][0]:
        np.testing.assert_equal(np.asarray(run.result[i], dtype=object), np.asarray(plain[i], dtype=object))


def test_statements_are_seen(program):
    user = program("""
        import numpy as np

        class Model:
            def __init__(self):
                self.w = np.ones((4, 5))

            def step(self, gradient):
                self.w -= 0.1 * gradient
                self.w[1] += 1
                self.w[0, 0] += 1
                self.w[[2, 3]] = 0
                for row in self.w:
                    row *= 2

        def main():
            model = Model()
            model.step(np.ones((4, 5)))
            return model.w
    """)
    run = traced(user)
    np.testing.assert_array_equal(run.result, user.main())
    step = run.of["Model.step"]
    calls = {(each.call.name, *map(str, each.call.args)): each.n_calls for each in step.calls}
    assert calls == {
        ("numpy.multiply", "0.1", "float64[4, 5]"): 1,
        ("ndarray.__getitem__", "float64[4, 5]", "[None]"): 1,
        ("ndarray.__setitem__", "float64[4, 5]", "[None]", "float64[5]"): 1,
        ("ndarray.__setitem__", "float64[4, 5]", "[[2, 3]]", "0"): 1,
        ("numpy.multiply", "float64[5]", "2"): 4,
    }
    assert (Array("float64", (5,)),) in [each.call.results for each in step.calls if each.call.name.endswith("setitem__")]
    assert step.n_element_accesses == 2
    assert (step.n_calls, step.input_bytes) == (1, 320)  # the gradient, and the weights once


def test_every_kind_of_function_is_seen(program):
    user = program("""
        import asyncio, functools
        import numpy as np
        from concurrent.futures import ThreadPoolExecutor

        x = np.arange(6.0)

        def decorate(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper

        class Base:
            def method(self):
                return x + 1

        class Derived(Base):
            __factor = 2

            def method(self):
                return super().method() * self.__factor
            @staticmethod
            def static():
                return x + 2
            @classmethod
            def of_class(cls):
                return x + 3
            @property
            def value(self):
                return x + 4
            def __call__(self):
                return x + 5

        @decorate
        def decorated():
            return x + 6

        @functools.cache
        def cached():
            return x + 7

        def closure(y):
            def inner():
                return x + y
            return inner

        kept = closure(8)

        def generator():
            yield x + 9

        async def coroutine():
            await asyncio.sleep(0)
            return x + 10

        def in_thread(i):
            return x + i

        table = {"key": lambda: x + 11}

        def main():
            derived = Derived()
            with ThreadPoolExecutor(3) as pool:
                results = list(pool.map(in_thread, range(20)))
            return [derived.method(), derived.static(), Derived.of_class(), derived.value, derived(), decorated(), cached(),
                    kept(), closure(3)(), *generator(), asyncio.run(coroutine()), table["key"](), *results]
    """)
    user.cached()
    user.cached.cache_clear()
    run = traced(user)
    np.testing.assert_array_equal(run.result, user.main())
    adds = {name: sum(each.n_calls for each in trace.calls if each.call.name == "numpy.add") for name, trace in run.of.items()}
    once = ["Base.method", "Derived.static", "Derived.of_class", "Derived.value", "Derived.__call__", "decorated", "cached"]
    assert {name: n for name, n in adds.items() if n} == dict.fromkeys(once, 1) | {
        "closure.inner": 2,
        "generator": 1,
        "coroutine": 1,
        "<lambda>": 1,
        "in_thread": 20,
    }
    assert (run.of["Derived.method"].n_calls, names(run.of["Derived.method"])) == (1, ["numpy.multiply"])
    assert run.of["in_thread"].n_calls == 20


def test_single_elements_are_counted(program):
    user = program("""
        import numpy as np

        def main():
            x, total = np.arange(100.0), 0.0
            for i in range(10):
                total += x[i]
                x[i] = 0
            for value in x:
                total += value
            return total + sum(x) + max(x) + len(list(zip(x, x))) + x.tolist()[3] + x[3].item()
    """)
    run = traced(user)
    assert run.result == user.main()
    assert run.of["main"].n_element_accesses == 20 + 100 + 100 + 100 + 200 + 100 + 1
    assert names(run.of["main"]) == ["numpy.arange"]


def test_bytes_in_and_out(program):
    user = program("""
        import numpy as np
        WEIGHTS = np.ones((10, 5))

        def make(n):
            return np.ones((n, 10))

        def model(x, more):
            hidden = x[2:] @ WEIGHTS + more["bias"]
            return [hidden, hidden @ WEIGHTS.T[:, :]]

        def main():
            x = make(8)
            model(x, {"bias": np.zeros(5)})
            return model(x, {"bias": np.zeros(5)})
    """)
    run = traced(user)
    assert run.of["make"].output_bytes == 640
    model = run.of["model"]
    assert (model.n_calls, model.input_bytes) == (2, 2 * (640 + 40) + 400)  # the weights are twice read, moved once
    assert model.output_bytes == 2 * (6 * 5 * 8 + 6 * 10 * 8)


def test_a_library_is_not_charged_for_what_it_calls_back(program):
    user = program("""
        import time
        import numpy as np

        def slow(row):
            stop = time.perf_counter() + 0.01
            while time.perf_counter() < stop:
                pass
            return np.sort(row)

        def main(x):
            return np.apply_along_axis(slow, 1, x)
    """)
    run = traced(user, "main", RNG.random((10, 5)))
    (applied,) = run.of["main"].calls
    assert applied.time_s < 0.02  # of 0.1 s
    assert run.of["slow"].n_calls == 10
    assert seconds(run.of["slow"]) < 0.02


def test_time_of_nested_operations_counts_once(program):
    user = program("""
        import numpy as np

        def product(row):
            return BIG @ BIG

        BIG = np.ones((300, 300))

        def main():
            return np.apply_along_axis(product, 1, np.ones((5, 2)))
    """)
    traced(user)
    start = time.perf_counter()
    run = traced(user)
    at_most_s = time.perf_counter() - start
    assert 0 < sum(map(seconds, run.of.values())) < at_most_s
    assert sum(each.n_calls for each in run.of["product"].calls) == 5


def test_a_view_and_a_copy_by_the_same_name_stay_apart(program):
    user = program("""
        import numpy as np

        def main():
            x = np.ones((20, 20))
            return x.reshape(-1), x.T.reshape(-1)
    """)
    reshapes = [each.call for each in traced(user).of["main"].calls if each.call.name == "ndarray.reshape"]
    assert sorted(call.is_view for call in reshapes) == [False, True]


PARAMETERS = [  # each is a call of its own, however alike the arrays are
    ("x**2, x**0.37, x**2", {"numpy.power": [(X, 2), (X, 0.37)]}),
    ("np.linalg.norm(x), np.linalg.norm(x, 2)", {"numpy.linalg.norm": [(X,), (X, 2)]}),
    ("np.linalg.norm(x, np.inf), np.linalg.norm(x, -np.inf)", {"numpy.linalg.norm": [(X, "inf"), (X, "-inf")]}),
    ("ndimage.uniform_filter(x, 3), ndimage.uniform_filter(x, 5)", {"scipy.ndimage.uniform_filter": [(X, 3), (X, 5)]}),
    ("np.sort(x, axis=0), np.sort(x, axis=1)", {"numpy.sort": [(X, {"axis": 0}), (X, {"axis": 1})]}),
    ("x.sum(), x.sum(0), x.sum(axis=0)", {"ndarray.sum": [(X,), (X, 0), (X, {"axis": 0})]}),
    ("np.quantile(x, [0.1, 0.9]), np.quantile(x, [0.5])", {"numpy.quantile": [(X, [0.1, 0.9]), (X, [0.5])]}),
    ("np.einsum('ij,kj', x, x), np.einsum('ij,ij', x, x)", {"numpy.einsum": [("ij,kj", X, X), ("ij,ij", X, X)]}),
    (
        "x[1:3], x[2:4], x[..., ::2], x[[1, 2]]",
        {"ndarray.__getitem__": [(X, [None]), (X, [None, None]), (X, [[1, 2]])]},
    ),
    ("np.concatenate([x, x]), np.concatenate((x, x, x))", {"numpy.concatenate": [([X, X],), ([X, X, X],)]}),
    ("np.apply_along_axis(len, 0, x)", {"numpy.apply_along_axis": [(None, 0, X)]}),
    ("np.clip(x, np.float32(1.5), 10**30)", {"numpy.clip": [(X, 1.5, None)]}),
    ("np.full(3, 'long' * 99)", {"numpy.full": [(3, ("long" * 99)[:200])]}),
    ("np.array(list(range(99)) + [x.size])", {"numpy.array": [(list(range(32)),)]}),
]


@pytest.mark.parametrize(("expression", "expected"), PARAMETERS, ids=[expression for expression, _ in PARAMETERS])
def test_parameters_are_part_of_a_call(program, expression, expected):
    user = program(f"""
        import numpy as np
        from scipy import ndimage

        x = np.arange(1.0, 31).reshape(5, 6)

        def main():
            return {expression}
    """)
    calls = [each.call for each in traced(user).of["main"].calls]
    for name, all_args in expected.items():
        found = [(*call.args, call.kwargs) if call.kwargs else call.args for call in calls if call.name == name]
        assert sorted(map(repr, found)) == sorted(map(repr, all_args))


def test_what_is_written_is_part_of_a_call(program):
    user = program("""
        import numpy as np

        def main():
            x = np.zeros((50, 4))
            mask, few = np.arange(50) % 2 == 0, np.arange(50) < 3
            x[0] = 0
            x[:] = 0
            x[1:7, ::2] = 1
            x[mask] = 2
            x[few] = 2
            x[[1, 2, 3]] = 3
            return x
    """)
    of, written = (
        Array("float64", (50, 4)),
        [each.call for each in traced(user).of["main"].calls if "setitem" in each.call.name],
    )
    regions = [call.results for call in written if call.results]  # which one it is costs nothing
    assert sorted(regions) == sorted([(of,), (Array("float64", (4,)),), (Array("float64", (6, 2)),)])
    fancy = sorted((call.args[1] for call in written if not call.results), key=str)
    assert fancy == [[Array("bool", (50,), n_stored=25)], [Array("bool", (50,), n_stored=3)], [[1, 2, 3]]]


VALUES_OF_ANY_KIND = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.complex_numbers(), st.binary()),
        st.builds(slice, *[st.integers() | st.none()] * 3),
        st.sampled_from(
            [..., len, int, np.int8(3), np.float32("nan"), np.longdouble(1), np.datetime64("2020-01-01"), object()]
        ),
        st.builds(np.zeros, st.lists(st.integers(0, 3), max_size=3).map(tuple)),
    ),
    lambda inner: st.lists(inner, max_size=50) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=80,
)


@settings(deadline=None, max_examples=40)
@given(VALUES_OF_ANY_KIND)
def test_any_value_is_described_in_bounds(value):
    """Hashable, the same again, in JSON and back, and short."""
    described = describe(value)
    assert hash(described) == hash(describe(value))
    call = Call(name="f", args=(described,))
    text = json.dumps(call.model_dump(mode="json"), allow_nan=False)
    assert Call.model_validate_json(text).operands == call.operands
    assert len(text) < 500_000


def test_tables_sparse_matrices_and_odd_dtypes_say_their_bytes(program):
    user = program("""
        import numpy as np
        import pandas as pd
        from scipy import sparse

        frame = pd.DataFrame({"key": [1, 2, 1, 2], "value": [1.0, 2.0, 3.0, 4.0], "text": list("abcd")})
        csr = sparse.csr_array(np.eye(30))
        records = np.zeros(5, dtype=[("a", "i4"), ("b", "f8")])

        def main():
            frame.groupby("key").agg({"value": "sum"})
            return csr @ np.ones(30), records.copy(), frame["key"].astype("Int64").sum()
    """)
    calls = {each.call.name: each.call for each in traced(user).of["main"].calls}
    (frame, key), (csr, vector) = calls["pandas.DataFrame.groupby"].args, calls["scipy.sparse.csr_array.matmul"].args
    assert (frame.dtype, frame.shape, key) == ("mixed", (4, 3), "key")
    assert frame.n_bytes == user.frame.memory_usage(index=False).sum()
    assert (csr.n_stored, csr.shape, vector) == (30, (30, 30), Array("float64", (30,)))
    assert csr.n_bytes == 30 * 8 + 30 * 4 + 31 * 4
    assert calls["ndarray.copy"].args == (Array("object", (5,), 60),)
    assert calls["pandas.Series.sum"].args[0] == Array("int64", (4,))
    assert any(name.startswith("pandas.") and name.endswith("DataFrameGroupBy.aggregate") for name in calls)


def test_long_calls_of_libraries_are_recorded_without_arrays(program):
    """Estimators, the standard library's own: a call of each by the name that its documentation has."""
    user = program("""
        import json, re, time
        import numpy as np
        from collections import namedtuple
        from sklearn.cluster import KMeans
        from sklearn.linear_model import LogisticRegression

        class Mine(KMeans):
            def fit(self, x):
                return super().fit(x)

        x = np.random.default_rng(0).normal(size=(300, 4))
        text = "word " * 40_000

        def user_function():
            return sum(i * i for i in range(20_000))

        def main():
            user_function()
            time.sleep(0.001)
            json.loads(json.dumps(list(range(20_000))))
            re.sub(r"w(o)rd", lambda match: match[1], text)
            re.compile(r"\\w+").findall(text)
            Mine(2, n_init=1).fit(x)
            LogisticRegression().fit(x, x[:, 0] > 0).predict_proba(x)
            return namedtuple("Pair", "a b").__module__ == __name__, sorted(text.split())[:2]
    """)
    run = traced(user)
    assert run.result == user.main()
    fits = {"sklearn.linear_model.LogisticRegression.fit", "sklearn.linear_model.LogisticRegression.predict_proba"}
    assert fits <= set(names(run.of["main"]))
    assert names(run.of["Mine.fit"]) == ["sklearn.cluster.KMeans.fit"]
    assert not [
        name for name in names(run.of["main"]) if "user_function" in name or name.partition(".")[0] in ("time", "json", "re")
    ]


@pytest.mark.parametrize(
    ("package", "setup", "expression", "name"),
    [
        ("networkx", "graph = networkx.path_graph(300)", "networkx.pagerank(graph)", "networkx.pagerank"),
        ("networkx", "graph = networkx.path_graph(300)", "graph.subgraph(range(200)).copy()", "networkx.Graph.copy"),
        ("polars", "frame = polars.DataFrame({'a': [1, 2]})", "frame.group_by('a').len()", "polars.DataFrame.group_by"),
        ("polars", "frame = polars.DataFrame({'a': [1, 2]})", "frame.filter(polars.col('a') > 1)", "polars.DataFrame.filter"),
        ("pandas", "frame = pandas.DataFrame({'a': [1, 2]})", "frame.merge(frame)", "pandas.DataFrame.merge"),
        ("PIL.Image", "image = PIL.Image.new('L', (600, 600))", "image.resize((99, 99), 3)", "PIL.Image.Image.resize"),
        ("numba", "f = numba.njit(lambda x: x.sum())\nimport numpy as np", "f(np.ones(9))", "numba:<lambda>"),
    ],
)
def test_public_names(program, package, setup, expression, name):
    pytest.importorskip(package)
    user = program(f"import {package}\n{setup}\ndef main(): return {expression}\n")
    traced(user)  # what a library does at its first call
    assert name in names(traced(user).of["main"])


def test_a_library_that_reads_its_callers_variables_finds_them(program):
    user = program("""
        import pandas as pd

        def main():
            least = 2
            return pd.DataFrame({"a": [1, 2, 3]}).query("a >= @least")["a"].tolist()
    """)
    assert traced(user).result == [2, 3]


def test_an_array_can_be_resized_in_place(program):
    user = program("""
        import numpy as np

        def main():
            x = np.zeros(4)
            x += 1
            x.resize(8)
            return x * 2
    """)
    assert traced(user).result.shape == (8,)


def test_only_the_functions_asked_for_are_recorded(program):
    user = program("""
        import numpy as np
        x = np.ones(5)

        def outer(make=True):
            y = x + 1
            def inner(z):
                return [v for v in z - y]
            return inner(y) if make else inner

        def other():
            return x * 2

        def main():
            return outer(), other(), (lambda: x / 2)()
    """)
    inner = FunctionKey.of(user.outer(False).__code__)
    other = FunctionKey.of(user.other.__code__)
    run = traced(user, functions={inner, other})
    np.testing.assert_equal(run.result, user.main())
    assert {name: names(of) for name, of in run.of.items()} == {"outer.inner": ["numpy.subtract"], "other": ["numpy.multiply"]}
    assert run.notes == []
    run = traced(user, functions={inner._replace(line=99)})
    assert (run.of, len(run.notes)) == ({}, 1)
    assert "inner" in run.notes[0]


@pytest.fixture
def script_of(monkeypatch):
    """A script to be run in this process, whose arguments, path and main module are set back afterwards."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return lambda path: prepare(str(path)).call


def test_a_script_with_only_some_functions(tmp_path, script_of):
    path = tmp_path / "script.py"
    path.write_text("import numpy as np\ndef f(): return np.ones(3) + 1\ndef g(): return np.ones(4)\ny = f(), g()\n")
    key = FunctionKey(str(path), 2, "f")
    project, root, script = Project(str(path)), FunctionKey(str(path), 1, "<module>"), script_of(path)
    for _ in range(2):
        _, recorded, notes = tracing.trace(script, project, root, {key})
        found = [(each.function, sorted(names(each)), each.n_calls) for each in recorded]
        assert found == [("f", ["numpy.add", "numpy.ones"], 1)]
        assert not [note for note in notes if "script" in note]


def test_which_element_a_loop_takes_makes_no_call_of_its_own(program):
    user = program("""
        import numpy as np

        def main():
            x = np.zeros((1000, 30))
            for i in range(1000):
                x[i] = x[i, :] + x[i:i + 1][0]
            return x
    """)
    run = traced(user)
    calls = {each.call.name: (each.n_calls, each.call.results) for each in run.of["main"].calls}
    assert len(run.of["main"].calls) == 6
    assert calls["ndarray.__setitem__"] == (1000, (Array("float64", (30,)),))


def test_too_many_shapes_share_entries(program):
    user = program("""
        import numpy as np

        def main():
            return sum(float((np.ones(n) * 2).sum()) for n in range(1, 601))
    """)
    run = traced(user)
    calls = run.of["main"].calls
    assert len(calls) <= tracing.MOST_CALLS + 3
    assert sum(each.n_calls for each in calls) == 1800
    assert sorted(each.call.name for each in calls if not each.call.args) == ["ndarray.sum", "numpy.multiply", "numpy.ones"]
    assert sum(each.n_calls for each in calls if each.call.name == "numpy.multiply") == 600


def test_a_program_without_arrays_has_no_operations(program):
    user = program("""
        import re, collections
        def tokens(text):
            return [word.lower() for word in re.findall(r"\\\\w+", text) if len(word) > 1]
        def main():
            counts = collections.Counter()
            for _ in range(50):
                counts.update(tokens("the quick brown fox jumps over the lazy dog"))
            table = [[a * b for a in range(9)] for b in range(9)]
            return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])), sum(map(sum, table)), table[3][4] ** 2 / 7
    """)
    run = traced(user)
    assert run.result == user.main()
    assert run.of["tokens"].n_calls == 50
    assert not any(each.call.operands or each.call.results for trace in run.of.values() for each in trace.calls)
    assert not any(trace.n_element_accesses or trace.input_bytes for trace in run.of.values())


@pytest.mark.parametrize(("name", "n_notes"), [("page.html.j2", 0), ("script", 0), ("module.py", 1)])
def test_a_template_whose_engine_made_code_of_it_is_no_source(tmp_path, name, n_notes):
    """Its code names the template's file; a Python file that cannot be read any more is worth a note."""
    from altlas_lib.profiling.record.instrumentation import code_with_recorders

    file, notes = tmp_path / name, []
    file.write_text("{% for each in rows %} it's {{ each }} {% endfor %}")
    assert code_with_recorders([str(file)], None, False, None, notes) == {}
    assert len(notes) == n_notes


@pytest.mark.parametrize(
    ("setup", "body"),
    [
        (
            "x = np.random.default_rng(0).random((2000, 384), dtype='f4')",
            "u = x / np.linalg.norm(x, axis=1)[:, None]; kept.append((u, u @ u.T))",
        ),
        (
            "x = np.random.default_rng(0).random((900, 4000))",
            "d = x - x.max(axis=1)[:, None]; e = np.exp(d); kept.append((d, e, e / e.sum(axis=1)[:, None]))",
        ),
        ("x = np.random.default_rng(0).random((700, 64))", "d = distance.cdist(x, x); np.argpartition(d, 5)[:, :5]"),
        (
            "x = np.random.default_rng(0).random((400, 512))",
            "ndimage.gaussian_filter(x, 3); np.fft.rfft2(x); np.sort(x, axis=0)",
        ),
    ],
)
def test_most_of_the_time_of_array_code_is_seen(program, request, setup, body):
    user = program(f"""
        import time
        import numpy as np
        from scipy import ndimage
        from scipy.spatial import distance
        {setup}

        def main():
            kept = []  # giving large arrays back to the system takes time that is no operation's
            start = time.perf_counter()
            for _ in range(6):  # what is paid once, at an operation's first sight, is no share of a program's time
                {body}
            return time.perf_counter() - start
    """)
    gc.disable()  # a collection would go through the libraries of other tests in this process
    request.addfinalizer(gc.enable)
    for _ in range(8):  # what else runs on the machine counts against a run, never for it
        run = traced(user)
        coverage = seconds(run.of["main"]) / run.result
        assert coverage <= 1
        if coverage > 0.9:
            return
    pytest.fail(f"only {coverage:.0%} of the time was seen")


# What must not change ----------------------------------------------------------------------------------------------------

TRICKY = '''
    """Everything whose order, number or scope of evaluation could change."""
    from __future__ import annotations
    import collections, contextlib, sys
    import numpy as np

    LOG = []

    def say(value):
        LOG.append(repr(value))
        return value

    class Loud:
        """Says which of its operators are asked, and in which order."""
        def __init__(self, value): self.value = value
        def __repr__(self): return f"Loud({self.value})"
        def __add__(self, other): say((self, "+", other)); return Loud(self.value + 1)
        def __radd__(self, other): say((other, "radd", self)); return NotImplemented
        def __iadd__(self, other): say((self, "+=", other)); self.value += 10; return self
        def __getitem__(self, key): say((self, "get", key)); return Loud(self.value)
        def __setitem__(self, key, value): say((self, "set", key, value))
        def __delitem__(self, key): say((self, "del", key))
        def __lt__(self, other): say((self, "<", other)); return self.value < 3
        def __neg__(self): say((self, "neg")); return self
        def __call__(self, *args, **kwargs): say((self, args, kwargs)); return self
        @property
        def x(self): say("property"); return self.value
        @x.setter
        def x(self, value): say(("property set", value))

    def subscripts():
        a = Loud(1)
        say(a)[say(1)] = say(2)
        say(a)[say(1)] += say(2)
        say(a)[say(1):say(2), ..., ::say(3)]
        say(a).x += say(5)
        first, a[say(7)], *rest = say([1, 2, 3])
        del a[say(8)]
        a[say(1)] = b = a[say(2)] = say(3)
        for a[say(0)] in [say(1), say(2)]: pass
        return rest, b

    def comparisons():
        return say(1) < say(2) < say(0) < say(9), say(3) if say(0) else say(4), say(0) and say(1) or say(2), not say(1)

    def calls():
        f = Loud(5)
        return f(say(1), *say([2, 3]), say(4), k=say(5), **say({"z": 6})), print(end=""), [*say([1]), *say((2,))]

    def walrus():
        if (n := say(10)) > 5 and (m := n + 1): pass
        return n, m, [last := i * 2 for i in range(3)], last

    def scopes(n):
        total = 0
        def add(i):
            nonlocal total
            total += i
            return lambda j=i: (total, i, j)
        return [f() for f in [add(i) for i in range(n)]], total, {k: v for k, v in zip("ab", [n, total])}

    def defaults(f=lambda y, *z: (y, z), *, g=lambda: [v for v in (1, 2)]): return f(1, 2), g()

    class Meta(type):
        def __getitem__(cls, key): return cls.__name__, key

    class Base(metaclass=Meta):
        size = 3 * 4
        fields = [i * 2 for i in range(size)]
        def __init_subclass__(cls, **kwargs): cls.given = kwargs
        def who(self): return [__class__.__name__]

    class Child(Base, tag=1 + 1):
        __private = 1
        def who(self):
            self.__private += 1
            self.__new = {"a": 1}
            self.__new["a"] += 2
            return super().who() + [__class__.__name__, self.__private, self.__new, vars(self)]

    def classes(): return Child().who(), Base[1:2], Child.given, Child.fields

    def looks_at_itself():
        one, two = 1, 2
        return locals(), sorted(dir()), eval("one + two"), sys._getframe().f_code.co_name, sys._getframe(0).f_lineno

    def caller(): return sys._getframe(1).f_code.co_name
    def called(): return caller()

    def generator():
        received = yield 1
        while received is not None:
            received = yield received * 2
        return "done"

    def generators():
        g = generator(); values = [next(g), g.send(3), g.send(4)]
        try: g.send(None)
        except StopIteration as stop: values.append(stop.value)
        def delegate(): return (yield from generator())
        return values, list(delegate()), sum(i * i for i in range(5)), next(iter([]), "none")

    def patterns(value):
        match value:
            case {"a": [1, *rest], **others} if len(rest) > 0: return "mapping", rest, others
            case Loud(value=1 | 2): return "class"
            case -1 | 1.5 | "text" | (2 + 3j): return "literal"
            case [int(a), b] as both: return both
        return None

    def errors():
        found = []
        add = lambda: Loud(1) + 1j + "x"
        for make in (lambda: {}["no"], lambda: 1 / 0, lambda: [][1], lambda: undefined, lambda: int("x"), add):
            try:
                try: make()
                finally: found.append("finally")
            except (KeyError, IndexError) as error: found.append(repr(error))
            except Exception as error: found.append((type(error).__name__, str(error), error.__traceback__.tb_lineno))
            else: found.append("else")
        with contextlib.suppress(ZeroDivisionError): 1 // 0
        return found

    def unbound():
        try: return x + y
        except UnboundLocalError as error: return str(error)
        x = 1

    def in_place():
        a = b = [1]; a += [2]; text = "a"; text += "b"; n = 1; n <<= 3; n |= 1
        d = collections.defaultdict(int); d["x"] += 1; d["x"] **= 2
        s = {1}; s |= {2}
        return a is b, a, text, n, d, s

    def arrays():
        x = np.arange(12.0).reshape(3, 4)
        y = x[1]; y += 1; x[x > 5] -= 2; x[:, ::2] *= -1; x[0, 0] = 7; z = x; z = z + 0
        assert y.base is x.base and z is not x
        return x.tolist(), z.sum(), bool((x == z).all()), [float(v) for v in x[0]], (x @ x.T)[-1, -1], x.shape == (3, 4)

    def annotated(a: undefined_name, *args: 1 / 0, b: "x" = 2, **kwargs) -> print("never"):
        c: int = a + b
        d: undefined_name
        e: list[int] = [c]
        return c, args, kwargs, e

    def strings(n=3): return f"{n + 1:>{n * 2}}|{n!r:^5}|{[n][0]}|{n=}", "%s-%d" % ("a", n), "ab" * n, b"x" + b"y"

    def namedtuple_of_here():
        Point = collections.namedtuple("Point", "x y")
        return Point.__module__, Point(1, 2)[0] + Point(3, 4).y

    def main():
        LOG.clear()
        results = [subscripts(), comparisons(), calls(), walrus(), scopes(4), defaults(), classes(), looks_at_itself(),
                   called(), generators(), [patterns(v) for v in ({"a": [1, 2], "b": 3}, Loud(1), -1, 2 + 3j, [4, 5], "other")],
                   errors(), unbound(), in_place(), arrays(), annotated(1, 2, b=3, c=4), strings(), namedtuple_of_here(),
                   Loud(1) < 2, -Loud(2)]
        return repr(results), list(LOG)
'''


def test_tricky_code_gives_the_same_result(program):
    user = program(TRICKY)
    plain, log = user.main()
    run = traced(user)
    for mine, theirs in itertools.zip_longest(run.result[1], log):
        assert mine == theirs
    assert run.result[0] == plain
    assert run.notes == []
    assert {"arrays", "Child.who", "scopes.add", "generator", "errors.<lambda>"} <= set(run.of)


STANDARD_LIBRARY = {
    statistics: lambda: [
        statistics.stdev([1.5, 2.5, 4]),
        statistics.quantiles(range(50), n=7),
        statistics.NormalDist(3, 2).inv_cdf(0.3),
        statistics.linear_regression([1, 2, 3], [2, 4, 7]),
        statistics.fmean([fractions.Fraction(1, 3), 2]),
    ],
    textwrap: lambda: [
        textwrap.wrap("the quick brown fox-like dog " * 20, 31),
        textwrap.indent(textwrap.dedent("  a\n   b"), "> "),
    ],
    json.encoder: lambda: [json.encoder.JSONEncoder(indent=1, sort_keys=True).encode({"b": [1, 2.5, None, "\u20ac"], "a": {}})],
    json.decoder: lambda: [json.decoder.JSONDecoder(strict=False).decode('{"a": [1, 2, {"b": "\\u20ac"}], "c": -1.5e3}')],
    colorsys: lambda: [colorsys.rgb_to_hls(*c) + colorsys.hsv_to_rgb(*c) for c in itertools.product((0.0, 0.3, 1.0), repeat=3)],
    difflib: lambda: [
        list(difflib.unified_diff("abcdefgh" * 5, "abxdefyh" * 5)),
        difflib.get_close_matches("appel", ["ape", "apple", "peach"]),
        difflib.SequenceMatcher(None, "private thread", "privates threads").ratio(),
    ],
    fractions: lambda: [
        fractions.Fraction(3, 7) ** 3 - fractions.Fraction("1.25") / 3,
        fractions.Fraction(math.pi).limit_denominator(1000),
        divmod(fractions.Fraction(22, 7), 2),
        fractions.Fraction(-7, 3) // 1,
    ],
}


@pytest.mark.parametrize("module", STANDARD_LIBRARY, ids=lambda module: module.__name__)
def test_real_code_gives_the_same_result(module):
    use = STANDARD_LIBRARY[module]
    result, traces, notes = tracing.trace(use, Project(module.__file__), FunctionKey(module.__file__, 1, ""))
    assert repr(result) == repr(use())
    assert sum(trace.n_calls for trace in traces) > 3
    assert not any(each.call.operands or each.call.results for trace in traces for each in trace.calls)
    assert not [note for note in notes if module.__name__ in note]


VALUES = {"i": 3, "x": np.arange(6.0).reshape(2, 3), "y": np.array([[1.0, -2, 3], [0, 5, 6]]), "l": [2.0, 5.0, 7.0]}
expressions = st.recursive(
    st.sampled_from([*VALUES, "2", "1.5", "-1", "x[0]", "l[1]", "x[:, 1:]", "y.T", "x.sum()"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "@", "<", "==", "&", "and"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(inner, inner).map(lambda parts: f"np.maximum({parts[0]}, {parts[1]})"),
        inner.map(lambda operand: f"(-{operand})"),
        inner.map(lambda operand: f"abs({operand})[..., :2]"),
        inner.map(lambda operand: f"[v * 2 for v in {operand}]"),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=5)
@given(st.lists(expressions, min_size=25, max_size=25))
def test_any_expression_gives_the_same_result_or_the_same_error(written):
    source = "import numpy as np\ndef attempt(f):\n    try:\n        return f()\n    except Exception as error:\n"
    source += "        return type(error).__name__, str(error)\ndef main(i, x, y, l):\n    return ["
    source += ", ".join(f"attempt(lambda: {expression})" for expression in written) + "]\n"
    plain, with_tracer = {}, {}
    exec(compile(source, "plain.py", "exec"), plain)
    exec(compile(source, "traced.py", "exec"), with_tracer)
    linecache.cache["traced.py"] = len(source), None, source.splitlines(keepends=True), "traced.py"
    call = functools.partial(with_tracer["main"], **VALUES)
    with np.errstate(all="ignore"):
        result, traces, _ = tracing.trace(call, Project("traced.py"), FunctionKey("traced.py", 1, "main"))
        assert repr(result) == repr(plain["main"](**VALUES))
    assert traces


def test_everything_is_as_before_afterwards(program):
    user = program("""
        import numpy as np
        made = []

        def main(fail=False):
            made.append(lambda: np.ones(2) + 1)
            if fail:
                raise SystemExit(3)
            return globals().keys() - {"made", "main", "np"}

        def later():
            return [function() for function in made]
    """)
    before = user.main.__code__
    run = traced(user)
    assert run.result == user.main()
    with pytest.raises(SystemExit):
        traced(user, "main", True)
    assert user.main.__code__ is before
    assert len(user.later()) == 3
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename == user.__file__:
            assert not any("_Recorder" in repr(const) for const in each.__code__.co_consts)


def test_what_reads_bytecode_or_travels_is_left_in_peace(program):
    pytest.importorskip("numba")
    cloudpickle = pytest.importorskip("cloudpickle")
    user = program("""
        import cloudpickle, pickle, subprocess, sys
        import numba
        import numpy as np

        @numba.njit
        def kernel(x):
            total = 0.0
            for value in x:
                total += value * 2
            return total

        def slow(x):
            return x[0] + 1
        quick = numba.njit(slow)

        def factory():
            @numba.njit
            def inner(x):
                return x[1] * 3
            return inner

        def main():
            x = np.arange(5.0)
            local = 3
            def travels(y):
                y = y + local
                return [v * 2 for v in y if max(v, 0)], np.sum(y)
            copy = pickle.loads(cloudpickle.dumps(travels))
            return kernel(x), quick(x), factory()(x), copy(x), travels(x)
    """)
    run = traced(user)  # compiled for the first time under the tracer
    assert repr(run.result) == repr(user.main())
    assert names(run.of["main"]).count("numba:kernel") == 1
    assert cloudpickle


def test_threads_do_not_lose_calls(program):
    user = program("""
        import threading
        import numpy as np

        def work(results, i):
            x = np.full(10, i)
            for _ in range(200):
                x = x + 1
            results[i] = int(x[0])

        def main():
            results = {}
            threads = [threading.Thread(target=work, args=(results, i)) for i in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return sorted(results.items())
    """)
    run = traced(user)
    assert run.result == user.main()
    work = run.of["work"]
    assert {each.call.name: each.n_calls for each in work.calls}["numpy.add"] == 1600
    assert (work.n_calls, work.n_element_accesses) == (8, 8)


def test_a_hostile_array_does_not_stop_the_program(program):
    user = program("""
        class Hostile:
            dtype = "?"
            @property
            def shape(self): raise RuntimeError("boo")
            def __add__(self, other): return 42
            @property
            def __class__(self): raise RuntimeError("boo")

        class Proxy:
            def __getattr__(self, name): raise RuntimeError(name)

        class Odd(type):
            def __getattr__(cls, name): raise RuntimeError(name)

        def look(value): return type(value).__name__

        def main(): return Hostile() + 1, look(Hostile()), look(Proxy()), look(Odd("Made", (), {})())
    """)
    assert traced(user).result == (42, "Hostile", "Proxy", "Made")


def test_a_library_array_that_raises_does_not_stop_the_program(program, tmp_path):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "raising_arrays.py").write_text(
        "class Array:\n    dtype = '?'\n    @property\n    def shape(self): raise RuntimeError('boo')\n"
        "    def __add__(self, other): return self\n    def __getitem__(self, key): return self\n"
        "    def __setitem__(self, key, value): pass\n    def __iter__(self): return iter([1, 2])\n"
    )
    sys.path.insert(0, str(folder))
    user = program("""
        from raising_arrays import Array

        def passed(array): return array

        def main():
            array = passed(Array()) + 1
            array[0] = array[1]
            return [type(each).__name__ for each in [array, array[0]]], [value for value in array]
    """)
    sys.path.remove(str(folder))
    run = traced(user)
    assert run.result == (["Array", "Array"], [1, 2])
    assert any("could not be described" in note for note in run.notes)


def test_source_that_is_not_there_or_has_changed_is_noted(program, tmp_path):
    user = program("def main(): return 1 + 1\ndef other(a): return a\n")
    path = tmp_path / f"{user.__name__}.py"
    path.write_text("def main(): return 1 + 2\ndef other(a): return a\n")
    run = traced(user)
    assert run.result == 2
    assert any("what main calls was not seen" in note and "edited since" in note for note in run.notes)
    path.unlink()
    run = traced(user)
    assert run.result == 2
    assert any("was not seen" in note for note in run.notes)


def test_a_target_without_python_source_is_noted():
    result, _, notes = tracing.trace(lambda: sorted([2, 1]), Project("/none/app.py"), FunctionKey("~", 0, "builtins:sorted"))
    assert result == [1, 2]
    assert any("what builtins:sorted calls was not seen" in note for note in notes)


def test_an_error_frees_the_next_trace():
    project, root = Project(__file__), FunctionKey(__file__, 1, "fail")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            tracing.trace(lambda: 1 / 0, project, root)


def test_a_script(tmp_path, script_of):
    path = tmp_path / "script.py"
    path.write_text('"""Text."""\nfrom __future__ import annotations\nimport numpy as np\nx = np.ones(3)\nx += 1\ny = x @ x\n')
    project, root, script = Project(str(path)), FunctionKey(str(path), 1, "<module>"), script_of(path)
    _, traces, notes = tracing.trace(script, project, root)
    namespace = vars(sys.modules["__main__"])
    (trace,) = (trace for trace in traces if trace.file == "script.py")
    assert namespace["y"] == 12.0
    assert namespace["__doc__"] == "Text."
    assert (trace.function, trace.file, trace.line, trace.n_calls) == ("<module>", "script.py", 1, 1)
    assert sorted(names(trace)) == ["numpy.add", "numpy.matmul", "numpy.ones"]
    assert not [note for note in notes if "script" in note]
    _, traces, _ = tracing.trace(script, project, root)
    assert [trace.n_calls for trace in traces if trace.file == "script.py"] == [1]  # figures begin anew


def test_importing_the_tracer_imports_no_framework():
    frameworks = {"tensorflow", "cupy", "sklearn", "jax", "torch"}
    check = f"import sys, altlas_lib.profiling.record.tracing; print({frameworks} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip() == "set()"


# What a port would have to fetch -------------------------------------------------------------------------------------------


def test_hidden_transfers_are_found_by_line(program):
    user = program("""
        import array
        import numpy as np
        from sklearn.preprocessing import scale

        def step(x, out, buffer=array.array("d", [0, 0])):
            own = np.zeros(4)
            if (x > 2).any():
                own += float(x.sum())
            for _ in range(3):
                own[0] = x.max()
                out[1] = x.min()
            while not x.any() or x[0] > 9: break
            print(x[:1], f"{own.sum():.1f}", str(own), end="")
            total = sum(v for v in x if v > 0) + max(x)
            x -= 1
            buffer[0] = x[0]
            scale(x)
            return [x.tolist(), x.sum().item(), int(own[0]), list(own), bool(len(x)), 1 if out[0] else 2, total]

        def main():
            n = 1 if len("text") and not [] else 2
            return step(np.arange(4.0), np.zeros(4)), n, float("1"), str(n), f"{n}"
    """)
    run, unchecked = traced(user, check_port=True), traced(user)
    assert run.result == unchecked.result == user.main()
    assert unchecked.of["step"].hidden_transfers == run.of["main"].hidden_transfers == []
    first = user.step.__code__.co_firstlineno
    places = {(each["line"] - first, each["what"]): each["n_times"] for each in run.of["step"].hidden_transfers}
    assert places == {
        (2, "truth of an array"): 1,
        (3, "float(x)"): 1,
        (7, "truth of an array"): 2,
        (9, "iteration over an array"): 2,
        (9, "truth of an array"): 4,
        (13, "x.tolist()"): 1,
        (13, "x.item()"): 1,
        (13, "int(x)"): 1,
        (13, "iteration over an array"): 1,
        (13, "truth of an array"): 1,
    }


@pytest.mark.parametrize("module", STANDARD_LIBRARY, ids=lambda module: module.__name__)
def test_real_code_gives_the_same_result_while_a_port_is_checked(module):
    use = STANDARD_LIBRARY[module]
    key = FunctionKey(module.__file__, 1, "")
    result, traces, _ = tracing.trace(use, Project(module.__file__), key, check_port=True)
    assert repr(result) == repr(use())
    assert not any(each.hidden_transfers for each in traces)


def test_tricky_code_gives_the_same_result_while_a_port_is_checked(program):
    user = program(TRICKY)
    plain, log = user.main()
    run = traced(user, check_port=True)
    assert (run.result[0], run.result[1]) == (plain, log)


# Programs that look at what there is, or go elsewhere ----------------------------------------------------------------------


def test_a_program_that_walks_all_objects_keeps_its_trace(program):
    user = program("""
        import gc, sys, types
        import numpy as np

        class Meta(type):
            __hash__ = None
            def __eq__(cls, other): raise RuntimeError("eq")
            def __instancecheck__(cls, each): raise RuntimeError("instance")
            def __getattribute__(cls, name): raise RuntimeError(name)

        class Odd(metaclass=Meta):
            def __getattr__(self, name): raise RuntimeError(name)
            @property
            def __class__(self): raise RuntimeError("class")
            def __hash__(self): raise RuntimeError("hash")
            def __eq__(self, other): raise RuntimeError("eq")
            def __bool__(self): raise RuntimeError("bool")
            def __len__(self): raise RuntimeError("len")
            def __iter__(self): raise RuntimeError("iter")
            def __add__(self, other): return 7
            def __getitem__(self, key): return 8
            def __call__(self, *args): return 9

        class List(list):
            def __iter__(self): raise RuntimeError("iter")
            def __len__(self): raise RuntimeError("len")

        odd, odd_list = Odd(), List([1, 2])

        def passed(*args): return args

        def main():
            x = np.ones(3)
            n = 0
            for each in gc.get_objects():
                n += sys.getsizeof(each) > 0
                if type(each) is types.FunctionType:
                    hash(each.__code__)
                if type(each) is types.CodeType:
                    n += each == each
            a, b = passed(odd, odd_list)[0] + 1, odd[x] + odd(x)
            np.array([x, x]); passed([odd], odd_list, x + x)
            return a, b, n > 1000, np.full(2, 3).tolist()
    """)
    for options in ({}, {"check_port": True}):
        run = traced(user, **options)
        assert run.result == (7, 17, True, [3, 3])
        assert {"numpy.ones", "numpy.array", "numpy.add", "numpy.full"} <= set(names(run.of["main"]))
        assert run.of["passed"].n_calls == 2


def test_two_threads_in_recorded_functions_are_counted_rightly(program):
    user = program("""
        import sys, threading
        import numpy as np

        def inner(x, i):
            y = x[i]
            return np.sort(x) + y

        def work(n):
            x = np.arange(50.0)
            for i in range(n):
                inner(x, i % 50)
                try:
                    np.linalg.norm(x, ord="no such")
                except ValueError:
                    pass

        def main(n):
            sys.setswitchinterval(1e-6)
            threads = [threading.Thread(target=work, args=(n,)) for _ in range(2)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            sys.setswitchinterval(0.005)
            return x_sum()

        def x_sum(): return float(np.ones(3).sum())
    """)
    run = traced(user, "main", 1500)
    inner = run.of["inner"]
    assert (inner.n_calls, inner.n_element_accesses, run.of["work"].n_calls) == (3000, 3000, 2)
    n_calls = Counter()
    for each in inner.calls:
        n_calls[each.call.name] += each.n_calls
    assert n_calls == {"numpy.sort": 3000, "numpy.add": 3000}
    assert inner.input_bytes == inner.output_bytes == 3000 * 400
    assert not any("could not be described" in note for note in run.notes)


def test_a_thread_may_outlive_its_trace(program):
    user = program("""
        import threading
        import numpy as np
        go, results = threading.Event(), []

        class Own:
            def __add__(self, other): return 1

        def late():
            go.wait()
            x = np.ones(3)
            x[0] = (x @ x).item()
            results.append([float(x.sum()), max(x), [v for v in x], Own() + 1, "-".join(["a"])])

        def main():
            threading.Thread(target=late).start()
    """)
    traced(user, check_port=True)
    user.go.set()
    stop = time.monotonic() + 30
    while not user.results and time.monotonic() < stop:
        time.sleep(0.01)
    assert user.results == [[5.0, 3.0, [3.0, 1.0, 1.0], 1, "a"]]


@pytest.mark.parametrize("how", ["multiprocessing", "loky"])
def test_recorded_functions_go_to_other_processes(program, how):
    if how == "loky":
        pytest.importorskip("joblib")
    user = program("""
        import multiprocessing
        import numpy as np

        def square(x):
            total = 0
            for i in range(len(x)):
                total += x[i] * 2
            return (x * x).sum() + total - (1 if max(x, default=0) > 99 else 0)

        def multiprocessing_(arrays):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(square, arrays)

        def loky_(arrays):
            from joblib import Parallel, delayed
            offset = len(arrays)
            def local(x):
                x = x + offset
                return square(x)
            return Parallel(n_jobs=2)(delayed(local)(x) for x in arrays)

        def main(how):
            arrays = [np.arange(float(n)) for n in range(1, 5)]
            return globals()[how + "_"](arrays)
    """)
    assert traced(user, "main", how, check_port=True).result == user.main(how)


# What frameworks state ---------------------------------------------------------------------------------------------------


@pytest.mark.frameworks("profile", "TensorFlow")
def test_keras_and_tensorflow_state_their_own_cost(program):
    pytest.importorskip("tensorflow")
    user = program("""
        import keras
        import numpy as np
        import tensorflow as tf

        model = keras.Sequential([keras.Input((384,)), keras.layers.Dense(512, activation="relu"), keras.layers.Dense(10)])
        x = np.ones((64, 384), "f4")

        @tf.function
        def compiled(a):
            return tf.matmul(a, a, transpose_b=True)

        @tf.function
        def loop(a):
            for _ in tf.range(3):
                a = tf.matmul(a, a, transpose_b=True)
            return a

        def main():
            t = tf.constant(x)
            loop(t[:, :64])
            product = tf.matmul(t, t, transpose_b=True)
            return model(x).numpy(), model.predict(x, verbose=0), product, compiled(t), t + 1, float(t[0, 0])
    """)
    run = traced(user)
    for mine, plain in zip(run.result, user.main(), strict=True):
        np.testing.assert_array_equal(mine, plain)
    work = {each.call.name: each.call.model_work for each in run.of["main"].calls}
    dense = 2 * 64 * (384 * 512 + 512 * 10)
    weights_bytes = 4 * (384 * 512 + 512 + 512 * 10 + 10)
    for name in ("keras.Sequential.__call__", "keras.Sequential.predict"):
        assert dense <= work[name].flops < 1.01 * dense
        assert work[name].moved_bytes > weights_bytes
        assert work[name].n_kernels > 3
    assert run.of["main"].n_element_accesses == 1
    (loop,) = (name for name in work if name.endswith(".loop"))
    assert work[loop] is None  # TensorFlow does not say how often it runs
    products = [each for each in work.values() if each and each.flops == 2 * 64 * 384 * 64]
    assert len(products) == 2


def test_a_loop_of_a_framework_is_unknown(program):
    pytest.importorskip("tensorflow")
    user = program("""
        import keras
        import numpy as np

        layers = keras.layers
        recurrent = keras.Sequential([keras.Input((30, 8)), layers.LSTM(16), layers.Dense(1)])
        dense = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
        deeper = keras.Sequential([keras.Input((8,)), layers.Dense(64), layers.Dense(4)])
        x = np.ones((4, 8), "f4")

        def main():
            recurrent.predict(np.ones((4, 30, 8), "f4"), verbose=0)
            dense.predict(x, verbose=0), deeper.predict(x, verbose=0)
            dense.compile(loss="mse")
            dense.fit(x, np.ones((4, 4), "f4"), verbose=0)
    """)
    calls = [each.call for each in traced(user).of["main"].calls]
    assert [call.model_work for call in calls if call.name.endswith("Sequential.fit")] == [None]
    predicted = sorted(call.model_work.flops for call in calls if call.name.endswith("predict") and call.model_work)
    assert len(predicted) == 2  # the same shapes, but two models; and the recurrent one
    assert predicted[0] == pytest.approx(2 * 4 * 8 * 4, rel=0.2)
    assert predicted[1] == pytest.approx(2 * 4 * (8 * 64 + 64 * 4), rel=0.2)
    assert len([call for call in calls if call.name.endswith("predict") and call.model_work is None]) == 1


@pytest.mark.frameworks("profile", "PyTorch")
def test_torch_states_its_own_cost(program):
    pytest.importorskip("torch")
    user = program("""
        import torch

        model = torch.nn.Sequential(torch.nn.Linear(100, 30), torch.nn.BatchNorm1d(30)).train()

        def main():
            torch.manual_seed(0)
            with torch.no_grad():
                x = torch.ones(64, 100)
                return model(x), x @ x.T, model[1].running_mean.clone()
    """)
    run = traced(user)
    n_batches = int(user.model[1].num_batches_tracked)
    assert n_batches == 1  # asking for the cost runs nothing
    assert run.result[0].shape == (64, 30)
    work = {each.call.name: each.call.model_work for each in run.of["main"].calls}
    assert work["torch.nn.Sequential.__call__"].flops == 2 * 64 * 100 * 30
    assert work["torch.Tensor.matmul"].flops == 2 * 64 * 100 * 64
    assert work["torch.Tensor.clone"].moved_bytes > 0
    assert work["torch.nn.Sequential.__call__"].moved_bytes >= 4 * (6400 + 3000 + 1920)


def test_fused_kernels_of_torch_are_counted(program):
    """Recurrent layers and attention run as one kernel on a CPU, of which torch's own counter knows nothing."""
    pytest.importorskip("torch")
    user = program("""
        import torch
        nn = torch.nn

        class Mine(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(8, 8)

            def forward(self, x):
                return torch.relu(self.layer(x))

        lstm, encoder, mine = nn.LSTM(8, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), Mine()
        small, large = nn.Sequential(nn.Linear(8, 4)), nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 4))

        def main():
            with torch.no_grad():
                lstm(torch.ones(30, 4, 8)), encoder(torch.ones(3, 5, 16)), mine(torch.ones(2, 8))
                small(torch.ones(5, 8)), large(torch.ones(5, 8))
            loss = small(torch.ones(5, 8)).sum()
            loss.backward()
            return loss.item() if loss > 99 else float(loss.detach())
    """)
    run = traced(user, check_port=True)
    work = {each.call.name: each.call.model_work for each in run.of["main"].calls}
    assert work["torch.nn.LSTM.__call__"].flops == 30 * 4 * 2 * (8 + 16) * 4 * 16
    layers, attention = 15 * 2 * (4 * 16 * 16 + 2 * 16 * 32), 3 * 2 * 2 * (2 * 5 * 5 * 8)
    assert work["torch.nn.TransformerEncoderLayer.__call__"].flops == layers + attention
    assert work["torch.Tensor.backward"] is None
    sequential = {each.call.model_work.flops for each in run.of["main"].calls if "Sequential" in each.call.name}
    assert sequential == {2 * 5 * 8 * 4, 2 * 5 * (8 * 64 + 64 * 4)}
    assert names(run.of["Mine.forward"]).count("torch.nn.Linear.__call__") == 1
    assert {each["what"] for each in run.of["main"].hidden_transfers} == {"truth of an array", "float(x)"}


def test_classes_that_cannot_be_looked_up_do_no_harm(program):
    user = program("""
        class Meta(type):
            def __eq__(cls, other): return True

        class Odd(metaclass=Meta):
            pass

        def main(): return isinstance(Odd(), Odd), [Odd()][0] == 1
    """)
    run = traced(user)
    assert run.result == (True, False)
    assert run.of["main"].n_calls == 1
    del user.Odd
    gc.collect()
