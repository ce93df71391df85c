"""The similarity room beside its engine: the reference, the whole matrix, validation, timing, and what the answer shows."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from test_similarity_engine import TOLERANCE, cosines, exact_vectors, vectors

from altlas_lib import devices, figures, results, similarity, tables
from altlas_lib.results import Ceilings, Quantity
from altlas_lib.similarity import plots
from altlas_lib.similarity.poc import methods


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 6))
def test_k_smallest_settles_ties_by_column(values, k):
    values = np.array(values, np.float32)
    columns, smallest = methods.k_smallest(values, k)
    expected = [sorted(range(6), key=lambda column: (row[column], column))[:k] for row in values]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(smallest, np.take_along_axis(values, columns, axis=1))


@settings(max_examples=100, deadline=None)
@given(exact_vectors(max_rows=60), st.integers(1, 70))
def test_neighbours_by_the_whole_matrix_are_the_references(X, k):
    found, expected = methods.top_k_by_matrix(similarity.calculate_similarity_cpu, X, k), similarity.reference(X, k)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_the_reference_is_right_on_a_case_worked_by_hand():
    found = similarity.reference([[3, 0], [1, 1], [0, 2], [0, 0], [-1, 0]], k=3)
    half = np.sqrt(0.5)
    np.testing.assert_array_equal(found.indices, [[1, 2, 3], [0, 2, 3], [1, 0, 3], [0, 1, 2], [2, 3, 1]])
    np.testing.assert_allclose(
        found.scores, [[half, 0, 0], [half, half, 0], [half, 0, 0], [0, 0, 0], [0, 0, -half]], atol=1e-15
    )


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_the_reference_neither_overflows_nor_vanishes(scale):
    X = np.random.default_rng(0).uniform(-1, 1, (20, 5))
    np.testing.assert_allclose(similarity.reference(X * scale, 5).scores, similarity.reference(X, 5).scores, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"X": [1.0, 2.0]}, ValueError, r"X has shape \(2,\)"),
        ({"X": []}, ValueError, r"X has shape \(0,\)"),
        ({"X": np.empty((3, 0))}, ValueError, r"X has shape \(3, 0\)"),
        ({"X": np.ones((2, 2, 2))}, ValueError, r"X has shape \(2, 2, 2\)"),
        ({"X": [["a", "b"]]}, TypeError, "X has dtype <U1"),
        ({"X": [[1, None]]}, TypeError, "X has dtype object"),
        ({"X": [[1j, 2]]}, TypeError, "X has dtype complex128"),
        ({"X": np.ma.masked_equal([[1.0, 2.0]], 2)}, TypeError, "masked array"),
        ({"k": 0}, ValueError, "k=0: expected at least 1"),
        ({"k": -3}, ValueError, "k=-3"),
        ({"k": 2.5}, TypeError, r"k=2\.5: expected an integer"),
        ({"k": "ten"}, TypeError, "k='ten'"),
        ({"Y": [[1.0]]}, ValueError, r"X has shape \(2, 3\) and Y \(1, 1\)"),
        ({"Y": [1.0]}, ValueError, r"Y has shape \(1,\)"),
        ({"method": "int4"}, ValueError, "method='int4': expected 'auto', 'float32' or 'int8'"),
        ({"device": "cuda"}, ValueError, "device='cuda': expected 'auto', 'cpu' or 'gpu'"),
        ({"on_invalid": "drop"}, ValueError, "on_invalid='drop'"),
        ({"working_memory": 0}, ValueError, "working_memory=0"),
        ({"working_memory": np.nan}, ValueError, "working_memory=nan"),
        ({"working_memory": np.inf}, ValueError, "working_memory=inf"),
        ({"working_memory": "64"}, ValueError, "working_memory='64'"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        similarity.top_k(**{"X": np.ones((2, 3)), "device": "cpu", **arguments})


@pytest.mark.parametrize(
    "dense_only",
    [
        similarity.calculate_similarity_cpu,
        similarity.calculate_similarity_gpu_cupy,
        similarity.cosine_similarity,
        similarity.reference,
    ],
)
def test_sparse_rows_are_refused_where_they_would_become_dense(dense_only):
    with pytest.raises(TypeError, match=r"X is a sparse csr_array: expected a dense array; pass X\.toarray\(\)"):
        dense_only(sparse.csr_array(np.eye(3)))


# The whole matrix --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 8), st.booleans())
def test_cosine_similarity_is_float64s(data, n_columns, with_other):
    X = data.draw(vectors(n_columns, max_rows=40))
    Y = data.draw(vectors(n_columns, max_rows=40)) if with_other else None
    found = similarity.cosine_similarity(X, Y)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cosines(X, X if Y is None else Y), rtol=0, atol=TOLERANCE)
    assert (abs(found) <= 1).all()
    if Y is None:
        np.testing.assert_allclose(similarity.calculate_similarity_cpu(X), found, rtol=0, atol=TOLERANCE)


def test_a_matrix_that_does_not_fit_is_refused_with_the_bytes():
    X = np.broadcast_to(np.float32(1), (10_000_000, 2))
    with pytest.raises(MemoryError, match=r"400,000,000,000,000 bytes\), and .* available on the CPU; use top_k"):
        similarity.cosine_similarity(X)
    with pytest.raises(MemoryError, match="pass fewer rows="):
        similarity.reference(X)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_the_plain_way_refuses_what_float32_cannot_hold(value):
    with pytest.raises(ValueError, match=r"a norm above 1e19 in 1 of 3 rows \(counted from 0: 1\)"):
        similarity.calculate_similarity_cpu([[1, 1], [value, 1], [1, 2]])


# Validation --------------------------------------------------------------------------------------------------------------


def wrong(change):
    """A method that changes the right answer."""

    def top_k(X, k):
        right = similarity.top_k(X, k, device="cpu")
        indices, scores = right.indices.copy(), right.scores.copy()
        change(indices, scores)
        return similarity.Neighbors(indices, scores)

    return similarity.Method("wrong", top_k)


def rename(column, value):
    def change(indices, scores):
        indices[7, column] = value

    return change


def shift_a_score(indices, scores):
    scores[7, 2] += 1e-4


def swap_two_names(indices, scores):
    indices[7, :2] = indices[7, 1::-1].copy()


def swap_two(indices, scores):
    indices[7, :2], scores[7, :2] = indices[7, 1::-1].copy(), scores[7, 1::-1].copy()


def lose_a_score(indices, scores):
    scores[7, 2] = np.nan


@pytest.fixture
def some_vectors():
    return np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


@pytest.mark.parametrize("max_rows", [1000, 50])
@pytest.mark.parametrize("method", similarity.available_methods(300), ids=lambda method: method.name)
def test_every_method_passes(some_vectors, method, max_rows):
    found = similarity.validate(method, some_vectors, k=10, max_rows=max_rows)
    assert found.passed
    assert 0 < found.largest_error < TOLERANCE
    assert (found.n_texts, found.n_rows_compared) == (300, None if max_rows == 1000 else 50)


def test_an_outlying_dimension_is_within_what_float32_can_do():
    X = np.random.default_rng(0).standard_normal((100, 1024))
    X[:, 0] = 50  # as in vectors of language models: most of every sum is there before the rest is added
    found = similarity.validate(similarity.METHODS[1], np.concatenate([X, X + 1e-5]), k=5)
    assert found.passed
    assert found.tolerance < 1e-5  # float16 would be off by 1e-4


@pytest.mark.parametrize(
    "change",
    [rename(3, 7), rename(3, -1), rename(3, 300), rename(3, 10**12), shift_a_score, swap_two, swap_two_names, lose_a_score],
    ids=["itself", "none", "beyond", "far beyond", "shifted score", "order", "names", "NaN"],
)
def test_a_wrong_answer_does_not_pass(some_vectors, change):
    assert not similarity.validate(wrong(change), some_vectors, k=5).passed


def test_a_repeated_and_a_farther_neighbour_are_counted(some_vectors):
    def repeat(indices, scores):
        indices[7, 3], scores[7, 3] = indices[7, 2], scores[7, 2]

    assert similarity.validate(wrong(repeat), some_vectors, k=5).n_other_neighbours == 1
    farthest = similarity.reference(some_vectors, 299).indices[7, -1]
    assert similarity.validate(wrong(rename(4, farthest)), some_vectors, k=5).n_other_neighbours == 1


def test_an_answer_of_another_shape_is_an_error(some_vectors):
    method = similarity.Method("short", lambda X, k: similarity.top_k(X, k - 1, device="cpu"))
    with pytest.raises(ValueError, match=r"short gave \(300, 4\) .* expected \(300, 5\)"):
        similarity.validate(method, some_vectors, k=5)


# Benchmark ---------------------------------------------------------------------------------------------------------------


def test_sizes_are_cut_to_the_texts_there_are():
    assert similarity.usable_sizes([1000, 100, 10_000], 700) == [100, 700]
    assert similarity.usable_sizes([100], 700) == [100]
    for sizes, n_texts in [([], 10), ([100], 1), ([0, 10], 100), ([-5], 100)]:
        with pytest.raises(ValueError, match="expected sizes of at least 2"):
            similarity.usable_sizes(sizes, n_texts)


def test_timings_are_measured_with_memory_and_device(some_vectors):
    timings = [timing for timing in similarity.time_sizes(some_vectors, [50, 300], k=5, n_repeats=2) if not timing.on_gpu]
    on_cpu = [method.name for method in similarity.METHODS if not method.on_gpu]
    assert [(timing.method, timing.n_texts) for timing in timings] == [(name, n) for n in (50, 300) for name in on_cpu]
    for timing in timings:
        assert timing.time.basis == timing.peak_memory.basis == "measured"
        assert timing.time.n_runs >= 2
        assert timing.time.device == devices.device_names()[0]
    assert timings[len(on_cpu)].peak_memory.value >= 4 * 300**2  # of the full matrix, which is the first method
    assert not tracemalloc.is_tracing()


def test_the_full_matrix_is_left_out_where_it_is_too_large():
    names = [method.name for method in similarity.available_methods(100_000) if not method.on_gpu]
    assert names == ["CPU tiles, float32", "CPU tiles"]


def test_the_figure_names_the_fastest_of_the_cpu_and_of_the_gpu():
    timings = [timing(100, 2), timing(100, 1), timing(100, 3, on_gpu=True), timing(100, 0.1, on_gpu=True, with_transfers=False)]
    with figures.figure() as (_, ax):
        assert plots.similarity_times(ax, timings).get_title("left") == "100 texts: median 3 s (on a GPU), 1 s (on a CPU)"


def timing(n_texts, time_s, **more):
    device = "a GPU" if more.get("on_gpu") else "a CPU"
    return results.Timing(method=f"on {device}", n_texts=n_texts, time=results.Quantity.measured([time_s], "s", device), **more)


ON_GPU = [timing(n, t, on_gpu=True) for n, t in [(100, 0.3), (1000, 0.3), (10_000, 0.4)]]


def test_break_even_is_where_the_gpu_wins_from_there_on():
    cpu = [timing(100, 0.1), timing(1000, 0.5), timing(1000, 0.9), timing(10_000, 5)]
    assert similarity.break_even(cpu + ON_GPU) == 1000
    assert similarity.break_even([timing(100, 1), timing(1000, 0.1), timing(10_000, 5), *ON_GPU]) == 10_000
    assert similarity.break_even([timing(10_000, 0.1), *ON_GPU]) is None
    busy = [each.model_copy(update={"other_load": 0.5}) for each in cpu]
    assert similarity.break_even([*busy, *ON_GPU]) is None  # what others took of the machine is no gain
    assert "other programs took 50% of the processors" in str(similarity.summarize([*busy, *ON_GPU], [], 10))
    assert similarity.break_even(cpu) is None
    assert similarity.break_even([*cpu, timing(10_000, 0.01, on_gpu=True, with_transfers=False)]) is None


def test_the_finding_names_devices_and_what_was_not_measured(some_vectors):
    good = similarity.validate(similarity.METHODS[1], some_vectors)
    bad = similarity.validate(wrong(shift_a_score), some_vectors)
    cpu = [timing(100, 0.1), timing(10_000, 5)]
    without = str(similarity.summarize(cpu, [good], 10))
    assert "The 10 nearest of each of 10,000 texts take 5 s on a CPU" in without
    assert "The 4 nearest of each of 5 texts" in str(similarity.summarize([timing(5, 1)], [good], 10))
    assert "GPU not measured: no CUDA GPU" in without
    assert "agree with float64" in without
    assert "1 of 2 methods DISAGREE" in str(similarity.summarize(cpu, [good, bad], 10))
    assert "400 ms on a GPU with transfers (on a GPU, measured), which pays from 10,000 texts on" in str(
        similarity.summarize(cpu + ON_GPU, [good], 10)
    )


def test_figures_say_what_they_show(some_vectors, run):
    timings = similarity.time_sizes(some_vectors, [50, 300], k=5, n_repeats=1)
    for name, draw in {
        "times": lambda ax: plots.similarity_times(ax, timings),
        "memory": lambda ax: plots.similarity_memory(ax, timings, memory_bytes=2**33),
    }.items():
        with figures.figure() as (fig, ax):
            assert draw(ax) is ax
            labels = " ".join(text.get_text() for text in ax.get_legend().get_texts())
            assert all(timing.method in labels and timing.time.device in labels for timing in timings)
            assert ax.get_xlabel()
            assert ax.get_ylabel()
            record = figures.save_figure(fig, run, name, alt="a figure")
        assert (run.figures / record.file).stat().st_size > 10_000


# The answer --------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(vectors(3, max_rows=12).filter(lambda X: len(X) > 1), st.integers(1, 5))
def test_the_most_similar_pairs_are_the_best_of_all_pairs(X, n_pairs):
    found = similarity.most_similar_pairs(similarity.top_k(X, 5, device="cpu"), [str(i) for i in range(len(X))], n_pairs)
    upper = cosines(X, X)[np.triu_indices(len(X), 1)]
    np.testing.assert_allclose([score for *_, score in found], np.sort(upper)[::-1][:n_pairs], rtol=0, atol=TOLERANCE)
    for first, second, score in found:
        assert int(first) < int(second)
        assert abs(cosines(X, X)[int(first), int(second)] - score) < TOLERANCE
    assert len({pair[:2] for pair in found}) == len(found)


def test_pairs_leave_out_skipped_rows_and_shorten_texts():
    neighbors = similarity.top_k([[1, 0], [np.nan, 0], [1, 0.1], [0, 1]], 3, device="cpu", on_invalid="skip")
    pairs = similarity.most_similar_pairs(neighbors, ["a  b\n\tc " * 50, "bad", "x" * 1000, "d"], 10, max_characters=20)
    assert [pair[:2] for pair in pairs] == [
        ("a b c a b c a b c a…", "x" * 19 + "…"),
        ("x" * 19 + "…", "d"),
        ("a b c a b c a b c a…", "d"),
    ]


def test_pairs_that_are_not_certain_or_not_of_these_texts_are_refused(some_vectors):
    neighbors = similarity.top_k(some_vectors, 2, device="cpu")
    with pytest.raises(ValueError, match="n_pairs=3 of neighbours with k=2"):
        similarity.most_similar_pairs(neighbors, ["text"] * 300, 3)
    with pytest.raises(ValueError, match="299 texts for the neighbours of 300 rows"):
        similarity.most_similar_pairs(neighbors, ["text"] * 299, 1)


def test_hostile_texts_are_shown_as_text():
    hostile = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'
    pair = hostile, "{0} %s $x$", 0.5
    html = tables.show([pair], ["first", "second", "score"], formats={"score": "{:.3f}"}).to_html()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;img" in html
    assert "{0} %s $x$" in html
    assert 'class="tex2jax_ignore"' in html  # MathJax leaves the dollars alone
    assert "0.500" in html


def test_the_room_loads_nothing_heavy():
    heavy = "{'cupy', 'tensorflow', 'keras', 'sklearn', 'pandas', 'matplotlib', 'numba', 'onnxruntime', 'distributed'}"
    code = f"import altlas_lib.similarity, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- What to expect, and where the time goes ----


def test_what_to_expect_follows_from_the_arithmetic():
    rate = Quantity.measured([100.0, 200.0, 150.0], "GFLOP/s", "this CPU")
    ceilings = Ceilings(cpu_matmul_float32=rate, cpu_copy_bandwidth=Quantity.measured([1.0], "GB/s", "this CPU"))
    gpu = devices.find_gpu("T4")
    expected = similarity.expected_times([1000, 100_000], 384, 10, gpu, ceilings)
    assert [(each.n_texts, each.on_gpu, each.time.device, each.time.basis) for each in expected] == [
        *[(1000, False, "this CPU", "projected"), (1000, True, "T4", "projected")],
        *[(100_000, False, "this CPU", "projected"), (100_000, True, "T4", "projected")],
    ]
    on_cpu, on_gpu = expected[2].time, expected[3].time
    assert (on_cpu.low, on_cpu.high) == pytest.approx((100_000**2 * 384 / 200e9, 100_000**2 * 384 / 100e9))
    assert on_gpu.low >= 100_000**2 * 384 / 65e12  # the peak of the data sheet; half of the matrix
    assert on_gpu.bound_by == "products"
    assert expected[1].time.bound_by == "launches"
    assert [each.on_gpu for each in similarity.expected_times([1000], 384, 10, gpu)] == [True]  # no ceilings, no CPU


def test_the_steps_of_a_search_add_up(some_vectors):
    steps = similarity.time_steps(np.tile(some_vectors, (10, 1)) + 1, 5, n_repeats=2)
    assert [step.name for step in steps] == ["preparation", "products", "selection"]
    assert all(step.time.value > 0 and step.time.n_runs == 2 for step in steps)
    assert sum(step.share for step in steps) == pytest.approx(1)


def test_warming_up_says_how_long_it_took():
    assert 0 < similarity.warm_up() < 120
