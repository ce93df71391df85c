"""What calls cost, beside closed formulas, from their descriptions alone."""

import json
import math
import tomllib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, ndimage, signal
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from altlas_lib.profiling.project import operations
from altlas_lib.profiling.project.operations import price, price_trace
from altlas_lib.profiling.record.calls import Array, Call, ModelWork, RecordedCall, RecordedFunction

A = np.arange(1200, dtype="f4").reshape(40, 30) % 7 + 1
B = np.ones((30, 20), "f4")
V = np.arange(1000.0) / 1000
S = np.eye(40) * 3 + 1
INDEX = np.arange(0, 40).repeat(3)[:100]
MASK = A > 2
LOG2_1000 = math.log2(1000)


def described(value):
    """As a tracer would: arrays by dtype and shape."""
    if isinstance(value, np.ndarray):
        return Array(value.dtype.name, value.shape, None, int(value.sum()) if value.dtype == bool else None)
    if isinstance(value, slice):
        return ":".join("" if each is None else str(each) for each in (value.start, value.stop, value.step)).removesuffix(":")
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    return value


def call(name, args=(), result=None, is_view=False, **kwargs) -> Call:
    results = result if isinstance(result, tuple) else (result,)
    return Call(
        name=name,
        args=tuple(map(described, args)),
        kwargs={key: described(value) for key, value in kwargs.items()},
        results=tuple(described(each) for each in results if isinstance(each, np.ndarray)),
        is_view=is_view,
    )


@pytest.mark.parametrize(
    ("name", "args", "result", "kind", "flops", "moved_bytes"),
    [
        ("numpy.matmul", (A, B), A @ B, "product", 2 * 40 * 30 * 20, 4 * (1200 + 600 + 800)),
        ("numpy.matmul", (A + 1j, B), A @ B + 1j, "product", 8 * 40 * 30 * 20, None),
        ("numpy.matmul", (np.ones((5, 4, 3)), np.ones((3, 2))), np.ones((5, 4, 2)), "product", 2 * 5 * 4 * 3 * 2, None),
        ("numpy.dot", (V, V), None, "product", 2000, 16000),
        ("numpy.vdot", (A, A), None, "product", 2400, None),
        ("numpy.inner", (A, A), A @ A.T, "product", 2 * 40 * 30 * 40, None),
        ("numpy.tensordot", (A, A, 2), None, "product", 2400, None),
        ("numpy.vecdot", (A, A), A[:, 0], "product", 2400, None),
        ("numpy.dot", (np.ones((5, 4, 3)), np.ones((2, 3, 6))), np.ones((5, 4, 2, 6)), "product", 2 * 20 * 3 * 12, None),
        ("numpy.einsum", ("ij,jk->ik", A, B), A @ B, "product", 2 * 40 * 30 * 20, None),
        ("numpy.einsum", ("ij->i", A), A.sum(axis=1), "reduction", 1200, None),
        ("numpy.add", (A, A), A + A, "elementwise", 1200, 14400),
        ("numpy.exp", (V,), np.exp(V), "elementwise", 20_000, 16_000),
        ("numpy.power", (V, 2), V**2, "elementwise", 1000, None),
        ("numpy.power", (V, 0.37), V**0.37, "elementwise", 50_000, None),
        ("numpy.power", (V, 0), V**0, "elementwise", 1000, None),
        ("numpy.digitize", (A, np.sort(V)), np.zeros((40, 30), int), "gather", 1200 * LOG2_1000, None),
        ("numpy.greater", (V, 0.5), V > 0.5, "elementwise", 1000, 9000),
        ("numpy.add", (A, A[0]), A + A[0], "elementwise", 1200, 4 * (1200 + 30 + 1200)),
        ("ndarray.sum", (A,), A.sum(axis=0), "reduction", 1200, 4800 + 120),
        ("ndarray.argmax", (V,), None, "reduction", 1000, 8000),
        ("numpy.linalg.norm", (V,), None, "reduction", 2000, 8000),
        ("numpy.linalg.norm", (S, 2), None, "factorisation", (4 - 4 / 3) * 40**3, None),
        ("numpy.linalg.norm", (S, 1), None, "reduction", 3200, 3 * 12800),
        ("numpy.sort", (V,), np.sort(V), "sort", 1000 * LOG2_1000, 16000),
        ("ndarray.sort", (V,), None, "sort", 1000 * LOG2_1000, 16000),
        ("ndarray.argsort", (A,), A.argsort(), "sort", 1200 * math.log2(30), None),
        ("numpy.argsort", (A, 0), A.argsort(0), "sort", 1200 * math.log2(40), None),
        ("numpy.argpartition", (V, 5), np.argpartition(V, 5), "sort", 3400, None),
        ("ndarray.__getitem__", (A, INDEX), A[INDEX], "gather", 0, 800 + 2 * 100 * 30 * 4),
        ("ndarray.__getitem__", (A, MASK), A[MASK], "gather", 0, 1200 + 8 * MASK.sum()),
        ("ndarray.__setitem__", (A, INDEX, 0), None, "gather", 0, 800 + 2 * 100 * 30 * 4),
        ("ndarray.__setitem__", (A, MASK, 0), None, "gather", 0, 1200 + 8 * MASK.sum()),
        ("ndarray.__setitem__", (A, slice(3), A[:3]), A[:3], "copy", 0, 2 * 3 * 30 * 4),  # the result is the region written
        ("ndarray.__setitem__", (A, 0, 0), A[0], "copy", 0, 30 * 4),
        ("ndarray.__setitem__", (A, slice(None), 0), A, "copy", 0, 1200 * 4),
        ("ndarray.__setitem__", (A, None, 0), None, "copy", 0, 1200 * 4),
        ("numpy.searchsorted", (np.sort(V), A), np.zeros((40, 30), int), "gather", 1200 * LOG2_1000, None),
        ("numpy.where", (MASK, A, 0), A, "elementwise", 1200, None),
        ("ndarray.astype", (A, "f8"), A.astype("f8"), "copy", 0, 19200),
        ("numpy.concatenate", ([A, A],), np.concatenate([A, A]), "copy", 0, 2 * 9600),
        ("numpy.fft.fft", (V,), np.fft.fft(V), "fft", 5 * 1000 * LOG2_1000, 24000),
        ("numpy.fft.rfft", (V,), np.fft.rfft(V), "fft", 2.5 * 1000 * LOG2_1000, None),
        ("numpy.fft.fft2", (S,), np.fft.fft2(S), "fft", 5 * 1600 * math.log2(1600), None),
        ("scipy.fft.fftn", (S,), np.fft.fft2(S), "fft", 5 * 1600 * math.log2(1600), None),
        ("numpy.linalg.cholesky", (S,), S, "factorisation", 40**3 / 3, 25600),
        ("numpy.linalg.solve", (S, S[:, :5]), S[:, :5], "factorisation", 2 / 3 * 40**3 + 2 * 40**2 * 5, None),
        ("numpy.linalg.inv", (np.stack([S] * 6),), np.stack([S] * 6), "factorisation", 6 * 2 * 40**3, None),
        ("scipy.linalg.lu_factor", (S,), linalg.lu_factor(S), "factorisation", 4 / 3 * 40**3, None),
        ("numpy.linalg.qr", (A,), tuple(np.linalg.qr(A)), "factorisation", 4 * 30**2 * (40 - 10), None),
        ("numpy.linalg.svd", (S, True, False), S[0], "factorisation", (4 - 4 / 3) * 40**3, None),
        ("numpy.linalg.svd", (S,), tuple(np.linalg.svd(S)), "factorisation", 26 * 40**3, None),
        ("numpy.convolve", (V, V[:7]), np.convolve(V, V[:7]), "elementwise", 2 * 7000, None),
        ("scipy.signal.convolve2d", (S, S[:3, :3]), signal.convolve2d(S, S[:3, :3]), "elementwise", 2 * 1600 * 9, None),
        ("scipy.ndimage.gaussian_filter", (S, 1), ndimage.gaussian_filter(S, 1), "elementwise", 2 * 2 * 9 * 1600, None),
        ("scipy.ndimage.median_filter", (S, 5), S, "elementwise", 3.4 * 25 * 1600, None),
        ("scipy.ndimage.median_filter", (S, None, np.ones((3, 3))), S, "elementwise", 3.4 * 9 * 1600, None),
        ("scipy.ndimage.convolve", (S, S[:5, :5]), S, "elementwise", 2 * 25 * 1600, None),
        ("scipy.spatial.distance.cdist", (A, A), cdist(A, A), "elementwise", 3 * 30 * 1600, None),
        ("sklearn.metrics.pairwise.cosine_similarity", (A,), cosine_similarity(A), "product", 61 * 1600 + 3 * 1200, None),
        ("cupy.linalg.inv", (S,), S, "factorisation", 2 * 40**3, None),
        ("cupyx.scipy.ndimage.sobel", (S,), S, "elementwise", 12 * 1600, None),
    ],
)
def test_a_cost_is_the_closed_formula(name, args, result, kind, flops, moved_bytes):
    found = price(call(name, args, result))
    assert found.kind == kind
    assert found.flops == pytest.approx(flops)
    if moved_bytes is not None:
        assert found.moved_bytes == pytest.approx(moved_bytes)
    assert found.n_kernels >= 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (call("numpy.power", (V, 2), V), call("numpy.power", (V, 0.37), V)),
        (call("numpy.linalg.norm", (S,)), call("numpy.linalg.norm", (S, 2))),
        (call("ndarray.__setitem__", (A, 0, 0), A[0]), call("ndarray.__setitem__", (A, slice(None), 0), A)),
        (call("scipy.ndimage.median_filter", (S, 3), S), call("scipy.ndimage.median_filter", (S, 9), S)),
        (call("numpy.sort", (A,), A, axis=0), call("numpy.sort", (A,), A, axis=1)),
    ],
)
def test_parameters_count(one, other):
    assert price(one) != price(other)


def test_a_view_costs_nothing_whatever_its_name():
    seen = call("ndarray.__getitem__", (A, slice(3)), A[:3], is_view=True)
    found = price(seen)
    assert (found.kind, found.rate, found.flops, found.moved_bytes, found.n_kernels) == ("view", "view", 0, 0, 0)
    assert price(call("ndarray.reshape", (A, -1), A)).moved_bytes == 2 * A.nbytes  # told that it is none


@pytest.mark.parametrize(
    ("name", "args", "result", "rate"),
    [
        ("ndarray.argsort", (V,), V, "argsort"),
        ("numpy.argpartition", (V, 3), V, "partition"),
        ("numpy.linalg.svd", (S,), S[0], "spectral"),
        ("numpy.linalg.solve", (S, V[:40]), V[:40], "factorisation"),
        ("numpy.cumsum", (V,), V, "cumulative"),
        ("numpy.where", (MASK, A, A), A, "where"),
        ("numpy.exp", (V,), V, "transcendental"),
        ("numpy.power", (V, 3.3), V, "transcendental"),
        ("numpy.power", (V, 2), V, "elementwise"),
        ("numpy.remainder", (V, V), V, "scalar loop"),
        ("scipy.special.erf", (V,), V, "special function"),
        ("scipy.spatial.distance.cdist", (A, A), S, "distances"),
        ("scipy.ndimage.gaussian_filter", (S, 1), S, "filter"),
        ("Generator.standard_normal", (1000,), V, "random"),
        ("numpy.median", (V,), None, "quantile"),
        ("numpy.searchsorted", (V, V), V, "search"),
        ("numpy.bincount", (INDEX,), V, "scatter"),
        ("numpy.ascontiguousarray", (A,), A, "strided copy"),
        ("ndarray.__getitem__", (A, INDEX), A[INDEX], "row gather"),
        ("ndarray.__getitem__", (A[:, :8], INDEX), A[:, :8][INDEX], "gather"),  # rows shorter than a cache line
        ("ndarray.__getitem__", (V, INDEX), V[INDEX], "gather"),
        ("ndarray.__getitem__", (A, MASK), A[MASK], "mask"),
        ("ndarray.__getitem__", (A, slice(3)), A[:3], "copy"),
        ("numpy.linalg.matmul", (A, B), A @ B, "product"),
    ],
)
def test_classes_of_rate(name, args, result, rate):
    assert price(call(name, args, result)).rate == rate


@pytest.mark.parametrize(
    ("one", "sizes"),
    [
        (call("numpy.matmul", (A, B), A @ B), {"stack": 1, "m": 40, "n": 20, "k": 30}),
        (call("numpy.matmul", (np.ones((7, 4, 3)), np.ones((3, 2))), np.ones((7, 4, 2))), {"stack": 7, "m": 4, "n": 2, "k": 3}),
        (call("numpy.dot", (A, V[:30]), V[:40]), {"stack": 1, "m": 40, "n": 1, "k": 30}),
        (call("numpy.linalg.svd", (np.ones((9, 5, 4)),), V), {"stack": 9, "m": 5, "n": 4}),
        (call("numpy.argsort", (A,), A), {"n": 1200, "length": 30, "key_bytes": 4, "payload_bytes": 8}),
    ],
)
def test_sizes_that_rates_depend_on(one, sizes):
    assert price(one).sizes == sizes


def test_passes_of_a_transform():
    """Bytes of one pass over the array, times the passes; 4096 points fit a block."""

    def sizes(name, shape, result, dtype="complex128", result_dtype="complex128", **options):
        one = Call(name=name, args=(Array(dtype, shape),), kwargs=options, results=(Array(result_dtype, result),))
        return tuple(price(one).sizes.values())

    once = 2 * 16 * 6 * 128
    assert sizes("numpy.fft.fft", (6, 128), (6, 128)) == (once, 0, once / 128, 0, 0)
    assert sizes("numpy.fft.fft", (6, 128), (6, 128), axis=0) == (once, 0, once / 6, 0, 0)
    assert sizes("numpy.fft.fft", (2, 6, 128), (2, 6, 128), axis=1) == (2 * once, 0, once / 3, 2 * once, 0)
    assert sizes("numpy.fft.fft2", (6, 128), (6, 128)) == (2 * once, 0, once * (1 / 6 + 1 / 128), 0, 0)
    assert sizes("numpy.fft.fft", (6, 119), (6, 119))[:2] == (0, 2 * 16 * 6 * 119)  # 7 * 17
    assert sizes("numpy.fft.fft", (6, 137), (6, 137))[:2] == ((4 + 4) * 2 * 16 * 6 * 137, 0)  # prime: Bluestein
    # Of 8,198 points: two transforms of four passes over twice the array, and four passes for products.
    assert sizes("numpy.fft.fft", (6, 4099), (6, 4099))[:2] == ((4 * 4 + 4) * 2 * 16 * 6 * 4099, 0)
    assert sizes("numpy.fft.fft", (2**20,), (2**20,))[0] == 4 * 2 * 16 * 2**20
    moved = 16 * 6 * 65 + 8 * 6 * 128
    assert sizes("numpy.fft.irfft", (6, 65), (6, 128), result_dtype="float64") == (moved, 0, moved / 128, 0, moved)


def test_a_convolution_of_a_framework_is_the_product_that_it_amounts_to():
    n, c, h, w, k = 8, 64, 28, 30, 128
    work = ModelWork(2 * n * h * w * k * c * 9, 1e6, 1)
    found = price(
        Call(
            name="torch.Conv2d",
            args=(Array("float16", (n, c, h, w)),),
            results=(Array("float16", (n, k, h, w)),),
            model_work=work,
        )
    )
    assert (found.kind, found.rate, found.flops) == ("model", "convolution", work.flops)
    assert found.sizes == {"stack": 1, "m": n * h * w, "n": k, "k": c * 9, "channels": c}
    dense = price(Call(name="keras.Sequential", args=(Array("float16", (8, 64)),), model_work=work))
    assert (dense.rate, dense.n_kernels, dense.sizes) == ("model", 1, {})


def test_of_a_sparse_matrix_only_a_library_for_it_knows_the_cost():
    left, right = Array("float64", (100, 50), 1000, 60), Array("float64", (50, 7))
    for name in ("csr_array.matmul", "numpy.matmul", "scipy.sparse.dot"):
        assert price(Call(name=name, args=(left, right), results=(Array("float64", (100, 7)),))).kind == "unknown"


@pytest.mark.parametrize(
    "one",
    [
        call("KMeans.fit", (A,)),
        call("somebody.dot", (A, B), A @ B),
        call("numpy.no_such_function", (A,), A),
        call("numpy.matmul", (), A),
        call("numpy.fft.fft", (None,)),
        call("numpy.einsum", ("nonsense", A), A),
        call("numpy.einsum", ("ij,jk->ik", A, A), A),
        call(""),
        call("...."),
        call("numpy.linalg.solve", ("text",)),
        call("numpy.asarray", ([1, 2],), A),
        call("scipy.stats.norm", (A,), A),
        call("scipy.ndimage.median_filter", (S, "wide"), S),
        call("ndarray.__setitem__", (A, "x:y")),
        Call(name="numpy.add", args=(Array("float32", (-5,)),), results=(Array("float32", (-5,)),)),
        Call(name="numpy.add", args=(Array("float32", (10**400,)),), results=(Array("float32", (10**400,)),)),
        Call(name="numpy.sum", args=(Array("float32", (3,), -7),)),
        Call(name="torch.x", model_work=ModelWork(math.inf, 1.0, 1)),
        Call(name="torch.x", model_work=ModelWork(1.0, math.nan, 1)),
    ],
)
def test_what_nobody_knows_is_unknown_and_no_error(one):
    found = price(one)
    assert (found.kind, found.rate, found.flops, found.moved_bytes) == ("unknown", "unknown", None, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ARRAYS = st.builds(
    lambda dtype, shape: [dtype, shape],
    st.sampled_from(["float32", "complex64", "bool", "int64", "object", "mixed"]),
    st.lists(st.integers(-1, 10**6), max_size=4),
)
NAMES = sorted({f"{home}.{name}" for home, group in [("numpy", "any"), ("numpy.linalg", "linalg"), ("numpy.fft", "fft"),
    ("scipy.signal", "signal"), ("scipy.ndimage", "ndimage"), ("scipy.spatial.distance", "distance"),
    ("sklearn.metrics.pairwise", "sklearn")] for name in operations._table()[group]})  # fmt: skip


@given(
    st.sampled_from(NAMES),
    st.lists(ARRAYS | JSON, max_size=4),
    st.dictionaries(st.sampled_from(["axis", "axes", "size"]), JSON),
    st.lists(ARRAYS, max_size=2),
)
def test_any_description_has_a_cost_or_is_unknown(name, args, kwargs, results):
    found = price(Call(name=name, args=args, kwargs=kwargs, results=tuple((dtype, tuple(shape)) for dtype, shape in results)))
    if found.kind == "unknown":
        assert found.flops is found.moved_bytes is None
    else:
        assert 0 <= found.flops < math.inf
        assert 0 <= found.moved_bytes < math.inf
        json.dumps(found.sizes, allow_nan=False)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(2, 5))
def test_more_work_costs_more(m, k, n, times):
    """In every dimension of a product, and of what is done element by element or sorted."""
    a, b, more = np.ones((m, k)), np.ones((k, n)), np.ones((m * times, k))
    less, greater = (price(call("numpy.matmul", (x, b), x @ b)) for x in (a, more))
    assert greater.flops == times * less.flops
    for name, function in (("numpy.exp", np.exp), ("numpy.sort", np.sort), ("numpy.sum", np.sum), ("numpy.copy", np.copy)):
        less, greater = (price(call(name, (x,), function(x))) for x in (a, more))
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
        assert price(call(name, args, result)).dtype == dtype


def test_products_beside_xla():
    jax = pytest.importorskip("jax")
    for args in ((A, B), (S, S), (V, V)):
        theirs = jax.jit(jax.numpy.dot).lower(*map(jax.numpy.asarray, args)).cost_analysis()["flops"]
        result = args[0] @ args[1]
        assert price(call("numpy.dot", args, np.asarray(result))).flops == pytest.approx(theirs, rel=0.01)


def test_a_contraction_of_many_arrays_does_not_take_for_ever():
    arrays = [np.ones((2, 2))] * 20
    subscripts = ",".join(chr(97 + i) + chr(98 + i) for i in range(20)) + "->au"
    assert price(call("numpy.einsum", (subscripts, *arrays), np.ones((2, 2)), optimize="optimal")).flops < 1e4


def test_the_table_names_each_function_once():
    content = tomllib.loads(resources.files(operations.__package__).joinpath("operations.toml").read_text())
    for group, rows in content.items():
        if isinstance(rows, list):
            names = [name for row in rows for name in row["names"].split()]
            assert len(names) == len(set(names)), group
    assert set(content["modules"].values()) - {"none"} <= set(content)


def test_a_recorded_function_is_priced_call_by_call():
    recorded = RecordedFunction(
        function="f",
        file="app.py",
        line=3,
        n_calls=2,
        calls=[
            RecordedCall(call=call("numpy.matmul", (A, B), A @ B), n_calls=10, time_s=0.5),
            RecordedCall(call=call("nobody.knows", (A,)), n_calls=1, time_s=0.1),
        ],
        n_element_accesses=4,
        input_bytes=7,
        hidden_transfers=[{"line": 3, "what": "float(x)", "n_times": 2}],
    )
    found = price_trace(recorded)
    assert (found.function, found.line, found.n_calls, found.n_element_accesses, found.input_bytes) == ("f", 3, 2, 4, 7)
    product, unknown = found.operations
    assert (product.flops, product.n_calls, product.time_s, product.operands) == (
        480_000,
        10,
        0.5,
        ["float32[40, 30]", "float32[30, 20]"],
    )
    assert (product.moved_bytes, product.working_set_bytes) == (104_000, 10_400)
    assert (unknown.kind, unknown.flops) == ("unknown", None)
    assert found.known_s == 0.5
    type(found).model_validate_json(found.model_dump_json())
