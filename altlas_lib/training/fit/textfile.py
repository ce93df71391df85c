"""Metrics of a training where Prometheus finds them, so that one board shows a server and the trainings beside it."""

import time
from pathlib import Path
from typing import Any

from ..backend import keras, memory_use

_LEAST_PAUSE_S = 5  # between two writes; Prometheus asks every 15 s or so


def metrics_textfile(file: str | Path, run: str) -> "keras.callbacks.Callback":
    """A Keras callback, for this `fit` or Keras' own, that keeps a file for node_exporter's textfile collector.

    It holds altlas_training_step_seconds (of the last micro-batch), altlas_training_loss by `part` (training, validation), and
    altlas_training_gpu_peak_bytes, which is missing where the backend computes on a CPU. The file is replaced whole.

    Args:
        file: in the collector's folder (`--collector.textfile.directory`), its name ending in `.prom`.
        run: label of the metrics.

    Raises:
        ValueError: another ending, which the collector would not read.
        OSError: the file cannot be written; raised by the training, at the first step.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    if not str(file).endswith(".prom"):
        raise ValueError(f"{file}: expected a name that ends in .prom, else the textfile collector does not read it")
    registry = CollectorRegistry()
    step = Gauge("altlas_training_step_seconds", "Time of a micro-batch", ["run"], registry=registry).labels(run)
    loss = Gauge("altlas_training_loss", "The loss", ["run", "part"], registry=registry)
    peak = Gauge("altlas_training_gpu_peak_bytes", "Peak memory of the GPU's allocator", ["run"], registry=registry)
    times_s = {"begun": 0.0, "written": float("-inf")}

    def begin_step(batch: int, logs: dict[str, Any] | None = None) -> None:
        times_s["begun"] = time.monotonic()

    def end_step(batch: int, logs: dict[str, Any]) -> None:
        step.set(time.monotonic() - times_s["begun"])
        if time.monotonic() - times_s["written"] > _LEAST_PAUSE_S:
            write(batch, logs)

    def write(number: int, logs: dict[str, Any]) -> None:
        for part, name in (("training", "loss"), ("validation", "val_loss")):
            if name in logs:
                loss.labels(run, part).set(float(logs[name]))
        if (use := memory_use()).memory_device != "host":
            peak.labels(run).set(use.peak_memory_bytes)
        write_to_textfile(str(file), registry)
        times_s["written"] = time.monotonic()

    return keras.callbacks.LambdaCallback(on_train_batch_begin=begin_step, on_train_batch_end=end_step, on_epoch_end=write)
