"""Chapter 30's memory planner: bytes against a count by hand, what ships, the search, and the switches that save memory."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from training_helpers import COMPILE_FAST

from altlas_lib import cli, devices, figures, training
from altlas_lib.results import MemoryPlan, Quantity, Remedy
from altlas_lib.training import ModelConfig, TransformerConfig, plots
from altlas_lib.training.backend import keras
from altlas_lib.training.model.recompute import ChunkedAttention
from altlas_lib.training.plan import __main__ as shipping
from altlas_lib.training.plan import answers, mitigations, planner
from altlas_lib.training.plan.request import PlanError, StepCost, StepRequest, compile_steps, describe_gpu, has_compiler
from altlas_lib.training.score import finding

T4 = devices.find_gpu("T4")


class Sequential:  # PyTorch's, which need not be installed
    __module__, __qualname__ = "torch.nn.modules.container", "Sequential"


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

def dies():
    import os, sys
    print("goodbye", file=sys.stderr, flush=True)
    os._exit(3)

def with_data():
    return dense(), None

class NotKeras:
    pass

def not_keras():
    return NotKeras()

def broken():
    raise KeyError("weights")

def recurrent():
    return keras.Sequential([keras.Input((200, 4)), keras.layers.LSTM(16), keras.layers.Dense(1)])

def deep():
    def block(name):
        units = [keras.layers.Dense(64, activation="tanh") for _ in range(4)]
        return keras.Sequential([keras.Input((64,)), *units], name=name)
    return keras.Sequential([keras.Input((64,)), *(block(f"block{i}") for i in range(8))])
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


# Compiled ------------------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="JAX's CUDA plug-in is not installed")
N_WEIGHTS = 100 * 200 + 200 + 200 * 10 + 10
COUNTERS_BYTES = 64  # at most: iteration, learning rate, micro-batch, sums of the mean loss
TINY = ModelConfig(
    transformer=TransformerConfig(window=24, d_model=8, n_layers=1, n_heads=2, feed_forward=16), fusion=(8,), dropout=0.4
)
DEEP = ModelConfig(transformer=TransformerConfig(window=256, d_model=8, n_layers=3, n_heads=2, feed_forward=32), fusion=(8,))


def compiled_own(my_models, optimizer):
    model = my_models.dense()
    model.compile(optimizer, "mse")
    return model


def two_heads():
    x = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name="a")(x), keras.layers.Dense(3, activation="softmax", name="b")(x)]
    model = keras.Model(x, outputs)
    model.compile("sgd", loss={"a": "mse", "b": "sparse_categorical_crossentropy"})
    return model


TWO_HEADS, BLOCKS = two_heads(), tuple(f"block{i}" for i in range(8))


@pytest.fixture(scope="module")
def requests(my_models, tmp_path_factory):
    """Steps by a name, as `plan_memory` asks for them."""
    half, t4 = {"dtype_policy": "mixed_float16"}, describe_gpu(T4)
    asked = {
        "accumulated": ("my_models:dense", {"batch_size": 64, "gradient_accumulation_steps": 4}),
        "large": ("my_models:dense", {"batch_size": 4096}),
        "half": ("my_models:dense", {"batch_size": 4096, **half}),
        "recurrent": ("my_models:recurrent", {}),
        "with momentum": (compiled_own(my_models, keras.optimizers.SGD(0.1, momentum=0.9)), {}),
        "amsgrad": (compiled_own(my_models, keras.optimizers.Adam(amsgrad=True)), {}),
        "two heads": (TWO_HEADS, {}),
        "doubled": (my_models.doubled(), {}),
        "a file": (str(tmp_path_factory.mktemp("models") / "dense.keras"), {}),
        "a class": ("my_models:Own", {"input_shapes": {"x": (5,)}}),
        "sentences": (my_models.sentences(), {"input_shapes": {"tokens": (33,)}}),
        "deep": ("my_models:deep", {"batch_size": 512}),
        "deep, recomputed": ("my_models:deep", {"batch_size": 512, "recompute": BLOCKS}),
        "plain": (DEEP, {"batch_size": 16}),
        "recomputed": (DEEP.model_copy(update={"recompute": True}), {"batch_size": 16}),
        "chunked": (DEEP.model_copy(update={"memory_efficient_attention": True}), {"batch_size": 16}),
        "no such GPU": (TINY, {"target": t4.replace("core_count: 40", "cores: 40")}),
        "as it ships": (training.find_preset("quick"), {"gradient_accumulation_steps": 8, "dtype_policy": "float32"}),
        "no tokens": ("my_models:sentences", {}),
        "no shapes": ("my_models:Own", {}),
        "a number": ("my_models:number", {}),
        "not Keras": ("my_models:not_keras", {}),
        "broken": ("my_models:broken", {}),
        "nothing": ("my_models:nothing", {}),
        "float17": ("my_models:dense", {"dtype_policy": "float17"}),
        "no such layer": ("my_models:dense", {"recompute": ("block",)}),
    }
    my_models.dense().save(asked["a file"][0])
    folder = tmp_path_factory.mktemp("modules")
    subjects = {name: planner._find_subject(model, folder)[1] for name, (model, _) in asked.items()}
    return {
        name: StepRequest(**subjects[name], **{"batch_size": 8, "target": t4, **options})
        for name, (_, options) in asked.items()
    }


@pytest.fixture(scope="module")
def costs(requests):
    """The compiler's answers, all by one process."""
    return dict(zip(requests, compile_steps(list(requests.values()), time_limit_s=600), strict=True))


@pytest.mark.frameworks("plan", "JAX")
@needs_compiler
def test_the_parts_of_a_dense_model_are_those_counted_by_hand(requests, costs):
    accumulated, large, half = costs["accumulated"], costs["large"], costs["half"]
    assert 0 <= accumulated.bytes_by_part["weights"] - 4 * N_WEIGHTS <= COUNTERS_BYTES
    assert 0 <= accumulated.bytes_by_part["optimizer"] - 2 * 4 * N_WEIGHTS <= COUNTERS_BYTES  # Adam: two moments
    assert accumulated.bytes_by_part["accumulators"] == 4 * N_WEIGHTS
    assert accumulated.bytes_by_part["inputs"] == 4 * 64 * (100 + 10)
    assert large.bytes_by_part["accumulators"] == 0
    assert large.bytes_by_part["temporaries"] >= 4 * 4096 * 200  # the hidden layer is needed by the backward pass
    assert half.bytes_by_part["weights"] == large.bytes_by_part["weights"]  # kept in float32
    assert accumulated.peak_bytes < half.peak_bytes < large.peak_bytes
    for name in ("accumulated", "large", "half"):
        plan = planner.make_plan(requests[name], "dense", T4, costs[name])
        assert sum(plan.bytes_by_part.values()) == plan.peak.value
        assert (plan.peak.basis, plan.peak.device, plan.verdict, plan.n_parameters) == ("compiled", "T4", "fits", N_WEIGHTS)
        assert plan.step_time.low > 0
    assert plan.configuration["dtype_policy"] == "mixed_float16"


@needs_compiler
def test_what_a_model_is_compiled_with_is_planned(costs):
    """Adam has two moments of each weight, SGD none, with momentum one; outputs in a list can have losses by name."""
    slots = {name: round(costs[name].bytes_by_part["optimizer"] / 4 / N_WEIGHTS) for name in ("with momentum", "amsgrad")}
    assert slots == {"with momentum": 1, "amsgrad": 3}
    assert costs["with momentum"].optimizer == "sgd"
    assert costs["two heads"].bytes_by_part["inputs"] == 8 * (4 + 1 + 1) * 4


@needs_compiler
def test_the_time_of_a_recurrent_layers_step_is_unknown_and_says_why(requests, costs):
    plan = planner.make_plan(requests["recurrent"], "recurrent", T4, costs["recurrent"])
    assert plan.step_time is None
    assert any("it has a loop" in note for note in plan.notes)


@needs_compiler
def test_a_users_model_is_planned_with_its_own_layers_and_any_inputs(requests, costs):
    assert requests["doubled"].modules == ("my_models",)
    assert costs["doubled"].n_parameters == 8 * 4 + 4
    assert costs["a class"].n_parameters == (5 + 1) * 3
    assert costs["a file"].n_parameters == N_WEIGHTS
    assert costs["sentences"].n_parameters == 50 * 16 + 16 * 7 + 7
    assert costs["sentences"].bytes_by_part["inputs"] == 8 * 4 * (33 + 1 + 1)  # int32 tokens, a weight, the class's number


@needs_compiler
def test_recomputation_and_chunked_attention_need_less_memory(requests, costs):
    plain = costs["plain"].bytes_by_part["temporaries"]
    assert costs["recomputed"].bytes_by_part["temporaries"] < 0.7 * plain
    assert costs["chunked"].bytes_by_part["temporaries"] < 0.5 * plain
    assert costs["deep, recomputed"].bytes_by_part["temporaries"] < 0.7 * costs["deep"].bytes_by_part["temporaries"]
    plan = planner.make_plan(requests["deep, recomputed"], "deep", T4, costs["deep, recomputed"])
    assert plan.configuration["recompute"] == [*BLOCKS]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no tokens", r"'tokens' has shape \(None,\) without the batch.*input_shapes=\{'tokens': \(128,\)\}"),
        ("no shapes", "does not know its inputs.*input_shapes"),
        ("a number", "returned a int and 0 data sets: expected a keras.Model"),
        ("not Keras", r"returned a my_models\.NotKeras and 0 data sets: expected a keras\.Model, built by Keras 3"),
        ("broken", r"'my_models:broken' failed \(KeyError: 'weights'\)"),
        ("nothing", "has no attribute 'nothing'"),
        ("float17", "float17"),
        ("no such layer", r"recompute names \['block'\]: the layers of model"),
        ("no such GPU", r"XLA failed on this step for this GPU \(.*: plan another"),  # and takes no other along
    ],
)
def test_a_model_that_cannot_be_planned_is_refused_with_the_next_step(costs, name, message):
    assert re.search(message, costs[name].error)


@needs_compiler
def test_what_ships_is_what_the_compiler_says_here(requests, costs):
    """One answer made again; where the versions differ it may, and the plan says so."""
    found, notes = answers.find_answer(requests["as it ships"])
    if found is None or notes:
        pytest.skip("not among the answers that ship, or of other versions")
    cost = costs["as it ships"]
    assert cost.peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
    assert (cost.n_flops, cost.n_parameters) == (found.n_flops, found.n_parameters)


# Beside reality: the same step, on this machine's CPU, in a fresh process. It proves the count (arguments, new outputs and
# temporaries are what XLA holds at a time), not the plan for a GPU, for which XLA compiles other code.
MEASURED = """
    import jax, sys
    import numpy as np
    from altlas_lib.training.plan.request import StepRequest
    from altlas_lib.training.plan.step import lower_step
    _, lowered, state, batch = lower_step(StepRequest.model_validate_json(sys.argv[1]))
    state, data = jax.tree.map(lambda t: np.zeros(t.shape, t.dtype), (tuple(state), batch))
    compiled = lowered.compile()
    state, data = jax.block_until_ready(jax.device_put((state, data)))
    def status(name):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before = status("VmRSS")
    jax.block_until_ready(compiled(state, data))
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not forget a process's peak")
def test_a_step_compiled_for_the_cpu_holds_what_it_holds():
    transformer = TransformerConfig(window=200, d_model=64, n_layers=2, n_heads=4, feed_forward=128)
    request = StepRequest(config=ModelConfig(transformer=transformer, fusion=(8,)), batch_size=64)
    (cost,) = compile_steps([request], time_limit_s=250)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), request.model_dump_json()],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    measured = int(done.stdout)
    assert cost.bytes_by_part["temporaries"] > 2**28
    assert measured == pytest.approx(cost.bytes_by_part["temporaries"], rel=0.1), (measured, cost.bytes_by_part["temporaries"])


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["quick", "option1"])
@pytest.mark.parametrize(("batch_size", "dtype_policy"), [(64, "float32"), (256, "float32"), (256, "mixed_float16")])
def test_a_plan_is_within_a_tenth_of_what_the_gpu_holds(preset, batch_size, dtype_policy):
    """JAX's own peak of one step in a fresh process, beside the plan for the same GPU."""
    gpu = devices.find_gpu(devices.describe_gpus()[0].name)
    plan = planner.plan_memory(preset, gpu, batch_size=batch_size, dtype_policy=dtype_policy)
    request = StepRequest(config=training.find_preset(preset), batch_size=batch_size, dtype_policy=dtype_policy)
    program = textwrap.dedent(MEASURED).partition("def status")[0] + (
        "jax.block_until_ready(compiled(state, data))\nprint(jax.devices()[0].memory_stats()['peak_bytes_in_use'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, request.model_dump_json()],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert int(done.stdout) == pytest.approx(plan.peak.value, rel=0.1), done.stderr[-2000:]


def test_the_catalogues_rates_follow_from_its_multiprocessors():
    for gpu in devices.load_catalogue():
        cores = gpu.multiprocessors * devices.find_multiprocessor(gpu.compute_capability).float32_cores
        assert 2 * cores * gpu.boost_clock_ghz / 1000 == pytest.approx(gpu.float32_tflops, rel=0.01)
        assert 0.9 < gpu.usable_memory_gib / gpu.memory_gib < 1


def test_the_child_is_ended_at_its_time_limit():
    began_s = time.perf_counter()
    with pytest.raises(PlanError, match=r"longer than time_limit_s=0\.2: give it more time"):
        planner.plan_memory(TINY, batch_size=8, time_limit_s=0.2)
    assert time.perf_counter() - began_s < 20


def test_a_child_that_dies_is_said_to_have_died(my_models):
    with pytest.raises(PlanError, match=r"the compiling process ended with status 3 \(its last words: goodbye\)"):
        planner.plan_memory("my_models:dies", batch_size=8)


def test_without_the_plug_in_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setattr(planner, "has_compiler", lambda: False)
    with pytest.raises(PlanError, match="pip install jax jax-cuda12-plugin jax-cuda12-pjrt"):
        planner.plan_memory(TINY, batch_size=64)


# Verdict, time, search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peak_gib", "expected"), [(9, "fits"), (9.1, "tight"), (10, "tight"), (10.01, "out of memory")]
)  # 1.1 x 9.1 = 10.01
def test_the_verdict_keeps_a_tenth_in_reserve(peak_gib, expected):
    assert planner.verdict(peak_gib * GIB, overhead_bytes=GIB // 2, usable_bytes=10 * GIB + GIB // 2) == expected


def test_the_step_time_is_the_rooflines_from_both_ends():
    cost = StepCost(n_flops=8.1e12, moved_bytes=32e9)
    time_, why_not = planner.step_time(cost, T4)
    assert why_not is None
    assert time_.low == pytest.approx(1 / 0.8)  # one second of float32 arithmetic at the data sheet's rate
    assert time_.high == pytest.approx(1 / 0.2 + 0.1 / 0.5)
    assert time_.bound_by == "arithmetic"
    half, _ = planner.step_time(cost.model_copy(update={"dtype_policy": "mixed_float16"}), T4)
    assert half.low == pytest.approx(8.1 / 65 / 0.8)
    a100, _ = planner.step_time(cost, devices.find_gpu("A100 80GB"))
    assert a100.low == pytest.approx(8.1 / 156 / 0.8)  # TF32


@pytest.mark.parametrize(
    ("cost", "why"),
    [
        ({"n_flops": 1e12}, "does not give XLA's count"),
        ({"moved_bytes": 1e9}, "does not give XLA's count"),
        ({"n_flops": 1e12, "moved_bytes": 1e9, "has_loop": True}, "it has a loop"),
    ],
)
def test_a_step_time_that_cannot_be_computed_says_why(cost, why):
    time_, why_not = planner.step_time(StepCost(**cost), T4)
    assert time_ is None
    assert why in why_not


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
        verdict=planner.verdict(peak_bytes, overhead_bytes, usable_bytes),
        n_parameters=1,
    )


def test_the_candidates_are_close_to_each_other_and_what_tensor_cores_like():
    steps = np.diff(planner.CANDIDATES) / planner.CANDIDATES[:-1]
    assert planner.CANDIDATES[0] == 1
    assert planner.CANDIDATES[-1] == 2**16
    assert all(size % 8 == 0 for size in planner.CANDIDATES[3:])
    assert (steps > 0).all()
    assert max(steps[11:]) <= 0.16  # from 72 on


@settings(deadline=None)
@given(per_sample=st.floats(1e5, 8e9), exponent=st.floats(0.7, 1.3))
def test_the_largest_batch_was_compiled_and_fits(per_sample, exponent):
    compiled = {}

    def plan(model, gpu, *, batch_size, **options):
        assert batch_size not in compiled, "compiled twice"
        compiled[batch_size] = made_up_plan(batch_size, GIB // 10 + per_sample * batch_size**exponent)
        return compiled[batch_size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "plan_memory", plan)
        largest = planner.largest_batch("quick", "T4")
    assert len(compiled) <= 7
    fitting = [size for size, plan in compiled.items() if plan.verdict == "fits"]
    assert largest is (compiled[max(fitting)] if fitting else None)
    room = (15 * GIB - GIB / 2) / planner.SAFETY_FACTOR - GIB / 10
    best = int((room / per_sample) ** (1 / exponent))
    assert max(fitting, default=0) >= min(best, 2**16) - max(9, 0.25 * best)


# What is asked -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiles(monkeypatch):
    """The requests that reach the compiler, which answers at once."""
    requests = []

    def answer(asked, *, time_limit_s):
        requests.extend(asked)
        return [StepCost(bytes_by_part={"temporaries": GIB}, n_parameters=5) for _ in asked]

    monkeypatch.setattr(planner, "compile_steps", answer)
    return requests


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 9},
        {"gpu": "L4"},
        {"gradient_accumulation_steps": 2},
        {"dtype_policy": "mixed_float16"},
        {"model": TINY.model_copy(update={"recompute": True})},
        {"model": TINY.model_copy(update={"memory_efficient_attention": True})},
        {"model": TINY.model_copy(update={"dropout": 0.5})},
    ],
)
def test_whatever_decides_the_answer_is_compiled_anew(compiles, change):
    options = {"model": TINY, "gpu": "T4", "batch_size": 8}
    planner.plan_memory(**options)
    planner.plan_memory(**options | change)
    assert len({answers.request_key(request) for request in compiles}) == 2


def test_a_users_own_model_is_asked_for_anew_with_the_modules_that_define_it(compiles, my_models, outputs):
    for _ in range(2):
        planner.plan_memory(my_models.doubled(), batch_size=8, recompute=["a"])
    assert [(request.modules, request.recompute) for request in compiles] == [(("my_models",), ("a",))] * 2
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gpu": "GTX 9090"}, ValueError, "not in the catalogue"),
        ({"gpu": "A100"}, ValueError, "ambiguous"),
        ({"model": "refrence"}, ValueError, "did you mean 'reference'"),
        ({"batch_size": 0}, ValueError, r"batch_size is 0 \(a int\): expected a whole number of 1 or more"),
        ({"batch_size": "64"}, ValueError, r"batch_size is '64' \(a str\): expected a whole number of 1 or more"),
        ({"batch_size": 8.0}, ValueError, r"batch_size is 8\.0 \(a float\)"),
        ({"gradient_accumulation_steps": 0}, ValueError, "gradient_accumulation_steps is 0"),
        ({"accumulation": 2}, ValueError, "accumulation"),
        (
            {"model": LogisticRegression()},
            PlanError,
            r"a sklearn\.linear_model\._logistic\.LogisticRegression: expected a keras",
        ),
        ({"model": Sequential()}, PlanError, r"the model is a torch\.nn\.modules\.container\.Sequential: expected a keras"),
        ({"model": 7}, PlanError, "the model is a int: expected a keras.Model"),
        ({"model": TWO_HEADS, "dtype_policy": "float16"}, PlanError, "is built already: for float16 name its function"),
        ({"model": "missing.keras"}, PlanError, "missing.keras cannot be read as a .keras file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_compiled(compiles, options, error, message):
    with pytest.raises(error, match=message):
        planner.plan_memory(**{"model": TINY, "batch_size": 8, **options})
    assert not compiles


def test_a_keras_file_that_would_unpack_to_gigabytes_is_refused(compiles, tmp_path):
    def write(name, size):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", b" " * size)
        return tmp_path / name

    with pytest.raises(PlanError, match=r"config\.json has more than 67,108,864 bytes"):
        planner.plan_memory(write("long.keras", 2**26 + 1), batch_size=8)
    os.mkfifo(tmp_path / "pipe.keras")
    with pytest.raises(PlanError, match=r"pipe\.keras cannot be read as a \.keras file \(no such file\)"):
        planner.plan_memory(tmp_path / "pipe.keras", batch_size=8)
    assert not compiles


def test_a_file_that_is_no_keras_file_is_refused(compiles, tmp_path):
    (tmp_path / "model.keras").write_text("weights")
    with pytest.raises(PlanError, match=r"cannot be read as a \.keras file"):
        planner.plan_memory(tmp_path / "model.keras", batch_size=8)
    assert not compiles


# What ships ----------------------------------------------------------------------------------------------------------


def test_the_reference_is_planned_for_a_t4_at_once_without_a_framework():
    """From what ships with the library: nothing is compiled, and Keras is not loaded."""
    code = (
        "import sys\n"
        "from altlas_lib import training\n"
        "table = training.mitigation_table('reference', 'T4', time_limit_s=0)\n"
        "assert all(row.plan for row in table), [row.problem for row in table]\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)\n"
        "print([row.plan.verdict for row in table].count('fits'))\n"
    )
    began_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
    assert time.perf_counter() - began_s < 30  # 2 s on a quiet machine


@pytest.fixture
def shipping_file(tmp_path, monkeypatch):
    """A table of its own in place of the one that ships."""
    file = tmp_path / "shipped.json"
    monkeypatch.setattr(answers, "SHIPPED_FILE", file)
    monkeypatch.setattr(shipping, "SHIPPED_FILE", file)
    answers.read_shipped.cache_clear()
    yield file
    answers.read_shipped.cache_clear()


@pytest.fixture
def made(shipping_file, monkeypatch):
    """The command that makes the table, with a compiler that answers at once; the requests that it gets."""
    requests = []

    def answer(asked, *, time_limit_s):
        (request,) = asked
        requests.append(request)
        half = 2 if request.dtype_policy == "mixed_float16" else 1
        parts = {"temporaries": int(0.39 * GIB * request.batch_size / half)}
        return [StepCost(bytes_by_part=parts, n_flops=1e12, moved_bytes=1e9)]

    monkeypatch.setattr(shipping, "compile_steps", answer)
    return requests


def test_the_table_is_made_once_and_goes_on_where_it_was_stopped(made, shipping_file):
    shipping.main(["reference"], [T4])
    assert len(made) == len(mitigations.find_mitigations(training.find_preset("reference")))
    assert {request.target for request in made} == {describe_gpu(T4)}
    made.clear()
    answers.read_shipped.cache_clear()
    shipping.main(["reference"], [T4, devices.find_gpu("L4")])
    assert {request.target for request in made} == {describe_gpu(devices.find_gpu("L4"))}

    answers.read_shipped.cache_clear()
    rows = {row.name: row for row in mitigations.mitigation_table("reference", "T4", time_limit_s=0)}
    assert (rows["reference"].plan.verdict, rows["reference"].largest_batch) == ("out of memory", None)  # not searched for
    on_l4 = mitigations.mitigation_table("reference", "L4", time_limit_s=0)[1]
    assert on_l4.plan.verdict == "fits"
    fits = {fit.gpu: fit for fit in mitigations.gpu_table("reference")}
    assert list(fits) == [gpu.name for gpu in devices.load_catalogue()]
    assert (fits["T4"].as_it_is, fits["T4"].fitting[0]) == ("out of memory", "mixed_float16")
    assert (fits["H200"].as_it_is, fits["H200"].fitting, len(fits["H200"].not_compiled)) == (None, [], 12)
    shown = {row["GPU"]: row for row in mitigations.gpu_rows(list(fits.values()))}
    assert shown["H200"]["fits with"] == "unknown"
    assert shown["T4"]["fits with"] == "mixed_float16"


@pytest.mark.parametrize("preset", sorted(training.PRESETS))
def test_every_mitigation_of_every_preset_ships_for_every_gpu(preset):
    fits = mitigations.gpu_table(preset)
    assert {fit.gpu for fit in fits} == {gpu.name for gpu in devices.load_catalogue()}
    assert {fit.gpu: fit.not_compiled for fit in fits if fit.not_compiled or not fit.as_it_is} == {}


def test_a_table_of_other_versions_is_used_and_says_so_and_is_made_anew(made, monkeypatch, compiles):
    shipping.main(["quick"], [T4])
    n_steps = len(made)
    monkeypatch.setattr(answers, "package_versions", lambda: {"jax": "99"})
    answers.read_shipped.cache_clear()
    plan = planner.plan_memory("quick", "T4", batch_size=64, time_limit_s=0)
    assert any(
        re.search(r"compiled with .*jax [\d.]+ \(here 99\).*python -m altlas_lib\.training\.plan", n) for n in plan.notes
    )
    made.clear()
    shipping.main(["quick"], [T4])
    assert len(made) == n_steps


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 7}', '{"sources": "of another model", "steps": {}}'])
def test_a_table_that_is_damaged_or_of_other_code_is_not_used(shipping_file, content):
    shipping_file.write_text(content)
    with pytest.raises(PlanError, match=r"not compiled yet.*python -m altlas_lib\.training\.plan"):
        planner.plan_memory("quick", "T4", batch_size=64, time_limit_s=0)


def test_the_digest_of_the_sources_ignores_comments_and_docstrings_and_nothing_else(tmp_path, monkeypatch):
    digests = []
    for code in ('"""A."""\nx = 1  # one\n', '"""B."""\n\nx = 1\n', "x = 2\n"):
        for source in answers._SOURCES:
            (tmp_path / f"{source}.py").parent.mkdir(exist_ok=True)
            (tmp_path / f"{source}.py").write_text(code)
        monkeypatch.setattr(answers, "__file__", str(tmp_path / "plan" / "answers.py"))
        answers.source_digest.cache_clear()
        digests.append(answers.source_digest())
    answers.source_digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]


def test_of_another_model_the_table_claims_nothing():
    quick = training.find_preset("quick")
    rows = mitigations.find_mitigations(quick)
    assert not any(row.claimed for row in rows)
    assert {row.config.nbeats for row in rows} == {quick.nbeats}
    assert rows[0].name == "as it is"
    without_attention = mitigations.find_mitigations(training.find_preset("option1"))
    assert not any(row.config.recompute or row.config.memory_efficient_attention for row in without_attention)


def test_a_configuration_of_ones_own_is_compiled_until_the_time_limit(compiles):
    rows = mitigations.mitigation_table(TINY, "T4")
    assert [row.plan.verdict for row in rows] == ["fits"] * len(rows)
    assert [row.plan.configuration["recompute"] for row in rows[-2:]] == [False, True]
    n_compiled = len(compiles)
    late = mitigations.mitigation_table(TINY.model_copy(update={"dropout": 0.1}), "T4", time_limit_s=0)
    assert len(compiles) == n_compiled
    assert all("not compiled yet" in row.problem for row in late)
    assert [row["verdict"] for row in mitigations.mitigation_rows(late)] == ["not planned"] * len(late)
    assert all("not compiled yet" in line for line in mitigations.explanation(late))


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """`altlas plan` with these arguments: exit code, standard output, lines of standard error."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli.signal, "signal", lambda *arguments: None)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.app(["plan", *arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err.splitlines()

    return call


def test_the_command_prints_the_table_of_a_preset(made, command):
    shipping.main(["reference"], [T4])
    answers.read_shipped.cache_clear()
    code, text, errors = command("--gpu", "t4", "--time-limit", "1")
    assert (code, errors) == (0, [])
    assert max(map(len, text.splitlines())) <= 120
    assert "8 x 8" in text
    assert "CUDA offers 14.56 GiB" in text
    code, text, _ = command("--json")
    answer = [Remedy.model_validate(each) for each in json.loads(text)]
    rows = mitigations.find_mitigations(training.find_preset("reference"))
    assert [row.name for row in answer] == [row.name for row in rows]
    code, text, _ = command("--gpu", "all")
    assert code == 0
    assert re.search(r"^T4 +out of memory +mixed_float16", text, re.M)
    assert re.search(r"^H200 +not compiled +unknown", text, re.M)


def test_the_command_plans_a_model_of_the_users_own(compiles, command, my_models, monkeypatch):
    code, text, errors = command("my_models:dense", "--batch-size", "16")
    assert (code, errors) == (0, [])
    assert compiles[-1].builder == "my_models:dense"
    assert re.search(r"^my_models:dense +16 x 1 +1 GiB +fits +unknown", text, re.M)
    code, text, errors = command("my_models:dense", "--json")
    assert json.loads(text)[0]["largest_batch"] == 2**16
    assert errors == []  # no progress where nobody looks
    small = devices.find_gpu("T4").model_copy(update={"usable_memory_gib": 0.6})
    monkeypatch.setattr(planner, "find_gpu", lambda name: small)
    code, _, errors = command("my_models:dense")
    assert code == 1
    assert errors[-1] == "not even one sample of my_models:dense fits T4; what it needs: --batch-size 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "T5"], "'T5' is not in the catalogue"),
        (["refrence"], "did you mean 'reference'"),
        (["--batch-size", "8", "missing.keras"], "missing.keras cannot be read as a .keras file"),
        (["--batch-size", "8", "no_such_module:build"], "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            ["--batch-size", "8", "--input", "x=a", "quick"],
            "--input x=a: invalid literal for int() with base 10: 'a'; expected NAME",
        ),
    ],
)
def test_the_terminal_says_in_one_line_what_cannot_be_planned(arguments, message, command):
    code, out, errors = command(*arguments)
    assert (code, out, len(errors)) == (1, "", 1)  # and nothing about compiling
    assert message in errors[0]


def test_the_figure_and_the_finding_say_what_fits(made):
    shipping.main(["reference"], [T4])
    answers.read_shipped.cache_clear()
    rows = mitigations.mitigation_table("reference", "T4", time_limit_s=0)
    with figures.figure() as (_, ax):
        title = plots.memory_by_part(ax, rows).get_title("left")
    fitting = [row.plan.verdict for row in rows].count("fits")
    assert title == f"{fitting} of {len(rows)} fit a T4; the reference does not"
    said = finding._describe_fit(rows)
    assert said.startswith("The reference in batches of 64 needs 25 GiB (compiled) and does not fit a T4; with mixed_float16")
    assert said.endswith(f"as with {fitting - 1} more mitigations.")


# The switches that save memory ---------------------------------------------------------------------------------------


def test_the_switches_change_no_weight_and_no_name():
    def weights(config):
        return [(weight.path, weight.shape) for weight in training.build_model(config, 5).trainable_variables]

    saving = TINY.model_copy(update={"recompute": True, "memory_efficient_attention": True})
    assert weights(saving) == weights(TINY)


@settings(deadline=None, max_examples=8)
@given(length=st.integers(1, 20), n_chunks=st.integers(1, 9), masked=st.booleans())
def test_chunked_attention_is_kerass(length, n_chunks, masked):
    keras.utils.set_random_seed(1)
    chunked = ChunkedAttention(2, 4)
    chunked.n_chunks = n_chunks
    x = keras.random.normal((2, length, 8))
    y = keras.random.normal((2, 5, 8))
    mask = np.broadcast_to(np.tri(length, 5, dtype=bool), (2, length, 5)) if masked else None
    result = chunked(x, y, attention_mask=mask)
    plain = keras.layers.MultiHeadAttention(2, 4)
    plain.build(x.shape, y.shape)
    plain.set_weights(chunked.get_weights())
    np.testing.assert_allclose(result, plain(x, y, attention_mask=mask), atol=1e-6)


# Two updates of one model with and without the switches, from the same weights, data and seeds: prints the largest
# difference of any variable (seed generators included), and that of another dropout mask.
TWO_UPDATES = """
    import sys
    import numpy as np
    from altlas_lib.training import build_model, ModelConfig, TransformerConfig
    from altlas_lib.training.backend import keras
    from altlas_lib.training.model.recompute import recompute_layers

    config = ModelConfig.model_validate_json(sys.argv[1])
    rng = np.random.default_rng(0)
    x = {"window": rng.normal(size=(4, 24)).astype("float32"), "features": rng.normal(size=(4, 5)).astype("float32")}
    y = {head: rng.normal(size=(4, n)).astype("float32")
         for head, n in (("regression", 1), ("classification", 3), ("threshold", 1))}

    def trained(model, x, y, names=(), other_masks=False):
        keras.utils.set_random_seed(3)
        model = model()
        if other_masks:
            keras.utils.set_random_seed(4)  # for PyTorch, which draws from its own generator
            for variable in model.variables:
                if "seed_generator" in variable.path:
                    variable.assign(variable + 1)
        model.compile(keras.optimizers.SGD(0.3), loss="mse", jit_compile=False)
        with recompute_layers(model, names):
            for _ in range(2):
                model.train_on_batch(x, y)
        return [np.array(keras.ops.convert_to_numpy(variable)).astype("float64") for variable in model.variables]

    def difference(one, two):
        return max((np.abs(a - b) / (1 + np.abs(a))).max() for a, b in zip(one, two, strict=True))

    plain = trained(lambda: build_model(config, 5), x, y)
    for switches in ({"recompute": True}, {"recompute": True, "memory_efficient_attention": True}):
        switched = config.model_copy(update=switches)
        other = trained(lambda: build_model(switched, 5), x, y, switched.recomputed_layers)
        assert difference(plain, other) < 1e-4, (switches, difference(plain, other))
    other_masks = trained(lambda: build_model(config, 5), x, y, other_masks=True)
    weights = [i for i, variable in enumerate(build_model(config, 5).variables) if "seed_generator" not in variable.path]
    assert difference([plain[i] for i in weights], [other_masks[i] for i in weights]) > 1e-2, "dropout does nothing here"

    def own():
        x, dropout = keras.Input((5,)), keras.layers.Dropout(0.3)  # drawn from twice
        inner = keras.Sequential([keras.Input((6,)), dropout, keras.layers.Dense(6)], name="inner")
        block = keras.Model(x, keras.layers.Dense(5)(inner(keras.layers.Dense(6, activation="tanh")(dropout(x)))), name="block")
        return keras.Sequential([keras.Input((5,)), block, keras.layers.Dense(3)])

    x, y = x["features"], y["classification"]
    plain, again, nested = (trained(own, x, y, names) for names in ((), ["block"], ["block", "inner"]))
    assert difference(plain, again) < 1e-4
    assert difference(plain, nested) < 1e-4  # a block within a block is computed again as a whole

    # One step outside of any graph, which TensorFlow computes differently.
    eager = []
    for names in ((), ["block"]):
        keras.utils.set_random_seed(3)
        model = own()
        model.compile(keras.optimizers.SGD(0.3), loss="mse", run_eagerly=keras.backend.backend() == "tensorflow")
        with recompute_layers(model, names):
            model.train_on_batch(x, y)
        eager.append([np.array(keras.ops.convert_to_numpy(variable)).astype("float64") for variable in model.variables])
    assert difference(*eager) < 1e-4

    # Once more from the same place many times: what is computed again must not see weights that are updated meanwhile.
    model = own()
    model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    # Copies: JAX's NumPy arrays share the memory of its own, which a training step takes over for its results.
    start, ends = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables], []
    for _ in range(60):
        keras.utils.set_random_seed(3)
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        with recompute_layers(model, ["block"]):
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
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": COMPILE_FAST},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.stdout == "the same", done.stderr[-3000:]
