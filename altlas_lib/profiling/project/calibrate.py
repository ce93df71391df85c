"""Measure, on a GPU, the classes of operations that are projected: what later projections onto such a GPU prefer."""

import functools
import json
import math
import statistics
import tomllib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ... import devices
from ...paths import outputs_dir, write_atomically
from ...results import Model
from ..record.calls import Array, Call
from .gpu import accuracy_class, call_seconds, gpu_rates
from .operations import price

_WARM_UPS = 2
_LEAST_SPREAD = 1.15  # of the same kernel on the same GPU from day to day


class Calibration(Model):
    """What one GPU was measured to take."""

    gpu: str = Field(description="as the catalogue calls it")
    measured_at: datetime
    classes: dict[str, tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=1)]]] = Field(
        description="class -> measured / projected, and the factor within which all runs lay; `gpu_rates` takes it"
    )
    left_out: list[str] = Field(default=[], description="calls that CuPy refused, with its words")

    @classmethod
    def load(cls, gpu: str) -> Self | None:
        """What `save` kept of `gpu`, a name of the catalogue; None where there is nothing.

        Raises:
            ValueError: the file is damaged; names it and what to do.
        """
        return _read(_file()).get(gpu)

    def save(self) -> Path:
        """Write `calibration.json` beside the runs, atomically; what it holds of other GPUs stays.

        Raises:
            ValueError: the file that is there is damaged.
        """
        path = _file()
        content = _BY_GPU.dump_json(_read(path) | {self.gpu: self}, indent=1).decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(path, content + "\n")


_BY_GPU = TypeAdapter(dict[str, Calibration])


def _file() -> Path:
    return outputs_dir() / "calibration.json"


def _read(path: Path) -> dict[str, Calibration]:
    try:
        return _BY_GPU.validate_python(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ValueError(f"{path} cannot be read ({problem}); remove it and run `altlas calibrate` on the GPU again") from None


def calibrate(*, n_runs: int = 7, scale: float = 1.0) -> Calibration:
    """Measure each class on the current GPU, in about two minutes: CUDA events around `n_runs` runs after two to warm up.

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
    kernels = tomllib.loads(resources.files(__package__).joinpath("calibration.toml").read_text("utf-8"))["kernels"]
    for name, *operands in kernels:
        try:
            call, seconds = _measured(cupy, name, [_operand(text, scale) for text in operands], n_runs)
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


def _measured(cupy: Any, name: str, operands: list[np.ndarray], n_runs: int) -> tuple[Call, list[float]]:
    """The call as the tracer would describe it, and the GPU's seconds of each run."""
    function = functools.reduce(getattr, name.split(".")[1:], cupy)
    on_gpu, stream, seconds = list(map(cupy.asarray, operands)), cupy.cuda.get_current_stream(), []
    for _ in range(_WARM_UPS + n_runs):
        begun = stream.record()
        result = function(*on_gpu)
        ended = stream.record()
        ended.synchronize()
        seconds.append(cupy.cuda.get_elapsed_time(begun, ended) / 1000)
    results = result if isinstance(result, tuple) else (result,)
    args, written = ([Array(str(array.dtype), tuple(array.shape)) for array in arrays] for arrays in (on_gpu, results))
    return Call(name=name, args=args, results=tuple(written)), seconds[_WARM_UPS:]
