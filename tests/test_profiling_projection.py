"""The projection against closed formulas and laws that hold for every GPU, the advice against what is known of workloads."""

import functools
import itertools
import json
import math
import re
import timeit
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from altlas_lib import profiling
from altlas_lib.devices import find_gpu, load_catalogue
from altlas_lib.profiling.project.advice import rank_candidates
from altlas_lib.profiling.project.gpu import OperationClass, Rates, gpu_rates, n_items, operation_class
from altlas_lib.profiling.project.projection import middle, operation_seconds, project, split, total, transfer_seconds
from altlas_lib.profiling.project.residuals import Residuals, learn
from altlas_lib.results import (
    ArrayOperation,
    ArrayTrace,
    Candidate,
    Ceilings,
    DataSource,
    Expectation,
    FunctionTime,
    Provenance,
    Quantity,
    SimilarityResult,
    Timing,
    WorkloadProfile,
)
from benchmarks import cpu_rates

CPU = "a CPU"
T4 = find_gpu("T4")
GPUS = st.sampled_from(load_catalogue())


def operation(
    name="numpy.add",
    kind="elementwise",
    operands=(),
    dtype="float32",
    n_calls=1,
    time_s=1e-3,
    flops=0.0,
    moved_bytes=0.0,
    **more,
) -> ArrayOperation:
    more.setdefault("working_set_bytes", moved_bytes / n_calls)
    return ArrayOperation(
        name=name,
        kind=kind,
        operands=list(operands),
        dtype=dtype,
        n_calls=n_calls,
        time_s=time_s,
        flops=flops,
        moved_bytes=moved_bytes,
        **more,
    )


def product(m, k, n, time_s=1e-3, n_calls=1, dtype="float32") -> ArrayOperation:
    size = 4 if dtype == "float32" else 8
    return operation(
        *("numpy.matmul", "product", [f"{dtype}[{m}, {k}]", f"{dtype}[{k}, {n}]"], dtype, n_calls, time_s),
        2 * m * k * n * n_calls,
        size * (m * k + k * n + m * n) * n_calls,
    )


def workload(
    operations=(), total_s=1.0, classes=None, *, share=1.0, traced=True, n_calls=1, name="app", **of_trace
) -> WorkloadProfile:
    """A workload of one function, sampled, and traced unless told otherwise."""
    of_trace = {"input_bytes": 0, "output_bytes": 0, **of_trace}
    function = FunctionTime(
        name="f",
        file="app.py",
        line=1,
        n_calls=n_calls,
        sampled_own_share=share,
        sampled_share=share,
        own_by_class=classes or {},
    )
    trace = ArrayTrace(function="f", file="app.py", line=1, n_calls=n_calls, operations=list(operations), **of_trace)
    return WorkloadProfile(
        workload=name,
        target="app:f",
        total=Quantity.measured([total_s, 1.02 * total_s, 1.05 * total_s], "s", CPU),
        functions=[function],
        n_samples=400,
        traces=[trace] if traced else [],
    )


def projected(profile: WorkloadProfile, gpu=T4, **options):
    return project(profile.functions[0], profile, profile.traces[0], gpu_rates(gpu), **options)


def judged(profile: WorkloadProfile, gpu="T4", **options) -> Candidate:
    (candidate,) = rank_candidates([profile], gpu=gpu, **options)
    return candidate


# The model ----------------------------------------------------------------------------------------------------------------

SIMPLE = Rates(
    device="a device",
    basis="data sheet",
    work_per_s={OperationClass("product", "float32"): ((1e3, (1e9, 4e9)), (1e5, (1e11, 4e11)))},
    bytes_per_s={"stream": ((1.0, (1e9, 2e9)),)},
    start_s={"any": (1e-6, 3e-6)},
    to_device=(1e9, 5e9),
    to_host=(2e9, 4e9),
)


def test_an_operation_by_hand():
    """10 calls of 1e3 flops at 1 to 4 GFLOP/s, 1e4 bytes at 1 to 2 GB/s: the fast end hides the flops behind them."""
    seconds = operation_seconds(
        operation("numpy.matmul", "product", n_calls=10, flops=1e4, moved_bytes=1e5, n_kernels=2), SIMPLE
    )
    assert seconds == {
        "compute": (0.0, pytest.approx(1e-5)),
        "memory": (pytest.approx(5e-5), pytest.approx(1e-4)),
        "launches": (pytest.approx(20e-6), pytest.approx(60e-6)),
    }


def test_the_fast_end_hides_bytes_behind_flops():
    seconds = operation_seconds(operation("numpy.matmul", "product", flops=4e6, moved_bytes=1e4), SIMPLE)
    assert seconds["memory"] == (0.0, pytest.approx(1e-5))
    assert seconds["compute"] == (pytest.approx(4e6 / 4e11), pytest.approx(4e6 / 1e11))


def test_rates_between_two_sizes_are_interpolated_on_logarithmic_axes():
    of = OperationClass("product", "float32")
    assert SIMPLE.work_rate(of, 1e4) == (pytest.approx(1e10), pytest.approx(4e10))
    assert SIMPLE.work_rate(of, 1) == (pytest.approx(1e9), pytest.approx(4e9))
    assert SIMPLE.work_rate(of, 1e9) == (pytest.approx(1e11), pytest.approx(4e11))
    assert SIMPLE.work_rate(OperationClass("copy", "float32"), 1) == (math.inf, math.inf)


def test_transfers_by_hand():
    """1 GB in at 1 to 5 GB/s and 1 GB out at 2 to 4 GB/s, in two calls."""
    trace = workload(input_bytes=1e9, output_bytes=1e9, n_calls=2).traces[0]
    assert transfer_seconds(trace, SIMPLE) == (pytest.approx(0.45, rel=1e-3), pytest.approx(1.5, rel=1e-3))
    assert transfer_seconds(workload(n_calls=2).traces[0], SIMPLE) == (0, 0)
    as_one = workload(input_bytes=1e9, n_calls=10**6).traces[0]
    assert transfer_seconds(as_one, SIMPLE, batch=10**6) == (pytest.approx(0.2, rel=1e-3), pytest.approx(1, rel=1e-3))
    resident = workload(resident_bytes=1e12).traces[0]
    assert transfer_seconds(resident, SIMPLE) == (0, 0)


def test_a_large_product_on_a_t4_is_what_its_data_sheet_says():
    n = 8192
    seconds = operation_seconds(product(n, n, n), gpu_rates(T4))
    assert total(seconds.values())[0] == pytest.approx(2 * n**3 / (0.9 * 8.1e12), rel=0.01)
    assert seconds["compute"][1] == pytest.approx(2 * n**3 / (0.5 * 8.1e12))
    float64 = operation_seconds(product(n, n, n, dtype="float64"), gpu_rates(T4))
    assert float64["compute"][1] == pytest.approx(32 * seconds["compute"][1])  # 1/32 on Turing, 1/2 on the A100 and the H100
    sines = [operation("numpy.sin", dtype=dtype, flops=1e12) for dtype in ("float32", "float64")]
    on_t4 = [operation_seconds(each, gpu_rates(T4))["compute"][1] for each in sines]
    assert on_t4[1] == pytest.approx(32 * on_t4[0])
    a100 = gpu_rates(find_gpu("A100 80GB SXM"))
    ratio = operation_seconds(product(n, n, n, dtype="float64"), a100)["compute"][1]
    assert ratio == pytest.approx(2 * operation_seconds(product(n, n, n), a100)["compute"][1])


def test_views_and_unknown_operations_cost_the_gpu_nothing():
    assert operation_seconds(operation(kind="view", moved_bytes=1e9), SIMPLE) == {}
    assert operation_seconds(operation(kind="unknown"), SIMPLE) == {}


@pytest.mark.parametrize(
    ("name", "kind", "operands", "dtype", "expected"),
    [
        ("numpy.matmul", "product", [], "complex64", ("product", "float32")),
        ("numpy.matmul", "product", [], "int64", ("product", "integer")),
        ("numpy.matmul", "product", [], "float16", ("product", "float16")),
        ("numpy.matmul", "product", [], "bfloat16", ("product", "float16")),
        ("ndarray.argsort", "sort", [], "int64", ("argsort", "float64")),
        ("numpy.argpartition", "sort", [], "int32", ("partition", "float32")),
        ("numpy.linalg.svd", "factorisation", [], "float64", ("spectral", "float64")),
        ("numpy.linalg.solve", "factorisation", [], "float64", ("factorisation", "float64")),
        ("numpy.cumsum", "reduction", [], "float64", ("cumulative", "float64")),
        ("numpy.where", "elementwise", [], "float32", ("where", "float32")),
        ("numpy.exp", "elementwise", [], "float32", ("transcendental", "float32")),
        ("numpy.remainder", "elementwise", [], "float32", ("scalar loop", "float32")),
        ("scipy.special.erf", "elementwise", [], "float64", ("special function", "float64")),
        ("scipy.spatial.distance.cdist", "elementwise", [], "float64", ("distances", "float64")),
        ("scipy.ndimage.gaussian_filter", "elementwise", [], "float64", ("filter", "float64")),
        ("Generator.standard_normal", "elementwise", [], "float64", ("random", "float64")),
        ("numpy.median", "sort", [], "float64", ("quantile", "float64")),
        ("numpy.searchsorted", "gather", [], "float64", ("search", "float64")),
        ("numpy.ascontiguousarray", "copy", [], "float32", ("strided copy", "float32")),
        ("ndarray.__getitem__", "gather", ["float32[100, 64]", "int64[10]"], "float32", ("row gather", "float32")),
        ("ndarray.__getitem__", "gather", ["float32[50, 128]", "int64[10]"], "float32", ("gather", "float32")),
        ("ndarray.__getitem__", "gather", ["float32[1000]", "int64[10]"], "float32", ("gather", "float32")),
        ("ndarray.__getitem__", "gather", ["float32[1000]", "bool[1000]"], "float32", ("mask", "float32")),
        ("ndarray.__getitem__", "gather", ["various"], "float32", ("gather", "float32")),
        ("nobody.knows", "elementwise", ["<strange>"], "category", ("elementwise", "float32")),
    ],
)
def test_classes_of_operations(name, kind, operands, dtype, expected):
    working_set_bytes = 4 * 100 * 64 + 8 * 10 + 4 * 10 * 64  # of the first gather
    one = operation(name, kind, operands, dtype, working_set_bytes=working_set_bytes)
    assert operation_class(one) == OperationClass(*expected)


def test_short_rows_are_gathered_as_elements():
    short = operation(
        kind="gather", operands=["float32[100, 8]", "int64[10]"], working_set_bytes=4 * 100 * 8 + 8 * 10 + 4 * 10 * 8
    )
    assert operation_class(short).name == "gather"
    long = operation(kind="gather", operands=["float32[100, 16]", "int64[10]"], working_set_bytes=4 * 1600 + 8 * 10 + 4 * 160)
    assert operation_class(long).name == "row gather"


def test_items_of_a_stack():
    assert n_items(operation("numpy.fft.fft", "fft", ["complex128[7, 3, 1024]"])) == 21
    assert n_items(operation("numpy.matmul", "product", ["float32[7, 3, 4, 5]", "float32[5, 6]"])) == 21
    assert n_items(product(4, 5, 6)) == 1
    assert n_items(operation(operands=["float32[7, 3, 4, 5]"])) == 1
    assert n_items(operation("numpy.matmul", "product", ["float32[0, 4, 5]"])) == 1


OPERATIONS = st.builds(
    lambda kind, dtype, flops, moved, n_calls, n_kernels: operation(
        "numpy.something", kind, [], dtype, n_calls, 1e-3, flops, moved, n_kernels=n_kernels
    ),
    st.sampled_from(["product", "elementwise", "reduction", "sort", "gather", "fft", "factorisation", "copy", "model"]),
    st.sampled_from(["float16", "float32", "float64", "int64", "complex128", "bool"]),
    st.floats(0, 1e15),
    st.floats(0, 1e12),
    st.integers(1, 10_000),
    st.integers(0, 9),
)


@given(OPERATIONS, GPUS, st.floats(1, 100), st.sampled_from(["flops", "moved_bytes", "n_kernels"]))
def test_more_of_anything_is_never_faster(one, gpu, factor, what):
    more = one.model_copy(update={what: getattr(one, what) * math.ceil(factor)})
    for less_s, more_s in zip(*(total(operation_seconds(o, gpu_rates(gpu)).values()) for o in (one, more)), strict=True):
        assert more_s >= less_s * (1 - 1e-9)


@given(
    OPERATIONS,
    GPUS,
    st.floats(1, 10),
    st.sampled_from(["float32_tflops", "float16_tensor_tflops", "memory_bandwidth_gb_per_s"]),
)
def test_a_faster_gpu_is_never_slower(one, gpu, factor, what):
    faster = gpu.model_copy(update={what: factor * getattr(gpu, what)})
    for s, faster_s in zip(*(total(operation_seconds(one, gpu_rates(g)).values()) for g in (gpu, faster)), strict=True):
        assert faster_s <= s * (1 + 1e-9)


@given(
    st.lists(OPERATIONS, max_size=5),
    GPUS,
    st.floats(1e-6, 1e3),
    st.floats(0.1, 1),
    st.dictionaries(st.sampled_from(["interpreter", "regex", "arrays", "other native"]), st.floats(0, 0.25)),
    st.tuples(st.floats(0, 1e12), st.floats(0, 1e12)),
    st.none() | st.tuples(st.floats(0.1, 10), st.floats(0.05, 1), st.floats(1, 20)),
)
def test_laws_of_every_projection(operations, gpu, total_s, share, classes, moved_bytes, correction):
    profile = workload(operations, total_s, classes, share=share, input_bytes=moved_bytes[0], output_bytes=moved_bytes[1])
    found = projected(profile, gpu, correction=correction)
    assert found.on_gpu.low < found.on_gpu.high
    assert found.on_gpu_resident.low <= found.on_gpu.low
    assert found.on_gpu_resident.high <= found.on_gpu.high
    assert found.now.value == pytest.approx(share * total_s)
    assert 0 <= found.coverage <= 1
    candidate = judged(profile, gpu)
    assert 0 < candidate.gain.low < candidate.gain.high
    if candidate.largest_gain is not None:
        assert candidate.workload_gain.high <= candidate.largest_gain * (1 + 1e-9)
    WorkloadProfile.model_validate_json(profile.model_dump_json())
    Candidate.model_validate_json(candidate.model_dump_json())


def test_own_time_is_split_into_operations_python_and_what_is_unseen():
    profile = workload(
        [operation(time_s=0.3), operation(kind="unknown", time_s=0.1)], 1.0, {"interpreter": 0.4, "other native": 0.6}
    )
    assert split(profile.functions[0], profile.traces[0], 1.0) == pytest.approx((0.3, 0.4, 0.3))
    assert projected(profile).coverage == pytest.approx(0.7)
    with_loop = workload([], 1.0, {"interpreter": 0.4, "arrays": 0.6}, n_element_accesses=10**6)
    assert split(with_loop.functions[0], with_loop.traces[0], 1.0) == pytest.approx((0, 0.5, 0.5))
    without_samples = workload([operation(time_s=0.3), operation(kind="unknown", time_s=0.1)])
    by_library = {"own lines": 0.5, "re": 0.25, "keras": 0.25}  # what a library without a trace does is not known to be Python
    seen_by_cprofile = without_samples.functions[0].model_copy(update={"own_by_library": by_library})
    assert split(seen_by_cprofile, without_samples.traces[0], 1.0) == pytest.approx((0.3, 0.45, 0.25))
    slower_under_the_tracer = workload([operation(time_s=3), operation(kind="unknown", time_s=1)])
    assert split(slower_under_the_tracer.functions[0], slower_under_the_tracer.traces[0], 1.0) == pytest.approx((0.75, 0, 0.25))
    inside_of_libraries = workload([operation(time_s=0.9, n_calls=200_000)], 1.0, {"interpreter": 0.5, "arrays": 0.5})
    assert split(inside_of_libraries.functions[0], inside_of_libraries.traces[0], 1.0) == pytest.approx((0.9, 0.1, 0))
    slower_when_traced = workload([operation(time_s=0.9)], 1.0, {"interpreter": 0.5, "arrays": 0.5})
    assert split(slower_when_traced.functions[0], slower_when_traced.traces[0], 1.0) == pytest.approx((0.5, 0.5, 0), abs=1e-4)
    faster_when_traced = workload([operation(time_s=0.7)], 1.0, {"arrays": 0.9, "other native": 0.1})
    assert split(faster_when_traced.functions[0], faster_when_traced.traces[0], 1.0) == pytest.approx((0.9, 0, 0.1))
    hardly_seen = workload([operation(time_s=0.2)], 1.0, {"arrays": 1.0})
    assert split(hardly_seen.functions[0], hardly_seen.traces[0], 1.0) == pytest.approx((0.3, 0, 0.7))


def test_what_is_unseen_stays_in_the_slow_end_and_shrinks_to_a_tenth_in_the_fast_one():
    profile = workload([operation(time_s=0.5, flops=1, moved_bytes=1)], 1.0, {"other native": 1.0})
    found = projected(profile)
    assert found.on_gpu.high == pytest.approx(0.5, rel=0.01)
    assert found.on_gpu.low == pytest.approx(0.05, rel=0.01)
    assert found.bound_by == "unseen"


def test_a_busy_machine_invents_no_gain():
    for profile in (cosine(), workload([], 1.0, {"interpreter": 1.0})):
        busy = Quantity.measured([profile.total.low, 20 * profile.total.low, 30 * profile.total.low], "s", CPU)
        contended = profile.model_copy(update={"total": busy})
        assert judged(contended) == judged(profile)
    assert judged(contended).gain.high <= 1


def test_a_single_run_of_python_is_still_a_band():
    profile = workload([], 1.0, {"interpreter": 1.0})
    profile = profile.model_copy(update={"total": Quantity.measured([1.0], "s", CPU)})
    on_gpu = projected(profile).on_gpu
    assert 0.9 < on_gpu.low < on_gpu.high < 1.1


def test_nothing_is_projected_of_what_was_not_traced_or_not_timed():
    profile = workload([operation()], traced=False)
    assert project(profile.functions[0], profile, None, gpu_rates(T4)) is None
    attached_to = workload([operation()]).model_copy(update={"total": None})
    assert projected(attached_to) is None
    assert judged(attached_to).advice == "unknown"


# This CPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@threadpool_limits.wrap(1)
def test_the_micro_kernels_measure_the_classes_that_they_are_listed_under(dtype):
    for name, groups in cpu_rates._working_kernels(dtype).items():
        for kernel in itertools.chain(*groups):
            assert operation_class(kernel.operation()).name == name
            assert kernel.operation().flops > 0
    for name, kernels in cpu_rates._moving_kernels(2**16).items():
        for kernel in kernels:
            assert name in ("stream", operation_class(kernel.operation()).name)
            assert kernel.operation().working_set_bytes > 2**16 / 8


def test_this_cpu_measured_projects_a_product_of_its_own(monkeypatch):
    """No figures of speed: that the rates are bands, and that another product of the machine lies within a factor of 10."""
    for name, quick in {"_MICRO_KERNEL_S": 2e-4, "_N_RUNS": 2, "_WORKING_SETS": (2**16, 2**20)}.items():
        monkeypatch.setattr(cpu_rates, name, quick)
    rates = cpu_rates.measure_cpu_rates(1)
    assert not rates.on_gpu
    for _, (low, high) in itertools.chain(*rates.work_per_s.values(), *rates.bytes_per_s.values()):
        assert 0 < low < high < 1e15
    assert all(0 < low < high < 1e-3 for low, high in rates.start_s.values())
    a = np.random.default_rng(0).standard_normal((300, 300))
    with threadpool_limits(1):
        best_s = min(timeit.repeat(lambda: a @ a, number=5, repeat=5)) / 5
    low, high = total(operation_seconds(product(300, 300, 300, dtype="float64"), rates).values())
    assert low / 10 < best_s < high * 10
    with pytest.raises(ValueError, match="n_threads=0"):
        cpu_rates.measure_cpu_rates(0)


# Rates from measured ceilings --------------------------------------------------------------------------------------------


def ceilings(device: str, gflops: float = 5000) -> Ceilings:
    def measured(value: float, unit: str = "GB/s", on: str = device) -> Quantity:
        return Quantity.measured([0.95 * value, value, 1.05 * value], unit, on)

    return Ceilings(
        cpu_matmul_float32=measured(200, "GFLOP/s", CPU),
        cpu_copy_bandwidth=measured(20, on=CPU),
        gpu_matmul_float32=measured(gflops, "GFLOP/s"),
        gpu_copy_bandwidth=measured(240),
        host_to_device_pageable=measured(4),
        host_to_device_pinned=measured(12),
        device_to_host_pageable=measured(3),
        device_to_host_pinned=measured(13),
    )


def test_ceilings_replace_the_data_sheet_only_where_they_were_measured_on_such_a_gpu():
    on_it = gpu_rates(T4, ceilings("Tesla T4"))
    assert on_it.basis == "measured ceilings"
    assert on_it.work_per_s["product", "float32"][0][1] == (pytest.approx(0.6 * 4750e9), pytest.approx(5250e9))
    assert on_it.to_host == (pytest.approx(0.95 * 3e9), pytest.approx(1.05 * 13e9))
    assert on_it.bytes_per_s["stream"][0][1][1] == pytest.approx(1.05 * 240e9)
    for elsewhere in ("NVIDIA L4", "NVIDIA X9000"):
        assert gpu_rates(T4, ceilings(elsewhere)) == gpu_rates(T4)
    assert gpu_rates(T4).basis == "data sheet"
    without_pinned = ceilings("Tesla T4").model_copy(update={"host_to_device_pageable": Quantity.measured([20], "GB/s", "T4")})
    without_pinned = without_pinned.model_copy(update={"host_to_device_pinned": None})
    assert gpu_rates(T4, without_pinned).to_device == (20e9, 20e9)  # above the data sheet's PCIe


@pytest.mark.parametrize("gpu", load_catalogue(), ids=lambda gpu: gpu.name)
def test_every_gpu_of_the_catalogue_has_sensible_bands(gpu):
    rates = gpu_rates(gpu)
    for curve in (*rates.work_per_s.values(), *rates.bytes_per_s.values()):
        for _, (low, high) in curve:
            assert 0 < low < high
    peak = 1e12 * max(gpu.float32_tflops, gpu.float16_tensor_tflops)
    flops = [band for of, ((_, band),) in rates.work_per_s.items() if of.name not in ("sort", "argsort", "partition")]
    assert max(high for _, high in flops) <= peak
    assert max(high for ((_, (_, high)),) in rates.bytes_per_s.values()) <= 1e9 * gpu.memory_bandwidth_gb_per_s


# Advice --------------------------------------------------------------------------------------------------------------------


def tokeniser() -> WorkloadProfile:
    return workload(total_s=2, classes={"interpreter": 0.7, "regex": 0.28, "other native": 0.02}, traced=False)


def cosine(n=4000, d=384) -> WorkloadProfile:
    """On two cores at 100 GFLOP/s each, the full matrix returned."""
    normalise = operation(
        "numpy.divide", "elementwise", [f"float32[{n}, {d}]"], time_s=1e-3, flops=n * d, moved_bytes=8 * n * d
    )
    multiply = product(n, d, n, 2 * n * n * d / 200e9)
    times = normalise.time_s + multiply.time_s
    return workload([normalise, multiply], 1.02 * times, {"arrays": 1.0}, input_bytes=4 * n * d, output_bytes=4 * n * n)


def multilayer_perceptron(rows: int, sizes=(384, 512, 128, 10), rate=150e9) -> WorkloadProfile:
    operations = []
    for n_in, n_out in itertools.pairwise(sizes):
        operations.append(product(rows, n_in, n_out, 2 * rows * n_in * n_out / rate + 1e-6))
        for name in ("numpy.add", "numpy.maximum"):
            moved_bytes = 8 * rows * n_out
            operands = [f"float32[{rows}, {n_out}]"]
            s = moved_bytes / 30e9 + 1e-6
            operations.append(operation(name, operands=operands, time_s=s, flops=rows * n_out, moved_bytes=moved_bytes))
    total_s = 1.05 * sum(operation.time_s for operation in operations)
    moved = {"input_bytes": 4 * rows * sizes[0], "output_bytes": 4 * rows * sizes[-1]}
    return workload(operations, total_s, {"arrays": 0.95, "interpreter": 0.05}, **moved)


@pytest.mark.parametrize("gpu", ["T4", "L4", "A100 80GB SXM", "H200"])
def test_pure_python_tokenising_is_left(gpu):
    candidate = judged(tokeniser(), gpu)
    assert candidate.advice == "leave it"
    assert "interpreter 70%, regex 28%" in candidate.reason
    assert candidate.projection is None


@pytest.mark.parametrize("name", ["interpreter", "regex", "parsing", "waiting"])
@pytest.mark.parametrize("traced", [True, False])
def test_what_no_gpu_runs_is_left(name, traced):
    candidate = judged(workload([operation(time_s=0.02)], classes={name: 0.95, "arrays": 0.05}, traced=traced), "H200")
    assert candidate.advice == "leave it"
    assert f"{name} 95%" in candidate.reason


def test_the_full_matrix_of_cosines_is_ported_and_bound_by_its_way_back():
    candidate = judged(cosine())
    assert candidate.advice == "port it"
    assert candidate.projection.bound_by == "transfers"
    assert candidate.projection.on_gpu_resident.bound_by == "compute"
    assert "the result's way back" in candidate.reason
    assert 2 < candidate.gain.low < candidate.gain.high < 15  # a trial said about 5


@pytest.mark.parametrize("gpu", ["T4", "L4", "H200"])
def test_a_network_on_few_rows_is_batched_and_on_many_ported(gpu):
    few, many = judged(multilayer_perceptron(64), gpu), judged(multilayer_perceptron(65_536), gpu)
    assert few.advice == "batch first"
    assert "times as many rows in each call" in few.reason
    assert many.advice == "port it"
    assert many.gain.low > 3


def test_a_frameworks_own_set_up_is_nothing_that_a_gpu_takes_over():
    """Keras' predict on 64 rows: 30 ms, of which the kernels of 86 MFLOP take less than 9 on any core."""
    few, many = (
        operation("Sequential.predict", kind="model", operands=[], time_s=s, flops=flops, moved_bytes=1e6)
        for s, flops in ((0.030, 86e6), (1.5, 88e9))
    )
    light = judged(workload([few], 0.031, {"framework": 0.9, "interpreter": 0.1}))
    assert light.advice == "batch first"
    assert "the framework's own set-up" in light.reason
    assert light.gain.high < 1.5
    heavy = judged(workload([many], 1.55, {"framework": 0.95, "interpreter": 0.05}))
    assert heavy.advice == "port it"


def test_the_batch_that_is_named_pays_and_half_of_it_does_not():
    few = judged(multilayer_perceptron(64))
    batch = int(few.reason.split("with about ")[1].split(" times")[0])
    profile = multilayer_perceptron(64)
    assert projected(profile, batch=batch).on_gpu.high * 1.5 <= profile.total.low
    half = projected(profile, batch=batch // 2)
    assert half.on_gpu.high * (3 if half.bound_by == "launches" else 1.5) > profile.total.low
    assert judged(multilayer_perceptron(64 * batch)).advice == "port it"


def test_a_python_loop_over_an_array_is_vectorised_first():
    n = 1_000_000
    loop = workload([], 0.5, {"interpreter": 0.7, "arrays": 0.3}, n_element_accesses=n, input_bytes=8 * n)
    assert judged(loop).advice == "vectorise first"
    assert "1,000,000 steps" in judged(loop).reason
    tiny = operation(time_s=0.2, n_calls=200_000, flops=800_000, moved_bytes=200_000 * 24)
    assert judged(workload([tiny], 0.5, {"interpreter": 0.6, "arrays": 0.4})).advice == "vectorise first"
    few_accesses = workload([], 0.5, {"interpreter": 0.97, "arrays": 0.03}, n_element_accesses=1000)
    assert judged(few_accesses).advice == "leave it"


def test_an_element_wise_pass_is_worth_it_only_where_the_data_stays():
    n = 20_000_000
    scale = operation(time_s=0.02, flops=n, moved_bytes=8 * n, operands=[f"float32[{n}]"])
    candidate = judged(workload([scale], 0.0201, {"arrays": 1.0}, input_bytes=4 * n, output_bytes=4 * n))
    assert candidate.advice == "keep the data on the GPU"
    assert candidate.projection.bound_by == "transfers"


@pytest.mark.parametrize("classes", [{"other native": 1.0}, {"arrays": 0.9, "interpreter": 0.1}, {"framework": 1.0}])
@pytest.mark.parametrize("gpu", ["T4", "H200"])
@pytest.mark.parametrize("seen_s", [0.0, 0.1, 0.2])
def test_low_coverage_is_unknown_and_never_a_no(classes, gpu, seen_s):
    candidate = judged(workload([operation(time_s=seen_s, flops=1, moved_bytes=1)], classes=classes), gpu)
    assert candidate.advice == "unknown"
    assert "%" in candidate.reason


def test_without_a_gpu_nothing_is_projected():
    (candidate,) = rank_candidates([cosine()])
    assert candidate.projection is None is candidate.gain is candidate.workload_gain
    assert candidate.advice == "unknown"
    assert candidate.reason == "100% of 400 samples, 1 call per run"
    with pytest.raises(ValueError, match="not in the catalogue"):
        rank_candidates([cosine()], gpu="T5")


def test_a_band_from_loss_to_gain_holds_no_decision():
    n = 4096
    candidate = judged(workload([product(n, n, n, 0.03)], 0.0301, {"arrays": 1.0}))
    assert candidate.gain.low < 1.5 < candidate.gain.high
    assert candidate.advice == "unknown"
    assert "measure before a port" in candidate.reason
    slower = judged(workload([product(n, n, n, 0.01)], 0.0101, {"arrays": 1.0}))
    assert slower.advice == "leave it"
    assert "bound by compute" in slower.reason


def test_the_largest_projected_gain_of_the_workload_comes_first():
    names = {"tokens": tokeniser(), "cosine": cosine(), "network": multilayer_perceptron(64)}
    profiles = [profile.model_copy(update={"workload": name}) for name, profile in names.items()]
    assert [c.workload for c in rank_candidates(profiles, gpu="T4")] == ["cosine", "network", "tokens"]
    functions = [
        FunctionTime(name=name, file="app.py", line=1, sampled_own_share=share, sampled_share=share)
        for name, share in {"f": 0.3, "g": 0.4, "h": 0.2, "i": 0.1}.items()
    ]
    several = cosine().model_copy(update={"functions": functions})
    assert [c.function for c in rank_candidates([several], gpu="T4")] == ["f", "g"]  # f is the one that a GPU gains from
    assert [c.function for c in rank_candidates([several])] == ["g", "f"]
    assert [c.function for c in rank_candidates([several], per_workload=9)] == ["g", "f", "h", "i"]
    small = cosine().model_copy(
        update={"workload": "small", "functions": [cosine().functions[0].model_copy(update={"sampled_own_share": 0.05})]}
    )
    assert rank_candidates([small], gpu="T4") == []


# Real programs, profiled -----------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
WORDS = "The quick brown fox, it is said, jumps over 13 lazy dogs. " * 2000


def single(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def tokenise(text):
    return [word for word in (word.strip(".,").lower() for word in text.split()) if word.isalpha() and len(word) > 2]


def find_words(text):
    return re.findall(r"(?<=[a-z])\w+\b(?=,|\s)", text)


def parse(text):
    return json.loads(text)


def cosine_similarity(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T.copy()


def forward(x, layers):
    for weights in layers[:-1]:
        x = np.maximum(x @ weights, 0)
    return x @ layers[-1]


def nearest(a, b):
    return np.argmin(cdist(a, b), axis=1)


def sum_of_squares(x):
    total_of_all = 0.0
    for i in range(len(x)):
        if x[i] > 0:
            total_of_all += x[i] * x[i]
    return total_of_all


@pytest.mark.parametrize(
    ("function", "arguments", "advice"),
    [
        (tokenise, (WORDS,), "leave it"),
        (find_words, (WORDS,), "leave it"),
        (parse, (json.dumps([{"id": i, "text": str(i)} for i in range(20_000)]),), "leave it"),
        (cosine_similarity, (single(4000, 384),), "port it"),
        # Which of these depends on how fast this CPU is; `multilayer_perceptron` above has the figures of one.
        (
            forward,
            (single(64, 256), [single(256, 256), single(256, 10)]),
            "batch first|keep the data on the GPU|leave it|unknown",
        ),
        (forward, (single(65_536, 256), [single(256, 256), single(256, 10)]), "port it"),
        (nearest, (RNG.random((1500, 64)), RNG.random((2000, 64))), "port it"),
        (sum_of_squares, (RNG.random(50_000),), "vectorise first"),
    ],
    ids=["tokenise", "regex", "parse", "cosine", "few rows", "many rows", "distances", "loop"],
)
def test_the_advice_on_real_programs(function, arguments, advice):
    for _ in range(3):  # what else runs on the machine may spoil a run, and never makes an advice right
        profile = profiling.profile(functools.partial(function, *arguments), n_repeats=3)
        (candidate,) = profiling.rank_candidates([profile], gpu="T4")
        if candidate.advice in advice.split("|"):
            break
    assert candidate.function == function.__name__
    assert candidate.advice in advice.split("|"), candidate.reason


# What was learned ----------------------------------------------------------------------------------------------------------


def similarity(times_s: dict[int, float], device="Tesla T4", projected_for="T4", minute=0, band=(1.0, 4.0)) -> SimilarityResult:
    provenance = Provenance.now({}).model_copy(
        update={"created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)}
    )
    timings = [
        *(
            Timing(method="slow", on_gpu=True, n_texts=n, time=Quantity.measured([9 * s], "s", device))
            for n, s in times_s.items()
        ),
        *(Timing(method="gpu", on_gpu=True, n_texts=n, time=Quantity.measured([s], "s", device)) for n, s in times_s.items()),
        *(
            Timing(
                method="on the gpu", on_gpu=True, with_transfers=False, n_texts=n, time=Quantity.measured([s / 9], "s", device)
            )
            for n, s in times_s.items()
        ),
        *(Timing(method="cpu", n_texts=n, time=Quantity.measured([s / 5], "s", CPU)) for n, s in times_s.items()),
    ]
    expectations = [
        Expectation(n_texts=n, on_gpu=on_gpu, time=Quantity.projected(*band, "s", projected_for if on_gpu else CPU, "memory"))
        for n in times_s
        for on_gpu in (True, False)
    ]
    return SimilarityResult(
        provenance=provenance,
        finding="found",
        source=DataSource(name="builtin", n_rows=1, sha256="0" * 64),
        embedding="tf-idf",
        n_dimensions=384,
        k=10,
        validations=[],
        timings=timings,
        most_similar=[],
        expectations=expectations,
    )


def test_a_residual_is_measured_over_projected_with_transfers_on_the_same_gpu():
    first, second = learn(similarity({1000: 1.0, 2000: 6.0}))
    assert (first.gpu, first.n_texts, first.ratio) == ("T4", 1000, pytest.approx(0.5))
    assert second.ratio == pytest.approx(3)
    assert learn(similarity({1000: 1.0}, device="NVIDIA L4")) == []
    of_the_cpu = similarity({1000: 1.0}, device="NVIDIA L4", projected_for="L4")
    on_no_gpu = [timing.model_copy(update={"on_gpu": False}) for timing in of_the_cpu.timings]
    assert learn(of_the_cpu.model_copy(update={"timings": on_no_gpu})) == []
    assert learn(similarity({1000: 1.0}, device="NVIDIA X9000", projected_for="NVIDIA X9000")) == []


def test_residuals_survive_a_file_and_correct_the_band(outputs):
    assert Residuals.load().correction("T4") is None
    learned = Residuals().with_those_of(similarity({1000: 1.0, 2000: 4.0, 4000: 6.0}))
    learned.save()
    assert Residuals.load() == learned == learned.with_those_of(similarity({1000: 1.0, 2000: 4.0, 4000: 6.0}))
    assert learned.correction("Tesla T4") == pytest.approx((2.0, 0.5, 3.0))
    assert learned.correction("L4") is None
    assert learned.correction("NVIDIA X9000") is None
    plain, corrected = (judged(cosine(), residuals=residuals) for residuals in (None, learned))
    assert judged(cosine(), "L4", residuals=learned) == judged(cosine(), "L4")
    on_gpu = plain.projection.on_gpu
    stays = sum(plain.projection.by_cause[cause] for cause in ("Python", "unseen"))
    assert corrected.projection.on_gpu.high == pytest.approx(max(2 * on_gpu.high, 3 * middle(on_gpu)), rel=0.1, abs=stays)
    assert corrected.projection.on_gpu.low == pytest.approx(min(2 * on_gpu.low, middle(on_gpu) / 2), rel=0.1, abs=stays)
    assert corrected.projection.by_cause["transfers"] == pytest.approx(2 * plain.projection.by_cause["transfers"])
    assert corrected.projection.by_cause["Python"] == plain.projection.by_cause["Python"]


def test_the_latest_fifty_of_each_gpu_are_kept():
    learned = Residuals().with_those_of(similarity({1000: 8.0}, "NVIDIA L4", "L4"))
    for minute in range(60):
        learned = learned.with_those_of(similarity({1000: 2.0 if minute >= 10 else 200.0}, minute=minute))
    assert len(learned.residuals) == 51
    assert learned.correction("T4") == (1, 1, 1)
    assert learned.correction("L4") == (4, 4, 4)


@pytest.mark.parametrize(
    "content", ["", "[", "[]", '{"residuals": [1]}', "null", '{"residuals": [], "x": 1}', "[" * 100_000, "\xff"]
)
def test_a_damaged_file_is_named_with_what_to_do(outputs, content):
    outputs.mkdir(exist_ok=True)
    (outputs / "residuals.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"residuals\.json cannot be read \(.+\); remove it"):
        Residuals.load()


def test_an_interrupted_save_leaves_the_old_file(outputs, monkeypatch):
    Residuals().with_those_of(similarity({1000: 1.0})).save()
    before = (outputs / "residuals.json").read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Residuals().save()
    assert (outputs / "residuals.json").read_bytes() == before
    assert json.loads(before)["residuals"]
    assert [path.name for path in outputs.iterdir() if path.suffix == ".tmp"] == []
