"""A training step as XLA compiles it, in a process of its own: `compile` starts it, nobody else should.

Keras runs on JAX here whatever the user trains on: JAX compiles for a GPU that is not there, from shapes alone. Nothing is
allocated but the weights of a user's own model, in host memory. What it or XLA does to its process stays in the child.
Requests come as JSON on standard input; a line "loaded" and one line of JSON for each request go to standard output.
"""

import hashlib
import importlib
import json
import math
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from .. import private
from ..backend import keras
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from ..model.losses import compile_losses
from ..model.multi_scale import build_model
from .request import EXPECTED_MODEL, PlanError, StepCost, StepRequest, describe_class


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises
        raise PlanError(f"module {name!r} cannot be imported ({type(error).__name__}: {error})") from None


def _with_policy(model: keras.Model, dtype_policy: str) -> keras.Model:
    """The model computed in another precision; its outputs stay as they were, for losses take logarithms of them."""

    def rebuilt(layer):
        config = layer.get_config()
        if layer.name not in model.output_names:
            config["dtype"] = dtype_policy
        return type(layer).from_config(config)

    other = keras.models.clone_model(model, clone_function=rebuilt)
    other.loss = getattr(model, "loss", None)
    return other


def _unallocated() -> keras.StatelessScope:
    """Within, variables have a shape and no value: XLA asks for no more, and to draw initial values takes seconds."""
    return keras.StatelessScope(initialize_variables=False)


def _load_model(request: StepRequest) -> keras.Model:
    if request.config:
        with _unallocated():
            model = build_model(request.config, request.n_features, dtype_policy=request.dtype_policy or "float32")
        model.loss = compile_losses(below_weight=1.0, above_weight=1.0)
        return model
    for module in request.modules:
        _import_module(module)
    if request.builder:
        module, _, name = request.builder.partition(":")
        build = getattr(_import_module(module), name, None)
        if not callable(build):
            raise PlanError(f"{request.builder!r}: module {module!r} has no function {name!r}")
        if request.dtype_policy:
            keras.config.set_dtype_policy(request.dtype_policy)
        try:
            model = build()
        except Exception as error:  # whatever a user's function raises
            raise PlanError(f"{request.builder!r} failed ({type(error).__name__}: {error})") from None
        if isinstance(model, tuple) and model:  # with its data
            model = model[0]
        if not isinstance(model, keras.Model):
            raise PlanError(f"{request.builder!r} returned {describe_class(model)}: {EXPECTED_MODEL}")
        return model
    try:
        return keras.models.load_model(request.keras_file)
    except Exception as error:  # a damaged file, an unknown layer, a Lambda
        raise PlanError(
            f"the model cannot be loaded on Keras' JAX backend ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "name the modules that define its own layers and losses in `modules`, written in keras.ops"
        ) from None


def _with_inputs(model: keras.Model, input_shapes: dict[str, tuple[int, ...]]) -> keras.Model:
    """A functional model, which knows its inputs; of the same layers and weights."""
    if isinstance(model, keras.Sequential) and model.built:
        functional = keras.Model(model.inputs, model.outputs)
    elif getattr(model, "inputs", None):
        return model
    elif input_shapes:  # of a subclassed model
        inputs = {name: keras.Input(shape, name=name) for name, shape in input_shapes.items()}
        functional = keras.Model(inputs, model(inputs if len(inputs) > 1 else next(iter(inputs.values()))))
    else:
        raise PlanError(
            f"model {model.name!r} does not know its inputs, as one that is a class of its own: name them with their shapes "
            "without the batch, as in input_shapes={'x': (128,)} (or --input x=128); for other dtypes than float32 wrap it by "
            "keras.Model(inputs, model(inputs))"
        )
    functional.loss = getattr(model, "loss", None)
    return functional


def _make_inputs(model: keras.Model, request: StepRequest) -> Any:
    """Symbolic tensors of whole shapes in the structure of the model's input (single, list, dict)."""
    names = {tensor.name for tensor in model.inputs}
    if unknown := request.input_shapes.keys() - names:
        raise PlanError(f"input_shapes names {sorted(unknown)}: the model's inputs are {sorted(names)}")

    def whole(tensor):
        known = tensor.shape[1:]
        shape = request.input_shapes.get(tensor.name, known)
        if len(shape) != len(known) or None in shape or any(b not in (None, a) for a, b in zip(shape, known, strict=True)):
            example = tuple(size or 128 for size in known)
            raise PlanError(
                f"input {tensor.name!r} has shape {known} without the batch, {shape} is to be planned: give all dimensions, "
                f"as in input_shapes={{{tensor.name!r}: {example}}} (or --input {tensor.name}={','.join(map(str, example))})"
            )
        return keras.KerasTensor((request.batch_size, *shape), tensor.dtype)

    return keras.tree.map_structure(whole, model.input)


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


def _compile_model(model: keras.Model, request: StepRequest, own: keras.optimizers.Optimizer | None) -> str:
    """Give the model its loss, and the optimizer that the trainer would give it; that one's name."""
    while isinstance(own, keras.optimizers.LossScaleOptimizer):
        own = own.inner_optimizer
    chosen = request.optimizer or (keras.optimizers.serialize(own) if own else "adam")
    optimizer = keras.optimizers.get(chosen)
    name = type(optimizer).__name__.lower()
    scales_loss = any(layer.compute_dtype == "float16" for layer in private.sublayers(model))
    if scales_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if request.gradient_accumulation_steps > 1:
        batch_size = request.batch_size * request.gradient_accumulation_steps
        optimizer = AccumulatingOptimizer(optimizer, MicroBatching(batch_size, batch_size, request.batch_size))
    # Mean squared error stands for a loss that the model does not bring: it needs the least that a loss can.
    model.compile(optimizer, loss=getattr(model, "loss", None) or "mean_squared_error", auto_scale_loss=False)
    return name


def _users_sources() -> dict[str, str]:
    """File -> SHA-256 of each module that is neither installed nor part of Python or of this library."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = str(Path(__file__).parents[2])
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    users = [file for file in files if file and file.endswith(".py") and not file.startswith((*installed, ours))]
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(users) if Path(file).is_file()}


@dataclass(frozen=True)
class _Step:
    """A compiled model's training step as Keras runs it (forward, backward, optimizer, metrics), and what it is called with."""

    model: keras.Model
    optimizer_name: str
    batch: Any  # symbolic inputs and targets

    def compile_for(self, target: str | None, sources: dict[str, str]) -> StepCost:
        """What it needs on the GPU that `target` describes; None: on this machine's CPU.

        Raises:
            jax.errors.JaxRuntimeError: XLA failed.
        """
        sharding = None
        if target:
            topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
            sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())

        def shapes(tensors: Any) -> Any:
            return jax.tree.map(lambda tensor: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype, sharding=sharding), tensors)

        state = shapes([list(part) for part in private.training_state(self.model)])
        data, sums = shapes(self.batch), shapes(list(getattr(self.model.optimizer, "sums", [])))
        began_s = time.perf_counter()
        lowered = jax.jit(self.model.train_step, donate_argnums=0).lower(tuple(state), data)
        compiled = lowered.compile()
        memory = compiled.memory_analysis()
        new_outputs_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes  # not written in the place of an input
        policies = {layer.dtype_policy.name for layer in private.sublayers(self.model)}  # some layers may stay in float32
        return StepCost(
            weights_bytes=_count_bytes([*state[0], *state[1], *state[3]]),
            optimizer_bytes=_count_bytes(state[2]) - _count_bytes(sums),
            accumulators_bytes=_count_bytes(sums),
            inputs_bytes=_count_bytes(jax.tree.leaves(data)),
            temporaries_bytes=memory.temp_size_in_bytes + max(new_outputs_bytes, 0),
            n_parameters=self.model.count_params(),
            n_flops=private.count_operations(lowered),
            moved_bytes=private.count_moved_bytes(compiled),
            has_loop=private.has_loop(compiled),
            compile_s=time.perf_counter() - began_s,
            dtype_policy=min(policies - {"float32"}, default="float32"),
            optimizer=self.optimizer_name,
            sources=sources,
        )


def _count_bytes(arrays: Sequence[Any]) -> int:
    return sum(math.prod(array.shape) * jax.numpy.dtype(array.dtype).itemsize for array in arrays)


def _build_step(request: StepRequest) -> _Step:
    keras.config.disable_flash_attention()  # decided here, not by the machine at hand: it would ask this CPU for cuDNN
    loaded = _load_model(request)
    own_optimizer = getattr(loaded, "optimizer", None)
    model = _with_inputs(loaded, request.input_shapes)
    if request.keras_file and request.dtype_policy:
        model = _with_policy(model, request.dtype_policy)
    x = _make_inputs(model, request)
    optimizer_name = _compile_model(model, request, own_optimizer)
    with _unallocated():
        y = _make_targets(model.compute_output_spec(x), model.loss, model.output_names)
        private.make_variables(model, (x, y))
    return _Step(model, optimizer_name, (x, y))


def answer(requests: Sequence[StepRequest], loaded: Callable[[], None] = lambda: None) -> Iterator[StepCost]:
    """The answer to each request, of which several in a row may differ in the target only: their step is built once.

    Args:
        loaded: called after the first model has been built.
    """
    built_for = step = None
    for request in requests:
        try:
            subject = request.model_copy(update={"target": None})
            if subject != built_for:
                step, built_for = _build_step(request), subject
            loaded()
            cost = step.compile_for(request.target, {} if request.config else _users_sources())
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
