"""A PyTorch module as an ONNX file that says the same at any batch size, by `torch.onnx.export(dynamo=True)`."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..paths import write_atomically
from ..results import Agreement
from .child import InferenceError
from .export import verify


def export_module(made: Any, path: Path) -> list[Agreement]:
    """`export_onnx` of `(module, (x, y))`: x is a tensor or array, a tuple of them, or a dictionary for keywords.

    Raises:
        InferenceError: there is no x of two samples or more, the exporter is missing or failed, or the file says something
            else than the module.
    """
    module, data = made[:2] if isinstance(made, tuple) and len(made) > 1 else (made, None)
    if data is None:
        raise InferenceError("the module's inputs are unknown: give (module, (x, y)), x with two samples or more")
    x = tree_map(lambda array: torch.as_tensor(array).cpu()[:2].repeat(2, *[1] * (np.ndim(array) - 1))[:2], data[0])
    named, unnamed = (x, ()) if isinstance(x, dict) else ({}, x if isinstance(x, tuple) else (x,))
    batch, was_training, module = torch.export.Dim("batch"), module.training, module.cpu().eval()
    shapes = {name: {0: batch} for name in named} or tuple({0: batch} for _ in unnamed)

    def call(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.no_grad():
            outputs = module(**tensors) if named else module(*tensors.values())
        return [each.numpy() for each in tree_leaves(outputs)]

    try:
        with tempfile.TemporaryDirectory(prefix="altlas-") as folder, contextlib.redirect_stdout(None):
            file = Path(folder) / "model.onnx"
            program = torch.onnx.export(module, unnamed, kwargs=named, dynamo=True, dynamic_shapes=shapes, verbose=False)
            program.save(file, external_data=False)
            agreement = verify(file, call)
            write_atomically(path, file.read_bytes())
    except InferenceError:
        raise
    except Exception as error:  # whatever the module and the exporter raise, a missing onnxscript among it
        said = f"{type(error).__name__}: {str(error).strip()[:300]}"
        advice = "pip install onnxscript, or write that layer without the batch's size and without branches on values"
        raise InferenceError(f"the module cannot be exported ({said}): {advice}") from error
    finally:
        module.train(was_training)
    return agreement
