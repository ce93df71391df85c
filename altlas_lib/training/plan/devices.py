"""The same training on several GPUs of one machine, each with its share of the batch: what each holds, what they bring."""

from typing import Any

from ...devices import GpuSpec, find_gpu
from ...devices.efficiencies import PCIE_BYTES_PER_S
from ...results import MemoryPlan, Quantity, format_value
from ..checks import check_count
from .planner import plan_memory, verdict

# Of a link's rate in one direction that an exchange of gradients reaches: on PCIe without peer-to-peer each byte crosses the
# bus twice, at half of what a copy reaches; at best it is a copy from pinned memory, or NVLink in large messages.
_LINK_SHARE = 0.25, 0.85


def plan_devices(model: Any, gpu: str | GpuSpec, n_devices: int, *, batch_size: int, **how: Any) -> MemoryPlan:
    """What each GPU needs for its share of the batch, with buffers for gradients as large as the weights, and a note of what
    all bring: a band, in which the exchange (a ring, 2 (n - 1) / n of the gradients) hides behind the backward pass or not.

    Args:
        batch_size: of all devices together; each has that of the fullest.
        **how: as for `plan_memory`, its errors too.

    Raises:
        ValueError: less than two devices, or less samples than devices.
    """
    gpu, n = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu), check_count("devices", n_devices)
    if not 2 <= n <= batch_size:
        raise ValueError(f"{n} devices for a batch of {batch_size}: expected 2 or more, and a sample for each")
    one, each = (plan_memory(model, gpu, batch_size=size, **how) for size in (batch_size, -(-batch_size // n)))
    n_bytes, peak = each.bytes_by_part["weights"], each.peak
    link = "NVLink" if gpu.nvlink_gb_per_s else "PCIe"
    rate = gpu.nvlink_gb_per_s * 1e9 / 2 or PCIE_BYTES_PER_S[gpu.pcie_generation]
    slow_s, fast_s = (2 * (n - 1) / n * n_bytes / (rate * share) for share in _LINK_SHARE)
    note = f"{n} devices, {-(-batch_size // n)} samples each: {format_value(n_bytes, 'bytes')} of gradients over {link}"
    if one.step_time and each.step_time:
        steps = each.configuration["gradient_accumulation_steps"]
        low = steps * one.step_time.low / (steps * each.step_time.low + slow_s)
        high = steps * one.step_time.high / max(steps * each.step_time.high, fast_s)
        note += f" once an update; together {min(low, high):.2g} to {max(low, high):.2g} times as fast as one, projected"
    ends = {name: value + n_bytes for name in ("value", "low", "high") if (value := getattr(peak, name)) is not None}
    peak = Quantity.model_validate(peak.model_dump() | ends)
    changed = {"peak": peak, "notes": [*each.notes, note], "configuration": {**each.configuration, "devices": n}}
    changed["bytes_by_part"] = {**each.bytes_by_part, "gradient buffers": n_bytes}
    changed["verdict"] = verdict(peak.value or peak.low, each.overhead_bytes, each.usable_bytes, peak.high)
    return each.model_copy(update=changed)
