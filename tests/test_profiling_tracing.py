"""The array tracer: programs that run with it and without it, and costs beside closed formulas and other people's counts."""

import colorsys
import difflib
import fractions
import functools
import gc
import importlib
import itertools
import json.decoder
import json.encoder
import math
import random
import statistics
import subprocess
import sys
import textwrap
import time
import traceback
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, ndimage, signal, sparse
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from altlas_lib.profiling.project.operations import cost
from altlas_lib.profiling.record import tracing
from altlas_lib.profiling.record.folding import Project
from altlas_lib.profiling.run.runnable import FunctionKey, ProfilingError

RNG = np.random.default_rng(0)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a module of the user's and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str):
        name = f"user_{random.getrandbits(64):x}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return importlib.import_module(name)

    return write


def traced(module, call="main", *args) -> SimpleNamespace:
    """`module.call(*args)` under the tracer."""
    function = getattr(module, call)
    root = FunctionKey.of(function.__code__)
    result, traces, notes = tracing.trace(functools.partial(function, *args), Project(module.__file__), root)
    notes = [
        note for note in notes if "test_" not in note
    ]  # pytest rewrites test modules, they are not what stands in the file
    return SimpleNamespace(result=result, of={trace.function: trace for trace in traces}, notes=notes)


def names(trace) -> list[str]:
    return [operation.name for operation in trace.operations]


# What is seen ------------------------------------------------------------------------------------------------------------


SEEN = [
    ("x.dot(y)", "ndarray.dot", "product"),
    ("x @ y", "numpy.matmul", "product"),
    ("np.dot(x, y)", "numpy.dot", "product"),
    ("x.argsort(axis=0)", "ndarray.argsort", "sort"),
    ("x[i]", "ndarray.__getitem__", "gather"),
    ("x[x > 0]", "ndarray.__getitem__", "gather"),
    ("x[:, 3:7]", "ndarray.__getitem__", "view"),
    ("x.astype('f8')", "ndarray.astype", "copy"),
    ("x.reshape(-1)", "ndarray.reshape", "view"),
    ("x.T.reshape(-1)", "ndarray.reshape", "copy"),
    ("-x", "numpy.negative", "elementwise"),
    ("2 ** x", "numpy.power", "elementwise"),
    ("x != y.T", "numpy.not_equal", "elementwise"),
    ("np.linalg.solve(y @ y.T + 9, x.T[:20])", "numpy.linalg.solve", "factorisation"),
    ("np.linalg.norm(x, axis=1)", "numpy.linalg.norm", "reduction"),
    ("linalg.svd(x)[1]", "scipy.linalg.svd", "factorisation"),
    ("np.einsum('ij,kj->ik', x, x)", "numpy.einsum", "product"),
    ("np.fft.rfft(x)", "numpy.fft.rfft", "fft"),
    ("fft.fft(x)", "scipy.fft.fft", "fft"),
    ("distance.cdist(x, x)", "scipy.spatial.distance.cdist", "elementwise"),
    ("cosine_similarity(x)", "sklearn.metrics.pairwise.cosine_similarity", "product"),
    ("signal.fftconvolve(x, y.T)", "scipy.signal.fftconvolve", "fft"),
    ("ndimage.gaussian_filter(x, 2)", "scipy.ndimage.gaussian_filter", "elementwise"),
    ("special.expit(x)", "scipy.special.expit", "elementwise"),
    ("np.add.reduce(x)", "numpy.add.reduce", "reduction"),
    ("functools.partial(np.maximum, 0)(x)", "numpy.maximum", "elementwise"),
    ("sum([x, x])", "builtins.sum", "reduction"),
    ("abs(x)", "builtins.abs", "elementwise"),
    ("csr @ y", "csr_array.matmul", "gather"),
    ("rng.normal(size=50)", "Generator.normal", "elementwise"),
    ("np.zeros(50)", "numpy.zeros", "copy"),
    ("pd.Series(x[0]).sum()", "Series.sum", "reduction"),
    ("[np.exp(row) for row in x]", "numpy.exp", "elementwise"),
    ("(lambda a: np.sqrt(a))(abs(x))", "numpy.sqrt", "elementwise"),
    ("next(np.cumsum(a) for a in [x])", "numpy.cumsum", "reduction"),
    ("KMeans(2, n_init=1, random_state=0).fit(x).labels_", "KMeans.fit", "unknown"),
    ("np.array([1.0, 2.0])", "numpy.array", "unknown"),
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
    source += "".join(f"\ndef function_{i}():\n    return {expression}\n" for i, (expression, _, _) in enumerate(SEEN))
    source += f"\nFUNCTIONS = [{', '.join(f'function_{i}' for i in range(len(SEEN)))}]\n"
    path = tmp_path_factory.mktemp("seen") / f"user_{random.getrandbits(64):x}.py"
    path.write_text(source)
    sys.path.insert(0, str(path.parent))
    user = importlib.import_module(path.stem)
    sys.path.remove(str(path.parent))
    return traced(user), user.main()


@pytest.mark.parametrize("i", range(len(SEEN)), ids=[expression for expression, _, _ in SEEN])
def test_an_operation_is_seen(seen, i):
    _, name, kind = SEEN[i]
    run, plain = seen
    inside = (f"function_{i}", f"function_{i}.<lambda>", f"function_{i}.<genexpr>")
    operations = [operation for trace in run.of.values() if trace.function in inside for operation in trace.operations]
    assert (name, kind) in [(operation.name, operation.kind) for operation in operations]
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
    calls = {(o.name, o.kind, tuple(o.operands)): o.n_calls for o in step.operations}
    assert calls == {
        ("numpy.multiply", "elementwise", ("float64[4, 5]",)): 1,
        ("numpy.subtract", "elementwise", ("float64[4, 5]", "float64[4, 5]")): 1,
        ("ndarray.__getitem__", "view", ("float64[4, 5]",)): 1,
        ("numpy.add", "elementwise", ("float64[5]",)): 1,
        ("ndarray.__setitem__", "copy", ("float64[4, 5]", "float64[5]")): 1,
        ("ndarray.__setitem__", "gather", ("float64[4, 5]",)): 1,
        ("numpy.multiply", "elementwise", ("float64[5]",)): 4,
    }
    assert step.n_element_accesses == 2
    assert (step.n_calls, step.input_bytes) == (1, 160)


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
    adds = {name: sum(o.n_calls for o in trace.operations if o.name == "numpy.add") for name, trace in run.of.items()}
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


def test_bytes_in_out_and_resident(program):
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
    assert (model.n_calls, model.input_bytes) == (2, 2 * (640 + 40))
    assert model.output_bytes == 2 * (6 * 5 * 8 + 6 * 10 * 8)
    assert model.resident_bytes == 400  # twice read, moved once
    assert run.of["main"].resident_bytes == 0


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
    (applied,) = run.of["main"].operations
    assert applied.time_s < 0.02  # of 0.1 s
    assert run.of["slow"].n_calls == 10
    assert run.of["slow"].operations_s < 0.02


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
    seconds = time.perf_counter() - start
    assert 0 < sum(trace.operations_s for trace in run.of.values()) < seconds
    assert sum(o.n_calls for o in run.of["product"].operations) == 5


def test_a_view_and_a_copy_by_the_same_name_stay_apart(program):
    user = program("""
        import numpy as np

        def main():
            x = np.ones((20, 20))
            return x.reshape(-1), x.T.reshape(-1)
    """)
    reshapes = [o for o in traced(user).of["main"].operations if o.name == "ndarray.reshape"]
    assert sorted((o.kind, o.moved_bytes) for o in reshapes) == [("copy", 6400), ("view", 0)]


def test_too_many_shapes_share_entries(program):
    user = program("""
        import numpy as np

        def main():
            return sum(float((np.ones(n) * 2).sum()) for n in range(1, 301))
    """)
    run = traced(user)
    operations = run.of["main"].operations
    assert len(operations) <= tracing.MOST_OPERATIONS + 3
    assert sum(o.n_calls for o in operations) == 900
    shared = {o.name: o for o in operations if o.operands == ["various"]}
    assert set(shared) == {"numpy.ones", "numpy.multiply", "ndarray.sum"}
    multiplications = [o for o in operations if o.name == "numpy.multiply"]
    assert sum(o.flops for o in multiplications) == 300 * 301 / 2
    assert sum(o.moved_bytes for o in multiplications) == 16 * 300 * 301 / 2


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
    assert all(not trace.operations and not trace.n_element_accesses for trace in run.of.values())


@pytest.mark.parametrize(
    ("setup", "body"),
    [
        ("x = np.random.default_rng(0).random((800, 384), dtype='f4')", "u = x / np.linalg.norm(x, axis=1)[:, None]; u @ u.T"),
        (
            "x = np.random.default_rng(0).random((300, 4000))",
            "e = np.exp(x - x.max(axis=1)[:, None]); e / e.sum(axis=1)[:, None]",
        ),
        ("x = np.random.default_rng(0).random((700, 64))", "d = distance.cdist(x, x); np.argpartition(d, 5)[:, :5]"),
        (
            "x = np.random.default_rng(0).random((400, 512))",
            "ndimage.gaussian_filter(x, 3); np.fft.rfft2(x); np.sort(x, axis=0)",
        ),
    ],
)
def test_most_of_the_time_of_array_code_is_seen(program, setup, body):
    user = program(f"""
        import time
        import numpy as np
        from scipy import ndimage
        from scipy.spatial import distance
        {setup}

        def main():
            start = time.perf_counter()
            for _ in range(20):  # what is paid once, at an operation's first sight, is no share of a program's time
                {body}
            return time.perf_counter() - start
    """)
    runs = [traced(user) for _ in range(8)]  # the best: what else runs on the machine counts against a run, never for it
    coverage = max(run.of["main"].known_s / run.result for run in runs)
    assert 0.9 < coverage <= 1


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
        results = [subscripts(), comparisons(), calls(), walrus(), scopes(4), classes(), looks_at_itself(), called(),
                   generators(), [patterns(v) for v in ({"a": [1, 2], "b": 3}, Loud(1), -1, 2 + 3j, [4, 5], "other")], errors(),
                   unbound(), in_place(), arrays(), annotated(1, 2, b=3, c=4), strings(), namedtuple_of_here(),
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
    assert all(not trace.operations for trace in traces)
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


@settings(deadline=None, max_examples=10)
@given(st.lists(expressions, min_size=25, max_size=25))
def test_any_expression_gives_the_same_result_or_the_same_error(written):
    source = "import numpy as np\ndef attempt(f):\n    try:\n        return f()\n    except Exception as error:\n"
    source += "        return type(error).__name__, str(error)\ndef main(i, x, y, l):\n    return ["
    source += ", ".join(f"attempt(lambda: {expression})" for expression in written) + "]\n"
    plain, with_tracer = {}, {}
    exec(compile(source, "plain.py", "exec"), plain)
    exec(tracing.instrument_source(source, "traced.py"), with_tracer)
    call = functools.partial(with_tracer["main"], **VALUES)
    with np.errstate(all="ignore"):
        result, traces, _ = tracing.trace(call, Project("traced.py"), FunctionKey("traced.py", 1, "main"))
        assert repr(result) == repr(plain["main"](**VALUES))
    assert traces


def test_a_traceback_reads_the_same(program):
    user = program("""
        import traceback
        import numpy as np

        def deep(n):
            x = np.ones((2, n))
            return (x @
                    x[0:1])

        def caught():
            try:
                deep(5)
            except ValueError:
                return traceback.format_exc()

        def again():
            try:
                deep(5)
            except ValueError as error:
                raise RuntimeError("no") from error
    """)
    assert traced(user, "caught").result == user.caught()
    texts = []
    for call in (user.again, lambda: traced(user, "again")):
        with pytest.raises(RuntimeError) as caught:
            call()
        lines = "".join(traceback.format_exception(caught.value))
        texts.append([line for line in lines.splitlines() if "user_" in line or "    " in line or "Error" in line])
    plain, with_tracer = (
        [line for line in text if "test_profiling" not in line and "tracing.py" not in line] for text in texts
    )
    assert [line for line in plain if "user_" in line] == [line for line in with_tracer if "user_" in line]
    assert not any("recorder" in line.lower() for line in with_tracer)


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
            assert not any(type(getattr(const, "__self__", None)) is tracing._Recorder for const in each.__code__.co_consts)


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
    assert names(run.of["main"]).count(f"{user.__name__}.kernel") == 1
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
    assert {o.name: o.n_calls for o in work.operations}["numpy.add"] == 1600
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
    assert any("1 functions of" in note and "main" in note for note in run.notes)
    path.unlink()
    run = traced(user)
    assert run.result == 2
    assert any("were not seen" in note for note in run.notes)


def test_a_target_without_python_source_is_noted():
    result, _, notes = tracing.trace(lambda: sorted([2, 1]), Project("/none/app.py"), FunctionKey("~", 0, "builtins:sorted"))
    assert result == [1, 2]
    assert any("builtins:sorted itself" in note for note in notes)


def test_an_error_frees_the_next_trace():
    project, root = Project(__file__), FunctionKey(__file__, 1, "fail")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            tracing.trace(lambda: 1 / 0, project, root)


def test_one_trace_at_a_time(program):
    user = program("def main(call): return call()")
    with pytest.raises(ProfilingError, match="wait until it has ended"):
        traced(user, "main", lambda: traced(user, "main", int))
    assert traced(user, "main", int).result == 0


def test_a_script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text('"""Text."""\nfrom __future__ import annotations\nimport numpy as np\nx = np.ones(3)\nx += 1\ny = x @ x\n')
    code = tracing.instrument_source(path.read_text(), str(path))
    namespace = {"__name__": "__main__"}
    project, root = Project(str(path)), FunctionKey(str(path), 1, "<module>")
    _, traces, notes = tracing.trace(lambda: exec(code, namespace), project, root)
    (trace,) = (trace for trace in traces if trace.file == "script.py")
    assert namespace["y"] == 12.0
    assert namespace["__doc__"] == "Text."
    assert (trace.function, trace.file, trace.line, trace.n_calls) == ("<module>", "script.py", 1, 1)
    assert sorted(names(trace)) == ["numpy.add", "numpy.matmul", "numpy.ones"]
    assert not [note for note in notes if "script" in note]
    _, traces, _ = tracing.trace(lambda: exec(code, {}), project, root)
    assert [trace.n_calls for trace in traces if trace.file == "script.py"] == [1]  # figures begin anew


def test_importing_the_tracer_imports_no_framework():
    frameworks = {"tensorflow", "cupy", "sklearn", "jax", "torch"}
    check = f"import sys, altlas_lib.profiling.record.tracing; print({frameworks} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip() == "set()"


# Costs -------------------------------------------------------------------------------------------------------------------

A, B = RNG.random((40, 30), dtype="f4"), RNG.random((30, 50), dtype="f4")
V, S = RNG.random(1000), RNG.random((40, 40)) + 40 * np.eye(40)
INDEX, MASK = RNG.integers(0, 40, 100), A > 0.5
LOG2_1000 = math.log2(1000)


@pytest.mark.parametrize(
    ("name", "args", "result", "kind", "flops", "moved_bytes"),
    [
        ("numpy.matmul", (A, B), A @ B, "product", 2 * 40 * 30 * 50, 4 * (1200 + 1500 + 2000)),
        ("numpy.matmul", (np.ones((7, 4, 3)), np.ones((3, 5))), np.ones((7, 4, 5)), "product", 2 * 7 * 4 * 3 * 5, None),
        ("numpy.matmul", (A + 1j, B), (A + 1j) @ B, "product", 8 * 40 * 30 * 50, None),
        ("numpy.dot", (V, V), V @ V, "product", 2000, 8000),
        ("numpy.tensordot", (np.ones((2, 3, 4)), np.ones((3, 4, 5))), np.ones((2, 5)), "product", 2 * 2 * 12 * 5, None),
        ("numpy.inner", (A, B.T), np.inner(A, B.T), "product", 2 * 40 * 30 * 50, None),
        ("numpy.einsum", ("bij,bjk->bik", np.ones((3, 4, 5)), np.ones((3, 5, 6))), np.ones((3, 4, 6)), "product", 720, None),
        ("csr_array.matmul", (sparse.eye_array(40, format="csr"), A), A, "gather", 2 * 40 * 30, None),
        ("numpy.add", (V, V), V + V, "elementwise", 1000, 16000),
        ("numpy.add", (V, V[::-1], W := V + 1), W, "elementwise", 1000, 24000),
        ("numpy.exp", (V,), np.exp(V), "elementwise", 20000, 16000),
        ("numpy.power", (V, 2), V**2, "elementwise", 1000, 16000),
        ("numpy.greater", (V, 0.5), V > 0.5, "elementwise", 1000, 9000),
        ("numpy.add", (A, A[0]), A + A[0], "elementwise", 1200, 4 * (1200 + 30 + 1200)),
        ("ndarray.sum", (A,), A.sum(axis=0), "reduction", 1200, 4800 + 120),
        ("ndarray.argmax", (V,), V.argmax(), "reduction", 1000, 8000),
        ("numpy.linalg.norm", (V,), 1.0, "reduction", 2000, 8000),
        ("numpy.sort", (V,), np.sort(V), "sort", 1000 * LOG2_1000, 16000),
        ("ndarray.sort", (V,), None, "sort", 1000 * LOG2_1000, 16000),
        ("ndarray.argsort", (A,), A.argsort(), "sort", 1200 * math.log2(30), None),
        ("numpy.argpartition", (V, 5), np.argpartition(V, 5), "sort", 3400, None),
        ("ndarray.__getitem__", (A, INDEX), A[INDEX], "gather", 0, 800 + 2 * 100 * 30 * 4),
        ("ndarray.__getitem__", (A, MASK), A[MASK], "gather", 0, 1200 + 8 * MASK.sum()),
        ("ndarray.__getitem__", (A, slice(3)), A[:3], "view", 0, 0),
        ("ndarray.__setitem__", (A, INDEX, 0), None, "gather", 0, 800 + 2 * 100 * 30 * 4),
        ("ndarray.__setitem__", (A, slice(3), A[:3]), None, "copy", 0, 2 * 3 * 30 * 4),
        ("numpy.searchsorted", (np.sort(V), A), np.zeros((40, 30), int), "gather", 1200 * LOG2_1000, None),
        ("numpy.where", (MASK, A, 0), A, "elementwise", 1200, None),
        ("numpy.where", (MASK,), np.where(MASK), "gather", 1200, None),
        ("ndarray.astype", (A, "f8"), A.astype("f8"), "copy", 0, 19200),
        ("numpy.asarray", (A,), A, "view", 0, 0),
        ("numpy.concatenate", ([A, A],), np.concatenate([A, A]), "copy", 0, 2 * 9600),
        ("numpy.fft.fft", (V,), np.fft.fft(V), "fft", 5 * 1000 * LOG2_1000, 24000),
        ("numpy.fft.rfft", (V,), np.fft.rfft(V), "fft", 2.5 * 1000 * LOG2_1000, None),
        ("numpy.fft.fft2", (S,), np.fft.fft2(S), "fft", 5 * 1600 * math.log2(1600), None),
        ("numpy.linalg.cholesky", (S,), S, "factorisation", 40**3 / 3, 25600),
        ("numpy.linalg.solve", (S, S[:, :5]), S[:, :5], "factorisation", 2 / 3 * 40**3 + 2 * 40**2 * 5, None),
        ("numpy.linalg.inv", (np.stack([S] * 6),), np.stack([S] * 6), "factorisation", 6 * 2 * 40**3, None),
        ("scipy.linalg.lu_factor", (S,), linalg.lu_factor(S), "factorisation", 4 / 3 * 40**3, None),
        ("numpy.linalg.qr", (A,), np.linalg.qr(A), "factorisation", 4 * 30**2 * (40 - 10), None),
        ("numpy.convolve", (V, V[:7]), np.convolve(V, V[:7]), "elementwise", 2 * 7000, None),
        ("scipy.signal.convolve2d", (S, S[:3, :3]), signal.convolve2d(S, S[:3, :3]), "elementwise", 2 * 1600 * 9, None),
        ("scipy.ndimage.gaussian_filter", (S, 1), ndimage.gaussian_filter(S, 1), "elementwise", 2 * 2 * 9 * 1600, None),
        ("scipy.spatial.distance.cdist", (A, A), cdist(A, A), "elementwise", 3 * 30 * 1600, None),
        ("sklearn.metrics.pairwise.cosine_similarity", (A,), cosine_similarity(A), "product", 61 * 1600 + 3 * 1200, None),
        ("cupy.linalg.inv", (S,), S, "factorisation", 2 * 40**3, None),
    ],
)
def test_a_cost_is_the_closed_formula(name, args, result, kind, flops, moved_bytes):
    found = cost(name, args, {}, result)
    assert found.kind == kind
    assert found.flops == pytest.approx(flops)
    if moved_bytes is not None:
        assert found.moved_bytes == moved_bytes
    assert (found.n_kernels == 0) == (kind == "view")


@pytest.mark.parametrize(
    ("name", "args", "result"),
    [
        ("KMeans.fit", (A,), None),
        ("somebody.dot", (A, B), A @ B),
        ("numpy.no_such_function", (A,), A),
        ("numpy.matmul", (), A),
        ("numpy.fft.fft", (None,), None),
        ("numpy.einsum", ("nonsense", A), A),
        ("", (), None),
        ("numpy.linalg.solve", ("text",), "text"),
        ("csr_array.matmul", (sparse.eye_array(4), sparse.eye_array(4)), sparse.eye_array(4)),
    ],
)
def test_what_nobody_knows_is_unknown_and_no_error(name, args, result):
    found = cost(name, args, {}, result)
    assert (found.kind, found.flops, found.moved_bytes) == ("unknown", None, None)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(2, 5))
def test_more_work_costs_more(m, k, n, times):
    """In every dimension of a product, and of what is done element by element or sorted."""
    a, b, more = np.ones((m, k)), np.ones((k, n)), np.ones((m * times, k))
    assert cost("numpy.matmul", (more, b), {}, more @ b).flops == times * cost("numpy.matmul", (a, b), {}, a @ b).flops
    for name, function in (("numpy.exp", np.exp), ("numpy.sort", np.sort), ("numpy.sum", np.sum), ("numpy.copy", np.copy)):
        less, greater = cost(name, (a,), {}, function(a)), cost(name, (more,), {}, function(more))
        assert greater.flops == pytest.approx(times * less.flops)
        assert greater.moved_bytes >= less.moved_bytes
        assert greater.dtype == "float64"


def test_dtypes_that_are_computed_in():
    half = A.astype("f2")
    for name, args, result, dtype in [
        ("numpy.add", (A, A), A + A, "float32"),
        ("numpy.add", (half, half), half + half, "float16"),
        ("numpy.greater", (A, 0), A > 0, "float32"),
        ("ndarray.argsort", (A,), A.argsort(), "float32"),
        ("numpy.true_divide", (INDEX, 3), INDEX / 3, "float64"),
        ("numpy.add", (INDEX, 3), INDEX + 3, "int64"),
        ("numpy.fft.fft", (A,), np.fft.fft(A), "complex64"),
    ]:
        assert cost(name, args, {}, result).dtype == dtype


def test_products_beside_xla():
    jax = pytest.importorskip("jax")
    for args in ((A, B), (S, S), (V, V)):
        theirs = jax.jit(jax.numpy.dot).lower(*map(jax.numpy.asarray, args)).cost_analysis()["flops"]
        assert cost("numpy.dot", args, {}, args[0] @ args[1]).flops == pytest.approx(theirs, rel=0.01)


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
    operations = {o.name: o for o in run.of["main"].operations}
    dense = 2 * 64 * (384 * 512 + 512 * 10)
    weights_bytes = 4 * (384 * 512 + 512 + 512 * 10 + 10)
    for name in ("keras.Sequential", "Sequential.predict"):
        assert operations[name].kind == "model"
        assert dense <= operations[name].flops < 1.01 * dense
        assert operations[name].moved_bytes > weights_bytes
        assert operations[name].n_kernels > 3
    assert run.of["main"].n_element_accesses == 1
    (loop,) = (o for o in run.of["main"].operations if o.name.endswith(".loop"))
    assert (loop.kind, loop.flops) == ("unknown", None)  # TensorFlow does not say how often it runs
    products = [o for o in run.of["main"].operations if o.flops == 2 * 64 * 384 * 64]
    assert len(products) == 2
    assert {o.kind for o in products} == {"model"}


def test_jax_states_its_own_cost(program):
    pytest.importorskip("jax")
    user = program("""
        import jax
        import jax.numpy as jnp

        @jax.jit
        def layer(x, w):
            return jnp.tanh(x @ w)

        def main():
            x, w = jnp.ones((64, 100)), jnp.ones((100, 30))
            return layer(x, w), jnp.dot(x, w), x[0, 0] + 0
    """)
    run = traced(user)
    for mine, plain in zip(run.result, user.main(), strict=True):
        np.testing.assert_array_equal(mine, plain)
    products = [o for o in run.of["main"].operations if o.flops and o.flops >= 2 * 64 * 100 * 30]
    assert {o.kind for o in products} == {"model"}
    assert [o.n_calls for o in products] == [1, 1]
    assert all(o.flops < 1.1 * 2 * 64 * 100 * 30 and o.moved_bytes >= 4 * (6400 + 3000 + 1920) for o in products)
    assert run.of["main"].n_element_accesses == 1


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
    operations = {o.name: o for o in run.of["main"].operations}
    assert operations["torch.Sequential"].flops == 2 * 64 * 100 * 30
    assert operations["Tensor.matmul"].flops == 2 * 64 * 100 * 64
    assert operations["Tensor.clone"].kind == "model"
    assert operations["torch.Sequential"].moved_bytes >= 4 * (6400 + 3000 + 1920)


def test_classes_that_cannot_be_looked_up_are_noted(program):
    user = program("""
        class Meta(type):
            def __eq__(cls, other): return True

        class Odd(metaclass=Meta):
            pass

        def main(): return isinstance(Odd(), Odd), [Odd()][0] == 1
    """)
    run = traced(user)
    assert run.result == (True, False)
    assert any("Odd cannot be hashed" in note for note in run.notes)
    del user.Odd
    gc.collect()
