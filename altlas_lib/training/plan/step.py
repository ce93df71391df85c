"""A training step as XLA compiles it, in a process of its own: `compile` starts it, nobody else should.

Keras runs on JAX here whatever the user trains on: JAX compiles for a GPU that is not there, from shapes alone. Nothing is
allocated but the weights of a user's own model, in host memory. What it or XLA does to its process stays in the child.
Requests come as JSON on standard input; a line "loaded" and one line of JSON for each request go to standard output.
"""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from .. import private
from ..backend import keras
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from ..model.losses import compile_losses
from ..model.multi_scale import build_model
from ..model.recompute import recompute_layers
from ..own import load_own
from .request import PlanError, StepCost, StepRequest


def _unallocated() -> keras.StatelessScope:
    """Within, variables have a shape and no value: XLA asks for no more, and to draw initial values takes seconds."""
    return keras.StatelessScope(initialize_variables=False)


def _load_model(request: StepRequest) -> keras.Model:
    if request.config:
        with _unallocated():
            model = build_model(request.config, dtype_policy=request.dtype_policy or "float32")
        model.loss = compile_losses(below_weight=1.0, above_weight=1.0)
        return model
    if request.builder:
        keras.config.set_dtype_policy(request.dtype_policy or "float32")
        return load_own(request.builder)[0]
    try:
        for module in request.modules:
            importlib.import_module(module)
        return keras.models.load_model(request.keras_file)
    except Exception as error:  # a damaged file, an unknown layer, a Lambda
        raise PlanError(
            f"the model cannot be loaded on Keras' JAX backend ({type(error).__name__}: {str(error).strip().splitlines()[0]}): "
            "name the function that builds it, 'module:function', with layers and losses of its own in a module, in keras.ops"
        ) from None


def _make_inputs(model: keras.Model, request: StepRequest) -> Any:
    """Symbolic tensors of whole shapes in the structure of the model's input (single, list, dict)."""
    known, shapes = getattr(model, "inputs", None), request.input_shapes
    if not known and not shapes:
        raise PlanError(
            f"model {model.name!r} does not know its inputs, as one that is a class of its own: name them with their shapes "
            "without the batch, as in input_shapes={'x': (128,)} (or --input x=128); for other dtypes than float32 wrap it by "
            "keras.Model(inputs, model(inputs))"
        )
    if not known:
        tensors = {name: keras.KerasTensor((request.batch_size, *shape)) for name, shape in shapes.items()}
        return tensors if len(tensors) > 1 else next(iter(tensors.values()))
    if unknown := shapes.keys() - {tensor.name for tensor in known}:
        raise PlanError(f"input_shapes names {sorted(unknown)}: the model's inputs are {[tensor.name for tensor in known]}")

    def whole(tensor):
        sizes = tensor.shape[1:]
        shape = shapes.get(tensor.name, sizes)
        if len(shape) != len(sizes) or None in shape or any(b not in (None, a) for a, b in zip(shape, sizes, strict=True)):
            example = tuple(size or 128 for size in sizes)
            raise PlanError(
                f"input {tensor.name!r} has shape {sizes} without the batch, {shape} is to be planned: give all dimensions, "
                f"as in input_shapes={{{tensor.name!r}: {example}}} (or --input {tensor.name}={','.join(map(str, example))})"
            )
        return keras.KerasTensor((request.batch_size, *shape), tensor.dtype)

    return keras.tree.map_structure(whole, known[0] if isinstance(model, keras.Sequential) else model.input)


def _make_targets(outputs: Any, loss: Any, names: Sequence[str] = ()) -> Any:
    """Symbolic targets: shaped as the outputs, or class numbers where the loss is a sparse one."""
    if isinstance(loss, dict):
        if not isinstance(outputs, dict):
            outputs = dict(zip(names, keras.tree.flatten(outputs), strict=True))
        return {name: _make_targets(outputs[name], each) for name, each in loss.items()}
    if isinstance(loss, list | tuple):
        return [_make_targets(output, each) for output, each in zip(outputs, loss, strict=True)]
    name = loss if isinstance(loss, str) else f"{getattr(loss, 'name', '')} {type(loss).__name__}"

    def target(output):
        return keras.KerasTensor(output.shape[:-1], "int32") if "sparse" in name.lower() else output

    return keras.tree.map_structure(target, outputs)


def _compile_model(model: keras.Model, request: StepRequest) -> str:
    """Give the model its loss, and the optimizer that the trainer would give it; that one's name."""
    own = getattr(model, "optimizer", None)
    while isinstance(own, keras.optimizers.LossScaleOptimizer):
        own = own.inner_optimizer
    optimizer = keras.optimizers.get(keras.optimizers.serialize(own) if own else "adam")
    name = type(optimizer).__name__.lower()
    if any(layer.compute_dtype == "float16" for layer in private.sublayers(model)):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if request.gradient_accumulation_steps > 1:
        batch_size = request.batch_size * request.gradient_accumulation_steps
        optimizer = AccumulatingOptimizer(optimizer, MicroBatching(batch_size, batch_size, request.batch_size))
    # Mean squared error stands for a loss that the model does not bring: it needs the least that a loss can.
    model.compile(optimizer, loss=getattr(model, "loss", None) or "mean_squared_error", auto_scale_loss=False)
    return name


def _build_step(request: StepRequest) -> tuple[keras.Model, str, Any]:
    """A compiled model, its optimizer's name, and the symbolic inputs and targets that its step is called with."""
    keras.config.disable_flash_attention()  # decided here, not by the machine at hand: it would ask this CPU for cuDNN
    model = _load_model(request)
    x = _make_inputs(model, request)
    optimizer_name = _compile_model(model, request)
    with _unallocated():
        y = _make_targets(model.compute_output_spec(x), model.loss, getattr(model, "output_names", ()))
        private.make_variables(model, (x, y))
    return model, optimizer_name, (x, y)


def lower_step(model: keras.Model, batch: Any, target: str | None, recompute: Sequence[str]) -> tuple[jax.stages.Lowered, Any]:
    """The training step as Keras runs it (forward, backward, optimizer, metrics), and the shapes of its state.

    Args:
        target: XLA's description of the GPU that it is for; None: this machine's CPU.
    """
    sharding = None
    if target:
        topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
        sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())

    def shapes(tensors: Any) -> Any:
        return jax.tree.map(lambda tensor: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype, sharding=sharding), tensors)

    state = shapes([list(part) for part in private.training_state(model)])
    with recompute_layers(model, recompute):
        return jax.jit(model.train_step, donate_argnums=0).lower(tuple(state), shapes(batch)), state


def _compile_step(model: keras.Model, optimizer_name: str, batch: Any, request: StepRequest) -> StepCost:
    """What the step needs.

    Raises:
        jax.errors.JaxRuntimeError: XLA failed.
    """
    began_s = time.perf_counter()
    recompute = request.config.recomputed_layers if request.config else request.recompute
    lowered, state = lower_step(model, batch, request.target, recompute)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    new_outputs_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes  # not written in the place of an input
    policies = {layer.dtype_policy.name for layer in private.sublayers(model)}  # some layers may stay in float32
    sums_bytes = _count_bytes(getattr(model.optimizer, "sums", []))
    return StepCost(
        weights_bytes=_count_bytes([*state[0], *state[1], *state[3]]),
        optimizer_bytes=_count_bytes(state[2]) - sums_bytes,
        accumulators_bytes=sums_bytes,
        inputs_bytes=_count_bytes(jax.tree.leaves(batch)),
        temporaries_bytes=memory.temp_size_in_bytes + max(new_outputs_bytes, 0),
        n_parameters=model.count_params(),
        n_flops=private.count_operations(lowered),
        moved_bytes=private.count_moved_bytes(compiled),
        has_loop=private.has_loop(compiled),
        compile_s=time.perf_counter() - began_s,
        dtype_policy=min(policies - {"float32"}, default="float32"),
        optimizer=optimizer_name,
    )


def _count_bytes(arrays: Sequence[Any]) -> int:
    return sum(math.prod(array.shape) * jax.numpy.dtype(array.dtype).itemsize for array in arrays)


def answer(requests: Sequence[StepRequest], loaded: Callable[[], None] = lambda: None) -> Iterator[StepCost]:
    """The answer to each request, of which several in a row may differ in the target only: their step is built once.

    Args:
        loaded: called after a model has been built.
    """
    built_for = step = None
    for request in requests:
        try:
            subject = request.model_copy(update={"target": None})
            if subject != built_for:
                step, built_for = _build_step(request), subject
            loaded()
            cost = _compile_step(*step, request)
        except jax.errors.JaxRuntimeError as error:
            first_line = str(error).strip().splitlines()[0]
            missing = any(file in first_line for file in ("libdevice", "ptxas"))
            hint = "pip install nvidia-cuda-nvcc-cu12" if missing else "plan another dtype policy or GPU"
            cost = StepCost(error=f"XLA failed on this step for this GPU ({first_line}): {hint}")
        except (PlanError, ValueError, TypeError) as error:  # Keras says by the latter two that a model and its use do not fit
            cost = StepCost(error=str(error))
        yield cost


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a user's module prints is no answer
    for each in answer(
        [StepRequest.model_validate(request) for request in json.load(sys.stdin)], lambda: print("loaded", file=answers)
    ):
        print(each.model_dump_json(exclude_defaults=True), file=answers)
