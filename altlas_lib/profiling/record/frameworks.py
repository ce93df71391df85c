"""What calls of TensorFlow, Keras, JAX and PyTorch take: each states it itself, from shapes, without running anything."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from .calls import ModelWork
from .describing import array_bytes, arrays_in, bound_to, dtype_name, is_array_type, name_of, shape

FRAMEWORKS = frozenset({"tensorflow", "keras", "tf_keras", "torch", "jax", "jaxlib"})
_CONVERSIONS = {"constant", "convert_to_tensor", "numpy", "tensor", "as_tensor", "from_numpy", "asarray", "array", "device_put"}
_FREE = {"Placeholder", "Const", "ReadVariableOp", "Identity", "Reshape", "Squeeze", "ExpandDims", "Shape", "NoOp", "Pack"}
_OPAQUE = {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall"}  # run anything inside


class _Spec(NamedTuple):
    """What stands for an array whose values do not matter."""

    shape: tuple[int, ...]
    dtype: str


def framework_object(function: Any, operands: list[Any]) -> Any:
    """What a framework's call is a call of: the model or the function, whose work shapes alone do not tell; else None."""
    if not any(name in sys.modules for name in FRAMEWORKS):  # quicker than a comparison of sets: there are many modules
        return None
    if isinstance(function, type) or not _frameworks(function, *operands[:2]):
        return None
    owner = bound_to(function)
    return type(owner) if is_array_type(type(owner)) else function if owner is None else owner


def _frameworks(function: Any, *others: Any) -> set[str]:
    """Whose a call is; NumPy's are its own, whatever the operands."""
    modules = {base.__module__ for each in (function, bound_to(function), *others) for base in type(each).__mro__}
    home = str(getattr(function, "__module__", None)).partition(".")[0]
    return set() if home == "numpy" else set(FRAMEWORKS) & {home, *(str(module).partition(".")[0] for module in modules)}


def model_work(function: Any, args: tuple, kwargs: dict[str, Any]) -> Callable[[], ModelWork | None]:
    """What asks the framework for the work of a call of it, later.

    Asking takes from milliseconds to seconds and traces the computation, on shapes alone, with nothing run. None from it means
    that the framework cannot say: a loop, Python control flow, an optimiser's step.
    """
    owner, arrays = bound_to(function), arrays_in([*args, *kwargs.values()])
    n_bytes = sum(map(array_bytes, {id(array): array for array in arrays}.values()))
    frameworks, name = _frameworks(function, *arrays), name_of(function)
    if frameworks & {"keras", "tf_keras"}:
        frameworks.add(sys.modules["keras"].config.backend() if "keras" in frameworks else "tensorflow")
        if name in ("predict", "predict_on_batch"):
            function, args, kwargs = owner, args[:1], {"training": False}
    if name in _CONVERSIONS:
        return lambda: ModelWork(0.0, 2.0 * n_bytes, 1)
    ask = next((ask for framework, ask in _ASK.items() if framework in frameworks and framework in sys.modules), None)
    if args and args[0] is owner:  # a method of the array itself
        function = getattr(type(owner), name)
    specs: list[_Spec] = []

    def as_spec(value: Any) -> Any:
        if not is_array_type(type(value)):
            return value
        specs.append(_Spec(shape(value), dtype_name(value)))
        return specs[-1]

    args, kwargs = _replaced((args, kwargs), as_spec)

    def of_arrays(function: Callable, *arrays: Any) -> Any:
        rest = iter(arrays)
        args_, kwargs_ = _replaced((args, kwargs), lambda value: next(rest) if isinstance(value, _Spec) else value)
        return function(*args_, **kwargs_)

    def later() -> ModelWork | None:
        try:
            flops, moved_bytes, n_kernels = ask(function, of_arrays, specs)
        except Exception:  # it runs, but nobody can say what it takes
            return None
        return ModelWork(float(flops), float(max(moved_bytes, n_bytes)), n_kernels)

    return later


def _replaced(values: Any, replace: Callable[[Any], Any], depth: int = 3) -> Any:
    """Arguments with `replace` applied to each, and one level down."""
    if depth and type(values) in (list, tuple):
        return type(values)(_replaced(each, replace, depth - 1) for each in values)
    if depth and type(values) is dict:
        return {key: _replaced(each, replace, depth - 1) for key, each in values.items()}
    return replace(values)


def _ask_tensorflow(function: Any, of_arrays: Callable, specs: list[_Spec]) -> tuple[float, float, int]:
    """Float operations of the graph that it traces, each reading its inputs, weights included, and writing its outputs."""
    tensorflow = sys.modules["tensorflow"]
    function = getattr(function, "python_function", function)
    traced = tensorflow.function(lambda *arrays: of_arrays(function, *arrays), autograph=False)
    graph = traced.get_concrete_function(*(tensorflow.TensorSpec(*spec) for spec in specs)).graph
    operations = [operation for operation in graph.get_operations() if operation.type not in _FREE]
    if any(operation.type in _OPAQUE for operation in operations):
        raise NotImplementedError("what runs inside is not counted")
    builder = tensorflow.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    flops = tensorflow.compat.v1.profiler.profile(graph=graph, options=options).total_float_ops
    tensors = (tensor for operation in operations for tensor in (*operation.inputs, *operation.outputs))
    moved = sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors if tensor.shape.is_fully_defined())
    return flops, moved, len(operations)


def _ask_jax(function: Any, of_arrays: Callable, specs: list[_Spec]) -> tuple[float, float, int]:
    jax = sys.modules["jax"]
    traced = jax.jit(lambda *arrays: of_arrays(function, *arrays))
    lowered = traced.lower(*(jax.ShapeDtypeStruct(*spec) for spec in specs))
    if "stablehlo.while" in lowered.as_text():
        raise NotImplementedError("a loop's body is counted once")
    analysis = lowered.cost_analysis()
    return analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0), analysis["bytes accessed"], 1


def _ask_torch(function: Any, of_arrays: Callable, specs: list[_Spec]) -> tuple[float, float, int]:
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
            tensors = [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs]
            state = {name: mode.from_tensor(value) for name, value in values.items()}
            if layers:
                function = lambda *args, **kwargs: torch.func.functional_call(module, state, args, kwargs)  # noqa: E731
            result = of_arrays(function, *tensors)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    moved = sum(map(array_bytes, (*tensors, *state.values(), *arrays_in([result]))))
    return counter.get_total_flops(), moved, max(sum(not list(layer.children()) for layer in layers), 1)


_ASK = {"tensorflow": _ask_tensorflow, "jax": _ask_jax, "torch": _ask_torch}
