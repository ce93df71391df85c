"""The CUDA C++ kernels: compiled for GPUs by NVIDIA's compiler, and executed on the CPU beside float64 NumPy.

Neither needs a GPU. `gpu_stand_in` says how the source is executed; each test runs it with several orders of threads.
"""

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest
from gpu_stand_in import RawModule, StandInArray
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from altlas_lib.similarity import gpu

KERNELS = Path(gpu.__file__).parent / "kernels"
SOURCES = sorted(path.name for path in KERNELS.glob("*.cu"))
TOP_K = (KERNELS / "top_k.cu").read_text()
SCHEDULES = [0, 1, 7]  # threads in ascending, descending and random order


# ---- NVIDIA's compiler ----


@functools.cache
def nvrtc():
    """NVIDIA's run-time compiler, out of the wheel that has nothing else in it (nvidia-cuda-nvrtc-cu12)."""
    import nvidia

    found = [path for folder in nvidia.__path__ for path in Path(folder).rglob("libnvrtc.so.*")]
    return ctypes.CDLL(str(found[0]))


def compile_for_gpu(source, architecture):
    """The size of the machine code in bytes, and what the compiler said."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++14"]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if status == 0:
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return size.value if status == 0 else 0, log.value.decode()


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("file", SOURCES)
def test_every_kernel_compiles_for_gpus(file, architecture):
    code_bytes, log = compile_for_gpu((KERNELS / file).read_text(), architecture)
    assert code_bytes > 1000, log
    assert "warning" not in log


def test_a_broken_kernel_is_refused():
    code_bytes, log = compile_for_gpu(TOP_K.replace("unsigned int lane", "unsigned int"), "sm_80")
    assert code_bytes == 0
    assert 'identifier "lane" is undefined' in log
    with pytest.raises(RuntimeError, match="lane"):
        RawModule(code=TOP_K.replace("unsigned int lane", "unsigned int")).get_function("update_best")


# ---- The CPU in the GPU's place ----


def launch(source, name, grid, block, *arguments, schedule=0, shared_mem=0):
    """Run a kernel; NumPy arrays among the arguments are what it reads and writes."""
    module = RawModule(code=source)
    module.schedule = schedule
    arguments = tuple(StandInArray(x) if isinstance(x, np.ndarray) else x for x in arguments)
    module.get_function(name)(grid, block, arguments, shared_mem=shared_mem)


REVERSE = """
extern "C" __global__ void reverse(const int *values, int *reversed)
{
    __shared__ int shared[64];
    shared[threadIdx.x] = values[threadIdx.x];
    BARRIER
    reversed[threadIdx.x] = shared[63 - threadIdx.x];
}
"""


def test_a_missing_barrier_shows():
    for barrier, is_right in [("__syncthreads();", True), ("", False)]:
        for schedule in SCHEDULES:
            values = 64 * (1 + schedule) + np.arange(64, dtype=np.int32)  # others than the former block left behind
            reversed_values = np.zeros_like(values)
            launch(REVERSE.replace("BARRIER", barrier), "reverse", (1,), (64,), values, reversed_values, schedule=schedule)
            assert np.array_equal(reversed_values, values[::-1]) == is_right


@pytest.mark.parametrize(
    ("statement", "n_threads", "error"),
    [
        ("if (threadIdx.x < 5) __syncthreads();", 64, "wait at different barriers, or some have ended"),
        ("if (threadIdx.x < 5) return; __syncthreads();", 64, "wait at different barriers, or some have ended"),
        ("float x = 0; if (threadIdx.x < 5) x = __shfl_down_sync(~0u, x, 1); reversed[0] = x;", 64, "different barriers"),
        ("float x = __shfl_down_sync(~0u, 0, 1); reversed[0] = x;", 33, "less than a whole warp"),
        ("extern __shared__ int more[]; more[threadIdx.x] = 1;", 64, "beyond the dynamic shared memory"),
    ],
)
def test_threads_that_do_not_meet_are_an_error(statement, n_threads, error):
    values = np.arange(64, dtype=np.int32)
    with pytest.raises(RuntimeError, match=error):
        launch(REVERSE.replace("BARRIER", statement), "reverse", (1,), (n_threads,), values, values.copy())


@pytest.mark.parametrize(
    "arguments",
    [
        (np.arange(64, dtype=np.int32),),
        (np.arange(64, dtype=np.int32), np.arange(64)),
        (np.arange(64, dtype=np.int32), np.arange(128, dtype=np.int32)[::2]),
        (np.arange(64, dtype=np.int32), np.int32(0)),
    ],
    ids=["too few", "other dtype", "not contiguous", "no pointer"],
)
def test_arguments_that_do_not_fit_the_parameters_are_an_error(arguments):
    with pytest.raises(AssertionError):
        launch(REVERSE.replace("BARRIER", ""), "reverse", (1,), (64,), *arguments)


# ---- The kernels ----

PROBE = """
extern "C" __global__ void probe(const unsigned int *halves, float *floats, Key *keys, float *scores)
{
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    floats[i] = half_to_float(halves[i]);
    keys[i] = to_key(floats[i], i);
    scores[i] = score_of(keys[i]);
}
"""


def test_float16_and_keys():
    halves = np.arange(2**16, dtype=np.uint32)
    floats, keys, scores = np.empty(2**16, np.float32), np.empty(2**16, np.uint64), np.empty(2**16, np.float32)
    launch(TOP_K + PROBE, "probe", (2**16 // 64,), (64,), halves, floats, keys, scores)
    expected = halves.astype(np.uint16).view(np.float16).astype(np.float32)
    finite = np.isfinite(expected)
    assert_array_equal(floats[finite].view(np.uint32), expected[finite].view(np.uint32))
    assert (abs(floats[~finite]) >= 2**16).all()
    assert_array_equal(scores, floats)
    signed_zero = np.flatnonzero(expected == 0)[1]  # -0 < +0 as keys, which is why no score is -0
    order = np.delete(np.lexsort((halves, -floats)), 0)
    order = order[order != signed_zero]
    assert (np.diff(keys[order].astype(np.float64)) <= 0).all()
    assert len(set(keys[order].tolist())) == len(order)


def test_keys_unpack():
    keys = np.array([0, 0xBF800000 << 32 | 0xFFFFFFFF, 0x80000000 << 32 | 0xFFFFFFFD], np.uint64)
    columns, scores = np.zeros(4, np.int64), np.zeros(4, np.float32)
    launch(TOP_K, "unpack_keys", (1,), (32,), keys, np.int64(3), columns, scores)
    assert_array_equal(columns, [-1, 0, 2, 0])  # the fourth is beyond the end and untouched
    assert_array_equal(scores, [np.nan, 1, 0, 0])


def unit(rng, n, d, n_distinct):
    """Rows of length 1 in float32 with duplicates and zero rows."""
    distinct = rng.standard_normal((n_distinct, d))
    distinct[0] = 0
    distinct /= np.maximum(np.linalg.norm(distinct, axis=1, keepdims=True), 1e-300)
    return distinct[rng.integers(0, n_distinct, n)].astype(np.float32)


def half_products(rows, columns):
    return (rows.astype(np.float16).astype(np.float32) @ columns.astype(np.float16).astype(np.float32).T).astype(np.float16)


def update_best(
    rows, columns, best, *, own_column=-(2**40), first=0, n_best=None, n_threads=64, panel=40, schedule=0, tile=None
):
    """All columns, `panel` at a time, by the kernel; what surrounds `best` must stay as it is."""
    k = best.shape[1]
    n_best = k - first if n_best is None else n_best
    guarded = np.full((len(best) + 2, k), 7, np.uint64)
    guarded[1:-1] = best
    tile = half_products(rows, columns) if tile is None else tile
    for start in range(0, len(columns), panel):
        part = columns[start : start + panel].copy()
        scores = np.full((len(rows), -(-len(part) // 8) * 8), np.nan, np.float16)
        scores[:, : len(part)] = tile[:, start : start + panel]
        launch(
            *(TOP_K, "update_best", (len(rows),), (n_threads,), scores, np.int32(scores.shape[1] // 4), rows, part),
            *(np.int32(rows.shape[1]), np.uint32(start), np.int64(own_column), np.float32(gpu.score_slack(rows.shape[1]))),
            *(guarded[1:-1], np.int32(k), np.int32(first), np.int32(n_best)),
            schedule=schedule,
            shared_mem=8 * (2 * n_best + 4 * n_threads) + 16 * n_threads,
        )
    assert (guarded[[0, -1]] == 7).all()
    best[...] = guarded[1:-1]


def unpack(best):
    columns, scores = np.empty(best.shape, np.int64), np.empty(best.shape, np.float32)
    launch(TOP_K, "unpack_keys", (-(-best.size // 32),), (32,), best, np.int64(best.size), columns, scores)
    return columns, scores


def assert_best(best, rows, columns, *, of_itself=False):
    """Up to differences of 1e-6, and equal scores in the order of the columns."""
    indices, scores = unpack(best)
    exact = rows.astype(np.float64) @ columns.astype(np.float64).T
    if of_itself:
        np.fill_diagonal(exact, -np.inf)
    n = min(best.shape[1], len(columns) - of_itself)
    assert_allclose(scores[:, :n], -np.sort(-exact, axis=1)[:, :n], rtol=0, atol=1e-6)
    assert_allclose(scores[:, :n], np.take_along_axis(exact, indices[:, :n], axis=1), rtol=0, atol=1e-6)
    step = np.diff(scores[:, :n], axis=1)
    assert (step <= 0).all()
    assert (np.diff(indices[:, :n], axis=1)[step == 0] > 0).all()
    assert all(len(set(row)) == n for row in indices[:, :n])
    assert (best[:, n:] == 0).all()
    assert not np.signbit(scores[scores == 0]).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_threads", [32, 128])
@pytest.mark.parametrize(
    ("n", "m", "d", "k"),
    [(3, 1, 1, 1), (5, 7, 3, 1), (9, 130, 33, 4), (4, 300, 7, 13), (6, 20, 64, 30), (7, 700, 5, 1), (3, 260, 40, 100)],
)
def test_the_best_columns(n, m, d, k, n_threads, schedule):
    rng = np.random.default_rng(n + m)
    rows, columns = unit(rng, n, d, n + 1), unit(rng, m, d, 2 + m // 2)
    best = np.zeros((n, k), np.uint64)
    update_best(rows, columns, best, n_threads=n_threads, panel=200, schedule=schedule)
    assert_best(best, rows, columns)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 8),
    st.sampled_from(SCHEDULES),
)
def test_the_best_rows_of_themselves_do_not_depend_on_panels_or_threads(seed, n, d, k, panel, schedule):
    rows = unit(np.random.default_rng(seed), n, d, max(2, n // 2))
    at_once, in_panels = np.zeros((n, k), np.uint64), np.zeros((n, k), np.uint64)
    update_best(rows, rows, at_once, own_column=0, panel=n)
    update_best(rows, rows, in_panels, own_column=0, panel=8 * panel, n_threads=32, schedule=schedule)
    assert_array_equal(at_once, in_panels)
    assert_best(at_once, rows, rows, of_itself=True)


def test_later_passes_find_what_follows():
    rng = np.random.default_rng(0)
    rows, columns = unit(rng, 5, 6, 6), unit(rng, 300, 6, 60)  # five of a kind: passes end within equal scores
    at_once, in_passes = np.zeros((5, 50), np.uint64), np.zeros((5, 50), np.uint64)
    update_best(rows, columns, at_once, panel=128)
    for first in range(0, 50, 8):
        update_best(rows, columns, in_passes, first=first, n_best=min(8, 50 - first), panel=128, n_threads=32)
    assert_array_equal(in_passes, at_once)
    assert_best(at_once, rows, columns)


def test_no_column_is_lost_where_the_float16_scores_are_off_by_what_they_may():
    rng = np.random.default_rng(1)
    rows, columns = unit(rng, 20, 48, 21), unit(rng, 400, 48, 400)
    columns[100:200] = columns[:100] + 1e-3 * rng.standard_normal((100, 48)).astype(np.float32)  # many near the k-th
    columns /= np.linalg.norm(columns, axis=1, keepdims=True).clip(1e-30)
    exact = rows.astype(np.float64) @ columns.astype(np.float64).T
    for signs in (1, -1, rng.choice([-1, 1], exact.shape)):
        best = np.zeros((20, 9), np.uint64)
        off = (exact + signs * (gpu.score_slack(48) - 2**-11)).astype(np.float16)  # rounding adds up to 2^-11
        update_best(rows, columns, best, tile=off, panel=400)
        assert_best(best, rows, columns)


def test_a_score_is_never_minus_zero():
    """Not even where every product of two elements is negative and vanishes."""
    large, vanishing = np.full((1, 32), 32**-0.5, np.float32), np.full((1, 32), -1e-45, np.float32)
    best = np.zeros((1, 1), np.uint64)
    update_best(np.hstack([large, vanishing]), np.hstack([vanishing, large]), best)
    _, scores = unpack(best)
    assert scores == 0
    assert not np.signbit(scores).any()


def test_a_nan_is_no_candidate():
    rng = np.random.default_rng(2)
    rows, columns = unit(rng, 6, 5, 7), unit(rng, 50, 5, 50)
    tile = half_products(rows, columns)
    tile[2] = np.nan
    tile[:, [0, 7, 49]] = -np.array(np.nan, np.float16)
    best = np.zeros((6, 4), np.uint64)
    update_best(rows, columns, best, tile=tile, panel=24)
    assert (best[2] == 0).all()
    others, kept = np.delete(np.arange(6), 2), np.delete(np.arange(50), [0, 7, 49])
    expected = np.zeros((5, 4), np.uint64)
    update_best(rows[others], columns[kept], expected, panel=24)
    indices, scores = unpack(expected)
    found_indices, found_scores = unpack(best[others])
    assert_array_equal(found_indices, kept[indices])
    assert_array_equal(found_scores, scores)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 64, 384, 3000]), st.floats(0, 3))
def test_the_slack_holds(seed, d, spread):
    """For rows of elements from equal to of very different sizes, and near to each other or not."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, d)) * 10.0 ** (-spread * rng.random((1, d)) * 3)
    x[4:] = x[:4] * (1 + 2.0**-11 * rng.choice([-1, 1], (4, d)))  # half a float16 apart
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    exact = x.astype(np.float64) @ x.astype(np.float64).T
    off = abs(half_products(x, x).astype(np.float64) - exact).max()
    assert off + d * 2.0**-22 <= gpu.score_slack(d)  # the second term: what tensor cores may be off beyond a CPU


def test_the_slack_is_not_generous():
    """Some rows come near it: elements that all lose half a unit in rounding."""
    d = 4
    row = np.full((1, d), 0.5 * (1 + 2.0**-11 - 2**-20), np.float32)
    off = abs(float(half_products(row, row)[0, 0]) - float(row.astype(np.float64)[0] @ row.astype(np.float64)[0]))
    assert off > 0.6 * gpu.score_slack(d)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (16, 16), (17, 33), (50, 20)])
def test_the_tiled_product(n, d, schedule):
    X = np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
    X[n // 2] *= 1e6
    X[-1] = 0
    similarity, lengths = np.full((n, n), np.nan, np.float32), np.full(n, np.nan, np.float32)
    source = (KERNELS / "tiled_similarity.cu").read_text()
    launch(
        *(source, "tiled_similarity", (-(-n // 16),) * 2, (16, 16), X, np.int64(n), np.int64(d), similarity, lengths),
        schedule=schedule,
    )
    norms = np.linalg.norm(X.astype(np.float64), axis=1)
    products = X.astype(np.float64) @ X.astype(np.float64).T
    expected = np.divide(products, np.outer(norms, norms), out=np.zeros((n, n)), where=np.outer(norms, norms) > 0)
    assert_allclose(lengths, norms, rtol=1e-6)
    assert_allclose(similarity, expected, rtol=0, atol=1e-6)
