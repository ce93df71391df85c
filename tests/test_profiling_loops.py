"""Which compiled loops could be kernels: the test of dependence on loops whose nature is known."""

import textwrap

import pytest

from altlas_lib.profiling.project.loops import has_parallel_loops

PARALLEL = {
    "each element on its own": """
        def f(x, y):
            for i in range(len(x)):
                y[i] = x[i] * x[i] if x[i] > 0 else 0.0
        """,
    "in place": """
        def f(x):
            for i in range(len(x)):
                x[i] = 2 * x[i] + 1
        """,
    "a sum": """
        def f(x, y):
            total = 0.0
            for a, b in zip(x, y):
                total += a * b
            return total
        """,
    "several sums for each row": """
        def f(x, out):
            for i in range(len(x)):
                a = b = 0.0
                for j in range(x.shape[1]):
                    a, b = a + x[i, j], b + x[i, j] * x[i, j]
                out[i] = b - a * a
        """,
    "a histogram": """
        def f(x, counts):
            for i in range(len(x)):
                k = int(x[i])
                counts[k] += 1
        """,
    "a recurrence for each series": """
        def f(x, out):
            for i in range(x.shape[0]):
                level = x[i, 0]
                for j in range(x.shape[1]):
                    level = 0.9 * level + 0.1 * x[i, j]
                    out[i, j] = level
        """,
    "rows that are filtered one by one": """
        def f(x, out):
            for i in range(x.shape[0]):
                for j in range(1, x.shape[1]):
                    out[i][j] = 0.5 * out[i][j - 1] + x[i][j]
        """,
    "steps in time of a whole grid": """
        def f(a, b, n):
            for _ in range(n):
                for i in range(1, len(a) - 1):
                    b[i] = (a[i - 1] + a[i + 1]) / 2
                a, b = b, a
            return a
        """,
}
SERIAL = {
    "a moving average": """
        def f(x, out):
            level = x[0]
            for i in range(len(x)):
                level = 0.9 * level + 0.1 * x[i]
                out[i] = level
        """,
    "a recursive filter": """
        def f(x, out):
            for i in range(1, len(x)):
                out[i] = x[i] + 0.5 * out[i - 1]
        """,
    "the state in an array": """
        def f(x, state):
            for a in x:
                state[0] = a * state[0] * (1 - state[0])
        """,
    "an edit distance": """
        def f(s, t, d):
            for i in range(1, len(s)):
                for j in range(1, len(t)):
                    d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (s[i] != t[j]))
        """,
    "iterations until they end": """
        def f(x):
            while abs(x * x - 2) > 1e-12:
                x = (x + 2 / x) / 2
            return x
        """,
    "random numbers of one generator": """
        def f(n, out):
            state = 1
            for i in range(n):
                state = (1103515245 * state + 12345) % 2147483648
                out[i] = state
        """,
    "zeros first, then a recurrence": """
        def f(x, out):
            for i in range(len(x)):
                out[i] = 0.0
            y = 0.0
            for i in range(len(x)):
                y = x[i] - y / 2
                out[i] = y
        """,
    "a sum that later steps look at": """
        def f(x, out):
            total = 0.0
            for i in range(len(x)):
                total += x[i]
                out[i] = total * total
        """,
    "sorting by exchange": """
        def f(x):
            for n in range(len(x)):
                for i in range(len(x) - 1):
                    if x[i] > x[i + 1]:
                        x[i], x[i + 1] = x[i + 1], x[i]
        """,
    "the whole array so far": """
        def f(x, out):
            for i in range(len(x)):
                out[i] = out.sum() + x[i]
        """,
}


@pytest.fixture
def judged(tmp_path):
    def judge(source: str | bytes) -> bool | None:
        file = tmp_path / "loops.py"
        file.write_bytes(source if isinstance(source, bytes) else textwrap.dedent(source).encode())
        return has_parallel_loops(str(file), "f")

    return judge


@pytest.mark.parametrize("kind", PARALLEL)
def test_loops_of_independent_steps_could_be_kernels(kind, judged):
    assert judged(PARALLEL[kind]) is True


@pytest.mark.parametrize("kind", SERIAL)
def test_loops_whose_steps_need_each_other_could_not(kind, judged):
    assert judged(SERIAL[kind]) is False


@pytest.mark.parametrize(
    "source",
    ["", "def g(x):\n    return x\n", "def f(x):\n    return x + 1\n", "f = abs", "def f(", b"\xff\x00", "(" * 5000],
)
def test_without_such_a_function_or_a_loop_nothing_is_known(source, judged):
    assert judged(source) is None


def test_a_file_is_looked_for_where_modules_are_imported_from(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "series.py").write_text(textwrap.dedent(SERIAL["a moving average"]))
    assert has_parallel_loops("package/series.py", "f") is None
    monkeypatch.syspath_prepend(str(tmp_path))
    assert has_parallel_loops("package/series.py", "f") is False
    assert has_parallel_loops("package", "f") is None
