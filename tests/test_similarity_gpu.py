"""The GPU paths of the similarity room, twice: on a GPU, and everywhere on a strict stand-in for CuPy.

The stand-in computes with NumPy but refuses what CuPy refuses: mixing its arrays with NumPy's, converting them without
being asked, and functions beyond those listed, each of which CuPy has. So the very source that runs on a GPU is
executed on every machine; that CuPy's results are right is what the `gpu` half shows.
"""

import contextlib
import sys
import types

import numpy as np
import pytest

from altlas_lib import devices, similarity
from altlas_lib.similarity import matrix

TOLERANCE = 1e-6


def host(x):
    """What stands in a stand-in array; NumPy arrays are refused."""
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, tuple):
        return tuple(map(host, x))
    return x._host if isinstance(x, StandInArray) else x


class StandInArray(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, host_array):
        self._host = np.asarray(host_array)

    def __array__(self, *arguments, **named):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        assert method == "__call__"
        if out is not None:
            named["out"] = host(out)
        return StandInArray(ufunc(*map(host, inputs), **named))

    def __getitem__(self, key):
        return StandInArray(self._host[host(key)])

    def __setitem__(self, key, value):
        self._host[host(key)] = host(value)

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __getattr__(self, name):
        if name in {"shape", "dtype", "ndim", "itemsize", "size"}:
            return getattr(self._host, name)
        if name == "T":
            return StandInArray(self._host.T)
        if name in {"all", "astype", "copy", "reshape"}:
            return lambda *arguments, **named: StandInArray(getattr(self._host, name)(*map(host, arguments), **named))
        raise AttributeError(name)


def on_stand_ins(function):
    def call(*arguments, **named):
        return StandInArray(function(*map(host, arguments), **{name: host(value) for name, value in named.items()}))

    return call


class StandInPool:
    malloc = None

    def total_bytes(self):
        return 4096


def stand_in_cupy():
    cupy = types.ModuleType("cupy")
    cupy.ndarray = StandInArray
    for name in ("inf", "nan", "float32", "float64", "int32", "int64"):
        setattr(cupy, name, getattr(np, name))
    for name in (
        *("arange", "argsort", "clip", "count_nonzero", "cumsum", "dot", "empty", "flatnonzero", "full", "isfinite", "matmul"),
        *("partition", "take_along_axis"),
    ):
        setattr(cupy, name, on_stand_ins(getattr(np, name)))
    cupy.asarray = lambda x: x if isinstance(x, StandInArray) else StandInArray(np.array(x))
    cupy.asnumpy = lambda x: x._host.copy()
    cupy.linalg = types.SimpleNamespace(norm=on_stand_ins(np.linalg.norm))
    cupy.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None),
        Device=lambda: types.SimpleNamespace(id=0),
        MemoryPool=StandInPool,
        using_allocator=lambda allocator: contextlib.nullcontext(),
        runtime=types.SimpleNamespace(
            memGetInfo=lambda: (2**30, 2**31), getDeviceProperties=lambda device: {"name": b"stand-in for a GPU"}
        ),
    )
    return cupy


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)], autouse=True)
def gpu(request):
    """CuPy, the real one or the stand-in."""
    if request.param == "gpu":
        yield sys.modules["cupy"]
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in_cupy())
        devices.has_gpu.cache_clear()
        yield sys.modules["cupy"]
    devices.has_gpu.cache_clear()


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


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (2, 3, 5), (33, 1, 4), (700, 64, 10), (1500, 16, 100), (1200, 8, 1100)])
@pytest.mark.parametrize("method", [method for method in similarity.METHODS if method.on_gpu], ids=lambda method: method.name)
def test_every_gpu_method_passes(method, n, d, k):
    assert similarity.validate(method, vectors(n, d), k=k).passed


@pytest.mark.parametrize("working_memory", [1e-9, 0.05, None])
def test_equal_scores_come_in_the_order_of_their_index(working_memory):
    X = exact_vectors(150)
    expected = similarity.reference(X, 12)
    found = similarity.top_k(X, 12, device="gpu", working_memory=working_memory)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


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
        assert isinstance(similarity.cosine_similarity(place(X)), kind)
        assert isinstance(similarity.calculate_similarity_gpu_cupy(place(X)), kind)
        assert isinstance(matrix.top_k_by_matrix(place(X), 3, device="gpu").scores, kind)
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
    np.testing.assert_allclose(similarity.cosine_similarity(X, device="gpu"), expected, rtol=0, atol=TOLERANCE)
    X[7, 1] = np.inf
    with pytest.raises(ValueError, match="counted from 0: 7"):
        similarity.calculate_similarity_gpu_cupy(X)


def test_a_matrix_that_does_not_fit_the_gpu_is_refused():
    with pytest.raises(MemoryError, match="use top_k"):
        similarity.cosine_similarity(np.broadcast_to(np.float32(1), (10_000_000, 2)), device="gpu")


def test_timings_name_the_gpu_and_tell_transfers_apart(gpu):
    on_gpu = [timing for timing in similarity.time_sizes(vectors(300, 8), [100, 300], k=5, n_repeats=2) if timing.on_gpu]
    name = gpu.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert {timing.time.device for timing in on_gpu} == {name}
    assert [(timing.n_texts, timing.with_transfers) for timing in on_gpu] == [
        *[(100, True), (100, True), (100, False)],
        *[(300, True), (300, True), (300, False)],
    ]
    assert all(timing.peak_memory.value > 0 for timing in on_gpu)


@pytest.mark.parametrize("gpu", [pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)  # a stand-in has no memory
def test_the_gpu_never_holds_the_matrix(gpu):
    X = vectors(20_000, 8)
    pool = gpu.cuda.MemoryPool()
    with gpu.cuda.using_allocator(pool.malloc):
        similarity.top_k(X, 5, device="gpu", working_memory=64)
    assert pool.total_bytes() < 20_000**2  # a quarter of the matrix; CuPy's sort and pool round up
