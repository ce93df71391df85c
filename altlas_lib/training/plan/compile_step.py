"""The child process that compiles a training step: `python -m altlas_lib.training.plan.compile_step REQUEST ANSWER`.

Keras runs on JAX here whatever the user trains on: JAX compiles for a GPU that is not there, from shapes alone. Nothing is
allocated but the weights of a user's own model, in host memory. What it or XLA does to its process stays in the child.
"""

import hashlib
import importlib
import math
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from ...paths import write_atomically
from ..backend import keras
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from ..model.losses import compile_losses
from ..model.multi_scale import build_model
from .compiler import PlanError, StepAnswer, StepRequest
from .liveness import peak_temporary_bytes


def _import(name: str) -> Any:
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


def _load(request: StepRequest) -> keras.Model:
    if request.config:
        with _unallocated():
            model = build_model(request.config, request.n_features, dtype_policy=request.dtype_policy or "float32")
        model.loss = compile_losses(below_weight=1.0, above_weight=1.0)
        return model
    for module in request.modules:
        _import(module)
    if request.builder:
        module, _, name = request.builder.partition(":")
        build = getattr(_import(module), name, None)
        if not callable(build):
            raise PlanError(f"{request.builder!r}: module {module!r} has no function {name!r}")
        if request.dtype_policy:
            keras.config.set_dtype_policy(request.dtype_policy)
        model = build()
        if not isinstance(model, keras.Model):
            raise PlanError(f"{request.builder!r} returned {type(model).__name__}: expected a keras.Model")
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


def _inputs(model: keras.Model, request: StepRequest) -> Any:
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


def _targets(outputs: Any, loss: Any, names: Sequence[str] = ()) -> Any:
    """Symbolic targets: shaped as the outputs, or class numbers where the loss is a sparse one."""
    if isinstance(loss, dict):
        if not isinstance(outputs, dict):
            outputs = dict(zip(names, keras.tree.flatten(outputs), strict=True))
        return {name: _targets(outputs[name], each) for name, each in loss.items()}
    if isinstance(loss, list | tuple):
        return [_targets(output, each) for output, each in zip(outputs, loss, strict=True)]
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
    scales_loss = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())
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


def _policy(model: keras.Model) -> str:
    """The dtype policy of the layers, of which some may stay in float32."""
    policies = {layer.dtype_policy.name for layer in model._flatten_layers()}
    return min(policies - {"float32"}, default="float32")


def _bytes(arrays: Sequence[Any]) -> int:
    return sum(math.prod(array.shape) * jax.numpy.dtype(array.dtype).itemsize for array in arrays)


def _cost(module: Any) -> dict[str, float]:
    """XLA's own counts for a module, which JAX gives in public only for devices that are there; nothing where it has moved."""
    try:
        from jax._src.lib import _jax

        return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    except (ImportError, AttributeError, RuntimeError):
        return {}


def answer(request: StepRequest) -> StepAnswer:
    """Trace the whole step as Keras runs it (forward, backward, optimizer, metrics) and compile it for the request's GPU.

    Raises:
        PlanError: something in the request cannot be meant.
        jax.errors.JaxRuntimeError: XLA failed.
    """
    keras.config.disable_flash_attention()  # decided here, not by the machine at hand: it would ask this CPU for cuDNN
    loaded = _load(request)
    own_optimizer = getattr(loaded, "optimizer", None)
    model = _with_inputs(loaded, request.input_shapes)
    if request.keras_file and request.dtype_policy:
        model = _with_policy(model, request.dtype_policy)
    x = _inputs(model, request)
    optimizer_name = _compile_model(model, request, own_optimizer)
    with _unallocated():
        y = _targets(model.compute_output_spec(x), model.loss, model.output_names)
        model._symbolic_build(data_batch=(x, y))  # as `fit` does: makes the optimizer's and metrics' variables

    sharding = None
    if request.target:
        topology = topologies.get_topology_desc(platform="cuda", target_config=request.target, topology="1x1x1")
        sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())

    def shapes(tensors):
        return jax.tree.map(lambda tensor: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype, sharding=sharding), tensors)

    optimizer = model.optimizer
    parts = [model.trainable_variables, model.non_trainable_variables, optimizer.variables, model.metrics_variables]
    state, data = shapes([list(part) for part in parts]), shapes((x, y))
    sums = shapes(list(getattr(optimizer, "sums", [])))
    known = StepAnswer(
        weights_bytes=_bytes([*state[0], *state[1], *state[3]]),
        optimizer_bytes=_bytes(state[2]) - _bytes(sums),
        accumulators_bytes=_bytes(sums),
        inputs_bytes=_bytes(jax.tree.leaves(data)),
        n_parameters=model.count_params(),
        dtype_policy=_policy(model),
        optimizer=optimizer_name,
        sources={} if request.config else _users_sources(),
    )
    began_s = time.perf_counter()
    if not request.target:
        jaxpr = jax.make_jaxpr(model.train_step)(tuple(state), data).jaxpr
        temporaries_bytes = peak_temporary_bytes(jaxpr)
        return known.model_copy(update={"basis": "projected", "temporaries_bytes": temporaries_bytes})

    lowered = jax.jit(model.train_step, donate_argnums=0).lower(tuple(state), data)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    new_outputs_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes  # not written in the place of an input
    return known.model_copy(
        update={
            "temporaries_bytes": memory.temp_size_in_bytes + max(new_outputs_bytes, 0),
            "compile_s": time.perf_counter() - began_s,
            "n_flops": _cost(lowered.compiler_ir("hlo").as_hlo_module()).get("flops"),
            "moved_bytes": _cost(compiled.runtime_executable().hlo_modules()[0]).get("bytes accessed"),
        }
    )


if __name__ == "__main__":
    request_file, answer_file = map(Path, sys.argv[1:])
    try:
        result = answer(StepRequest.model_validate_json(request_file.read_bytes()))
    except jax.errors.JaxRuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        missing = any(file in first_line for file in ("libdevice", "ptxas"))
        hint = "pip install nvidia-cuda-nvcc-cu12" if missing else "plan another dtype policy or GPU"
        result = StepAnswer(error=f"XLA failed on this step for this GPU ({first_line}): {hint}")
    except (PlanError, ValueError, TypeError) as error:  # Keras says by the latter two that a model and its use do not fit
        result = StepAnswer(error=str(error))
    write_atomically(answer_file, result.model_dump_json())
