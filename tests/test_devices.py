"""Arrays, the machine's own description, and the GPU catalogue."""

import contextlib
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_lib import devices
from altlas_lib.devices import host

without_gpu = pytest.mark.skipif(devices.has_gpu(), reason="what happens without a GPU")


# Arrays --------------------------------------------------------------------------------------------------------------


def test_numpy_stays_numpy():
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert devices.get_namespace(x) is np
    assert devices.to_cpu(x) is x
    assert devices.get_namespace([1, 2]) is np
    devices.synchronize()


@without_gpu
def test_without_a_gpu_the_error_says_what_to_do():
    for call in (lambda: devices.to_gpu([1.0]), lambda: devices.memory_stats("gpu")):
        with pytest.raises(RuntimeError, match="altlas check"):
            call()


def test_memory_stats_of_the_host():
    stats = devices.memory_stats("cpu")
    assert 0 < stats.available_bytes <= stats.total_bytes == devices.memory_limit_bytes()
    with pytest.raises(ValueError, match="'tpu'"):
        devices.memory_stats("tpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_to_gpu_and_back(dtype):
    import cupy

    x = np.arange(12, dtype=dtype).reshape(3, 4)[:, ::2]
    on_gpu = devices.to_gpu(x)
    assert devices.get_namespace(on_gpu) is cupy
    assert on_gpu.dtype == x.dtype
    assert devices.to_gpu(on_gpu) is on_gpu
    devices.synchronize()
    np.testing.assert_array_equal(devices.to_cpu(on_gpu), x)


@pytest.mark.gpu
def test_memory_stats_of_the_gpu_see_an_allocation():
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    before = devices.memory_stats("gpu")
    block = cupy.ones(2**28, cupy.uint8)
    after = devices.memory_stats("gpu")
    assert before.available_bytes - after.available_bytes >= block.nbytes
    assert after.total_bytes == before.total_bytes


# The machine ---------------------------------------------------------------------------------------------------------


def test_the_cpu_has_a_name_and_threads():
    cpu = devices.describe_cpu()
    assert cpu.name
    assert cpu.n_threads >= 1
    assert str(cpu).startswith(cpu.name)
    assert devices.device_names()[0] == str(cpu)


def test_the_caches_are_those_of_the_cpus_that_we_may_use():
    size = devices.last_level_cache_bytes()
    assert size is None or 2**18 <= size <= 2**34


def test_memory_available_is_within_the_limit():
    assert 0 <= devices.memory_available_bytes() <= devices.memory_limit_bytes()


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content))


def test_memory_groups_of_version_2(tmp_path):
    (tmp_path / "self").write_text("0::/job/step\n")
    group(tmp_path / "fs", memory__max="max", memory__current=90, memory__stat="inactive_file 1\n")
    group(tmp_path / "fs/job", memory__max=1000, memory__current=400, memory__stat="anon 5\ninactive_file 100\n")
    group(tmp_path / "fs/job/step", memory__max="max", memory__current=400, memory__stat="inactive_file 100\n")
    assert host._memory_groups(tmp_path / "self", tmp_path / "fs") == [(1000, 300)]


def test_in_a_container_the_path_of_the_host_is_not_there_and_its_own_limit_counts(tmp_path):
    (tmp_path / "self").write_text("5:cpu,cpuacct:/x\n0::/docker/abc\n")
    group(tmp_path / "fs", memory__max=500, memory__current=200, memory__stat="inactive_file 50\n")
    group(tmp_path, memory__max=1, memory__current=1, memory__stat="")  # above the root
    assert host._memory_groups(tmp_path / "self", tmp_path / "fs") == [(500, 150)]
    (tmp_path / "self").write_text("4:memory:/docker/abc\n")  # version 1
    assert host._memory_groups(tmp_path / "self", tmp_path / "fs") == []


@pytest.mark.parametrize("limit", ["", "max", "9e9", "ten"])
def test_unreadable_memory_groups_set_no_limit(tmp_path, limit):
    (tmp_path / "self").write_text("0::/job\n")
    group(tmp_path / "fs/job", memory__max=limit, memory__current=1, memory__stat="")
    assert host._memory_groups(tmp_path / "self", tmp_path / "fs") == []
    assert host._memory_groups(tmp_path / "missing", tmp_path / "fs") == []


def test_memory_is_the_least_that_a_group_leaves(monkeypatch):
    monkeypatch.setattr(host, "_memory_groups", lambda: [(2**63, 5), (4096, 1000), (3000, 3500)])
    assert devices.memory_limit_bytes() == 3000
    assert devices.memory_available_bytes() == 0  # over its limit already


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """A driver with one virtual T4, which does not tell its bus."""

    def not_supported(handle):
        raise NVMLError("Not Supported")

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetCudaComputeCapability=lambda handle: (7, 5),
        nvmlDeviceGetName=lambda handle: "Tesla T4",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=16106127360),
        nvmlDeviceGetMaxPcieLinkGeneration=lambda handle: 3,
        nvmlDeviceGetMaxPcieLinkWidth=not_supported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    devices.describe_gpus.cache_clear()
    yield module
    devices.describe_gpus.cache_clear()


def test_gpus_as_the_driver_describes_them(nvml):
    assert devices.describe_gpus() == (devices.Gpu(0, "Tesla T4", 16106127360, "7.5", 3, None),)
    assert devices.device_names()[1:] == ["Tesla T4"]


def test_no_driver_means_no_gpus(nvml):
    def no_library():
        raise NVMLError("NVML Shared Library Not Found")

    nvml.nvmlInit = no_library
    assert devices.describe_gpus() == ()


# The catalogue -------------------------------------------------------------------------------------------------------


def test_every_row_is_sourced_and_can_be_found_by_each_of_its_names():
    gpus = devices.load_catalogue()
    assert [gpu.memory_gib for gpu in gpus] == sorted(gpu.memory_gib for gpu in gpus)
    assert max(Counter(gpu.name for gpu in gpus).values()) == 1
    for gpu in gpus:
        assert gpu.source.startswith("NVIDIA, ")
        assert "https://" in gpu.source
        assert gpu.float16_tensor_tflops > gpu.float32_tflops
        for name in (gpu.name, *gpu.aliases):
            assert devices.find_gpu(name) is gpu


def test_the_t4_is_the_one_of_its_product_brief():
    t4 = devices.find_gpu("T4")
    assert (t4.compute_capability, t4.memory_gib, t4.memory_bandwidth_gb_per_s) == ("7.5", 16, 320)
    assert (t4.float32_tflops, t4.float16_tensor_tflops, t4.pcie_generation, t4.power_w) == (8.1, 65, 3, 70)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("tesla t4", "T4"),
        (" NVIDIA-L4 ", "L4"),
        ("a10", "A10"),
        ("rtx-4090", "RTX 4090"),
        ("GeForce RTX3060", "RTX 3060"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
        ("a100 40gb", "A100 40GB SXM"),
        ("H100", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_find_gpu_takes_what_people_and_drivers_write(spelling, name):
    assert devices.find_gpu(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("A100", "ambiguous; did you mean 'A100 40GB SXM' or 'A100 80GB SXM'"),
        ("RTX", "ambiguous"),
        ("A10G", "did you mean 'A10'"),  # another chip of another rate
        ("T", "not in the catalogue"),
        ("GTX 9090", "not in the catalogue"),
        ("", "Known: "),
        ("nvidia", "Known: "),
        ("../gpus.toml", "Known: "),
    ],
)
def test_find_gpu_refuses_what_it_cannot_tell(spelling, message):
    with pytest.raises(ValueError, match="GPU ") as caught:
        devices.find_gpu(spelling)
    assert message in str(caught.value)
    assert repr(spelling) in str(caught.value)


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=30))
def test_find_gpu_finds_no_name_but_its_spellings(name):
    found = None
    with contextlib.suppress(ValueError):
        found = devices.find_gpu(name)
    assert found is None or found.is_called(name)


def test_a_row_with_a_typing_error_is_refused():
    row = devices.find_gpu("T4").model_dump()
    for damage in ({"memory_gib": -16}, {"compute_capability": "sm_75"}, {"source": ""}, {"memory_gb": 16}, {"name": ""}):
        with pytest.raises(ValueError, match=next(iter(damage))):
            devices.GpuSpec.model_validate(row | damage)


def test_processors_of_one_marketing_name_are_told_apart(monkeypatch):
    """Two clouds sell an "AMD EPYC": family, model and stepping say which it is."""
    from altlas_lib.devices import host

    def named(model):
        cpuinfo = (
            f"processor\t: 0\ncpu family\t: 25\nmodel\t\t: {model}\nmodel name\t: AMD EPYC\nstepping\t: 1\n\nprocessor\t: 1\n"
        )
        monkeypatch.setattr(host.Path, "read_text", lambda path, **options: cpuinfo)
        return str(host.describe_cpu.__wrapped__())

    assert named(1).startswith("AMD EPYC (family 25 model 1 stepping 1, ")
    assert named(1) != named(17)
    assert str(host.Cpu("QEMU", 1, ())) == "QEMU (1 thread)"
