"""A model of the user's own, by the name of the function that builds it."""

import importlib
from typing import Any

from ..results import DataSource
from .backend import keras
from .checks import EXPECTED_MODEL, describe_class
from .fit.dataset import open_dataset


def load_own(name: str, *, seed: int | None = None) -> tuple[keras.Model, Any, Any]:
    """Call the function `name`, "module:function", which returns a Keras model, or `(model, data[, validation_data])`.

    Args:
        seed: set for the whole process before the model is built (`keras.utils.set_random_seed`).

    Returns:
        The model, its data and validation data as `fit` takes them; None where there are none.

    Raises:
        ValueError: there is no such function, it failed, or it returned something else.
    """
    module, _, function = name.partition(":")
    try:
        if seed is not None:
            keras.utils.set_random_seed(seed)
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the user's module raises
        advice = "give a function that builds a Keras model, 'module:function', in a module that `import` finds"
        raise ValueError(f"model {name!r} failed ({type(error).__name__}: {error}): {advice}") from error
    model, *data = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, keras.Model) or len(data) > 2:
        got = f"{describe_class(model)} and {len(data)} data sets"
        raise ValueError(f"model {name!r} returned {got}: {EXPECTED_MODEL}, or (model, data, validation data)")
    return model, *data, *[None] * (2 - len(data))


def describe_data(name: str, data: Any) -> DataSource:
    """Of a result: which data of the model `name` it is about."""
    opened = open_dataset(data)
    return DataSource(name=f"data of {name}", n_rows=opened.n_samples, sha256=opened.digest())
