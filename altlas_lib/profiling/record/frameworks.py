"""What calls of TensorFlow, Keras, JAX and PyTorch take: each states it itself, from shapes, without running anything."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from .calls import ModelWork
from .describing import array_bytes, arrays_in, bound_to, dtype_name, is_array_type, name_of, shape


class _Spec(NamedTuple):
    """What stands for an array whose values do not matter."""

    shape: tuple[int, ...]
    dtype: str


FRAMEWORKS = frozenset({"tensorflow", "keras", "tf_keras", "torch", "jax", "jaxlib"})
_CONVERSIONS = {"constant", "convert_to_tensor", "numpy", "tensor", "as_tensor", "from_numpy", "asarray", "array", "device_put"}
_FREE = {"Placeholder", "Const", "ReadVariableOp", "Identity", "Reshape", "Squeeze", "ExpandDims", "Shape", "NoOp", "Pack"}
_OPAQUE = {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall"}  # run anything inside


def framework_object(name: str, function: Any, operands: list[Any]) -> Any:
    """What a framework's call is a call of: the model or the function, whose work shapes alone do not tell; else None.

    Args:
        name: its public name.
    """
    if name.startswith(("numpy.", "ndarray.")) or isinstance(function, type):
        return None
    homes = (name, *(str(type(each).__module__) for each in (function, *operands[:2])))
    if all(home.partition(".")[0] not in FRAMEWORKS for home in homes):
        return None
    owner = bound_to(function)
    return type(owner) if is_array_type(type(owner)) else function if owner is None else owner


def _roots(function: Any, *others: Any) -> set[str]:
    modules = {base.__module__ for each in (function, *others) for base in type(each).__mro__}
    return set(FRAMEWORKS) & {str(module).partition(".")[0] for module in (*modules, getattr(function, "__module__", None))}


def model_work(function: Any, args: tuple, kwargs: dict[str, Any]) -> Callable[[], ModelWork | None]:
    """What asks the framework for the work of a call of it, later.

    Asking takes from milliseconds to seconds and traces the computation, on shapes alone, with nothing run. None from it means
    that the framework cannot say: a loop, Python control flow, an optimiser's step.
    """
    owner, arrays = bound_to(function), arrays_in([*args, *kwargs.values()])
    n_bytes = sum(map(array_bytes, {id(array): array for array in arrays}.values()))
    roots, name = _roots(function, owner, *arrays), name_of(function)
    if roots & {"keras", "tf_keras"}:
        keras = sys.modules.get("keras")
        roots.add(keras.config.backend() if keras and "keras" in roots else "tensorflow")
        if name in ("predict", "predict_on_batch"):
            function, args, kwargs = owner, args[:1], {"training": False}
    if name in _CONVERSIONS:
        return lambda: ModelWork(0.0, 2.0 * n_bytes, 1)
    ask = next((ask for root, ask in _ASK.items() if root in roots and root in sys.modules), None)
    if args and args[0] is owner:  # a method of the array itself
        function = getattr(type(owner), name)
    args, kwargs = _replaced(args, _as_spec), _replaced(kwargs, _as_spec)

    def later() -> ModelWork | None:
        try:
            flops, moved_bytes, n_kernels = ask(function, args, kwargs)
        except Exception:  # it runs, but nobody can say what it takes
            return None
        return ModelWork(float(flops), float(max(moved_bytes, n_bytes)), n_kernels)

    return later


def _as_spec(value: Any) -> Any:
    return _Spec(shape(value), dtype_name(value)) if is_array_type(type(value)) else value


def _replaced(values: Any, replace: Callable[[Any], Any], depth: int = 2) -> Any:
    """Arguments with `replace` applied to each, and one level down."""
    if depth and type(values) in (list, tuple):
        return type(values)(_replaced(each, replace, depth - 1) for each in values)
    if depth and type(values) is dict:
        return {key: _replaced(each, replace, depth - 1) for key, each in values.items()}
    return replace(values)


def _specs(args: tuple, kwargs: dict[str, Any]) -> list[_Spec]:
    found: list[_Spec] = []
    _replaced((*args, *kwargs.values()), lambda value: found.append(value) if isinstance(value, _Spec) else None)
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
        specs = _replaced((args, kwargs), lambda value: tensorflow.TensorSpec(*value) if isinstance(value, _Spec) else value, 3)
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
    lowered = jax.jit(_on(function, args, kwargs)).lower(*specs)
    if "stablehlo.while" in lowered.as_text():
        raise NotImplementedError("a loop's body is counted once")
    analysis = lowered.cost_analysis()
    return analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0), analysis["bytes accessed"], 1


def _ask_torch(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    """On tensors without values, a module's own included, so that no buffer of it changes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    module = function.__self__ if name_of(function) == "forward" else function
    layers = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    values = module.state_dict() if layers else {}
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels, of attention and of recurrent layers, are not counted
    plainly, counter = torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False)
    try:
        with warnings.catch_warnings(action="ignore"), plainly, FakeTensorMode() as mode, counter, torch.no_grad():
            tensors = [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in _specs(args, kwargs)]
            state = {name: mode.from_tensor(value) for name, value in values.items()}
            if layers:
                function = lambda *args, **kwargs: torch.func.functional_call(module, state, args, kwargs)  # noqa: E731
            result = _on(function, args, kwargs)(*tensors)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    moved = sum(array_bytes(each) for each in (*tensors, *state.values(), *arrays_in([result])))
    return counter.get_total_flops(), moved, max(sum(not list(layer.children()) for layer in layers), 1)


_ASK = {"tensorflow": _ask_tensorflow, "jax": _ask_jax, "torch": _ask_torch}
