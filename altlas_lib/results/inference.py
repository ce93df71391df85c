"""Chapter 40: what do ONNX, half precision, 8-bit integers and TensorRT buy for a trained model, and what do they cost?"""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ..paths import RunFolder
from .provenance import ChapterResult, DataSource, ResultError, UnderLoad
from .quantity import Model, Quantity, Share
from .training import Kept, Metric


class Agreement(Model):
    """How far a variant's output is from the original's on the same inputs."""

    output: str
    n_samples: PositiveInt
    largest: float  # difference
    rms: float  # root mean square of the differences
    class_agreement: Share | None = None  # share of samples that get the same class; None: the output is no class


class Calibration(Model):
    """The inputs that set the ranges of 8-bit integers."""

    source: str  # whose part they are: the training part, never the one that the scores are of
    n_samples: PositiveInt
    method: Literal["MinMax", "Entropy", "Percentile"]


class Variant(Model):
    """A form of the model beside the original: how large, how near, and what of the task's score it keeps."""

    name: str
    file: str | None = None  # in the run's folder; None: it was not made, `problem` says why
    size_bytes: NonNegativeInt | None = None
    calibration: Calibration | None = None
    agreement: list[Agreement] = Field(default=[])
    metrics: list[Metric] = Field(default=[])  # the task's scores, by the chapter that trained it; empty: without data
    score_kept: Kept | None = None  # of the first score, over the original's
    gain_kept: Kept | None = None  # of its gain over the base rate; None: there is none to keep, or no data
    problem: str | None = None


class Latency(Model):
    """One call of a runner with a batch of inputs, on the device that the time names."""

    runner: str
    batch: PositiveInt
    threads: PositiveInt | None  # None: as many as the library takes
    time: Quantity  # measured; its value is the median, p50
    p95_s: float
    p99_s: float

    @property
    def samples_per_s(self) -> float:
        return self.batch / self.time.value


class Engine(Model):
    """A variant as a TensorRT engine for one compute capability, built without the GPU, or why there is none."""

    gpu: str
    compute_capability: str
    variant: str
    status: Literal["built", "refused", "not offered", "failed"]
    builder: str | None = None  # which one, with its version: TensorRT-RTX and TensorRT engines are different things
    size: Quantity | None = None
    activations: Quantity | None = None  # memory beside the weights at the largest batch
    build_s: float | None = None
    message: str | None = None  # the builder's own sentence
    advice: str | None = None


class Forward(Model):
    """One forward pass as XLA compiles it for a GPU that need not be here, and the time that follows."""

    gpu: str
    dtype: Literal["float32", "float16"]
    batch: PositiveInt
    memory: Quantity
    n_launches: PositiveInt
    n_flops: float | None = None
    moved_bytes: float | None = None
    time: Quantity | None = None  # projected; None: `note` says why
    note: str | None = None


class InferenceResult(ChapterResult, UnderLoad, chapter="inference", number="40"):
    model: str
    n_parameters: NonNegativeInt
    trained: bool  # else accuracy means nothing
    source: DataSource | None = None  # of the data that the scores are of
    target_gpu: str
    variants: list[Variant]
    latencies: list[Latency]
    engines: list[Engine] = Field(default=[])
    forwards: list[Forward] = Field(default=[])
    best: str | None = None  # the variant that goes to production by `altlas_lib.inference.choose_variant`; None: the original
    notes: list[str] = Field(default=[])

    def recommended_file(self, run: RunFolder) -> Path:
        """The ONNX file that goes to production: of the best variant, else of the first, in float32.

        Raises:
            ResultError: the run has it no more.
        """
        name = next(each.file for each in self.variants if each.name == (self.best or "float32"))
        file = run.path / "models" / name
        if not file.is_file():
            raise ResultError(f"{file} is gone: run chapter 40 again: altlas run --run {run.name} --only 40")
        return file
