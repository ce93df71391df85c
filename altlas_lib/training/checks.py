"""What several parts of training say about a value that cannot be meant."""

from typing import Any

import numpy as np

EXPECTED_MODEL = "expected a keras.Model, built by Keras 3 (`import keras`)"


def describe_class(value: Any) -> str:
    """`a torch.nn.modules.container.Sequential`: class and module, as an error names what it got."""
    kind = type(value)
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"


def check_count(name: str, number: Any) -> int:
    """A whole number of 1 or more.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{name} is {number!r} ({describe_class(number)}): expected a whole number of 1 or more")
    return int(number)
