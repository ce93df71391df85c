"""Chapter 30: will the training fit, what does each saving cost, and is the model worth it?"""

from typing import Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt

from .provenance import ChapterResult, DataSource
from .quantity import Model, Quantity


class Epoch(Model):
    """A line of the training log. Memory is the GPU's where the backend computes on one, else the process's."""

    epoch: int
    metrics: dict[str, float]  # Keras' names: `loss`, `regression_loss`, ..., `val_` for the validation part
    duration_s: float  # of an epoch that was continued: since then
    micro_batch_size: int
    n_updates: int
    memory_device: str
    memory_bytes: int
    peak_memory_bytes: int  # of the fullest device
    peaks_by_device: list[int] = Field(default=[])  # bytes of each GPU that the process sees, or of each process
    notes: list[str] = Field(default=[])


class Metric(Model):
    """A score on the test part, beside what needs no model."""

    name: str
    unit: Literal["share", "log"]  # a share of `n_samples`, or the mean of an error of log values
    higher_is_better: bool
    model: float
    base_rate: float  # always predicting the most frequent class or the median of the training part
    best_possible: float | None = None  # known for generated series only
    n_samples: NonNegativeInt  # test values that the model's score is about
    gain_low: float | None = None  # 95 % interval of the gain over the base rate; positive is better
    gain_high: float | None = None
    block_length: PositiveInt | None = None  # test values drawn together for the interval

    @property
    def standing(self) -> Literal["better", "worse", "not told apart", "unknown"]:
        """Of the model beside the base rate, by the whole interval."""
        if self.gain_low is None or self.gain_high is None:
            return "unknown"
        return "better" if self.gain_low > 0 else "worse" if self.gain_high < 0 else "not told apart"


class MemoryPlan(Model):
    """What one training step of a configuration needs on a GPU that need not be there.

    `peak` is what the GPU's allocator has to hold, compiled by XLA for that GPU. `overhead_bytes` is what else lives
    on it.
    """

    gpu: str
    configuration: dict[str, JsonValue]  # what was planned: model, batch_size, dtype_policy, ...
    peak: Quantity
    bytes_by_part: dict[str, int]  # weights, optimizer, accumulators, inputs, temporaries; sum: the peak
    overhead_bytes: int  # CUDA context, library workspaces, prefetched batches: an allowance, not compiled
    usable_bytes: int  # of the GPU's memory, for everything
    verdict: Literal["fits", "tight", "undecided", "out of memory"]  # undecided: a band over the limit
    n_parameters: int
    step_time: Quantity | None = None  # projected, from the step's operations and bytes
    notes: list[str] = Field(default=[])


class Remedy(Model):
    """One of the ways to make a training fit, alone or with others, beside what the plan claims of it."""

    name: str
    plan: MemoryPlan | None  # None: it could not be compiled; `problem` says why
    largest_batch: NonNegativeInt | None = None  # micro-batch that fits, by a search; 0: none does; None: not searched for
    claimed: str | None = None  # the plan's own estimate
    problem: str | None = None


class GpuFit(Model):
    """What makes a model's training step fit one GPU of the catalogue, by what was compiled for it."""

    gpu: str
    as_it_is: Literal["fits", "tight", "out of memory"] | None  # of the model without a mitigation; None: not compiled
    fitting: list[str]  # mitigations with which it fits, the model as it is among them, in the table's order
    plan: MemoryPlan | None  # of the first that fits, else of the model as it is; None: not compiled
    not_compiled: list[str] = Field(default=[])  # mitigations that nothing is known of on this GPU


class Kept(Model):
    """A ratio with its 95 % interval: an option's score, or gain over the base rate, over the reference's."""

    value: float
    low: float
    high: float


class Quality(Model):
    """What an option of the plan keeps of the forecast's quality, over several seeds on one series."""

    option: str
    series: str
    n_seeds: int
    n_parameters: int
    metrics: list[Metric]  # the option's
    gain_kept: Kept | None  # of the reference's gain over the base rate; None: it has none to keep
    claimed: tuple[float, float]  # the specification's: shares of quality, from and to


class TrainingResult(ChapterResult, chapter="training", number="30"):
    source: DataSource
    # a series that was generated says nothing about the user's own
    data_kind: Literal["own", "generated, planted regime", "generated, fair"] = "own"
    preset: str
    model: str | None = None  # module:function of a model of the user's own; None: the preset
    stands_in_for: str | None = None  # the preset that a smaller one was trained in place of
    n_parameters: int
    micro_batch_size: int  # at the end of the training
    micro_batch_size_asked: int | None = None  # None: not recorded
    n_retreats: NonNegativeInt = 0  # times that the device ran out of memory and the micro-batch was halved
    best_epoch: int | None = None  # the one whose weights the scores are of
    # what all seeds say of every test value; None: they tell values apart, or were not asked
    constant_answer: str | None = None
    gradient_accumulation_steps: int
    history: list[Epoch]  # of the first seed's training
    metrics: list[Metric]
    n_seeds: PositiveInt = 1  # trainings that the metrics are the mean of
    step_time: Quantity  # one micro-batch, after the first
    peak_memory: Quantity | None = None
    gpu: str | None = None  # that the remedies are planned for
    remedies: list[Remedy] = Field(default=[])
    on_devices: MemoryPlan | None = None  # of each of several GPUs that share the micro-batch; None: not asked for, not planned
    gpu_fits: list[GpuFit] = Field(default=[])  # of the same model: each GPU of the catalogue, smallest memory first
    qualities: list[Quality] = Field(default=[])
    notes: list[str] = Field(default=[])  # what did not go as asked for in training
