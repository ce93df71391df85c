"""Every private or unstable API of Keras, JAX and XLA that training and planning rely on, and nothing else does.

`tests/test_training_private.py` has a test for each, which says what moved on the day that a new version breaks it;
`pyproject.toml` bounds the versions. What is used by overriding it, or as text, is listed too:

- Keras: `MultiHeadAttention._compute_attention` (overridden by `ChunkedAttention`); `SeedGenerator.next`, which a recomputed
  block replaces for a while; `Layer.call`, looked up on the layer itself, where `recompute_layers` puts another one for a
  while; that `fit` takes a `CallbackList` as it is (`fit.loop.OneTraining`); the order of the state that the JAX
  trainer's `train_step` takes; `Optimizer.stateless_apply`'s order of variables; `Trainer.jax_state_sync`; that `compile`
  keeps `optimizer`, `loss` and `steps_per_execution` under these names, and that a new `optimizer` takes effect with the
  next `make_train_function`; that `LossScaleOptimizer` asks its `check_finite` on each replica.
- JAX: `jax.experimental.topologies` with platform "cuda", and `Compiled.runtime_executable()`.
- XLA: the text form of `GpuTargetConfigProto` (`plan.request.describe_gpu`), the flags in `plan.request.XLA_FLAGS`, and
  " while(" as a loop's name in the text of a module.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def sublayers(layer: Any) -> list[Any]:
    """A Keras layer and all layers within it."""
    return list(layer._flatten_layers())


def seed_generators(layer: Any) -> list[Any]:
    """The seed generators of a Keras layer and of all layers within it."""
    return [generator for sublayer in sublayers(layer) for generator in sublayer._seed_generators]


def make_variables(model: Any, batch: Any) -> None:
    """Make all variables of a compiled Keras model, its optimizer and its metrics from symbolic tensors, as `fit` does."""
    model._symbolic_build(data_batch=batch)


def set_optimizer(model: Any, optimizer: Any) -> None:
    """Give a compiled Keras model another optimizer, with which its training step is traced anew."""
    model.optimizer = optimizer
    model.train_function = None


@contextmanager
def infinities_on_any_replica(optimizer: Any) -> Iterator[None]:
    """Let a `LossScaleOptimizer` skip an update for an infinity on any replica of TensorFlow's; Keras asks the first alone."""
    from .backend import keras, n_replicas

    check_first = getattr(optimizer, "check_finite", None)
    if check_first is None or keras.backend.backend() != "tensorflow" or n_replicas() == 1:
        yield
        return

    def check_all(grads: Sequence[Any]) -> Any:
        import tensorflow as tf

        n_finite = tf.cast(check_first(grads), "float32")
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, n_finite) == 1

    optimizer.check_finite = check_all
    try:
        yield
    finally:
        del optimizer.check_finite


def training_state(model: Any) -> list[Sequence[Any]]:
    """The variables whose values Keras' JAX trainer hands to `train_step`, in its order."""
    return [model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables]


def count_operations(lowered: Any) -> float | None:
    """Floating-point operations of a step, by XLA's count before it optimises; None where JAX has moved the count.

    JAX gives the count in public only for devices that are there.
    """
    return _count(lambda: lowered.compiler_ir("hlo").as_hlo_module(), "flops")


def count_moved_bytes(compiled: Any) -> float | None:
    """Bytes that the kernels which XLA wrote read and write; None where JAX has moved the count."""
    return _count(lambda: compiled.runtime_executable().hlo_modules()[0], "bytes accessed")


def has_loop(compiled: Any) -> bool:
    """Whether the compiled step has a loop, whose body the counts above count once whatever its length."""
    return " while(" in compiled.as_text()


def _count(module: Any, what: str) -> float | None:
    try:
        import jax
        from jax._src.lib import _jax

        return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module()).get(what)
    except (ImportError, AttributeError, RuntimeError):
        return None
