"""A training step as XLA compiles it, in a process of its own: `request.compile_steps` starts it, nobody else should.

Keras runs on JAX here whatever the user trains on: JAX compiles for a GPU that is not there, from shapes alone. Nothing is
allocated but the weights of a user's own model, in host memory. What it or XLA does to its process stays in the child.
Requests come as JSON on standard input; one line of JSON for each goes to standard output.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
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
        return keras.models.model_from_json(request.keras_config)
    except Exception as error:  # a damaged file, an unknown layer, a Lambda
        raise PlanError(
            f"the model cannot be loaded on Keras' JAX backend ({type(error).__name__}: {str(error).strip().splitlines()[0]}): "
            "name the function that builds it, 'module:function', with layers and losses of its own in a module, in keras.ops"
        ) from None


def _make_inputs(model: keras.Model, request: StepRequest) -> Any:
    """Symbolic tensors of whole shapes in the structure of the model's input (single, list, dict)."""
    known, shapes = getattr(model, "inputs", None), request.input_shapes
    if not known:
        tensors = {name: keras.KerasTensor((request.batch_size, *shape)) for name, shape in shapes.items()}
        if not tensors:
            advice = "name them, as in input_shapes={'x': (128,)} (or --input x=128), or wrap it by keras.Model(inputs, ...)"
            raise PlanError(f"model {model.name!r} does not know its inputs, as one that is a class of its own: {advice}")
        return tensors if len(tensors) > 1 else next(iter(tensors.values()))

    def whole(tensor):
        sizes, example = tensor.shape[1:], tuple(size or 128 for size in tensor.shape[1:])
        shape = shapes.get(tensor.name, sizes)
        if len(shape) != len(sizes) or not all(b and a in (None, b) for a, b in zip(sizes, shape, strict=True)):
            problem = f"input {tensor.name!r} has shape {sizes} without the batch, {shape} is to be planned"
            advice = f"input_shapes={{{tensor.name!r}: {example}}} (or --input {tensor.name}={','.join(map(str, example))})"
            raise PlanError(f"{problem}: give all dimensions, as in {advice}")
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


def _compile_model(model: keras.Model, request: StepRequest) -> None:
    """Give the model its loss, and the optimizer that the trainer would give it."""
    own = getattr(model, "optimizer", None)
    optimizer = keras.optimizers.get(keras.optimizers.serialize(_unwrap(own)) if own else "adam")
    if any(layer.compute_dtype == "float16" for layer in private.sublayers(model)):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if request.gradient_accumulation_steps > 1:
        batch_size = request.batch_size * request.gradient_accumulation_steps
        optimizer = AccumulatingOptimizer(optimizer, MicroBatching(batch_size, batch_size, request.batch_size))
    # Mean squared error stands for a loss that the model does not bring: it needs the least that a loss can.
    model.compile(optimizer, loss=getattr(model, "loss", None) or "mean_squared_error", auto_scale_loss=False)


def _unwrap(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The innermost one, which makes the updates."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def lower_step(request: StepRequest) -> tuple[keras.Model, jax.stages.Lowered, list[Any], Any]:
    """The training step as Keras runs it (forward, backward, optimizer, metrics), of which nothing is allocated.

    Returns:
        The compiled model, the step, and the shapes of its state and of its batch.
    """
    keras.config.disable_flash_attention()  # decided here, not by the machine at hand: it would ask this CPU for cuDNN
    model = _load_model(request)
    x = _make_inputs(model, request)
    _compile_model(model, request)
    with _unallocated():
        y = _make_targets(model.compute_output_spec(x), model.loss, getattr(model, "output_names", ()))
        private.make_variables(model, (x, y))
    sharding = None
    if request.target:
        topology = topologies.get_topology_desc(platform="cuda", target_config=request.target, topology="1x1x1")
        sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())

    def describe(tensors: Any) -> Any:
        return jax.tree.map(lambda tensor: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype, sharding=sharding), tensors)

    state, batch = describe([list(part) for part in private.training_state(model)]), describe((x, y))
    with recompute_layers(model, request.config.recomputed_layers if request.config else request.recompute):
        return model, jax.jit(model.train_step, donate_argnums=0).lower(tuple(state), batch), state, batch


def _compile_step(request: StepRequest) -> StepCost:
    """What the step needs.

    Raises:
        jax.errors.JaxRuntimeError: XLA failed.
    """
    model, lowered, state, batch = lower_step(request)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    new_outputs_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes  # not written in the place of an input
    policies = {layer.dtype_policy.name for layer in private.sublayers(model)}  # some layers may stay in float32
    sums_bytes = _count_bytes(getattr(model.optimizer, "sums", []))
    return StepCost(
        bytes_by_part={
            "weights": _count_bytes([*state[0], *state[1], *state[3]]),
            "optimizer": _count_bytes(state[2]) - sums_bytes,
            "accumulators": sums_bytes,
            "inputs": _count_bytes(jax.tree.leaves(batch)),
            "temporaries": memory.temp_size_in_bytes + max(new_outputs_bytes, 0),
        },
        n_parameters=model.count_params(),
        n_flops=private.count_operations(lowered),
        moved_bytes=private.count_moved_bytes(compiled),
        has_loop=private.has_loop(compiled),
        dtype_policy=min(policies - {"float32"}, default="float32"),
        optimizer=type(_unwrap(model.optimizer)).__name__.lower(),
    )


def _count_bytes(arrays: Iterable[Any]) -> int:
    return sum(math.prod(array.shape) * jax.numpy.dtype(array.dtype).itemsize for array in arrays)


def answer(request: StepRequest) -> StepCost:
    """The cost of the step, or why there is none."""
    try:
        return _compile_step(request)
    except jax.errors.JaxRuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        missing = any(file in first_line for file in ("libdevice", "ptxas"))
        hint = "pip install nvidia-cuda-nvcc-cu12" if missing else "plan another dtype policy or GPU"
        return StepCost(error=f"XLA failed on this step for this GPU ({first_line}): {hint}")
    except (PlanError, ValueError, TypeError) as error:  # Keras says by the latter two that a model and its use do not fit
        return StepCost(error=str(error))


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a user's module prints is no answer
    for each in json.load(sys.stdin):
        print(answer(StepRequest.model_validate(each)).model_dump_json(exclude_defaults=True), file=answers, flush=True)
