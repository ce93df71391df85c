"""What calls of TensorFlow, Keras, JAX and PyTorch cost: each states it itself, from shapes, without running anything."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from .operations import Cost, array_bytes, arrays_in, dtype_name, is_array_type, shape


class _Spec(NamedTuple):
    """What stands for an array whose values do not matter."""

    shape: tuple[int, ...]
    dtype: str


FRAMEWORKS = ("tensorflow", "keras", "tf_keras", "torch", "jax", "jaxlib")
_CONVERSIONS = {"constant", "convert_to_tensor", "numpy", "tensor", "as_tensor", "from_numpy", "asarray", "array", "device_put"}
_FREE = {"Placeholder", "Const", "ReadVariableOp", "Identity", "Reshape", "Squeeze", "ExpandDims", "Shape", "NoOp", "Pack"}
_OPAQUE = {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall"}  # run anything inside


def framework_cost(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Cost | None] | None:
    """For a call of TensorFlow, Keras, PyTorch or JAX: what asks the framework for its cost, later; for any other None.

    Asking takes from milliseconds to seconds and traces the computation, on shapes alone, with nothing run. None from it means
    that the framework cannot say.
    """
    owner, arrays = getattr(function, "__self__", None), arrays_in([*args, *kwargs.values()])
    modules = {base.__module__ for each in (function, owner, *arrays) for base in type(each).__mro__}
    roots = {str(module).partition(".")[0] for module in (*modules, getattr(function, "__module__", None))}
    if roots & {"keras", "tf_keras"}:
        keras = sys.modules.get("keras")
        roots.add(keras.config.backend() if keras and "keras" in roots else "tensorflow")
        if getattr(function, "__name__", "") in ("predict", "predict_on_batch"):
            function, args, kwargs = owner, args[:1], {"training": False}
    n_bytes = sum(map(array_bytes, {id(array): array for array in arrays}.values()))
    dtype = next((dtype_name(array) for array in arrays if "float" in dtype_name(array)), "float32")
    if roots & set(FRAMEWORKS) and getattr(function, "__name__", "") in _CONVERSIONS:
        return lambda: Cost("copy", 0.0, 2.0 * n_bytes, 2.0 * n_bytes, 1, dtype)
    ask = next((ask for root, ask in _ASK.items() if root in roots and root in sys.modules), None)
    if ask is None:
        return None
    if args and args[0] is owner:  # a method of the array itself
        function = getattr(type(owner), function.__name__)
    args, kwargs = _replaced(args, _as_spec), _replaced(kwargs, _as_spec)

    def later() -> Cost | None:
        try:
            flops, moved_bytes, n_kernels = ask(function, args, kwargs)
        except Exception:  # a loop, Python control flow, an optimiser's step: it runs, but nobody can say what it costs
            return None
        return Cost("model", float(flops), float(max(moved_bytes, n_bytes)), float(max(moved_bytes, n_bytes)), n_kernels, dtype)

    return later


def _as_spec(value: Any) -> Any:
    return _Spec(shape(value), dtype_name(value)) if is_array_type(type(value)) else value


def _replaced(values: Any, replace: Callable[[Any], Any]) -> Any:
    """Arguments with `replace` applied to each, and one level down."""

    def each(value: Any, depth: int = 0) -> Any:
        if depth < 2 and type(value) in (list, tuple):
            return type(value)(each(inner, depth + 1) for inner in value)
        if depth < 2 and type(value) is dict:
            return {key: each(inner, depth + 1) for key, inner in value.items()}
        return replace(value)

    return each(values)


def _specs(args: tuple, kwargs: dict[str, Any]) -> list[_Spec]:
    found: list[_Spec] = []
    for values in (args, kwargs):
        _replaced(values, lambda value: found.append(value) if isinstance(value, _Spec) else None)
    return found


def _on(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """`function` of the arrays that stand for the specs in its arguments."""

    def run(*arrays: Any) -> Any:
        rest = iter(arrays)

        def fill(value: Any) -> Any:
            return next(rest) if isinstance(value, _Spec) else value

        return function(*_replaced(args, fill), **_replaced(kwargs, fill))

    return run


def _ask_tensorflow(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    """Float operations of the graph that it traces, each reading its inputs, weights included, and writing its outputs."""
    tensorflow = sys.modules["tensorflow"]
    if hasattr(function, "get_concrete_function"):
        specs = _replaced((args, kwargs), lambda value: tensorflow.TensorSpec(*value) if isinstance(value, _Spec) else value)
        graph = function.get_concrete_function(*specs[0], **specs[1]).graph
    else:
        traced = tensorflow.function(_on(function, args, kwargs), autograph=False)
        graph = traced.get_concrete_function(*(tensorflow.TensorSpec(*spec) for spec in _specs(args, kwargs))).graph
    operations = [operation for operation in graph.get_operations() if operation.type not in _FREE]
    if any(operation.type in _OPAQUE for operation in operations):
        raise NotImplementedError("what runs inside is not counted")
    builder = tensorflow.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    flops = tensorflow.compat.v1.profiler.profile(graph=graph, options=options).total_float_ops
    tensors = (tensor for operation in operations for tensor in (*operation.inputs, *operation.outputs))
    moved = sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors if tensor.shape.is_fully_defined())
    return flops, moved, len(operations)


def _ask_jax(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    jax = sys.modules["jax"]
    specs = [jax.ShapeDtypeStruct(*spec) for spec in _specs(args, kwargs)]
    analysis = jax.jit(_on(function, args, kwargs)).lower(*specs).cost_analysis()
    return analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0), analysis["bytes accessed"], 1


def _ask_torch(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    """On tensors without values, a module's own included, so that no buffer of it changes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    module = getattr(function, "__self__", None) if getattr(function, "__name__", "") == "forward" else function
    layers = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    values = module.state_dict() if layers else {}
    with FakeTensorMode() as mode, FlopCounterMode(display=False) as counter, torch.no_grad():
        tensors = [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in _specs(args, kwargs)]
        state = {name: mode.from_tensor(value) for name, value in values.items()}
        if layers:
            function = functools.partial(_of_state, torch.func.functional_call, module, state)
        result = _on(function, args, kwargs)(*tensors)
    moved = sum(array_bytes(each) for each in (*tensors, *state.values(), *arrays_in([result])))
    return counter.get_total_flops(), moved, max(sum(not list(layer.children()) for layer in layers), 1)


def _of_state(call: Callable, module: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return call(module, state, args, kwargs)


_ASK = {"tensorflow": _ask_tensorflow, "jax": _ask_jax, "torch": _ask_torch}
