"""The child's side of the check: `python -m altlas_lib.environment.probe tensorflow` prints one line of JSON.

A library that crashes, hangs or prints while it loads does so here, in a process of its own, and its CUDA context ends with it.
Every probe fills `report` step by step: what was found before an error is kept beside it.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import signal
import time
import timeit
from collections.abc import Callable
from importlib import util
from typing import Any

import numpy as np

Report = dict[str, Any]


def _driver(report: Report) -> None:
    import pynvml as nvml

    from .. import devices

    nvml.nvmlInit()
    report["version"] = nvml.nvmlSystemGetDriverVersion()
    report["cuda_version"] = _dotted(nvml.nvmlSystemGetCudaDriverVersion_v2())
    report["gpus"] = [dataclasses.asdict(gpu) for gpu in devices.describe_gpus()]


def _numpy(report: Report) -> None:
    _load(report, "numpy")
    from threadpoolctl import threadpool_info, threadpool_limits

    for library in threadpool_info():
        if library["user_api"] == "blas":
            report["blas"], report["blas_kernels"] = library["internal_api"], library.get("architecture")
    _check_product(report, "CPU", np.matmul)
    a, b = np.random.default_rng(0).standard_normal((2, 1024, 1024), dtype=np.float32)
    with threadpool_limits(1):  # one thread and its CPU time: what other programs do then hardly matters
        seconds = timeit.repeat(lambda: a @ b, timer=time.process_time, number=1, repeat=8)
    report["gflops_per_thread"] = 2 * 1024**3 / min(seconds) / 1e9


def _keras(report: Report) -> None:
    keras = _load(report, "keras")
    report["backend"] = keras.backend.backend()
    _check_product(report, report["backend"], lambda a, b: keras.ops.convert_to_numpy(keras.ops.matmul(a, b)))


def _tensorflow(report: Report) -> None:
    tf = _load(report, "tensorflow")
    build = tf.sysconfig.get_build_info()
    if build.get("is_cuda_build"):
        report["cuda"] = {"runtime": build["cuda_version"], "cuDNN": build["cudnn_version"]}
    gpus = tf.config.list_physical_devices("GPU")
    report["gpus"] = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    for device, name in [("/CPU:0", "CPU"), *((f"/GPU:{i}", name) for i, name in enumerate(report["gpus"]))]:
        with tf.device(device):
            _check_product(report, name, tf.linalg.matmul)
            # cuDNN is not asked for before the first convolution, and that is where a wrong version of it fails.
            tf.nn.conv1d(tf.ones((1, 8, 4)), tf.ones((3, 4, 4)), stride=1, padding="SAME").numpy()


def _cupy(report: Report) -> None:
    cupy = _load(report, "cupy")
    runtime = cupy.cuda.runtime
    report["cuda"] = {"runtime": _dotted(runtime.runtimeGetVersion())}
    with contextlib.suppress(Exception):  # CuPy without the [ctk] extra finds no NVRTC; with a GPU the computation tells
        report["cuda"]["NVRTC"] = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
    try:
        report["gpus"] = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    except runtime.CUDARuntimeError as error:
        report["no_gpu_because"] = str(error)
    for i, name in enumerate(report.get("gpus", ())):
        with cupy.cuda.Device(i):
            # cuBLAS multiplies; the element-wise part is compiled here and now by NVRTC.
            _check_product(report, name, lambda a, b: cupy.asnumpy(cupy.asarray(a) @ cupy.asarray(b) + 0 * cupy.asarray(a)))


def _torch(report: Report) -> None:
    torch = _load(report, "torch")
    if torch.version.cuda:
        report["cuda"] = {"runtime": torch.version.cuda}
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    report["gpus"] = [torch.cuda.get_device_name(i) for i in range(n_gpus)]
    for device, name in [("cpu", "CPU"), *((f"cuda:{i}", name) for i, name in enumerate(report["gpus"]))]:
        with torch.device(device):
            _check_product(report, name, lambda a, b: (torch.tensor(a) @ torch.tensor(b)).cpu())
            torch.nn.functional.conv1d(torch.ones(1, 4, 8), torch.ones(4, 4, 3)).cpu()


def _jax(report: Report) -> None:
    jax = _load(report, "jax")
    for major in (13, 12):  # which plug-in is installed: JAX itself tells its CUDA version only where a GPU is
        if util.find_spec("jax_plugins") and util.find_spec(f"jax_plugins.xla_cuda{major}"):
            report["cuda"] = {"runtime": str(major)}
    report["gpus"] = [device.device_kind for device in jax.devices() if device.platform == "gpu"]
    for device in jax.devices():
        name = device.device_kind if device.platform == "gpu" else device.platform.upper()
        with jax.default_device(device):
            _check_product(report, name, jax.numpy.matmul)
            jax.lax.conv(np.ones((1, 4, 8), np.float32), np.ones((4, 4, 3), np.float32), (1,), "SAME").block_until_ready()


PROBES = {probe.__name__[1:]: probe for probe in (_driver, _numpy, _keras, _tensorflow, _cupy, _torch, _jax)}


def _load(report: Report, name: str) -> Any:
    module = importlib.import_module(name)
    report["version"] = module.__version__
    return module


def _check_product(report: Report, device: str, matmul: Callable) -> None:
    a = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) % 7
    b = np.ascontiguousarray(a.T)
    expected = a.astype(np.float64) @ b.astype(np.float64)  # whole numbers below 2^11: exact in float32, and in TF32
    if not np.array_equal(matmul(a, b), expected):
        raise ArithmeticError(f"a 64 x 64 float32 matrix product on {device} is wrong")
    report.setdefault("computed_on", []).append(device)


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _loaded_versions() -> dict[str, str]:
    """Versions of the CUDA runtime and of cuDNN, where this process has loaded them, as they themselves state them."""
    versions, number = {}, ctypes.c_int()
    for major in range(8, 20):
        with contextlib.suppress(OSError, AttributeError):  # not in this process, or Windows, which cannot look without loading
            if ctypes.CDLL(f"libcudart.so.{major}", mode=os.RTLD_NOLOAD).cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
                versions["runtime"] = _dotted(number.value)
        with contextlib.suppress(OSError, AttributeError):
            cudnn = ctypes.CDLL(f"libcudnn.so.{major}", mode=os.RTLD_NOLOAD).cudnnGetVersion()
            thousands, rest = divmod(cudnn, 10000 if cudnn >= 90000 else 1000)  # 8905 is 8.9.5, 91002 is 9.10.2
            versions["cuDNN"] = f"{thousands}.{rest // 100}.{rest % 100}"
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(description="Load a library, compute with it, and print what was found as JSON.")
    parser.add_argument("library", choices=PROBES)
    name = parser.parse_args().library
    # Whatever a library prints goes to stderr: stdout, as whoever started us sees it, carries the one line alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends us even where a library hangs outside of Python
    report: Report = {}
    try:
        report["installed"] = name == "driver" or util.find_spec(name) is not None
        if report["installed"]:
            PROBES[name](report)
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"
    if report.get("cuda"):
        report["cuda"] |= _loaded_versions()
    print(json.dumps(report), file=answer, flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # without the libraries' clean-up at exit, which can crash or hang after a good answer
