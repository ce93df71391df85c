"""A model of the user's own for chapter 30, by the name of the function that builds it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...results import DataSource
from ..backend import keras
from ..checks import describe_class
from . import fit
from .dataset import open_dataset
from .loop import TrainingRun, check_trainable


@dataclass(frozen=True, eq=False)
class OwnTraining:
    """What `build` of a user's module gives.

    Attributes:
        build: builds the model anew, for another seed.
        data: to train it on, as `fit` takes it; None: the model is a prototype for the chapter's series.
    """

    name: str
    build: Callable[[], keras.Model]
    model: keras.Model
    data: Any = None
    validation_data: Any = None

    def fit(self, n_epochs: int, micro_batch_size: int, gradient_accumulation_steps: int, **how: Any) -> TrainingRun:
        """Train the model on its own data; of data in batches an update is a batch."""
        is_cut = isinstance(self.data, tuple | list | dict)
        sizes = {"batch_size": micro_batch_size * gradient_accumulation_steps, "micro_batch_size": micro_batch_size}
        return fit(self.model, self.data, self.validation_data, n_epochs=n_epochs, **(sizes if is_cut else {}), **how)

    @property
    def source(self) -> DataSource:
        """Of the result: which data it is about."""
        opened = open_dataset(self.data, None)
        return DataSource(name=f"data of {self.name}", n_rows=opened.n_samples, sha256=opened.digest())


def load_own(name: str, seed: int = 0) -> OwnTraining:
    """Call the function `name`, "module:function", which returns a Keras model, or `(model, data[, validation_data])`.

    Args:
        seed: set for the whole process before the model is built (`keras.utils.set_random_seed`).

    Raises:
        ValueError: there is no such function, or it returned something else; with data the model has to be compiled.
    """
    module, _, function = name.partition(":")
    try:
        call = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"model {name!r}: {error}; give a module that `import` finds, and its function") from None
    if not callable(call):
        raise ValueError(f"model {name!r}: module {module!r} has no function {function!r}")

    def build() -> tuple:
        made = call()
        return made if isinstance(made, tuple) else (made,)

    keras.utils.set_random_seed(seed)
    model, *data = build()
    if not isinstance(model, keras.Model) or len(data) > 2:
        got = describe_class(model) if not isinstance(model, keras.Model) else f"{1 + len(data)} things"
        raise ValueError(f"{name!r} returned {got}: expected a keras.Model, or (model, data) or (model, data, validation_data)")
    if data:
        check_trainable(model)
    return OwnTraining(name, lambda: build()[0], model, *data)
