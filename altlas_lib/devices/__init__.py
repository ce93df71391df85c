"""The machine: where arrays live, which processors there are, and the catalogue of GPUs that it does not have."""

# ruff: noqa: F401 (these names are the package's face)
from .arrays import MemoryStats, get_namespace, has_gpu, memory_stats, synchronize, to_cpu, to_gpu
from .catalogue import GpuSpec, find_gpu, find_multiprocessor, load_catalogue
from .host import (
    Cpu,
    Gpu,
    OtherLoad,
    describe_cpu,
    describe_gpus,
    device_names,
    last_level_cache_bytes,
    memory_available_bytes,
    memory_limit_bytes,
)
