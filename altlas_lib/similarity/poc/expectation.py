"""What to expect before anything is ported: the time that the arithmetic alone takes, on this CPU and on a named GPU."""

from collections.abc import Iterable

from ...devices import GpuSpec
from ...results import Ceilings, Expectation, Quantity

# Shares of a data sheet's peak that programs reach, worst and best: cuBLAS half-precision products of this shape, streams
# through the memory, copies from pageable and from pinned host memory. A T4 throttles to the low end.
_PRODUCT_SHARE = 0.3, 0.8
_MEMORY_SHARE = 0.5, 0.9
_PCIE_SHARE = 0.3, 0.85
_PCIE_GB_PER_S = {3: 15.75, 4: 31.5, 5: 63.0}  # 16 lanes, one direction
_LAUNCHES_S = 1e-3, 1e-4  # kernels to start, memory to allocate, before the first product and after the last


def expected_times(sizes: Iterable[int], d: int, k: int, gpu: GpuSpec, ceilings: Ceilings | None = None) -> list[Expectation]:
    """For each number of texts a band of seconds for all their `k` nearest, by arithmetic; nothing is run.

    - On this CPU, if its `ceilings` are known: n² d operations, for a tile serves its rows and its columns, at the measured
      float32 rate. int8 products can go below it.
    - On `gpu`, for the engine of this package: 2 n² d operations at the tensor cores' rate, 4 n² bytes of half-precision
      products written and read, the vectors in and the neighbours out; the sum of these where nothing overlaps, the longest
      where all does.

    Args:
        d: dimensions of a vector, float32.
    """
    expectations = []
    for n in sizes:
        if ceilings is not None:
            rate = ceilings.cpu_matmul_float32
            seconds = [n**2 * d / (rate_of_run * 1e9) for rate_of_run in (rate.high, rate.low)]
            if seconds[0] < seconds[1]:
                bound_by = "float32 products, half the matrix, at the rate that chapter 00 measured"
                time = Quantity.projected(*seconds, "s", rate.device, bound_by)
                expectations.append(Expectation(n_texts=n, on_gpu=False, time=time))
        steps = {
            "products": [2 * n**2 * d / (gpu.float16_tensor_tflops * 1e12 * share) for share in _PRODUCT_SHARE],
            "memory": [4 * n**2 / (gpu.memory_bandwidth_gb_per_s * 1e9 * share) for share in _MEMORY_SHARE],
            "transfers": [(4 * n * d + 12 * n * k) / (_PCIE_GB_PER_S[gpu.pcie_generation] * 1e9 * s) for s in _PCIE_SHARE],
            "launches": list(_LAUNCHES_S),
        }
        longest = max(steps, key=lambda step: steps[step][0])
        slow, fast = sum(step[0] for step in steps.values()), max(step[1] for step in steps.values())
        time = Quantity.projected(fast, slow, "s", gpu.name, longest)
        expectations.append(Expectation(n_texts=n, on_gpu=True, time=time))
    return expectations
