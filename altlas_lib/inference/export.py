"""A Keras model as an ONNX file that says the same, with the model's own names, at any batch size."""

import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..paths import write_atomically
from ..results import Agreement
from ..training.pytorch.task import is_module
from .child import InferenceError, run_child
from .compare import compare_outputs
from .measure import INPUT_DTYPES, arrange_inputs, draw_inputs, input_structure, open_session, run_batches

UNSEEN_BATCHES = (3, 7)  # at which the file is compared with the model; the export itself sees a batch of one
LARGEST_DIFFERENCE = 1e-3  # of an output's largest value: float32 sums in another order stay far below


def export_onnx(model: Any, path: str | Path, *, modules: Sequence[str] = (), time_limit_s: float = 600) -> list[Agreement]:
    """Write a Keras model of any backend as ONNX, by TensorFlow in a child process, and say how far the file is from it.

    A PyTorch module is written by PyTorch's exporter, in this process: give it with data, as `(module, (x, y))`, of which two
    samples are looked at, or "module:function" that builds both. Its inputs are called as `forward` calls them.

    Inputs and outputs keep the model's names, their first dimension is called `batch`. The file appears when it is whole and
    was compared with the model on random inputs, at batches that the export did not see.

    Args:
        model: a built `keras.Model`, a PyTorch module with data, a `.keras` file, or "module:function" that builds one, of
            layers in keras.ops; an `.onnx` file is copied.
        modules: to import before a file is loaded: they register its own layers. Those of a built model are found.

    Returns:
        The agreement of each output; of an `.onnx` file none.

    Raises:
        InferenceError: no such model, an input without a shape or of float64 or text, an operation that ONNX lacks, a missing
            exporter, or a file that says something else than the model.
    """
    if isinstance(model, str | Path) and str(model).endswith(".onnx"):
        open_session(model)
        write_atomically(Path(path), Path(model).read_bytes())
        return []
    if is_module(model):
        from .torch_export import export_module

        return export_module(model, Path(path))
    if not importlib.util.find_spec("tf2onnx"):
        raise InferenceError("tf2onnx is not installed, which writes ONNX: pip install tf2onnx")
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        made = Path(folder) / "model.onnx"
        request = save_keras(model, Path(folder), modules) | {"path": str(made)}
        found = run_child("export", request, time_limit_s, KERAS_BACKEND="tensorflow")
        write_atomically(Path(path), made.read_bytes())
    return [Agreement.model_validate(each) for each in found["agreement"]]


def is_keras(model: Any) -> bool:
    """Whether it is a `keras.Model`; Keras is not loaded for it."""
    return hasattr(model, "_flatten_layers")


def save_keras(model: Any, folder: Path, modules: Sequence[str]) -> dict[str, Any]:
    """What a child loads the model by: a request's `model` and the `modules` that define its own layers."""
    if isinstance(model, str | Path):
        return {"model": str(model), "modules": list(modules)}
    if not is_keras(model):
        expected = "expected a keras.Model, a .keras file or 'module:function' that builds one"
        raise InferenceError(f"the model is a {type(model).__module__}.{type(model).__qualname__}: {expected}")
    model.save(folder / "model.keras")
    own = {type(layer).__module__ for layer in model._flatten_layers()}
    return {
        "model": str(folder / "model.keras"),
        "modules": [*modules, *sorted(each for each in own if "keras.src" not in each)],
    }


# In the child -------------------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Export, rename and compare; called by `run_child`."""
    import keras
    import onnx

    model = open_model(request["model"], request["modules"])
    if is_module(model):
        return {"agreement": [each.model_dump() for each in export_onnx(model, request["path"])]}
    _register_erfc()
    try:
        zeros = keras.tree.map_structure(lambda t: keras.ops.zeros((1, *t.shape[1:]), t.dtype), input_structure(model))
        model(zeros)  # Keras exports what has been called once
        model.export(request["path"], format="onnx", verbose=False)
        graph = onnx.load(request["path"])
        onnx.checker.check_model(graph)
    except Exception as error:  # whatever the model and the exporter raise
        raise InferenceError(_explain_failure(error)) from error
    if len(graph.graph.input) > len(model.inputs):
        own = [each.name for each in graph.graph.input if each.name not in {tensor.name for tensor in model.inputs}]
        advice = "make it a weight of a layer, or a NumPy array"
        raise InferenceError(f"the model holds a tensor that was computed outside of its layers ({', '.join(own)}): {advice}")
    _rename(graph.graph, model)
    onnx.save(graph, request["path"])

    def call(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = keras.tree.flatten(model(arrange_inputs(model, inputs), training=False))
        return [np.asarray(each) for each in outputs]

    return {"agreement": [each.model_dump() for each in verify(request["path"], call)]}


def verify(onnx_file: str | Path, call: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> list[Agreement]:
    """How far an exported file is from the model, which `call` asks, at batches that the export did not see.

    Raises:
        InferenceError: it does not take such a batch, or says something else.
    """
    session = open_session(onnx_file)
    for n in UNSEEN_BATCHES:
        inputs = draw_inputs(session, n)
        expected = call(inputs)
        try:
            of_file = run_batches(session, inputs)
        except Exception as error:  # ONNX Runtime's own classes share no base
            advice = "the exporter fixed the batch: write that layer without the batch's size, or serve the model as it is"
            raise InferenceError(f"the file does not take a batch of {n} ({str(error)[:300]}): {advice}") from None
        found = compare_outputs(dict(zip(of_file, expected, strict=True)), of_file)
        for each, values in zip(found, expected, strict=True):
            if each.largest > LARGEST_DIFFERENCE * max(1, np.abs(values).max()):
                advice = "the exporter changed the model; go on serving it as it is, and report its layers to the exporter"
                raise InferenceError(f"output {each.output!r} differs from the model's by up to {each.largest:.2g}: {advice}")
    return found


def open_model(source: str | Path, modules: Sequence[str] = ()) -> Any:
    """A Keras model whose inputs ONNX Runtime and TensorRT take, a PyTorch module with its data, or an `.onnx` file's path.

    Args:
        source: a `.keras` or `.onnx` file, or "module:function" that builds a model.
        modules: to import before a file is loaded: they register its own layers.

    Raises:
        InferenceError: there is none, it cannot be loaded, or an input's shape is unknown or its dtype unfit.
    """
    source = str(source)
    if source.endswith(".onnx"):
        return Path(source)
    import keras

    sys.path.insert(0, os.getcwd())
    keras.config.disable_flash_attention()  # else Keras asks the machine at hand
    try:
        for module in modules:
            importlib.import_module(module)
        module, _, function = source.partition(":")
        is_file = source.endswith(".keras")
        made = keras.models.load_model(source) if is_file else getattr(importlib.import_module(module), function)()
        if is_module(made):
            return made
        model = made[0] if isinstance(made, tuple) else made
        inputs = getattr(model, "inputs", None) if model.built else None
    except Exception as error:  # a damaged file, an unknown layer, whatever the user's module raises
        expected = "expected a .keras file with the modules of its own layers, or 'module:function' that builds a Keras model"
        raise InferenceError(f"{source!r} cannot be loaded ({type(error).__name__}: {str(error)[:300]}): {expected}") from None
    if not inputs:
        advice = "call it once on a batch and wrap it by keras.Model(inputs, model(inputs))"
        raise InferenceError(f"model {model.name!r} does not know its inputs, as one that was never called: {advice}")
    for tensor in inputs:
        if None in tensor.shape[1:] or tensor.dtype not in INPUT_DTYPES.values():
            expected = f"all dimensions but the batch, and one of {', '.join(INPUT_DTYPES.values())}"
            raise InferenceError(
                f"input {tensor.name!r} has shape {tensor.shape} and dtype {tensor.dtype}: expected {expected}"
            )
    return model


def _rename(graph: Any, model: Any) -> None:
    """Give outputs that the exporter named itself the names of the layers that they come from; call the batch `batch`."""
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    is_named = isinstance(getattr(model, "_outputs_struct", None), dict)  # by the user; the exporter keeps these
    renamed = {} if is_named else dict(zip((each.name for each in graph.output), names, strict=True))
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in (*graph.input, *graph.output):
        tensor.name = renamed.get(tensor.name, tensor.name)
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"


def _register_erfc() -> None:
    """Of Keras' exact GELU, which ONNX lacks: 1 - Erf."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx, node, **kwargs):  # the name says from which opset on
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", node.input)
            one = ctx.make_const(f"{node.name}/one", np.float32(1))
            ctx.make_node("Sub", [one.output[0], erf.output[0]], name=node.name, outputs=node.output)


def _explain_failure(error: Exception) -> str:
    """Which operation does not convert, in which layer, and what to do."""
    operation = re.search(r"Name: (\S+) OpType: (\w+)", f"{error}")  # as ONNX's checker says it; the name holds the layer's
    what = f"operation {operation[2]} of layer {operation[1]}" if operation else "an operation"
    said = f"{type(error).__name__}: {str(error).strip()[:300]}"
    return f"{what} has no counterpart in ONNX ({said}): write the layer by other keras.ops, or serve without it"
