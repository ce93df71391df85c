"""What processors and how much memory this machine really gives us."""

import contextlib
import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

_INSTRUCTION_SETS = {  # the kernel's spelling -> the maker's
    "sse4_2": "SSE4.2",
    "avx2": "AVX2",
    "fma": "FMA3",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512F",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Cpu:
    name: str
    n_threads: int  # that this process may use: its affinity, not the machine's total
    instruction_sets: tuple[str, ...]
    revision: str = ""  # that tells processors of one marketing name apart: "family 25 model 1 stepping 1"

    def __str__(self) -> str:
        threads = f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}"
        return f"{self.name} ({', '.join(filter(None, (self.revision, threads)))})"


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, as its driver describes it."""

    index: int
    name: str
    memory_bytes: int
    compute_capability: str
    pcie_generation: int | None = None  # a virtual GPU does not tell its bus
    pcie_lanes: int | None = None


@functools.cache
def describe_cpu() -> Cpu:
    """This machine's CPU. Instruction sets and revision are known on Linux only and empty elsewhere."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):  # not Linux
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    revision = ("cpu family", "model", "stepping", "CPU part", "CPU revision")
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Cpu(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        n_threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_sets=tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags),
        revision=" ".join(f"{key.split()[-1]} {fields[key]}" for key in revision if fields.get(key)),
    )


@functools.cache
def describe_gpus() -> tuple[Gpu, ...]:
    """The CUDA GPUs of this machine, asked of NVIDIA's driver without making a CUDA context; empty where there is none."""
    import pynvml as nvml

    def described(index: int) -> Gpu:
        handle, bus = nvml.nvmlDeviceGetHandleByIndex(index), {}
        with contextlib.suppress(nvml.NVMLError):
            bus["pcie_generation"] = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
            bus["pcie_lanes"] = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
        name, memory = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
        capability = "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle))
        return Gpu(index, name, memory.total, capability, **bus)

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(map(described, range(nvml.nvmlDeviceGetCount())))
    finally:
        nvml.nvmlShutdown()


def device_names() -> list[str]:
    """The CPU and each GPU in words, as results name the device of a number."""
    return [str(describe_cpu()), *(gpu.name for gpu in describe_gpus())]


def memory_limit_bytes() -> int:
    """Host memory that this process may use: the machine's, or its container's or batch job's where that is less."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_groups())])


def memory_available_bytes() -> int:
    """Host memory that this process can still get before something is swapped out or killed."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _memory_groups())])


class OtherLoad:
    """How much of the processors other programs take while a `with` block runs.

    Of the processors that this process may use, from the system's counters, less what this process and those that it started
    take. Time that a hypervisor gives to other machines counts as theirs.

    Attributes:
        share: in [0, 1], known after the block; None where the block was too short for the system's clock ticks, of 10 ms.
    """

    share: float | None = None

    def __enter__(self) -> "OtherLoad":
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        busy_s, own_s, all_s = (after - before for after, before in zip(self._read(), self._before, strict=True))
        if all_s > 0.2:
            self.share = min(max((busy_s - own_s) / all_s, 0.0), 1.0)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds on all processors: busy, busy for this process and those below it, and passed."""
        of_cpu = psutil.cpu_times(percpu=True)
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(of_cpu))
        times = [times for cpu, times in enumerate(of_cpu) if cpu in usable]
        idle_s = sum(each.idle + getattr(each, "iowait", 0) for each in times)
        guests_s = sum(getattr(each, "guest", 0) + getattr(each, "guest_nice", 0) for each in times)  # in user and nice already
        all_s = sum(map(sum, times)) - guests_s
        this = psutil.Process()
        own_s = 0.0
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended; its parent's times hold what it took
                own_s += sum(process.cpu_times()[:4])  # user, system, and those of children that have ended
        return all_s - idle_s, own_s, all_s


def last_level_cache_bytes() -> int | None:
    """Size of all last-level caches that the CPUs of this process share; None where Linux does not tell."""
    caches: dict[str, tuple[int, int]] = {}  # the CPUs that share it -> level, size
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        for index in Path(f"/sys/devices/system/cpu/cpu{cpu}/cache").glob("index*"):
            with contextlib.suppress(OSError, ValueError):
                level, shared_by, size = ((index / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
                caches[shared_by] = max(caches.get(shared_by, (0, 0)), (int(level), int(size.removesuffix("K")) * 1024))
    last = max((level for level, _ in caches.values()), default=0)
    return sum(size for level, size in caches.values() if level == last) or None


def _memory_groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """Limit and use in bytes of each control group (version 2), this process's own and those around it, that limits memory."""
    try:
        own = next(line[3:] for line in proc.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):  # not Linux, or an old one
        return []
    groups, folder = [], root / own.lstrip("/")
    for group in (folder, *folder.parents[: len(folder.parts) - len(root.parts)]):
        try:
            limit, use = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
            cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit ("max"), or a path of the host that a container does not show
            continue
        groups.append((limit, use - int(cache.get("inactive_file", 0))))  # the kernel gives file cache back when asked
    return groups
