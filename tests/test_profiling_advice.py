"""The advice against what is known of workloads."""

import functools
import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from jinja2 import meta
from scipy.spatial.distance import cdist
from test_profiling_projection import CPU, operation, product, projected, workload

from altlas_lib import profiling
from altlas_lib.profiling.project import advice as advice_module
from altlas_lib.profiling.project.advice import rank_candidates
from altlas_lib.results import (
    LARGEST_OTHER_LOAD,
    Advice,
    Alternative,
    Candidate,
    FunctionTime,
    Projection,
    Quantity,
    RouteKind,
    WorkloadProfile,
)


def judged(profile: WorkloadProfile, gpu="T4", **options) -> Candidate:
    """Of workloads that are small so that tests are quick: how much a change saves has tests of its own below."""
    (candidate,) = rank_candidates([profile], gpu=gpu, **{"least_saving_s": 0, **options})
    return candidate


# Advice --------------------------------------------------------------------------------------------------------------------


def tokeniser() -> WorkloadProfile:
    return workload(total_s=2, classes={"interpreter": 0.7, "regex": 0.28, "other native": 0.02}, traced=False)


def cosine(n=4000, d=384) -> WorkloadProfile:
    """On two cores at 100 GFLOP/s each, the full matrix returned."""
    normalise = operation(
        "numpy.divide", "elementwise", [f"float32[{n}, {d}]"], time_s=1e-3, flops=n * d, moved_bytes=8 * n * d
    )
    multiply = product(n, d, n, 2 * n * n * d / 200e9)
    times = normalise.time_s + multiply.time_s
    return workload([normalise, multiply], 1.02 * times, {"arrays": 1.0}, input_bytes=4 * n * d, output_bytes=4 * n * n)


def multilayer_perceptron(rows: int, sizes=(384, 512, 128, 10), rate=150e9) -> WorkloadProfile:
    operations = []
    for n_in, n_out in itertools.pairwise(sizes):
        operations.append(product(rows, n_in, n_out, 2 * rows * n_in * n_out / rate + 1e-6))
        for name in ("numpy.add", "numpy.maximum"):
            moved_bytes = 8 * rows * n_out
            operands = [f"float32[{rows}, {n_out}]"]
            s = moved_bytes / 30e9 + 1e-6
            operations.append(operation(name, operands=operands, time_s=s, flops=rows * n_out, moved_bytes=moved_bytes))
    total_s = 1.05 * sum(operation.time_s for operation in operations)
    moved = {"input_bytes": 4 * rows * sizes[0], "output_bytes": 4 * rows * sizes[-1]}
    return workload(operations, total_s, {"arrays": 0.95, "interpreter": 0.05}, **moved)


@pytest.mark.parametrize("gpu", ["T4", "L4", "A100 80GB SXM", "H200"])
def test_pure_python_tokenising_is_left(gpu):
    candidate = judged(tokeniser(), gpu)
    assert candidate.advice == "leave it"
    assert "interpreter 70%, regex 28%" in candidate.reason
    assert candidate.projection is None


@pytest.mark.parametrize("name", ["interpreter", "parsing", "waiting"])
@pytest.mark.parametrize("traced", [True, False])
def test_what_no_gpu_runs_is_left(name, traced):
    candidate = judged(workload([operation(time_s=0.02)], classes={name: 0.95, "arrays": 0.05}, traced=traced), "H200")
    assert candidate.advice == "leave it"
    assert f"{name} 95%" in candidate.reason


@pytest.mark.parametrize("traced", [True, False])
def test_a_hot_regular_expression_is_changed_on_the_cpu(traced):
    candidate = judged(workload([operation(time_s=0.02)], classes={"regex": 0.95, "arrays": 0.05}, traced=traced), "H200")
    assert candidate.advice == "change the call"
    assert "a simpler pattern" in candidate.reason


def test_the_full_matrix_of_cosines_is_ported_and_bound_by_its_way_back():
    candidate = judged(cosine())
    assert candidate.advice == "port it"
    assert candidate.projection.bound_by == "transfers"
    assert candidate.projection.on_gpu_resident.bound_by == "compute"
    assert "the result's way back" in candidate.reason
    assert 2 < candidate.gain.low < candidate.gain.high < 15  # a trial said about 5


@pytest.mark.parametrize("gpu", ["T4", "L4", "H200"])
def test_a_network_on_few_rows_is_batched_and_on_many_ported(gpu):
    few, many = judged(multilayer_perceptron(64), gpu), judged(multilayer_perceptron(65_536), gpu)
    assert few.advice == "batch first"
    assert "times as many rows in each call" in few.reason
    assert many.advice == "port it"
    assert many.gain.low > 3


def test_a_frameworks_own_set_up_is_nothing_that_a_gpu_takes_over():
    """Keras' predict on 64 rows: 30 ms, of which the kernels of 86 MFLOP take less than 11 on any core."""
    few, many = (
        operation("Sequential.predict", kind="model", operands=[], time_s=s, flops=flops, moved_bytes=1e6)
        for s, flops in ((0.030, 86e6), (1.5, 88e9))
    )
    light = judged(workload([few], 0.031, {"framework": 0.9, "interpreter": 0.1}))
    assert light.advice == "batch first"
    assert "the framework's own set-up" in light.reason
    assert light.gain.high < 1.5
    heavy = judged(workload([many], 1.55, {"framework": 0.95, "interpreter": 0.05}))
    assert heavy.advice == "port it"


def test_the_batch_that_is_named_pays_and_half_of_it_does_not():
    few = judged(multilayer_perceptron(64))
    batch = int(few.reason.split("with about ")[1].split(" times")[0])
    profile = multilayer_perceptron(64)
    assert projected(profile, batch=batch).on_gpu.high * 1.5 <= profile.total.low
    half = projected(profile, batch=batch // 2)
    assert half.on_gpu.high * (3 if half.bound_by == "launches" else 1.5) > profile.total.low
    assert judged(multilayer_perceptron(64 * batch)).advice == "port it"


def test_a_python_loop_over_an_array_is_vectorised_first():
    n = 1_000_000
    loop = workload([], 0.5, {"interpreter": 0.7, "arrays": 0.3}, n_element_accesses=n, input_bytes=8 * n)
    assert judged(loop).advice == "vectorise first"
    assert "a Python loop goes through elements or tiny arrays" in judged(loop).reason
    tiny = operation(time_s=0.2, n_calls=200_000, flops=800_000, moved_bytes=200_000 * 24)
    assert judged(workload([tiny], 0.5, {"interpreter": 0.6, "arrays": 0.4})).advice == "vectorise first"
    few_accesses = workload([], 0.5, {"interpreter": 0.97, "arrays": 0.03}, n_element_accesses=1000)
    assert judged(few_accesses).advice == "leave it"


def test_an_element_wise_pass_is_worth_it_only_where_the_data_stays():
    n = 20_000_000
    scale = operation(time_s=0.02, flops=n, moved_bytes=8 * n, operands=[f"float32[{n}]"])
    candidate = judged(workload([scale], 0.0201, {"arrays": 1.0}, input_bytes=4 * n, output_bytes=4 * n))
    assert candidate.advice == "keep the data on the GPU"
    assert candidate.projection.bound_by == "transfers"


def small_requests(n_rows: int, width: int, n_calls: int, total_s: float) -> WorkloadProfile:
    """A product and its activation for each request."""
    multiply = product(n_rows, width, width, 0.8 * total_s, n_calls)
    moved_bytes = 8 * n_rows * width * n_calls
    activate = operation("numpy.tanh", operands=[f"float32[{n_rows}, {width}]"], time_s=0.15 * total_s, n_calls=n_calls,
                         rate="transcendental", flops=20 * n_rows * width * n_calls, moved_bytes=moved_bytes)  # fmt: skip
    n_bytes = 4 * n_rows * width * n_calls
    return workload(
        [multiply, activate], total_s, {"arrays": 1.0}, n_calls=n_calls, input_bytes=n_bytes, output_bytes=n_bytes / 8
    )


def test_small_products_of_many_calls_fill_the_gpu_as_one():
    """Each alone leaves most multiprocessors idle: that counts as little for the batch as the starts do."""
    few = judged(small_requests(16, 512, 6000, 0.22))
    assert few.advice == "batch first"
    batch = int(few.reason.split("with about ")[1].split(" times")[0].replace(",", ""))
    assert judged(small_requests(16 * batch, 512, 6000 // batch, 0.22)).advice == "port it"
    assert judged(small_requests(16, 512, 6000, 0.06)).advice == "leave it"  # a CPU that fast gains from no batch


def repeatedly_read(n_times: int, n: int = 8000, rate=50e9) -> WorkloadProfile:
    """A matrix that is multiplied by vectors, and read from the CPU's memory each time."""
    n_bytes = 4 * n * n
    step = operation("numpy.matmul", "product", [f"float32[{n}, {n}]", f"float32[{n}]"],
                     n_calls=n_times, time_s=n_times * n_bytes / rate, flops=2 * n * n * n_times,
                     moved_bytes=n_bytes * n_times, working_set_bytes=n_bytes,
                     sizes={"stack": 1, "m": n, "n": 1, "k": n})  # fmt: skip
    return workload([step], 1.01 * step.time_s, {"arrays": 1.0}, input_bytes=n_bytes, output_bytes=4 * n)


def test_what_is_brought_over_once_and_read_many_times_is_ported():
    """Then transfers are not what binds, and keeping the data there is no answer to what does."""
    often = judged(repeatedly_read(40))
    assert often.gain.low < 1.5 < often.projection.now.value / often.projection.on_gpu_resident.high
    assert often.advice == "port it"
    assert "40 times as much as is brought over" in often.reason
    once = judged(repeatedly_read(1))
    assert once.projection.bound_by == "transfers"
    assert once.advice in ("keep the data on the GPU", "leave it")
    assert judged(repeatedly_read(40, rate=140e9)).advice != "port it"  # a CPU with as much bandwidth


@pytest.mark.parametrize("classes", [{"other native": 1.0}, {"arrays": 0.9, "interpreter": 0.1}, {"framework": 1.0}])
@pytest.mark.parametrize("gpu", ["T4", "H200"])
@pytest.mark.parametrize("seen_s", [0.0, 0.1, 0.2])
def test_low_coverage_is_unknown_and_never_a_no(classes, gpu, seen_s):
    candidate = judged(workload([operation(time_s=seen_s, flops=1, moved_bytes=1)], classes=classes), gpu)
    assert candidate.advice == "unknown"
    assert "%" in candidate.reason


def test_without_a_gpu_nothing_is_projected():
    (candidate,) = rank_candidates([cosine()])
    assert candidate.projection is None is candidate.gain is candidate.workload_gain
    assert candidate.advice == "unknown"
    assert candidate.reason == "100% of 400 samples, 1 call per run"
    with pytest.raises(ValueError, match="not in the catalogue"):
        rank_candidates([cosine()], gpu="T5")


def test_a_band_from_loss_to_gain_holds_no_decision():
    n = 4096
    candidate = judged(workload([product(n, n, n, 0.04)], 0.0401, {"arrays": 1.0}))
    assert candidate.gain.low < 1.5 < candidate.gain.high
    assert candidate.advice == "unknown"
    assert "measure before a port" in candidate.reason
    slower = judged(workload([product(n, n, n, 0.01)], 0.0101, {"arrays": 1.0}))
    assert slower.advice == "leave it"
    assert "bound by compute" in slower.reason


def test_every_function_of_a_tenth_is_a_candidate_and_the_most_seconds_come_first():
    """Also one that a GPU slows down: it is what the time is spent in."""
    names = {"network": multilayer_perceptron(64), "cosine": cosine(), "tokens": tokeniser()}
    profiles = [profile.model_copy(update={"workload": name}) for name, profile in names.items()]
    assert [c.workload for c in rank_candidates(profiles, gpu="T4")] == ["tokens", "cosine", "network"]
    functions = [
        FunctionTime(name=name, file="app.py", line=1, sampled_own_share=share, sampled_share=share)
        for name, share in {"f": 0.3, "g": 0.4, "h": 0.2, "i": 0.1}.items()
    ]
    several = cosine().model_copy(update={"functions": functions})
    for gpu in ("T4", None):  # only f is traced, and gains from a GPU
        assert [c.function for c in rank_candidates([several], gpu=gpu)] == ["g", "f", "h", "i"]
    small = cosine().model_copy(
        update={"workload": "small", "functions": [cosine().functions[0].model_copy(update={"sampled_own_share": 0.05})]}
    )
    assert rank_candidates([small], gpu="T4") == []


# Real programs, profiled -----------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
WORDS = "The quick brown fox, it is said, jumps over 13 lazy dogs. " * 2000


def single(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def tokenise(text):
    return [word for word in (word.strip(".,").lower() for word in text.split()) if word.isalpha() and len(word) > 2]


def find_words(text):
    return re.findall(r"(?<=[a-z])\w+\b(?=,|\s)", text)


def parse(text):
    return json.loads(text)


def cosine_similarity(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T.copy()


def forward(x, layers):
    for weights in layers[:-1]:
        x = np.maximum(x @ weights, 0)
    return x @ layers[-1]


def nearest(a, b):
    return np.argmin(cdist(a, b), axis=1)


def sum_of_squares(x):
    total_of_all = 0.0
    for i in range(len(x)):
        if x[i] > 0:
            total_of_all += x[i] * x[i]
    return total_of_all


@pytest.mark.parametrize(
    ("function", "arguments", "advice"),
    [
        (tokenise, (WORDS,), "leave it"),
        (find_words, (WORDS,), "change the call"),
        (parse, (json.dumps([{"id": i, "text": str(i)} for i in range(20_000)]),), "change the call"),
        (cosine_similarity, (single(4000, 2048),), "port it"),
        (forward, (single(65_536, 256), [single(256, 1024), single(1024, 256), single(256, 10)]), "port it"),
        (nearest, (RNG.random((1500, 64)), RNG.random((2000, 64))), "port it"),
        (sum_of_squares, (RNG.random(50_000),), "vectorise first"),
    ],
    ids=["tokenise", "regex", "parse", "cosine", "many rows", "distances", "loop"],
)
def test_the_advice_on_real_programs(function, arguments, advice):
    profile = profiling.profile(functools.partial(function, *arguments), n_repeats=3)
    candidate = judged(profile)
    assert candidate.function == function.__name__
    if advice == "port it" and (profile.other_load or 0) > LARGEST_OTHER_LOAD:
        assert candidate.advice == "unknown" or not profile.is_too_busy
        pytest.skip("other programs keep the processors and the memory busy: this CPU's rates are not its own")
    assert candidate.advice == advice, candidate.reason


# What a change must save, measured alternatives, drop-in libraries ---------------------------------------------------------


def test_a_function_that_takes_a_millisecond_once_is_not_worth_a_port():
    profile = cosine(400)
    assert profile.total.low < 0.002
    candidate = judged(profile, least_saving_s=0.01)
    assert candidate.advice == "leave it"
    assert "less than the 10 ms that a change must save" in candidate.reason
    assert judged(cosine(), least_saving_s=0.01).advice == "port it"
    assert judged(cosine(), least_saving_s=60).advice == "leave it"


def alternative(gain: tuple[float, float, float], same_answer: bool | None) -> Alternative:
    times = Quantity.measured([0.1], "s", CPU)
    return Alternative(name="m:faster", time=times, gain=Quantity.measured(gain, "x", CPU), same_answer=same_answer)


@pytest.mark.parametrize(
    ("gain", "same_answer", "advice"),
    [
        ((2.0, 2.8, 3.0), True, "change the call"),
        ((2.0, 2.8, 3.0), False, "port it"),
        ((2.0, 2.8, 3.0), None, "port it"),  # nobody compared the answers
        ((0.9, 2.8, 3.0), True, "port it"),  # its slow end is no gain
    ],
)
def test_a_measured_alternative_comes_first_if_it_is_faster_and_right(gain, same_answer, advice):
    profile = cosine().model_copy(update={"alternatives": [alternative(gain, same_answer)]})
    candidate = judged(profile)
    assert candidate.advice == advice
    route = candidate.routes[0]
    assert (route.name, route.standing, route.same_answer) == ("m:faster", "measured", same_answer)
    assert ("measured, same answer" in candidate.reason) == (advice == "change the call")


def test_a_drop_in_library_is_tried_where_nothing_can_be_projected():
    fit = operation("sklearn.cluster.KMeans.fit", kind="unknown", operands=["float32[100000, 32]"], time_s=0.9)
    candidate = judged(workload([fit], 1.0, {"arrays": 1.0}))
    assert candidate.advice == "try the drop-in"
    assert "cuml.accel" in candidate.reason
    assert "not projected" in candidate.reason
    known = product(4000, 4000, 4000, 0.9).model_copy(update={"name": fit.name})
    assert judged(workload([known], 1.0, {"arrays": 1.0})).advice != "try the drop-in"
    unheard_of = operation("somewhere.Model.fit", kind="unknown", operands=["float32[100000, 32]"], time_s=0.9)
    assert judged(workload([unheard_of], 1.0, {"arrays": 1.0})).advice == "unknown"


def test_on_a_busy_machine_a_target_of_several_threads_is_not_priced():
    busy = cosine().model_copy(update={"other_load": 0.5, "is_parallel": True})
    candidate = judged(busy)
    assert candidate.advice == "unknown"
    assert "Other programs used 50% of the processors" in candidate.reason
    assert candidate.gain is None
    assert candidate.workload_gain is None
    assert not any(route.gain for route in candidate.routes)
    words = tokeniser().model_copy(update={"other_load": 0.5, "is_parallel": True})
    assert judged(words).advice == "leave it"  # which rests on no time


def test_a_slow_run_of_a_busy_machine_is_priced_by_what_it_takes_on_a_quiet_one():
    profile = cosine()
    wall = Quantity.measured([13 * profile.total.low], "s", CPU)
    quiet = Quantity.measured([profile.total.low], "s", CPU)
    contended = profile.model_copy(update={"total": wall, "quiet": quiet, "other_load": 0.9})
    assert judged(contended).gain == judged(profile).gain


def test_a_busy_machine_invents_no_gain():
    for profile in (cosine(), workload([], 1.0, {"interpreter": 1.0})):
        busy = Quantity.measured([profile.total.low, 20 * profile.total.low, 30 * profile.total.low], "s", CPU)
        contended = profile.model_copy(update={"total": busy})
        assert judged(contended) == judged(profile)
    assert judged(contended).gain.high <= 1


def test_every_rule_is_about_what_there_is_and_the_last_one_always_holds():
    rules = tomllib.loads(Path(advice_module.__file__).with_name("advice.toml").read_text("utf-8"))["rule"]
    assert [rule["when"] for rule in rules].index("true") == len(rules) - 1
    given, text = set(), advice_module.JINJA.from_string("leave it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advice_module, "evaluate", lambda when: lambda known: given.update(known) or True)
        patch.setattr(advice_module, "_template", lambda source: text)
        rank_candidates([cosine(), tokeniser()], gpu="T4")
    for rule in rules:
        for text in (f"{{{{ {rule['when']} }}}}", rule["advice"], rule["reason"]):
            assert meta.find_undeclared_variables(advice_module.JINJA.parse(text)) <= given, rule
        text = " ".join(rule.values())
        assert set(re.findall(r"projection\.(\w+)", text)) <= {*Projection.model_fields, "bound_by"}, rule
        assert set(re.findall(r"ways\['(.+?)'\]", text)) <= {"measured", "on this CPU", "on conditions", *get_args(RouteKind)}
        assert rule["advice"] in get_args(Advice) or rule["advice"].startswith("{{ ")
