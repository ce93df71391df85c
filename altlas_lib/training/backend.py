"""The one door to Keras and to what differs between its backends; every module of the room takes `keras` from here.

TensorFlow is the backend unless the user chose another one (`KERAS_BACKEND=jax` or `torch`, or `~/.keras/keras.json`).
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from ..devices import describe_cpu, describe_gpus


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


# TensorFlow 2.21 obeys this variable once it is loaded, but not while it is being loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _hold_back_native_stderr():
    import keras

# A model saved by this library can be loaded by whoever imports it: layers and losses are registered under one name.
serializable = keras.saving.register_keras_serializable("altlas_lib")


def uses_gpu() -> bool:
    """Whether the backend computes on a CUDA GPU."""
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            return bool(tf.config.list_physical_devices("GPU"))
        case "jax":
            import jax

            return jax.default_backend() == "gpu"
        case "torch":
            import torch

            return torch.cuda.is_available()
    return False


def device_name() -> str:
    """The device that the backend computes on, in words, as results name it."""
    return describe_gpus()[0].name if uses_gpu() else str(describe_cpu())


def reset_peak_memory() -> None:
    """Start a new measurement of the GPU's peak memory, where the backend can (JAX counts from the process's start)."""
    if not uses_gpu():
        return
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            tf.config.experimental.reset_memory_stats("GPU:0")
        case "torch":
            import torch

            torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int | None:
    """The most bytes that the backend's allocator held on the GPU since `reset_peak_memory`; None, "not measured", on a CPU.

    Not counted: the CUDA context and what libraries allocate past the backend's allocator.
    """
    if not uses_gpu():
        return None
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            return tf.config.experimental.get_memory_info("GPU:0")["peak"]
        case "jax":
            import jax

            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        case "torch":
            import torch

            return torch.cuda.max_memory_allocated()
    return None
