"""Chapter 30's memory planner: bytes against a count by hand, its cache and its search, and the switches that save memory."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_lib import cli, devices, figures, training
from altlas_lib.results import MemoryPlan, Quantity, Remedy
from altlas_lib.training import ModelConfig, TransformerConfig, plots
from altlas_lib.training.backend import keras
from altlas_lib.training.model.recompute import ChunkedAttention, Recompute
from altlas_lib.training.plan import compiler, planner, remedies
from altlas_lib.training.plan.compiler import PlanError, StepAnswer, StepRequest, compile_step, target_config
from altlas_lib.training.score import metrics

T4 = devices.find_gpu("T4")
GIB = 2**30

MODELS = """
import keras

@keras.saving.register_keras_serializable("my_models")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return x * 2

def dense():
    return keras.Sequential([keras.Input((100,)), keras.layers.Dense(200, activation="relu"), keras.layers.Dense(10)])

def doubled():
    model = keras.Sequential([keras.Input((8,)), Doubled(), keras.layers.Dense(4)])
    return model

def sentences():
    tokens, weight = keras.Input((None,), dtype="int32", name="tokens"), keras.Input((1,), name="weight")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(50, 16)(tokens))
    model = keras.Model([tokens, {"weight": weight}], keras.layers.Dense(7, activation="softmax")(x * weight))
    model.compile(loss="sparse_categorical_crossentropy")
    return model

class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)

def number():
    return 7
"""


@pytest.fixture(scope="module")
def my_models(tmp_path_factory):
    """A user's module."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_models.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("my_models")
    sys.path.remove(str(folder))
    del sys.modules["my_models"]


def walked(*arguments, **options):
    return planner.plan_memory(*arguments, compiled=False, **options)


def test_what_a_model_is_compiled_with_is_planned(my_models):
    """Adam has two moments of each weight, SGD none, with momentum one."""
    model = my_models.dense()

    def slots(plan):
        return round(plan.bytes_by_part["optimizer"] / 4 / N_WEIGHTS)

    assert slots(walked(model, batch_size=8)) == 2
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    plan = walked(model, batch_size=8)
    assert (slots(plan), plan.configuration["optimizer"]) == (1, "sgd")
    assert slots(walked(model, batch_size=8, optimizer="sgd")) == 0
    assert slots(walked(model, batch_size=8, optimizer=keras.optimizers.Adam(amsgrad=True))) == 3


def test_outputs_in_a_list_can_have_losses_by_name():
    x = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name="a")(x), keras.layers.Dense(3, activation="softmax", name="b")(x)]
    model = keras.Model(x, outputs)
    model.compile("sgd", loss={"a": "mse", "b": "sparse_categorical_crossentropy"})
    assert walked(model, batch_size=8).bytes_by_part["inputs"] == 8 * (4 + 1 + 1) * 4


def test_an_answer_is_not_kept_beyond_a_change_of_what_the_builder_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "width_of_mine.py").write_text("WIDTH = 8")
    (tmp_path / "builder_of_mine.py").write_text(
        "import keras\nfrom width_of_mine import WIDTH\n"
        "def build():\n    return keras.Sequential([keras.Input((16,)), keras.layers.Dense(WIDTH)])\n"
    )
    assert walked("builder_of_mine:build", batch_size=8).n_parameters == 17 * 8
    (tmp_path / "width_of_mine.py").write_text("WIDTH = 64")
    assert walked("builder_of_mine:build", batch_size=8).n_parameters == 17 * 64


# Compiled ------------------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not planner._has_compiler(), reason="JAX's CUDA plug-in is not installed")
N_WEIGHTS = 100 * 200 + 200 + 200 * 10 + 10
COUNTERS_BYTES = 64  # at most: iteration, learning rate, micro-batch, sums of the mean loss


@needs_compiler
def test_the_parts_of_a_dense_model_are_those_counted_by_hand(my_models):
    accumulated = planner.plan_memory("my_models:dense", "T4", batch_size=64, gradient_accumulation_steps=4)
    large = planner.plan_memory("my_models:dense", "T4", batch_size=4096)
    half = planner.plan_memory("my_models:dense", "T4", batch_size=4096, dtype_policy="mixed_float16")
    parts = accumulated.bytes_by_part
    assert 0 <= parts["weights"] - 4 * N_WEIGHTS <= COUNTERS_BYTES
    assert 0 <= parts["optimizer"] - 2 * 4 * N_WEIGHTS <= COUNTERS_BYTES  # Adam: two moments
    assert parts["accumulators"] == 4 * N_WEIGHTS
    assert parts["inputs"] == 4 * 64 * (100 + 10)
    assert large.bytes_by_part["accumulators"] == 0
    assert large.bytes_by_part["temporaries"] >= 4 * 4096 * 200  # the hidden layer is needed by the backward pass
    assert half.bytes_by_part["weights"] == large.bytes_by_part["weights"]  # kept in float32
    assert accumulated.peak.value < half.peak.value < large.peak.value
    for plan in (accumulated, large, half):
        assert sum(plan.bytes_by_part.values()) == plan.peak.value
        assert (plan.peak.basis, plan.peak.device, plan.verdict, plan.n_parameters) == ("compiled", "T4", "fits", N_WEIGHTS)
        assert plan.step_time.low > 0
    assert half.configuration["dtype_policy"] == "mixed_float16"


@needs_compiler
def test_every_gpu_of_the_catalogue_has_a_description_that_the_compiler_takes():
    # CUDA 13's assembler has dropped compute capability 7.0; that of the wheel nvidia-cuda-nvcc-cu12 has it.
    oldest = (7, 0) if "cuda_data_dir" in compiler.xla_flags() else (7, 5)
    gpus = [gpu for gpu in devices.load_catalogue() if tuple(map(int, gpu.compute_capability.split("."))) >= oldest]
    program = """
        import jax, sys
        from jax.experimental import topologies
        from jax.sharding import NamedSharding, PartitionSpec
        for target in sys.argv[1:]:
            topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
            sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("gpu",)), PartitionSpec())
            x = jax.ShapeDtypeStruct((256, 256), "float16", sharding=sharding)
            step = jax.jit(lambda x: jax.nn.softmax(x @ x) @ x).lower(x).compile()
            print(step.memory_analysis().argument_size_in_bytes)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(target_config, gpus)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiler.xla_flags()},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.stdout.split() == [str(2 * 256 * 256)] * len(gpus), done.stderr[-2000:]


def test_the_catalogues_rates_follow_from_its_multiprocessors():
    for gpu in devices.load_catalogue():
        cores = gpu.multiprocessors * devices.find_multiprocessor(gpu.compute_capability).float32_cores
        assert 2 * cores * gpu.boost_clock_ghz / 1000 == pytest.approx(gpu.float32_tflops, rel=0.01)
        assert 0.9 < gpu.usable_memory_gib / gpu.memory_gib < 1


@needs_compiler
def test_a_users_model_object_is_planned_with_its_own_layers_and_any_inputs(my_models, tmp_path):
    plan = planner.plan_memory(my_models.doubled(), "H200", batch_size=32, dtype_policy="mixed_float16", optimizer="sgd")
    assert plan.n_parameters == 8 * 4 + 4
    assert plan.bytes_by_part["inputs"] == 4 * 32 * (8 + 4)  # outputs stay in float32
    assert plan.bytes_by_part["optimizer"] <= COUNTERS_BYTES
    assert plan.configuration["dtype_policy"] == "mixed_float16"

    plan = planner.plan_memory("my_models:Own", batch_size=8, input_shapes={"x": (5,)})
    assert plan.n_parameters == (5 + 1) * 3

    my_models.sentences().save(tmp_path / "sentences.keras")
    plan = planner.plan_memory(tmp_path / "sentences.keras", "A100 80GB", batch_size=8, input_shapes={"tokens": (33,)})
    assert plan.n_parameters == 50 * 16 + 16 * 7 + 7
    assert plan.bytes_by_part["inputs"] == 8 * 4 * (33 + 1 + 1)  # int32 tokens, a weight, the class's number


@needs_compiler
@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("sentences", {}, r"'tokens' has shape \(None,\) without the batch.*input_shapes=\{'tokens': \(128,\)\}"),
        ("Own", {}, "does not know its inputs.*input_shapes"),
        ("number", {}, "returned int: expected a keras.Model"),
        ("nothing", {}, "has no function 'nothing'"),
    ],
)
def test_a_model_that_cannot_be_planned_is_refused_with_the_next_step(my_models, function, options, message):
    with pytest.raises(PlanError, match=message):
        planner.plan_memory(f"my_models:{function}", batch_size=8, **options)


@needs_compiler
def test_what_xla_cannot_compile_is_said():
    request = StepRequest(config=TINY, batch_size=2, target=target_config(T4).replace("core_count: 40", "cores: 40"))
    with pytest.raises(PlanError, match=r"XLA failed on this step for this GPU \(.*: plan another"):
        compile_step(request, time_limit_s=200)


def test_the_child_is_ended_at_its_time_limit_and_on_demand():
    began_s = time.perf_counter()
    with pytest.raises(PlanError, match=r"longer than time_limit_s=0\.2: give it more time"):
        planner.plan_memory("quick", batch_size=8, time_limit_s=0.2)
    stop = threading.Event()
    stop.set()
    with pytest.raises(PlanError, match="stopped"):
        planner.plan_memory("quick", batch_size=8, stop=stop)
    assert time.perf_counter() - began_s < 20


def test_without_the_plug_in_the_graph_is_walked_and_the_peak_is_a_band(monkeypatch):
    monkeypatch.setattr(planner, "_has_compiler", lambda: False)
    plan = planner.plan_memory("quick", batch_size=64)
    assert plan.peak.basis == "projected"
    assert plan.peak.low < plan.peak.high
    assert plan.step_time is None
    assert "pip install jax-cuda12-plugin" in " ".join(plan.notes)
    weights = training.build_model(training.find_preset("quick")).count_params()
    assert 0 <= plan.bytes_by_part["weights"] - 4 * weights <= 256


# The walk ------------------------------------------------------------------------------------------------------------


def test_the_walk_counts_what_must_be_there_at_the_same_time():
    import jax.numpy as jnp
    from jax import checkpoint, grad, jit, make_jaxpr

    from altlas_lib.training.plan.liveness import peak_temporary_bytes

    x = np.zeros((64, 64), "float32")
    size = x.nbytes

    def peak(function):
        return peak_temporary_bytes(make_jaxpr(function)(x).jaxpr) / size

    assert peak(lambda x: jnp.tanh(x) + 1) == 0  # computed where it is written
    assert peak(lambda x: x @ x) == 1
    assert peak(lambda x: ((x @ x) @ x) @ x) == 2  # one is read while the next is written
    assert peak(lambda x: jnp.tanh(x @ x) @ x) == 2
    assert peak(lambda x: jit(lambda x: ((x @ x) @ x) @ x)(x)) == 2  # a function called within
    assert peak(lambda x: (x @ x) + jit(lambda x: ((x @ x) @ x) @ x)(x)) == 3

    def block(x):
        return jnp.tanh(jnp.tanh(jnp.tanh(x @ x) @ x) @ x)

    def chain(block):
        return grad(lambda x: block(block(block(block(x)))).sum())

    assert peak(chain(checkpoint(block))) < 0.7 * peak(chain(block))


# Verdict, time, search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        (Quantity.compiled(9 * GIB, "bytes", "T4"), "fits"),
        (Quantity.compiled(9.1 * GIB, "bytes", "T4"), "tight"),  # 1.1 x 9.1 = 10.01
        (Quantity.compiled(10 * GIB, "bytes", "T4"), "tight"),
        (Quantity.compiled(10.01 * GIB, "bytes", "T4"), "out of memory"),
        (Quantity.projected(5 * GIB, 10 * GIB, "bytes", "T4", "it"), "fits"),
        (Quantity.projected(5 * GIB, 11 * GIB, "bytes", "T4", "it"), "undecided"),
        (Quantity.projected(10.1 * GIB, 20 * GIB, "bytes", "T4", "it"), "out of memory"),
    ],
)
def test_the_verdict_keeps_a_tenth_in_reserve(peak, expected):
    assert planner.verdict(peak, overhead_bytes=GIB // 2, usable_bytes=10 * GIB + GIB // 2) == expected


def test_the_step_time_is_the_rooflines_from_both_ends():
    answer = StepAnswer(n_flops=8.1e12, moved_bytes=32e9)
    time_ = planner.step_time(answer, T4)
    assert time_.low == pytest.approx(1 / 0.8)  # one second of float32 arithmetic at the data sheet's rate
    assert time_.high == pytest.approx(1 / 0.2 + 0.1 / 0.5)
    assert time_.bound_by == "arithmetic"
    half = planner.step_time(answer.model_copy(update={"dtype_policy": "mixed_float16"}), T4)
    assert half.low == pytest.approx(8.1 / 65 / 0.8)
    a100 = planner.step_time(answer, devices.find_gpu("A100 80GB"))
    assert a100.low == pytest.approx(8.1 / 156 / 0.8)  # TF32
    assert planner.step_time(StepAnswer(n_flops=1e12), T4) is None


def made_up_plan(batch_size, peak_bytes, usable_bytes=15 * GIB):
    peak = Quantity.compiled(peak_bytes, "bytes", "T4")
    overhead_bytes = GIB // 2
    return MemoryPlan(
        gpu="T4",
        configuration={"batch_size": batch_size, "gradient_accumulation_steps": 1},
        peak=peak,
        bytes_by_part={"weights": GIB // 10, "temporaries": int(peak_bytes) - GIB // 10},
        overhead_bytes=overhead_bytes,
        usable_bytes=usable_bytes,
        verdict=planner.verdict(peak, overhead_bytes, usable_bytes),
        n_parameters=1,
    )


def test_a_band_over_the_limit_is_undecided():
    band = Quantity.projected(10 * GIB, 20 * GIB, "bytes", "T4", "the walk")
    verdicts = [planner.verdict(band, GIB, usable) for usable in (10 * GIB, 15 * GIB, 22 * GIB)]
    assert verdicts == ["out of memory", "undecided", "fits"]
    plan = made_up_plan(64, GIB).model_copy(update={"peak": band, "verdict": "undecided"})
    assert "may or may not fit a T4" in metrics._fit([Remedy(name="reference", plan=plan)])


@settings(deadline=None)
@given(per_sample=st.floats(1e5, 8e9), exponent=st.floats(0.7, 1.3), first=st.integers(1, 512), n_compiles=st.integers(1, 12))
def test_the_largest_batch_was_compiled_and_fits(per_sample, exponent, first, n_compiles):
    compiled = {}

    def plan(model, gpu, *, batch_size, **options):
        assert batch_size not in compiled, "compiled twice"
        compiled[batch_size] = made_up_plan(batch_size, GIB // 10 + per_sample * batch_size**exponent)
        return compiled[batch_size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "plan_memory", plan)
        largest = planner.largest_batch("quick", "T4", batch_size=first, n_compiles=n_compiles)
    assert 1 <= len(compiled) <= n_compiles
    fitting = [size for size, plan in compiled.items() if plan.verdict == "fits"]
    assert largest is (compiled[max(fitting)] if fitting else None)
    room = (15 * GIB - GIB / 2) / planner.SAFETY_FACTOR - GIB / 10
    best = int((room / per_sample) ** (1 / exponent))
    if n_compiles == 12:
        assert max(fitting, default=0) >= best - max(9, 0.25 * best)


# The cache -----------------------------------------------------------------------------------------------------------

TINY = ModelConfig(
    transformer=TransformerConfig(window=24, d_model=8, n_layers=1, n_heads=2, feed_forward=16), fusion=(8,), dropout=0.4
)


@pytest.fixture
def compiles(monkeypatch):
    """The requests that reach the compiler, which answers at once."""
    requests = []

    def answer(request, *, time_limit_s, stop):
        requests.append(request)
        return StepAnswer(temporaries_bytes=GIB, n_parameters=5)

    monkeypatch.setattr(planner, "compile_step", answer)
    return requests


def test_a_plan_made_before_is_not_compiled_again(compiles, outputs):
    first = planner.plan_memory(TINY, "T4", batch_size=8)
    assert planner.plan_memory(TINY, "Tesla T4", batch_size=8) == first
    assert first.configuration["recompute"] is False
    assert len(compiles) == 1
    planner.plan_memory(TINY, "T4", batch_size=8, use_cache=False)
    assert len(compiles) == 2
    by_switch = planner.plan_memory(TINY, "T4", batch_size=8, recompute=True)
    by_config = planner.plan_memory(TINY.model_copy(update={"recompute": True}), "T4", batch_size=8)
    assert by_switch == by_config
    assert by_switch.configuration["recompute"] is True
    assert len(compiles) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 9},
        {"gpu": "L4"},
        {"gradient_accumulation_steps": 2},
        {"dtype_policy": "mixed_float16"},
        {"recompute": True},
        {"memory_efficient_attention": True},
        {"optimizer": "sgd"},
        {"before_rematerialisation": True},
        {"model": TINY.model_copy(update={"dropout": 0.5})},
    ],
)
def test_whatever_decides_the_answer_is_compiled_anew(compiles, change):
    options = {"model": TINY, "gpu": "T4", "batch_size": 8}
    planner.plan_memory(**options)
    planner.plan_memory(**options | change)
    assert len(compiles) == 2


def test_another_version_of_the_compiler_is_asked_again(compiles, monkeypatch):
    planner.plan_memory(TINY, batch_size=8)
    monkeypatch.setattr(planner, "_version", lambda package: "99")
    planner.plan_memory(TINY, batch_size=8)
    assert len(compiles) == 2


def test_a_users_model_is_known_by_its_layers_not_by_its_weights(compiles, my_models, tmp_path):
    file = tmp_path / "model.keras"
    keras.utils.set_random_seed(0)
    for _ in range(2):  # other weights, and another time of writing
        keras.backend.clear_session()  # Keras numbers layers through
        my_models.doubled().save(file)
        planner.plan_memory(file, batch_size=8, modules=["my_models"])
    assert len(compiles) == 1
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)]).save(file)
    planner.plan_memory(file, batch_size=8)
    assert len(compiles) == 2
    planner.plan_memory(my_models.doubled(), batch_size=8)
    assert compiles[-1].modules == ("my_models",)


@pytest.mark.parametrize("content", [b"", b"{", b'{"weights_bytes": "many"}', b"\xff\xfe", b"[]"])
def test_a_damaged_entry_is_compiled_again(compiles, outputs, content):
    first = planner.plan_memory(TINY, batch_size=8)
    (entry,) = (outputs / ".cache" / "plans").iterdir()
    entry.write_bytes(content)
    assert planner.plan_memory(TINY, batch_size=8) == first
    assert len(compiles) == 2
    planner.plan_memory(TINY, batch_size=8)
    assert len(compiles) == 2


def test_a_full_disk_costs_the_cache_only(compiles, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(planner, "write_atomically", full)
    plan = planner.plan_memory(TINY, batch_size=8)
    assert plan.peak.value == GIB
    assert "could not be kept for the next time" in plan.notes[0]
    assert "No space left" in plan.notes[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gpu": "GTX 9090"}, ValueError, "not in the catalogue"),
        ({"gpu": "A100"}, ValueError, "ambiguous"),
        ({"model": "refrence"}, ValueError, "did you mean 'reference'"),
        ({"batch_size": 0}, ValueError, "micro-batches of 0"),
        ({"gradient_accumulation_steps": 0}, ValueError, "0 per update"),
        ({"dtype_policy": "float17"}, ValueError, "float17"),
        ({"optimizer": "adamm"}, ValueError, "adamm"),
        ({"model": "missing.keras"}, PlanError, "missing.keras cannot be read as a .keras file"),
        ({"model": "no_such_module:build"}, PlanError, "no module named 'no_such_module'"),
        ({"model": "no_such.module:build"}, PlanError, r"no module named 'no_such\.module'"),
        ({"model": "no_such_module:build", "recompute": True}, ValueError, "use training.Recompute"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_compiled(compiles, options, error, message):
    with pytest.raises(error, match=message):
        planner.plan_memory(**{"model": TINY, "batch_size": 8, **options})
    assert not compiles


def test_a_file_that_is_no_keras_file_and_a_layer_of_a_notebook_are_refused(compiles, tmp_path, monkeypatch):
    (tmp_path / "model.keras").write_text("weights")
    with pytest.raises(PlanError, match=r"cannot be read as a \.keras file"):
        planner.plan_memory(tmp_path / "model.keras", batch_size=8)

    class Own(keras.layers.Layer):
        pass

    Own.__module__ = "__main__"
    with pytest.raises(PlanError, match="put it into a module"):
        planner.plan_memory(keras.Sequential([keras.Input((2,)), Own()]), batch_size=8)
    assert not compiles


def test_before_rematerialisation_a_gpu_of_endless_memory_is_asked(monkeypatch):
    def answer(request, *, time_limit_s, stop):
        endless = f"device_memory_size: {2**40} " in request.target
        return StepAnswer(temporaries_bytes=(20 if endless else 13) * GIB)

    monkeypatch.setattr(planner, "compile_step", answer)
    plan = planner.plan_memory(TINY, batch_size=8, before_rematerialisation=True)
    assert (plan.peak.value, plan.peak_before_rematerialisation.value) == (13 * GIB, 20 * GIB)
    assert any("computes some results twice" in note for note in plan.notes)
    assert plan.verdict == "tight"
    assert any("XLA_PYTHON_CLIENT_MEM_FRACTION" in note for note in plan.notes)


# The table -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch):
    """`remedy_table` on made-up plans: peaks by batch and precision; recomputation cannot be compiled."""

    def plan(model, gpu, *, batch_size, dtype_policy, recompute, gradient_accumulation_steps, **options):
        if recompute:
            raise PlanError("XLA failed on this step")
        made_up = made_up_plan(batch_size, (0.4 if dtype_policy == "float32" else 0.2) * GIB * batch_size)
        configuration = {"batch_size": batch_size, "gradient_accumulation_steps": gradient_accumulation_steps}
        return made_up.model_copy(update={"configuration": configuration})

    monkeypatch.setattr(planner, "plan_memory", plan)
    monkeypatch.setattr(remedies, "plan_memory", plan)
    return remedies.remedy_table


def test_the_table_has_each_remedy_alone_and_together_with_its_largest_batch(table):
    told = []
    rows = {remedy.name: remedy for remedy in table(tell=told.append)}
    assert list(rows) == [row.name for row in remedies._ROWS]
    assert [rows[name].claimed for name in list(rows)[:2]] == ["15.90 GiB", "about 8 GiB"]
    assert (rows["reference"].plan.verdict, rows["mixed_float16"].plan.verdict) == ("out of memory", "fits")
    assert rows["reference"].largest_batch == 32
    assert rows["mixed_float16"].largest_batch == 64
    assert rows["mixed_float16 + accumulation 8 x 8"].largest_batch is None  # the micro-batch is a choice there
    assert rows["recompute Transformer layers"].plan is None
    assert rows["recompute Transformer layers"].problem == "XLA failed on this step"
    assert told[-1].startswith(f"[{len(told)}/")

    text = remedies.format_remedies(list(rows.values()))
    assert max(map(len, text.splitlines())) <= 120
    assert "8 x 8" in text
    assert "CUDA offers 15.00 GiB" in text
    for remedy in rows.values():
        assert remedy.name in text


def test_of_another_model_the_table_claims_nothing(table):
    rows = table(training.find_preset("quick"))
    assert not any(remedy.claimed for remedy in rows)
    assert not any("option" in remedy.name for remedy in rows)


def test_the_command_prints_json_and_refuses_an_unknown_gpu(table, capsys):
    answer = json.loads(remedies.plan_command(gpu="T4", as_json=True))
    assert [remedy["name"] for remedy in answer] == [row.name for row in remedies._ROWS]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "reference: 25.6 GiB, out of memory" in captured.err
    with pytest.raises(ValueError, match="not in the catalogue"):
        remedies.plan_command(gpu="T5")


def test_the_command_plans_a_model_of_the_users_own(monkeypatch, capsys):
    plans = []

    def plan(model, gpu, *, batch_size, **options):
        plans.append((model, batch_size))
        made_up = made_up_plan(batch_size, 0.4 * GIB * batch_size)
        configuration = {"dtype_policy": "float32", "optimizer": "adam", **made_up.configuration}
        return made_up.model_copy(update={"configuration": configuration})

    monkeypatch.setattr(planner, "plan_memory", plan)
    monkeypatch.setattr(remedies, "plan_memory", plan)
    text = remedies.plan_command("my_models:build", batch_size=16)
    assert plans == [("my_models:build", 16)]
    assert [line for line in text.splitlines() if line.startswith("batch of 16, float32, adam ") and line.endswith(" fits")]
    assert "6.4 GiB (compiled for T4)" in text
    assert max(map(len, text.splitlines())) <= 120
    assert json.loads(remedies.plan_command("model.keras", as_json=True))["configuration"]["batch_size"] == 32  # the largest
    assert "batch by batch" in capsys.readouterr().err
    monkeypatch.setattr(planner, "plan_memory", lambda *a, **o: plan(*a, **o | {"batch_size": 10**6}))
    with pytest.raises(PlanError, match=r"no batch of model\.keras that was compiled fits T4"):
        remedies.plan_command("model.keras")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "T5"], "'T5' is not in the catalogue"),
        (["refrence"], "did you mean 'reference'"),
        (["--batch-size", "8", "missing.keras"], "missing.keras cannot be read as a .keras file"),
        (["--batch-size", "8", "no_such_module:build"], "no module named 'no_such_module'"),
    ],
)
def test_the_terminal_says_in_one_line_what_cannot_be_planned(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli.signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit) as ended:
        cli.app(["plan", *arguments])
    assert ended.value.code == 1
    *progress, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert all(line.startswith("compiling ") for line in progress)


def test_the_figure_says_what_fits(table):
    rows = table()
    with figures.figure() as (_, ax):
        title = plots.memory_by_part(ax, rows).get_title("left")
    planned = [row.plan.verdict for row in rows if row.plan]
    assert title == f"{planned.count('fits')} of {len(planned)} fit a T4; the reference does not"
    of_rows = remedies.remedy_rows(rows)
    assert of_rows[0]["per sample"] == "-"  # no times were projected
    assert {row["verdict"] for row in of_rows} == {"fits", "out of memory", "not planned"}


def test_the_time_per_sample_is_beside_the_first_row():
    def timed(batch_size, low, high):
        return made_up_plan(batch_size, GIB).model_copy(
            update={"step_time": Quantity.projected(low, high, "s", "T4", "memory")}
        )

    rows = [Remedy(name=name, plan=plan) for name, plan in (("a", timed(64, 1, 2)), ("b", timed(8, 0.25, 0.3)))]
    assert [row["per sample"] for row in remedies.remedy_rows(rows)] == ["1.00x", "1.20 to 2.00x"]


def test_what_the_time_limit_cuts_off_is_projected_and_says_so(monkeypatch):
    def plan(model, gpu, *, batch_size, dtype_policy, stop=None, compiled=True, **options):
        made_up = made_up_plan(batch_size, GIB)
        if not compiled:
            return made_up.model_copy(update={"peak": Quantity.projected(0.8 * GIB, 1.6 * GIB, "bytes", "T4", "the walk")})
        if dtype_policy == "mixed_float16":
            assert stop.wait(timeout=60)
            raise PlanError("stopped")
        return made_up

    monkeypatch.setattr(planner, "plan_memory", plan)
    monkeypatch.setattr(remedies, "plan_memory", plan)
    rows = {remedy.name: remedy for remedy in remedies.remedy_table(time_limit_s=0.5)}
    assert (rows["reference"].plan.verdict, rows["reference"].plan.peak.basis) == ("fits", "compiled")
    late = rows["mixed_float16"]
    assert (late.plan.peak.basis, late.largest_batch, late.problem) == ("projected", None, None)
    assert "what was not compiled within 0.5 s is projected" in late.plan.notes[-1]
    assert str(late.plan.peak) == "819 MiB to 1.6 GiB"
    assert remedies.format_remedies(list(rows.values())).count("what was not compiled within 0.5 s") == 1


# The switches that save memory ---------------------------------------------------------------------------------------


def test_the_switches_change_no_weight_and_no_name():
    def weights(config):
        return [(weight.path, weight.shape) for weight in training.build_model(config, 5).trainable_variables]

    saving = TINY.model_copy(update={"recompute": True, "memory_efficient_attention": True})
    assert weights(saving) == weights(TINY)


@pytest.mark.parametrize(
    "layer",
    [keras.layers.BatchNormalization(), keras.layers.Dense(2, activity_regularizer="l2")],
    ids=["statistics", "a loss"],
)
def test_a_block_that_does_more_than_return_a_value_is_not_recomputed(layer):
    block = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])
    with pytest.raises(ValueError, match=r"updates variables or adds a loss .*leave it out"):
        keras.Sequential([keras.Input((4,)), Recompute(block)])


@settings(deadline=None, max_examples=8)
@given(length=st.integers(1, 20), n_chunks=st.integers(1, 9), masked=st.booleans())
def test_chunked_attention_is_kerass(length, n_chunks, masked):
    keras.utils.set_random_seed(1)
    chunked = ChunkedAttention(2, 4, n_chunks=n_chunks)
    x = keras.random.normal((2, length, 8))
    y = keras.random.normal((2, 5, 8))
    mask = np.broadcast_to(np.tri(length, 5, dtype=bool), (2, length, 5)) if masked else None
    result = chunked(x, y, attention_mask=mask)
    plain = keras.layers.MultiHeadAttention(2, 4)
    plain.build(x.shape, y.shape)
    plain.set_weights(chunked.get_weights())
    np.testing.assert_allclose(result, plain(x, y, attention_mask=mask), atol=1e-6)


def test_the_switches_need_less_memory():
    """By the walk over the step's graph, in a process on Keras' JAX backend."""
    program = """
        from altlas_lib.training import ModelConfig, TransformerConfig
        from altlas_lib.training.plan.compile_step import answer
        from altlas_lib.training.plan.compiler import StepRequest
        transformer = TransformerConfig(window=256, d_model=8, n_layers=3, n_heads=2, feed_forward=32)
        plain = ModelConfig(transformer=transformer, fusion=(8,))
        for switches in ({}, {"recompute": True}, {"memory_efficient_attention": True}):
            config = plain.model_copy(update=switches)
            print(answer(StepRequest(config=config, batch_size=16)).temporaries_bytes)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    plain, recomputed, chunked = map(int, done.stdout.split())
    assert recomputed < 0.7 * plain
    assert chunked < 0.5 * plain


# Two updates of one model with and without the switches, from the same weights, data and seeds: prints the largest
# difference of any variable (seed generators included), and that of another dropout mask.
TWO_UPDATES = """
    import sys
    import numpy as np
    from altlas_lib.training import build_model, ModelConfig, TransformerConfig
    from altlas_lib.training.backend import keras
    from altlas_lib.training.model.recompute import Recompute

    config = ModelConfig.model_validate_json(sys.argv[1])
    rng = np.random.default_rng(0)
    x = {"window": rng.normal(size=(4, 24)).astype("float32"), "features": rng.normal(size=(4, 5)).astype("float32")}
    y = {head: rng.normal(size=(4, n)).astype("float32")
         for head, n in (("regression", 1), ("classification", 3), ("threshold", 1))}

    def trained(model, x, y, other_masks=False):
        keras.utils.set_random_seed(3)
        model = model()
        if other_masks:
            keras.utils.set_random_seed(4)  # for PyTorch, which draws from its own generator
            for variable in model.variables:
                if "seed_generator" in variable.path:
                    variable.assign(variable + 1)
        model.compile(keras.optimizers.SGD(0.3), loss="mse", jit_compile=False)
        for _ in range(2):
            model.train_on_batch(x, y)
        return [np.array(keras.ops.convert_to_numpy(variable)).astype("float64") for variable in model.variables]

    def difference(one, two):
        return max((np.abs(a - b) / (1 + np.abs(a))).max() for a, b in zip(one, two, strict=True))

    plain = trained(lambda: build_model(config, 5), x, y)
    for switches in ({"recompute": True}, {"recompute": True, "memory_efficient_attention": True}):
        other = trained(lambda: build_model(config.model_copy(update=switches), 5), x, y)
        assert difference(plain, other) < 1e-4, (switches, difference(plain, other))
    other_masks = trained(lambda: build_model(config, 5), x, y, other_masks=True)
    weights = [i for i, variable in enumerate(build_model(config, 5).variables) if "seed_generator" not in variable.path]
    assert difference([plain[i] for i in weights], [other_masks[i] for i in weights]) > 1e-2, "dropout does nothing here"

    def own(wrap):
        x, dropout = keras.Input((5,)), keras.layers.Dropout(0.3)  # drawn from twice
        block = keras.Model(x, keras.layers.Dense(5)(dropout(keras.layers.Dense(6, activation="tanh")(dropout(x)))))
        return keras.Sequential([keras.Input((5,)), wrap(block), keras.layers.Dense(3)])

    x, y = x["features"], y["classification"]
    plain, again = (trained(lambda: own(wrap), x, y) for wrap in (lambda block: block, Recompute))
    assert difference(plain, again) < 1e-4

    # One step outside of any graph, which TensorFlow computes differently.
    eager = []
    for wrap in (lambda block: block, Recompute):
        keras.utils.set_random_seed(3)
        model = own(wrap)
        model.compile(keras.optimizers.SGD(0.3), loss="mse", run_eagerly=keras.backend.backend() == "tensorflow")
        model.train_on_batch(x, y)
        eager.append([np.array(keras.ops.convert_to_numpy(variable)).astype("float64") for variable in model.variables])
    assert difference(*eager) < 1e-4

    # A block within a block, computed again as a whole.
    plain, again = (trained(lambda: own(wrap), x, y) for wrap in (lambda block: block, lambda b: Recompute(Recompute(b))))
    assert difference(plain, again) < 1e-4

    # Once more from the same place many times: what is computed again must not see weights that are updated meanwhile.
    model = own(Recompute)
    model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    # Copies: JAX's NumPy arrays share the memory of its own, which a training step takes over for its results.
    start, ends = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables], []
    for _ in range(60):
        keras.utils.set_random_seed(3)
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        model.train_on_batch(x, y)
        ends.append(np.concatenate([np.ravel(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]))
    assert max(np.abs(end - ends[0]).max() for end in ends) < 1e-6
    print("the same", end="")
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_recomputing_under_dropout_gives_the_gradients_of_not_recomputing(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_UPDATES), TINY.model_dump_json()],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.stdout == "the same", done.stderr[-3000:]
