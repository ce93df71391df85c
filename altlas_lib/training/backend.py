"""The one door to Keras and to what differs between its backends; every module of the room takes `keras` from here.

TensorFlow is the backend unless the user chose another one (`KERAS_BACKEND=jax` or `torch`, or `~/.keras/keras.json`), or
only another one is installed.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import util

from ..devices import describe_cpu


@contextlib.contextmanager
def _hold_back_native_stderr() -> Iterator[None]:
    """Keep what C++ code prints to file descriptor 2 from the reader, unless the block fails: then it may be the reason."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held_back:
        stderr = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if not util.find_spec("tensorflow"):
    for other in ("jax", "torch"):
        if util.find_spec(other):
            os.environ.setdefault("KERAS_BACKEND", other)

# TensorFlow 2.21 obeys this variable once it is loaded, but not while it is being loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _hold_back_native_stderr():
    import keras

# A model saved by this library can be loaded by whoever imports it: layers and losses are registered under one name.
serializable = keras.saving.register_keras_serializable("altlas_lib")


def gpu_name() -> str | None:
    """The CUDA GPU that the backend computes on, which need not be the machine's first; None: it computes on a CPU."""
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            gpus = tf.config.list_physical_devices("GPU")
            return tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else None
        case "jax":
            import jax

            device = jax.devices()[0]
            return device.device_kind if device.platform == "gpu" else None
        case "torch":
            import torch

            return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return None


def device_name() -> str:
    """The device that the backend computes on, in words, as results name it."""
    return gpu_name() or str(describe_cpu())


def peak_memory_bytes() -> int | None:
    """The most bytes that the backend's allocator held on the GPU since the last call; None, "not measured", on a CPU.

    JAX counts from the process's start. Not counted: the CUDA context and what libraries allocate past the allocator.
    """
    if gpu_name() is None:
        return None
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
            tf.config.experimental.reset_memory_stats("GPU:0")
        case "jax":
            import jax

            peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        case "torch":
            import torch

            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
    return peak
