"""The CPU engine: `top_k` and `pairs_above` are float64's answer, and the same bit by bit however they are computed."""

import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy import sparse
from threadpoolctl import threadpool_info, threadpool_limits

from altlas_lib import similarity
from altlas_lib.similarity import scheme
from altlas_lib.similarity.cpu import compiled, preparation, simd, threads
from altlas_lib.similarity.cpu import search as cpu
from altlas_lib.similarity.cpu.products import Float32, Int8, int8_problem

TOLERANCE = 1e-6
DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint8", "bool"]

needs_int8 = pytest.mark.skipif(int8_problem() is not None, reason=f"no int8 products: {int8_problem()}")
PRODUCTS = [pytest.param(Float32, id="float32"), pytest.param(Int8, id="int8", marks=needs_int8)]
METHODS = [[Float32]] if int8_problem() else [[Float32], [Int8], [Int8, Float32]]
NAMES = ["float32", "auto"] if int8_problem() else ["float32", "int8", "auto"]

SETTINGS = st.builds(
    cpu.Settings, st.sampled_from(METHODS), n_threads=st.integers(1, 4), tile_rows=st.sampled_from([7, 16, 64, 100, 512])
)
PILOTS_FROM = st.sampled_from([1, 8192])  # rows; with pilots or without


@st.composite
def vectors(draw, n_columns=None, max_rows=300):
    """Rows of any supported dtype: duplicates, zero rows, scaled and opposite copies, a common part, an outlying dimension."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(0, max_rows)), n_columns or draw(st.integers(1, 130))
    distinct = rng.standard_normal((draw(st.integers(1, max_rows)), d)) + draw(st.sampled_from([0, 5]))
    distinct[:, 0] *= draw(st.sampled_from([1, 100]))
    distinct[: draw(st.integers(0, 2))] = 0
    X = distinct[rng.integers(0, len(distinct), n)]
    X[: n // 3] *= draw(st.sampled_from([1, 3, -3]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind in "iu":
        X = np.clip(10 * X, np.iinfo(dtype).min, np.iinfo(dtype).max)
    return X.astype(dtype)


@st.composite
def exact_vectors(draw, n_columns=16, max_rows=150):
    """Rows of 1, 4 or 16 elements of -1 or 1, else 0: their cosines are exact in float32, and many are equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return exact_rows(rng, draw(st.integers(1, max_rows)), n_columns)


def exact_rows(rng, n, n_columns=16):
    X = np.zeros((n, n_columns), np.float32)
    for row in X:
        n_nonzero = rng.choice([size for size in (0, 1, 4, 16) if size <= n_columns])
        row[rng.permutation(n_columns)[:n_nonzero]] = rng.choice([-1, 1], n_nonzero)
    return X


def normal_rows(n, d, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def cosines(X, Y):
    """Independent of the library's own reference."""

    def unit(rows):
        rows = np.asarray(rows, np.float64)
        for order in (np.inf, 2):  # by the largest element first: no square overflows
            norms = np.linalg.norm(rows, order, axis=1, keepdims=True)
            rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        return rows

    return np.einsum("nd,md->nm", unit(X), unit(Y))


def assert_nearest(found, X, k, Y=None):
    """`found` are k nearest neighbours in float64's eyes, up to differences of 1e-6 in score, in the order of the tie rule."""
    similar = cosines(X, X if Y is None else Y)
    if Y is None:
        np.fill_diagonal(similar, -np.inf)
    k = max(0, min(k, similar.shape[1] - (Y is None)))
    assert found.indices.shape == found.scores.shape == (len(similar), k)
    assert (found.indices.dtype, found.scores.dtype) == (np.int64, np.float32)
    best = -np.sort(-similar, axis=1)[:, :k]
    named = np.take_along_axis(similar, found.indices, axis=1)
    np.testing.assert_allclose(named, best, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.scores, named, rtol=0, atol=TOLERANCE)
    assert (abs(found.scores) <= 1).all()
    assert all(len(set(row)) == k for row in found.indices.tolist())
    step = np.diff(found.scores, axis=1)
    assert (step <= 0).all()
    assert (np.diff(found.indices, axis=1)[step == 0] > 0).all()


def assert_same(found, expected):
    """Bit by bit."""
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def top_k_with(options, X, k, Y=None, pilots_from=cpu._PILOTS_FROM):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cpu, "_PILOTS_FROM", pilots_from)
        return similarity.Neighbors(*cpu.top_k(X, Y, k, options, "raise"))


# Any data, any settings --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data(), vectors(), st.booleans())
def test_top_k_is_the_reference_whatever_the_settings(data, X, with_other):
    Y = data.draw(vectors(X.shape[1])) if with_other else None
    k = data.draw(st.integers(1, len(X if Y is None else Y) + 5))
    found = similarity.top_k(
        X,
        k,
        Y=Y,
        device="cpu",
        method=data.draw(st.sampled_from(NAMES)),
        working_memory=data.draw(st.sampled_from([1e-9, 0.05, None])),
        n_jobs=data.draw(st.sampled_from([1, 2, 4, None])),
    )
    assert_nearest(found, X, k, Y)
    np.testing.assert_allclose(found.scores, similarity.reference(X, k, Y=Y).scores, rtol=0, atol=TOLERANCE)
    for options, pilots_from in data.draw(st.lists(st.tuples(SETTINGS, PILOTS_FROM), min_size=2, max_size=2)):
        assert_same(top_k_with(options, X, k, Y, pilots_from), found)


@settings(max_examples=60, deadline=None)
@given(st.data(), exact_vectors(), st.booleans(), SETTINGS, PILOTS_FROM)
def test_equal_scores_come_in_the_order_of_their_index(data, X, with_other, options, pilots_from):
    Y = data.draw(exact_vectors()) if with_other else None
    k = data.draw(st.integers(1, len(X) + 5))
    assert_same(top_k_with(options, X, k, Y, pilots_from), similarity.reference(X, k, Y=Y))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_at_which_auto_uses_both_methods(name):
    X = normal_rows(2500, 24)
    X[1000:1500] = X[:500]
    found = similarity.top_k(X, 10, device="cpu", method=name)
    assert_nearest(found, X, 10)
    assert_same(found, top_k_with(cpu.Settings([Float32], 1, 200), X, 10))


def test_threads_that_meet_in_the_same_rows_lose_nothing():
    X = normal_rows(600, 3)
    alone = top_k_with(cpu.Settings([Float32], 1, 16), X, 100)
    for pilots_from in (1, 1, 8192, 8192):
        assert_same(top_k_with(cpu.Settings([Float32], 8, 16), X, 100, pilots_from=pilots_from), alone)


# Guessed thresholds ------------------------------------------------------------------------------------------------------


def of_two_kinds():
    """Three rows in four have near neighbours and the others none."""
    X = normal_rows(2000, 40)
    X[np.arange(2000) % 4 > 0] += 5
    return X


MIXED = {
    "normal": lambda: normal_rows(2000, 40),
    "drifting": lambda: np.cumsum(normal_rows(2000, 40), axis=0),
    "one far row": lambda: np.concatenate([normal_rows(1999, 40) + 5, -np.ones((1, 40), np.float32)]),
    "two kinds": of_two_kinds,
}
mixed = pytest.mark.parametrize("X", [pytest.param(make(), id=name) for name, make in MIXED.items()])


@mixed
def test_few_rows_are_compared_again(monkeypatch, X):
    n_compared, compare_some = [], cpu._compare_some

    def count(A, some, *arguments):
        n_compared.append(len(some))
        return compare_some(A, some, *arguments)

    monkeypatch.setattr(cpu, "_compare_some", count)
    for Y in (None, X[:1500]):
        n_compared.clear()
        top_k_with(cpu.Settings([Float32], 2, 64), X, 10, Y, pilots_from=1)
        assert n_compared[0] == 44  # the square root of 2000
        assert sum(n_compared[1:]) < 5 * 44


@mixed
@pytest.mark.parametrize("guess", [-0.9, 0.2, 0.5, 0.99, 1.5])
def test_a_wrong_guess_changes_nothing(monkeypatch, X, guess):
    expected = [top_k_with(cpu.Settings([Float32], 1, 512), X, 10, Y) for Y in (None, X[:700])]
    monkeypatch.setattr(cpu, "score_of", lambda key: guess)
    for methods in METHODS:
        found = [top_k_with(cpu.Settings(methods, 2, 64), X, 10, Y, pilots_from=1) for Y in (None, X[:700])]
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_a_row_compared_again_is_not_its_own_neighbour(monkeypatch, k):
    X = exact_rows(np.random.default_rng(0), 150, 4)  # most have equals, and a row of zeros ties with nearly all
    unit, *_ = preparation.unit_rows_of(X, "raise", 1)
    expected = cpu.search(unit, unit, k, cpu.Settings([Float32], 1, 64))
    monkeypatch.setattr(cpu, "_PILOTS_FROM", 1)
    for guess in (None, 1.5):
        if guess:
            monkeypatch.setattr(cpu, "score_of", lambda key: 1.5)
        np.testing.assert_array_equal(cpu.search(unit, unit, k, cpu.Settings([Float32], 1, 64)), expected)


@pytest.mark.parametrize("k", [99, 100, 101, 150])
@pytest.mark.parametrize("m", [None, 100])
def test_fewer_columns_than_neighbours(monkeypatch, k, m):
    """As in the panels of a cluster: 0 is none."""
    A, B = (preparation.unit_rows_of(normal_rows(100, 8, seed=seed), "raise", 1)[0] for seed in (0, 1))
    B = A if m is None else B
    expected = cpu.search(A, B, k, cpu.Settings([Float32], 1, 64))
    monkeypatch.setattr(cpu, "_PILOTS_FROM", 1)
    found = cpu.search(A, B, k, cpu.Settings([Float32], 1, 64))
    np.testing.assert_array_equal(found, expected)
    assert np.count_nonzero(found[0]) == min(k, 100 - (m is None))


def test_thresholds_that_are_known_are_kept_to():
    unit, *_ = preparation.unit_rows_of(normal_rows(300, 8), "raise", 1)
    options = cpu.Settings([Float32], 1, 64)
    found, _ = cpu.compare(unit, cpu.Columns(unit, options), 5, options, np.full(300, 2, np.float32))
    assert not found.any()


def test_both_ways_at_once():
    A, B = (preparation.unit_rows_of(normal_rows(n, 8), "raise", 1)[0] for n in (300, 500))
    options, unknown = cpu.Settings([Float32], 2, 64), np.full(500, -np.inf, np.float32)
    both = cpu.compare(A, cpu.Columns(B, options), 5, options, unknown[:300], unknown)
    for found, (one, other) in zip(both, [(A, B), (B, A)], strict=True):
        np.testing.assert_array_equal(found, cpu.search(one, other, 5, options))


@pytest.mark.parametrize("k", [1, 10, 40])
@pytest.mark.parametrize("methods", METHODS, ids=lambda methods: "+".join(method.name for method in methods))
def test_a_threshold_of_little_use_is_replaced(methods, k):
    """Many candidates in a row of a tile have it scanned again."""
    X = np.cumsum(normal_rows(700, 24), axis=0)
    unit, *_ = preparation.unit_rows_of(X, "raise", 1)
    expected = cpu.search(unit, unit, k, cpu.Settings([Float32], 1, 512))
    for tile_rows in (100, 512):
        options = cpu.Settings(methods, 1, tile_rows)
        found, _ = cpu.compare(unit, cpu.Columns(unit, options), k, options, np.full(len(X), -1, np.float32))
        np.testing.assert_array_equal(found, expected)


# Hard data: the bounds must hold -----------------------------------------------------------------------------------------


def with_outliers(X):
    X[:, :3] *= 500
    return X


def with_norms(exponents, dtype):
    return (normal_rows(240, 12, np.float64) * np.logspace(*exponents, 240)[:, None]).astype(dtype)


def with_opposites():
    X = normal_rows(240, 16) + 5
    X[::80] *= -1  # far from nearly all: their neighbours are not near
    return X


def near_duplicates():
    distances = np.repeat([1e-4, 1e-5, 1e-6, 1e-7], 60)[:, None]
    return (normal_rows(1, 48) + distances * normal_rows(240, 48, np.float64, seed=1)).astype(np.float32)


def with_rows_at_the_mean():
    X = normal_rows(100, 20)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return np.concatenate([X, -X, np.zeros((30, 20), np.float32)])  # the mean is 0, up to rounding


HARD = {
    "outlying dimensions": lambda: with_outliers(normal_rows(240, 300)),
    "outlying dimensions and a mean": lambda: with_outliers(normal_rows(240, 300) + 1),
    "one outlying element": lambda: np.eye(240, 384, dtype=np.float32) * 50 + normal_rows(240, 384) / 100,
    "at the mean": with_rows_at_the_mean,
    "all one direction": lambda: np.outer(np.linspace(0.1, 9, 240), np.arange(1, 20)).astype(np.float32),
    "constant rows": lambda: np.repeat(np.linspace(-3, 3, 240, dtype=np.float32)[:, None], 30, axis=1),
    "one-hot": lambda: np.eye(60, dtype=np.float32)[np.arange(240) % 60],
    "orthogonal, up to rounding": lambda: np.linalg.qr(normal_rows(240, 240, np.float64))[0].astype(np.float32),
    "near-duplicates": near_duplicates,
    "a large common part": lambda: normal_rows(240, 64) + 50,
    "opposites": with_opposites,
    "drifting": lambda: normal_rows(240, 32) + np.linspace(0, 20, 240, dtype=np.float32)[:, None],
    "one dimension": lambda: normal_rows(240, 1),
    "two dimensions": lambda: normal_rows(240, 2),  # where the bound on what codes lose is attained
    "two thousand dimensions": lambda: normal_rows(150, 2000),
    "norms, float32": lambda: with_norms((-30, 30), np.float32),
    "norms, float64": lambda: with_norms((-300, 300), np.float64),
    "norms whose products are float32's": lambda: with_norms((-12, 12), np.float32),
    "norms whose products are not": lambda: with_norms((-24, 24), np.float32),
    "subnormal, float32": lambda: (normal_rows(240, 8) * 1e-41).astype(np.float32),
    "subnormal, float64": lambda: normal_rows(240, 8, np.float64) * 1e-310,
    "subnormal elements": lambda: normal_rows(240, 8) * np.float32([1, 1e-39, 1e-40, 1, 1e-44, 1e-20, 1e-30, 1]),
    "negative zeros": lambda: np.where(exact_rows(np.random.default_rng(0), 240) == 0, np.float32(-0.0), normal_rows(240, 16)),
}
hard = pytest.mark.parametrize("X", [pytest.param(make(), id=name) for name, make in HARD.items()])


@hard
def test_hard_data_are_exact_by_every_method(X):
    expected = top_k_with(cpu.Settings([Float32], 1, 512), X, 7)
    assert_nearest(expected, X, 7)
    for methods in METHODS:
        for pilots_from in (1, 8192):
            assert_same(top_k_with(cpu.Settings(methods, 2, 32), X, 7, pilots_from=pilots_from), expected)
    half = len(X) // 2
    across = [top_k_with(cpu.Settings(methods, 2, 32), X[:half], 7, X[half:]) for methods in METHODS]
    assert_nearest(across[0], X[:half], 7, X[half:])
    for found in across[1:]:
        assert_same(found, across[0])


def computed_tiles(A, B, method, tile_rows=64):
    """Of each tile its blocks, products, bounds of both sides, and the scores of its pairs as the engine verifies them."""
    options = cpu.Settings([method], 1, tile_rows)
    states = [(np.zeros(len(rows), np.float32), np.zeros((len(rows), 1), np.uint64)) for rows in (A, B)]
    computed = []

    def act(position, tile, scratch):
        products, left, *of_a, right, b0, b1, _ = tile
        a, b = slice(*of_a), slice(b0, b1)
        shape = a.stop - a.start, b.stop - b.start
        pairs = np.stack(np.mgrid[a, b], axis=-1).reshape(-1, 2).astype(np.int32)
        scores = np.empty(len(pairs), np.float32)
        compiled.verify(pairs, len(pairs), left, right, scores)
        computed.append((a, b, products.copy(), left.bounds, right.bounds, scores.reshape(shape)))

    cpu.for_each_tile(A, cpu.Columns(B, options), options, *states, act)
    return computed


@pytest.mark.parametrize("method", PRODUCTS)
@hard
def test_no_score_is_above_its_bound(X, method):
    unit, *_ = preparation.unit_rows_of(X, "raise", 1)
    half = len(unit) // 2
    n_pairs = 0
    for A, B in [(unit, unit), (unit[:half], unit[half:])]:
        for a, b, products, of_a, of_b, scores in computed_tiles(A, B, method):
            product = products[: scores.size].reshape(scores.shape).astype(np.float64)
            scale_a, length_a, residual_a, offset_a = (values[a, None].astype(np.float64) for values in of_a[:4])
            scale_b, length_b, residual_b, offset_b = (values[b].astype(np.float64) for values in of_b[:4])
            lost = length_a * residual_b + residual_a * length_b
            estimate = scale_a * scale_b * product + offset_a + offset_b
            assert (scores <= estimate + lost + of_a.slack).all()
            assert (scores >= estimate - lost - of_a.slack).all()
            n_pairs += scores.size
    assert n_pairs >= len(unit) ** 2 / 2


@needs_int8
@given(st.integers(0, 2**32 - 1), st.sampled_from([128, 160, 384]), st.sampled_from([-1, 1]), st.booleans())
@settings(max_examples=30)
def test_a_bound_is_not_wider_than_it_must_be(seed, d, side, rotated):
    """Codes that all lose half a step, beside a row that points where that is lost, come within 1 % of the bound."""
    rng = np.random.default_rng(seed)
    half_steps = (rng.integers(-120, 120, d) + 0.5) / 127
    half_steps[rng.integers(d)] = 1  # to which the codes are scaled
    lost = np.sign(half_steps * 127 - np.rint(half_steps * 127))
    coded = half_steps - 2**-10 / 127 * lost  # a little off the tie, so that rounding goes the same way wherever it is done
    vectors = np.stack([coded, -coded, side * np.where(lost == 0, 1, lost), -side * np.where(lost == 0, 1, lost)])
    method = Int8(preparation.unit_rows_of(vectors.astype(np.float32), "raise", 1)[0])  # of mean 0
    if rotated:
        from scipy.fft import idct

        method.signs = rng.choice(np.float32([-1, 1]), d)
        vectors = idct(vectors, norm="ortho", axis=1) * method.signs
    unit, *_ = preparation.unit_rows_of(vectors.astype(np.float32), "raise", 1)
    codes, _, bounds = method.prepare(unit, [slice(0, 4)], 1)
    scale, length, residual, offset = (values[:4].astype(np.float64) for values in bounds[:4])
    products = (codes.astype(np.float64) - 128) @ (codes.astype(np.float64) - 128).T
    margin = np.outer(length, residual) + np.outer(residual, length) + bounds.slack
    estimate = np.outer(scale, scale) * products + offset + offset[:, None]
    exact = unit.rows.astype(np.float64) * unit.inverse_norms[:, None].astype(np.float64)
    off = (exact @ exact.T - estimate) / margin
    assert abs(off).max() <= 1
    assert off.max() > 0.985  # of which 1 % and less is the slack, a fast transform's included
    assert off.min() < -0.985
    assert rotated or off.max() > 0.99


@needs_int8
@hard
def test_codes_lose_no_more_than_is_said(X):
    unit, *_ = preparation.unit_rows_of(X, "raise", 1)
    method = Int8(unit)
    codes, transposed, bounds = method.prepare(unit, threads.blocks_of(len(X), 100), 1)
    np.testing.assert_array_equal(np.concatenate(transposed, axis=1).T, codes.astype(np.int16) - 128)
    coded = (codes.astype(np.float64) - 128) * bounds.scale[: len(X), None]
    exact = method._rotate(unit.rows.astype(np.float64) * unit.inverse_norms[:, None] - method.mean)
    rounding = bounds.slack / 4
    assert (np.linalg.norm(coded, axis=1) <= bounds.length[: len(X)] + rounding).all()
    assert (np.linalg.norm(exact, axis=1) <= bounds.length[: len(X)] + rounding).all()
    assert (np.linalg.norm(exact - coded, axis=1) <= bounds.residual[: len(X)] + rounding).all()


@pytest.mark.parametrize("method", PRODUCTS)
@hard
def test_a_certain_threshold_is_reached_by_k(X, method):
    unit, *_ = preparation.unit_rows_of(X, "raise", 1)
    lows = np.empty(64, np.float32)
    for a, b, products, of_a, of_b, scores in computed_tiles(unit, unit, method)[::3]:
        n = b.stop - b.start
        for k in range(1, n):
            for i in range(0, len(scores), 21):
                left_out = i if a == b else -1
                of_row = tuple(values[a.start + i] for values in of_a[:4])
                threshold = compiled.certain_threshold(products, i * n, of_row, of_b, b.start, n, k, left_out, lows)
                assert np.count_nonzero(np.delete(scores[i], [left_out] if a == b else []) >= threshold) >= k


@needs_int8
def test_rows_are_rotated_where_few_dimensions_hold_most():
    def prepared(X):
        return Int8(preparation.unit_rows_of(X, "raise", 1)[0])

    assert prepared(HARD["outlying dimensions"]()).signs is not None
    assert prepared(HARD["outlying dimensions and a mean"]()).signs is not None
    assert prepared(normal_rows(240, 384)).signs is None
    assert prepared(normal_rows(240, 384) + 5).signs is None


# Duplicates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", METHODS, ids=lambda methods: "+".join(method.name for method in methods))
@pytest.mark.parametrize("row", [[1, 2, 3], [0, 0, 0]])
def test_all_rows_equal(methods, row):
    X = np.float32([row] * 3000)
    found = top_k_with(cpu.Settings(methods, 2, 512), X, 10)
    first = np.arange(11)
    expected = [first[first != i][:10] for i in range(3000)]
    np.testing.assert_array_equal(found.indices, expected)
    np.testing.assert_allclose(found.scores, float(any(row)), atol=TOLERANCE)
    of_others = top_k_with(cpu.Settings(methods, 2, 512), X[:5], 10, X)
    np.testing.assert_array_equal(of_others.indices, np.tile(np.arange(10), (5, 1)))


@pytest.mark.parametrize("with_other", [False, True])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_leaving_out_redundant_rows_changes_nothing(monkeypatch, k, with_other):
    X = np.concatenate([np.zeros((1, 9), np.float32), normal_rows(6, 9)])[np.random.default_rng(0).integers(0, 7, 500)]
    X[::50] *= 4  # exact
    Y = X[200:] if with_other else None
    found = similarity.top_k(X, k, Y=Y, device="cpu")
    assert_nearest(found, X, k, Y)
    monkeypatch.setattr(preparation, "redundant_rows", lambda *_: (np.empty(0, np.int64), np.empty(0, np.int64)))
    assert_same(similarity.top_k(X, k, Y=Y, device="cpu"), found)


def test_so_many_duplicates_are_kept_as_can_be_neighbours(monkeypatch):
    rows = np.float32([[1, 2], [3, 4], [1, 2], [1, 2], [3, 4], [1, 2], [1, 2], [5, 6]])
    _, digests, _ = preparation.unit_rows_of(rows, "raise", 1)
    redundant, instead = scheme.redundant_rows(digests, rows.__getitem__, 3)
    assert (redundant.tolist(), instead.tolist()) == ([5, 6], [3, 3])
    assert len(scheme.redundant_rows(digests, rows.__getitem__, 5)[0]) == 0

    compared = []

    def search(A, B, k, *arguments):
        compared.append(len(A))
        return cpu.search(A, B, k, *arguments)

    cpu.top_k(np.ones((3000, 2), np.float32), None, 10, cpu.Settings([Float32], 1, 64), "raise", search)
    assert compared == [11]


@pytest.mark.parametrize("d", [3, 384])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_multiples_of_a_row_are_recognised(monkeypatch, dtype, d):
    """So that data which are a few directions many times over do not have every pair verified."""
    rng = np.random.default_rng(d)
    factors = rng.integers(1, 1000, (3000, 1)) if dtype == "int32" else 10.0 ** rng.uniform(-6, 6, (3000, 1))
    directions = rng.integers(-99, 100, (5, d))
    X = (directions[rng.integers(0, 5, 3000)] * factors).astype(dtype)
    compared = []
    search = cpu.search
    monkeypatch.setattr(cpu.top_k, "__defaults__", (lambda A, *rest: compared.append(len(A)) or search(A, *rest),))
    found = similarity.top_k(X, 10, device="cpu")
    assert_nearest(found, X, 10)
    assert compared[0] < 300


def test_what_is_nearly_a_multiple_is_none():
    rows = np.float32([[1, 2, 3]] * 4)
    rows[1:3] *= 3
    rows[2, 1] *= 1 + 2.0**-20
    redundant, instead = scheme.redundant_rows(np.zeros(4, np.uint64), rows.__getitem__, 1)
    assert (redundant.tolist(), instead.tolist()) == ([1, 3], [0, 0])


def test_rows_of_the_same_hash_are_not_taken_for_equal(monkeypatch):
    X = np.concatenate([normal_rows(80, 5), np.ones((20, 5), np.float32), normal_rows(80, 5)])
    expected = similarity.top_k(X, 3, device="cpu")
    measure = preparation._measure
    monkeypatch.setattr(preparation, "_measure", lambda *arguments: (measure(*arguments)[0], np.zeros(len(X), np.uint64)))
    assert_same(similarity.top_k(X, 3, device="cpu"), expected)


def test_different_rows_have_different_hashes():
    X = np.concatenate([exact_rows(np.random.default_rng(0), 2000, 24), normal_rows(500, 24)])
    X = np.unique(np.concatenate([X, X[:, ::-1]]) + np.float32(0), axis=0)  # no -0.0
    _, digests, _ = preparation.unit_rows_of(X, "raise", 1)
    assert len(np.unique(digests)) == len(X)


def test_a_duplicate_does_not_hide_behind_the_row_itself():
    found = similarity.top_k([[1, 2]] * 5, 2, device="cpu")
    assert found.indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    found = similarity.top_k(np.repeat(normal_rows(200, 7), 2, axis=0), 1, device="cpu")  # rounding takes some above 1
    assert found.indices[:, 0].tolist() == [row ^ 1 for row in range(400)]
    assert 1 - TOLERANCE < found.scores.min() <= found.scores.max() <= 1


def test_a_zero_row_has_similarity_zero_with_all_and_no_negative_zero_is_shown():
    found = similarity.top_k([[0, 0], [-1, 0], [0, 0], [1, 0]], 3, device="cpu")
    assert found.indices[0].tolist() == [1, 2, 3]
    assert found.scores[0].tolist() == [0, 0, 0]
    assert not np.signbit(found.scores[0]).any()


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
def test_zero_and_negative_zero_are_equal_scores(make):
    for tiny, length in [(-1e-60, 1), (-1e-35, 5e11)]:  # as a cosine either is -0.0 in float32
        X = np.array([[length, 0], [tiny, length], [0, length]], "float64" if length == 1 else "float32")
        found = similarity.top_k(make(X), 2, device="cpu")
        assert found.indices[0].tolist() == [1, 2]
        assert not np.signbit(found.scores[0]).any()
    for d in range(1, 20):
        found = similarity.top_k(make(np.outer([-1, 0, 1, 0, -2, 0], np.ones(d))), 5, device="cpu")
        assert found.indices[1::2].tolist() == [[0, 2, 3, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 4]]
        assert not np.signbit(found.scores[1::2]).any()


# What comes in -----------------------------------------------------------------------------------------------------------


class Frame:
    """What NumPy can convert, as a table of pandas."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_containers(tmp_path, name):
    X = exact_rows(np.random.default_rng(0), 90)  # whose cosines are exact, whichever way the rows are scaled
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "x64.npy", X.astype(np.float64))
    read_only = X.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"x" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(X.shape)
    assert not unaligned.flags.aligned
    before, expected = X.copy(), similarity.reference(X, 8)
    for same in (
        X,
        np.asfortranarray(X),
        np.repeat(X, 2, axis=1)[:, ::2],
        np.repeat(X, 2, axis=0)[::2],
        X[::-1].copy()[::-1],
        read_only,
        unaligned,
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        np.load(tmp_path / "x64.npy", mmap_mode="r"),
        X.astype(">f4"),
        X.astype(">i2"),
        X.tolist(),
        Frame(X),
    ):
        assert_same(similarity.top_k(same, 8, device="cpu", method=name), expected)
        assert_same(similarity.top_k(same, 8, Y=same, device="cpu", method=name), similarity.reference(X, 8, Y=X))
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "m"), [(0, None), (0, 0), (0, 5), (5, 0), (1, None), (1, 1)])
def test_empty_and_single_rows(n, m, name):
    X, Y = normal_rows(n, 3), None if m is None else normal_rows(m, 3, seed=1)
    found = similarity.top_k(X, 4, Y=Y, device="cpu", method=name)
    assert found.indices.shape == found.scores.shape == (n, max(0, n - 1) if m is None else min(4, m))
    pairs = similarity.pairs_above(X, -1, Y=Y, method=name)
    assert len(pairs) == (n * (n - 1) // 2 if m is None else n * m)


def test_more_neighbours_than_there_are():
    assert similarity.top_k([[2.0], [-1.0], [5.0]], k=100, device="cpu").indices.tolist() == [[2, 1], [0, 2], [0, 1]]
    assert similarity.top_k([[2.0]], k=100, Y=[[1.0], [-1.0], [5.0]], device="cpu").indices.tolist() == [[0, 2, 1]]


def peak_bytes(function):
    function()  # first without: what is compiled is not what is measured
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_memory_map_of_float32_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", normal_rows(20_000, 256))
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert peak_bytes(lambda: similarity.top_k(X[:3], Y=X, device="cpu", method="float32")) < X.nbytes / 4
    assert peak_bytes(lambda: similarity.top_k(X[:2500], device="cpu", method="float32")) < X[:2500].nbytes * 2


def test_a_memory_map_of_float64_is_never_read_as_a_whole(tmp_path):
    np.save(tmp_path / "x.npy", normal_rows(20_000, 256, np.float64))
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert peak_bytes(lambda: similarity.top_k(X[:3], Y=X, device="cpu", method="float32")) < X.nbytes


# Invalid rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_invalid_rows_are_named_or_skipped_and_reported(value, dtype):
    X = normal_rows(60, 3, dtype)
    X[[2, 3, 7, 20, 30, 40, 50]] = X[0]  # more duplicates than are compared
    bad = [1, 4, 5, 6, 8, 9, 59]
    X[bad, 1] = value
    with pytest.raises(ValueError, match=r"X holds NaN or infinity in 7 of 60 rows \(counted from 0: 1, 4, 5, 6, 8, \.\.\.\)"):
        similarity.top_k(X, device="cpu")
    with pytest.raises(ValueError, match="X holds NaN or infinity in 7 of 60 rows"):
        similarity.pairs_above(X, 0.5)
    found = similarity.top_k(X, 3, device="cpu", on_invalid="skip")
    assert found.skipped_rows.tolist() == found.skipped_columns.tolist() == bad
    assert (found.indices[bad] == -1).all()
    assert np.isnan(found.scores[bad]).all()
    valid = np.delete(np.arange(60), bad)
    of_valid = similarity.top_k(X[valid], 3, device="cpu")
    assert_nearest(of_valid, X[valid], 3)
    np.testing.assert_array_equal(found.indices[valid], valid[of_valid.indices])
    np.testing.assert_array_equal(found.scores[valid], of_valid.scores)
    pairs, of_valid = similarity.pairs_above(X, 0, on_invalid="skip"), similarity.pairs_above(X[valid], 0)
    np.testing.assert_array_equal([pairs.first, pairs.second], valid[[of_valid.first, of_valid.second]])
    assert pairs.skipped_rows.tolist() == bad


def test_invalid_rows_of_y_are_nobodys_neighbours():
    found = similarity.top_k([[1.0, 0.0], [np.nan, 0.0]], 5, Y=[[np.inf, 0], [0, 1], [1, 1]], device="cpu", on_invalid="skip")
    assert found.indices.tolist() == [[2, 1], [-1, -1]]
    assert (found.skipped_rows.tolist(), found.skipped_columns.tolist()) == ([1], [0])
    with pytest.raises(ValueError, match="Y holds NaN"):
        similarity.top_k([[1.0, 0.0]], Y=[[np.inf, 0]], device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_all_rows_invalid(name):
    bad, good = np.full((3, 2), np.nan), normal_rows(4, 2)
    for X, Y in [(bad, None), (bad, good), (good, bad)]:
        found = similarity.top_k(X, 2, Y=Y, device="cpu", method=name, on_invalid="skip")
        assert found.indices.shape == (len(X), 2 if Y is good else 0)
        assert (found.indices == -1).all()
        assert len(similarity.pairs_above(X, -1, Y=Y, method=name, on_invalid="skip")) == 0


# Sparse ------------------------------------------------------------------------------------------------------------------


@st.composite
def sparse_matrices(draw, n_columns, max_rows=60):
    """SciPy matrices of any format, with empty rows, explicit zeros, and (COO) entries that are to be added up."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, n_entries = draw(st.integers(1, max_rows)), draw(st.integers(0, 300))
    values = rng.integers(-2, 3, n_entries) if draw(st.booleans()) else rng.standard_normal(n_entries)
    places = rng.integers(0, n, n_entries), rng.integers(0, n_columns, n_entries)
    X = sparse.coo_array((values.astype(draw(st.sampled_from(["float32", "float64", "int64"]))), places), (n, n_columns))
    return X.asformat(draw(st.sampled_from(["coo", "csr", "csc", "lil"])))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 30), st.booleans(), st.integers(1, 70), st.integers(1, 3))
def test_sparse_rows_have_the_neighbours_of_dense_ones(data, n_columns, with_other, k, n_jobs):
    X = data.draw(sparse_matrices(n_columns))
    Y = data.draw(sparse_matrices(n_columns)) if with_other else None
    before = X.copy()
    dense, others = X.toarray(), None if Y is None else Y.toarray()
    found = similarity.top_k(X, k, Y=Y, n_jobs=n_jobs)
    assert_nearest(found, dense, k, others)
    assert (before != X).nnz == 0


@settings(max_examples=30, deadline=None)
@given(exact_vectors(max_rows=60), exact_vectors(max_rows=60), st.booleans(), st.sampled_from([-1, 0, 0.25, 0.5, 1]))
def test_sparse_and_dense_answers_are_the_same_where_scores_are_exact(X, Y, with_other, threshold):
    Y = Y if with_other else None
    as_sparse = [None if rows is None else sparse.csr_array(rows) for rows in (X, Y)]
    assert_same(similarity.top_k(as_sparse[0], 9, Y=as_sparse[1]), similarity.reference(X, 9, Y=Y))
    assert_same_pairs(
        similarity.pairs_above(as_sparse[0], threshold, Y=as_sparse[1]), similarity.pairs_above(X, threshold, Y=Y)
    )


def test_entries_of_a_sparse_row_that_are_at_one_place_are_added_up():
    X = sparse.csr_array((np.float64([1, 1, 3, 2, -2, 5]), [1, 1, 0, 1, 1, 2], [0, 3, 6]), (2, 3))
    assert not X.has_canonical_format
    assert_nearest(similarity.top_k(X, 1), X.toarray(), 1)
    X.data[3:5] = np.inf, -np.inf
    with pytest.raises(ValueError, match=r"in 1 of 2 rows \(counted from 0: 1\)"):
        similarity.top_k(X)


def test_invalid_sparse_rows_are_named_or_skipped():
    X = exact_rows(np.random.default_rng(0), 20)
    X[[3, 11], 2] = np.nan, np.inf
    as_sparse = sparse.csr_array(X)
    with pytest.raises(ValueError, match=r"X holds NaN or infinity in 2 of 20 rows \(counted from 0: 3, 11\)"):
        similarity.top_k(as_sparse)
    with pytest.raises(ValueError, match="Y holds NaN or infinity in 2 of 20 rows"):
        similarity.top_k(as_sparse[:2], Y=as_sparse)
    for Y in (None, X):
        found = similarity.top_k(as_sparse, 4, Y=None if Y is None else as_sparse, on_invalid="skip")
        expected = similarity.top_k(X, 4, Y=Y, device="cpu", on_invalid="skip")
        assert_same(found, expected)
        assert found.skipped_rows.tolist() == found.skipped_columns.tolist() == [3, 11]


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 4)])
def test_sparse_matrices_without_an_entry(shape):
    X = sparse.csr_array(shape)
    n = shape[0]
    expected = [[j for j in range(n) if j != i] for i in range(n)]
    assert similarity.top_k(X, 5).indices.tolist() == expected
    assert len(similarity.pairs_above(X, 0)) == n * (n - 1) // 2
    assert not similarity.top_k(X, 5).scores.any()


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200])
def test_sparse_rows_of_extreme_length(scale):
    X = np.random.default_rng(0).uniform(-1, 1, (20, 5))
    assert_nearest(similarity.top_k(sparse.csr_array(X * scale), 5), X, 5)


def test_sparse_matrices_stay_among_themselves_on_the_cpu():
    X = sparse.csr_array(np.eye(3))
    with pytest.raises(ValueError, match="device='gpu': sparse matrices are computed on the CPU"):
        similarity.top_k(X, device="gpu")
    for left, right in [(X, np.eye(3)), (np.eye(3), X)]:
        with pytest.raises(TypeError, match="expected both sparse or both dense"):
            similarity.top_k(left, Y=right)
    with pytest.raises(TypeError, match="complex128"):
        similarity.top_k(X.astype(complex))


# Pairs above a threshold -------------------------------------------------------------------------------------------------


def assert_same_pairs(found, expected):
    np.testing.assert_array_equal([found.first, found.second], [expected.first, expected.second])
    np.testing.assert_array_equal(found.scores, expected.scores)


def pairs_of(neighbors, of_itself):
    """All pairs, in the order of `pairs_above`."""
    n, k = neighbors.indices.shape
    first, second, scores = np.repeat(np.arange(n), k), neighbors.indices.ravel(), neighbors.scores.ravel()
    once = first < second if of_itself else np.full(len(first), True)
    order = [at for at in np.lexsort((second, first, -scores)) if once[at]]
    return first[order], second[order], scores[order]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.one_of(vectors(5, 80), exact_vectors(5, 80)), st.booleans(), SETTINGS)
def test_pairs_above_are_all_pairs_above(data, X, with_other, options):
    Y = data.draw(vectors(5, 80)) if with_other else None
    first, second, scores = pairs_of(similarity.top_k(X, 1000, Y=Y, device="cpu"), Y is None)
    attained = [st.sampled_from(scores.tolist())] if len(scores) else []
    threshold = data.draw(st.one_of(st.sampled_from([-1.0, 0.0, 0.9, 1.0]), *attained))
    n_expected = np.count_nonzero(scores >= np.float32(threshold))
    found = cpu.pairs_above(X, Y, threshold, options, "raise", 10**6)
    order = np.lexsort((found[1], found[0], -found[2]))
    found = similarity.Pairs(*(values[order] for values in found[:3]), *found[3:])
    expected = similarity.Pairs(first[:n_expected], second[:n_expected], scores[:n_expected])
    assert_same_pairs(found, expected)
    assert (found.first.dtype, found.second.dtype, found.scores.dtype) == (np.int64, np.int64, np.float32)
    true = cosines(X, X if Y is None else Y)
    np.testing.assert_allclose(found.scores, true[found.first, found.second], rtol=0, atol=TOLERANCE)
    upper = true[np.triu_indices(len(X), 1)] if Y is None else true
    assert np.count_nonzero(upper > threshold + TOLERANCE) <= len(found) <= np.count_nonzero(upper > threshold - TOLERANCE)


def test_pairs_are_refused_where_there_are_too_many():
    dense = np.ones((200, 3), np.float32)
    for X in (dense, sparse.csr_array(dense)):
        assert len(similarity.pairs_above(X, 0.9, max_pairs=19_900)) == 200 * 199 // 2
        with pytest.raises(MemoryError, match=r"threshold=0\.9: more than max_pairs=19,899 pairs reach it"):
            similarity.pairs_above(X, 0.9, max_pairs=19_899)


@pytest.mark.parametrize("threshold", [1.1, -1.1, np.nan, "high", None, 1j])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    with pytest.raises(ValueError, match="expected a cosine similarity from -1 to 1"):
        similarity.pairs_above([[1.0, 2.0]], threshold)


# Memory ------------------------------------------------------------------------------------------------------------------


def test_the_matrix_is_never_built():
    """Measured by the operating system, in a process of its own: what ONNX Runtime and BLAS allocate counts too."""
    pytest.importorskip("resource")
    code = """
import resource
import numpy as np
from scipy import sparse
from altlas_lib import similarity

def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

X = np.random.default_rng(0).standard_normal((20_000, 32)).astype(np.float32)
one_hot = sparse.csr_array((np.ones(20_000), (np.arange(20_000), np.arange(20_000) % 5000)))
for method in ("float32", "auto"):
    similarity.top_k(X[:2500], device="cpu", method=method)
before = peak_bytes()
for method in ("float32", "auto"):
    similarity.top_k(X, device="cpu", method=method)
similarity.top_k(X, Y=X[::-1].copy(), device="cpu")
print(peak_bytes() - before)
similarity.pairs_above(X, 0.7)
similarity.top_k(one_hot)
similarity.pairs_above(one_hot, 0.5)
print(peak_bytes() - before)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(lines) == 2
    assert all(int(line) < 100e6 for line in lines)  # the matrix would be 1,600e6


def test_no_array_of_a_matrix_is_allocated():
    X = normal_rows(20_000, 32)
    assert peak_bytes(lambda: similarity.top_k(X, device="cpu")) < 20e6
    assert peak_bytes(lambda: similarity.pairs_above(X, 0.8)) < 20e6


@pytest.mark.parametrize("n_distinct", [1, 2, 3000])
def test_working_memory_is_kept_even_where_all_scores_are_equal(n_distinct):
    X = normal_rows(n_distinct, 4)[np.arange(3000) % n_distinct]
    held = 2 * X.nbytes + 3000 * 10 * (8 + 8 + 4)  # a copy of the rows, keys and the answer
    assert peak_bytes(lambda: similarity.top_k(X, device="cpu", working_memory=1, n_jobs=2)) < 2**20 + held + 2**18


def test_rows_are_scaled_in_blocks(monkeypatch):
    monkeypatch.setattr("altlas_lib.similarity.inputs._BLOCK_BYTES", 3 * 8 * 4)
    X = normal_rows(20, 4, np.float64)
    X[[2, 3, 11]] = np.nan
    found = similarity.top_k(X, 4, device="cpu", on_invalid="skip")
    assert found.skipped_rows.tolist() == [2, 3, 11]
    valid = np.delete(np.arange(20), [2, 3, 11])
    np.testing.assert_array_equal(found.indices[valid], valid[similarity.reference(X[valid], 4).indices])


# Threads -----------------------------------------------------------------------------------------------------------------


def blas_threads():
    return {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def own_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("similarity")]


@pytest.mark.parametrize("progress", [False, True])
def test_control_c_returns_at_once_and_leaves_no_thread(progress):
    code = f"""
import signal, threading, time
import numpy as np
from altlas_lib import similarity
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
X = np.random.default_rng(0).random((80_000, 256), np.float32)
similarity.top_k(X[:2500], device="cpu")
print("started", flush=True)
try:
    similarity.top_k(X, device="cpu", method="float32", progress={progress})
    print("not interrupted")
except KeyboardInterrupt:
    print(time.monotonic(), [thread.name for thread in threading.enumerate()])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout.readline() == "started\n"
            time.sleep(0.7)
            interrupted = time.monotonic()
            child.send_signal(signal.SIGINT)
            returned, names = child.communicate(timeout=20)[0].split(maxsplit=1)
        finally:
            child.kill()
    assert float(returned) - interrupted < 2
    assert names.strip() == "['MainThread']"


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_items", [0, 1, 40])
def test_every_item_is_worked_on_once(n_threads, n_items):
    done, shown = [], []
    threads.for_each(iter(range(n_items)), n_items, lambda: done.append, n_threads, shown.append)
    assert sorted(done) == list(range(n_items))
    assert shown == sorted(shown)
    assert shown[-1:] == ([1] if n_items else [])
    assert own_threads() == []


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_an_error_in_a_worker_is_raised_and_nothing_is_left(monkeypatch, n_jobs):
    before, seen = blas_threads(), []

    def fail(*arguments):
        seen.append(arguments)
        if len(seen) > 1:
            raise ArithmeticError("out of numbers")

    monkeypatch.setattr(cpu, "multiply", fail)
    with pytest.raises(ArithmeticError, match="out of numbers"):
        similarity.top_k(normal_rows(2000, 4), device="cpu", method="float32", n_jobs=n_jobs)
    assert seen
    assert blas_threads().items() >= before.items()  # a library may be loaded meanwhile
    assert own_threads() == []


def test_two_calls_at_once_do_not_disturb_each_other():
    left, right = normal_rows(3000, 64), normal_rows(3500, 64, seed=1)
    expected = [top_k_with(cpu.Settings([Float32], 1, 512), X, 5) for X in (left, right)]
    before, found = blas_threads(), {}

    def call(X, name):
        for _ in range(3):
            found[name] = similarity.top_k(X, 5, device="cpu", method="float32", n_jobs=2)

    calls = [threading.Thread(target=call, args=arguments) for arguments in [(left, 0), (right, 1)]]
    for thread in calls:
        thread.start()
    for thread in calls:
        thread.join()
    for name in (0, 1):
        assert_same(found[name], expected[name])
    assert blas_threads() == before
    assert own_threads() == []


def test_a_limit_of_the_users_own_is_kept():
    with threadpool_limits(3, user_api="blas"):
        similarity.top_k(normal_rows(100, 4), device="cpu")
        similarity.pairs_above(normal_rows(100, 4), 0.9)
        assert set(blas_threads().values()) == {3}


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("call", [(similarity.top_k, 10), (similarity.pairs_above, 0.9)], ids=["top_k", "pairs_above"])
def test_progress_is_shown_on_stderr_if_asked_for(capsys, make, call):
    search, argument = call
    search(make(normal_rows(300, 4)), argument)
    assert capsys.readouterr() == ("", "")
    search(make(normal_rows(300, 4)), argument, progress=True)
    out, err = capsys.readouterr()
    assert "100%" in err
    assert "left" in err
    assert out == ""


@pytest.mark.parametrize(
    ("n_jobs", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_a_number_of_threads_that_cannot_be_is_named(n_jobs, error):
    for X in (normal_rows(3, 2), sparse.csr_array(normal_rows(3, 2))):
        with pytest.raises(error, match=f"n_jobs={n_jobs!r}: expected"):
            similarity.top_k(X, device="cpu", n_jobs=n_jobs)


def test_more_threads_than_tiles():
    X = normal_rows(10, 3)
    assert_same(similarity.top_k(X, 4, device="cpu", n_jobs=50), similarity.top_k(X, 4, device="cpu", n_jobs=1))
    assert_same(similarity.top_k(X, 4, device="cpu", n_jobs=-1), similarity.top_k(X, 4, device="cpu", n_jobs=1))


def test_without_int8_products_auto_answers_and_int8_says_why(monkeypatch):
    monkeypatch.setattr(cpu, "int8_problem", lambda: "no VNNI")
    X = normal_rows(2500, 8)
    with pytest.raises(RuntimeError, match="method='int8': no VNNI; use method='float32'"):
        similarity.top_k(X, device="cpu", method="int8")
    with pytest.raises(RuntimeError, match="method='int8'"):
        similarity.pairs_above(X, 0.9, method="int8")
    assert_same(similarity.top_k(X, device="cpu"), similarity.top_k(X, device="cpu", method="float32"))
    assert cpu.Settings.choose("auto", (10**6, 10**6)).methods == [Float32]


# The parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(20), 41])
def test_every_pair_of_blocks_is_a_tile_once(n):
    tiles = list(threads.square_tiles(n))
    assert sorted(tiles) == [(a, b) for a in range(n) for b in range(a, n)]
    assert tiles[:n] == [(a, a) for a in range(n)]
    for m in (0, 1, 5, 12):
        assert sorted(threads.rectangular_tiles(n, m)) == [(a, b) for a in range(n) for b in range(m)]


def test_blocks_are_all_rows_in_order():
    assert threads.blocks_of(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert threads.blocks_of(6, 3) == [slice(0, 3), slice(3, 6)]
    assert threads.blocks_of(0, 3) == []


@njit
def masks(products, scale, length, residual, offset, rival, at, start, local, of_row):
    return simd.above(products, scale, length, residual, offset, rival, at, start, local, *of_row)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["int32", "float32"]), st.booleans())
def test_the_mask_is_numpys(seed, dtype, with_odd_values):
    rng = np.random.default_rng(seed)
    n = simd.LANES

    def values(odd):
        some = rng.integers(-4, 5, 3 * n).astype(np.float32)  # sums of small integers are exact, in any order
        return np.where(rng.random(3 * n) < 0.1, rng.choice(np.float32([np.inf, -np.inf, np.nan])), some) if odd else some

    products = values(with_odd_values and dtype == "float32").astype(dtype)
    scale, length, residual = (values(False) for _ in range(3))
    offset, rival = (values(with_odd_values) for _ in range(2))
    row_scale, row_length, row_residual, row_bar, rival_bar = of_row = tuple(values(False)[:5])
    at, start, local = rng.integers(0, 2 * n, 3).tolist()
    mask = masks(products, scale, length, residual, offset, rival, at, start, local, of_row)
    with np.errstate(invalid="ignore"):
        some = slice(start, start + n)
        bound = row_scale * scale[some] * products[at : at + n] + row_residual * length[some] + row_length * residual[some]
        expected = (bound + offset[local : local + n] > row_bar) | (bound + rival[local : local + n] > rival_bar)
    assert [mask >> bit & 1 for bit in range(n)] == expected.tolist()


@njit
def lowest_bits(mask):
    return simd.lowest_bit(mask)


@given(st.integers(1, 2**64 - 1))
def test_the_lowest_bit_of_a_mask(mask):
    assert lowest_bits(np.uint64(mask)) == (mask & -mask).bit_length() - 1


SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf")]), st.floats(-1, 1, width=32))
INDICES = st.one_of(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 2]), st.integers(0, 2**32 - 2))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SCORES, INDICES), min_size=1, max_size=20))
def test_keys_are_in_the_order_of_the_answer_and_give_back_what_went_in(pairs):
    scores, indices = np.float32([score for score, _ in pairs]), np.array([index for _, index in pairs])
    keys = scheme.join_keys(indices, scores)
    assert keys.tolist() == [compiled.key_of(score, index) for score, index in zip(scores, indices, strict=True)]
    for found, expected in zip(scheme.split_keys(keys), (indices, scores), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(scheme.split_keys(keys)[1]), np.signbit(scores))
    np.testing.assert_array_equal([compiled.score_of(key) for key in keys], scores)
    assert (keys > 0).all()  # 0 is none
    descending = np.argsort(keys)[::-1]
    by_rule = sorted(pairs, key=lambda pair: (-np.float32(pair[0]), np.signbit(pair[0]) and pair[0] == 0, pair[1]))
    assert [(scores[at], indices[at]) for at in descending] == [(np.float32(score), index) for score, index in by_rule]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_insertion_keeps_the_largest_descending(values, k):
    keys = np.zeros(k, np.uint64)
    for value in values:
        compiled.insert(keys, np.uint64(value))
    assert keys.tolist() == (sorted(values, reverse=True) + [0] * k)[:k]


def test_a_dot_product_is_the_same_from_both_sides_and_in_read_only_memory():
    X = normal_rows(50, 131)
    read_only = X.copy()
    read_only.flags.writeable = False
    for i, j in np.ndindex(50, 50):
        assert compiled.dot(X[i], X[j]) == compiled.dot(X[j], X[i]) == compiled.dot(read_only[i], read_only[j])


@pytest.mark.parametrize(("selection_s", "is_given_up"), [(0.9, False), (2.9, False), (3.1, True), (50, True)])
def test_int8_products_are_given_up_where_they_cost_more_than_float32_products(selection_s, is_given_up):
    choice, used = cpu._Choice(2), []
    for n in range(500):
        used.append(choice.number)
        costs = 1.0, 90 if n < 10 else selection_s
        choice.learn(*(cost * (50 if n % 20 == 3 else 1) for cost in costs))  # some tiles are held up
    assert used == [0] * 32 + [int(is_given_up)] * 468
    alone = cpu._Choice(1)
    for _ in range(500):
        alone.learn(1.0, 50.0)
    assert alone.number == 0


@needs_int8
def test_rows_compared_before_there_are_thresholds_do_not_decide_the_method():
    unit, *_ = preparation.unit_rows_of(normal_rows(2000, 8), "raise", 1)
    options = cpu.Settings([Int8, Float32], 1, 16)
    columns = cpu.Columns(unit, options)
    cpu._compare_some(unit, scheme.pilot_rows(len(unit)), columns, 5, options)
    assert not columns.choice._costs
    cpu.compare(unit, columns, 5, options)
    assert columns.choice._costs


# A corpus that is prepared once ------------------------------------------------------------------------------------------


@needs_int8
@given(st.data(), st.integers(1, 20), st.integers(1, 3))
@settings(max_examples=60)
def test_a_corpus_gives_the_answer_of_top_k(data, k, n_jobs):
    n_columns = data.draw(st.integers(1, 40))
    Y = data.draw(vectors(n_columns))
    corpus = similarity.Corpus(Y, n_jobs=n_jobs)
    assert len(corpus) == len(Y)
    for _ in range(2):
        X = data.draw(vectors(n_columns, max_rows=150))
        found, expected = corpus.top_k(X, k, n_jobs=n_jobs), similarity.top_k(X, k, Y=Y, device="cpu")
        unit, digests, _ = preparation.unit_rows_of(Y, "raise", 1)
        multiples, of_which = scheme.redundant_rows(digests, unit.rows.__getitem__, 1)
        if (unit.rows[multiples] == unit.rows[of_which]).all():
            assert_same(found, expected)
        else:  # they score the same but for rounding, which is not known before there is a k
            np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=TOLERANCE)


def test_a_corpus_without_int8_products_and_of_many_tiles(monkeypatch):
    Y, X = normal_rows(9000, 24), normal_rows(130, 24, seed=1)
    expected = similarity.top_k(X, 7, Y=Y, device="cpu")
    assert_same(similarity.Corpus(Y).top_k(X, 7), expected)
    monkeypatch.setattr(cpu, "int8_problem", lambda: "no VNNI")
    assert_same(similarity.Corpus(Y).top_k(X, 7), expected)


def test_a_corpus_skips_and_refuses_as_top_k_does():
    Y, X = normal_rows(300, 8), normal_rows(20, 8, seed=1)
    Y[5, 2], X[3, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"Y holds NaN or infinity in 1 of 300 rows \(counted from 0: 5\)"):
        similarity.Corpus(Y)
    corpus = similarity.Corpus(Y, on_invalid="skip")
    with pytest.raises(ValueError, match="X holds NaN or infinity in 1 of 20 rows"):
        corpus.top_k(X)
    found = corpus.top_k(X, 4, on_invalid="skip")
    assert_same(found, similarity.top_k(X, 4, Y=Y, device="cpu", on_invalid="skip"))
    assert found.skipped_columns.tolist() == [5]
    for queries, n_wanted, error in [
        (X[:, :7], 4, "same number of columns"),
        (X, 0, "k=0"),
        (X.astype(complex), 4, "dtype complex"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            corpus.top_k(queries, n_wanted)
    with pytest.raises(TypeError, match="sparse"):
        similarity.Corpus(sparse.csr_array(normal_rows(3, 2)))


def test_a_corpus_answers_many_threads_at_once():
    Y, X = normal_rows(5000, 16), normal_rows(40, 16, seed=1)
    corpus = similarity.Corpus(Y)
    expected = corpus.top_k(X, 5)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: corpus.top_k(X, 5, n_jobs=2), range(24)):
            assert_same(found, expected)
