"""The private and unstable APIs that training relies on: on the day that a new version breaks one, its test says which."""

import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from altlas_lib import devices
from altlas_lib.training import private
from altlas_lib.training.backend import keras
from altlas_lib.training.plan.request import describe_gpu, has_compiler, xla_flags


def small_model():
    block = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
    model = keras.Sequential([keras.Input((4,)), block, keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    return model


def in_jax(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags()},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_sublayers_and_seed_generators_are_those_of_all_layers_within():
    model = small_model()
    kinds = [type(layer).__name__ for layer in private.sublayers(model)]
    assert kinds.count("Dense") == 2
    assert kinds.count("Dropout") == 1
    assert [type(each) for each in private.seed_generators(model)] == [keras.random.SeedGenerator]


def test_a_seed_generator_draws_by_a_method_that_can_be_replaced():
    generator, drawn = keras.random.SeedGenerator(1), []
    generator.next = lambda ordered=True: drawn.append(True) or keras.ops.convert_to_tensor([1, 2], "uint32")
    keras.random.uniform((2,), seed=generator)
    assert drawn == [True]
    del generator.next
    before = np.array(generator.state.value)
    generator.next()
    np.testing.assert_array_equal(np.array(generator.state.value) - before, [0, 1])  # what recomputation counts on by


def test_attention_is_computed_by_the_method_that_is_overridden():
    parameters = list(inspect.signature(keras.layers.MultiHeadAttention._compute_attention).parameters)
    assert parameters[:6] == ["self", "query", "key", "value", "attention_mask", "training"]
    layer = keras.layers.MultiHeadAttention(2, 4)
    called = []
    original = layer._compute_attention
    layer._compute_attention = lambda *args, **options: called.append(args[0].shape) or original(*args, **options)
    x = np.zeros((2, 5, 8), "float32")
    layer(x, x)
    assert called == [(2, 5, 2, 4)]  # batch, length, heads, width
    assert layer._dropout == 0


def test_variables_are_made_from_symbolic_tensors():
    model = small_model()
    private.make_variables(model, (keras.KerasTensor((8, 4)), keras.KerasTensor((8, 1))))
    assert model.optimizer.built
    assert model.metrics_variables


def test_another_optimizer_takes_effect_with_the_next_step():
    model = small_model()
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    model.fit(x, y, verbose=0)
    before = [np.array(weight) for weight in model.get_weights()]
    private.set_optimizer(model, keras.optimizers.SGD(0.0))
    model.fit(x, y, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_optimizers_take_their_variables_in_their_own_order():
    """`AccumulatingOptimizer.stateless_apply`, on JAX: its own variables first, then the inner optimizer's."""
    parameters = list(inspect.signature(keras.optimizers.Optimizer.stateless_apply).parameters)
    assert parameters == ["self", "optimizer_variables", "grads", "trainable_variables"]


def test_the_jax_trainer_takes_its_state_in_this_order():
    printed = in_jax("""
        import jax
        import numpy as np
        from altlas_lib.training import private
        from altlas_lib.training.backend import keras
        model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
        model.compile("adam", loss="mse")
        x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
        private.make_variables(model, (x, y))
        state = tuple([variable.value for variable in part] for part in private.training_state(model))
        logs, new = jax.jit(model.train_step)(state, (x, y))
        assert [len(part) for part in new] == [len(part) for part in state]
        assert [[v.shape for v in part] for part in new] == [[v.shape for v in part] for part in state]
        assert float(new[2][0]) == 1  # the optimizer's count of updates
        assert callable(model.jax_state_sync)
        print(sorted(logs))
    """)
    assert printed == "['loss']\n"


def test_xla_counts_operations_and_bytes_and_shows_its_loops():
    printed = in_jax("""
        import jax
        from altlas_lib.training import private
        x = jax.ShapeDtypeStruct((64, 32), "float32")
        lowered = jax.jit(lambda x: x @ x.T).lower(x)
        assert private.count_operations(lowered) == 2 * 64 * 64 * 32, private.count_operations(lowered)
        assert private.count_moved_bytes(lowered.compile()) >= 4 * (64 * 32 + 64 * 64)
        assert not private.has_loop(lowered.compile())
        looped = jax.jit(lambda x: jax.lax.fori_loop(0, x.shape[0], lambda i, s: s @ s.T @ s, x)).lower(x).compile()
        assert private.has_loop(looped)
        print("counted")
    """)
    assert printed == "counted\n"


@pytest.mark.skipif(not has_compiler(), reason="JAX's CUDA plug-in is not installed")
def test_every_gpu_of_the_catalogue_has_a_description_that_the_compiler_takes():
    # CUDA 13's assembler has dropped compute capability 7.0; that of the wheel nvidia-cuda-nvcc-cu12 has it.
    oldest = (7, 0) if "cuda_data_dir" in xla_flags() else (7, 5)
    gpus = [gpu for gpu in devices.load_catalogue() if tuple(map(int, gpu.compute_capability.split("."))) >= oldest]
    targets = [describe_gpu(gpu) for gpu in gpus]
    printed = in_jax(f"""
        import jax
        from jax.experimental import topologies
        from jax.sharding import NamedSharding, PartitionSpec
        for target in {targets!r}:
            topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
            sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())
            x = jax.ShapeDtypeStruct((256, 256), "float16", sharding=sharding)
            step = jax.jit(lambda x: jax.nn.softmax(x @ x) @ x).lower(x).compile()
            print(step.memory_analysis().argument_size_in_bytes, step.runtime_executable() is not None)
    """)
    assert printed.split("\n") == [*[f"{2 * 256 * 256} True"] * len(gpus), ""]
