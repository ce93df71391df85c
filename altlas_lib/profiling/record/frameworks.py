"""What calls of TensorFlow, Keras and PyTorch take: each states it itself, from shapes, without running anything."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

from .calls import ModelWork
from .describing import array_bytes, arrays_in, bound_to, is_array_type, name_of

FRAMEWORKS = ("keras", "tf_keras", "tensorflow", "torch", "jax", "jaxlib")
_CONVERSIONS = {"constant", "convert_to_tensor", "numpy", "tensor", "as_tensor", "from_numpy", "asarray", "array", "device_put"}
_FREE = {"Placeholder", "Const", "ReadVariableOp", "Identity", "Reshape", "Squeeze", "ExpandDims", "Shape", "NoOp", "Pack"}
_OPAQUE = {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall"}  # run anything inside


def framework_object(function: Any, operands: list[Any]) -> Any:
    """What a framework's call is a call of: the model or the function, whose work shapes alone do not tell; else None."""
    is_loaded = any(name in sys.modules for name in FRAMEWORKS)  # quicker than a comparison of sets: there are many modules
    if not is_loaded or isinstance(function, type) or not _framework(function, operands):
        return None
    owner = bound_to(function)
    return type(owner) if is_array_type(type(owner)) else function if owner is None else owner


def _framework(function: Any, operands: list[Any]) -> str | None:
    """Whose a call is; NumPy's are its own, whatever the operands."""
    kinds = [kind for each in (function, bound_to(function), *operands[:2]) for kind in type(each).__mro__]
    modules = [getattr(function, "__module__", None), *(kind.__module__ for kind in kinds)]
    packages = [str(module).partition(".")[0] for module in modules]
    return None if packages[0] == "numpy" else next((each for each in packages if each in FRAMEWORKS), None)


def model_work(function: Any, args: tuple, kwargs: dict[str, Any]) -> ModelWork | None:
    """Work of a call, as the framework states it.

    Asking takes from milliseconds to seconds and traces the computation, on shapes alone, with nothing run. None means that the
    framework cannot say: a loop, Python control flow, an optimiser's step.
    """
    arrays = arrays_in([*args, *kwargs.values()])
    n_bytes = sum(map(array_bytes, {id(array): array for array in arrays}.values()))
    framework, name, owner = _framework(function, arrays), name_of(function), bound_to(function)
    if name in _CONVERSIONS:
        return ModelWork(0.0, 2.0 * n_bytes, 1)
    if framework in ("keras", "tf_keras"):
        framework = sys.modules["keras"].config.backend() if framework == "keras" else "tensorflow"
        if name in ("predict", "predict_on_batch"):
            function, args, kwargs = owner, args[:1], {"training": False}
    if args and args[0] is owner:  # a method of the array itself
        args = args[1:]
    try:
        flops, moved_bytes, n_kernels = _ASK[framework](function, args, kwargs)
    except Exception:  # it runs, but nobody can say what it takes
        return None
    return ModelWork(float(flops), float(max(moved_bytes, n_bytes)), n_kernels)


def _ask_tensorflow(function: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    """Float operations of the graph that it traces, each reading its inputs, weights included, and writing its outputs."""
    tensorflow = sys.modules["tensorflow"]
    args = tensorflow.nest.map_structure(lambda each: tensorflow.constant(each) if is_array_type(type(each)) else each, args)
    function = functools.partial(getattr(function, "python_function", function), *args, **kwargs)
    graph = tensorflow.function(function, autograph=False).get_concrete_function().graph
    operations = [operation for operation in graph.get_operations() if operation.type not in _FREE]
    if any(operation.type in _OPAQUE for operation in operations):
        raise NotImplementedError("what runs inside is not counted")
    builder = tensorflow.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    flops = tensorflow.compat.v1.profiler.profile(graph=graph, options=options).total_float_ops
    tensors = (tensor for operation in operations for tensor in (*operation.inputs, *operation.outputs))
    moved = sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors if tensor.shape.is_fully_defined())
    return flops, moved, len(operations)


def _ask_torch(function: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[float, float, int]:
    """On tensors without values, a module's own included, so that no buffer of it changes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._pytree import tree_map_only
    from torch.utils.flop_counter import FlopCounterMode

    module = function.__self__ if name_of(function) == "forward" else function
    layers = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    values = module.state_dict() if layers else {}
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels, of attention and of recurrent layers, are not counted
    plainly, counter = torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False)
    without_values, by_products = FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH)
    try:
        with warnings.catch_warnings(action="ignore"), plainly, without_values as mode, counter, torch.no_grad(), by_products:
            values, args, kwargs = tree_map_only(torch.Tensor, mode.from_tensor, (values, args, kwargs))
            result = torch.func.functional_call(module, values, args, kwargs) if layers else function(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    moved = sum(map(array_bytes, (*arrays_in([*args, *kwargs.values(), result]), *values.values())))
    return counter.get_total_flops(), moved, max(sum(not list(layer.children()) for layer in layers), 1)


_ASK: dict[str, Callable] = {"tensorflow": _ask_tensorflow, "torch": _ask_torch}
