"""The rates of this CPU that `benchmarks.projection` projects with; no figures of speed."""

import itertools
import math
import timeit

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from altlas_lib.profiling.project.operations import price
from altlas_lib.profiling.record.calls import Array, Call
from benchmarks import cpu_rates
from benchmarks.cpu_rates import CpuRates, OperationClass, described, n_items, operation_class

SIMPLE = CpuRates(
    device="a device",
    work_per_s={OperationClass("product", "float32"): ((1e3, (1e9, 4e9)), (1e5, (1e11, 4e11)))},
    bytes_per_s={"stream": ((1.0, (1e9, 2e9)),)},
    start_s={"any": (1e-6, 3e-6)},
    item_s={"product": (1e-7, 2e-7)},
)


def cost(flops=0.0, moved_bytes=0.0, rate="product"):
    one = Call(name="numpy.matmul", args=(Array("float32", (2, 2)),) * 2, results=(Array("float32", (2, 2)),))
    return price(one).model_copy(update={"flops": flops, "moved_bytes": moved_bytes, "rate": rate})


def test_a_call_by_hand():
    """1e3 flops at 1 to 4 GFLOP/s, 1e4 bytes at 1 to 2 GB/s: the fast end hides the flops behind them."""
    assert SIMPLE.seconds(cost(1e3, 1e4), 1) == (pytest.approx(1e-6 + 5e-6), pytest.approx(3e-6 + 1e-6 + 1e-5))
    assert SIMPLE.seconds(cost(4e6, 1e4), 1) == (pytest.approx(1e-6 + 1e-5), pytest.approx(3e-6 + 4e-5 + 1e-5))
    assert SIMPLE.seconds(cost(), 11) == (pytest.approx(1e-6 + 1e-6), pytest.approx(3e-6 + 2e-6))
    assert SIMPLE.seconds(cost(1e12, 1e4, "copy"), 1) == (pytest.approx(6e-6), pytest.approx(13e-6))  # bound by memory alone


def test_rates_between_two_sizes_are_interpolated_on_logarithmic_axes():
    low, high = SIMPLE.seconds(cost(1e4), 1)
    assert (low, high) == (pytest.approx(1e-6 + 1e4 / 4e10), pytest.approx(3e-6 + 1e4 / 1e10))
    assert math.isfinite(SIMPLE.seconds(cost(1e30), 1)[1])


def test_items_of_a_stack():
    def items(name, *shapes):
        result = {"numpy.matmul": (*shapes[0][:-1], shapes[-1][-1])}.get(name, shapes[0])
        arrays = tuple(Array("complex128", shape) for shape in shapes)
        return n_items(Call(name=name, args=arrays, results=(Array("complex128", result),)))

    assert items("numpy.fft.fft", (7, 3, 1024)) == 21
    assert items("numpy.matmul", (7, 3, 4, 5), (5, 6)) == 21
    assert items("numpy.matmul", (4, 5), (5, 6)) == 1
    assert items("numpy.add", (7, 3, 4, 5)) == 1
    assert items("numpy.matmul", (0, 4, 5), (5, 6)) == 1
    assert items("nobody.knows", (7, 4, 5)) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@threadpool_limits.wrap(1)
def test_the_micro_kernels_measure_the_classes_that_they_are_listed_under(dtype):
    for name, groups in cpu_rates._working_kernels(dtype).items():
        for kernel in itertools.chain(*groups):
            found = price(kernel.described())
            assert operation_class(found).name == name
            assert found.flops > 0
    for name, kernels in cpu_rates._moving_kernels(2**16).items():
        for kernel in kernels:
            found = price(kernel.described())
            assert name in ("stream", operation_class(found).name)
            assert found.working_set_bytes > 2**16 / 8


def test_this_cpu_measured_projects_a_product_of_its_own(monkeypatch):
    """That the rates are bands, and that another product of the machine lies within a factor of 10."""
    for name, quick in {"_MICRO_KERNEL_S": 2e-4, "_N_RUNS": 2, "_WORKING_SETS": (2**16, 2**20)}.items():
        monkeypatch.setattr(cpu_rates, name, quick)
    rates = cpu_rates.measure_cpu_rates(1)
    for _, (low, high) in itertools.chain(*rates.work_per_s.values(), *rates.bytes_per_s.values()):
        assert 0 < low < high < 1e15
    assert all(0 < low < high < 1e-3 for low, high in rates.start_s.values())
    a = np.random.default_rng(0).standard_normal((300, 300))
    with threadpool_limits(1):
        best_s = min(timeit.repeat(lambda: a @ a, number=5, repeat=5)) / 5
    low, high = rates.seconds(price(described("numpy.matmul", (a, a), a)), 1)
    assert low / 10 < best_s < high * 10


@pytest.mark.parametrize("n_threads", [0, -1])
def test_threads_that_are_none(n_threads):
    with pytest.raises(ValueError, match=f"n_threads={n_threads}"):
        cpu_rates.measure_cpu_rates(n_threads)
