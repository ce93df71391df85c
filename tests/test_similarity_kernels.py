"""The CUDA C++ kernels: compiled for GPUs by NVIDIA's compiler, and executed on the CPU beside float64 NumPy.

Neither needs a GPU. `gpu_stand_in` says how the source is executed; each test runs it with several orders of threads.
"""

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest
from gpu_stand_in import Owner, RawModule, StandInArray, Stream
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from altlas_lib.similarity import gpu, scheme

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
    code_bytes, log = compile_for_gpu(TOP_K.replace("const int lane = ", "const int "), "sm_80")
    assert code_bytes == 0
    assert 'identifier "lane" is undefined' in log
    with pytest.raises(RuntimeError, match="lane"):
        RawModule(code=TOP_K.replace("const int lane = ", "const int ")).get_function("update_best")


# ---- The CPU in the GPU's place ----


def launch(source, name, grid, block, *arguments, schedule=0, shared_mem=0):
    """Run a kernel; NumPy arrays among the arguments are what it reads and writes."""
    module = RawModule(code=source)
    module.schedule = schedule
    arguments = tuple(StandInArray(x, Owner()) if isinstance(x, np.ndarray) else x for x in arguments)
    module.get_function(name)(grid, block, arguments, shared_mem=shared_mem)
    Stream.current.finish()


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

ADMIT_ALL, ADMIT_NONE = 0x3FFFFFFF << 32, 2**64 - 1  # the key of score -2, and one above all
PROBE = """
extern "C" __global__ void probe(const unsigned int *halves, float *floats, Key *keys, float *scores, unsigned short *back)
{
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    floats[i] = half_to_float(halves[i]);
    keys[i] = to_key(floats[i], i);
    scores[i] = score_of(keys[i]);
    back[i] = float_to_half(floats[i]);
}

extern "C" __global__ void to_half(const float *floats, unsigned short *halves)
{
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    halves[i] = float_to_half(floats[i]);
}
"""


def test_float16_and_keys():
    halves = np.arange(2**16, dtype=np.uint32)
    floats, keys, scores = np.empty(2**16, np.float32), np.empty(2**16, np.uint64), np.empty(2**16, np.float32)
    back = np.empty(2**16, np.float16)
    launch(TOP_K + PROBE, "probe", (2**16 // 64,), (64,), halves, floats, keys, scores, back)
    expected = halves.astype(np.uint16).view(np.float16).astype(np.float32)
    finite = np.isfinite(expected)
    assert_array_equal(floats[finite].view(np.uint32), expected[finite].view(np.uint32))
    assert (abs(floats[~finite]) >= 2**16).all()
    assert_array_equal(back[finite].view(np.uint16), halves[finite])
    assert_array_equal(scores, floats)
    signed_zero = np.flatnonzero(expected == 0)[1]  # -0 < +0 as keys, which is why no score is -0
    order = np.delete(np.lexsort((halves, -floats)), 0)
    order = order[order != signed_zero]
    assert (np.diff(keys[order].astype(np.float64)) <= 0).all()
    assert len(set(keys[order].tolist())) == len(order)


def test_rounding_to_float16_is_numpys():
    rng = np.random.default_rng(0)
    halves = np.arange(2**15 - 2**10, dtype=np.uint16).view(np.float16)  # all from 0 to the largest
    middles = (halves[1:].astype(np.float32) + halves[:-1].astype(np.float32)) / 2  # ties, exact in float32
    floats = np.concatenate(
        [
            *(np.nextafter(middles, np.float32(side)) for side in (-1, 1e9)),
            middles,
            rng.standard_normal(2**16).astype(np.float32) * np.exp(rng.uniform(-20, 5, 2**16)).astype(np.float32),
            np.float32([0, -0.0, 1e-45, 65519, -1, 2**-24, 2**-25, 3 * 2**-25]),
        ]
    )
    floats = np.resize(np.concatenate([floats, -floats]), -(-2 * len(floats) // 64) * 64)
    found = np.empty(len(floats), np.float16)
    launch(TOP_K + PROBE, "to_half", (len(floats) // 64,), (64,), floats, found)
    assert_array_equal(found.view(np.uint16), floats.astype(np.float16).view(np.uint16))


def scale_rows(X, schedule=0):
    """What the kernel makes of X: unit, half, valid, digests; what surrounds them must stay as it is."""
    (n, d), padded_d = X.shape, -(-X.shape[1] // 8) * 8
    out = [np.full((n + 2, padded_d), 7, np.float32), np.full((n + 2, padded_d), 7, np.float16)]
    out += [np.full(n + 2, 7, np.uint8), np.full(n + 2, 7, np.uint64)]
    name = "scale_float_rows" if X.dtype == np.float32 else "scale_double_rows"
    numbers = np.int64(n), np.int32(d), np.int32(padded_d)
    launch(TOP_K, name, (-(-n // 2),), (64,), X, *numbers, *(values[1:-1] for values in out), schedule=schedule)
    assert all((values[[0, -1]] == 7).all() for values in out)
    return [values[1:-1] for values in out]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 8), (5, 33), (4, 100)])
def test_rows_are_scaled(n, d, dtype, schedule):
    rng = np.random.default_rng(n)
    X = (rng.standard_normal((n, d)) * 10.0 ** rng.integers(-30, 30, (n, 1))).astype(dtype)
    if n > 3:
        X[1], X[2] = 0, np.finfo(dtype).max
        X[3] = 0
        X[3, -1] = np.finfo(dtype).smallest_subnormal
    unit, half, valid, _ = scale_rows(X, schedule)
    exact = X.astype(np.longdouble)
    norms = np.sqrt((exact**2).sum(axis=1, keepdims=True))
    expected = np.divide(exact, norms, out=np.zeros_like(exact), where=norms > 0)
    assert valid.all()
    assert_allclose(unit[:, :d], expected.astype(np.float64), rtol=2**-23, atol=0)
    assert_array_equal(half, unit.astype(np.float16))
    assert (unit[:, d:] == 0).all()


@pytest.mark.parametrize("place", [0, 31, 32, 39])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_invalid_rows_are_told_and_become_zero(bad, place):
    X = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    X[1, place] = bad
    unit, half, valid, _ = scale_rows(X)
    assert valid.tolist() == [1, 0, 1]
    assert not unit[1].any()
    assert not half[1].any()


def test_rows_of_one_direction_share_a_hash():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 48)).astype(np.float32)
    multiples = (rows * rng.uniform(0.1, 10, (100, 1))).astype(np.float32)
    of_rows, of_multiples = scale_rows(rows)[3], scale_rows(multiples)[3]
    assert (of_rows == of_multiples).sum() >= 98  # one element near the border between two steps is enough to miss
    assert len(set(of_rows.tolist())) == 100
    assert (scale_rows(-rows)[3] != of_rows).all()
    assert_array_equal(of_rows, scale_rows(rows.astype(np.float64))[3])


def unit(rng, n, d, n_distinct):
    """Rows of length 1 in float32, zero from d to the next multiple of 8, with duplicates and zero rows."""
    distinct = rng.standard_normal((n_distinct, d))
    distinct[0] = 0
    distinct /= np.maximum(np.linalg.norm(distinct, axis=1, keepdims=True), 1e-300)
    return np.pad(distinct[rng.integers(0, n_distinct, n)].astype(np.float32), ((0, 0), (0, -d % 8)))


def half_products(rows, columns):
    return (rows.astype(np.float16).astype(np.float32) @ columns.astype(np.float16).astype(np.float32).T).astype(np.float16)


def keys_of(scores, columns):
    return scheme.join_keys(np.asarray(columns), np.asarray(scores, np.float32))


def collect(tile, row_floors, column_floors, slack, diagonal=-(2**40), schedule=0):
    """The pairs that the kernel finds, as (row, column), in ascending order; the counter goes on from 3."""
    n_rows, n_columns = tile.shape
    stride = -(-n_columns // 8) * 8
    # What fills up the rows is above every floor, and must not be found.
    padded = np.pad(tile, ((0, 0), (0, stride - n_columns)), constant_values=60000)
    pairs, counter = np.full(n_rows * stride + 3, 2**32 - 1, np.uint32), np.uint32([3])
    n_warps = -(-stride // 256) * -(-n_rows // 16)
    launch(
        *(TOP_K, "collect_pairs", (-(-n_warps // 2),), (64,), padded, np.uint32(n_rows), np.uint32(n_columns)),
        *(np.uint32(stride), np.int64(diagonal), row_floors, column_floors, np.float32(slack), pairs, counter),
        schedule=schedule,
    )
    found = pairs[3 : counter[0]]
    assert (np.delete(pairs, np.arange(3, counter[0])) == 2**32 - 1).all()
    return sorted((int(pair) // stride, int(pair) % stride) for pair in found)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 40),
    n_columns=st.sampled_from([1, 7, 8, 30, 255, 256, 257, 300]),
    diagonal=st.sampled_from([-(2**40), -5, 0, 3]),
    schedule=st.sampled_from(SCHEDULES),
)
def test_pairs_at_the_floors_of_their_rows_or_columns(seed, n_rows, n_columns, diagonal, schedule):
    rng = np.random.default_rng(seed)
    tile = rng.uniform(-1, 1, (n_rows, n_columns)).astype(np.float16)
    bars = [rng.choice(np.float16([-0.5, 0.25, 0.9, tile[0, 0]]), n).astype(np.float32) for n in tile.shape]
    floors = [keys_of(values, np.full(len(values), 2**32 - 1)) for values in bars]
    for values, keys in zip(bars, floors, strict=True):
        nobody = rng.random(len(values)) < 0.2
        values[nobody], keys[nobody] = np.inf, ADMIT_NONE
        everybody = rng.random(len(values)) < 0.05
        values[everybody], keys[everybody] = -np.inf, ADMIT_ALL
    scores = tile.astype(np.float32) + np.float32(2**-6)
    admitted = (scores >= bars[0][:, None]) | (scores >= bars[1])
    admitted &= np.arange(n_columns) > np.arange(n_rows)[:, None] + diagonal
    assert collect(tile, *floors, 2**-6, diagonal, schedule) == [tuple(map(int, pair)) for pair in np.argwhere(admitted)]


def update_best(pairs, rows, columns, best, floors, ids, *, of_itself=False, n_threads=64, schedule=0):
    """Both sides of `best`, `floors` and `ids` by the kernel; what surrounds them must stay as it is."""
    guarded = [np.pad(values, [(1, 1), *[(0, 0)] * (values.ndim - 1)], constant_values=7) for values in (*best, *floors)]
    best_of_rows, best_of_columns, *floors_of = (values[1:-1] for values in guarded)
    codes = np.uint32([row * len(columns) + column for row, column in pairs] or [0])
    launch(
        *(TOP_K, "update_best", (3,), (n_threads,), codes, np.uint32([len(pairs)]), np.uint32(len(columns)), rows, columns),
        *(np.int32(rows.shape[1]), *(values.astype(np.uint32) for values in ids), np.int32(of_itself)),
        *(np.int32(best[0].shape[1]), best_of_rows, floors_of[0], best_of_columns, floors_of[1]),
        schedule=schedule,
    )
    assert all((values[[0, -1]] == 7).all() for values in guarded)
    for values, found in zip((*best, *floors), guarded, strict=True):
        values[...] = found[1:-1]


def score(rows, columns):
    """Float32 scores in the kernel's order of summation."""
    n = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 128))), np.pad(columns, ((0, 0), (0, -columns.shape[1] % 128)))
    a, b = (values.reshape(len(values), -1, 32, 4).astype(np.longdouble) for values in n)
    sums = np.zeros((len(rows), len(columns), 32), np.float32)
    for part in range(a.shape[1]):
        for i in range(4):  # a fused multiplication and addition rounds once
            sums = (a[:, None, part, :, i] * b[None, :, part, :, i] + sums).astype(np.float32)
    for step in (16, 8, 4, 2, 1):
        sums = sums + sums[:, :, np.arange(32) ^ step]
    return np.clip(sums[:, :, 0], -1, 1) + np.float32(0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_threads", [32, 128])
@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(1, 1, 1, 1), (9, 13, 33, 4), (4, 60, 7, 13), (6, 20, 64, 31), (3, 50, 140, 40)]
)
def test_the_best_of_rows_and_columns(n, m, d, k, n_threads, schedule):
    rng = np.random.default_rng(n + m)
    rows, columns = unit(rng, n, d, n + 1), unit(rng, m, d, 2 + m // 2)
    ids = np.arange(n) + 1000, np.arange(m)[::-1].copy()
    best = np.zeros((n, k), np.uint64), np.zeros((m, k), np.uint64)
    floors = np.full(n, ADMIT_ALL, np.uint64), np.full(m, ADMIT_ALL, np.uint64)
    floors[1][0] = ADMIT_NONE
    pairs = [(i, j) for i in range(n) for j in range(m)]
    for some in (pairs[::3], pairs[1::3], [], pairs[2::3]):
        update_best(some, rows, columns, best, floors, ids, n_threads=n_threads, schedule=schedule)
    scores = score(rows, columns)
    assert_allclose(scores, rows.astype(np.float64) @ columns.T.astype(np.float64), rtol=0, atol=1e-6)
    for side, values, others in ((0, scores, ids[1]), (1, scores.T, ids[0])):
        keys = -np.sort(-np.stack([keys_of(row, others) for row in values]).astype(object), axis=1)
        for i in range(len(keys)):
            if (side, i) == (1, 0):  # admits none
                assert not best[1][0].any()
                continue
            expected = [*keys[i, :k], *[0] * (k - keys.shape[1])]
            assert sorted(best[side][i].tolist(), reverse=True) == expected
            assert floors[side][i] == (expected[-1] or ADMIT_ALL)


def test_a_row_is_not_its_own_neighbour_and_a_floor_holds():
    rng = np.random.default_rng(0)
    rows = unit(rng, 10, 16, 40)
    pairs = [(i, j) for i in range(10) for j in range(10)]
    ids = np.arange(10) + 5
    scores = score(rows, rows)
    guess = keys_of([0.2], [2**32 - 1])[0]
    for of_itself in (True, False):
        best, closed = np.zeros((10, 30), np.uint64), np.full(10, ADMIT_NONE, np.uint64)
        floors = np.full(10, guess, np.uint64)
        update_best(pairs, rows, rows, (best, best.copy()), (floors, closed), (ids, ids), of_itself=of_itself)
        for i in range(10):
            reached = [j for j in range(10) if scores[i, j] >= np.float32(0.2) and not (of_itself and i == j)]
            indices, _ = scheme.split_keys(best[i][best[i] != 0])
            assert sorted(indices.tolist()) == [j + 5 for j in reached]
        assert (floors == guess).all()


def test_a_score_is_never_minus_zero():
    """Not even where every product of two elements is negative and vanishes."""
    large, vanishing = np.full((1, 32), 32**-0.5, np.float32), np.full((1, 32), -1e-45, np.float32)
    a, b = np.hstack([large, vanishing]), np.hstack([vanishing, large])
    scores = np.full(2, np.nan, np.float32)
    launch(TOP_K, "score_pairs", (2,), (32,), np.uint32([0, 0]), np.uint32([1]), np.uint32(1), a, b, np.int32(64), scores)
    assert scores[0] == 0
    assert not np.signbit(scores[0])
    assert np.isnan(scores[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scores_of_pairs(schedule):
    rng = np.random.default_rng(1)
    rows, columns = unit(rng, 7, 50, 8), unit(rng, 12, 50, 13)
    pairs = rng.permutation(7 * 12).astype(np.uint32)
    scores = np.full(len(pairs), np.nan, np.float32)
    numbers = np.uint32([len(pairs)]), np.uint32(12)
    launch(TOP_K, "score_pairs", (3,), (64,), pairs, *numbers, rows, columns, np.int32(56), scores, schedule=schedule)
    assert_array_equal(scores, score(rows, columns)[pairs // 12, pairs % 12])


@pytest.mark.parametrize("k", [1, 5, 32, 70])
def test_the_answer_is_in_order_at_the_place_of_its_row(k):
    rng = np.random.default_rng(k)
    keys = keys_of(rng.choice(np.float32([-1, 0, 0.5, 1]), (4, k)), rng.permutation(4 * k).reshape(4, k))
    keys[2, : k // 2 + 1] = 0
    indices, scores = np.full((9, k), -7), np.full((9, k), 7, np.float32)
    ids = np.uint32([8, 0, 3, 5])
    launch(TOP_K, "write_answer", (2,), (64,), keys, np.int64(4), np.int32(k), ids, indices, scores)
    for row, place in zip(keys, ids, strict=True):
        found = row[row != 0]
        expected, values = scheme.split_keys(np.sort(found)[::-1])
        assert_array_equal(indices[place], [*expected, *[-1] * (k - len(found))])
        assert_array_equal(scores[place], [*values, *[np.nan] * (k - len(found))])
    untouched = np.delete(np.arange(9), ids)
    assert (indices[untouched] == -7).all()
    assert (scores[untouched] == 7).all()


def test_no_pair_is_lost_where_the_float16_scores_are_off_by_what_they_may():
    rng = np.random.default_rng(1)
    rows, columns = unit(rng, 20, 48, 21), unit(rng, 400, 48, 400)
    exact = rows.astype(np.float64) @ columns.astype(np.float64).T
    bars = np.sort(exact, axis=1)[:, -9].astype(np.float32)
    floors, closed = keys_of(bars, np.full(20, 2**32 - 1)), np.full(400, ADMIT_NONE, np.uint64)
    reached = {tuple(map(int, pair)) for pair in np.argwhere(exact >= bars[:, None])}
    for signs in (1, -1, rng.choice([-1, 1], exact.shape)):
        off = (exact + signs * (gpu.score_slack(48) - 2**-11)).astype(np.float16)  # rounding adds up to 2^-11
        assert reached <= set(collect(off, floors, closed, gpu.score_slack(48)))


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
