"""The GPU paths of the similarity package, twice: on a GPU, and everywhere on a strict stand-in for CuPy.

So the very source that runs on a GPU, Python and CUDA C++, is executed on every machine; that CuPy's results are right is
what the `gpu` half shows.
"""

import contextlib
import sys
import time
import warnings

import gpu_stand_in
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_lib import devices, similarity
from altlas_lib.similarity import cluster
from altlas_lib.similarity.gpu import launch as gpu_launch
from altlas_lib.similarity.gpu import rows as gpu_rows
from altlas_lib.similarity.gpu import search as engine
from altlas_lib.similarity.poc import methods

TOLERANCE = 1e-6


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)], autouse=True)
def gpu(request):
    """CuPy, the real one or the stand-in."""
    if request.param == "gpu":
        yield sys.modules["cupy"]
        return
    with stand_in() as cupy:
        yield cupy


@contextlib.contextmanager
def stand_in(free_bytes=2**30, limit_bytes=None, *, pending_is_an_error=True):
    """The stand-in in CuPy's place, with a GPU of this size."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu_stand_in.StandInArray, "memory", gpu_stand_in.Memory(limit_bytes or free_bytes))
            patch.setitem(sys.modules, "cupy", gpu_stand_in.stand_in_cupy(free_bytes))
            patch.setattr(gpu_launch, "_MOST_BLOCKS", 2)  # on a CPU, blocks without work take time too
            patch.setattr(gpu_launch, "_BLOCK_THREADS", 64)
            devices.has_gpu.cache_clear()
            yield sys.modules["cupy"]
            gpu_stand_in.Stream.current.finish()
    finally:
        devices.has_gpu.cache_clear()
    assert not (pending_is_an_error and any(stream.number for stream in gpu_stand_in.Machine.pending))


def vectors(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def exact_vectors(n):
    """Cosines that are exact in float32, many of them equal, with zero rows and duplicates."""
    rng = np.random.default_rng(0)
    X = np.zeros((n, 16), np.float32)
    for row in X:
        n_nonzero = rng.choice([0, 1, 4, 16])
        row[rng.permutation(16)[:n_nonzero]] = rng.choice([-1, 1], n_nonzero)
    return X


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (2, 3, 5), (33, 1, 4), (700, 64, 10), (300, 16, 100)])
@pytest.mark.parametrize("method", [method for method in similarity.METHODS if method.on_gpu], ids=lambda method: method.name)
def test_every_gpu_method_passes(method, n, d, k):
    assert similarity.validate(method, vectors(n, d), k=k).passed


# ---- The engine ----

only_stand_in = pytest.mark.parametrize("gpu", ["stand-in"], indirect=True)
only_gpu = pytest.mark.parametrize("gpu", [pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)


def nearest(X, k, **named):
    """The engine's answer in NumPy arrays, as `Neighbors`."""
    Y = named.pop("Y", None)
    k = max(0, min(k, len(X) - 1 if Y is None else len(Y)))
    indices, scores, skipped_rows, skipped_columns = engine.top_k(X, Y, k, **named)
    return similarity.Neighbors(devices.to_cpu(indices), devices.to_cpu(scores), skipped_rows, skipped_columns)


def assert_nearest(found, X, k, Y=None):
    """The float64 reference's, up to differences of 1e-6 in score; equal scores in the order of their index."""
    expected = similarity.reference(X, k, Y=Y)
    assert (found.indices.dtype, found.scores.dtype) == (np.int64, np.float32)
    assert found.indices.shape == expected.indices.shape
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=TOLERANCE)
    exact = similarity.cosine_similarity(X, Y)
    if Y is None:
        np.fill_diagonal(exact, -np.inf)
    np.testing.assert_allclose(np.take_along_axis(exact, found.indices, axis=1), found.scores, rtol=0, atol=TOLERANCE)
    step = np.diff(found.scores, axis=1)
    assert (step <= 0).all()
    assert (np.diff(found.indices, axis=1)[step == 0] > 0).all()
    assert not np.signbit(found.scores[found.scores == 0]).any()


@pytest.mark.parametrize("working_memory", [1e-9, 0.01, 1e6, None])
def test_equal_scores_come_in_the_order_of_their_index(working_memory):
    X = exact_vectors(150)
    expected = similarity.reference(X, 12)
    found = nearest(X, 12, working_memory=working_memory)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(("n_rows", "n_columns", "k"), [(0, 5, 3), (1, 1, 1), (3, 2, 2), (40, 130, 130), (9, 70, 1)])
def test_shapes(n_rows, n_columns, k):
    for d in (1, 13):
        X, Y = vectors(n_rows, d), vectors(n_columns, d, seed=1)
        assert_nearest(nearest(X, k, Y=Y), X, k, Y)
        if n_rows:
            assert_nearest(nearest(X, k), X, k)


def test_very_many_neighbours():
    X, Y = vectors(2, 5), vectors(1100, 5, seed=1)
    Y[::3] = Y[0]
    assert_nearest(nearest(X, 1050, Y=Y), X, 1050, Y)


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "budget_gib", "is_resident"),
    [
        *[(10_000, None, 384, 10, 1, True), (100_000, None, 768, 10, 12, True), (10**7, None, 768, 10, 12, False)],
        *[(10**6, 10**5, 4096, 100, 14, False), (5, 10**8, 64, 3, 8, False), (10**6, 5, 64, 3, 8, True)],
    ],
)
@only_stand_in
def test_plans_for_real_gpus(n, m, d, k, budget_gib, is_resident):
    budget_bytes = budget_gib * 2**30
    plan = gpu_rows.Plan.for_memory([(n, d)] if m is None else [(n, d), (m, d)], k, budget_bytes)
    rows = [min(plan.n_panels * plan.panel_rows, side) for side in (n, m) if side]
    assert (plan.n_panels == 1) == is_resident
    assert 6 * d * sum(rows) + 12 * plan.tile_side**2 + 20 * n * k <= budget_bytes
    assert 4096 <= plan.tile_side <= 8192 or min(rows) < 4096
    assert plan.panel_rows >= min(max(n, m or 0), 50_000)  # else the transfer of all columns for each panel would dominate


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.sampled_from([1, 2, 7, 8, 20]))
    distinct = rng.standard_normal((draw(st.integers(2, 60)), d)) * draw(st.sampled_from([1e-30, 1, 100]))
    distinct[: draw(st.integers(0, 2))] = 0
    dtype = "float64" if abs(distinct).max() < 1e-20 else draw(st.sampled_from(["float16", "float32", "float64", "int8"]))
    sides = [distinct[rng.integers(0, len(distinct), draw(st.integers(1, 90)))].astype(dtype) for _ in range(2)]
    return sides[0], sides[1] if draw(st.booleans()) else None


@only_stand_in
@settings(max_examples=20, deadline=None)
@given(
    problem=problems(),
    k=st.integers(1, 40),
    threshold=st.floats(-1, 1),
    streams=st.frozensets(st.integers(0, 3)),
    data=st.data(),
)
def test_every_division_of_the_work_gives_the_same_answer(problem, k, threshold, streams, data):
    """Everything on the GPU at once; and streamed, in panels, tiles and chunks, with streams and threads in another order."""
    X, Y = problem
    at_once = nearest(X, k, Y=Y)
    assert_nearest(at_once, X, k, Y)
    pairs = similarity.pairs_above(X, threshold, Y=Y, device="gpu")
    plan = gpu_rows.Plan(
        tile_side=data.draw(st.sampled_from([8, 24, 64])),
        panel_rows=data.draw(st.sampled_from([8, 16, 40, 96])),
        chunk_rows=data.draw(st.integers(1, 20)),
        n_panels=data.draw(st.integers(3, 5)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_rows.Plan, "for_memory", lambda *_: plan)
        patch.setattr(gpu_launch, "_BLOCK_THREADS", 32)
        patch.setattr(gpu_stand_in.RawModule, "schedule", data.draw(st.integers(0, 3)))
        patch.setattr(gpu_stand_in.Machine, "eager", streams)
        divided = nearest(X, k, Y=Y)
        divided_pairs = similarity.pairs_above(X, threshold, Y=Y, device="gpu")
    np.testing.assert_array_equal(divided.indices, at_once.indices)
    np.testing.assert_array_equal(divided.scores, at_once.scores)
    for name in ("first", "second", "scores"):
        np.testing.assert_array_equal(getattr(divided_pairs, name), getattr(pairs, name))


@pytest.mark.parametrize("with_other", [False, True])
@pytest.mark.parametrize("threshold", [-1, -0.2, 0.5, 0.999, 1])
def test_pairs_above_are_the_cpus(threshold, with_other):
    X = exact_vectors(90)
    X[17] = vectors(1, 16)[0]
    Y = X[40:] if with_other else None
    found, expected = (similarity.pairs_above(X, threshold, Y=Y, device=device) for device in ("gpu", "cpu"))
    np.testing.assert_array_equal(found.first, expected.first)
    np.testing.assert_array_equal(found.second, expected.second)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=TOLERANCE)
    assert len(found) == 0 or found.scores.min() >= threshold


def test_too_many_pairs_are_refused():
    X = np.ones((40, 3), np.float32)
    with pytest.raises(MemoryError, match="more than max_pairs=700 pairs reach it"):
        similarity.pairs_above(X, 0.5, device="gpu", max_pairs=700)
    assert len(similarity.pairs_above(X, 0.5, device="gpu", max_pairs=780)) == 780


@only_stand_in
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    m=st.integers(0, 300),
    d=st.integers(1, 100),
    k=st.integers(1, 20),
    free_bytes=st.integers(30_000, 10**6),
)
def test_what_is_taken_stays_within_what_is_free(n, m, d, k, free_bytes):
    X, Y = vectors(n, d), vectors(m, d, seed=1) if m else None
    found, refusal = None, ""
    with stand_in(free_bytes), warnings.catch_warnings(action="error"):  # it would warn of running out of memory
        try:
            found = nearest(X, k, Y=Y)
        except MemoryError as error:
            refusal = str(error)
    if found:
        assert_nearest(found, X, k, Y)
    else:
        assert "do not fit into the" in refusal
        assert 28 * n * min(k, m or n - 1) + 800 * d > free_bytes / 4  # a refusal is not for little


@only_stand_in
def test_a_small_gpu_streams_what_a_large_one_holds(tmp_path):
    X = vectors(400, 50)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    at_once = nearest(X, 5)
    plans = []
    for_memory = gpu_rows.Plan.for_memory
    with stand_in(free_bytes=120_000), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_rows.Plan, "for_memory", lambda *arguments: plans.append(for_memory(*arguments)) or plans[-1])
        streamed = nearest(mapped, 5)
    assert plans[0].panel_rows * plans[0].n_panels < len(X)
    np.testing.assert_array_equal(streamed.indices, at_once.indices)
    np.testing.assert_array_equal(streamed.scores, at_once.scores)


@only_stand_in
def test_out_of_memory_halves_what_is_taken_and_says_so():
    X = vectors(300, 40)
    expected = nearest(X, 5)
    with (
        stand_in(free_bytes=2**22, limit_bytes=150_000),
        pytest.warns(UserWarning, match="ran out of memory .*Out of memory allocating.* starts again with half") as caught,
    ):
        found = nearest(X, 5)
    assert len(caught) >= 2
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),
        RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"),
        MemoryError("Unable to allocate 3 MiB: out of memory"),
    ],
)
@only_stand_in
def test_whoever_runs_out_of_memory_is_heard(gpu, monkeypatch, error):
    """Not CuPy's pool alone: the runtime, cuBLAS for its work space, pinned memory."""
    allocate, failed = gpu.cuda.alloc_pinned_memory, []

    def fail_once(n_bytes):
        if not failed:
            failed.append(n_bytes)
            raise error
        return allocate(n_bytes)

    monkeypatch.setattr(gpu.cuda, "alloc_pinned_memory", fail_once)
    with pytest.warns(UserWarning, match="ran out of memory"):
        assert_nearest(nearest(vectors(50, 4), 3), vectors(50, 4), 3)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcublas.so.12: cannot open shared object file"),
        RuntimeError("CuPy failed to load libnvrtc.so.12: OSError"),
        OSError("libnvrtc.so.12: cannot open shared object file: No such file or directory"),
    ],
)
@only_stand_in
def test_a_library_that_is_missing_is_said_in_words(gpu, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(gpu, "matmul", fail)
    with pytest.raises(RuntimeError, match=r"CUDA's libraries cannot be used here .* use device='cpu'"):
        similarity.top_k(vectors(50, 4), 3, device="gpu")


@only_stand_in
def test_a_gpu_without_room_for_one_row_is_refused_in_numbers():
    with (
        stand_in(free_bytes=30_000),
        pytest.raises(MemoryError, match=r"eight rows of 5,000 numbers .* 24,000 bytes that may be taken"),
    ):
        nearest(vectors(20, 5_000), 3)
    with (
        stand_in(free_bytes=2**20, limit_bytes=2_000),
        warnings.catch_warnings(action="ignore"),
        pytest.raises(MemoryError, match="eight rows of 40 numbers"),
    ):
        nearest(vectors(300, 40), 5)


def test_progress_ends_at_one():
    shares = []
    nearest(vectors(90, 4), 3, working_memory=0.002, progress=shares.append)
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_clock_tells_the_steps_apart():
    clock = {}
    started = time.perf_counter()
    found = nearest(vectors(200, 8), 3, working_memory=0.01, clock=clock)
    assert list(clock) == ["transfer", "products", "selection", "verification"]
    assert min(clock.values()) > 0
    assert sum(clock.values()) < time.perf_counter() - started
    assert_nearest(found, vectors(200, 8), 3)


@pytest.mark.parametrize("free_bytes", [2**30, 60_000])
@only_stand_in
def test_skipped_rows_have_no_neighbours_and_are_nobodys(free_bytes):
    X, Y = vectors(40, 6), vectors(50, 6, seed=1)
    X[[3, 39], 0], Y[[0, 7, 8], 5] = np.nan, -np.inf
    X[5] = 0
    kept, kept_columns = np.delete(np.arange(40), [3, 39]), np.delete(np.arange(50), [0, 7, 8])
    with stand_in(free_bytes):
        itself, other = nearest(X, 39, on_invalid="skip"), nearest(X, 7, Y=Y, on_invalid="skip")
    assert itself.skipped_rows.tolist() == itself.skipped_columns.tolist() == [3, 39]
    assert (other.skipped_rows.tolist(), other.skipped_columns.tolist()) == ([3, 39], [0, 7, 8])
    for found, expected, columns in [
        (itself, nearest(X[kept], 39), kept),
        (other, nearest(X[kept], 7, Y=Y[kept_columns]), kept_columns),
    ]:
        np.testing.assert_array_equal(found.indices[kept], columns[expected.indices])
        np.testing.assert_array_equal(found.scores[kept], expected.scores)
        assert (found.indices[[3, 39]] == -1).all()
        assert np.isnan(found.scores[[3, 39]]).all()
    with pytest.raises(ValueError, match=r"Y holds NaN or infinity in 3 of 50 rows \(counted from 0: 0, 7, 8\)"):
        nearest(X[kept], 2, Y=Y)


def test_nothing_but_invalid_rows():
    X = np.full((4, 2), np.nan, np.float32)
    found = nearest(X, 3, on_invalid="skip")
    assert found.indices.shape == found.scores.shape == (4, 0)
    assert found.skipped_rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64", "int64", "uint8", "bool"])
def test_dtypes_and_orders(dtype):
    X = (np.random.default_rng(0).standard_normal((60, 9)) * 5).astype(dtype)
    for layout in (np.ascontiguousarray, np.asfortranarray, lambda x: np.repeat(x, 2, axis=0)[::2]):
        assert_nearest(nearest(layout(X), 4), X, 4)
    if X.dtype.isnative:
        assert_nearest(nearest(devices.to_gpu(X), 4), X, 4)


def test_what_is_on_the_gpu_is_not_copied_from_the_host(gpu, monkeypatch):
    on_gpu = devices.to_gpu(vectors(50, 4))
    monkeypatch.setattr(gpu_rows, "_pinned", None)
    indices, scores, skipped, _ = engine.top_k(on_gpu, None, 3)
    assert isinstance(indices, gpu.ndarray)
    assert isinstance(scores, gpu.ndarray)
    assert isinstance(skipped, np.ndarray)


def test_our_kernel_is_the_plain_port():
    X = vectors(70, 33)
    X[5] = 0
    expected = similarity.calculate_similarity_cpu(X)
    np.testing.assert_allclose(methods.calculate_similarity_gpu_kernel(X), expected, rtol=0, atol=TOLERANCE)
    for dtype in ("float64", "int8"):
        found = methods.calculate_similarity_gpu_kernel(np.asfortranarray(X.astype(dtype)))
        np.testing.assert_allclose(found, similarity.calculate_similarity_cpu(X.astype(dtype)), rtol=0, atol=TOLERANCE)
    assert methods.calculate_similarity_gpu_kernel(X[:0]).shape == (0, 0)
    for bad in (np.inf, np.nan, 1e30):
        X[7, 1] = bad
        with pytest.raises(ValueError, match=r"NaN, infinity or a norm above 1e19 in 1 of 70 rows \(counted from 0: 7\)"):
            methods.calculate_similarity_gpu_kernel(X)
    with pytest.raises(TypeError, match="sparse"):
        methods.calculate_similarity_gpu_kernel(type("csr", (), {"toarray": None})())


# ---- The public face ----


def test_other_rows_dtypes_and_invalid_rows():
    X, Y = vectors(40, 6), vectors(50, 6, seed=1)
    expected = similarity.reference(X, 7, Y=Y)
    for dtype, atol in {"float64": TOLERANCE, "float32": TOLERANCE, "float16": 2e-3}.items():
        found = similarity.top_k(X.astype(dtype), 7, Y=Y.astype(dtype), device="gpu")
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=atol)
    X[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"X holds NaN or infinity in 1 of 40 rows \(counted from 0: 3\)"):
        similarity.top_k(X, device="gpu")
    found = similarity.top_k(X, 7, device="gpu", on_invalid="skip")
    on_cpu = similarity.top_k(X, 7, device="cpu", on_invalid="skip")
    assert found.skipped_rows.tolist() == [3]
    np.testing.assert_array_equal(found.indices, on_cpu.indices)
    np.testing.assert_allclose(found.scores, on_cpu.scores, rtol=0, atol=TOLERANCE)


def test_what_is_on_the_gpu_stays_there_and_what_is_not_comes_back(gpu):
    X = vectors(30, 4)
    for place, kind in [(similarity.to_gpu, gpu.ndarray), (np.asarray, np.ndarray)]:
        found = similarity.top_k(place(X), 3)
        assert isinstance(found.indices, kind)
        assert isinstance(found.scores, kind)
        assert isinstance(similarity.calculate_similarity_gpu_cupy(place(X)), kind)
        assert isinstance(methods.top_k_by_matrix(similarity.calculate_similarity_gpu_cupy, place(X), 3).scores, kind)
    on_cpu = similarity.top_k(similarity.to_gpu(X), 3, device="cpu")
    assert isinstance(on_cpu.indices, np.ndarray)
    np.testing.assert_array_equal(on_cpu.indices, similarity.top_k(X, 3, device="cpu").indices)


def test_only_the_method_without_transfers_starts_on_the_gpu(gpu):
    for method in similarity.available_methods(10):
        assert isinstance(method.place(vectors(10, 2)), gpu.ndarray) == method.stays_on_gpu


def test_the_plain_port_is_the_cpu_original():
    X = vectors(200, 32)
    X[5] = 0
    expected = similarity.calculate_similarity_cpu(X)
    np.testing.assert_allclose(similarity.calculate_similarity_gpu_cupy(X), expected, rtol=0, atol=TOLERANCE)
    X[7, 1] = np.inf
    with pytest.raises(ValueError, match="counted from 0: 7"):
        similarity.calculate_similarity_gpu_cupy(X)


def test_timings_name_the_gpu_and_tell_transfers_apart(gpu):
    on_gpu = [timing for timing in similarity.time_sizes(vectors(300, 8), [100, 300], k=5, n_repeats=2) if timing.on_gpu]
    name = gpu.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert {timing.time.device for timing in on_gpu} == {name}
    assert [(timing.n_texts, timing.with_transfers) for timing in on_gpu] == [
        *[(100, True)] * 3,
        (100, False),
        *[(300, True)] * 3,
        (300, False),
    ]
    assert all(timing.peak_memory.value > 0 for timing in on_gpu)


@only_stand_in
def test_workers_with_gpus_give_the_answer_of_one(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "_LEAST_PANEL_ROWS", 1)
    X, Y = exact_vectors(60), exact_vectors(40)[::-1]
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(**options) as workers, distributed.Client(workers) as client:
        for others in (None, Y):
            found, expected = (
                similarity.top_k(X, 12, Y=others, device="gpu", client=client),
                similarity.reference(X, 12, Y=others),
            )
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.scores, expected.scores)


# ---- On a GPU only: what a stand-in cannot show ----


@only_gpu
def test_the_gpu_never_holds_the_matrix(gpu):
    X = vectors(20_000, 8)
    pool = gpu.cuda.MemoryPool()
    with gpu.cuda.using_allocator(pool.malloc):
        nearest(X, 5, working_memory=64)
    assert pool.total_bytes() < 20_000**2  # a quarter of the matrix, a half of it in float16


@only_gpu
def test_tile_sizes_passes_and_streaming_give_one_answer(gpu, monkeypatch):
    X = vectors(6_000, 100)
    X[::7] = X[3]
    expected = nearest(X, 70)
    assert_nearest(expected, X, 70)
    for plan in [
        gpu_rows.Plan(tile_side=808, panel_rows=6_000, chunk_rows=500, n_panels=1),
        gpu_rows.Plan(tile_side=504, panel_rows=1_600, chunk_rows=300, n_panels=3),
    ]:
        monkeypatch.setattr(gpu_rows.Plan, "for_memory", lambda *_, plan=plan: plan)
        found = nearest(X, 70)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.scores, expected.scores)


@only_gpu
def test_a_thousand_calls_give_the_memory_back(gpu):
    X = vectors(2_000, 64)
    pool = gpu.get_default_memory_pool()
    nearest(X, 5)
    pool.free_all_blocks()
    before = pool.used_bytes(), gpu.cuda.runtime.memGetInfo()[0]
    for _ in range(1000):
        nearest(X, 5)
    pool.free_all_blocks()
    assert pool.used_bytes() == before[0]
    assert gpu.cuda.runtime.memGetInfo()[0] >= before[1] - 2**24


@only_gpu
@pytest.mark.parametrize(("n", "d"), [(5_000, 384), (300, 8_192), (3, 20_000), (2_000, 7)])
def test_tensor_cores_stay_within_the_slack(gpu, n, d):
    plan = gpu_rows.Plan(tile_side=gpu_launch.padded(n), panel_rows=n, chunk_rows=1000, n_panels=1)
    with engine._streams(None) as streams:
        search = engine._Search(vectors(n, d), None, plan, streams, np.inf, "raise")
        (panel,) = search.rows.panels(0)
        next(search._candidates(engine._Best(gpu, n, 0), panel, upper=False))
    products = search.tiles[0].reshape(gpu_launch.padded(n), -1)[:n, :n]
    exact = panel.unit[:n].astype(gpu.float64) @ panel.unit[:n].astype(gpu.float64).T
    assert float(abs(products.astype(gpu.float64) - exact).max()) <= engine.score_slack(d) - d * 2**-24
