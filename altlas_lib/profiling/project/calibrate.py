"""Measure, on a GPU, the classes of operations that are projected: what later projections onto such a GPU prefer."""

import functools
import math
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, PositiveFloat

from ... import devices
from ...paths import outputs_dir, shipped_toml, write_atomically
from ...results import Model
from ..record.calls import Array, Call
from .gpu import accuracy_class, call_seconds, gpu_rates
from .operations import price

_LEAST_SPREAD = 1.15  # of the same kernel on the same GPU from day to day


class Calibration(Model):
    """What one GPU was measured to take."""

    gpu: str = Field(description="as the catalogue calls it")
    measured_at: datetime
    # class -> measured / projected, and the factor within which all runs lay; `gpu_rates` takes it
    classes: dict[str, tuple[PositiveFloat, Annotated[float, Field(gt=1)]]]
    left_out: list[str] = Field(default=[], description="calls that CuPy refused, with its words")

    @classmethod
    def load(cls, gpu: str) -> Self | None:
        """What `save` kept of `gpu`, a name of the catalogue; None where there is nothing.

        Raises:
            ValueError: the file is damaged; names it and what to do.
        """
        try:
            return cls.model_validate_json(_file(gpu).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            problem = f"{_file(gpu)} cannot be read ({' '.join(str(error).split())[:200]})"
            raise ValueError(f"{problem}; remove it and run `altlas calibrate` on the GPU again") from None

    def save(self) -> Path:
        """Write a file for this GPU beside the runs, atomically."""
        _file(self.gpu).parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(_file(self.gpu), self.model_dump_json(indent=1) + "\n")


def _file(gpu: str) -> Path:
    return outputs_dir() / "calibration" / f"{gpu}.json"


def calibrate(*, n_runs: int = 7, scale: float = 1.0) -> Calibration:
    """Measure each class on the current GPU, in about two minutes: `n_runs` runs of each call after two to warm up.

    Args:
        scale: of each side of the operands; 1 takes up to 2 GiB.

    Raises:
        RuntimeError: CuPy sees no GPU.
        ValueError: the catalogue lacks this GPU, or `n_runs` is below 1.
    """
    if n_runs < 1:
        raise ValueError(f"n_runs={n_runs!r}: expected 1 or more")
    devices.to_gpu(np.zeros(1))  # says what is missing
    import cupy

    gpu = devices.find_gpu(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())
    rates, logs, left_out = gpu_rates(gpu), {}, []
    for name, *operands in shipped_toml(__package__, "calibration.toml")["kernels"]:
        try:
            call, seconds = _measured(name, [_operand(text, scale) for text in operands], n_runs)
        except Exception as error:  # an old CuPy lacks it, or this GPU's memory is too small
            left_out.append(f"{name}: {type(error).__name__}: {error}"[:200])
            continue
        calls = call_seconds(price(call), rates)
        errors = [math.log(s / (calls.launches + calls.busy)) for s in seconds]
        logs.setdefault(accuracy_class(price(call), calls), []).append(errors)
    classes = {}
    for of, measured in logs.items():
        centre = statistics.mean(map(statistics.median, measured))
        furthest = max(abs(error - centre) for errors in measured for error in errors)
        classes[of] = math.exp(centre), max(math.exp(furthest), _LEAST_SPREAD)
    return Calibration(gpu=gpu.name, measured_at=datetime.now(UTC), classes=classes, left_out=left_out)


def _operand(text: str, scale: float) -> np.ndarray:
    """Noise of 'float32 1024 1024'; a square matrix in float64 is positive definite by its diagonal."""
    dtype, *sizes = text.split()
    rng, shape = np.random.default_rng(0), tuple(max(int(int(n) * scale), 8) for n in sizes)
    if dtype == "int64":
        return rng.integers(0, min(256, *shape), shape)
    array = rng.standard_normal(shape).astype(dtype)
    return array + 4 * len(array) * np.eye(len(array)) if dtype == "float64" and shape == shape[:1] * 2 else array


def _measured(name: str, operands: list[np.ndarray], n_runs: int) -> tuple[Call, list[float]]:
    """The call as the tracer would describe it, and the GPU's seconds of each run."""
    import cupy
    import cupyx.profiler

    function, on_gpu = functools.reduce(getattr, name.split(".")[1:], cupy), tuple(map(cupy.asarray, operands))
    result = function(*on_gpu)
    timed = cupyx.profiler.benchmark(function, on_gpu, n_repeat=n_runs, n_warmup=2)
    results = result if isinstance(result, tuple) else (result,)
    args, written = ([Array(str(array.dtype), tuple(array.shape)) for array in arrays] for arrays in (on_gpu, results))
    return Call(name=name, args=args, results=tuple(written)), timed.gpu_times[0].tolist()
