"""The order of what the GPU does at the same time: right in every order that it may choose, and no waiting that is not needed.

On the stand-in for CuPy (`gpu_stand_in`), whose streams do what they are asked as late or as early as events allow.
"""

import ast
import itertools
from pathlib import Path

import gpu_stand_in
import numpy as np
import pytest
from test_similarity_gpu import stand_in, vectors

from altlas_lib import devices, similarity
from altlas_lib.similarity.gpu import rows as gpu_rows
from altlas_lib.similarity.gpu import search as engine

SOURCES = [Path(module.__file__) for module in (gpu_rows, engine)]
EAGER = [frozenset(some) for n in range(5) for some in itertools.combinations(range(4), n)]
PLAN = gpu_rows.Plan(tile_side=16, panel_rows=16, chunk_rows=7, n_panels=3)
RESIDENT = gpu_rows.Plan(tile_side=16, panel_rows=80, chunk_rows=7, n_panels=1)


def waiting_lines():
    """Where the engine records an event, waits for one, or synchronises."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"record", "wait_event", "synchronize"}:
                yield path.name, node.lineno


X = vectors(75, 9)
ALL_KEPT = X.copy()
X[11] = np.nan
X[20:30] = X[3]
PAIRS = similarity.pairs_above(X, 0.4, device="cpu", on_invalid="skip")


def assert_nearest(rows, of_rows):
    indices, scores, *_ = engine.top_k(rows, None, 4, on_invalid="skip")
    expected = similarity.top_k(of_rows, 4, device="cpu", on_invalid="skip")
    np.testing.assert_array_equal(devices.to_cpu(indices), expected.indices)
    np.testing.assert_allclose(devices.to_cpu(scores), expected.scores, rtol=0, atol=1e-6)


def leave_memory_in_use(cupy):
    """As a program does that computes before: memory is given back that its stream still writes, of many sizes."""
    for array in [cupy.empty(2**power, dtype=np.uint8) for power in range(5, 15) for _ in range(3)]:
        array.fill(0x7B)


def compare(cupy):
    leave_memory_in_use(cupy)
    assert_nearest(ALL_KEPT, ALL_KEPT)
    assert_nearest(X, X)


def compare_what_is_on_the_gpu(cupy):
    """Which the stream of its owner still writes, to memory that another array had before."""
    cupy.empty(X.shape, dtype=np.float32).fill(1)
    assert_nearest(cupy.asarray(X), X)


def find_pairs(cupy):
    found = engine.pairs_above(X, None, 0.4, max_pairs=10**6, on_invalid="skip")
    assert sorted(zip(*map(list, found[:2]), strict=True)) == sorted(zip(PAIRS.first, PAIRS.second, strict=True))


def time_steps(cupy):
    clock = {}
    engine.top_k(X, None, 4, on_invalid="skip", clock=clock)
    assert min(clock.values()) > 0


def report_progress(cupy):
    """What is reported has been done."""
    stream = gpu_stand_in.Stream.current
    engine.top_k(X, None, 4, on_invalid="skip", progress=lambda share: share == 1 or check(not stream.queue))


def check(condition):
    assert condition


def stop_in_the_middle(cupy):
    """Memory that the GPU still reads or writes is not given back: who gets it next would see it change."""

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.top_k(X, None, 4, on_invalid="skip", progress=interrupt)
    with pytest.raises(ValueError, match="NaN"):
        engine.top_k(X, None, 4)
    assert not [stream for stream in gpu_stand_in.Machine.pending if stream.number]


WORKLOADS = [compare, compare_what_is_on_the_gpu, find_pairs, time_steps, report_progress, stop_in_the_middle]


def run(workload, plan, eager, ignored=None):
    with stand_in(pending_is_an_error=False) as cupy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_rows.Plan, "for_memory", lambda *_: plan)
        patch.setattr(gpu_stand_in.Machine, "eager", eager)
        patch.setattr(gpu_stand_in.Machine, "ignored", ignored)
        workload(cupy)


@pytest.mark.parametrize("plan", [PLAN, RESIDENT], ids=["streamed", "resident"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_order_of_the_streams_gives_the_answer(workload, plan):
    for eager in EAGER:
        run(workload, plan, eager)


@pytest.mark.parametrize("line", list(waiting_lines()), ids="{0[0]}:{0[1]}".format)
def test_without_any_of_the_waiting_something_fails(line):
    for eager, workload, plan in itertools.product(EAGER, WORKLOADS, [PLAN, RESIDENT]):
        try:
            run(workload, plan, eager, ignored=line)
        except (AssertionError, ValueError, RuntimeError, IndexError):
            return
    pytest.fail(f"{line}: left out, and every answer is right: it is not needed, or no test needs it")
