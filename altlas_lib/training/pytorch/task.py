"""A module and what Keras' `compile` would say of it: how its loss is made, and which optimizer moves it."""

import fnmatch
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..checks import describe_class

if TYPE_CHECKING:
    import torch

AMP_POLICIES = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}  # Keras' names, and PyTorch's for autocast


def is_module(model: Any) -> bool:
    """Whether it is a PyTorch module, or a tuple that begins with one; PyTorch is not loaded for it.

    Not a Keras model, which on Keras' PyTorch backend is a module, too.
    """
    torch, keras = (sys.modules.get(name) for name in ("torch", "keras"))
    first = model[0] if isinstance(model, tuple) and model else model
    return torch is not None and isinstance(first, torch.nn.Module) and not (keras and isinstance(first, keras.Model))


@dataclass(frozen=True)
class Task:
    """What a function that builds a module returns, in this order, as a tuple; all but the module may be left out.

    Attributes:
        data: `(x, y)`, tensors or arrays whose first dimension is the samples; x may be a tuple, the module's arguments, or a
            dictionary, its keywords; y may be None. A plan looks at shapes and dtypes only.
        loss: `loss(outputs, y)`, a mean over samples. None: the output's own `loss` where it has one, cross entropy where y
            holds whole numbers, else mean squared error (of y None: mean of squares).
        optimizer: takes the parameters. None: `torch.optim.AdamW`.

    Raises:
        ValueError: a loss or an optimizer that cannot be called.
    """

    module: "torch.nn.Module"
    data: Any = None
    loss: Callable | None = None
    optimizer: Callable | None = None

    def __post_init__(self):
        for name in ("loss", "optimizer"):
            if (value := getattr(self, name)) is not None and not callable(value):
                made = "(module, (x, y), loss, optimizer), of which all but the module may be left out"
                raise ValueError(f"{name} is {describe_class(value)}: expected a function; a module comes as {made}")

    @classmethod
    def of(cls, made: Any) -> "Task":
        """Of a module, or of what its building function returned."""
        parts = made if isinstance(made, tuple) else (made,)
        return cls(**dict(zip([field.name for field in fields(cls)], parts, strict=False)))

    def compute_loss(self, x: Any, y: Any) -> "torch.Tensor":
        """Of a micro-batch on the module's device.

        Raises:
            ValueError: the module gives no single tensor, and there is no loss that says what to do with it.
        """
        import torch

        outputs = self.module(**x) if isinstance(x, dict) else self.module(*x) if isinstance(x, tuple) else self.module(x)
        if self.loss:
            return self.loss(outputs, y)
        if getattr(outputs, "loss", None) is not None:
            return outputs.loss
        if not isinstance(outputs, torch.Tensor):
            raise ValueError(f"the module returned {describe_class(outputs)}: give a loss, a function of (outputs, y)")
        if y is None:
            return outputs.float().square().mean()
        return (torch.nn.functional.mse_loss if y.is_floating_point() else torch.nn.functional.cross_entropy)(outputs, y)

    def make_optimizer(self) -> "torch.optim.Optimizer":
        import torch

        return (self.optimizer or torch.optim.AdamW)([each for each in self.module.parameters() if each.requires_grad])


def recompute_modules(module: "torch.nn.Module", names: Sequence[str]) -> list["torch.nn.Module"]:
    """Let parts of a module keep their inputs only and compute the rest again for the backward pass (activation checkpointing).

    Args:
        names: of submodules, or patterns of names; "*": every repeated block, an entry of a `ModuleList` or `Sequential` that
            has two of its class with parts of their own, the outermost where they are nested.

    Returns:
        The parts; their own `forward` is back once it is deleted from their attributes.

    Raises:
        ValueError: no such part.
    """
    from torch.utils.checkpoint import checkpoint

    known, chosen = dict(module.named_modules()), {}
    for name in names:
        found = _repeated_blocks(known) if name == "*" else fnmatch.filter(known, name)
        if not found:
            raise ValueError(f"recompute: no part {name!r}; the module has {', '.join([*known][1:20])}")
        chosen |= dict.fromkeys(known[each] for each in found)
    for part in chosen:
        part.forward = functools.partial(checkpoint, part.forward, use_reentrant=False)
    return [*chosen]


def _repeated_blocks(known: dict[str, Any]) -> list[str]:
    blocks: list[str] = []
    for name, container in known.items():
        if type(container).__name__ in ("ModuleList", "Sequential") and not name.startswith(tuple(blocks)):
            kinds = [type(each) for each in container if [*each.children()]]
            repeated = [i for i, each in enumerate(container) if kinds.count(type(each)) > 1]
            blocks += [f"{name}.{i}".removeprefix(".") for i in repeated]
    return blocks
