"""What to expect before anything is ported: the time that the arithmetic alone takes, on this CPU and on a named GPU."""

from collections.abc import Iterable

from ...devices import GpuSpec
from ...devices.efficiencies import PCIE_BYTES_PER_S, load_efficiencies, sustained_flops
from ...results import Ceilings, Quantity, Timing
from ..gpu.rows import TILE_SIDE

_PCIE_SHARE = 0.5, 0.85  # that copies from pinned memory reach, beside other traffic and alone
_METHOD = "by arithmetic"
_KERNELS_OF_A_TILE, _OTHER_KERNELS = 3, 40
_LAUNCH = 1.6  # factor: the error of the fitted time to start a kernel


def expected_times(sizes: Iterable[int], d: int, k: int, gpu: GpuSpec, ceilings: Ceilings | None = None) -> list[Timing]:
    """For each number of texts a band of seconds for all their `k` nearest, by arithmetic; nothing is run.

    - On this CPU, if its `ceilings` are known: n² d operations, for a tile serves its rows and its columns, at the measured
      float32 rate. int8 products can go below it.
    - On `gpu`, for the engine of this package, with the rates that were fitted on published timings and their errors
      (`devices.efficiencies`): n² d operations of half-precision products, 2 n² bytes of them written and read, the vectors
      in and the neighbours out, kernels to start; the sum of these where nothing overlaps, the longest where all does.

    Args:
        d: dimensions of a vector, float32.
    """
    fitted, expectations = load_efficiencies(), []
    values, accuracy = fitted.values, fitted.accuracy
    flops = sustained_flops(
        gpu, values["product float16.share"] * gpu.float16_tensor_tflops * 1e12, values["product float16.pj_per_nm"]
    )
    bytes_per_s = values["stream.memory_share"] * gpu.memory_bandwidth_gb_per_s * 1e9
    for n in sizes:
        if ceilings is not None:
            rate = ceilings.cpu_matmul_float32
            seconds = [n**2 * d / (rate_of_run * 1e9) for rate_of_run in (rate.high, rate.low)]
            if seconds[0] < seconds[1]:
                bound_by = "float32 products, half the matrix, at the rate that chapter 00 measured"
                time = Quantity.projected(*seconds, "s", rate.device, bound_by)
                expectations.append(Timing(method=_METHOD, n_texts=n, time=time))
        launches_s = (_OTHER_KERNELS + _KERNELS_OF_A_TILE * (n / TILE_SIDE) ** 2 / 2) * values["launch.start_us"] * 1e-6
        centres = {
            "products": (n**2 * d / flops, accuracy["product float16"].factor),
            "memory": (2 * n**2 / bytes_per_s, accuracy["stream"].factor),
            "launches": (launches_s, _LAUNCH),
        }
        steps = {step: (seconds * factor, seconds / factor) for step, (seconds, factor) in centres.items()}
        transferred = (4 * n * d + 12 * n * k) / PCIE_BYTES_PER_S[gpu.pcie_generation]
        steps["transfers"] = tuple(transferred / share for share in _PCIE_SHARE)
        longest = max(steps, key=lambda step: steps[step][0])
        slow, fast = sum(step[0] for step in steps.values()), max(step[1] for step in steps.values())
        time = Quantity.projected(fast, slow, "s", gpu.name, longest)
        expectations.append(Timing(method=_METHOD, on_gpu=True, n_texts=n, time=time))
    return expectations
