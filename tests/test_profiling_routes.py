"""Ways out of a hotspot: what calls for each, what GPU libraries have, and that neither can be made to fail."""

import importlib
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from altlas_lib import profiling
from altlas_lib.devices import find_gpu
from altlas_lib.profiling.project import routes as routes_module
from altlas_lib.profiling.project.gpu_libraries import cupy_coverage, gpu_libraries, public_parts
from altlas_lib.profiling.project.routes import LEAST_SHARE, Found, routes_of
from altlas_lib.results import Advice, ArrayOperation, ArrayTrace, FunctionTime, LineTime, Quantity, Route, WorkloadProfile
from benchmarks import read_gpu_libraries

KINDS = ["algorithm", "drop-in library", "CuPy port", "kernel of your own"]
TIME = Quantity.measured([1.0], "s", "a CPU")


def op(
    name: str, *operands: str, kind: str = "elementwise", time_s: float = 1.0, result_bytes: float = 0, **fields
) -> ArrayOperation:
    """An operation as the tracer and the table of costs describe it; `result_bytes` of one call."""
    sizes = [text.removesuffix("]").partition("[") for text in operands]
    operand_bytes = 0
    for dtype, _, shape in sizes:
        n = 1
        for size in filter(None, shape.split(", ")):
            n *= int(size)
        operand_bytes += n * int("".join(filter(str.isdigit, dtype)) or 8) // 8
    defaults = {"dtype": sizes[0][0] if sizes else "float64", "n_calls": 1, "working_set_bytes": operand_bytes + result_bytes}
    return ArrayOperation(name=name, operands=list(operands), kind=kind, time_s=time_s, **defaults | fields)


def found(
    *operations: ArrayOperation, elements: int = 0, elsewhere: tuple[ArrayOperation, ...] = (), **function
) -> list[Found]:
    """Routes of a function whose whole second went into `operations`."""
    whole_s = sum(each.time_s for each in operations)
    operations = [each.model_copy(update={"time_s": each.time_s / whole_s}) for each in operations]
    traced = {"file": "work.py", "n_calls": 1, "input_bytes": 0, "output_bytes": 0}
    trace = ArrayTrace(function="f", line=1, operations=operations, n_element_accesses=elements, **traced)
    other = ArrayTrace(function="g", line=9, operations=list(elsewhere), **traced)
    timed = FunctionTime(name="f", file="work.py", line=1, own=TIME, **function)
    profile = WorkloadProfile(workload="work", target="work:f", total=TIME, functions=[timed], traces=[trace, other])
    return routes_of(timed, trace if operations or elements else None, profile)


def names(routes: list[Found], kind: str = "algorithm") -> list[str]:
    return [each.route.name for each in routes if each.route.kind == kind]


def route(routes: list[Found], name: str) -> Route | None:
    return next((each.route for each in routes if each.route.name == name), None)


# The table ---------------------------------------------------------------------------------------------------------------


def test_the_table_says_what_it_was_read_from():
    content = tomllib.loads(read_gpu_libraries.TABLE.read_text("utf-8"))
    assert content["read_on"].year >= 2025
    assert len(gpu_libraries()) == len(content["library"])
    for library in gpu_libraries().values():
        assert Version(library.version) > Version("0")
        assert library.licence
        assert "\n" not in library.licence
        assert 10 < library.download_mb < 10_000
        assert 5 <= float(library.least_compute_capability) <= 12
        assert library.how
        assert library.whole != bool(library.names), "either everything of a host runs, or what is listed"


def test_every_condition_is_about_a_listed_name():
    for library in gpu_libraries().values():
        listed = {key[-1] + "." + name for key, names in library.listed.items() for name in names}
        listed |= {name for names in library.listed.values() for name in names}
        assert set(library.conditions) <= listed, library.name


@pytest.mark.parametrize("host", ["numpy", "scipy", "sklearn", "networkx", "skimage", "PIL", "umap", "hdbscan"])
def test_what_is_listed_exists_in_the_host(host):
    """In most cases: the host may be older or newer than what the GPU library was made for."""
    pytest.importorskip(host)
    library = next(each for each in gpu_libraries().values() if host in each.hosts and each.names)
    there, missing = 0, []
    for path, listed in library.listed.items():
        if path[0] != host or not listed:
            continue
        try:
            module = importlib.import_module(".".join(path))
        except ImportError:
            outer = importlib.import_module(".".join(path[:-1]))
            module = getattr(outer, path[-1])
        there += len(listed)
        missing += [f"{'.'.join(path)}.{name}" for name in listed if not hasattr(module, name)]
    assert there
    assert len(missing) <= 0.25 * there, missing


def test_the_table_agrees_with_cupy_itself():
    """The table was read from sources; this asks the package, which can be imported without a GPU."""
    cupy = pytest.importorskip("cupy")
    if Version(cupy.__version__) < Version(gpu_libraries()["CuPy"].version):
        pytest.skip(f"the table is about CuPy {gpu_libraries()['CuPy'].version}, here is {cupy.__version__}")
    import numpy

    for module in ("", ".linalg", ".fft", ".random"):
        host, there = importlib.import_module(f"numpy{module}"), importlib.import_module(f"cupy{module}")
        for name in dir(host):
            if name[0].islower() and callable(getattr(host, name)) and type(getattr(host, name)) is not type:
                coverage = cupy_coverage([f"numpy{module}.{name}"])
                assert bool(coverage["has"]) == hasattr(there, name), f"numpy{module}.{name}"
                assert not coverage["unknown"]
    for name in dir(numpy.ndarray):
        if name[0].islower() and callable(getattr(numpy.ndarray, name)):
            assert bool(cupy_coverage([f"ndarray.{name}"])["has"]) == hasattr(cupy.ndarray, name), name


@pytest.mark.parametrize(
    ("library", "name", "standing", "listed"),
    [
        ("cuml.accel", "sklearn.cluster.KMeans.fit", "offered on conditions", "KMeans"),
        ("cuml.accel", "sklearn.cluster._kmeans.KMeans.fit", "offered on conditions", "KMeans"),
        ("cuml.accel", "sklearn.linear_model._logistic.LogisticRegression.fit", "offered on conditions", "LogisticRegression"),
        ("cuml.accel", "sklearn.preprocessing.StandardScaler.transform", "offered", "StandardScaler"),
        ("cuml.accel", "sklearn.pipeline.Pipeline.fit", "offered on conditions", "Pipeline"),
        ("cuml.accel", "sklearn.linear_model.SGDClassifier.fit", "absent", "linear_model.SGDClassifier.fit"),
        ("cuml.accel", "sklearn.feature_extraction.text.TfidfVectorizer.fit", "absent", None),
        ("cuml.accel", "sklearn.metrics.pairwise.cosine_similarity", "absent", None),
        ("cuml.accel", "umap.umap_.UMAP.fit_transform", "offered on conditions", "UMAP"),
        ("cuml.accel", "sklearn.nonexistent.Thing.fit", "unknown", None),
        ("cudf.pandas", "pandas.core.frame.DataFrame.groupby", "offered", "DataFrame.groupby"),
        ("cudf.pandas", "pandas.DataFrame.__getitem__", "offered", "DataFrame.__getitem__"),
        ("cudf.pandas", "pandas.DataFrame.mul", "offered", "DataFrame.mul"),
        ("cudf.pandas", "pandas.api.typing.DataFrameGroupBy.mean", "offered", "DataFrameGroupBy.mean"),
        ("cudf.pandas", "pandas.DataFrame.apply", "offered on conditions", "DataFrame.apply"),
        ("cudf.pandas", "pandas.read_csv", "offered", "read_csv"),
        ("cudf.pandas", "pandas.io.excel._base.read_excel", "absent", None),
        ("cudf.pandas", "pandas.DataFrame.to_latex", "absent", "DataFrame.to_latex"),
        ("cudf.pandas", "pandas.tseries.offsets.BDay.rollforward", "unknown", None),
        ("cudf.pandas", "pandas.core.indexing._iLocIndexer.__getitem__", "unknown", None),
        ("cudf.pandas", "pandas.MultiIndex.from_product", "unknown", None),
        ("cudf.pandas", "pandas.testing.helpers.compare", "absent", None),
        ("Polars' GPU engine", "polars.lazyframe.frame.LazyFrame.collect", "offered on conditions", "LazyFrame.collect"),
        ("Polars' GPU engine", "polars.DataFrame.map_rows", "absent", None),
        ("nx-cugraph", "networkx.pagerank", "offered on conditions", "pagerank"),
        ("nx-cugraph", "networkx.algorithms.link_analysis.pagerank_alg.pagerank", "offered on conditions", "pagerank"),
        ("nx-cugraph", "networkx.girvan_newman", "absent", None),
        ("cupyx.scipy", "scipy.signal._spectral_py.stft", "offered", "stft"),
        ("cupyx.scipy", "scipy.ndimage.gaussian_filter", "offered", "gaussian_filter"),
        ("cupyx.scipy", "scipy.spatial.distance.cdist", "offered on conditions", "cdist"),
        ("cupyx.scipy", "scipy.sparse.csr_array.matmul", "offered", "matmul"),
        ("cupyx.scipy", "scipy.optimize._minimize.minimize", "absent", None),
        ("cupyx.scipy", "scipy.linalg.solve", "offered on conditions", "solve"),
        ("cupyx.scipy", "scipy.linalg.schur", "absent", None),
        ("cupyx.scipy", "scipy.brandnew.thing", "unknown", None),
        ("CuPy", "ndarray.argsort", "offered", "argsort"),
        ("CuPy", "numpy.add.reduce", "offered", "sum"),
        ("CuPy", "numpy.add.reduceat", "unknown", None),
        ("CuPy", "numpy.ma.power", "unknown", None),
        ("CuPy", "numpy.linalg.eig", "offered", "eig"),
        ("CuPy", "numpy.busday_count", "absent", None),
        ("cuCIM", "skimage.restoration._denoise.denoise_tv_chambolle", "offered", "denoise_tv_chambolle"),
        ("cuCIM", "skimage.restoration.denoise_bilateral", "absent", None),
        ("cuVS", "faiss.swigfaiss_avx2.IndexFlatIP.search", "offered on conditions", "IndexFlatIP"),
        ("NVIDIA DALI", "PIL.Image.open", "offered on conditions", "Image.open"),
        ("NVIDIA DALI", "PIL.Image.Image.resize", "offered on conditions", "Image.resize"),
        ("PyTorch on the GPU", "torch.nn.modules.linear.Linear.forward", "offered", None),
        ("Numba CUDA", "numba:mandelbrot", "offered on conditions", None),
    ],
)
def test_names_are_found_in_the_table(library, name, standing, listed):
    offer = gpu_libraries()[library].offer(name)
    assert offer.standing == standing
    assert listed in (offer.name, None)


def test_a_library_says_nothing_about_calls_of_others():
    for library in gpu_libraries().values():
        for name in ("json.loads", "re.Pattern.sub", "mine.module.function", "", ".", "...", "sklearnish.KMeans"):
            assert library.offer(name) is None


def test_a_fallback_is_named():
    assert "warm_start=True" in gpu_libraries()["cuml.accel"].offer("sklearn.linear_model.LogisticRegression.fit").condition
    assert "Negative weights" in gpu_libraries()["nx-cugraph"].offer("networkx.shortest_path").condition


# How the table is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "condition"),
    [
        ("`warm_start=True` is not supported", "warm_start=True"),
        ("`metric={model.metric!r}` is not supported", "some values of metric"),
        ("The `raw` kwarg is not yet supported", "raw"),
        ("Only axis=0 is currently supported", "all but axis=0"),
        ("something else entirely", "something else entirely"),
        ("", ""),
    ],
)
def test_refusals_of_wheels_become_conditions(message, condition):
    assert read_gpu_libraries._as_condition(message) == condition


def test_names_are_read_without_running_anything(tmp_path):
    (tmp_path / "__init__.py").write_text(
        "raise SystemExit('this must not run')\nfrom .a import b, _c, d as e\nif True:\n    from x import late\nclass K: ...\n"
    )
    assert read_gpu_libraries._public(tmp_path) == {"b", "e", "late", "K"}
    (tmp_path / "__init__.py").write_text("")
    with pytest.raises(LookupError, match="no names"):
        read_gpu_libraries._public(tmp_path)


def test_methods_that_only_raise_are_not_offered(tmp_path):
    source = """
        Reducible = _create_delegating_mixin("Reducible", "", "REDUCTION", "_reduce", {"sum", "nth"})
        class Base(Reducible):
            _VALID_REDUCTIONS = {"sum"}
            def shared(self): return 1
            def gone(self): return 1
        class Frame(Base):
            alias = Base.shared
            def gone(self):
                'Not here.'
                raise TypeError("no")
            def picky(self, x):
                if x:
                    raise NotImplementedError("x is not supported")
                return 1
    """
    (tmp_path / "frame.py").write_text(textwrap.dedent(source))
    assert read_gpu_libraries._Classes(tmp_path).methods("Frame") == {"sum": "", "shared": "", "alias": "", "picky": "x"}


# What CuPy has -----------------------------------------------------------------------------------------------------------


def test_coverage_counts_distinct_operations_once_and_in_order():
    some = ["numpy.sort", "scipy.optimize.minimize", "numpy.sort", "mine.f", "pandas.DataFrame.sum"]
    lacks = ["scipy.optimize.minimize", "pandas.DataFrame.sum"]
    assert cupy_coverage(some) == {"has": ["numpy.sort"], "lacks": lacks, "unknown": ["mine.f"]}


ROOTS = ["numpy.", "scipy.", "sklearn.cluster.", "pandas.DataFrame.", "networkx.", "ndarray.", "PIL.Image."]
NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["a", "b", "_x", "__y__", "K", "numpy", "linalg", ""]), max_size=6).map(".".join),
    st.builds(str.__add__, st.sampled_from([*ROOTS, "numba:"]), st.text(max_size=12)),
)  # fmt: skip


@given(st.lists(NAMES, max_size=30))
def test_coverage_is_a_partition_of_any_names(some):
    coverage = cupy_coverage(some)
    assert sorted(name for part in coverage.values() for name in part) == sorted(set(some))
    assert coverage == cupy_coverage([*some, *some])


@given(NAMES)
def test_what_stands_nowhere_in_the_table_is_never_offered(name):
    listed = {each for library in gpu_libraries().values() for names in library.listed.values() for each in names}
    stems = {part.strip("_") for part in public_parts(name)} & {each.strip("_") for each in listed}
    for library in gpu_libraries().values():
        offer = library.offer(name)
        assert offer is None or library.whole or stems or not offer.standing.startswith("offered")


# Cheaper calls -----------------------------------------------------------------------------------------------------------


def test_the_text_and_the_predicates_of_cheaper_calls_belong_together():
    entries = tomllib.loads(Path(routes_module.__file__).with_name("cheaper_calls.toml").read_text("utf-8"))
    for name, entry in entries.items():
        assert callable(getattr(routes_module, f"_{entry.get('by', name)}"))
        assert entry["advice"] in get_args(Advice)
        assert entry["route"]
        assert entry["why"]


def product(n: int, d: int, m: int) -> ArrayOperation:
    return op("numpy.matmul", f"float32[{n}, {d}]", f"float32[{d}, {m}]", kind="product", result_bytes=4 * n * m)


PRODUCT = product(1500, 300, 1500)
SQUARE, LARGE = "float32[1500, 1500]", "float32[900, 900]"
CHEAPER = {
    "altlas_lib.similarity.top_k": [PRODUCT, op("numpy.negative", SQUARE), op("numpy.argpartition", SQUARE, kind="sort")],
    "altlas_lib.similarity.pairs_above": [PRODUCT, op("numpy.greater_equal", SQUARE)],
    "numpy.argpartition": [
        op("numpy.argsort", "float32[100000]", kind="sort", result_bytes=800_000),
        op("ndarray.__getitem__", "int64[100000]", kind="view", result_bytes=80, time_s=0.0),
    ],
    "whole columns": [op("pandas.DataFrame.apply", "mixed[10000, 4]", kind="unknown")],
    "whole arrays in NumPy": [op("numpy.dot", "float32[3]", "float32[3]", kind="product", n_calls=100_000)],
    "torch.compile": [op("torch.tanh", LARGE, kind="model"), op("torch.Tensor.mul", LARGE, kind="model")],
    "float32": [op("numpy.matmul", "float64[900, 800]", "float64[800, 700]", kind="product")],
}  # fmt: skip


@pytest.mark.parametrize("name", CHEAPER)
def test_a_cheaper_call_is_found_where_its_evidence_is_and_nowhere_else(name):
    routes = found(*CHEAPER[name])
    assert names(routes) == [name]
    cheaper = routes[0]
    assert cheaper.route.standing == "offered"
    assert cheaper.route.gain is None
    assert "not measured" in cheaper.route.why
    assert cheaper.covers > 0.9


@pytest.mark.parametrize(
    "operations",
    [
        [PRODUCT],  # nobody searches the matrix
        [PRODUCT, op("numpy.argmax", "float32[1500, 300]", kind="reduction")],  # something else is searched
        [product(1500, 300, 1000), op("numpy.argmax", "float32[1500, 1000]", kind="reduction")],  # not all with all
        [product(90, 30, 90), op("numpy.argmax", "float32[90, 90]", kind="reduction")],  # small
        [product(1500, 1500, 1500), op("numpy.argmax", SQUARE, kind="reduction")],  # no similarity of rows: any square matrices
        [op("dask.dataframe.Series.apply", "mixed[10000]", kind="unknown")],  # not pandas
        [op("numpy.argsort", "float32[1000]", kind="sort"), op("ndarray.__getitem__", "int64[1000]", result_bytes=4000)],
        [op("numpy.argsort", "float32[1000]", kind="sort")],
        [op("numpy.linalg.inv", "float32[900, 900]", kind="factorisation")],  # the inverse itself is wanted
        [op("numpy.dot", "float32[3]", "float32[3]", kind="product", n_calls=2)],
        [op("numpy.sin", "float64[1000000]")],  # elementwise: what it costs is reading
        [op("torch.sin", "float32[100]", kind="model", n_calls=9000)],  # starts take the time
        [op("torch.Tensor.matmul", LARGE, LARGE, kind="model"), op("torch.sin", LARGE, kind="model", time_s=0.1)],
        [op("numpy.matmul", "float32[900, 800]", "float32[800, 700]", kind="product")],
    ],
)  # fmt: skip
def test_no_cheaper_call_without_its_evidence(operations):
    assert names(found(*operations)) == []


def test_a_matrix_made_in_one_function_and_searched_in_another_is_found_in_both():
    search = op("numpy.greater_equal", SQUARE)
    for here, there in ((PRODUCT, search), (search, PRODUCT)):
        assert names(found(here, elsewhere=(there,))) == ["altlas_lib.similarity.pairs_above"]
    assert names(found(op("numpy.sin", "float32[10]"), elsewhere=(PRODUCT, search))) == []


@pytest.mark.parametrize("measure", ["scipy.spatial.distance.cdist", "sklearn.metrics.pairwise.cosine_similarity"])
def test_pairwise_measures_count_as_products_of_all_with_all(measure):
    rows = "float32[1500, 300]"
    assert "altlas_lib.similarity.top_k" in names(found(op(measure, rows, rows), op("ndarray.argsort", SQUARE, kind="sort")))
    other = op(measure, rows, "float32[900, 300]"), op("ndarray.argsort", SQUARE, kind="sort")  # of another matrix
    assert "altlas_lib.similarity.top_k" not in names(found(*other))


def test_element_loops_count_by_their_number():
    assert names(found(elements=5_000_000)) == ["whole arrays in NumPy"]
    assert names(found(elements=1000)) == []
    assert names(found(elements=5_000_000), "kernel of your own") == ["Numba CUDA", "Warp", "CUDA C++"]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ({"own_by_class": {"regex": 0.8, "interpreter": 0.2}}, "a simpler pattern, or none"),
        ({"own_by_library": {"re": 0.6, "own lines": 0.4}}, "a simpler pattern, or none"),
        ({"own_by_library": {"json": 0.2, "own lines": 0.8}, "own_by_class": {"parsing": 0.7}}, "orjson"),
        ({"own_by_library": {"own lines": 1.0}, "own_by_class": {"parsing": 0.7}}, None),  # of what nobody knows
        ({"own_by_class": {"regex": 0.3, "interpreter": 0.7}}, None),
        ({"own_by_library": {"pandas": 0.9}, "lines": [LineTime(line=1, source="df.iterrows()", n_hits=1, share=0.9)]},
         "whole columns"),
        ({"own_by_library": {"mine": 0.9}, "lines": [LineTime(line=1, source="df.iterrows()", n_hits=1, share=0.9)]}, None),
    ],
)  # fmt: skip
def test_profilers_are_evidence_too(function, name):
    assert names(found(**function)) == ([name] if name else [])


# Many small calls, rows of tables, steps in sequence -----------------------------------------------------------------------


def calls_of(*operations: ArrayOperation, n_calls: int, whole_s: float = 1.0, elements: int = 0, **function) -> list[Found]:
    """Routes of a function that is called so often; the times of `operations` are as given."""
    traced = {"file": "work.py", "line": 1, "n_calls": n_calls, "input_bytes": 0, "output_bytes": 0}
    trace = ArrayTrace(function="f", operations=list(operations), n_element_accesses=elements, **traced)
    total = Quantity.measured([whole_s], "s", "a CPU")
    timed = FunctionTime(name="f", file="work.py", line=1, n_calls=n_calls, own=total, **function)
    profile = WorkloadProfile(workload="work", target="work:f", total=total, functions=[timed], traces=[trace])
    return routes_of(timed, trace, profile)


def first(routes: list[Found]) -> tuple[str, str] | None:
    """Advice and name of the way that comes before any GPU."""
    return next(
        ((each.advice, each.route.name) for each in routes if each.decides == "on this CPU" and each.covers >= 0.5), None
    )


def small_products(n_calls: int, n: int = 3) -> list[ArrayOperation]:
    shape = f"float64[{n}, {n}]"
    return [
        op("numpy.matmul", shape, shape, kind="product", n_calls=n_calls, time_s=0.7, result_bytes=8 * n * n, dtype="float64")
    ]


def test_a_function_of_small_arrays_that_is_called_in_a_loop_is_stacked_before_its_dtype_is_looked_at():
    routes = calls_of(*small_products(50_000), n_calls=50_000)
    assert first(routes) == ("vectorise first", "whole arrays in NumPy")
    assert "float32" not in names(routes), "a call on nine numbers takes as long in float32"
    large = calls_of(*small_products(50, 700), n_calls=50)
    assert first(large) is None
    assert names(large) == ["float32"]
    assert first(calls_of(*small_products(2), n_calls=2)) is None, "two calls are no loop"


def test_a_slow_traced_run_makes_no_share_larger():
    """On a busy machine its seconds are more than those of the quiet run that they are held against."""
    tiny = op("numpy.add", "float64[9]", n_calls=2000, time_s=0.8)
    large = op("numpy.matmul", "float32[900, 900]", "float32[900, 900]", kind="product", n_calls=2000, time_s=3.2)
    assert first(calls_of(tiny, large, n_calls=2000)) is None
    assert first(calls_of(tiny, n_calls=2000)) == ("vectorise first", "whole arrays in NumPy")


@pytest.mark.parametrize(
    ("operation", "n_calls", "advice"),
    [
        (op("sklearn.svm.SVC.predict", "float64[1, 30]", kind="unknown", n_calls=9000), 9000, "batch first"),
        (op("sklearn.preprocessing.StandardScaler.transform", "float32[2, 8]", kind="unknown", n_calls=400), 1, "batch first"),
        (op("torch.nn.Linear.__call__", "float32[1, 9]", kind="model", n_calls=5000), 5000, "batch first"),
        (op("sklearn.svm.SVC.predict", "float64[90000, 30]", kind="unknown", n_calls=20), 20, None),  # there is a batch
        (op("sklearn.svm.SVC.predict", "float64[1, 30]", kind="unknown", n_calls=2), 2, None),  # asked twice
        (op("subprocess.run", kind="unknown", n_calls=90), 1, None),  # no rows
        (op("sklearn.svm.SVC.fit", "float64[9, 30]", "int64[9]", kind="unknown", n_calls=900), 900, None),
    ],
)  # fmt: skip
def test_a_model_that_is_asked_row_by_row_is_asked_once(operation, n_calls, advice):
    found_first = first(calls_of(operation, n_calls=n_calls))
    assert found_first == (advice and (advice, "one call for many rows"))


def test_a_call_that_ends_before_a_gpu_could_answer_has_no_drop_in():
    """Two transfers' starts and some kernels' take longer."""

    def drop_in(n_calls: int) -> list[str | None]:
        fit = op("sklearn.linear_model.Ridge.fit", "float64[12, 3]", "float64[12]", kind="unknown", n_calls=n_calls)
        return [each.advice for each in calls_of(fit, n_calls=n_calls) if each.route.kind == "drop-in library"]

    assert drop_in(20_000) == []
    assert drop_in(400) == [], "a dozen rows are nothing for a GPU, though they take 2.5 ms"
    assert drop_in(20) == ["try the drop-in"]
    large = op("sklearn.linear_model.Ridge.fit", "float64[9000, 3]", "float64[9000]", kind="unknown", n_calls=400)
    assert names(calls_of(large, n_calls=400), "drop-in library") == ["cuml.accel"]
    short = calls_of(n_calls=100_000, own_by_library={"networkx": 0.9})
    assert names(short, "drop-in library") == []
    assert names(calls_of(n_calls=10, own_by_library={"networkx": 0.9}), "drop-in library") == ["nx-cugraph"]
    assert names(calls_of(op("torch.nn.Linear.__call__", kind="unknown", n_calls=20_000), n_calls=1), "drop-in library")


def test_a_function_that_reads_a_table_value_by_value_is_vectorised():
    """What DataFrame.apply(axis=1) and df.at call for: a value read from a table takes microseconds."""
    by_library = {"pandas": 0.85, "builtins": 0.15}
    assert first(calls_of(n_calls=70_000, elements=280_000, own_by_library=by_library)) == (
        "vectorise first", "whole columns",
    )  # fmt: skip
    few = calls_of(n_calls=3, elements=12, own_by_library=by_library)  # sums of large columns, each read once
    assert first(few) is None
    assert names(few, "drop-in library") == ["cudf.pandas"]
    assert first(calls_of(n_calls=3, elements=280_000, own_by_library={"mine": 1.0})) is None


@pytest.mark.parametrize(
    ("name", "is_by_row"),
    [
        ("polars.DataFrame.map_rows", True),
        ("polars.Series.map_elements", True),
        ("pandas.Series.apply", True),
        ("polars.DataFrame.group_by", False),
        ("polars.LazyFrame.collect", False),
        ("mine.Table.map_elements", False),
    ],
)  # fmt: skip
def test_python_for_each_row_of_a_table_is_vectorised_in_polars_too(name, is_by_row):
    routes = found(op(name, "float64[90000]", kind="unknown"))
    assert first(routes) == (("vectorise first", "whole columns") if is_by_row else None)


@pytest.mark.parametrize("name", ["scipy.optimize.least_squares", "scipy.optimize.brentq", "scipy.integrate.odeint"])
def test_steps_that_follow_from_each_other_are_left_where_they_are_small(name):
    small = op(name, "float64[4]", kind="unknown")
    assert first(found(small))[0] == "leave it"
    assert first(found(op(name, "float64[4]", "float64[3000000]", kind="unknown"))) is None, "a step may be parallel itself"


@pytest.mark.parametrize("name", ["scipy.optimize.linprog", "scipy.optimize.milp", "scipy.integrate.simpson", "mine.minimize"])
def test_other_solvers_are_not_called_sequential(name):
    assert first(found(op(name, "float64[4]", kind="unknown"))) is None


def test_a_sparse_lu_is_left_for_cupy_factorises_on_the_cpu_too():
    routes = found(op("scipy.sparse.linalg.spilu", "float64[9000, 9000]", kind="unknown"))
    assert first(routes)[0] == "leave it"
    assert "conjugate gradients" in routes[0].route.why
    cupyx = gpu_libraries()["cupyx.scipy"]
    for name in ("splu", "spilu", "factorized"):
        assert "on the CPU" in cupyx.offer(f"scipy.sparse.linalg.{name}").condition
    for name in ("spsolve", "gmres"):
        assert first(found(op(f"scipy.sparse.linalg.{name}", "float64[9000, 9000]", kind="unknown"))) is None
        assert not cupyx.offer(f"scipy.sparse.linalg.{name}").condition


@pytest.mark.parametrize(
    ("name", "standing"),
    [
        ("PIL.PngImagePlugin.PngImageFile.load", "offered on conditions"),
        ("PIL.JpegImagePlugin.JpegImageFile.resize", "offered on conditions"),
        ("PIL.WebPImagePlugin.WebPImageFile.convert", "offered on conditions"),
        ("PIL.Image.Image.transpose", "offered on conditions"),
        ("PIL.JpegImagePlugin.JpegImageFile.getexif", "absent"),
        ("PIL.GifImagePlugin.GifImageFile.convert", "unknown"),  # no decoder of DALI's
        ("PIL.Image.Image.quantize", "absent"),
    ],
)  # fmt: skip
def test_an_image_is_decoded_when_its_pixels_are_first_asked_for(name, standing):
    assert gpu_libraries()["NVIDIA DALI"].offer(name).standing == standing


def test_the_trace_of_a_real_program_gives_the_evidence(tmp_path, monkeypatch):
    source = """
        import numpy as np

        def search():
            a = np.random.default_rng(0).random((1200, 64), dtype=np.float32)
            return np.argpartition(-(a @ a.T), 10)

        def best():
            return np.argsort(np.random.default_rng(0).random(200_000))[:10]
    """
    (tmp_path / "searching.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("searching")
    for target, expected in ((module.search, "altlas_lib.similarity.top_k"), (module.best, "numpy.argpartition")):
        profile = profiling.profile(target, n_repeats=1, n_line_functions=0)
        function = next(each for each in profile.functions if each.name == target.__name__)
        trace = next(each for each in profile.traces if each.function == target.__name__)
        assert routes_of(function, trace, profile)[0].route.name == expected


# Libraries ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library", "standing"),
    [
        ("sklearn.cluster.KMeans.fit", "cuml.accel", "offered on conditions"),
        ("sklearn.decomposition.PCA.fit_transform", "cuml.accel", "offered on conditions"),
        ("sklearn.ensemble.RandomForestClassifier.fit", "cuml.accel", "offered on conditions"),
        ("sklearn.linear_model.SGDClassifier.fit", "cuml.accel", "absent"),
        ("pandas.api.typing.DataFrameGroupBy.sum", "cudf.pandas", "offered"),
        ("networkx.pagerank", "nx-cugraph", "offered on conditions"),
        ("networkx.girvan_newman", "nx-cugraph", "absent"),
        ("scipy.signal.stft", "cupyx.scipy", "offered"),
        ("scipy.optimize.minimize", "cupyx.scipy", "absent"),
        ("polars.LazyFrame.collect", "Polars' GPU engine", "offered on conditions"),
        ("keras.Model.predict", "TensorFlow on the GPU", "offered"),
    ],
)
def test_a_drop_in_library_is_found_by_the_trace(name, library, standing):
    routes = found(op(name, kind="unknown"))
    drop_in = route(routes, library)
    assert names(routes, "drop-in library") == [library]
    assert drop_in.standing == standing
    assert gpu_libraries()[library].version in drop_in.why
    assert gpu_libraries()[library].licence in drop_in.why
    assert "GB to download" in drop_in.why
    advised = [each.advice for each in routes if each.route == drop_in]
    assert advised == [None if standing == "absent" else "try the drop-in"]


def test_what_a_library_lacks_makes_its_offer_conditional_and_is_named():
    routes = found(op("pandas.DataFrame.sum"), op("pandas.DataFrame.to_latex"))
    cudf = route(routes, "cudf.pandas")
    assert cudf.standing == "offered on conditions"
    assert "DataFrame.to_latex" in cudf.why
    assert routes[0].covers == pytest.approx(0.5)


def test_without_a_trace_libraries_say_what_is_called():
    drop_in = route(found(own_by_library={"networkx": 0.8, "own lines": 0.2}), "nx-cugraph")
    assert drop_in.standing == "offered on conditions"
    assert "for networkx (80% of its own time); networkx as far as it calls what the library has" in drop_in.why


def test_a_share_too_small_for_a_line_gives_no_route():
    assert found(own_by_library={"networkx": LEAST_SHARE / 2, "own lines": 0.95}) == []
    assert found(own_by_library={"jinja2": 1.0}) == []


COMPILED = """
import numba

@numba.njit
def smoothed(x, out):
    level = x[0]
    for i in range(len(x)):
        level += 0.1 * (x[i] - level)
        out[i] = level

@numba.njit
def distances(x, out):
    for i in range(len(x)):
        for j in range(len(x)):
            out[i, j] = abs(x[i] - x[j])
"""


@pytest.mark.parametrize(
    ("name", "advice", "standing"),
    [
        ("numba:smoothed", "leave it", "absent"),
        ("numba:distances", "write a kernel", "offered on conditions"),
        ("numba:elsewhere", None, "unknown"),  # no source, no kernel, and no word against one
    ],
)
def test_a_compiled_loop_could_be_a_kernel_if_its_steps_are_independent(name, advice, standing, tmp_path, monkeypatch):
    (tmp_path / "work.py").write_text(COMPILED)
    monkeypatch.syspath_prepend(str(tmp_path))
    routes = found(op(name, kind="unknown"))
    assert names(routes, "kernel of your own") == ["Numba CUDA", "Warp", "CUDA C++"]
    numba_cuda = route(routes, "Numba CUDA")
    assert numba_cuda.standing == standing
    assert numba_cuda.why.count("depend on each other") == 1
    assert {each.advice for each in routes} - {None} == ({advice} if advice else set())
    assert first(routes) == (("leave it", "this CPU") if advice == "leave it" else None)


def test_an_old_gpu_has_no_library_that_needs_a_newer_one():
    old = find_gpu("T4").model_copy(update={"name": "P100", "compute_capability": "6.0"})
    timed = FunctionTime(name="f", file="work.py", line=1, own=TIME, own_by_library={"networkx": 0.8})
    profile = WorkloadProfile(workload="work", target="work:f", total=TIME, functions=[timed])
    (absent,) = routes_of(timed, None, profile, gpu=old)
    (offered,) = routes_of(timed, None, profile, gpu=find_gpu("T4"))
    assert (absent.route.standing, absent.advice) == ("absent", None)
    assert "P100" in absent.route.why
    assert (offered.route.standing, offered.advice) == ("offered on conditions", "try the drop-in")


# Alternatives that were measured ------------------------------------------------------------------------------------------


def test_only_a_measured_alternative_that_is_faster_and_gives_the_same_answer_is_advised():
    def alternative(name: str, gain: float, same_answer: bool | None) -> SimpleNamespace:
        return SimpleNamespace(name=name, gain=Quantity.measured([gain], "x", "a CPU"), same_answer=same_answer)

    given_ = [
        alternative("other", 90, False), alternative("good", 2, True), alternative("best", 3, True),
        alternative("slow", 0.5, True), alternative("unseen", 50, None),
    ]  # fmt: skip
    timed = FunctionTime(name="f", file="work.py", line=1, own=TIME, own_by_class={"regex": 1.0})
    profile = WorkloadProfile(workload="work", target="work:f", total=TIME, functions=[timed])
    routes = routes_of(timed, None, profile.model_copy(update={"alternatives": given_}))
    assert [each.route.name for each in routes][:3] == ["best", "good", "slow"]
    assert names(routes)[-1] == "a simpler pattern, or none", "what is measured comes before what is offered"
    assert {each.route.name for each in routes if each.advice} == {"best", "good", "a simpler pattern, or none"}
    assert {each.route.standing for each in routes[:-1]} == {"measured"}
    assert [route(routes, name).same_answer for name in ("other", "good", "unseen")] == [False, True, None]


# Hostile input -----------------------------------------------------------------------------------------------------------

OPERANDS = st.one_of(
    st.text(max_size=30),
    st.builds(
        lambda dtype, shape: f"{dtype}{shape}",
        st.sampled_from(["float64", "bool", "mixed", "datetime64[ns]", "object", "float٣", "f" * 40]),
        st.lists(st.integers(0, 10**12), max_size=4),
    ),
)
LARGE = st.floats(0, 1e300)
OPERATIONS = st.builds(
    ArrayOperation,
    name=st.one_of(NAMES, st.sampled_from(["numpy.matmul", "numpy.argsort", "ndarray.__getitem__", "numpy.linalg.svd"])),
    kind=st.sampled_from(["product", "elementwise", "sort", "factorisation", "view", "unknown", "model", "reduction"]),
    operands=st.lists(OPERANDS, max_size=4),
    dtype=st.sampled_from(["float64", "", "ß"]),
    n_calls=st.integers(1, 10**9),
    time_s=LARGE,
    working_set_bytes=LARGE,
)  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(OPERATIONS, max_size=12),
    st.one_of(st.none(), LARGE),
    st.integers(0, 10**15),
    st.dictionaries(st.one_of(st.text(max_size=8), st.sampled_from(["pandas", "re", "json"])), st.floats(0, 1), max_size=4),
    st.lists(st.text(max_size=60), max_size=4),
)  # fmt: skip
def test_nothing_that_was_seen_can_break_it(operations, total, elements, libraries, lines):
    trace = ArrayTrace(
        function="f", file="w.py", line=1, n_calls=1, input_bytes=0, output_bytes=0,
        operations=operations, n_element_accesses=elements,
    )  # fmt: skip
    timed = FunctionTime(
        name="f", file="w.py", line=1, own_by_library=libraries, own=TIME,
        lines=[LineTime(line=i, source=source, n_hits=1, share=0.5) for i, source in enumerate(lines)],
    )  # fmt: skip
    whole = None if total is None else Quantity.measured([total], "s", "a CPU")
    profile = WorkloadProfile(workload="w", target="w:f", total=whole, functions=[timed], traces=[trace])
    for seen in (trace, None):
        routes = routes_of(timed, seen, profile)
        assert routes == routes_of(timed, seen, profile)
        order = [KINDS.index(each.route.kind) for each in routes]
        assert order == sorted(order)
        for each in routes:
            assert 0 <= each.covers <= 1
            assert (each.advice is not None) == each.route.standing.startswith("offered")
            assert Route.model_validate_json(each.route.model_dump_json()) == each.route


@pytest.mark.timeout(60)  # takes a second; a search that goes back and forth would take hours
def test_long_names_and_thousands_of_operations_do_not_hang():
    long = ["f[" + "1" * 50_000, "f[" + "1, " * 20_000, "[" * 50_000, "f" * 50_000]
    operations = [op(f"numpy.{name}_{i}", f"float64[{i}, 3]") for i in range(2500) for name in ("matmul", "sort")]
    (route,) = found(*operations, op("a." * 3_000 + "b").model_copy(update={"operands": long}))
    assert (route.route.name, route.route.standing) == ("CuPy", "absent")  # numpy.sort_7
