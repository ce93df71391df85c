"""The one door to Keras and to what differs between its backends; every module of the package takes `keras` from here.

TensorFlow is the backend unless the user chose another one (`KERAS_BACKEND=jax` or `torch`, or `~/.keras/keras.json`), or
only another one is installed.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import util

import psutil

from ..devices import describe_cpu

if not util.find_spec("tensorflow"):
    os.environ.setdefault("KERAS_BACKEND", "jax" if util.find_spec("jax") else "torch")

import keras

# A model saved by this library can be loaded by whoever imports it: layers and losses are registered under one name.
serializable = keras.saving.register_keras_serializable("altlas_lib")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes held now and at most; of the GPU's allocator where the backend computes on a GPU, else of this process (resident).

    The peak is since it was last reset; JAX's and a process's since their start. Not counted on a GPU: the CUDA context, and
    what libraries allocate past the allocator.

    Attributes:
        memory_device: the CUDA GPU that the backend computes on, which need not be the machine's first, or "host".
        peaks_by_device: of every GPU that this process sees, in the backend's order, of which the fullest is said above.
    """

    memory_device: str
    memory_bytes: int
    peak_memory_bytes: int
    peaks_by_device: list[int] = field(default_factory=list)


def memory_use(*, reset: bool = False) -> MemoryUse:
    found: list[tuple[int, int]] = []  # peak and bytes now of each
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            for i, gpu in enumerate(tf.config.get_visible_devices("GPU")):
                name = tf.config.experimental.get_device_details(gpu)["device_name"]
                stats = tf.config.experimental.get_memory_info(f"GPU:{i}")
                found.append((stats["peak"], stats["current"]))
                if reset:
                    tf.config.experimental.reset_memory_stats(f"GPU:{i}")
        case "jax":
            import jax

            for device in jax.local_devices():
                if device.platform == "gpu":
                    name, stats = device.device_kind, device.memory_stats()
                    found.append((stats["peak_bytes_in_use"], stats["bytes_in_use"]))
        case "torch":
            from torch import cuda

            if cuda.is_available():  # a process computes on one
                name = cuda.get_device_name()
                found.append((cuda.max_memory_allocated(), cuda.memory_allocated()))
                if reset:
                    cuda.reset_peak_memory_stats()
    if found:
        peak_bytes, now_bytes = max(found)
        return MemoryUse(name, now_bytes, peak_bytes, [peak for peak, _ in found])
    process = psutil.Process().memory_info()
    peak_bytes = getattr(process, "peak_wset", 0)  # of Windows
    with contextlib.suppress(ImportError):
        import resource

        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return MemoryUse("host", process.rss, max(process.rss, peak_bytes))


def gpu_name() -> str | None:
    """The CUDA GPU that the backend computes on; None: it computes on a CPU."""
    name = memory_use().memory_device
    return None if name == "host" else name


def device_name() -> str:
    """The device that the backend computes on, in words, as results name it."""
    return gpu_name() or str(describe_cpu())


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device had not enough memory, in each backend's words."""
    return type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError") or "RESOURCE_EXHAUSTED" in str(error)


def n_replicas() -> int:
    """Over how many devices Keras spreads a batch here: `tf.distribute`'s replicas, or `keras.distribution.DataParallel`'s."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync
    distribution = keras.distribution.distribution()
    return distribution.device_mesh.devices.size if distribution else 1


def across_replicas(function: Callable, gradients: Sequence) -> None:
    """Call `function(on_each, gradients)` where all replicas of a `tf.distribute.MirroredStrategy` meet.

    Within a replica TensorFlow allows no condition around an update, for an update waits for the others.
    """
    import tensorflow as tf

    def meet(strategy, gradients):
        function(strategy.extended.call_for_each_replica, gradients)

    tf.distribute.get_replica_context().merge_call(meet, args=(gradients,))
