"""What `fit` can be asked for, and which models it can train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import keras
from ..checks import EXPECTED_MODEL, check_count, describe_class


@dataclass(frozen=True)
class Settings:
    """What `fit` was asked for."""

    n_epochs: int
    batch_size: int | None = None
    micro_batch_size: int | None = None
    patience: int | None = None
    seed: int = 0
    recompute: Sequence[str] = ()
    callbacks: Sequence["keras.callbacks.Callback"] = ()
    verbose: int = 0
    checkpoint_folder: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self):
        for name in ("n_epochs", "batch_size", "micro_batch_size", "patience", "checkpoint_every"):
            if name == "n_epochs" or getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.resume and self.checkpoint_folder is None:
            raise ValueError("resume is True without a checkpoint_folder: name the folder to continue from")


def check_trainable(model: Any) -> None:
    """That `fit` can train it.

    Raises:
        ValueError: it is no compiled Keras model, or accumulates or counts steps in a way of its own.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"the model is {describe_class(model)}: {EXPECTED_MODEL}, and compiled")
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError(f"model {model.name!r} has no optimizer: compile it, as in model.compile('adam', loss='mse')")
    if getattr(model, "steps_per_execution", 1) != 1:
        raise ValueError(f"steps_per_execution is {model.steps_per_execution}: expected 1, compile the model without it")
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if n_steps := getattr(inner, "gradient_accumulation_steps", None):
        raise ValueError(f"gradient_accumulation_steps={n_steps}: compile the model without, and give fit a micro_batch_size")


def check_accumulates(model: keras.Model) -> None:
    """That the losses of micro-batches, weighed by their sizes, add up to the loss of the batch.

    Raises:
        ValueError: a loss is a sum, or a mean over weights.
    """
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        if (reduction := getattr(loss, "reduction", None)) in ("sum", "mean_with_sample_weight"):
            needed = "micro-batches need 'sum_over_batch_size', a mean over samples"
            raise ValueError(f"loss {loss.name!r} has the reduction {reduction!r}: {needed}; or leave out micro_batch_size")
